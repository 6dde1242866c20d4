"""Runs jobs on this machine, in a virtualenv, under a launcher in a session of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner import datasets, handovers, process, run_directory, runs, virtualenvs
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
    lines.append(shlex.join(str(word) for word in _argv(run, python, handovers.path(run))))
    lines.append("# request.json")
    lines.append(json.dumps(run.request, indent=1))
    return "\n".join(lines)


def submit(run: Run) -> Started:
    """Make the environment, hand over the request, and start the launcher."""
    data = {name: datasets.ensure(dataset, given) if dataset else given for name, (dataset, given) in run.data.items()}
    environment = virtualenvs.ensure(run.lock, run.pythons, run.request["environment"], run.python)
    handover = handovers.path(run)
    handovers.write(run, handover)
    _link_data(handover, {name: path for name, path in data.items() if path})
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


def _link_data(handover: Path, data: Mapping[str, Path]) -> None:
    for name, path in data.items():
        (handover / "data").mkdir(exist_ok=True)
        (handover / "data" / name).symlink_to(path)


def send(run: Found, number: int) -> None:
    """Signal the launcher, which passes it on to the job."""
    holder = run_directory.holder(str(run.directory / ".lock"))
    if not holder:
        return
    if holder["boot"] != run_directory.boot() or holder["space"] != run_directory.process_space():
        raise UsageError(
            f"{run.name} runs on {holder['host']}, not here. Stop it there with: {runs.command('stop', run)}"
        )
    try:
        os.kill(int(holder["pid"]), number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise RunnerError(
            f"{run.name} was begun by another user of this machine; only they or root can stop it."
        ) from error


def remove(run: Found) -> None:
    """Remove the hand-overs of a run."""
    handovers.remove(run)


def tidy(run: Found) -> None:
    """Remove what the launcher of a run that has ended leaves."""
    handovers.tidy(run)


def call(run: Found, script: Path, files: Sequence[Path]) -> str:
    """Run a script with the run's own packages, and return what it prints."""
    lock = (run.directory / "runner.lock").read_text()
    python = virtualenvs.ensure(
        lock, run.request["pythons"], run.request["environment"], run.record["conditions"]["python"]
    ).python
    variables = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    return process.call([python, script, *files], env=variables)


def volumes() -> list[Path]:
    """Return no volumes: a launcher is found by the run's directory alone."""
    return []


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
