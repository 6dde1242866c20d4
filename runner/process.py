"""The one place where the runner starts other programs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.errors import CommandFailed


def call(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program to its end and return its standard output; raise CommandFailed with its output otherwise."""
    words = [str(word) for word in argv]
    _announce(words)
    try:
        done = subprocess.run(
            words, env=env, cwd=cwd, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise CommandFailed(f"{words[0]} could not be started: {error.strerror}.") from error
    if done.returncode != 0:
        raise CommandFailed(f"{shlex.join(words)} ended with {done.returncode}.", done.stderr + done.stdout)
    return done.stdout


def detach(argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that a closed terminal does not touch it.

    Its standard input is a pipe, its standard output goes nowhere, its errors to the file `output`.
    """
    words = [str(word) for word in argv]
    _announce(words)
    with output.open("ab") as errors:
        return subprocess.Popen(
            words,
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )


def _announce(words: Sequence[str]) -> None:
    if os.environ.get("RUNNER_VERBOSE"):
        print("+", shlex.join(words), file=sys.stderr, flush=True)
