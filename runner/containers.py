"""What a run's container is, as the Docker engine's API takes it: mounts, variables, user, limits, GPUs. Asks no engine."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner import packages, specs
from runner.engines import Engine
from runner.errors import UsageError
from runner.specs import Run

# Where things are in a container. The volume is at its own path wherever that hides nothing of the image's.
VOLUME, HANDOVER, DATA, CA = "/volume", "/run/runner/handover", "/run/runner/data", "/run/runner/ca.pem"
IMAGE = ("bin", "boot", "dev", "etc", "lib", "lib64", "opt/environment", "proc", "run", "sbin", "sys", "usr")
GRACE = 120  # seconds that the engine waits after SIGTERM; launch.py uses 110 of them
SHARED_MEMORY = 1 << 30  # bytes of /dev/shm, of which only what is used counts; Docker's own 64 MB break data loaders
LOG = {"max-size": "10m", "max-file": "3"}  # of Docker's copy; the whole log is on the volume
PYTHON = "/opt/environment/bin/python"  # in our images
# An image of the user's own may call it python3 only, or have none.
FIND_PYTHON = """python=$(command -v python || command -v python3) && exec "$python" "$@"
echo "launch.py: the image has no python on its PATH ($PATH). It needs one, 3.6 or newer, and TensorFlow." >&2; exit 78"""
PASSED_ON = ("RUNNER_GRACE", "RUNNER_STALE")  # for launch.py
CA_NAMES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
WITHOUT_RIGHTS = {
    "Init": True,  # reaps what the job leaves, and passes signals on
    "ReadonlyRootfs": True,
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges"],
}


def of_run(
    run: Run, engine: Engine, image: str, handover: Path, data: Mapping[str, Path], user: tuple[int, int]
) -> dict[str, Any]:
    """Return the container of a run (POST /containers/create): what `render` shows is what is sent."""
    volume = place(run.volume, bool(run.request["image"]))
    mounts = [mount(run.volume, volume, writable=True), mount(handover, HANDOVER)]
    mounts += [mount(path, f"{DATA}/{name}") for name, path in sorted(data.items())]
    bundle = packages.ca_bundle()
    bundle = bundle if bundle and bundle.is_file() else None
    mounts += [mount(bundle, CA)] if bundle else []
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
        "Entrypoint": python(bool(run.request["image"])),
        "Cmd": ["-E", f"{HANDOVER}/launch.py", volume, DATA if data else ""],
        "Env": [f"{name}={value}" for name, value in sorted(variables.items())],
        "User": f"{user[0]}:{user[1]}",
        "Labels": labels(run.name, run.volume, run.request["submission"]),
        "Hostname": _hostname(),
        "WorkingDir": "/",
        "StopSignal": "SIGTERM",
        "StopTimeout": GRACE,
        "OpenStdin": True, "StdinOnce": True,
        "HostConfig": {
            **WITHOUT_RIGHTS,
            "Mounts": mounts,
            "Tmpfs": {"/tmp": "rw,exec,nosuid,nodev,mode=1777"},
            "GroupAdd": groups,
            "ShmSize": SHARED_MEMORY,
            "LogConfig": {"Type": "json-file", "Config": LOG},
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},  # launch.py decides what is worth another attempt
            **({"UsernsMode": "host"} if engine.remapped else {}),
            **_limits(engine, run.request["resources"]),
            **gpus(engine, int(run.request["resources"]["gpus"])),
        },
    }  # fmt: skip


def of_script(image: str, own_image: bool, script: Path, files: list[Path], folder: Path, user: str) -> dict[str, Any]:
    """Return a container that runs a script of ours over files of a folder, which it may only read, without a network."""
    return {
        "Image": image,
        "Entrypoint": python(own_image),
        "Cmd": ["/run/runner/script.py", *map(str, files)],
        "Env": ["HOME=/tmp", "TF_CPP_MIN_LOG_LEVEL=3", "CUDA_VISIBLE_DEVICES=-1"],
        "User": user,
        "NetworkDisabled": True,
        "HostConfig": {
            **WITHOUT_RIGHTS,
            "Mounts": [mount(script, "/run/runner/script.py"), mount(folder, str(folder))],
            "Tmpfs": {"/tmp": "mode=1777"},
        },
    }


def python(own_image: bool) -> list[str]:
    """Return how a container's Python is called; `-e PATH=...` is for the job, and must not matter here."""
    return ["/bin/sh", "-c", FIND_PYTHON, "python"] if own_image else [PYTHON]


def place(volume: Path, own_image: bool) -> str:
    """Return where the volume is in the container: a path that a job prints or stores should hold outside, too.

    It may hide nothing of the image, nor be hidden by what is mounted; and root's home is open in our images only.
    """
    path = "/" if volume == Path("/") else f"{volume}/"
    hides = path in ("/", "/tmp/") or any(
        f"/{part}/".startswith(path) or path.startswith(f"/{part}/") for part in IMAGE
    )
    return VOLUME if hides or (own_image and path.startswith("/root/")) else str(volume)


def mount(source: Path, target: str, writable: bool = False) -> dict[str, Any]:
    """Return a bind mount; where its source is missing the engine refuses, and makes no folder of root's."""
    shown = {"Type": "bind", "Source": os.path.realpath(source), "Target": target}
    return shown if writable else {**shown, "ReadOnly": True}


def name_of(name: str, volume: Path) -> str:
    """Return the container's name: the same run on two volumes is two."""
    return f"{name}-{hashlib.sha256(os.path.realpath(volume).encode()).hexdigest()[:6]}"


def labels(name: str, volume: Path, submission: str) -> dict[str, str]:
    """Return by which a container is found again."""
    return {**owned(name, volume), "runner.submission": submission, "runner.user": str(os.getuid())}


def owned(name: str, volume: Path) -> dict[str, str]:
    """Return the labels that all containers of a run have."""
    return {"runner.run": name, "runner.volume": os.path.realpath(volume)}


def _hostname() -> str:
    """Return this machine's name, which the run's lock tells; an engine takes only what can be one."""
    return re.sub(r"[^A-Za-z0-9-]", "-", platform.node().split(".")[0])[:63].strip("-") or "runner"


def _limits(engine: Engine, resources: Mapping[str, Any]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if resources.get("cpus"):
        # More threads than processors are allowed, as natively; an engine refuses to give more than it has.
        limits["NanoCpus"] = min(int(resources["cpus"]), engine.cpus or int(resources["cpus"])) * 10**9
    if resources.get("memory"):
        # Swap as well: a training that swaps for days is worse than one that says why it ended.
        limits["Memory"] = limits["MemorySwap"] = specs.memory_bytes(resources["memory"], "memory")
    return limits


def gpus(engine: Engine, count: int) -> dict[str, Any]:
    """Return the request for GPUs; the caller's CUDA_VISIBLE_DEVICES limits the choice."""
    if not count:
        return {}
    visible = _visible()
    if visible is not None and len(visible) < count:
        raise UsageError(
            f"--gpus {count}: CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r} here, which leaves "
            f"{len(visible)}. Unset it, or ask for fewer."
        )
    chosen = visible[:count] if visible else [str(number) for number in range(count)]
    if engine.cdi:
        return {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={one}" for one in chosen]}]}
    which: dict[str, Any] = {"DeviceIDs": chosen} if visible else {"Count": count}
    return {"DeviceRequests": [{**which, "Capabilities": [["gpu"]]}]}


def _visible() -> list[str] | None:
    """Return the GPUs that the caller's CUDA_VISIBLE_DEVICES names, read as CUDA does: up to the first -1. None: all."""
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return None
    words = [word.strip() for word in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
    end = next((number for number, word in enumerate(words) if word in ("-1", "")), len(words))
    return words[:end]
