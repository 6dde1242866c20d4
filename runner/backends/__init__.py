"""Where a run runs: a module per backend, with the functions of `Backend`, listed in one dict."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, cast

from runner.errors import RunnerError, unknown
from runner.runs import Found
from runner.specs import Run


class Submission(Protocol):
    """A submitted run, as the one who submitted it sees it."""

    def refused(self) -> tuple[int, str] | None:
        """Return the exit code and the sentence of a launcher that ended, or None while it lives."""

    def kill(self) -> None:
        """End the launcher and its job at once, also where it has not begun yet."""

    def clean(self) -> None:
        """Remove the project's archive, which a launcher that has ended needs no more."""


class Backend(Protocol):
    """What a backend can do. A backend is a module with these functions."""

    def render(self, run: Run) -> str:
        """Return what `submit` would send, in words that can be pasted or read."""

    def submit(self, run: Run) -> Submission:
        """Start the run and return at once; it goes on without us."""

    def send(self, run: Found, number: int) -> None:
        """Send a signal to the launcher: SIGTERM writes a checkpoint and ends, SIGINT ends the job at once, SIGKILL is a crash."""

    def remove(self, run: Found) -> None:
        """Remove what the backend keeps of a run that is not going; never its directory."""

    def tidy(self, run: Found) -> None:
        """Remove what a run that has ended needs no more, though it may be continued."""

    def call(self, run: Found, script: Path, files: Sequence[Path]) -> str:
        """Run a script of ours with the packages that the run had, and return what it prints."""

    def volumes(self) -> list[Path]:
        """Return the volumes of the runs that the backend itself knows of, be they remembered here or not."""


# Imported only where used: docker and kubernetes are optional, and slow to import.
BACKENDS: Final = {"native": "runner.backends.native", "docker": "runner.backends.docker"}


def check(name: str) -> None:
    """Refuse a backend that there is not."""
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)


def get(name: str) -> Backend:
    """Return the backend of this name."""
    check(name)
    return cast(Backend, importlib.import_module(BACKENDS[name]))


def volumes(known: Sequence[Path], backend: str | None = None) -> tuple[list[Path], list[str]]:
    """Return the volumes beyond those known on which backends know of runs, and what to say of those that do not answer."""
    found, silent = [], []
    for name in [backend] if backend else BACKENDS:
        try:
            found += get(name).volumes()
        except RunnerError as error:
            silent.append(f"{name} was not asked: {error}")
    seen = {path.resolve() for path in known}
    return [path for path in found if path.resolve() not in seen and path.is_dir()], silent
