"""What a run's directory says, read with the same code inside (launch.py) and outside (the runner).

Its JSON files, which files are checkpoints, who holds its lock, how a request differs from the one it began with, and the
one sentence about it. Python 3.6 to 3.13, standard library only: it travels with launch.py.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import time
import zipfile

FORMAT = 1  # of request.json and run.json; a newer one is refused
FINAL_CODES = (2, 64, 65, 78)  # usage, data, configuration: asking again would give the same
REFUSED, DATA, TAKEN, CRASHED, INTERRUPTED, UNUSABLE = 64, 65, 69, 70, 75, 78
HEARTBEAT = 5.0  # seconds between signs of life in .lock
# Seconds without one, after which the holder on another machine is taken for dead.
STALE = float(os.environ.get("RUNNER_STALE", "30"))
SETTLE = 0.5  # seconds after which, without flock, whoever wrote last into .lock is its holder
FROZEN = ("environment", "image", "command", "code", "data", "requirements")


class Refusal(Exception):
    """A sentence, and the code to end with."""

    def __init__(self, code, sentence):
        super().__init__(sentence)
        self.code = code


# ---------------------------------------------------------------- files


def read_json(path):
    """Return the content of a JSON file, or None where it is missing or damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def write_json(path, value, durable=True):
    """Write a JSON file so that a reader sees the old content or the new, never a part; `durable` outlives a power cut."""
    partial = path + ".partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        if durable:
            sync(file.fileno())
    os.replace(partial, path)


def sync(descriptor):
    """Flush to the disk, as far as the file system can."""
    with contextlib.suppress(OSError):  # mounted drives and special files refuse
        os.fsync(descriptor)


def code_hash(path):
    """Return the SHA-256 of a file; of a notebook only the cells' sources count, not what running it left there."""
    with open(path, "rb") as file:
        content = file.read()
    if path.endswith(".ipynb"):
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            cells = [[cell["cell_type"], "".join(cell["source"])] for cell in json.loads(content.decode())["cells"]]
            content = json.dumps(cells).encode()
    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- checkpoints


def _whole_zip(path):
    return zipfile.is_zipfile(path)


def _whole_hdf5(path):
    """Compare the file's length with the end that its superblock states (HDF5 File Format Specification, II.A)."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head[:8] != b"\x89HDF\r\n\x1a\n":
        return False
    end = {0: 40, 1: 44, 2: 28, 3: 28}.get(head[8])
    return end is None or os.path.getsize(path) == int.from_bytes(head[end : end + 8], "little")


def _whole_index(path):
    return bool(_shards(path)) and all(os.path.exists(shard) for shard in _shards(path))


def _shards(path):
    prefix, folder = os.path.basename(path)[: -len("index")], os.path.dirname(path)
    found = [name for name in os.listdir(folder) if re.match(re.escape(prefix) + r"data-\d{5}-of-\d{5}$", name)]
    if not found:
        return []
    count = int(found[0][-5:])
    return [os.path.join(folder, "%sdata-%05d-of-%05d" % (prefix, number, count)) for number in range(count)]


def _whole_saved_model(path):
    return os.path.exists(os.path.join(os.path.dirname(path), "variables", "variables.index"))


# What counts as a checkpoint: a pattern for the file's name (its first group is the step), and whether the file is complete.
KINDS = (
    (re.compile(r"^checkpoint-(\d+)\.npz$"), _whole_zip),  # runner_checkpoint's own
    (re.compile(r"^[^.].*?(?:-(\d+))?\.index$"), _whole_index),  # TensorFlow
    (re.compile(r"^[^.].*()\.h5$"), _whole_hdf5),
    (re.compile(r"^[^.].*()\.keras$"), lambda path: _whole_zip(path) or _whole_hdf5(path)),
    (re.compile(r"^[^.].*()\.npz$"), _whole_zip),
    (re.compile(r"^saved_model()\.pb$"), _whole_saved_model),
)


def checkpoints(directory, code=None, tops=("checkpoints", "work")):
    """Return the complete checkpoints of a run, newest last: {path (relative), step (or None), modified}.

    `code` is the manifest of the snapshot (path -> SHA-256): a file that came with the project is no checkpoint.
    """
    found = [_checkpoint(directory, path, code or {}) for path in _files(directory, tops)]
    return sorted(filter(None, found), key=_age)


def _files(directory, tops=("checkpoints", "work")):
    for top in tops:
        for folder, folders, names in os.walk(os.path.join(directory, top)):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for name in names:
                yield os.path.join(folder, name)


def _damaged(directory, code):
    """Return how many files are checkpoints that are not whole, where the name or a part beside it leaves no doubt of that."""
    count = 0
    for path in _files(directory):
        with contextlib.suppress(OSError):
            sure = re.search(r"/[^./][^/]*\.(npz|h5|keras)$", path) or (path.endswith(".index") and _shards(path))
            if sure and not _from_snapshot(directory, path, code) and not _checkpoint(directory, path, code):
                count += 1
    return count


def lost_checkpoint(directory, recorded, found):
    """Return {path, step, problem} of the checkpoint that an attempt recorded, where it is gone and `found` is not newer.

    A job deletes old ones itself, for the newer ones that it writes; copies of a volume, and disks, lose the newest.
    """
    if recorded is None or _checkpoint(directory, os.path.join(directory, recorded["path"]), {}):
        return None
    if found and None not in (found["step"], recorded["step"]):
        newer = found["step"] >= recorded["step"]
    else:
        newer = found is not None and found["modified"] > recorded["modified"]
    there = os.path.exists(os.path.join(directory, recorded["path"]))
    return None if newer else dict(place_and_step(recorded), problem="damaged" if there else "missing")


def _age(entry):
    """Order checkpoints as those who restore them do: runner_checkpoint's own by their step (copies of a volume do not keep
    times), all others by time; its own come last, for who writes them goes on from them."""
    own = bool(KINDS[0][0].match(os.path.basename(entry["path"]))) and entry["path"].startswith("checkpoints")
    return (own, entry["step"] if own else 0, entry["modified"], entry["step"] or 0, entry["path"])


def is_newer(checkpoint, before):
    """Return whether a checkpoint is progress over another (None: there is none)."""
    if checkpoint is None or before is None:
        return checkpoint is not None
    if checkpoint["step"] is not None and before["step"] is not None:
        return checkpoint["step"] > before["step"]
    return checkpoint["modified"] > before["modified"]


def _checkpoint(directory, path, code):
    for pattern, whole in KINDS:
        match = pattern.match(os.path.basename(path))
        if match:
            try:
                if not whole(path) or _from_snapshot(directory, path, code):
                    return None
                modified = os.path.getmtime(path)
            except OSError:
                return None  # it vanished while we looked
            step = int(match.group(1)) if match.group(1) else None
            return {"path": os.path.relpath(path, directory), "step": step, "modified": modified}
    return None


def _from_snapshot(directory, path, code):
    inside = os.path.relpath(path, directory).split(os.sep)[2:]  # less work/<folder>
    known = code.get("/".join(inside))
    return known is not None and known == _cached_hash(path)


def _cached_hash(path, cache={}):  # noqa: B006 (it is meant to be kept: a large file is read once, not twice a second)
    state = os.stat(path)
    key = (path, state.st_mtime, state.st_size)
    if key not in cache:
        cache[key] = code_hash(path)
    return cache[key]


def newest(directory, code=None):
    """Return {path, step, modified} of the checkpoint that the next attempt goes on from, or None."""
    found = checkpoints(directory, code)
    return found[-1] if found else None


def newest_checkpoint(directory, code=None):
    """Return {path, step} of the checkpoint that the next attempt goes on from, or None."""
    return place_and_step(newest(directory, code))


def place_and_step(checkpoint):
    return checkpoint and {"path": checkpoint["path"], "step": checkpoint["step"]}


# ---------------------------------------------------------------- the machine


def host():
    return socket.gethostname()


def boot():
    """Return what tells one start of a kernel from another; the same in all containers of a machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        command = ["sysctl", "-n", "kern.boottime"]  # macOS
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.check_output(command).decode().strip()
    return "unknown"


def process_space():
    """Return the name of the space in which process numbers mean something."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return host()


def process_started(pid):
    """Return when a process started, in the kernel's own count, or None where there is none (a zombie is none)."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        pass
    if os.path.isdir("/proc/self"):
        return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return 0


def group_members(group, directory):
    """Return the living processes of a process group that work for the run in `directory`."""
    if not os.path.isdir("/proc/self"):
        return [group] if process_started(group) is not None else []
    wanted = b"RUNNER_DIR=" + os.fsencode(directory) + b"\0"
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open("/proc/%s/stat" % name, "rb") as file:
                fields = file.read().rsplit(b")", 1)[1].split()
            if int(fields[2]) != group or fields[0] in (b"Z", b"X"):
                continue
            with open("/proc/%s/environ" % name, "rb") as file:
                if wanted in file.read() + b"\0":
                    found.append(int(name))
    return found


def kill_group(group, directory, patience=10.0):
    """Kill what is left of a process group and wait until it is gone."""
    deadline = time.monotonic() + patience
    while group_members(group, directory):
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise Refusal(
                TAKEN, "processes of the last attempt (group %d) do not end, so this one did not start" % group
            )
        time.sleep(0.02)


# ---------------------------------------------------------------- the lock


class Lock:
    """The right to write in a run's directory: flock where the file system has it, and a heartbeat between machines."""

    def __init__(self, directory, backend=""):
        self.path = os.path.join(directory, ".lock")
        self.backend = backend
        self.descriptor = None
        self.local = None  # the descriptor of a lock on this machine, where the volume has none
        self.beaten = 0.0
        self.started = time.time()

    def acquire(self, patience=1.0, give_up=lambda: False):
        """Take the lock, or raise Refusal naming the holder. Others look at it for a moment: so it is tried for a second."""
        deadline = time.monotonic() + patience
        answer = self._try()
        while answer == "taken" and time.monotonic() < deadline and not give_up():
            time.sleep(0.02)
            self._close()
            answer = self._try()
        if answer == "taken" or holder_alive(self.path, answer == "locked", wait=True, give_up=give_up):
            self._close()
            raise Refusal(TAKEN, "this run is going already: %s" % holder_words(self.path))
        self.beat(force=True)
        if answer == "unsupported" and self._overwritten():
            self._close()
            raise Refusal(TAKEN, "this run was started elsewhere in the same moment: %s" % holder_words(self.path))

    def _overwritten(self):
        """Return whether another one, who saw no holder either, has written after us: then it is theirs."""
        time.sleep(SETTLE)
        who = holder(self.path)
        ours = ("boot", "space", "pid", "started")
        return who is not None and [who.get(key) for key in ours] != [self._sign().get(key) for key in ours]

    def _try(self):
        """Open the file and lock it; "taken", too, where it was renamed or removed before we had the lock (`--fresh`, `rm`)."""
        self._open()
        answer = _flock(self.descriptor)
        if answer == "unsupported":
            self.local = _local_lock(os.path.dirname(self.path))
            if self.local is None:
                return answer
            if _flock(self.local) == "taken":
                return "taken"
            os.close(self.descriptor)
            self._open()  # whoever had the local lock before us may have set the directory aside
        with contextlib.suppress(OSError):
            if answer == "locked" and os.path.samestat(os.fstat(self.descriptor), os.stat(self.path)):
                return answer
        return answer if answer != "locked" else "taken"

    def _open(self):
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)

    def beat(self, force=False):
        """Renew the sign of life when it is due."""
        if not force and time.monotonic() - self.beaten < HEARTBEAT:
            return
        self.beaten = time.monotonic()
        with contextlib.suppress(OSError):  # a full disk must not end the training
            os.pwrite(self.descriptor, json.dumps(self._sign()).ljust(400).encode(), 0)

    def _sign(self):
        return {
            "backend": self.backend, "host": host(), "boot": boot(), "space": process_space(), "pid": os.getpid(),
            "process_started": process_started(os.getpid()), "started": self.started, "heartbeat": time.time(),
        }  # fmt: skip

    def release(self):
        """Give the lock back, leaving no holder's name."""
        if self.descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, 0)
            self._close()

    def _close(self):
        os.close(self.descriptor)
        if self.local is not None:
            os.close(self.local)
        self.descriptor = self.local = None


def _local_lock(directory):
    """Return a file of this user and machine that stands for a run's directory, open, or None where that cannot be had."""
    import tempfile  # only needed where a volume has no flock

    folder = os.path.join(tempfile.gettempdir(), "runner-locks-%d" % os.getuid())
    name = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:32]
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        state = os.lstat(folder)
        if state.st_uid != os.getuid() or not stat.S_ISDIR(state.st_mode):
            return None  # somebody else has made it
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        return os.open(os.path.join(folder, name), flags, 0o600)
    except OSError:
        return None


def _flock(descriptor, kind=None):
    """Try to lock: "locked", "taken", or "unsupported" where the file system has no locks (then the heartbeat decides)."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if kind is None else kind) | fcntl.LOCK_NB)
    except OSError as error:
        return "taken" if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN) else "unsupported"
    return "locked"


def holder(path):
    """Return what the holder wrote into a lock file, or None."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.loads(file.read() or "null")
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def holder_words(path):
    who = holder(path) or {}
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(who.get("started", time.time())))
    return "%s on %s, process %s, since %s" % (
        who.get("backend", "somebody"), who.get("host", "an unknown host"), who.get("pid", "unknown"), since,
    )  # fmt: skip


def holder_alive(path, locked, wait=False, give_up=lambda: False):
    """Return whether the writer of a lock file that nobody's flock keeps from us lives all the same.

    flock does not reach over machines on many drives: there the heartbeat decides, by the volume's own clock. With `wait`
    a heartbeat that is fresh is watched until it moves on (alive) or is stale (dead).
    """
    who = holder(path)
    if who is None:
        return False
    if who.get("boot") == boot() and locked:
        return False  # the same kernel: its flock would have been in our way
    if who.get("boot") == boot() and who.get("space") == process_space():
        started = process_started(who["pid"])
        return started is not None and started == who.get("process_started")
    first = os.stat(path).st_mtime
    while volume_clock(os.path.dirname(path)) - first <= STALE:
        if not wait or os.stat(path).st_mtime != first or give_up():
            return True
        time.sleep(0.2)
    return False


def volume_clock(directory):
    """Return the time by the clock of the volume itself, which may be another machine's."""
    probe = os.path.join(directory, ".clock-%d" % os.getpid())
    try:
        with open(probe, "w") as file:
            file.write("x")
        return os.stat(probe).st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)


def going(directory):
    """Return whether a launcher holds the run in `directory`."""
    path = os.path.join(directory, ".lock")
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        answer = _flock(descriptor, fcntl.LOCK_SH)
        return answer == "taken" or holder_alive(path, answer == "locked")
    finally:
        os.close(descriptor)


def submission_of(directory):
    """Return the submission that the run in `directory` is at, or was at last."""
    return (read_json(os.path.join(directory, "run.json")) or {}).get("submission")


def logs(directory):
    """Return the numbers of the attempts that have left a log, in order."""
    try:
        names = os.listdir(os.path.join(directory, "logs"))
    except OSError:
        return []
    return sorted(int(match.group(1)) for match in (re.match(r"attempt-(\d+)\.log$", name) for name in names) if match)


def last_attempt(directory, record):
    """Return the number of the last attempt, 0 where there was none: by the logs too, should run.json have been lost."""
    return max([len(record.get("attempts") or [])] + logs(directory))


# ---------------------------------------------------------------- request


def differences(old, new):
    """Return in words how a request differs from the one that the run began with, in what is frozen."""
    found = []
    for key in FROZEN:
        if key != "code" and old.get(key) != new.get(key):
            found.append("%s: was %s, now %s" % (key, _words(old.get(key)), _words(new.get(key))))
    for name in sorted(set(old["parameters"]) | set(new["parameters"])):
        before, after = old["parameters"].get(name), new["parameters"].get(name)
        if before != after and not (name in new.get("extend", []) and _higher(after, before)):
            found.append("parameter %s: was %s, now %s" % (name, _words(before), _words(after)))
    return found + code_differences(old, new)


def code_differences(old, new):
    before, after = old.get("code", {}), new.get("code", {})
    words = {(True, False): "removed", (False, True): "added", (True, True): "changed"}
    return [
        "%s: %s" % (path, words[path in before, path in after])
        for path in sorted(set(before) | set(after))
        if before.get(path) != after.get(path)
    ]


def _words(value):
    return "not given" if value is None else value if isinstance(value, str) else json.dumps(value)


def _higher(after, before):
    return type(after) in (int, float) and type(before) in (int, float) and after >= before


# ---------------------------------------------------------------- what it says


def describe(record, directory, is_going, code=None):
    """Return the one sentence: what the run does, or why it ended, and what the same command would continue from."""
    if is_going:
        return "It is running%s." % _progress_words(record.get("progress"))
    if record.get("exit_code") == 0:
        return "It succeeded%s." % _after(record)
    last = record["attempts"][-1] if record.get("attempts") else {}
    again = _again(record, last, directory, code or {})
    if not last and os.path.isdir(os.path.join(directory, "logs")):
        return "How it ended is not known, for its run.json is lost." + again
    return _why(record, last) + again


def _again(record, last, directory, code):
    """Return what asking again would lead to: which checkpoint it has, and which it has lost."""
    found = newest(directory, code)
    lost = lost_checkpoint(directory, last.get("checkpoint"), found)
    said = " Checkpoint %s is %s." % (checkpoint_words(lost), lost["problem"]) if lost else ""
    refused = record.get("exit_code") == DATA  # as runner_checkpoint does, which has read the files
    fresh = "--fresh begins anew (the old files are kept)."
    if found and refused:
        return "%s The same command tries %s again; %s" % (said, checkpoint_words(found), fresh)
    if found:
        return "%s The same command continues from %s." % (said, checkpoint_words(found))
    count = _damaged(directory, code)
    if count:
        files = "1 checkpoint file is" if count == 1 else "%d checkpoint files are" % count
        said = " %s damaged, and none is whole." % files
    if said:
        return said + ("" if refused else " The same command starts it again without one;") + " " + fresh
    return " The same command starts it%s from the beginning, for there is no checkpoint yet." % (
        " again" if last else ""
    )


def _why(record, last):
    code = record.get("exit_code")
    if not last:
        return "It never started."
    if code is None:
        return "It was cut off%s: its launcher was killed or the machine went down." % _after(record)
    if code == INTERRUPTED:
        return "It was interrupted%s: it was told to stop." % _after(record)
    reason = last.get("how", "ended with %s" % code)
    if code == CRASHED:
        tries = record["budget"]["used"]
        return "It failed%s: the job %s, %s without a newer checkpoint.%s" % (
            _after(record), reason, "once" if tries == 1 else "%d times in a row" % tries, _said(last),
        )  # fmt: skip
    final = ", which says that trying again is no use" if code in FINAL_CODES else ""
    return "It failed%s: the job %s%s.%s" % (_after(record), reason, final, _said(last))


def _said(last):
    return " Its last words: %s" % last["last_line"].rstrip(".") + "." if last.get("last_line") else ""


def _after(record):
    ends = [(a["started"], a.get("ended") or a.get("alive") or a["started"]) for a in record.get("attempts", [])]
    seconds = sum(max(0, end - start) for start, end in ends)
    count = len(record.get("attempts", []))
    return " after %s%s" % (_duration(seconds), " in %d attempts" % count if count > 1 else "")


def _duration(seconds):
    seconds = int(round(seconds))
    if seconds < 60:
        return "%d s" % seconds
    return (
        "%d min %d s" % (seconds // 60, seconds % 60)
        if seconds < 3600
        else "%d h %d min" % (seconds // 3600, seconds % 3600 // 60)
    )


def _progress_words(progress):
    if not progress:
        return ", and has not reported a step yet"
    parts = []
    for name, total in (("epoch", "epochs"), ("step", "total_steps")):
        if progress.get(name) is not None:
            parts.append("%s %s%s" % (name, progress[name], " of %s" % progress[total] if progress.get(total) else ""))
    return ", at " + ", ".join(parts) if parts else ""


def checkpoint_words(checkpoint):
    step = "" if checkpoint["step"] is None else "step %d (" % checkpoint["step"]
    return step + checkpoint["path"] + (")" if step else "")
