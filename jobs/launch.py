"""Starts a job, watches it, retries it, and writes down what happened: the same small supervisor in all backends.

Runs inside the environment (Python 3.6 to 3.13, standard library only): `python launch.py VOLUME [DATA]`. The folder that
holds this file is the hand-over of one submission: the modules beside it, request.json, project.tar, runner.lock, and
lib/runner_checkpoint.py. Only this process and its child write in the run's directory `VOLUME/<run>`.

What it returns is final for the submission:
   0  done                                            64  refused: the request is not the one that the run began with
  75  interrupted by a SIGTERM, goes on later         69  another launcher holds this run
  70  crashed more often than the retries allow       78  the volume, the image or the GPUs cannot be used
  other codes of the job that say "do not try again" are passed on (2, 64, 65, 78, and any before a first checkpoint).
"""

import contextlib
import ctypes
import errno
import glob
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time

if sys.version_info < (3, 6):  # in an image of the user's own; what is below must at least compile there, on 2.7 too
    sys.stderr.write(
        "launch.py: Python %d.%d (%s) is too old: 3.6 or newer is needed.\n"
        % (sys.version_info[:2] + (sys.executable,))
    )
    sys.exit(78)

from machine import memory, processor, size, usable_cpus
from output import MARK, Log, Progress
from run_directory import (
    CRASHED,
    FINAL_CODES,
    FORMAT,
    INTERRUPTED,
    REFUSED,
    UNUSABLE,
    Lock,
    Refusal,
    boot,
    code_differences,
    code_hash,
    describe,
    differences,
    host,
    is_newer,
    kill_group,
    last_attempt,
    lost_checkpoint,
    newest,
    newest_checkpoint,
    place_and_step,
    process_space,
    read_json,
    write_json,
)

RESERVE, RESERVED = ".reserve", 32768  # a file that only takes up space, and its bytes
GRACE = float(os.environ.get("RUNNER_GRACE", "110"))  # seconds from SIGTERM to SIGKILL; backends give 120
LOOKING = 60.0  # seconds that NVIDIA's driver has to answer: without its persistence mode it starts each GPU anew
# Where machines have their driver that tell it to programs by LD_LIBRARY_PATH alone: notebook hosts, clusters, WSL, NixOS.
DRIVERS = ("/usr/lib64-nvidia", "/usr/local/nvidia/lib64", "/usr/lib/wsl/lib", "/run/opengl-driver/lib")
HANDING_OVER = 60.0  # seconds after which whoever was to write on the standard input is taken for dead


# ---------------------------------------------------------------- words and files


def _other(key, now, first):
    """Return in words what is not as it was at the first attempt."""
    if key == "lock":
        return "other packages"
    if key == "processor":
        return "another instruction set (%s)" % " ".join(sorted(set(now.split()) ^ set(first.split())))
    return "%s %s instead of %s" % ({"python": "Python"}.get(key, key), now, first)


def _make_way(folder, parts):
    """Clear away what is in the way of a file: a file where it needs a folder, and a folder where it is to be."""
    for count in range(1, len(parts)):
        above = os.path.join(folder, *parts[:count])
        if os.path.lexists(above) and not os.path.isdir(above):
            _keep(above)
    target = os.path.join(folder, *parts)
    if os.path.isdir(target) and not os.path.islink(target):
        for inside, _, _ in os.walk(target, topdown=False):
            with contextlib.suppress(OSError):  # only what is empty goes
                os.rmdir(inside)
    if os.path.isdir(target):
        _keep(target)


def _keep(path):
    """Set aside what the job has written."""
    aside = path + ".before-update"
    os.replace(path, _free(aside) if os.path.lexists(aside) else aside)


def _append(variables, name, separator, values):
    """Add values to a variable, after those that it was given."""
    joined = separator.join(filter(None, [variables.get(name)] + values))
    if joined:
        variables[name] = joined


def _count(number, one, many):
    return "%d %s" % (number, one if number == 1 else many)


def _free(path):
    """Return the first of PATH.1, PATH.2, ... that there is not."""
    number = 1
    while os.path.lexists("%s.%d" % (path, number)):
        number += 1
    return "%s.%d" % (path, number)


# ---------------------------------------------------------------- the launcher


class Launcher:
    """One submission of one run, from the lock to the end that is recorded."""

    def __init__(self, handover, volume, data):
        self.handover, self.volume, self.data = handover, volume, data
        self.request = read_json(os.path.join(handover, "request.json"))
        self.directory = os.path.join(volume, self.request["name"])
        self.backend = self.request["backend"]
        self.lock = Lock(self.directory, self.backend)
        self.record = {}
        self.devices = "cpu"  # or the names of the GPUs
        self.handed = {}  # variables for the job that stand in no file: secrets, and a container's proxies
        self.notes = []  # events from before there is a log
        self.settled = None  # the exit code, where it is known without another attempt
        self.told_to_stop = 0.0  # when a SIGTERM came
        self.kill_now = False

    # -- preparation

    def run(self):
        """Do everything; return the exit code."""
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, self._on_int)
        self._take_variables()
        self._check_image()
        if self.request["resources"].get("gpus"):
            self._find_gpus(self.request["resources"]["gpus"])
        if self.told_to_stop:
            return INTERRUPTED
        self._make_directory()
        try:
            self.lock.acquire(give_up=lambda: self.told_to_stop)
        except Refusal:
            if self.told_to_stop:
                return INTERRUPTED
            raise
        try:
            self._clear_the_way()
            self._admit()
            return self._attempts()
        finally:
            self.lock.release()

    def _on_term(self, number, frame):
        self.told_to_stop = self.told_to_stop or time.monotonic()

    def _on_int(self, number, frame):
        self._on_term(number, frame)
        self.kill_now = True

    def _take_variables(self):
        """Read variables for the job alone, a line of JSON on the standard input."""
        told = os.environ.pop("RUNNER_STDIN", None)
        if told or self.request["secrets"]:
            with contextlib.suppress(ValueError, TypeError, OSError):
                self.handed = dict(json.loads(self._line().decode()))
        missing = [name for name in self.request["secrets"] if name not in self.handed]
        if missing and not self.told_to_stop:
            raise Refusal(REFUSED, "the secret %s was not handed over" % ", ".join(missing))

    def _line(self):
        """Return the first line of the standard input, or what there is of it at its end, at a SIGTERM, or after a while."""
        line, deadline = b"", time.monotonic() + HANDING_OVER
        while not line.endswith(b"\n") and not self.told_to_stop and time.monotonic() < deadline:
            if select.select([0], [], [], 0.1)[0]:
                chunk = os.read(0, 1 << 16)
                if not chunk:
                    break
                line += chunk
        return line

    def _check_image(self):
        """Refuse an image of the user's own in which the job's Python does not find TensorFlow."""
        look = "import importlib.util, sys; sys.exit(3 if importlib.util.find_spec('tensorflow') is None else 0)"
        image = self.request.get("image")
        if image and subprocess.call([sys.executable, "-c", look], env=self.variables(), stdin=subprocess.DEVNULL) == 3:
            raise Refusal(
                UNUSABLE,
                "the image %s has no TensorFlow for its Python %s (%s). Give one that has it, or an environment with -E"
                % (image, platform.python_version(), sys.executable),
            )

    def _find_gpus(self, wanted):
        """Refuse to start where the GPUs that were asked for cannot be used; note their names."""
        try:
            found = subprocess.run(
                [sys.executable, "-E", os.path.join(self.handover, "gpus.py"), self.backend] + self.request.get("libraries", []),
                env=self.variables(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=LOOKING,
            )  # fmt: skip
            said = json.loads(found.stdout.decode())
        except subprocess.TimeoutExpired:
            said = {"problem": "NVIDIA's driver has not answered for %d s. See `nvidia-smi`" % LOOKING}
        except ValueError:
            words = found.stderr.decode("utf-8", "replace").strip().splitlines()
            how = words[-1] if words else _ending(found.returncode)
            said = {"problem": "the look at NVIDIA's driver failed: %s. See `nvidia-smi`" % how}
        if not said["problem"] and len(said["names"]) < wanted:
            said["problem"] = "%s visible, and %d were asked for" % (
                _count(len(said["names"]), "GPU is", "GPUs are"),
                wanted,
            )
        if said["problem"]:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            limit = "" if visible is None else " (CUDA_VISIBLE_DEVICES is %r)" % visible
            raise Refusal(UNUSABLE, "the GPUs cannot be used: %s%s." % (said["problem"], limit))
        self.devices = said["names"]

    def variables(self):
        """Return the variables of the job that do not depend on the attempt: where it finds programs and libraries."""
        gpus, variables, tools = (
            self.request["resources"].get("gpus"),
            dict(os.environ),
            [os.path.dirname(sys.executable)],
        )
        if gpus or self.request.get("libraries"):
            tools += self._tell_where_cuda_is(variables)
        if gpus and self.backend == "native":
            visible = variables.get("CUDA_VISIBLE_DEVICES")
            chosen = [str(number) for number in range(gpus)] if visible is None else visible.split(",")
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(chosen[:gpus])
        elif not gpus and self.request.get("hide_gpus"):
            variables["CUDA_VISIBLE_DEVICES"] = "-1"
        variables["PATH"] = os.pathsep.join(tools + [variables.get("PATH", os.defpath)])
        return variables

    def _tell_where_cuda_is(self, variables):
        """Let the loader find CUDA's libraries and the driver, and XLA its compiler; return folders of programs."""
        nvidia = os.path.join(sysconfig.get_paths()["purelib"], "nvidia")
        folders = [folder for folder in DRIVERS if os.path.exists(os.path.join(folder, "libcuda.so.1"))]
        if self.backend == "native":  # in images the loader knows these
            folders = sorted(glob.glob(os.path.join(nvidia, "*", "lib"))) + folders
        _append(variables, "LD_LIBRARY_PATH", os.pathsep, folders)
        compiler, option = os.path.join(nvidia, "cuda_nvcc"), "--xla_gpu_cuda_data_dir="
        if not os.path.isdir(compiler) or option in variables.get("XLA_FLAGS", ""):  # images have it set
            return []
        _append(variables, "XLA_FLAGS", " ", [option + compiler])
        return [os.path.join(compiler, "bin")]

    def _make_directory(self):
        try:
            os.makedirs(self.directory, exist_ok=True)
            probe = os.path.join(self.directory, ".writable-%d" % os.getpid())
            with open(probe, "w") as file:
                file.write("x")
            with contextlib.suppress(FileNotFoundError):  # of the same process number, on another machine
                os.unlink(probe)
            return
        except OSError as error:
            problem = error.strerror
        raise Refusal(UNUSABLE, "the volume %s cannot be written: %s" % (self.volume, problem))

    def _clear_the_way(self):
        """Close the books on an attempt whose launcher was killed, and make sure that none of its processes is left."""
        self.record = read_json(self._path("run.json")) or self._lost_record()
        if self.record["format"] > FORMAT:
            raise Refusal(
                REFUSED,
                "run.json has format %s, written by a newer runner; this one knows %d"
                % (self.record["format"], FORMAT),
            )
        last = self.record["attempts"][-1] if self.record["attempts"] else None
        if last and last.get("group") and last["boot"] == boot() and last["space"] == process_space():
            kill_group(last["group"], self.directory)
        if last and not last.get("ended"):
            last.update(ended=last.get("alive", last["started"]), end="lost", how="was cut off with its launcher")
            found = newest(self.directory, (read_json(self._path("request.json")) or {}).get("code"))
            if not lost_checkpoint(self.directory, last.get("checkpoint"), found):
                last["checkpoint"] = found  # it may have written more than its launcher could record
            self._spend(last)
            if os.path.exists(self._path("done")):  # it was killed after the job had finished, before it could say so
                self.settled = 0
        elif self.record.get("exit_code") == 0:
            self.settled = 0

    def _lost_record(self):
        """Begin the books anew; where there were some that cannot be read, keep them and say so."""
        record = {"format": FORMAT, "attempts": [], "submissions": []}
        if os.path.isdir(self._path("logs")):
            record["reasons"] = ["run.json was lost, so nobody knows under which conditions the run began"]
            with contextlib.suppress(OSError):
                os.replace(self._path("run.json"), self._path("run.json.damaged"))
        return record

    def _admit(self):
        """Compare the request with the run's own, apply its mode once, and lay out the project."""
        mode, first = self.request["mode"], self.request["submission"] not in self.record["submissions"]
        frozen = read_json(self._path("request.json"))
        # The old run is set aside already where its request is ours.
        ours = frozen and frozen.get("submission") == self.request["submission"]
        if first and mode == "fresh" and not ours and (frozen or self.record["attempts"]):
            self._set_aside_run()
            frozen = None
        if frozen is None and self.record["attempts"]:
            raise Refusal(REFUSED, "request.json of this run is missing or damaged, so it cannot be told what it was")
        if frozen and frozen.get("format", 0) > FORMAT:
            raise Refusal(
                REFUSED,
                "request.json has format %s, written by a newer runner; this one knows %d" % (frozen["format"], FORMAT),
            )
        if frozen:  # work/ is laid out already, by this name: a clone of the project may lie in a folder of another
            self.request["folder"] = frozen.get("folder", self.request["folder"])
        if frozen and first:
            self._reconcile(frozen, mode)
            if any(frozen[key] != self.request[key] for key in ("parameters", "code")):
                self.settled = None
        elif frozen and self.record.get("exit_code") not in (None, INTERRUPTED):
            self.settled = self.record["exit_code"]  # what was returned is final for this submission
        write_json(self._path("request.json"), self.request)
        self._keep_lock_file()
        self._unpack()
        if first:
            self.record["submissions"].append(self.request["submission"])
            self.record["budget"] = {"used": 0}
        identity = ("name", "job", "environment", "backend", "submission", "mode", "again", "user")
        self.record.update({key: self.request.get(key) for key in identity}, exit_code=None, ended=None)
        self._fix_conditions()
        self._save()

    def _set_aside_run(self):
        """Rename the old directory to <run>.1, .2, ... and begin in a new one, under a lock of its own."""
        kept = _free(self.directory)
        os.rename(self.directory, kept)
        self.lock.release()
        os.makedirs(self.directory, exist_ok=True)
        self.lock = Lock(self.directory, self.backend)
        self.lock.acquire()
        self.record, self.settled = {"format": FORMAT, "attempts": [], "submissions": []}, None
        self.notes.append({"event": "fresh", "kept": os.path.basename(kept)})

    def _reconcile(self, frozen, mode):
        found = differences(dict(frozen, code={}), dict(self.request, code={}))
        changed = code_differences(frozen, self.request)
        if found or (changed and mode != "update-code" and newest_checkpoint(self.directory, frozen["code"])):
            raise Refusal(REFUSED, "this run was begun differently: %s" % "; ".join((found + changed)[:10]))
        if changed and mode == "update-code":
            if newest_checkpoint(self.directory, frozen["code"]):  # else nothing was trained by the old code
                self._inexact("the code was changed by --update-code before attempt %d" % self._next_number())
                self._save()  # before the code: if we are killed in between, the next one knows
            if os.path.isdir(self._path("work")):  # else a start was cut off before it laid out the project
                self._update_code(frozen["code"])
        elif changed:
            self._set_aside_work()

    def _set_aside_work(self):
        if os.path.isdir(self._path("work")):
            os.rename(self._path("work"), _free(self._path("work")))

    def _update_code(self, old):
        """Write added and changed files, remove deleted ones; what the job itself had altered is kept as *.before-update."""
        new, folder = self.request["code"], self._work_folder()
        changed = [path for path in sorted(set(old) | set(new)) if old.get(path) != new.get(path)]
        for path in changed:
            target = os.path.join(folder, *path.split("/"))
            if os.path.isfile(target) and code_hash(target) not in (old.get(path), new.get(path)):
                _keep(target)
            elif path not in new and os.path.isfile(target):
                os.unlink(target)
        for path in changed:
            if path in new:
                _make_way(folder, path.split("/"))
        self._extract(folder, only=set(changed))

    def _work_folder(self):
        return os.path.join(self.directory, "work", self.request["folder"])

    def _unpack(self):
        """Lay out the project once: into work.partial/, then renamed, so that a cut-off start leaves no half of it."""
        if os.path.isdir(self._path("work")):
            return
        partial = self._path("work.partial")
        shutil.rmtree(partial, ignore_errors=True)
        folder = os.path.join(partial, self.request["folder"])
        os.makedirs(folder)
        self._extract(folder)
        os.rename(partial, self._path("work"))

    def _extract(self, folder, only=None):
        with tarfile.open(os.path.join(self.handover, "project.tar")) as archive:
            for member in archive:
                self.lock.beat()
                if only is not None and member.name not in only:
                    continue
                target = os.path.join(folder, *member.name.split("/"))
                os.makedirs(target if member.isdir() else os.path.dirname(target), exist_ok=True)
                if not member.isdir():
                    self._write(archive.extractfile(member), member, target)

    @staticmethod
    def _write(source, member, target):
        with open(target + ".partial", "wb") as file:
            shutil.copyfileobj(source, file)
        with contextlib.suppress(OSError):  # vfat and some drives have no modes
            os.chmod(target + ".partial", member.mode | 0o600)
        os.utime(target + ".partial", (member.mtime, member.mtime))
        os.replace(target + ".partial", target)

    def _keep_lock_file(self):
        """Keep the packages of this run with it, so that a newer runner continues with the same."""
        source, target = os.path.join(self.handover, "runner.lock"), self._path("runner.lock")
        if os.path.exists(source) and not os.path.exists(target):
            shutil.copyfile(source, target + ".partial")
            os.replace(target + ".partial", target)

    # -- exactness

    def _fix_conditions(self):
        """Freeze what decides the bits at the first attempt, and note where this attempt differs from it."""
        if "threads" not in self.record:
            self.record["threads"] = self.request["resources"].get("cpus") or usable_cpus()
        now = {
            "lock": self.request.get("lock"),
            "python": "%d.%d" % sys.version_info[:2],
            "threads": self.record["threads"],
            "processor": processor(),
        }
        first = self.record.setdefault("conditions", now)
        for key in now:
            if now[key] != first[key]:
                self._inexact("attempt %d ran with %s" % (self._next_number(), _other(key, now[key], first[key])))
        if self.request["resources"].get("gpus"):
            self._inexact("nothing is claimed on GPUs")
        self.record["exact"] = not self.record.get("reasons")
        self.record["versions"] = {"python": platform.python_version(), "tensorflow": self.request.get("tensorflow")}
        self.record["devices"] = self.devices

    def _inexact(self, reason):
        reasons = self.record.setdefault("reasons", [])
        if reason not in reasons:
            reasons.append(reason)
            self.notes.append({"event": "inexact", "reasons": [reason]})

    def _next_number(self):
        return last_attempt(self.directory, self.record) + 1

    # -- attempts

    def _attempts(self):
        """Start the job until it is done, told to stop, or has used up its retries; return the exit code."""
        if self.settled is not None:
            return self._finish(self.settled)
        self._reserve()
        while True:
            if self.record["budget"]["used"] > self.request["retries"]:
                return self._finish(CRASHED)
            if self.told_to_stop:
                return self._finish(INTERRUPTED)
            attempt = Attempt(self)
            code = attempt.run()
            final = self._verdict(attempt, code)
            if final is not None:
                return self._finish(final)
            self._spend(attempt.entry)
            self._save()

    def _verdict(self, attempt, code):
        """Return the exit code that the job's own code and the contract's table call for; None: try again."""
        entry = attempt.entry
        if "group" not in entry:  # there was no child: the command is missing, or may not be executed
            return code
        if attempt.stopped:
            finished = code == 0 and os.path.exists(self._path("done"))
            return 0 if finished else INTERRUPTED
        if code == 0:
            write_json(self._path("done"), {"attempt": entry["number"]})
            return 0
        if code in FINAL_CODES:
            return code
        if 0 < code < 128 and code != INTERRUPTED and not entry["checkpoint"]:
            return code
        return None

    def _spend(self, entry):
        """Count a crash against the retries; a newer checkpoint than the one it began from refills them."""
        budget = self.record.setdefault("budget", {"used": 0})
        if is_newer(entry["checkpoint"], entry["began_from"]):
            budget["used"] = 0
        budget["used"] += 1

    def _finish(self, code):
        self.record.update(
            exit_code=code, ended=time.time(), checkpoint=newest_checkpoint(self.directory, self.request["code"])
        )
        self.record["sentence"] = describe(self.record, self.directory, False, self.request["code"])
        if not self._save():
            with contextlib.suppress(OSError):
                os.unlink(self._path(RESERVE))
            self._save()
        return code

    def _reserve(self):
        """Keep some space, so that on a full disk it can still be written down how the run ended."""
        if not os.path.exists(self._path(RESERVE)):
            with open(self._path(RESERVE), "wb") as file:
                file.write(os.urandom(RESERVED))

    def _path(self, *parts):
        return os.path.join(self.directory, *parts)

    def _save(self, durable=True):
        """Write run.json, and return whether that could be done: a full disk must not end the training."""
        try:
            write_json(self._path("run.json"), self.record, durable)
        except OSError:
            return False
        return True


class Attempt:
    """One start of the job: the child, its log, its checkpoints and its progress."""

    def __init__(self, launcher):
        self.launcher, self.request, self.directory = launcher, launcher.request, launcher.directory
        self.record = launcher.record
        number = launcher._next_number()
        self.code = self.request["code"]
        found = newest(self.directory, self.code)
        before = self.record["attempts"][-1] if self.record["attempts"] else {}
        self.lost = lost_checkpoint(self.directory, before.get("checkpoint"), found)
        self.entry = {
            "number": number, "submission": self.request["submission"], "backend": launcher.backend,
            "host": host(), "boot": boot(), "space": process_space(), "started": time.time(), "ended": None,
            "began_from": found, "checkpoint": found,
        }  # fmt: skip
        self.stopped = False
        self.killed_before = memory()[0]
        self.log = Log(self._path("logs", "attempt-%d.log" % number), self._on_line)
        self.progress = Progress(self._path("metrics.jsonl"))
        self.look_at = self.scan_at = 0.0
        self.pause = 0.05  # seconds between two looks

    def _path(self, *parts):
        return os.path.join(self.directory, *parts)

    def run(self):
        """Run the child to its end, record how it ended, and return its code (negative: the signal)."""
        for name in ("checkpoints", "logs", "tensorboard", "model"):
            os.makedirs(self._path(name), exist_ok=True)
        with contextlib.suppress(OSError):
            os.unlink(self._path("done"))
        self.log.open()
        self.record["attempts"].append(self.entry)
        self.launcher._save()  # before the child starts: a replaced pod must find its submission applied
        for note in self.launcher.notes:
            self._event(**note)
        self.launcher.notes = []
        if self.lost:
            self._event("lost", **self.lost)
        self._event("attempt", number=self.entry["number"], checkpoint=place_and_step(self.entry["began_from"]))
        try:
            child = self._start()
        except OSError as error:
            return self._not_started(error)
        self.entry["group"] = child.pid
        self.launcher._save()
        code = self._watch(child)
        self._close(code)
        return code

    def _start(self):
        command = [self._fill_in(word) for word in self.request["command"]]
        environment = self._environment()
        program = shutil.which(command[0], path=environment["PATH"])
        if program is None and os.sep not in command[0]:
            raise FileNotFoundError(errno.ENOENT, "there is no such command", command[0])
        working = self.launcher._work_folder()
        parent = os.getpid()
        return subprocess.Popen(
            [program or command[0]] + command[1:], cwd=working, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, close_fds=True,
            preexec_fn=lambda: _tie_to_parent(parent),
        )  # fmt: skip

    def _fill_in(self, word):
        """Put parameters into a word of job.yaml's command; a command given after `--` is taken as it is."""
        if self.request["format_command"]:
            for name, value in self.request["parameters"].items():
                word = word.replace("{%s}" % name, value if isinstance(value, str) else json.dumps(value))
        return word

    def _environment(self):
        run, threads = self.request, str(self.record["threads"])
        parameters = self._path("parameters.json")
        write_json(parameters, run["parameters"])
        library = os.path.join(self.launcher.handover, "lib")
        variables = dict(
            self.launcher.variables(),
            PYTHONPATH=os.pathsep.join(part for part in (library, os.environ.get("PYTHONPATH")) if part),
            PYTHONUNBUFFERED="1",
            TF_NUM_INTRAOP_THREADS=threads, TF_NUM_INTEROP_THREADS=threads, OMP_NUM_THREADS=threads,
            RUNNER_RUN=run["name"], RUNNER_DIR=self.directory, RUNNER_DATA=self.launcher.data, RUNNER_PARAMETERS=parameters,
            RUNNER_ATTEMPT=str(self.entry["number"]), RUNNER_CHECKPOINT_EVERY=run["checkpoint_every"],
            RUNNER_CHECKPOINT_EXPLICIT="1" if run["checkpoint_explicit"] else "",
        )  # fmt: skip
        if self.launcher.backend != "native":
            self._move_home(variables)
        variables.update(self.launcher.handed)
        return variables

    def _move_home(self, variables):
        """Give the job a home on the volume: what it caches there survives the container, and takes none of its memory."""
        given = self.request["variables"]
        if "HOME" not in given:
            variables["HOME"] = self._path("home")
            os.makedirs(variables["HOME"], exist_ok=True)
        for name in [name for name in variables if name.startswith("XDG_") and name not in given]:
            del variables[name]  # the defaults are below HOME

    def _not_started(self, error):
        """Tell a command that is missing (127) from one that may not be executed (126), as shells do."""
        missing = isinstance(error, FileNotFoundError)
        how = "could not be started: %s: %s" % (error.filename or self.request["command"][0], error.strerror)
        self.entry.update(ended=time.time(), code=127 if missing else 126, how=how, end="failed", last_line="")
        self.log.write(("%s\n" % how).encode())
        self.log.close()
        return self.entry["code"]

    def _watch(self, child):
        """Copy the output and keep the books until the child has ended; return its code."""
        output = child.stdout.fileno()
        open_output = True
        while True:
            ready = select.select([output] if open_output else [], [], [], 0.1 if open_output else 0.02)[0]
            if ready:
                open_output = self._copy(output)
            self._tick(child)
            if child.poll() is not None:
                break
        with contextlib.suppress(OSError):  # all of them, also those that hide their environment
            os.killpg(child.pid, signal.SIGKILL)
        kill_group(child.pid, self.directory)
        deadline = time.monotonic() + 2  # a process that left the group may still hold the pipe
        while open_output and time.monotonic() < deadline and select.select([output], [], [], 0.2)[0]:
            open_output = self._copy(output)
        child.stdout.close()
        return child.returncode

    def _copy(self, output):
        chunk = os.read(output, 1 << 16)
        self.log.write(chunk)
        return bool(chunk)

    def _tick(self, child):
        """Pass signals on, renew the heartbeat, and look for news, each when it is due."""
        launcher, now = self.launcher, time.monotonic()
        launcher.lock.beat()
        if launcher.told_to_stop and not self.stopped:
            self.stopped = True
            child.send_signal(signal.SIGTERM)
            self._event("stopping", grace=GRACE)
        if launcher.kill_now or (self.stopped and now - launcher.told_to_stop > GRACE):
            kill_group(child.pid, self.directory)
        if now >= self.look_at:
            self._look()
            self.pause = min(2 * self.pause, 0.5)  # a short job is looked at more often at its beginning
            self.look_at = time.monotonic() + self.pause

    def _look(self, scan=False):
        """Take up news of the job: its metrics and progress always, its checkpoints when a scan is due."""
        changed = self.progress.read_metrics()
        if scan or time.monotonic() >= self.scan_at:
            changed = self._scan() or changed
        if changed:
            self.entry.setdefault("first_sign", time.time())
        if changed or self.progress.changed:
            self.progress.changed = False
            self.entry["alive"] = time.time()
            self.record["progress"] = self.progress.value or self.record.get("progress")
            self.launcher._save(durable=False)  # the next one comes soon, and a slow disk must not hold us up
            if changed and self.progress.value:
                self._event("progress", **{"progress": self.progress.value})

    def _scan(self):
        """Look for a newer checkpoint, in at most 2 % of the time, however many files there are; return whether it came."""
        began = time.monotonic()
        found = newest(self.directory, self.code)
        self.scan_at = time.monotonic() + min(50 * (time.monotonic() - began), 30)
        if found == self.entry["checkpoint"]:
            return False
        self.entry["checkpoint"] = found
        self.record["checkpoint"] = place_and_step(found)
        self._event("checkpoint", **(place_and_step(found) or {}))
        return True

    def _on_line(self, line):
        """Take up what the job itself reports: lines of the form `@runner {"progress": {...}}`."""
        if line.startswith(MARK.encode()):
            with contextlib.suppress(ValueError, AttributeError):
                self.progress.take(json.loads(line[len(MARK) :].decode()).get("progress"))

    def _event(self, event, **values):
        self.log.own(MARK + json.dumps(dict(values, event=event)))

    def _close(self, code):
        self._look(scan=True)
        how = self._how(code)
        end = "interrupted" if self.stopped else "succeeded" if code == 0 else "failed"
        last_line = self.log.last_line if code != 0 and not self.stopped else ""
        self.entry.update(ended=time.time(), code=code, how=how, end=end, last_line=last_line)
        self._event("ended", code=code, how=how)
        self.log.close()

    def _how(self, code):
        """Return in words how the child ended; where memory was short, the words are the kernel's count and the limit."""
        short = self._memory_words()
        if code == -signal.SIGKILL and not self.stopped:
            if short:
                return "was killed for want of memory (%s)" % short
            return "was killed by signal 9 (SIGKILL), as the kernel does when memory is short"
        how = _ending(code)
        if short and code != 0 and self.launcher.backend != "native":  # a container has only processes of this job
            how += ", after a process of it was killed for want of memory (%s)" % short
        return how

    def _memory_words(self):
        """Return the limit in words where the kernel has killed for want of memory in this attempt, else None."""
        kills, limit = memory()
        if None in (kills, self.killed_before) or kills <= self.killed_before:
            return None
        self.entry["oom"] = True
        return "OOM; the limit is %s" % size(limit) if limit else "OOM; the machine had no more"


def _ending(code):
    return "was killed by signal %d (%s)" % (-code, _signal_name(-code)) if code < 0 else "ended with %d" % code


def _signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _tie_to_parent(parent):
    """In the child: a process group of its own, and death with the launcher where the system can do that."""
    os.setpgid(0, 0)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)
    else:
        _watch_parent(parent)


def _watch_parent(parent):
    """Where there is no parent-death signal: a small process that waits for the launcher's end and kills the group."""
    group = os.getpid()
    if os.fork() == 0:
        os.setpgid(0, 0)  # outside the group, so that the group's end does not end the watch too early
        os.closerange(0, 256)
        while os.getppid() == group or _alive(group):
            if not _alive(parent):
                with contextlib.suppress(OSError):
                    os.killpg(group, signal.SIGKILL)
                break
            time.sleep(0.5)
        os._exit(0)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def main(argv):
    handover = os.path.dirname(os.path.abspath(__file__))
    volume = os.path.abspath(argv[1])
    data = argv[2] if len(argv) > 2 else ""
    try:
        return Launcher(handover, volume, data).run()
    except Refusal as refusal:
        sys.stderr.write("launch.py: %s\n" % refusal)
        return refusal.code
    except OSError as error:  # before or between attempts: full, or gone
        where = " (%s)" % error.filename if error.filename else ""
        sys.stderr.write("launch.py: the volume %s cannot be used: %s%s\n" % (volume, error.strerror or error, where))
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv))
