"""Runs jobs in a container of a Docker engine on this machine: launch.py as in all backends, under an init, without root.

What happens is read from the volume, as natively. The container is found again by its labels.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner import (
    containers,
    datasets,
    engines,
    handovers,
    images,
    ownership,
    packages,
    probes,
    process,
    run_directory,
    runs,
)
from runner.engines import Engine
from runner.errors import EngineFailed, RunnerError, UsageError
from runner.runs import Found
from runner.specs import Run

PROXIES = (*packages.PROXY_VARIABLES, "NO_PROXY", "no_proxy")
UNKNOWN = Engine(
    client=None, api=None, address="", version="", cpus=0, architecture="", podman=False, rootless=False, remapped=False, cdi=False
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
            found = self.engine.api.inspect_container(self.container)
        except docker.errors.NotFound:
            return -9, "its container was removed"
        except Exception:  # the engine is away, or just starting
            return self._without_engine()
        self._silent_since, state = None, found["State"]
        if state["Status"] not in ("exited", "dead"):
            return None
        code = int(state["ExitCode"])
        if state.get("OOMKilled") and code == 137:
            limit = found["HostConfig"]["Memory"] >> 20
            said = f"its memory limit of {limit} MiB is too small even for the start (OOM). Give it more with --memory"
            return -9, said
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
            said = self.engine.api.logs(self.container, stdout=False, stderr=True, tail=1).decode(errors="replace")
        except Exception:  # it went in this moment
            said = ""
        words = said.strip().removeprefix("launch.py: ").replace(f" {containers.VOLUME}", f" {self.volume}")
        return words or f"the launcher ended with {code}"

    def kill(self) -> None:
        _signal(self.engine, self.container, "SIGINT")

    def clean(self) -> None:
        deadline = time.monotonic() + 3  # the launcher has written down the end and is about to go
        while self.refused() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.refused() is not None:
            with contextlib.suppress(EngineFailed):  # it is away: the next attempt makes way
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
    import yaml

    run = replace(run, request={**run.request, "submission": "<new>"})
    data = {name: given or Path("/<data>", name) for name, (_, given) in run.data.items()}
    engine, known = UNKNOWN, ""
    try:
        engine = engines.connect(engines.QUICK)
    except EngineFailed as error:
        known = f"# as for a usual engine, for none was asked: {error}\n"
    image = _reference(run)
    options = containers.of_run(run, engine, image, Path("/<handover>"), data, ownership.user_of(engine, run))
    lines = [f"{known}# container", yaml.safe_dump(options, sort_keys=False).rstrip()]
    lines += [f"# on standard input: {', '.join(sorted(run.secrets)) or 'no secrets'}, and the proxies"]
    if not run.request["image"]:
        lines.append(images.described(run.request["environment"], run.lock, _python(run), run.base_image))
    return "\n".join([*lines, "# request.json", json.dumps(run.request, indent=1)])


def submit(run: Run) -> Started | Elsewhere:
    """Make the image, hand over the request, and start the container."""
    engine = engines.connect()
    probes.refuse_without_gpus(engine, run)
    user = ownership.user_of(engine, run)
    with _made_volume(run.volume):
        probes.refuse_blind(engine, run.volume, handovers.root())
        ownership.refuse(run, user)
        ownership.refuse_unreadable(run, user)
        _refuse_strangers(engine, run)
        image = _image(engine, run)
    data = {name: datasets.ensure(dataset, given) if dataset else given for name, (dataset, given) in run.data.items()}
    run = replace(run, request={**run.request, "container": image, **_identity(engine, run, image)})
    handover = handovers.path(run)
    try:
        handovers.write(run, handover, user if os.getuid() == 0 and user[0] != 0 else None)
        if not _make_way(engine, run):
            handovers.discard(handover)
            return Elsewhere(directory=run.directory)
        ownership.hand_over(run, user)
        places = {name: path for name, path in data.items() if path}
        return _start(engine, run, containers.of_run(run, engine, image, handover, places, user), handover)
    except BaseException:
        _forget(engine, run, handover)
        raise


def _forget(engine: Engine, run: Run, handover: Path) -> None:
    """Remove what a start that failed, or was interrupted, has made."""
    with contextlib.suppress(EngineFailed):  # it has gone: `rm --unused` finds what it kept
        for one in _listed(engine, {"runner.submission": run.request["submission"]}, ended=True):
            discard(engine, one)
    handovers.discard(handover)
    _remove_empty(run.directory)


def _remove_empty(directory: Path) -> None:
    """Remove a run's directory that was made for a start that failed; one with anything in it stays."""
    with contextlib.suppress(OSError):
        directory.rmdir()


@contextlib.contextmanager
def _made_volume(volume: Path) -> Iterator[None]:
    """Make the default volume, and take it away again where the run is refused."""
    made = not volume.exists()
    try:
        volume.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the volume {volume} cannot be made: {error.strerror}. Give another with --volume."
        ) from error
    try:
        yield
    except BaseException:
        if made:
            _remove_empty(volume)
        raise


def _inspect(engine: Engine, run: Run) -> dict[str, Any] | None:
    import docker

    try:
        found: dict[str, Any] = engine.api.inspect_container(containers.name_of(run.name, run.volume))
    except docker.errors.NotFound:
        return None
    return found


def _refuse_strangers(engine: Engine, run: Run) -> None:
    """Refuse to touch a container of the run's name that is somebody else's."""
    found = _inspect(engine, run)
    ours = containers.owned(run.name, run.volume)
    if found and not ours.items() <= (found["Config"].get("Labels") or {}).items():
        name = containers.name_of(run.name, run.volume)
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
    return {"lock": str(engine.api.inspect_image(image)["Id"])}


def _start(engine: Engine, run: Run, options: dict[str, Any], handover: Path) -> Started | Elsewhere:
    import docker

    api = engine.api
    name = containers.name_of(run.name, run.volume)
    try:
        with process.undisturbed():  # else the engine makes it when nobody looks for it any more
            made = api.create_container_from_config(options, name)["Id"]
    except docker.errors.APIError as error:
        if error.status_code == 409:
            handovers.discard(handover)
            return Elsewhere(directory=run.directory)
        raise probes.failed(engine, error) from error
    try:
        with contextlib.closing(_stdin(api, made)) as stream:
            api.start(made)
            stream.sendall(json.dumps({**run.secrets, **_proxies()}).encode() + b"\n")
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_WR)
    except (docker.errors.APIError, OSError) as error:
        raise probes.failed(engine, error) from error
    return Started(engine=engine, container=made, volume=run.volume, directory=run.directory, handover=handover)


def _stdin(api: Any, container: str) -> socket.socket:
    stream = api.attach_socket(container, params={"stdin": 1, "stream": 1})
    found: socket.socket = getattr(stream, "_sock", stream)  # the SDK wraps plain sockets for reading alone
    return found


def _proxies() -> dict[str, str]:
    return {name: os.environ[name] for name in PROXIES if os.environ.get(name)}


def send(run: Found, number: int) -> None:
    """Signal the container's launcher, which passes it on to the job."""
    engine = engines.connect()
    found = _listed(engine, containers.owned(run.name, run.directory.parent))
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
        engine.api.kill(container, name)
    except docker.errors.APIError as error:
        if error.status_code not in (404, 409):  # it has just ended
            raise EngineFailed(f"the container could not be signalled: {engines.explain(error)}.") from error


def remove(run: Found) -> None:
    """Remove the run's hand-overs and containers."""
    handovers.remove(run)
    _discard_all(engines.connect(), run)


def tidy(run: Found) -> None:
    """Remove what the container of a run that has ended leaves; an engine that is away keeps it for the next attempt."""
    handovers.tidy(run)
    with contextlib.suppress(EngineFailed):
        _discard_all(engines.connect(), run)


def _discard_all(engine: Engine, run: Found) -> None:
    for one in _listed(engine, containers.owned(run.name, run.directory.parent), ended=True):
        discard(engine, one)


def discard(engine: Engine, container: str) -> None:
    """Remove a container, whatever it does."""
    import docker

    try:
        engine.api.remove_container(container, v=True, force=True)
    except docker.errors.APIError as error:
        if error.status_code not in (404, 409):  # gone, or going
            raise EngineFailed(f"the container could not be removed: {engines.explain(error)}.") from error


def _listed(engine: Engine, labels: dict[str, str], ended: bool = False) -> list[str]:
    """Return the containers with these labels."""
    wanted = [f"{name}={value}" for name, value in labels.items()]
    return [str(one["Id"]) for one in engine.api.containers(all=ended, filters={"label": wanted})]


def volumes() -> list[Path]:
    """Return the volumes of all containers of the runner; none where no engine is set up."""
    if not engines.configured():
        return []
    found = engines.connect(engines.QUICK).api.containers(all=True, filters={"label": "runner.volume"})
    return list(dict.fromkeys(Path(one["Labels"]["runner.volume"]) for one in found))


@dataclass(frozen=True)
class Ended:
    """A container of the runner's that has ended, and when."""

    id: str
    name: str
    used: float


def ended(engine: Engine) -> list[Ended]:
    """Return this user's containers that have ended, or were never started; their runs do not need them."""
    ours = {"label": f"runner.user={os.getuid()}", "status": ["exited", "dead", "created"]}
    found = engine.api.containers(all=True, filters=ours)
    # One that was created in the last minute is just being started.
    old = [one for one in found if one["State"] != "created" or time.time() - one["Created"] > 60]
    return [Ended(str(one["Id"]), str(one["Names"][0]).lstrip("/"), float(one["Created"])) for one in old]


def call(run: Found, script: Path, files: Sequence[Path]) -> str:
    """Run a script in a container of the run's own image, without a network, and return what it prints."""
    engine = engines.connect()
    state = run.directory.stat()
    user = "0:0" if engine.rootless else f"{state.st_uid}:{state.st_gid}"
    image, own = run.request["container"], bool(run.request["image"])
    options = containers.of_script(image, own, script, list(files), run.directory, user)
    made = engine.api.create_container_from_config(options)["Id"]
    try:
        engine.api.start(made)
        code = engine.api.wait(made)["StatusCode"]
        output: str = engine.api.logs(made, stdout=True, stderr=code != 0).decode(errors="replace")
    finally:
        discard(engine, made)
    if code:
        raise RunnerError(f"{script.name} ended with {code} in {run.request['container']}: {output.strip()[-500:]}")
    return output
