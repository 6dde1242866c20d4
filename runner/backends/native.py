"""Runs jobs on this machine, in a virtualenv, under a launcher in a session of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import datasets, process, projects, resources, run_directory, runs, virtualenvs
from runner.errors import RunnerError, UsageError
from runner.runs import Found
from runner.specs import Run

# What belongs to the interpreter that runs *us*, and would break the job's own.
DROPPED = ("PYTHON", "LD_", "VIRTUAL_ENV", "CONDA_", "RUNNER_")
PASSED_ON = ("RUNNER_GRACE", "RUNNER_STALE")  # for launch.py


@dataclass(frozen=True, kw_only=True)
class Started:
    """A launcher that this process started."""

    child: subprocess.Popen[bytes]
    output: Path

    def refused(self) -> tuple[int, str] | None:
        code = self.child.poll()
        if code is None:
            return None
        lines = self.output.read_text(errors="replace").strip().splitlines()
        return code, lines[-1].removeprefix("launch.py: ") if lines else f"the launcher ended with {code}"

    def kill(self) -> None:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)

    def clean(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(1)  # it has written down the end and is about to go
            (self.output.parent / "project.tar").unlink(missing_ok=True)


def render(run: Run) -> str:
    """Return the command and the variables that `submit` would use."""
    run = dataclasses.replace(run, request={**run.request, "submission": "<new>"})
    python = Path("<environment>") / "bin" / "python"
    lines = [f"# environment {run.request['environment']}, Python {' or '.join(run.pythons)}"]
    lines.append(f"# the caller's variables less {', '.join(f'{name}*' for name in DROPPED)}, and these:")
    lines += [f"{name}={shlex.quote(value)}" for name, value in sorted(run.variables.items())]
    lines += [f"{name}=<secret>" for name in sorted(run.secrets)]
    lines.append(shlex.join(str(word) for word in _argv(run, python, _handover(run))))
    lines.append("# request.json")
    lines.append(json.dumps(run.request, indent=1))
    return "\n".join(lines)


def submit(run: Run) -> Started:
    """Make the environment, hand over the request, and start the launcher."""
    data = {name: datasets.ensure(dataset, given) if dataset else given for name, (dataset, given) in run.data.items()}
    environment = virtualenvs.ensure(run.lock, run.pythons, run.request["environment"] or "image", run.python)
    handover = _handover(run)
    write_handover(run, handover, {name: path for name, path in data.items() if path})
    child = process.detach(
        _argv(run, environment.python, handover), env=_environment(run), cwd=handover, output=handover / "launcher.log"
    )
    assert child.stdin
    try:
        if run.secrets:
            child.stdin.write(json.dumps(dict(run.secrets)).encode() + b"\n")
        child.stdin.close()
    except BrokenPipeError:
        pass  # it ended already; its exit code says why
    return Started(child=child, output=handover / "launcher.log")


def stop(run: Found, kill: bool = False) -> None:
    """Signal the launcher, which passes it on to the job."""
    holder = run_directory.holder(str(run.directory / ".lock"))
    if not holder:
        return
    if holder["boot"] != run_directory.boot() or holder["space"] != run_directory.process_space():
        raise UsageError(
            f"{run.name} runs on {holder['host']}, not here. Stop it there with: {runs.command('stop', run)}"
        )
    try:
        os.kill(int(holder["pid"]), signal.SIGINT if kill else signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise RunnerError(
            f"{run.name} was begun by another user of this machine; only they or root can stop it."
        ) from error


def remove(run: Found) -> None:
    """Remove the hand-overs of a run."""
    for folder in _handovers(run.name):
        if _directory(folder) == run.directory or not in_use(folder):
            shutil.rmtree(folder, ignore_errors=True)


def in_use(handover: Path) -> bool:
    """Return whether a launcher works from this hand-over, or is about to: a run of this name on any volume may."""
    try:
        if time.time() - handover.stat().st_mtime < 60:
            return True
    except FileNotFoundError:
        return False
    directory = _directory(handover)
    run = runs.load(directory) if directory else None
    return run is not None and run.going and handover.name.endswith(str(run.record.get("submission")))


def requests_in_use() -> list[Mapping[str, Any]]:
    """Return what launchers were asked that work now, also on volumes that nobody remembers."""
    folders = [folder for folder in resources.cache("submissions").glob("*") if in_use(folder)]
    return [run_directory.read_json(str(folder / "request.json")) or {} for folder in folders]


def _directory(handover: Path) -> Path | None:
    """Return the directory of the run that a hand-over is for."""
    try:
        return Path(os.fsdecode((handover / "directory").read_bytes()))
    except OSError:
        return None


def _handovers(name: str) -> list[Path]:
    return list(resources.cache("submissions").glob(f"{name}-{'?' * 12}"))


def write_handover(run: Run, folder: Path, data: Mapping[str, Path]) -> None:
    """Write the folder that launch.py is started from: itself, the request, the project and the checkpoint module."""
    for old in _handovers(run.name):
        if not in_use(old):
            shutil.rmtree(old, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)  # the archive has all files of the project, whoever may read them there
        (folder / "lib").mkdir()
        for name, place in (("launch.py", "."), ("run_directory.py", "."), ("runner_checkpoint.py", "lib")):
            shutil.copyfile(resources.data("jobs", name), folder / place / name)
        for name, path in data.items():
            (folder / "data").mkdir(exist_ok=True)
            (folder / "data" / name).symlink_to(path)
        projects.archive(run.code, folder / "project.tar")
        (folder / "directory").write_bytes(os.fsencode(run.directory))
        (folder / "runner.lock").write_text(run.lock)
        (folder / "request.json").write_text(json.dumps(dict(run.request)))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RunnerError(
            f"the request could not be written to {folder}: {error.strerror}. RUNNER_CACHE moves the cache."
        ) from error


def _handover(run: Run) -> Path:
    return resources.cache("submissions", f"{run.name}-{run.request['submission']}")


def _argv(run: Run, python: Path, handover: Path) -> list[str | Path]:
    data = handover / "data" if run.data else ""
    return [python, "-E", handover / "launch.py", run.volume, data]  # -e PYTHON... is for the job, not for the launcher


def _environment(run: Run) -> dict[str, str]:
    """Return the caller's variables less those of the interpreter that runs us, and what `-e` gives."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED) or name in PASSED_ON}
    return {**kept, **_without_own_tools(kept), **run.variables}


def _without_own_tools(variables: Mapping[str, str]) -> dict[str, str]:
    """Return PATH without the virtualenv that runs us: the job's `python` is the environment's."""
    own = os.environ.get("VIRTUAL_ENV")
    parts = variables.get("PATH", os.defpath).split(os.pathsep)
    return {"PATH": os.pathsep.join(part for part in parts if not own or part != str(Path(own) / "bin"))}
