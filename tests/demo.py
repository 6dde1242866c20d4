"""`make demo`: a training is killed half way, the same command is asked again, and the weights are the same bit for bit."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from runner import run_directory, runs

ROOT = Path(__file__).resolve().parent.parent
VOLUME = ROOT / "build" / "demo"


def main() -> None:
    shutil.rmtree(VOLUME, ignore_errors=True)
    VOLUME.mkdir(parents=True)
    began = time.monotonic()
    say("1. An uninterrupted run, to compare with.")
    train("uninterrupted")
    say("2. The same training, killed with SIGKILL half way.")
    killed = start("killed")
    kill_half_way(VOLUME / "killed")
    killed.wait()
    say("3. The same command again: it goes on from the last checkpoint.")
    train("killed")
    say("4. The weights, as SHA-256 over all arrays:")
    hashes = {name: report(name)["weights_sha256"] for name in ("uninterrupted", "killed")}
    for name, value in hashes.items():
        print(f"   {name:14}{value}")
    if len(set(hashes.values())) != 1:
        sys.exit("   They differ: that is a bug, please report it.")
    folder = VOLUME / "killed"
    accuracy, seconds = report("killed")["test_accuracy"], time.monotonic() - began
    print(f"   Equal, bit for bit. Test accuracy {accuracy:.4f}; {seconds:.0f} s in all.\n")
    print(f"Pictures:     {', '.join(sorted(path.name for path in (folder / 'pictures').glob('*.png')))}")
    print(f"              in {folder / 'pictures'}")
    print(f"Model:        {folder / 'model'}\nReport:       {folder / 'report.json'}")


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def start(name: str) -> "subprocess.Popen[bytes]":
    where = ["--name", name, "--volume", str(VOLUME.relative_to(ROOT))]
    command = ["runner", "run", "fashion_mnist", "-P", "epochs=20", *where]
    print(f"   $ {shlex.join(command)}", flush=True)
    return subprocess.Popen([Path(sys.executable).with_name("runner"), *command[1:]], cwd=ROOT)


def train(name: str) -> None:
    code = start(name).wait()
    if code != 0:
        sys.exit(code)


def kill_half_way(directory: Path) -> None:
    """Kill the launcher, and with it the training, as soon as half of the steps are done and a checkpoint is there."""
    while True:
        run = runs.load(directory)
        if run:
            progress = run.record.get("progress") or {}
            half = progress.get("step", 0) >= progress.get("total_steps", 0) / 2 > 0
            holder = run_directory.holder(str(directory / ".lock"))
            if half and run.checkpoint() and holder:
                os.kill(holder["pid"], signal.SIGKILL)
                return
            if run.record.get("ended"):
                sys.exit("   It was done before it could be killed.")
        time.sleep(0.02)


def report(name: str) -> dict[str, object]:
    value: dict[str, object] = json.loads((VOLUME / name / "report.json").read_text())
    return value


if __name__ == "__main__":
    main()
