"""All errors of the runner, in one tree.

RunnerError           125  the runner itself failed (as `docker run` does)
├── UsageError          2  what was asked cannot be done, and nothing was created
├── DataError         125  a data set could not be had, or is not what it should be
├── EnvironmentFailed 125  an environment could not be made
├── EngineFailed      125  a Docker engine does not answer, or refuses
└── CommandFailed     125  another program that the runner called failed

Each message says what failed, with which value, and what to do next. A traceback is for bugs only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RunnerError(Exception):
    """A failure that the user can understand; `exit_code` is what the command returns."""

    exit_code = 125


class UsageError(RunnerError):
    """A refusal before anything was created."""

    exit_code = 2


class DataError(RunnerError):
    """A data set that could not be fetched or verified."""


class EnvironmentFailed(RunnerError):
    """An environment that could not be made."""


class EngineFailed(RunnerError):
    """A Docker engine that does not answer, or refuses."""


class CommandFailed(RunnerError):
    """A program that ended with an error; carries its output."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the refusal of an unknown name: the nearest one, and all that are known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    nearest = f" Did you mean {close[0]}?" if close else ""
    listed = f" Known: {', '.join(names)}." if names else " None is known."
    return UsageError(f"unknown {kind} {name!r}.{nearest}{listed}")
