"""Finds the Docker engine that DOCKER_HOST, DOCKER_CONTEXT or the current context names, and what it can do."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import EngineFailed

OLDEST = (20, 10)  # the first with all that a run's container asks for
SOCKET = Path("/var/run/docker.sock")
PATIENCE = 60  # seconds for an answer
QUICK = 2  # where several backends are asked for a listing
_WITHOUT = "Without Docker: --on native."
_NO_SDK = "The Docker part of the runner is not installed. Install it with: pip install 'tensorflow-runner[docker]'"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine that answered. `client` is a docker.DockerClient; `api` is its API, with sentences for failures."""

    client: Any
    address: str
    api: Any
    cpus: int  # 0: not known
    version: str
    podman: bool
    rootless: bool  # uid 0 in a container is the user
    remapped: bool  # uids in containers are others outside, unless a container asks for the host's
    cdi: bool
    architecture: str


class _Api:
    """The engine's API. Where the engine is gone, a call ends in a sentence; what the engine itself answers passes through."""

    def __init__(self, api: Any, address: str) -> None:
        self._api, self._address = api, address

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._api, name)
        return functools.partial(self._called, call) if callable(call) else call

    def _called(self, call: Callable[..., Any], *words: Any, **options: Any) -> Any:
        import docker
        import requests
        import urllib3

        try:
            return call(*words, **options)
        except docker.errors.APIError:
            raise
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise EngineFailed(_why(error, self._address)) from error


def configured() -> bool:
    """Return whether there may be an engine here; it is asked only where one is likely, since the SDK is slow to import."""
    named = os.environ.get("DOCKER_HOST") or os.environ.get("DOCKER_CONTEXT")
    likely = bool(named) or SOCKET.exists() or (Path.home() / ".docker" / "config.json").exists()
    return likely and importlib.util.find_spec("docker") is not None


def connect(patience: float = PATIENCE) -> Engine:
    """Return the engine that the Docker command line would use, or refuse with what is the matter with it."""
    try:
        import docker
    except ImportError as error:
        raise EngineFailed(_NO_SDK) from error
    address = _address()
    try:
        client = docker.from_env(timeout=patience)
        version, info = client.version(), client.info()
        client.api.timeout = PATIENCE  # one that answers may take its time to remove an image
    except Exception as error:  # the SDK lets through what requests, urllib3 and paramiko raise
        raise EngineFailed(_why(error, address)) from error
    engine = _engine(client, address, version, info)
    _refuse_old(engine)
    return engine


def _engine(client: Any, address: str, version: dict[str, Any], info: dict[str, Any]) -> Engine:
    components = [str(component.get("Name")) for component in version.get("Components") or ()]
    options = " ".join(info.get("SecurityOptions") or ())
    return Engine(
        client=client, address=address, api=_Api(client.api, address), cpus=int(info.get("NCPU") or 0), version=str(version.get("Version")),
        podman=any("podman" in name.lower() for name in components),
        rootless="name=rootless" in options or bool(info.get("Rootless")),
        remapped="name=userns" in options,
        cdi=bool(info.get("CDISpecDirs")),
        architecture=str(version.get("Arch")),
    )  # fmt: skip


def _refuse_old(engine: Engine) -> None:
    if engine.podman:
        return  # its numbers are its own
    try:
        found = tuple(int(part) for part in engine.version.split(".")[:2])
    except ValueError:
        return  # a build of somebody's own
    if found < OLDEST:
        raise EngineFailed(
            f"the Docker engine at {engine.address} is version {engine.version}; "
            f"{'.'.join(map(str, OLDEST))} or newer is needed. Bring it up to date. {_WITHOUT}"
        )


def _address() -> str:
    """Return the address that the SDK will use, and refuse a context that there is not (the SDK would take the default)."""
    from docker.context import ContextAPI
    from docker.context.config import get_current_context_name
    from docker.utils.config import find_config_file

    if os.environ.get("DOCKER_HOST"):
        return os.environ["DOCKER_HOST"]
    name = os.environ.get("DOCKER_CONTEXT") or get_current_context_name()
    try:
        context = ContextAPI.get_context(name)
    except Exception as error:
        raise EngineFailed(f"the Docker context {name} cannot be read: {error}") from error
    if context is None:
        # The SDK finds contexts only where there is a config.json beside them, which `docker context create` does not make.
        unseen = "" if find_config_file() else f" If it is there, choose it once: docker context use {name}"
        raise EngineFailed(f"there is no Docker context {name}. List them with: docker context ls.{unseen}")
    return str(context.Host or f"unix://{SOCKET}").replace("http+unix://", "unix://")


def _why(error: BaseException, address: str) -> str:
    """Return in a sentence why an engine does not answer."""
    text, chain = str(error), _chain(error)
    socket = address.removeprefix("unix://")
    if _any(chain, PermissionError):
        return (
            f"this user may not use the Docker engine at {address} (permission denied on its socket). Join the group that "
            f"owns {socket} (sudo usermod -aG docker $USER, then log in again). {_WITHOUT}"
        )
    if _any(chain, FileNotFoundError) or (_any(chain, ConnectionRefusedError) and address.startswith("unix:")):
        return (
            f"no Docker engine is running at {address}. Start it (sudo systemctl start docker, or Docker Desktop), "
            f"or name another: DOCKER_HOST, docker context use. {_WITHOUT}"
        )
    if address.startswith("ssh:") and "paramiko" in text:
        return f"DOCKER_HOST {address} needs one more package. Install it with: pip install paramiko"
    reason = "the name is not known" if "resolve" in text else "nothing answers there" if chain else text.rstrip(".")
    return f"the Docker engine at {address} cannot be reached: {reason}. Check DOCKER_HOST, or `docker context ls`. {_WITHOUT}"


def _chain(error: BaseException) -> list[BaseException]:
    """Return the errors that an error was made from; urllib3 and requests keep them as arguments."""
    found: list[BaseException] = []
    todo: list[object] = [error.__cause__ or error.__context__, *error.args]
    while todo and len(found) < 20:
        one = todo.pop()
        if isinstance(one, BaseException) and one not in found:
            found.append(one)
            todo += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return found


def _any(chain: list[BaseException], kind: type[BaseException]) -> bool:
    return any(isinstance(error, kind) for error in chain)


def explain(error: BaseException) -> str:
    """Return what the engine said, less what the SDK puts around it."""
    said = getattr(error, "explanation", None) or str(error)
    return (said.decode(errors="replace") if isinstance(said, bytes) else str(said)).strip().rstrip(".")
