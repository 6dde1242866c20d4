"""Lets one runner at a time make a thing in the cache, while others that want it wait and say so."""

from __future__ import annotations

import contextlib
import fcntl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from runner.terminal import ProgressLine, duration


@contextlib.contextmanager
def held(file: Path, what: str) -> Iterator[None]:
    """Hold the lock on a file. Where the file system has none, unique names must do."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened, ProgressLine() as line:
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _say_waiting(line, what, time.monotonic() - began)
                time.sleep(0.1)
            except OSError:
                break
        line.clear()
        yield


def _say_waiting(line: ProgressLine, what: str, seconds: float) -> None:
    text = f"{what}: another runner is making it; waiting"
    if line.active:
        line.update(f"{text} … {duration(seconds)}")
    elif seconds < 0.1:
        print(text, file=sys.stderr, flush=True)
