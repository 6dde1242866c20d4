"""Checkpoints for any training loop: five lines, and it goes on bit for bit where it was cut off.

    from runner_checkpoint import Checkpoint

    checkpoint = Checkpoint()
    state = checkpoint.restore()                       # None at the first start
    if state:
        weights = state.arrays["weights"]
    for step in range(state.step if state else 0, total):
        weights = train(weights, step)
        checkpoint.step(step + 1, lambda: {"weights": weights}, {"best": best})
    checkpoint.done()

`step` saves when it is due (RUNNER_CHECKPOINT_EVERY: "10s", "500steps" or "1epoch"). After a SIGTERM it saves and exits
with 75, and the same command goes on from there. With Keras it is three lines, see `keras_checkpoint`.

Files, in $RUNNER_DIR (in the working directory where that is not set):
    checkpoints/checkpoint-000000000500.npz   numpy.load reads it; the JSON values are its entry `__values__`
    checkpoints/index.json                    what was saved, so that a file that is missing can be named
    metrics.jsonl, done

Times in seconds, sizes in bytes. Python 3.7 and later; numpy is imported only when there are arrays to read or write.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import re
import shutil
import signal
import struct
import sys
import threading
import time
import zipfile
import zlib

EXIT_DATA = 65  # no checkpoint can be read: trying again will not help
EXIT_INTERRUPTED = 75  # stopped by SIGTERM after a checkpoint: run again to go on

KEPT = 3  # the newest, the one before, and one that is older
SPREAD = 8  # that older one is replaced when it is this many checkpoints behind its successor
COST_LIMIT = 0.02  # share of the time that checkpoints may take
FUSE_BYTES_PER_HOUR = 1e9  # mounted drives have quotas, and are slow

NAME = re.compile(r"checkpoint-(\d{12,})\.npz$")
VALUES = "__values__"

State = collections.namedtuple("State", "step arrays values path")
State.__doc__ = "What was restored: the step (int), arrays (name -> ndarray), values (what JSON can hold), its file."


class Damaged(Exception):
    """A checkpoint file that cannot be used; the message says why."""


class Checkpoint:
    """Saves and restores one training loop.

    `every` is "10s", "500steps" or "1epoch", by default RUNNER_CHECKPOINT_EVERY, else 10s. Steps and epochs are obeyed
    exactly. Seconds are a wish: the interval is stretched so that checkpoints take at most 2 % of the time (what they
    cost is known from the first one on, which comes when it was wished for), and on a FUSE volume (a mounted drive)
    also so that at most 1 GB an hour is written, unless `every` was given or RUNNER_CHECKPOINT_EXPLICIT=1 says that the
    user asked for that interval.
    """

    def __init__(self, directory=None, every=None):
        self.home = os.path.abspath(os.environ.get("RUNNER_DIR") or ".")
        self.directory = os.path.abspath(directory or os.path.join(self.home, "checkpoints"))
        self.unit, self.count = parse_interval(every or os.environ.get("RUNNER_CHECKPOINT_EVERY") or "10s")
        self.explicit = bool(every) or os.environ.get("RUNNER_CHECKPOINT_EXPLICIT") == "1"
        self.stop_asked = False
        self.saving_seconds = 0.0  # all that checkpoints have cost this process
        self.saved_step = None  # of the newest file
        self._costs = collections.deque(maxlen=3)
        self._size = 0
        self._entries = []  # what stands in index.json, oldest first
        self._tried_step = self._tried_epoch = 0  # where the last one was due, whether or not it could be written
        self._tried_at = None  # counts from the first `step`: until then libraries are imported and data is read
        self._metrics = _Lines(os.path.join(self.home, "metrics.jsonl"))
        self._progress_at = 0.0
        self._going = False
        os.makedirs(self.directory, exist_ok=True)
        self._on_fuse = is_fuse(self.directory)
        self._remove_leftovers()
        self._catch_sigterm()

    # Restoring

    def restore(self):
        """Return the newest usable checkpoint as a State, or None where there is none yet.

        A file that is missing or damaged is named, and the one before is used. Where none can be used, the process
        ends with 65. Lines of metrics.jsonl beyond the restored step are removed: they will be written again.
        """
        known = self._known()
        state, problems = self._newest_usable(known)
        if problems and state is None:
            say(
                f"none of the checkpoints in {self.directory} can be used: {'; '.join(problems.values())}. "
                "They are left where they are; run with --fresh to begin anew."
            )
            raise SystemExit(EXIT_DATA)
        for step, problem in sorted(problems.items(), reverse=True):
            say(f"checkpoint at step {step} {problem}; going on from step {state.step}{self._set_aside(step)}")
        self._entries = [entry for step, entry in sorted(known.items()) if step not in problems]
        if problems:
            self._write_index()
        self.saved_step = state.step if state else None
        self._tried_step = state.step if state else 0
        self._tried_epoch = state.values.get("epoch", 0) if state else 0
        self._metrics.truncate_after(state.step if state else None)
        return state

    def _known(self):
        """Return step -> index entry, from index.json and from the files themselves: either may be missing."""
        known = {entry["step"]: entry for entry in self._read_index()}
        for name in os.listdir(self.directory):
            match = NAME.match(name)
            if match and int(match.group(1)) not in known:
                known[int(match.group(1))] = {"step": int(match.group(1)), "file": name, "number": 0}
        return known

    def _newest_usable(self, known):
        """Return the State of the newest file that can be read, and step -> problem of those that were passed over."""
        problems = {}
        for step in sorted(known, reverse=True):
            try:
                return self._read(step), problems
            except Damaged as error:
                problems[step] = str(error)
        return None, problems

    def _read(self, step):
        path = self._path(step)
        try:
            arrays, values = read_npz(path)
        except FileNotFoundError:
            raise Damaged(f"is missing ({path})") from None
        except (OSError, ValueError, KeyError, EOFError, struct.error, zlib.error, zipfile.BadZipFile) as error:
            raise Damaged(f"is damaged ({path}: {error})") from error
        except (NotImplementedError, RuntimeError, MemoryError, OverflowError) as error:  # a damaged zip header
            raise Damaged(f"is damaged ({path}: {type(error).__name__} {error})") from error
        return State(step, arrays, values, path)

    def _set_aside(self, step):
        """Rename a damaged file, so that the next one of this step does not overwrite it; return words for that."""
        path = self._path(step)
        if not os.path.exists(path):
            return ""
        aside = next(name for name in _numbered(path + ".damaged") if not os.path.exists(name))
        try:
            os.rename(path, aside)
        except OSError:
            return ""
        return f" (kept as {os.path.basename(aside)})"

    def _read_index(self):
        try:
            with open(os.path.join(self.directory, "index.json"), encoding="utf-8") as file:
                entries = json.load(file)["checkpoints"]
            return [entry for entry in entries if NAME.match(entry["file"]) and isinstance(entry["step"], int)]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"{self.directory}/index.json cannot be read ({error}); going by the files")
            return []

    # Saving

    def step(self, step, arrays=None, values=None, epoch=None):
        """Say that `step` steps are done: saves when due, and after a SIGTERM saves and exits with 75.

        `arrays` is a dict of arrays, or a function that returns one (called only when a checkpoint is due); so is
        `values`, of what JSON can hold. `epoch` is the number of epochs that are complete, for "1epoch".
        """
        if not self._going:
            self._going = True
            self._remove_done()
        if self._tried_at is None:
            self._tried_at = time.monotonic()
        if self.stop_asked:
            self._stop(step, arrays, values, epoch)
        if step != self.saved_step and self._due(step, epoch):
            return self.save(step, arrays, values, epoch)
        return False

    def steps_left(self, step):
        """Return how many steps a loop that is at `step` may take before it must call `step` again (at least 1)."""
        if self.unit != "steps":
            return sys.maxsize
        return self.count - step % self.count

    def save(self, step, arrays=None, values=None, epoch=None):
        """Save now. Return whether that worked: a full disk costs a sentence, not the training."""
        started = time.monotonic()
        arrays = arrays() if callable(arrays) else dict(arrays or {})
        values = dict(values() if callable(values) else values or {})
        if epoch is not None:
            values.setdefault("epoch", epoch)
        saved = self._write(step, arrays, values)
        self._tried_step, self._tried_epoch, self._tried_at = step, epoch or 0, time.monotonic()
        self._costs.append(self._tried_at - started)
        self.saving_seconds += self._costs[-1]
        return saved

    def done(self):
        """Say that the job really finished: without this an exit 0 after a SIGTERM counts as interrupted."""
        if os.environ.get("RUNNER_DIR"):
            write_file(os.path.join(self.home, "done"), json.dumps({"step": self.saved_step}) + "\n")

    def interval(self):
        """Return the seconds between two checkpoints, stretched to what they cost and to what the volume bears."""
        seconds = self.count
        if self._costs:
            seconds = max(seconds, sum(self._costs) / len(self._costs) / COST_LIMIT)
        if self._on_fuse and not self.explicit:
            seconds = max(seconds, self._size / FUSE_BYTES_PER_HOUR * 3600)
        return seconds

    def _due(self, step, epoch):
        if self.unit == "steps":
            return step // self.count > self._tried_step // self.count
        if self.unit == "epochs":
            return epoch is not None and epoch // self.count > self._tried_epoch // self.count
        return time.monotonic() - self._tried_at >= self.interval()

    def _write(self, step, arrays, values):
        path = self._path(step)
        needed = sum(getattr(array, "nbytes", 0) for array in arrays.values())
        try:
            self._metrics.sync()
            write_file(path, lambda file: write_npz(file, arrays, values))
            self._size = os.path.getsize(path)
            self._add(step)
        except OSError as error:
            say(f"no checkpoint at step {step}: {error.strerror} ({path}{_space(error, path, needed)}); {self._last()}")
            return False
        self.saved_step = step
        return True

    def _last(self):
        if self.saved_step is None:
            return "training goes on, there is no checkpoint yet"
        return f"training goes on, the checkpoint of step {self.saved_step} stands"

    def _add(self, step):
        """Put the new file into the index, then delete the files that are no longer kept (in this order)."""
        number = 1 + max([entry.get("number", 0) for entry in self._entries] or [0])
        new = {"step": step, "file": os.path.basename(self._path(step)), "number": number}
        new.update(bytes=self._size, time=round(time.time(), 3))
        entries = sorted([entry for entry in self._entries if entry["step"] != step] + [new], key=lambda e: e["step"])
        self._entries, dropped = spread(entries)
        self._write_index()
        for entry in dropped:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.directory, entry["file"]))

    def _write_index(self):
        text = json.dumps({"format": 1, "checkpoints": self._entries}, indent=1)
        write_file(os.path.join(self.directory, "index.json"), text + "\n")

    def _path(self, step):
        return os.path.join(self.directory, f"checkpoint-{step:012d}.npz")

    def _remove_leftovers(self):
        """Remove what an attempt that was killed while writing has left."""
        for name in os.listdir(self.directory):
            if name.startswith(".") and name.endswith(".partial"):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.directory, name))

    def _remove_done(self):
        """A run that was done and goes on (more epochs) is not done."""
        if os.environ.get("RUNNER_DIR"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.home, "done"))

    # Stopping

    def _catch_sigterm(self):
        """Note a SIGTERM, and do what was done about it before. Python allows that in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            return
        owner, before = os.getpid(), signal.getsignal(signal.SIGTERM)

        def note(number, frame):
            if os.getpid() != owner:  # a forked worker: it must die as it did before we came
                signal.signal(signal.SIGTERM, before if callable(before) else signal.SIG_DFL)
                os.kill(os.getpid(), number)
                return
            self.stop_asked = True
            if callable(before):
                before(number, frame)

        signal.signal(signal.SIGTERM, note)

    def _stop(self, step, arrays, values, epoch):
        if step != self.saved_step:
            self.save(step, arrays, values, epoch)
        say(f"stopped by SIGTERM at step {step}; the newest checkpoint is of step {self.saved_step}")
        sys.stdout.flush()
        raise SystemExit(EXIT_INTERRUPTED)

    # What others see of the training

    def metrics(self, step, **values):
        """Append a line to metrics.jsonl, such as step=500, epoch=1, loss=0.5, val_loss=0.6, total_steps=5000.

        An interrupted run's file becomes the same as an uninterrupted one's, so leave times out (but for `seconds`).
        Call it before `step` of the same step.
        """
        self._metrics.append(json.dumps(dict(step=step, **values)))

    def progress(self, **values):
        """Show where the training is (step, total_steps, epoch, epochs, loss, ...), at most once a second."""
        now = time.monotonic()
        if os.environ.get("RUNNER_DIR") and now - self._progress_at >= 1:
            self._progress_at = now
            print("@runner " + json.dumps({"progress": values}), flush=True)


class _Lines:
    """A file of JSON lines in which a full disk leaves no torn line: what could not be written is tried again."""

    def __init__(self, path):
        self.path = path
        self.waiting = []
        self.end = None  # the size up to the last whole line

    def append(self, line):
        self.waiting.append(line + "\n")
        try:
            self.flush()
        except OSError as error:
            say(f"a line of {self.path} could not be written yet: {error.strerror}")

    def flush(self):
        text = "".join(self.waiting).encode("utf-8")
        with open(self.path, "ab") as file:
            if self.end is None:
                self.end = file.tell()
            file.truncate(self.end)
            file.write(text)
        self.end += len(text)
        self.waiting = []

    def sync(self):
        """Have the lines on the disk before the checkpoint that counts on them."""
        if self.waiting:
            self.flush()
        if self.end:
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())

    def truncate_after(self, step):
        """Keep the whole lines up to `step` (None: no line)."""
        self.end = 0
        try:
            with open(self.path, "rb+") as file:
                for line in file:
                    if step is None or not _is_line_of(line, step):
                        break
                    self.end += len(line)
                file.truncate(self.end)
        except FileNotFoundError:
            pass


def _is_line_of(line, step):
    try:
        return line.endswith(b"\n") and json.loads(line.decode("utf-8"))["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def _numbered(name):
    yield name
    for number in range(1, sys.maxsize):
        yield f"{name}.{number}"


def _space(error, path, needed):
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    return f" needs {needed} bytes, {shutil.disk_usage(os.path.dirname(path)).free} are free"


def say(text):
    """Print one sentence for the log."""
    print("checkpoint: " + text, file=sys.stderr, flush=True)


def parse_interval(text):
    """Return unit and count of "10s", "500steps" or "1epoch"."""
    match = re.match(r"(\d+(?:\.\d+)?)\s*(s|seconds?|min|m|h|steps?|epochs?)$", text.strip())
    scale = {"m": 60, "min": 60, "h": 3600}
    if match:
        count, unit = float(match.group(1)), match.group(2)
        if unit in scale or (unit.startswith("s") and not unit.startswith("st")):
            return "seconds", count * scale.get(unit, 1)
        if count >= 1 and count == int(count):
            return ("steps" if unit.startswith("st") else "epochs"), int(count)
    say(f"{text!r} is no checkpoint interval; write for example 10s, 500steps or 1epoch")
    raise SystemExit(64)


def spread(entries):
    """Split entries (oldest first) into those to keep and those to drop.

    Kept are the newest, the one before, and an older one that stays until it is SPREAD checkpoints behind its
    successor: damage that goes unnoticed for a while then still leaves something to go back to.
    """
    kept, dropped = list(entries), []
    while len(kept) > KEPT:
        oldest, second = kept[0], kept[1]
        far = second.get("number", 0) - oldest.get("number", 0) >= SPREAD
        dropped.append(kept.pop(0 if far else 1))
    return kept, dropped


# The file


def write_file(path, content):
    """Write a file so that a crash at any moment leaves the old one or the new one, never a part.

    `content` is text, bytes, or a function that writes into the open binary file.
    """
    directory, name = os.path.split(os.path.abspath(path))
    partial = os.path.join(directory, f".{name}.partial")
    try:
        with open(partial, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    _sync_directory(directory)


def _sync_directory(directory):
    """Have the new name on the disk too. Some file systems (vfat, FUSE, network) cannot: then this is all there is."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_npz(file, arrays, values):
    """Write arrays and JSON values as an uncompressed npz; the same state gives the same bytes."""
    text = json.dumps({"arrays": list(arrays), "values": values}).encode("utf-8")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with _member(archive, VALUES) as member:
            member.write(_npy_header(len(text)) + text)
        for name, array in arrays.items():
            import numpy

            with _member(archive, name) as member:
                numpy.lib.format.write_array(member, numpy.asanyarray(array), allow_pickle=False)


def read_npz(path):
    """Return arrays and values of a file of `write_npz`; every byte read is checked against the zip's CRC."""
    with zipfile.ZipFile(path) as archive:
        data = archive.read(VALUES + ".npy")
        content = json.loads(data[10 + struct.unpack("<H", data[8:10])[0] :].decode("utf-8"))
        return {name: _read_array(archive, name) for name in content["arrays"]}, content["values"]


def _member(archive, name):
    return archive.open(zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True)


def _read_array(archive, name):
    import numpy

    with archive.open(name + ".npy") as member:
        array = numpy.lib.format.read_array(member, allow_pickle=False)
        member.read()  # to the end: only there the CRC is compared
    return array


def _npy_header(length):
    """Return the npy header of a vector of bytes (as numpy.save would write it): the values need no numpy."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({length},), }}"
    header += " " * (-(10 + len(header) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("ascii")


def is_fuse(path, mounts="/proc/mounts"):
    """Return whether `path` lies on a FUSE file system, such as a mounted drive."""
    path = os.path.realpath(path)
    kind, longest = "", 0
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split() for line in file]
    except OSError:
        return False
    for fields in lines:
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), fields[1])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:
            kind, longest = fields[2], len(point)
    return kind.startswith("fuse")


# Keras

CALLBACK_MEMORY = ("wait", "best", "best_epoch", "stopped_epoch", "cooldown_counter")


def keras_checkpoint(model, every=None, callbacks=()):
    """Return a callback that saves model and optimizer at the end of an epoch, and restores them when training begins.

        checkpoint = keras_checkpoint(model)
        model.fit(x, y, epochs=20, initial_epoch=checkpoint.epoch, callbacks=[checkpoint])

    Call it on the compiled model, and put it last in the list. It goes by whole epochs, since `fit` cannot begin in the
    middle of one: a SIGTERM ends the process with 75 after the batch at hand, and the epoch is done again. What other
    callbacks remember (EarlyStopping, ReduceLROnPlateau) is kept too if they are given as `callbacks`.
    `fit` shuffles from a hidden state: for equal bits use shuffle=False, or a seeded data set of your own.
    """
    base = _keras().callbacks.Callback

    class KerasCheckpoint(base):
        def __init__(self):
            super().__init__()
            self.checkpoint = Checkpoint(every=every)
            self.state = self.checkpoint.restore()
            self.epoch = self.state.values["epoch"] if self.state else 0

        def on_train_begin(self, logs=None):
            if self.state:
                restore_keras(model, self.state.arrays)
                for callback, memory in zip(callbacks, self.state.values["callbacks"]):
                    vars(callback).update(memory)
                for number, callback in enumerate(callbacks):
                    _restore_best(callback, number, self.state.arrays)

        def on_train_batch_end(self, batch, logs=None):
            if self.checkpoint.stop_asked:
                say(f"stopped by SIGTERM in epoch {self.epoch + 1}, which will be done again")
                raise SystemExit(EXIT_INTERRUPTED)

        def on_epoch_end(self, epoch, logs=None):
            self.epoch = epoch + 1
            numbers = {key: float(value) for key, value in (logs or {}).items()}
            self.checkpoint.metrics(step=self.epoch, epoch=self.epoch, **numbers)
            self.checkpoint.step(self.epoch, self.arrays, self.values, epoch=self.epoch)

        def on_train_end(self, logs=None):
            if self.checkpoint.saved_step != self.epoch:
                self.checkpoint.save(self.epoch, self.arrays, self.values, epoch=self.epoch)
            self.checkpoint.done()

        def arrays(self):
            found = keras_arrays(model)
            for number, callback in enumerate(callbacks):
                for place, array in enumerate(getattr(callback, "best_weights", None) or []):
                    found[f"callback/{number}/{place}"] = array
            return found

        def values(self):
            return {"epoch": self.epoch, "callbacks": [_memory(callback) for callback in callbacks]}

    return KerasCheckpoint()


def keras_arrays(model):
    """Return the weights and the optimizer's variables of a Keras model, as name -> ndarray."""
    found = {f"weight/{number}": array for number, array in enumerate(model.get_weights())}
    for number, variable in enumerate(_optimizer_variables(model)):
        found[f"optimizer/{number}"] = _value(variable)
    if _learning_rate(model) is not None:
        found["learning_rate"] = _value(_learning_rate(model))
    return found


def restore_keras(model, arrays):
    """Put what `keras_arrays` returned back into a model of the same make that is compiled alike."""
    model.set_weights([arrays[f"weight/{number}"] for number in range(_count(arrays, "weight"))])
    if not _count(arrays, "optimizer"):
        return
    variables = _optimizer_variables(model, make=True)
    if len(variables) != _count(arrays, "optimizer"):
        say(f"the optimizer has {len(variables)} variables, the checkpoint {_count(arrays, 'optimizer')}: not the same")
        raise SystemExit(EXIT_DATA)
    for number, variable in enumerate(variables):
        _assign(variable, arrays[f"optimizer/{number}"])
    if "learning_rate" in arrays and _learning_rate(model) is not None:
        _assign(_learning_rate(model), arrays["learning_rate"])


def _keras():
    """Return the Keras in use: that of TensorFlow, else Keras 3 on its own."""
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"].keras
    import keras

    return keras


def _optimizer_variables(model, make=False):
    """Return the optimizer's variables; `make` creates those that it would only create at its first step."""
    optimizer = model.optimizer
    if make:
        weights = model.trainable_weights
        if hasattr(optimizer, "build"):  # TensorFlow 2.11 and later
            optimizer.build(weights)
        elif hasattr(optimizer, "_create_all_weights"):  # 2.3 to 2.10
            optimizer._create_all_weights(weights)
        else:  # 1.15 to 2.2
            optimizer.iterations  # noqa: B018 - reading it makes it
            optimizer._create_hypers()
            optimizer._create_slots(weights)
    variables = optimizer.variables
    return list(variables() if callable(variables) else variables)


def _learning_rate(model):
    """Return the variable that a callback may have changed; a schedule has none. Before 2.11 it stands for itself."""
    rate = getattr(model.optimizer, "learning_rate", None)
    return rate if hasattr(rate, "assign") else None


def _value(variable):
    return _keras().backend.get_value(variable) if _in_graph_mode() else variable.numpy()


def _assign(variable, array):
    if _in_graph_mode():
        _keras().backend.set_value(variable, array)
    else:
        variable.assign(array)


def _in_graph_mode():
    """Return whether this is TensorFlow 1 as it comes: variables then have values only in a session."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and not tensorflow.executing_eagerly()


def _count(arrays, prefix):
    return sum(name.startswith(prefix + "/") for name in arrays)


def _memory(callback):
    """Return what a callback remembers from epoch to epoch, in plain numbers."""
    found = {name: getattr(callback, name, None) for name in CALLBACK_MEMORY}
    return {
        name: value if isinstance(value, int) else float(value) for name, value in found.items() if value is not None
    }


def _restore_best(callback, number, arrays):
    best = [arrays[f"callback/{number}/{place}"] for place in range(_count(arrays, f"callback/{number}"))]
    if best:
        callback.best_weights = best
