"""Carries out a plan while somebody watches: submit, then follow; a closed terminal or Ctrl-C never loses the run."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runner import backends, follow, process, run_directory, runs
from runner.backends import Submission
from runner.errors import RunnerError
from runner.plan import Plan

DETACHED = 130


def carry_out(plan: Plan, *, detach: bool = False, as_json: bool = False) -> int:
    """Do what was planned; return the exit code of the command."""
    for note in plan.notes:
        _say(note)
    if plan.action == "show":
        assert plan.existing
        return _result(plan.existing, as_json)
    if plan.action == "attach":
        assert plan.existing
        return _attach(plan.existing, detach, as_json)
    return _submit(plan, detach, as_json)


def _attach(run: runs.Found, detach: bool, as_json: bool) -> int:
    _say(f"{run.name} is going already: attached to it")
    if not detach:
        return _attend(run.directory, None, None, _current_attempt(run), as_json)
    if as_json:
        print(runs.as_json(runs.status(run)))
    return 0


def _submit(plan: Plan, detach: bool, as_json: bool) -> int:
    run = plan.run
    assert run
    with process.ends_like_ctrl_c():
        submission = backends.get(run.request["backend"]).submit(run)
    runs.remember(run.volume)
    before = [] if run.request["mode"] == "fresh" or not plan.existing else plan.existing.record.get("attempts") or []
    if detach:
        return _detached(run.directory, submission, run.request["submission"], as_json)
    hint = f"from any terminal: {next(runs.next_commands(run.name, run.volume))}   (also: logs -f, stop)"
    return _attend(run.directory, submission, run.request["submission"], len(before) + 1, as_json, hint)


def _detached(directory: Path, submission: Submission, identity: str, as_json: bool) -> int:
    """Wait until the launcher has taken the request, so that a refusal is still seen."""
    while True:
        refusal = submission.refused()
        run = runs.load(directory)
        ours = run is not None and run.counted(identity)
        if run and ours and run.record.get("attempts"):
            break
        if refusal and run and ours:
            return _result(run, as_json)
        if refusal and run and _started_elsewhere(refusal[0], run):
            break
        if refusal:
            submission.clean()
            return _refusal(*refusal)
        time.sleep(follow.PAUSE)
    if as_json:
        print(runs.as_json(runs.status(run)))
    else:
        print(run.name)
        _next(run)
    return 0


def _attend(
    directory: Path, submission: Submission | None, identity: str | None, first: int, as_json: bool, hint: str = ""
) -> int:
    screen = follow.Screen(hint=hint)
    try:
        run = follow.follow(directory, screen, submission, identity, first)
    except KeyboardInterrupt:
        return _interrupted(directory, submission, identity, as_json)
    if submission:
        submission.clean()
    if run is None:
        assert submission
        return _refused(directory, submission, as_json)
    if submission is None and not run.going:
        backends.get(run.backend).tidy(run)  # whoever submitted it may be gone
    return _result(run, as_json)


def _refused(directory: Path, submission: Submission, as_json: bool) -> int:
    refusal = submission.refused()
    assert refusal
    run = runs.load(directory)
    if run and _started_elsewhere(refusal[0], run):
        _say(f"{run.name} was started elsewhere in the same moment: attached to it")
        return _attend(directory, None, None, _current_attempt(run), as_json)
    return _refusal(*refusal)


def _started_elsewhere(code: int, run: runs.Found) -> bool:
    """Return whether a launcher was refused because another one was at it, which goes on or has ended since."""
    return code == run_directory.TAKEN and (run.going or run.record.get("exit_code") is not None)


def _refusal(code: int, sentence: str) -> int:
    if code < 0:
        raise RunnerError(f"the launcher was killed before it began: {sentence}. The same command tries again.")
    if code == 0:
        raise RunnerError(f"the launcher ended, and there is nothing of its run on the volume: {sentence}.")
    print(f"runner: {sentence}", file=sys.stderr)
    return code


def _current_attempt(run: runs.Found) -> int:
    return max(run.attempt, 1)


def _interrupted(directory: Path, submission: Submission | None, identity: str | None, as_json: bool) -> int:
    """Ctrl-C: the job writes a checkpoint and stops; a second one kills it."""
    try:
        run = _stopped(directory, submission, identity)
    except RunnerError as error:  # its engine has gone
        where = shlex.quote(str(directory.parent))
        _say(f"{error}\n{directory.name} may go on. Stop it with: runner stop {directory.name} --volume {where}")
        return DETACHED
    if submission:
        submission.clean()
    if run:
        _result(run, as_json)
    return DETACHED


def _stopped(directory: Path, submission: Submission | None, identity: str | None) -> runs.Found | None:
    """Stop a run with a checkpoint, or at another Ctrl-C at once; return it as it is then."""
    try:
        while submission and not submission.refused() and run_directory.submission_of(str(directory)) != identity:
            time.sleep(follow.PAUSE)  # the launcher is about to begin: only then it can be told
        run = runs.load(directory)
        if run is None or not run.going:
            return None
        _say(
            f"\nstopping {run.name}: it writes a checkpoint first (Ctrl-C again kills it, and its last checkpoint stands)"
        )
        backends.get(run.backend).send(run, signal.SIGTERM)
        return follow.wait(directory)
    except KeyboardInterrupt:
        return _killed(directory, submission)


def _killed(directory: Path, submission: Submission | None) -> runs.Found | None:
    """Kill a run, also one whose launcher is only starting; return it as it is then."""
    while submission and not submission.refused():
        submission.kill()
        time.sleep(follow.PAUSE)
    run = runs.load(directory)
    if run and run.going:  # we were attached to it
        backends.get(run.backend).send(run, signal.SIGINT)
        run = follow.wait(directory)
    return run


def _result(run: runs.Found, as_json: bool) -> int:
    """Say how the run ended and what to do next; return its exit code."""
    code = run.exit_code
    if as_json:
        print(runs.as_json(runs.status(run)))
        return code
    _say(runs.sentence(run))
    for name in ("report.json", "pictures", "model", "tensorboard"):
        path = run.directory / name
        if code == 0 and path.exists() and (path.is_file() or any(path.iterdir())):
            _say(f"  {name.split('.')[0]}: {path}")
    if code != 0:
        _say(f"again: {run.record.get('again')}")
    return code


def show_logs(run: runs.Found, followed: bool) -> None:
    """Print the log of all attempts; with `followed` until the run ends."""
    if followed:
        follow.follow(run.directory, follow.Screen(), first=1)
        return
    screen = follow.Screen()
    screen.line.active = False
    for line in follow.LogReader(run.directory).lines(ended=True):
        screen.show(line)


def stop(run: runs.Found) -> None:
    """Tell a run to stop and wait until it has."""
    if not run.going:
        _say(f"{run.name} is not going. {runs.sentence(run)}")
        return
    backends.get(run.backend).send(run, signal.SIGTERM)
    _say(f"stopping {run.name}: it writes a checkpoint first")
    try:
        ended = follow.wait(run.directory)
    except KeyboardInterrupt:
        _say(f"it goes on stopping; look with: runner status {run.name}")
        raise
    _say(runs.sentence(ended))
    _say(f"again: {ended.record.get('again')}")


def wait(found: Sequence[runs.Found]) -> int:
    """Wait for runs to end; return the code of the first that did not succeed, else 0."""
    codes = []
    for run in found:
        ended = follow.wait(run.directory)
        _say(f"{ended.name}: {runs.sentence(ended)}")
        codes.append(ended.exit_code)
    return next((code for code in codes if code), 0)


def _next(run: runs.Found) -> None:
    for command in runs.next_commands(run.name, run.directory.parent):
        _say(f"  {command}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
