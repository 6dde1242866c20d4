"""`runner prove`: trains once in peace and once with kills, and compares the arrays that come out, bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import backends, launcher, plan, process, resources, runs, terminal, virtualenvs
from runner.errors import RunnerError
from runner.plan import Asked

DIFFERENT = 1


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came out: whether it can be resumed bit for bit, and the sentence that says so."""

    identical: bool
    sentence: str
    compared: int = 0
    kills: int = 0


def prove(asked: Asked, kills: int, seed: int | None, as_json: bool) -> int:
    """Run the job twice on a temporary volume and say whether the arrays are the same; 0 if they are."""
    seed = random.randrange(10**6) if seed is None else seed
    with _temporary(asked.volume) as place:
        quiet = _volume(place, "uninterrupted")
        began = time.monotonic()
        _say(f"an uninterrupted run, then one with {kills} SIGKILLs and one SIGTERM (moments from --seed {seed})")
        reference = _until_done(dataclasses.replace(asked, volume=quiet))
        seconds = time.monotonic() - began
        killed = _with_kills(asked, _volume(place, "killed"), kills, seconds, random.Random(seed))
        verdict = _compare(reference, killed[0], killed[1])
    if as_json:
        print(json.dumps(dataclasses.asdict(verdict)))
    else:
        print(verdict.sentence)
    return 0 if verdict.identical else DIFFERENT


@contextlib.contextmanager
def _temporary(parent: Path | None) -> Iterator[Path]:
    """Give a folder for both volumes: on the disk where the runs live, for what is proved is that disk's, too."""
    place = Path(tempfile.mkdtemp(prefix=".prove-", dir=plan.volume_of(parent) if parent else None))
    try:
        yield place
    finally:
        for run in [run for folder in place.iterdir() for run in runs.on_volume(folder)]:
            if run.going:  # somebody pressed Ctrl-C
                backends.get("native").stop(run, kill=True)
                _wait_for_end(run.directory)
            backends.get("native").remove(run)
        shutil.rmtree(place, ignore_errors=True)


def _volume(place: Path, name: str) -> Path:
    (place / name).mkdir()
    return place / name


def _until_done(asked: Asked) -> runs.Found:
    directory, _ = _submit(asked)
    with terminal.ProgressLine() as line:
        while (run := runs.load(directory)) is None or run.going or not run.record.get("ended"):
            line.update("uninterrupted: " + _progress(run))
            time.sleep(0.1)
    if run.record.get("exit_code") != 0:
        raise RunnerError(
            f"the uninterrupted run did not succeed, so there is nothing to compare. {runs.sentence(run)}"
        )
    return run


def _submit(asked: Asked) -> tuple[Path, str]:
    """Ask for the run as anybody would; return its directory and submission, once it has been taken or refused."""
    decided = plan.decide(asked)
    if decided.run is None:
        return decided.directory, ""
    submission = backends.get(decided.run.request["backend"]).submit(decided.run)
    identity = str(decided.run.request["submission"])
    while (run := runs.load(decided.directory)) is None or run.record.get("submission") != identity:
        refusal = submission.refused()
        if refusal:
            raise RunnerError(f"the run could not be started: {refusal[1]}")
        time.sleep(0.02)
    return decided.directory, identity


def _with_kills(
    asked: Asked, volume: Path, kills: int, seconds: float, chance: random.Random
) -> tuple[runs.Found, int]:
    """Run the job, killing it at random moments; between two kills it gets far enough to be worth a kill."""
    asked = dataclasses.replace(asked, volume=volume, checkpoint_every=f"{max(seconds / 20, 0.2):.2f}s")
    signals = [signal.SIGKILL] * kills + [signal.SIGTERM]
    chance.shuffle(signals)
    done = 0
    with terminal.ProgressLine() as line:
        for number in signals:
            directory, _ = _submit(asked)
            moment = time.monotonic() + chance.uniform(0.2, 1.0) * seconds
            while time.monotonic() < moment and not _over(directory):
                line.update(f"kill {done + 1} of {len(signals)}: " + _progress(runs.load(directory)))
                time.sleep(0.01)
            if _over(directory):
                break
            _kill(directory, number)
            done += 1
            _wait_for_end(directory)
            line.clear()
            _say(f"{'killed' if number == signal.SIGKILL else 'told to stop'}: {runs.sentence(_found(directory))}")
    return _until_done(asked), done


def _found(directory: Path) -> runs.Found:
    run = runs.load(directory)
    assert run
    return run


def _over(directory: Path) -> bool:
    return not _found(directory).going


def _wait_for_end(directory: Path) -> None:
    while _found(directory).going:
        time.sleep(0.02)


def _kill(directory: Path, number: int) -> None:
    """Kill launcher and child together, as a crash of the machine would."""
    holder = launcher.module().holder(str(directory / ".lock"))
    with contextlib.suppress(ProcessLookupError, TypeError):
        os.kill(int(holder["pid"]), number)


def _progress(run: runs.Found | None) -> str:
    from runner import follow

    return follow.progress_words((run.record if run else {}).get("progress") or {})


def _compare(reference: runs.Found, killed: runs.Found, kills: int) -> Verdict:
    """Compare the arrays of the newest checkpoints and of all models of the two runs."""
    pairs = _pairs(reference, killed)
    if not pairs:
        return Verdict(identical=False, kills=kills, sentence=(
            "nothing was checkpointed: no complete checkpoint or model was found in checkpoints/, model/ or work/. "
            "jobs/runner_checkpoint.py makes a trainer resumable in five lines; see the README."
        ))  # fmt: skip
    first, second = _arrays(reference, [a for _, a, _ in pairs]), _arrays(killed, [b for _, _, b in pairs])
    for name, a, b in pairs:
        difference = _difference(first[str(a)], second[str(b)])
        if difference:
            return Verdict(
                identical=False,
                kills=kills,
                sentence=f"not the same: {name}, array {difference}{_first_step(reference, killed)}",
            )
    count = sum(len(first[str(a)]) for _, a, _ in pairs)
    times = f"{kills} kill{'s' if kills != 1 else ''}"
    names = ", ".join(name for name, _, _ in pairs[:4]) + (", ..." if len(pairs) > 4 else "")
    sentence = f"resumable, bit-identical: {count} arrays in {len(pairs)} files are the same after {times} ({names})"
    return Verdict(identical=True, compared=count, kills=kills, sentence=sentence)


def _pairs(reference: runs.Found, killed: runs.Found) -> list[tuple[str, Path, Path]]:
    """Return what can be compared: (name, file of the one, file of the other)."""
    files = [_files(run) for run in (reference, killed)]
    pairs = [(name, files[0][name], files[1][name]) for name in sorted(files[0].keys() & files[1].keys())]
    newest = [run.checkpoint() for run in (reference, killed)]
    if newest[0] and newest[1] and newest[0]["path"] not in files[0].keys() & files[1].keys():
        pairs.append((newest[0]["path"], reference.directory / newest[0]["path"], killed.directory / newest[1]["path"]))
    return pairs


def _files(run: runs.Found) -> dict[str, Path]:
    found = launcher.module().checkpoints(
        str(run.directory), run.request.get("code", {}), ("checkpoints", "work", "model")
    )
    return {entry["path"]: run.directory / entry["path"] for entry in found}


def _arrays(run: runs.Found, files: list[Path]) -> dict[str, dict[str, str]]:
    lock = (run.directory / "runner.lock").read_text()
    python = virtualenvs.ensure(
        lock, run.request["pythons"], run.request["environment"], run.record["conditions"]["python"]
    ).python
    variables = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    output = process.call([python, resources.data("jobs", "arrays.py"), *files], env=variables)
    found: dict[str, dict[str, str]] = json.loads(output.splitlines()[-1])
    return found


def _difference(first: dict[str, str], second: dict[str, str]) -> str | None:
    names = sorted(first.keys() | second.keys())
    return next((name for name in names if first.get(name) != second.get(name)), None)


def _first_step(reference: runs.Found, killed: runs.Found) -> str:
    """Return where the metrics of the two runs part, if they were written."""
    lines: list[list[dict[str, Any]]] = []
    for run in (reference, killed):
        try:
            lines.append([json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()])
        except (OSError, ValueError):
            return ""
    for a, b in zip(*lines, strict=False):
        timeless = [{key: value for key, value in line.items() if key != "seconds"} for line in (a, b)]
        if timeless[0] != timeless[1]:
            return f"; the metrics part at step {a.get('step', 'unknown')}"
    return "; the metrics are the same"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
