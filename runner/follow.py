"""Follows a run on a directory volume: its log by byte offset, its progress as one line, its end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from runner import run_directory, runs, terminal
from runner.backends import Submission
from runner.errors import RunnerError

PAUSE = 0.02  # seconds between two looks at the log
LOOK = 0.2  # and at whether a run goes on, which reads all that is recorded of it
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
            complete = ended or self._next() > self.number  # asked before we read: what comes later counts
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

    def _next(self) -> int:
        """Return the number of the log after the one at hand, or that one's where there is none. Some may have been removed."""
        later = [number for number in run_directory.logs(str(self.folder.parent)) if number > self.number]
        return later[0] if later else self.number

    def _open(self) -> bool:
        for number in (self.number, self._next()):
            try:
                self.file, self.number = (self.folder / f"attempt-{number}.log").open("rb"), number
            except FileNotFoundError:
                continue
            return True
        return False


class Screen:
    """Shows a run's lines: the job's as they are, the launcher's as a progress line or a sentence."""

    def __init__(self, quiet: bool = False, hint: str = "") -> None:
        self.line = terminal.ProgressLine(sys.stderr)
        self.quiet = quiet
        self.hint = hint  # said once the run has begun: of one that is refused nothing could be asked

    def show(self, line: bytes) -> None:
        if self.hint:
            print(self.hint, file=sys.stderr, flush=True)
            self.hint = ""
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
    """Show a run from an attempt on, of a submission from its own first one on, until it ends; return it as it is then.

    None: its launcher ended before the submission counted.
    """
    reader = None if identity else LogReader(directory, first)
    looked, ended, run = 0.0, False, None
    with screen.line:
        while True:
            if submission or time.monotonic() - looked >= LOOK:
                looked = time.monotonic()
                ended, run = _ended(directory, submission, identity)
            reader = reader or _reader(directory, identity)
            if reader is None and run:
                reader = LogReader(directory, first)  # run.json could not be written
            if reader:
                for line in reader.lines(ended):
                    screen.show(line)
            if ended and run is None and (submission is None or reader):
                raise _gone(directory)
            if ended:
                return run
            time.sleep(PAUSE)


def _reader(directory: Path, identity: str | None) -> LogReader | None:
    """Return a reader of the logs from a submission's first attempt on; None: until it has begun, run.json and logs are older."""
    record = run_directory.read_json(str(directory / "run.json")) or {}
    numbers = [entry["number"] for entry in record.get("attempts") or [] if entry.get("submission") == identity]
    return LogReader(directory, numbers[0]) if numbers else None


def _ended(directory: Path, submission: Submission | None, identity: str | None) -> tuple[bool, runs.Found | None]:
    """Return whether the run has ended, and how it is; None: our submission was not admitted."""
    refused = submission is not None and submission.refused() is not None
    if submission is not None and not refused:
        return False, None
    run = runs.load(directory)
    if refused and (run is None or not run.counted(identity)):
        return True, None
    return run is None or not run.going, run


def wait(directory: Path) -> runs.Found:
    """Wait until a run has ended; return it."""
    while True:
        run = runs.load(directory)
        if run is None:
            raise _gone(directory)
        if not run.going:
            return run
        time.sleep(0.1)


def _gone(directory: Path) -> RunnerError:
    return RunnerError(f"the run's directory {directory} is gone: it was removed or renamed, or its volume is away.")
