"""Runs jobs in a container of a Docker engine on this machine: launch.py as in all backends, under an init, without root.

The volume is mounted as a whole; what happens is read from it, as natively. The container is found again by its labels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from runner import datasets, engines, handovers, images, packages, run_directory, runs, specs
from runner.engines import Engine
from runner.errors import EngineFailed, RunnerError, UsageError
from runner.runs import Found
from runner.specs import Run

# Where things are in a container. The volume is at its own path wherever that hides nothing of the image's.
VOLUME, HANDOVER, DATA, CA = "/volume", "/run/runner/handover", "/run/runner/data", "/run/runner/ca.pem"
IMAGE = ("bin", "boot", "dev", "etc", "lib", "lib64", "opt/environment", "proc", "run", "sbin", "sys", "usr")
NOBODY = 10001  # the user of a container where root asks, and the volume is root's
GRACE = 120  # seconds that the engine waits after SIGTERM; launch.py uses 110 of them
SHARED_MEMORY = 1 << 30  # bytes of /dev/shm, of which only what is used counts; Docker's own 64 MB break data loaders
LOG = {"max-size": "10m", "max-file": "3"}  # of Docker's copy; the whole log is on the volume
# An image of the user's own may call it python3 only, or have none.
START = """python=$(command -v python || command -v python3) && exec "$python" -E "$@"
echo "launch.py: the image has no python. It needs one, 3.6 or newer, and TensorFlow." >&2; exit 78"""
PASSED_ON = ("RUNNER_GRACE", "RUNNER_STALE")  # for launch.py
PROXIES = (*packages.PROXY_VARIABLES, "NO_PROXY", "no_proxy")
CA_NAMES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
NO_TOOLKIT = (
    "GPUs cannot be given to containers: this engine knows no {what}. Install the NVIDIA Container Toolkit "
    "(https://docs.nvidia.com/datacenter/cloud-native/container-toolkit), then: {then}"
)
# What the engine says when it cannot create or start a container, and what that means.
_MEANINGS = (
    (r"could not select device driver", NO_TOOLKIT.format(
        what="device driver for GPUs", then="sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker")),
    (r"unresolvable CDI devices?(?P<what>.*)", NO_TOOLKIT.format(
        what="CDI device{what}", then="sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")),
    (r"nvidia-container-cli: (?P<what>.*)", "the NVIDIA Container Toolkit failed: {what}. Check the driver with: nvidia-smi"),
    (r"no space left on device", "the engine's disk is full. Free some space (runner rm --unused, docker system prune)."),
    (r"executable file not found|no such file or directory: unknown", "the image has no /bin/sh, so nothing can be run in it."),
)  # fmt: skip


@dataclass(kw_only=True)
class Started:
    """A container that this process has created."""

    engine: Engine
    container: str  # its id
    volume: Path
    directory: Path
    handover: Path
    _looked: float = field(default=0.0, init=False)
    _pause: float = field(default=0.02, init=False)  # to the next look: short runs end soon, long ones need few
    _silent_since: float | None = field(default=None, init=False)
    _end: tuple[int, str] | None = field(default=None, init=False)

    def refused(self) -> tuple[int, str] | None:
        if self._end is None and time.monotonic() - self._looked >= self._pause:
            self._end = self._look()
            self._looked = time.monotonic()
            self._pause = min(1.05 * self._pause, 0.25)
        return self._end

    def _look(self) -> tuple[int, str] | None:
        """Ask the engine whether the container has ended; where it does not answer, the run's lock tells."""
        import docker

        try:
            state = self.engine.client.api.inspect_container(self.container)["State"]
        except docker.errors.NotFound:
            return -9, "its container was removed"
        except Exception:  # the engine is away, or just starting
            return self._without_engine()
        self._silent_since = None
        if state["Status"] not in ("exited", "dead"):
            return None
        code = int(state["ExitCode"])
        return (-9 if code in (137, 255) else code), self._last_words(code)

    def _without_engine(self) -> tuple[int, str] | None:
        if run_directory.going(str(self.directory)):
            self._silent_since = None
            return None
        self._silent_since = self._silent_since or time.monotonic()
        if time.monotonic() - self._silent_since < 3:
            return None
        return -9, f"the Docker engine at {self.engine.address} does not answer any more"

    def _last_words(self, code: int) -> str:
        try:
            said = self.engine.client.api.logs(self.container, stdout=False, stderr=True, tail=1).decode(
                errors="replace"
            )
        except Exception:  # it went in this moment
            said = ""
        words = said.strip().removeprefix("launch.py: ").replace(f" {VOLUME}", f" {self.volume}")
        return words or f"the launcher ended with {code}"

    def kill(self) -> None:
        _signal(self.engine, self.container, "SIGINT")

    def clean(self) -> None:
        if self.refused() is not None:
            with contextlib.suppress(EngineFailed, OSError):  # the engine is away: the next attempt makes way
                discard(self.engine, self.container)
            (self.handover / "project.tar").unlink(missing_ok=True)
            _remove_empty(self.directory)


@dataclass(kw_only=True)
class Elsewhere:
    """A submission that came second: another one, of the same moment, has the container's name, and is about to begin."""

    directory: Path
    deadline: float = field(default_factory=lambda: time.monotonic() + 5.0)

    def refused(self) -> tuple[int, str] | None:
        if not run_directory.going(str(self.directory)) and time.monotonic() < self.deadline:
            return None
        return run_directory.TAKEN, "this run was started elsewhere in the same moment"

    def kill(self) -> None:
        """Leave the other one's container alone."""

    def clean(self) -> None:
        """Leave nothing: nothing was made."""


def render(run: Run) -> str:
    """Return the container that `submit` would create, and the Dockerfile of its image."""
    run = replace(run, request={**run.request, "submission": "<new>"})
    data = {name: given or Path("/<data>", name) for name, (_, given) in run.data.items()}
    try:
        engine = engines.connect(engines.QUICK)
        known = ""
    except EngineFailed as error:
        engine = Engine(
            client=None,
            address="",
            version="",
            podman=False,
            rootless=False,
            remapped=False,
            cdi=False,
            architecture="",
        )
        known = f"# as for a usual engine, for none was asked: {error}\n"
    image = _reference(run)
    options = container(run, engine, image, Path("/<handover>"), data, _user(engine, run))
    lines = [f"{known}# container", yaml.safe_dump(options, sort_keys=False).rstrip()]
    lines += [f"# on standard input: {', '.join(sorted(run.secrets)) or 'no secrets'}, and the proxies"]
    if not run.request["image"]:
        lines += [f"# {image}, from", images.dockerfile().rstrip()]
    return "\n".join([*lines, "# request.json", json.dumps(run.request, indent=1)])


def submit(run: Run) -> Started | Elsewhere:
    """Make the image, hand over the request, and start the container."""
    engine = engines.connect()
    _refuse_gpus_of_podman(engine, run)
    _refuse_gpus_that_are_not_there(engine, run)
    user = _user(engine, run)
    with _made_volume(run.volume):
        _refuse_blind(engine, run.volume)
        _refuse_owner(run, user)
        _refuse_shared_folder(run, user)
    _refuse_strangers(engine, run)
    image = _image(engine, run)
    data = {name: datasets.ensure(dataset, given) if dataset else given for name, (dataset, given) in run.data.items()}
    run = replace(run, request={**run.request, "container": image, **_identity(engine, run, image)})
    handover = handovers.path(run)
    handovers.write(run, handover, user if os.getuid() == 0 and user[0] != 0 else None)
    try:
        if not _make_way(engine, run):
            handovers.discard(handover)
            return Elsewhere(directory=run.directory)
        _hand_over_volume(run, user)
        places = {name: path for name, path in data.items() if path}
        return _start(engine, run, container(run, engine, image, handover, places, user), handover)
    except BaseException:
        handovers.discard(handover)
        _remove_empty(run.directory)
        raise


def _remove_empty(directory: Path) -> None:
    """Remove a run's directory that was made for a start that failed; one with anything in it stays."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def container(
    run: Run, engine: Engine, image: str, handover: Path, data: Mapping[str, Path], user: tuple[int, int]
) -> dict[str, Any]:
    """Return the container as the engine's API takes it (POST /containers/create). Pure: what `render` shows is sent."""
    volume = _place(run.volume, bool(run.request["image"]))
    mounts = [_mount(run.volume, volume, writable=True), _mount(handover, HANDOVER)]
    mounts += [_mount(path, f"{DATA}/{name}") for name, path in sorted(data.items())]
    bundle = packages.ca_bundle()
    mounts += [_mount(bundle, CA)] if bundle else []
    request = run.request
    variables = {
        "HOME": "/tmp", "USER": "runner", "LOGNAME": "runner",  # there is no such user in the image
        "RUNNER_STDIN": "1",
        **(dict.fromkeys(CA_NAMES, CA) if bundle else {}),
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        **run.variables,
    }  # fmt: skip
    groups = [str(group) for group in os.getgroups()] if user[0] == os.getuid() != 0 else []
    return {
        "Image": image,
        "Entrypoint": ["/bin/sh", "-c", START, "launch.py"],
        "Cmd": [f"{HANDOVER}/launch.py", volume, DATA if data else ""],
        "Env": [f"{name}={value}" for name, value in sorted(variables.items())],
        "User": f"{user[0]}:{user[1]}",
        "Labels": _labels(run.name, run.volume, request["submission"]),
        "Hostname": _hostname(),
        "WorkingDir": "/",
        "StopSignal": "SIGTERM",
        "StopTimeout": GRACE,
        "OpenStdin": True, "StdinOnce": True,
        "HostConfig": {
            "Mounts": mounts,
            "Tmpfs": {"/tmp": "rw,exec,nosuid,nodev,mode=1777"},
            "Init": True,  # reaps what the job leaves, and passes signals on
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "GroupAdd": groups,
            "ShmSize": SHARED_MEMORY,
            "LogConfig": {"Type": "json-file", "Config": LOG},
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},  # launch.py decides what is worth another attempt
            **({"UsernsMode": "host"} if engine.remapped else {}),
            **_limits(request["resources"]),
            **_devices(engine, int(request["resources"]["gpus"])),
        },
    }  # fmt: skip


def _place(volume: Path, own_image: bool) -> str:
    """Return where the volume is in the container: a path that a job prints or stores should hold outside, too.

    It may hide nothing of the image; and root's home is open in our images only.
    """
    path = f"{volume}/"
    hides = path == "/" or any(f"/{part}/".startswith(path) or path.startswith(f"/{part}/") for part in IMAGE)
    return VOLUME if hides or (own_image and path.startswith("/root/")) else str(volume)


def _mount(source: Path, target: str, writable: bool = False) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": os.path.realpath(source),
        "Target": target,
        **({} if writable else {"ReadOnly": True}),
    }


def _labels(name: str, volume: Path, submission: str) -> dict[str, str]:
    return {
        "runner.run": name, "runner.volume": os.path.realpath(volume), "runner.submission": submission,
        "runner.user": str(os.getuid()),
    }  # fmt: skip


def _hostname() -> str:
    """Return this machine's name, which the run's lock tells; an engine takes only what can be one."""
    return re.sub(r"[^A-Za-z0-9-]", "-", platform.node().split(".")[0])[:63].strip("-") or "runner"


def _limits(resources: Mapping[str, Any]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if resources.get("cpus"):
        limits["NanoCpus"] = int(resources["cpus"]) * 10**9
    if resources.get("memory"):
        # Swap as well: a training that swaps for days is worse than one that says why it ended.
        limits["Memory"] = limits["MemorySwap"] = specs.memory_bytes(resources["memory"], "memory")
    return limits


def _devices(engine: Engine, count: int) -> dict[str, Any]:
    """Return the request for GPUs; the caller's CUDA_VISIBLE_DEVICES limits the choice."""
    if not count:
        return {}
    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    chosen = visible[:count] or [str(number) for number in range(count)]
    if engine.cdi:
        return {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={one}" for one in chosen]}]}
    which: dict[str, Any] = {"DeviceIDs": chosen} if visible else {"Count": count}
    return {"DeviceRequests": [{**which, "Capabilities": [["gpu"]]}]}


# Before anything is created


def _refuse_gpus_of_podman(engine: Engine, run: Run) -> None:
    if engine.podman and run.request["resources"]["gpus"]:
        raise EngineFailed(
            f"--gpus {run.request['resources']['gpus']}: the engine at {engine.address} is Podman, whose Docker API takes "
            "requests for GPUs and gives none (containers/podman#22645). Use a Docker engine, or --on native."
        )


def _refuse_gpus_that_are_not_there(engine: Engine, run: Run) -> None:
    """Ask the engine for the GPUs with an image that has nothing in it, before one of gigabytes is made.

    The engine looks for the devices first, and then for the program, which is not there.
    """
    devices = _devices(engine, int(run.request["resources"]["gpus"]))
    if not devices:
        return
    api, name = engine.client.api, f"runner-probe:{run.request['submission']}"
    try:
        api.import_image_from_data(bytes(1024), repository=name)  # an archive's end, and nothing before it
        made = api.create_container_from_config({"Image": name, "Cmd": ["/nothing"], "HostConfig": devices})["Id"]
        try:
            api.start(made)
        finally:
            discard(engine, made)
    except Exception as error:
        if any(re.search(pattern, engines.explain(error)) for pattern, _ in _MEANINGS[:2]):
            raise _failed(engine, error) from error
    finally:
        with contextlib.suppress(Exception):
            api.remove_image(name, force=True)


def _user(engine: Engine, run: Run) -> tuple[int, int]:
    """Return whose the container's processes and files are: the caller, and never root of this machine."""
    if run.user:
        return run.user
    if engine.rootless:
        return 0, 0  # this user, seen from outside
    if os.getuid():
        return os.getuid(), os.getgid()
    with contextlib.suppress(OSError):
        found = run.volume.stat()
        if found.st_uid:
            return found.st_uid, found.st_gid
    return NOBODY, NOBODY


@contextlib.contextmanager
def _made_volume(volume: Path) -> Iterator[None]:
    """Make the default volume, and take it away again where the run is refused."""
    made = not volume.exists()
    try:
        volume.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UsageError(
            f"the volume {volume} cannot be written: {error.strerror}. Give another with --volume."
        ) from error
    except RunnerError:
        if made:
            volume.rmdir()
        raise


def _refuse_blind(engine: Engine, volume: Path) -> None:
    """Refuse an engine that does not see this machine's files.

    It checks the source of a mount before it looks for the image: so an image that there is not tells, and leaves nothing.
    """
    import docker

    with tempfile.TemporaryDirectory(prefix=".runner-probe-", dir=volume) as probe:
        try:
            engine.client.api.create_container_from_config(
                {
                    "Image": f"runner-probe:{Path(probe).name[14:].lower()}",
                    "HostConfig": {"Mounts": [_mount(Path(probe), "/probe")]},
                }
            )
        except docker.errors.ImageNotFound:
            return
        except Exception as error:
            said = engines.explain(error)
            if "does not exist" not in said and "not shared" not in said:
                raise EngineFailed(f"the Docker engine at {engine.address} refused: {said}.") from error
    raise EngineFailed(
        f"the Docker engine at {engine.address} does not see the files of this machine: {volume} is not there for it. "
        "It runs on another machine, or shares other folders only (Docker Desktop: Settings, File sharing). "
        "Use this machine's engine, or --on native."
    )


def _refuse_owner(run: Run, user: tuple[int, int]) -> None:
    """Refuse what the container's user could not write, with the command that mends it. Root mends it by itself."""
    if os.getuid() == 0:
        return
    if run.user and run.user[0] != os.getuid():
        raise UsageError(f"--user {run.user[0]}: only root can run a job as another user. Leave it out: it is yours.")
    try:
        owner = run.directory.stat().st_uid
    except FileNotFoundError:
        return
    if owner != os.getuid():
        raise UsageError(
            f"{run.directory} belongs to uid {owner}, so a container of yours could not write there. "
            f"Take it over with: sudo chown -R {os.getuid()}:{os.getgid()} {run.directory}"
        )


def _is_roots(volume: Path) -> bool:
    """Return whether a volume is root's alone, so that a container's user could not make or rename folders there."""
    state = volume.stat()
    return state.st_uid == 0 and not state.st_mode & 0o002


def _refuse_shared_folder(run: Run, user: tuple[int, int]) -> None:
    """Refuse to give root's folder away where other things than runs are in it."""
    if os.getuid() != 0 or user[0] == 0 or not _is_roots(run.volume):
        return
    others = [path for path in run.volume.iterdir() if not path.name.startswith(".") and not _is_runs(path)]
    if others or run.volume.parent == run.volume:
        what = f" and holds {others[0].name}" if others else ""
        raise UsageError(
            f"the volume {run.volume} belongs to root{what}; no container runs as root, and the whole folder would have to "
            f"be given to uid {user[0]}. Give a folder for runs alone: mkdir {run.volume / 'runs'}, and --volume."
        )


def _is_runs(path: Path) -> bool:
    return path.is_dir() and ((path / "request.json").exists() or not any(path.iterdir()))


def _hand_over_volume(run: Run, user: tuple[int, int]) -> None:
    """Where root asks: give the run's directory, and a volume that is root's own, to the container's user."""
    if os.getuid() != 0 or user[0] == 0:
        return
    try:
        run.directory.mkdir(exist_ok=True)
        if _is_roots(run.volume):
            os.chown(run.volume, *user)
        for path in (run.directory, *run.directory.rglob("*")):
            if path.lstat().st_uid != user[0]:
                os.lchown(path, *user)
    except OSError as error:
        raise RunnerError(f"{run.directory} cannot be given to uid {user[0]}: {error.strerror}.") from error


# The container


def name_of(name: str, volume: Path) -> str:
    """Return the container's name: the same run on two volumes is two."""
    return f"{name}-{hashlib.sha256(os.path.realpath(volume).encode()).hexdigest()[:6]}"


def _inspect(engine: Engine, run: Run) -> dict[str, Any] | None:
    import docker

    try:
        found: dict[str, Any] = engine.client.api.inspect_container(name_of(run.name, run.volume))
    except docker.errors.NotFound:
        return None
    return found


def _refuse_strangers(engine: Engine, run: Run) -> None:
    """Refuse to touch a container of the run's name that is somebody else's."""
    found = _inspect(engine, run)
    ours = {"runner.run": run.name, "runner.volume": os.path.realpath(run.volume)}
    if found and not ours.items() <= (found["Config"].get("Labels") or {}).items():
        name = name_of(run.name, run.volume)
        raise UsageError(
            f"there is a container {name} that is none of the runner's. Rename it (docker rename {name} ...) or remove it "
            f"(docker rm -f {name}), or give this run another --name."
        )


def _make_way(engine: Engine, run: Run, patience: float = 5.0) -> bool:
    """Remove the ended container of an earlier attempt; return False where another one is just being started."""
    deadline = time.monotonic() + patience
    while found := _inspect(engine, run):
        status = found["State"]["Status"]
        if status in ("exited", "dead") or (status == "created" and time.monotonic() > deadline):
            discard(engine, found["Id"])
            return True
        if run_directory.going(str(run.directory)) or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _reference(run: Run) -> str:
    if run.request["image"]:
        return str(run.request["image"])
    return images.reference(run.request["environment"], run.lock, _python(run), run.base_image)


def _python(run: Run) -> str:
    """Return the Python of the image: the one of the first attempt where the row has it, for exactness."""
    return run.python if run.python in run.pythons and run.python else run.pythons[0]


def _image(engine: Engine, run: Run) -> str:
    """Return the image's name; it is made, or pulled, where it is not there."""
    if run.request["image"]:
        images.pull(engine, run.request["image"])
        return str(run.request["image"])
    return images.ensure(
        engine, run.request["environment"], run.lock, _python(run), run.base_image, registry=run.registry
    )


def _identity(engine: Engine, run: Run, image: str) -> dict[str, str]:
    """Return what tells the packages of a user's own image: its id stands for the lock."""
    if not run.request["image"]:
        return {}
    return {"lock": str(engine.client.api.inspect_image(image)["Id"])}


def _start(engine: Engine, run: Run, options: dict[str, Any], handover: Path) -> Started | Elsewhere:
    import docker

    api = engine.client.api
    name = name_of(run.name, run.volume)
    try:
        made = api.create_container_from_config(options, name)["Id"]
    except docker.errors.APIError as error:
        if error.status_code == 409:
            handovers.discard(handover)
            return Elsewhere(directory=run.directory)
        raise _failed(engine, error) from error
    try:
        with contextlib.closing(_stdin(api, made)) as stream:
            api.start(made)
            stream.sendall(json.dumps({**run.secrets, **_proxies()}).encode() + b"\n")
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_WR)
    except BaseException as error:
        discard(engine, made)
        if isinstance(error, (docker.errors.APIError, OSError)):
            raise _failed(engine, error) from error
        raise
    return Started(engine=engine, container=made, volume=run.volume, directory=run.directory, handover=handover)


def _stdin(api: Any, container: str) -> socket.socket:
    stream = api.attach_socket(container, params={"stdin": 1, "stream": 1})
    found: socket.socket = getattr(stream, "_sock", stream)  # the SDK wraps plain sockets for reading alone
    return found


def _proxies() -> dict[str, str]:
    return {name: os.environ[name] for name in PROXIES if os.environ.get(name)}


def _failed(engine: Engine, error: BaseException) -> EngineFailed:
    said = engines.explain(error)
    for pattern, sentence in _MEANINGS:
        match = re.search(pattern, said)
        if match:
            return EngineFailed(sentence.format(**match.groupdict()))
    return EngineFailed(f"the Docker engine at {engine.address} could not start the container: {said}.")


def send(run: Found, number: int) -> None:
    """Signal the container's launcher, which passes it on to the job."""
    import signal

    engine = engines.connect()
    found = _of(engine, run)
    if not found:
        raise UsageError(
            f"{run.name} has no container on the Docker engine at {engine.address}: it runs on another engine or machine. "
            f"Stop it there with: {runs.command('stop', run)}"
        )
    for one in found:
        _signal(engine, one, signal.Signals(number).name)


def _signal(engine: Engine, container: str, name: str) -> None:
    import docker

    try:
        engine.client.api.kill(container, name)
    except docker.errors.APIError as error:
        if error.status_code not in (404, 409):  # it has just ended
            raise EngineFailed(f"the container could not be signalled: {engines.explain(error)}.") from error


def remove(run: Found) -> None:
    """Remove the run's containers and hand-overs."""
    engine = engines.connect()
    for one in _of(engine, run, ended=True):
        discard(engine, one)
    handovers.remove(run)


def discard(engine: Engine, container: str) -> None:
    """Remove a container, whatever it does."""
    import docker

    try:
        engine.client.api.remove_container(container, v=True, force=True)
    except docker.errors.APIError as error:
        if error.status_code not in (404, 409):  # gone, or going
            raise EngineFailed(f"the container could not be removed: {engines.explain(error)}.") from error


def _of(engine: Engine, run: Found, ended: bool = False) -> list[str]:
    """Return the containers of a run, by their labels."""
    labels = [f"runner.run={run.name}", f"runner.volume={os.path.realpath(run.directory.parent)}"]
    return [str(one["Id"]) for one in engine.client.api.containers(all=ended, filters={"label": labels})]


def volumes() -> list[Path]:
    """Return the volumes of all containers of the runner; none where no engine is set up."""
    if not engines.configured():
        return []
    found = engines.connect(engines.QUICK).client.api.containers(all=True, filters={"label": "runner.volume"})
    return list(dict.fromkeys(Path(one["Labels"]["runner.volume"]) for one in found))


@dataclass(frozen=True)
class Ended:
    """A container of the runner's that has ended, and when."""

    id: str
    name: str
    used: float


def ended(engine: Engine) -> list[Ended]:
    """Return this user's containers that have ended; their runs do not need them."""
    ours = {"label": f"runner.user={os.getuid()}", "status": ["exited", "dead"]}
    found = engine.client.api.containers(all=True, filters=ours)
    return [Ended(str(one["Id"]), str(one["Names"][0]).lstrip("/"), float(one["Created"])) for one in found]


def call(run: Found, script: Path, files: Sequence[Path]) -> str:
    """Run a script in a container of the run's own image, without a network, and return what it prints."""
    engine = engines.connect()
    state = run.directory.stat()
    options = {
        "Image": run.request["container"], "Entrypoint": ["python", "/script.py"], "Cmd": [str(path) for path in files],
        "Env": ["HOME=/tmp", "TF_CPP_MIN_LOG_LEVEL=3", "CUDA_VISIBLE_DEVICES=-1"], "NetworkDisabled": True,
        "User": "0:0" if engine.rootless else f"{state.st_uid}:{state.st_gid}",
        "HostConfig": {
            "Mounts": [_mount(script, "/script.py"), _mount(run.directory, str(run.directory))],
            "Tmpfs": {"/tmp": "mode=1777"}, "ReadonlyRootfs": True, "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"], "Init": True,
        },
    }  # fmt: skip
    made = engine.client.api.create_container_from_config(options)["Id"]
    try:
        engine.client.api.start(made)
        code = engine.client.api.wait(made)["StatusCode"]
        output: str = engine.client.api.logs(made, stdout=True, stderr=code != 0).decode(errors="replace")
    finally:
        discard(engine, made)
    if code:
        raise RunnerError(f"{script.name} ended with {code} in {run.request['container']}: {output.strip()[-500:]}")
    return output
