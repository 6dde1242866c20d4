"""`runner prove`: trains once in peace and once with kills, and compares the arrays that come out, bit for bit.

Equal arrays do not show that a job is resumable: one that begins again after each kill ends with the same ones. So it is
also observed whether the last attempt went on: by the steps that it reported, else by the time that it took.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import backends, plan, process, resources, run_directory, runs, terminal
from runner.backends import Submission
from runner.errors import RunnerError
from runner.plan import Asked

DIFFERENT = 1
NOT_PROVED = "not proved"
PREFIX = ".prove-"  # of a folder on a volume
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TIMES = ("seconds", "time", "seconds_left", "images_per_second")  # in metrics.jsonl: not a result


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came out, and the sentence that says so."""

    proved: bool  # what the exit code says
    identical: bool
    resumes: bool | None = None  # whether the last attempt went on from a checkpoint; None: it could not be seen
    sentence: str
    compared: int = 0
    kills: int = 0


def prove(asked: Asked, kills: int, seed: int | None, as_json: bool) -> int:
    """Run the job twice on a temporary volume and say whether the arrays are the same; 0 if they are."""
    seed = random.randrange(10**6) if seed is None else seed
    asked = dataclasses.replace(asked, fresh=False, update_code=False)
    with _temporary(asked.volume) as place:
        opening = f"an uninterrupted run, then one with {kills} SIGKILLs and one SIGTERM (moments from --seed {seed})"
        uninterrupted = dataclasses.replace(asked, volume=_volume(place, "uninterrupted"))
        reference = _until_done(uninterrupted, "uninterrupted", opening)
        killed = _with_kills(asked, place, kills, _pace(reference), random.Random(seed))
        verdict = _compare(reference, killed)
    if killed.kills <= kills:
        _say(f"the job is so short that it was done after {killed.kills} of {kills + 1} kills; give it more to do")
    if as_json:
        print(json.dumps(dataclasses.asdict(verdict)))
    else:
        print(verdict.sentence)
    return 0 if verdict.proved else DIFFERENT


@contextlib.contextmanager
def _temporary(parent: Path | None) -> Iterator[Path]:
    """Give a folder for both volumes: on the disk where the runs live, for what is proved is that disk's, too."""
    volume = plan.volume_of(parent)
    with process.ends_like_ctrl_c():
        place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=volume if volume.is_dir() else None))
        lock = run_directory.Lock(str(place), "prove")
        try:
            lock.acquire()
            yield place
        finally:
            for number in ENDS:  # whoever is impatient must not leave half of it
                signal.signal(number, signal.SIG_IGN)
            for run in _runs_in(place):
                if run.going:  # somebody pressed Ctrl-C
                    backends.get(run.backend).send(run, signal.SIGINT)
                    _wait_for_end(run.directory)
            remove(place)
            lock.release()


def leftovers(volume: Path) -> list[Path]:
    """Return the folders of proofs that were killed on a volume: nobody holds them, and none of their runs is going."""
    folders = volume.glob(f"{PREFIX}*") if volume.is_dir() else ()
    return [
        folder
        for folder in folders
        if not run_directory.going(str(folder)) and not any(run.going for run in _runs_in(folder))
    ]


def remove(place: Path) -> None:
    """Remove the folder of a proof, and what the backend keeps of its runs."""
    for run in _runs_in(place):
        backends.get(run.backend).remove(run)
    shutil.rmtree(place, ignore_errors=True)


def _runs_in(place: Path) -> list[runs.Found]:
    return [run for folder in place.iterdir() if folder.is_dir() for run in runs.on_volume(folder)]


def _volume(place: Path, name: str) -> Path:
    (place / name).mkdir()
    return place / name


def _until_done(asked: Asked, which: str, opening: str = "") -> runs.Found:
    """Ask for the run and wait for its end, which must be a success."""
    directory, submission = _submit(asked, opening)
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


def _submit(asked: Asked, opening: str = "") -> tuple[Path, Submission | None]:
    """Ask for the run as anybody would; return its directory and the submission (None: it is done), once it was taken."""
    decided = plan.decide(asked)
    for line in (opening, *decided.notes) if opening else ():
        _say(line)
    if decided.run is None:
        return decided.directory, None
    submission = backends.get(decided.run.request["backend"]).submit(decided.run)
    identity = str(decided.run.request["submission"])
    try:
        _wait_until_taken(decided.directory, submission, identity)
    except KeyboardInterrupt:
        _wait_until_taken(decided.directory, submission, identity)  # only then the clean-up finds it
        raise
    return decided.directory, submission


def _wait_until_taken(directory: Path, submission: Submission, identity: str) -> None:
    while (run := runs.load(directory)) is None or run.record.get("submission") != identity:
        refusal = submission.refused()
        if refusal:
            raise RunnerError(f"the run could not be started: {refusal[1]}")
        time.sleep(0.02)


@dataclass(frozen=True, kw_only=True)
class Killed:
    """The run that was killed, how often, and how many seconds of its work should have been done at the last kill."""

    run: runs.Found
    kills: int
    worked: float


def _with_kills(asked: Asked, place: Path, kills: int, pace: Pace, chance: random.Random) -> Killed:
    """Run the job with all its kills; where it was done before the last of them, begin again with shorter spans."""
    most: Killed | None = None
    for number, share in enumerate((1.0, 0.5, 0.2)):
        volume = _volume(place, f"killed-{number}")
        every = f"{max((pace.start + pace.work) / 20, 0.1):.2f}s"
        found = _killed(dataclasses.replace(asked, volume=volume, checkpoint_every=every), kills, pace, share, chance)
        if most is None or found.kills > most.kills:
            most = found
        if found.kills == kills + 1:
            break
        if share > 0.2:
            _say(f"it was done after {found.kills} of {kills + 1} kills: once more, with earlier ones")
    assert most
    return most


def _killed(asked: Asked, kills: int, pace: Pace, share: float, chance: random.Random) -> Killed:
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
            with contextlib.suppress(RunnerError):  # it has just ended
                found = _found(directory)
                backends.get(found.backend).send(found, number)
            while not submission.refused():
                time.sleep(0.01)
            run = _found(directory)
            if run.record.get("exit_code") not in (None, run_directory.INTERRUPTED):
                break  # it had just ended
            done += 1
            line.clear()
            _say(f"{'killed' if number == signal.SIGKILL else 'told to stop'}: {runs.sentence(run)}")
    return Killed(run=_until_done(asked, "killed"), kills=done, worked=moments[done - 1] if done else 0.0)


def _found(directory: Path) -> runs.Found:
    run = runs.load(directory)
    assert run
    return run


def _wait_for_end(directory: Path) -> None:
    while _found(directory).going:
        time.sleep(0.02)


def _progress(run: runs.Found | None) -> str:
    from runner import follow

    return follow.progress_words((run.record if run else {}).get("progress") or {})


def _compare(reference: runs.Found, killed: Killed) -> Verdict:
    """Compare the arrays of the newest checkpoints and of all models of the two runs, and say what that shows."""
    pairs, kills = _pairs(reference, killed.run), killed.kills
    if not pairs:
        return Verdict(proved=False, identical=False, kills=kills, sentence=(
            "nothing was checkpointed: no complete checkpoint or model was found in checkpoints/, model/ or work/. "
            "jobs/runner_checkpoint.py makes a trainer resumable in five lines; see the README."
        ))  # fmt: skip
    first, second = _arrays(reference, [a for _, a, _ in pairs]), _arrays(killed.run, [b for _, _, b in pairs])
    for name, a, b in pairs:
        difference = _difference(first[str(a)], second[str(b)])
        if difference:
            where = f"{name}, array {difference}{_first_step(reference, killed.run)}"
            sentence = f"not the same after {_times(kills, 'kill')}: {where}"
            return Verdict(proved=False, identical=False, kills=kills, sentence=sentence)
    count = sum(len(first[str(a)]) for _, a, _ in pairs)
    names = ", ".join(name for name, _, _ in pairs[:4]) + (", ..." if len(pairs) > 4 else "")
    what = f"{_times(count, 'array')} in {_times(len(pairs), 'file')}"
    resumes, sentence = _judged(reference, killed, what, names)
    proved = resumes is not False and not sentence.startswith(NOT_PROVED)
    return Verdict(proved=proved, identical=True, resumes=resumes, compared=count, kills=kills, sentence=sentence)


def _judged(reference: runs.Found, killed: Killed, what: str, names: str) -> tuple[bool | None, str]:
    """Return whether a job with equal arrays is resumable, and the sentence that says so."""
    same = f"the same bits after {_times(killed.kills, 'kill')}"
    if not killed.kills:
        return None, f"{NOT_PROVED}: it was done before it could be killed"
    if not killed.run.record["attempts"][-1].get("began_from"):
        return None, f"{NOT_PROVED}: {same}, but none came after a checkpoint that it could have gone on from"
    resumes, why = _resumes(reference, killed)
    if resumes is None:
        return None, f"{same} ({what}); whether it continued or began again cannot be seen, {why}"
    if not resumes:
        return False, f"{same}, but it begins again each time: nothing is restored ({why})"
    is_are = "is" if what.startswith("1 ") else "are"
    kills = _times(killed.kills, "kill")
    return True, f"resumable, bit-identical: {what} {is_are} the same after {kills} ({names})"


def _resumes(reference: runs.Found, killed: Killed) -> tuple[bool | None, str]:
    """Return whether the last attempt went on from where an earlier one had come to, and how that is known."""
    *before, last = killed.run.record["attempts"]
    first, reached = min(_steps(killed.run, last), default=None), _furthest(killed.run, before)
    checkpoint = last["began_from"]["step"]
    by_time = _resumes_by_time(reference, killed)
    if first is None or reached is None:
        why = f"for it reports no steps, and a last attempt of {_seconds(last)} s instead of {_seconds(_last(reference))} s "
        return by_time, why + ("says too little" if by_time is None else "says so")
    # The launcher looks twice a second, so the first step that it sees may be late by some: half the way is the limit.
    if first > reached / 2:
        return (None if by_time is False else True), "for its steps and its times do not agree"
    if checkpoint is None or checkpoint >= first:
        return False, f"the last attempt reported step {first}, and an earlier one had come to step {reached}"
    return by_time, f"for the last attempt began near step {first}, and an earlier one had come to step {reached}"


def _resumes_by_time(reference: runs.Found, killed: Killed) -> bool | None:
    """Tell by the time that the last attempt saved, as a share of what was done at the last kill; None: by nothing clear."""
    whole = _seconds(_last(reference))
    if killed.worked < 0.4 * whole:
        return None
    saved = (whole - _seconds(_last(killed.run))) / killed.worked
    return True if saved > 0.6 else False if saved < 0.3 else None


def _last(run: runs.Found) -> Mapping[str, Any]:
    entry: Mapping[str, Any] = run.record["attempts"][-1]
    return entry


def _seconds(attempt: Mapping[str, Any]) -> float:
    return round(float(attempt["ended"]) - float(attempt["started"]), 2)


def _furthest(run: runs.Found, attempts: list[Mapping[str, Any]]) -> int | None:
    return max((step for attempt in attempts for step in _steps(run, attempt)), default=None)


def _steps(run: runs.Found, attempt: Mapping[str, Any]) -> list[int]:
    """Return the steps that an attempt showed, from its log: what it printed, and what the launcher saw in metrics.jsonl."""
    found = []
    with (run.directory / "logs" / f"attempt-{attempt['number']}.log").open(errors="replace") as log:
        for line in log:
            if line.startswith("@runner "):
                with contextlib.suppress(ValueError, AttributeError):
                    step = json.loads(line.removeprefix("@runner ")).get("progress", {}).get("step")
                    found += [step] if type(step) is int else []
    return found


def _times(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' if count != 1 else ''}"


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
    output = backends.get(run.backend).call(run, resources.data("jobs", "arrays.py"), files)
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
