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

from runner import backends, plan, process, resources, run_directory, runs, terminal, virtualenvs
from runner.backends import Submission
from runner.errors import RunnerError
from runner.plan import Asked

DIFFERENT = 1
TIMES = ("seconds", "time", "seconds_left", "images_per_second")  # in metrics.jsonl: not a result


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
    asked = dataclasses.replace(asked, fresh=False, update_code=False)
    with _temporary(asked.volume) as place:
        _say(f"an uninterrupted run, then one with {kills} SIGKILLs and one SIGTERM (moments from --seed {seed})")
        reference = _until_done(dataclasses.replace(asked, volume=_volume(place, "uninterrupted")), "uninterrupted")
        killed, done = _with_kills(asked, place, kills, _pace(reference), random.Random(seed))
        verdict = _compare(reference, killed, done)
    if done <= kills:
        _say(f"the job is so short that it was done after {done} of {kills + 1} kills; give it more to do")
    if as_json:
        print(json.dumps(dataclasses.asdict(verdict)))
    else:
        print(verdict.sentence)
    return 0 if verdict.identical else DIFFERENT


@contextlib.contextmanager
def _temporary(parent: Path | None) -> Iterator[Path]:
    """Give a folder for both volumes: on the disk where the runs live, for what is proved is that disk's, too."""
    volume = plan.volume_of(parent)
    place = Path(tempfile.mkdtemp(prefix=".prove-", dir=volume if volume.is_dir() else None))
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


def _until_done(asked: Asked, which: str) -> runs.Found:
    """Ask for the run and wait for its end, which must be a success."""
    directory, submission = _submit(asked)
    with terminal.ProgressLine() as line:
        while submission and not submission.refused():
            line.update(f"{which}: " + _progress(runs.load(directory)))
            time.sleep(0.05)
    run = _found(directory)
    if run.record.get("exit_code") != 0:
        raise RunnerError(f"the {which} run did not succeed, so there is nothing to compare. {runs.sentence(run)}")
    return run


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How an uninterrupted run went: seconds until the job showed its first progress, and seconds from there to its end."""

    start: float
    work: float


def _pace(run: runs.Found) -> Pace:
    """Read the pace from the log's own clock: the launcher's records, and when the first metrics or checkpoint came."""
    attempt = run.record["attempts"][-1]
    first = min([float(attempt.get("first_sign") or attempt["ended"]), float(attempt["ended"])])
    return Pace(start=first - attempt["started"], work=attempt["ended"] - first)


def _submit(asked: Asked) -> tuple[Path, Submission | None]:
    """Ask for the run as anybody would; return its directory and the submission (None: it is done), once it was taken."""
    decided = plan.decide(asked)
    if decided.run is None:
        return decided.directory, None
    submission = backends.get(decided.run.request["backend"]).submit(decided.run)
    identity = str(decided.run.request["submission"])
    while (run := runs.load(decided.directory)) is None or run.record.get("submission") != identity:
        refusal = submission.refused()
        if refusal:
            raise RunnerError(f"the run could not be started: {refusal[1]}")
        time.sleep(0.02)
    return decided.directory, submission


def _with_kills(asked: Asked, place: Path, kills: int, pace: Pace, chance: random.Random) -> tuple[runs.Found, int]:
    """Run the job with all its kills; where it was done before the last of them, begin again with shorter spans."""
    most: tuple[runs.Found, int] | None = None
    for number, share in enumerate((1.0, 0.5, 0.2)):
        volume = _volume(place, f"killed-{number}")
        every = f"{max((pace.start + pace.work) / 20, 0.1):.2f}s"
        found = _killed(dataclasses.replace(asked, volume=volume, checkpoint_every=every), kills, pace, share, chance)
        if most is None or found[1] > most[1]:
            most = found
        if found[1] == kills + 1:
            break
        if share > 0.2:
            _say(f"it was done after {found[1]} of {kills + 1} kills: once more, with earlier ones")
    assert most
    return most


def _killed(asked: Asked, kills: int, pace: Pace, share: float, chance: random.Random) -> tuple[runs.Found, int]:
    """Run the job, killing it at random moments, spread so that it does not end before the last one."""
    signals = [signal.SIGKILL] * kills + [signal.SIGTERM]
    chance.shuffle(signals)
    moments = sorted(chance.uniform(0.05, 0.9) * share * pace.work for _ in signals)  # in the job's own work
    done = 0
    with terminal.ProgressLine() as line:
        for number, begin, end in zip(signals, [0.0, *moments], moments, strict=False):
            directory, submission = _submit(asked)
            if submission is None:
                break  # it was done before
            moment = time.monotonic() + chance.uniform(0.5, 1.0) * share * pace.start + end - begin
            while time.monotonic() < moment and not submission.refused():
                line.update(f"kill {done + 1} of {len(signals)}: " + _progress(runs.load(directory)))
                time.sleep(0.005)
            if submission.refused():
                break
            _kill(directory, number)
            while not submission.refused():
                time.sleep(0.01)
            run = _found(directory)
            if run.record.get("exit_code") not in (None, run_directory.INTERRUPTED):
                break  # it had just ended
            done += 1
            line.clear()
            _say(f"{'killed' if number == signal.SIGKILL else 'told to stop'}: {runs.sentence(run)}")
    return _until_done(asked, "killed"), done


def _found(directory: Path) -> runs.Found:
    run = runs.load(directory)
    assert run
    return run


def _wait_for_end(directory: Path) -> None:
    while _found(directory).going:
        time.sleep(0.02)


def _kill(directory: Path, number: int) -> None:
    """Kill launcher and child together, as a crash of the machine would."""
    holder = run_directory.holder(str(directory / ".lock"))
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
                sentence=f"not the same after {_times(kills)}: {name}, array {difference}{_first_step(reference, killed)}",
            )
    count = sum(len(first[str(a)]) for _, a, _ in pairs)
    names = ", ".join(name for name, _, _ in pairs[:4]) + (", ..." if len(pairs) > 4 else "")
    sentence = (
        f"resumable, bit-identical: {count} arrays in {len(pairs)} files are the same after {_times(kills)} ({names})"
    )
    return Verdict(identical=True, compared=count, kills=kills, sentence=sentence)


def _times(kills: int) -> str:
    return f"{kills} kill{'s' if kills != 1 else ''}"


def _pairs(reference: runs.Found, killed: runs.Found) -> list[tuple[str, Path, Path]]:
    """Return what can be compared: (name, file of the one, file of the other)."""
    files = [_files(run) for run in (reference, killed)]
    pairs = [(name, files[0][name], files[1][name]) for name in sorted(files[0].keys() & files[1].keys())]
    newest = [run.checkpoint() for run in (reference, killed)]
    if newest[0] and newest[1] and newest[0]["path"] not in files[0].keys() & files[1].keys():
        pairs.append((newest[0]["path"], reference.directory / newest[0]["path"], killed.directory / newest[1]["path"]))
    return pairs


def _files(run: runs.Found) -> dict[str, Path]:
    found = run_directory.checkpoints(str(run.directory), run.request.get("code", {}), ("checkpoints", "work", "model"))
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
    by_step = [{line.get("step", number): line for number, line in enumerate(run)} for run in lines]  # the last counts
    for step in [step for step in by_step[0] if step in by_step[1]]:
        timeless = [{key: value for key, value in run[step].items() if key not in TIMES} for run in by_step]
        if timeless[0] != timeless[1]:
            return f"; the metrics part at step {step}"
    return "; the metrics of all steps are the same"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
