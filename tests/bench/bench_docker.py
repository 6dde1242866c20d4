"""What `runner run --on docker` costs over a plain `docker run` of the same image and work; prints JSON.

RUNNER_BASE_IMAGE names the base image where the official ones cannot be had (tests/engine/bases).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from runner import engines, environments, images, specs
from runner.errors import EngineFailed

JOBS = Path(__file__).resolve().parents[2] / "tests" / "jobs"
RUNNER = [sys.executable, "-m", "runner"]
STEPS = "steps=5"
TIMES = 9


def seconds(command: Sequence[str | Path]) -> float:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # no user sets it
    began = time.perf_counter()
    subprocess.run(command, cwd=JOBS, env=kept, check=True, capture_output=True)
    return time.perf_counter() - began


def plain(folder: Path, number: int, image: str) -> list[str | Path]:
    """Return the command that somebody would type without us; its folder is made as the counter expects it."""
    job = specs.read_job(JOBS / "counter" / "job.yaml")
    defaults = {name: parameter.default for name, parameter in job.parameters.items()}
    home = folder / f"plain-{number}"
    (home / "checkpoints").mkdir(parents=True)
    (home / "p.json").write_text(json.dumps({**defaults, **job.values([STEPS])}))
    variables = ("RUNNER_DIR=/run/1", "RUNNER_ATTEMPT=1", "RUNNER_PARAMETERS=/run/1/p.json")
    return [
        "docker", "run", "--rm", "--init", "--user", f"{os.getuid()}:{os.getgid()}", "--volume", f"{home}:/run/1",
        "--volume", f"{JOBS / 'counter'}:/job", *(word for one in variables for word in ("--env", one)),
        image, "python", "/job/counter.py",
    ]  # fmt: skip


def ours(folder: Path, number: int) -> list[str | Path]:
    (folder / "volume").mkdir(exist_ok=True)
    options = ("-P", STEPS, "--name", f"bench-{number}", "--volume", folder / "volume")
    return [*RUNNER, "run", "counter", "-E", "tf0.0-cpu", "--on", "docker", *options]


def measure(folder: Path, image: str) -> dict[str, float]:
    """Return the medians of both, which take turns, so that a busy machine disturbs both alike."""
    times: dict[str, list[float]] = {"docker_run_s": [], "run_s": []}
    for number in range(TIMES):
        times["docker_run_s"].append(seconds(plain(folder, number, image)))
        times["run_s"].append(seconds(ours(folder, number)))
    median = {name: statistics.median(found) for name, found in times.items()}
    return {**median, "overhead_s": median["run_s"] - median["docker_run_s"]}


def main() -> None:
    os.chdir(JOBS)  # the row is one of the tests'
    row = environments.find("tf0.0-cpu")
    try:
        engine = engines.connect()
    except EngineFailed as error:
        print(json.dumps({"skipped": str(error)}))
        return
    image = images.ensure(engine, row.name, row.lock_text, row.pythons[0], os.environ.get("RUNNER_BASE_IMAGE"))
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = measure(Path(folder), image)
        finally:
            for number in range(TIMES):
                subprocess.run([*RUNNER, "rm", f"bench-{number}", "--volume", f"{folder}/volume"], capture_output=True)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
