"""The one place where the runner starts other programs."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

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


def stream(
    argv: Sequence[str | Path],
    heard: Callable[[str | None], None],
    *,
    env: Mapping[str, str] | None = None,
    stdin: IO[bytes] | None = None,
) -> str:
    """Run a program to its end, handing over each line that it prints, and None now and then while it is silent.

    It stands in a session of its own: whatever ends this early (Ctrl-C, SIGTERM, a closed terminal) ends it once, and whole.
    Return what it printed; raise CommandFailed with it otherwise.
    """
    words = [str(word) for word in argv]
    _announce(words)
    printed = []
    with ends_like_ctrl_c(), _started(words, env, stdin) as child:
        try:
            for line in _lines(child):
                heard(line)
                printed += [] if line is None else [f"{line}\n"]
        except BaseException:
            _end(child)
            raise
    output = "".join(printed)
    if child.returncode != 0:
        raise CommandFailed(f"{shlex.join(words)} ended with {child.returncode}.", output)
    return output


@contextlib.contextmanager
def ends_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise what Ctrl-C raises, so that what was begun is cleaned up."""
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP) if here}
    for number, handler in before.items():
        if handler == signal.SIG_DFL:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the first Ctrl-C, SIGTERM or SIGHUP until a request is answered, whose effect could not be undone otherwise."""
    came: list[int] = []

    def keep(number: int, frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if here}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in came:
            signal.raise_signal(first)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _started(words: list[str], env: Mapping[str, str] | None, stdin: IO[bytes] | None) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            words,
            env=env,
            stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailed(f"{words[0]} could not be started: {error.strerror}.") from error


def _lines(child: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """Yield a program's lines as they come, and None after a silence of a fifth of a second."""
    assert child.stdout
    rest = b""
    while True:
        if not select.select([child.stdout], [], [], 0.2)[0]:
            yield None
            continue
        some = os.read(child.stdout.fileno(), 65536)
        *lines, rest = (rest + some).split(b"\n")
        yield from (line.decode(errors="replace").rstrip("\r") for line in lines)
        if not some:
            if rest:
                yield rest.decode(errors="replace")
            return


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a program and what it has started: politely, and after a while not."""
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
            return


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
