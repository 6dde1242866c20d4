"""What an attempt puts out: its log, and how far it is. Python 3.6 to 3.13."""

import contextlib
import json
import os
import select
import time

MARK = "@runner "  # starts a log line that is meant for programs
PATIENCE = 5.0  # seconds for whoever reads our output and has let it pile up


class Log:
    """The log of an attempt: the job's output as it comes, and whole lines of our own in between."""

    def __init__(self, path, on_line):
        self.path, self.on_line = path, on_line
        self.file = None
        self.partial = b""
        self.waiting = []
        self.last_line = ""
        self.lost = 0
        self.patience = PATIENCE

    def open(self):
        self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open for as long as the child lives)

    def write(self, chunk):
        """Append output; where the disk is full it is dropped and counted, for the training must go on."""
        self._append(chunk)
        lines = (self.partial + chunk).split(b"\n")
        self.partial = lines.pop()[-65536:]
        for line in lines:
            self.on_line(line)
            if line.strip() and not line.startswith(MARK.encode()):
                self.last_line = line.decode("utf-8", "replace").strip()[:300]
        if not self.partial:
            while self.waiting:
                self._append(self.waiting.pop(0))

    def own(self, line):
        """Write a line of our own, once the job's own line is at its end."""
        self.waiting.append((line + "\n").encode())
        if not self.partial:
            self.write(b"")

    def close(self):
        if self.partial:
            self.write(b"\n")
        self.write(b"")
        self.file.close()

    def _append(self, chunk):
        if not chunk:
            return
        try:
            if self.lost:
                note = "\n[%d bytes of output were lost: the disk was full]\n" % self.lost
                self.file.write(note.encode())
                self.lost = 0
            written = self.file.write(chunk)
            self.lost += len(chunk) - written
        except OSError:
            self.lost += len(chunk)
        with contextlib.suppress(OSError):  # nobody need listen: the log is in its file
            self._show(chunk)

    def _show(self, chunk):
        """Copy output to our own. A reader that is away (an engine that is down) is not waited for: it would hold up the training."""
        for start in range(0, len(chunk), select.PIPE_BUF):
            if not select.select([], [1], [], self.patience)[1]:
                self.patience = 0
                return
            self.patience = PATIENCE
            os.write(1, chunk[start : start + select.PIPE_BUF])  # so much is taken at once where any is


class Progress:
    """How far the job is: from metrics.jsonl and from what it prints; with the time left, from the pace of this attempt."""

    def __init__(self, path):
        self.path = path
        self.offset = os.path.getsize(path) if os.path.exists(path) else 0
        self.value = None
        self.changed = False
        self.first = None  # (time, step) of this attempt's first report

    def read_metrics(self):
        """Take up new lines of metrics.jsonl; return whether there were any."""
        try:
            size = os.path.getsize(self.path)
            self.offset = min(self.offset, size)  # a resumed job cuts off what it will write again
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                content = file.read()
        except OSError:
            return False
        whole = content[: content.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                self.take(json.loads(line.decode("utf-8", "replace")))
        return bool(whole)

    def take(self, report):
        if not isinstance(report, dict):
            return
        self.changed = True
        place = ("step", "total_steps", "epoch", "epochs")
        value = {key: report[key] for key in place if key in report}
        metrics = {key: number for key, number in report.items() if key not in place and type(number) in (int, float)}
        previous = self.value or {}
        self.value = dict(previous, **value)
        self.value["metrics"] = dict(previous.get("metrics", {}), **metrics)
        self.value["seconds_left"] = self._left()

    def _left(self):
        step, total = self.value.get("step"), self.value.get("total_steps")
        if type(step) is not int or type(total) is not int:
            return None
        now = time.monotonic()
        if self.first is None or step < self.first[1]:
            self.first = (now, step)
        elapsed, made = now - self.first[0], step - self.first[1]
        return round(elapsed / made * (total - step), 1) if made > 0 and elapsed > 0 else None
