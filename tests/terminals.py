"""Runs the command line on a pseudo-terminal, as a user or a notebook's `!` cell does."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

from conftest import Cli


def on_terminal(cli: Cli, *words: str | Path, answer: str = "", seconds: float = 60) -> tuple[int, str]:
    """Run a command with a terminal as its three streams; return its exit code and all that it wrote there."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "runner", *map(str, words)]
    child = subprocess.Popen(argv, cwd=cli.cwd, env=cli.env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, answer.encode())
    output, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                output += os.read(ours, 1 << 16)
            except OSError:  # nobody has the other end any more
                break
    os.close(ours)
    text = output.decode("utf-8", "replace")
    assert child.wait(seconds) is not None and "Traceback" not in text, text
    return child.returncode, text
