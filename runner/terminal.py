"""What people see: one progress line on a terminal, plain lines elsewhere, and words for sizes and times."""

from __future__ import annotations

import os
import shutil
import sys
import time
from types import TracebackType
from typing import TextIO

from runner.errors import UsageError


class ProgressLine:
    """One line, rewritten with a carriage return (never cursor-up, so that a notebook's cell shows it too).

    Quiet where the stream is no terminal. In a notebook it is rewritten once a second at most.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.active = self.stream.isatty()
        self.interval = 1.0 if "ipykernel" in sys.modules or os.environ.get("JPY_PARENT_PID") else 0.1
        self._shown_at = 0.0
        self._width = 0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def update(self, text: str, *, force: bool = False) -> None:
        """Show `text` in place of what stands there, at most every `interval` seconds."""
        now = time.monotonic()
        if not self.active or (now - self._shown_at < self.interval and not force):
            return
        self._shown_at = now
        columns = shutil.get_terminal_size().columns
        text = text[: max(columns - 1, 20)]
        self._write("\r" + text + " " * max(self._width - len(text), 0) + "\r" + text)
        self._width = len(text)

    def clear(self) -> None:
        """Remove the line, so that ordinary output can follow."""
        if self.active and self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, text: str) -> None:
        encoding = self.stream.encoding or "ascii"
        self.stream.write(text.encode(encoding, "replace").decode(encoding))
        self.stream.flush()


def bar(done: float, total: float, width: int = 20) -> str:
    """Return a bar such as `█████░░░░░` (ASCII where the terminal has no such signs)."""
    full, empty = "█░" if (sys.stderr.encoding or "").lower().startswith("utf") else "#-"
    filled = int(width * min(max(done / total, 0.0), 1.0)) if total else 0
    return full * filled + empty * (width - filled)


def size(count: float) -> str:
    """Return a number of bytes in words, such as `31 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Return a time span in words, such as `3 min 20 s`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def confirm(question: str, refusal: str) -> None:
    """Ask on the terminal; a no, or that there is no terminal, is a refusal."""
    if not sys.stdin.isatty():
        raise UsageError(refusal)
    import click

    if not click.confirm(question, err=True):
        raise UsageError("nothing was done.")


def table(header: list[str], rows: list[list[str]]) -> None:
    """Print rows in columns; on a terminal the header is bold."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    bold = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    for number, line in enumerate([header, *rows]):
        text = "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        print(f"\x1b[1m{text}\x1b[0m" if bold and number == 0 else text)
