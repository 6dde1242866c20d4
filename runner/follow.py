"""Follows a run on a directory volume: its log by byte offset, its progress as one line, its end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from runner import run_directory, runs, terminal
from runner.backends import Submission

PAUSE = 0.02  # seconds between two looks
MARK = b"@runner "


class LogReader:
    """The logs of all attempts, in order, each from where we stopped reading; complete lines only, until the end."""

    def __init__(self, directory: Path, first: int = 1) -> None:
        self.folder = directory / "logs"
        self.number = first
        self.file: BinaryIO | None = None
        self.partial = b""

    def lines(self, ended: bool = False) -> Iterator[bytes]:
        """Give the lines that have come since; with `ended`, a last line without an end too."""
        while True:
            if self.file is None and not self._open():
                return
            assert self.file
            complete = ended or self._path(self.number + 1).exists()  # asked before we read: what comes later counts
            chunk = self.file.read(1 << 16)
            if chunk:
                *whole, self.partial = (self.partial + chunk).split(b"\n")
                yield from whole
            elif complete:
                if self.partial:
                    yield self.partial
                self.file.close()
                self.file, self.partial, self.number = None, b"", self.number + 1
            else:
                return

    def _path(self, number: int) -> Path:
        return self.folder / f"attempt-{number}.log"

    def _open(self) -> bool:
        try:
            self.file = self._path(self.number).open("rb")
        except FileNotFoundError:
            return False
        return True


class Screen:
    """Shows a run's lines: the job's as they are, the launcher's as a progress line or a sentence."""

    def __init__(self, quiet: bool = False) -> None:
        self.line = terminal.ProgressLine(sys.stderr)
        self.quiet = quiet

    def show(self, line: bytes) -> None:
        if line.startswith(MARK):
            self._event(line)
        elif not self.quiet:
            self.line.clear()
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()

    def _event(self, line: bytes) -> None:
        try:
            event = json.loads(line[len(MARK) :])
        except ValueError:
            return
        if isinstance(event.get("progress"), dict):
            self.line.update(progress_words(event["progress"]))
        elif words := _event_words(event):
            self.line.clear()
            print(words, file=sys.stderr, flush=True)


def _event_words(event: Mapping[str, Any]) -> str | None:
    kind = event.get("event")
    checkpoint = event.get("checkpoint")
    if kind == "attempt" and event.get("number", 1) > 1:
        place = run_directory.checkpoint_words(checkpoint) if checkpoint else "the beginning"
        return f"attempt {event['number']}: continues from {place}"
    if kind == "fresh":
        return f"begun afresh; what was there is kept as {event.get('kept')}"
    if kind == "lost":
        return f"checkpoint {run_directory.checkpoint_words(event)} is {event.get('problem')}"
    if kind == "inexact":
        return "no longer exact: " + "; ".join(event.get("reasons", []))
    if kind == "ended" and event.get("code"):
        return f"the job {event.get('how')}"
    return None


def progress_words(progress: Mapping[str, Any]) -> str:
    """Return one line: a bar, epoch, step, metrics, time left."""
    parts = []
    step, total = progress.get("step"), progress.get("total_steps")
    if isinstance(step, (int, float)) and isinstance(total, (int, float)) and total:
        parts.append(terminal.bar(step, total))
    for name, whole in (("epoch", "epochs"), ("step", "total_steps")):
        if progress.get(name) is not None:
            parts.append(f"{name} {progress[name]}" + (f"/{progress[whole]}" if progress.get(whole) else ""))
    metrics = progress.get("metrics") or {key: progress[key] for key in ("loss", "accuracy") if key in progress}
    parts += [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, (int, float))][:4]
    if isinstance(progress.get("seconds_left"), (int, float)):
        parts.append(f"{terminal.duration(progress['seconds_left'])} left")
    return "  ".join(parts)


def follow(
    directory: Path, screen: Screen, submission: Submission | None = None, identity: str | None = None, first: int = 1
) -> runs.Found | None:
    """Show a run until it ends; return it as it is then. None: its launcher ended before the submission counted."""  # fmt: skip
    reader = LogReader(directory, first)
    begun = identity is None  # until our submission counts, the directory may be the one that `--fresh` sets aside
    with screen.line:
        while True:
            ended, run = _ended(directory, submission, identity)
            begun = begun or run_directory.submission_of(str(directory)) == identity
            if begun:
                for line in reader.lines(ended):
                    screen.show(line)
            if ended:
                return run
            time.sleep(PAUSE)


def _ended(directory: Path, submission: Submission | None, identity: str | None) -> tuple[bool, runs.Found | None]:
    """Return whether the run has ended, and how it is: with a submission of ours, only that one's end counts."""
    gone = submission is not None and submission.refused() is not None
    if submission is not None and not gone:
        return False, None
    run = runs.load(directory)
    if gone:
        counted = run is not None and run.record.get("submission") == identity
        return True, run if counted else None
    return run is None or not run.going, run


def wait(directory: Path, look: Callable[[], None] = lambda: None) -> runs.Found:
    """Wait until a run has ended; return it."""
    while True:
        run = runs.load(directory)
        assert run
        if not run.going:
            return run
        look()
        time.sleep(0.1)
