"""Asks an engine what it can do for a run, by requests that make nothing; and says what its refusals mean."""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path

from runner import containers, engines
from runner.engines import Engine
from runner.errors import EngineFailed
from runner.specs import Run

NO_TOOLKIT = (
    "GPUs cannot be given to containers: this engine knows no {what}. Install the NVIDIA Container Toolkit "
    "(https://docs.nvidia.com/datacenter/cloud-native/container-toolkit), then: {then}"
)
NO_GPUS = (
    (r"could not select device driver", NO_TOOLKIT.format(
        what="device driver for GPUs", then="sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker")),
    (r"unresolvable CDI devices?(?P<what>.*)", NO_TOOLKIT.format(
        what="CDI device{what}", then="sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")),
)  # fmt: skip
# What an engine says when it cannot create or start a container, and what that means.
MEANINGS = (
    *NO_GPUS,
    (r"nvidia-container-cli: (?P<what>.*)", "the NVIDIA Container Toolkit failed: {what}. Check the driver with: nvidia-smi"),
    (r"no space left on device", "the engine's disk is full. Free some space (runner rm --unused, docker system prune)."),
    (r'"/bin/sh": .*no such file', "the image has no /bin/sh, so nothing can be run in it."),
)  # fmt: skip


def failed(engine: Engine, error: BaseException) -> EngineFailed:
    """Return what it means that a container could not be created or started."""
    said = engines.explain(error)
    for pattern, sentence in MEANINGS:
        match = re.search(pattern, said)
        if match:
            return EngineFailed(sentence.format(**match.groupdict()))
    return EngineFailed(f"the Docker engine at {engine.address} could not start the container: {said}.")


def refuse_blind(engine: Engine, *folders: Path) -> None:
    """Refuse an engine that does not see this machine's files.

    It checks the source of a mount before it looks for the image: so an image that there is not tells, and leaves nothing.
    """
    for folder in folders:
        with tempfile.TemporaryDirectory(prefix=".runner-probe-", dir=folder) as probe:
            if not _sees(engine, Path(probe)):
                raise EngineFailed(
                    f"the Docker engine at {engine.address} does not see the files of this machine: {folder} is not there "
                    "for it. It runs on another machine, or shares other folders only (Docker Desktop: Settings, File "
                    "sharing). Use this machine's engine, or --on native."
                )


def _sees(engine: Engine, probe: Path) -> bool:
    import docker

    mounts = [containers.mount(probe, "/probe")]
    options = {"Image": f"runner-probe:{probe.name[14:].lower()}", "HostConfig": {"Mounts": mounts}}
    try:
        engine.api.create_container_from_config(options)
    except docker.errors.ImageNotFound:
        return True
    except docker.errors.APIError as error:
        said = engines.explain(error)
        if "does not exist" in said or "not shared" in said:
            return False
        raise EngineFailed(f"the Docker engine at {engine.address} refused: {said}.") from error
    raise AssertionError("there is no such image")


def refuse_without_gpus(engine: Engine, run: Run) -> None:
    """Ask the engine for the GPUs with an image that has nothing in it, before one of gigabytes is made.

    It looks for the devices first, and then for the program, which is not there.
    """
    import docker

    count = int(run.request["resources"]["gpus"])
    if count and engine.podman:
        raise EngineFailed(
            f"--gpus {count}: the engine at {engine.address} is Podman, whose Docker API takes requests for GPUs and gives "
            "none (containers/podman#22645). Use a Docker engine, or --on native."
        )
    devices = containers.gpus(engine, count)
    if not devices:
        return
    name = f"runner-probe:{run.request['submission']}"
    try:
        engine.api.import_image_from_data(bytes(1024), repository=name)  # an archive's end, and nothing before it
        made = engine.api.create_container_from_config({"Image": name, "Cmd": ["/nothing"], "HostConfig": devices})[
            "Id"
        ]
        try:
            engine.api.start(made)
        finally:
            engine.api.remove_container(made, force=True)
    except docker.errors.APIError as error:
        if any(re.search(pattern, engines.explain(error)) for pattern, _ in NO_GPUS):
            raise failed(engine, error) from error
    finally:
        with contextlib.suppress(docker.errors.APIError, EngineFailed):
            engine.api.remove_image(name, force=True)
