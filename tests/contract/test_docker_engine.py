"""Which engine is used, what it is refused for, and what it can do: contexts, hosts, GPUs, other engines than Docker's."""

from __future__ import annotations

import http.server
import json
import platform
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BASE_IMAGE, COUNTER, Cli, begin, containers, need, step_of, until
from strangers import become_stranger
from test_launcher_gpu import DRIVER, ROW, library  # noqa: F401 (a fixture)

from runner import engines, images
from runner.containers import name_of

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("in_docker")]


@pytest.fixture(autouse=True)
def nothing_is_left(cli: Cli, tmp_path: Path) -> Iterator[None]:
    """No test leaves a container that was created and not started, or a probe."""
    yield
    ours = [one for one in containers() if one.labels["runner.volume"].startswith(str(tmp_path))]
    assert [one for one in ours if one.status == "created"] == []
    assert list(cli.volume.glob(".runner-probe*")) == []


def refused(cli: Cli, *words: str, code: int = 125) -> str:
    """Return why a run is refused, and see that nothing was created."""
    said = cli.run("counter", *words, code=code, steps=5).stderr
    assert list(cli.volume.iterdir()) == []
    assert list(Path(cli.env["RUNNER_CACHE"], "submissions").glob("*")) == []
    return said


# ---------------------------------------------------------------- which engine


def contexts(cli: Cli, folder: Path, *words: str) -> None:
    """Call `docker context`, with contexts of the test's own."""
    cli.env["DOCKER_CONFIG"] = str(folder / "docker")
    subprocess.run(["docker", "context", *words], env=cli.env, check=True)


@pytest.mark.parametrize("way", ["DOCKER_HOST", "DOCKER_CONTEXT", "the current context"])
def test_the_engine_that_was_named_is_used(
    cli: Cli, private_engine: Any, environment_image: Callable[[str], str], tmp_path: Path, way: str
) -> None:
    private_engine.start(tcp=True)
    private_engine.load(environment_image(COUNTER))
    if way == "DOCKER_HOST":
        cli.env["DOCKER_HOST"] = private_engine.tcp
    else:
        contexts(cli, tmp_path, "create", "own", "--docker", f"host={private_engine.tcp}")
        if way == "DOCKER_CONTEXT":
            (tmp_path / "docker" / "config.json").write_text("{}")
            cli.env["DOCKER_CONTEXT"] = "own"
        else:
            contexts(cli, tmp_path, "use", "own")
    directory = begin(cli, "counter", "--name", "there")
    assert private_engine.docker("ps", "--format", '{{.Label "runner.run"}}') == "there"
    cli("stop", "there")
    assert step_of(directory) > 0 and cli.only().state == "interrupted"
    cli("rm", "there", "--files")
    assert private_engine.docker("ps", "--all", "--quiet") == ""


def test_an_engine_that_does_not_see_our_files_is_refused(
    cli: Cli, private_engine: Any, environment_image: Callable[[str], str]
) -> None:
    private_engine.start(hidden=cli.volume.parent)
    private_engine.load(environment_image(COUNTER))
    cli.env["DOCKER_HOST"] = private_engine.address
    said = refused(cli)
    assert f"does not see the files of this machine: {cli.volume} is not there for it" in said
    assert private_engine.docker("ps", "--all", "--quiet") == ""


# ---------------------------------------------------------------- engines that do not answer


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_an_engine_that_is_not_running(cli: Cli, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:  # what an engine leaves that was killed
        dead.bind(str(tmp_path / "dead"))
    for path in (tmp_path / "none", tmp_path / "dead"):
        cli.env["DOCKER_HOST"] = f"unix://{path}"
        assert f"no Docker engine is running at unix://{path}. Start it" in refused(cli)


def test_a_host_that_cannot_be_reached(cli: Cli) -> None:
    for host, why in (
        (f"127.0.0.1:{free_port()}", "nothing answers there"),
        ("no.such.host.invalid:2375", "the name is not known"),
    ):
        cli.env["DOCKER_HOST"] = f"tcp://{host}"
        assert f"the Docker engine at tcp://{host} cannot be reached: {why}. Check DOCKER_HOST" in refused(cli)


def test_a_context_that_there_is_not(cli: Cli, tmp_path: Path) -> None:
    contexts(cli, tmp_path, "create", "own", "--docker", "host=tcp://127.0.0.1:1")
    for name in ("elsewhere", "own"):  # the SDK sees the second one only where there is a config.json
        cli.env["DOCKER_CONTEXT"] = name
        said = refused(cli)
        assert f"there is no Docker context {name}. List them with: docker context ls" in said
        assert f"docker context use {name}" in said


def test_a_socket_that_this_user_may_not_use(cli: Cli, tmp_path: Path) -> None:
    said = refused(become_stranger(cli, tmp_path))
    assert (
        "this user may not use the Docker engine at unix:///var/run/docker.sock (permission denied on its socket)"
        in said
    )
    assert "usermod -aG docker" in said


# ---------------------------------------------------------------- other engines


@pytest.fixture
def stub(cli: Cli) -> Iterator[Callable[..., None]]:
    """Let the command line use an engine that only tells what it is: neither an old Docker nor Podman can be had here."""
    answers: dict[str, Any] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers if self.path.endswith("/version") else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cli.env["DOCKER_HOST"] = f"tcp://127.0.0.1:{server.server_port}"
        yield lambda **given: answers.update(given)
        server.shutdown()


def test_an_old_engine(cli: Cli, stub: Callable[..., None]) -> None:
    stub(
        Version="19.03.15",
        ApiVersion="1.40",
        MinAPIVersion="1.12",
        Os="linux",
        Arch="amd64",
        Components=[{"Name": "Engine"}],
    )
    assert "is version 19.03.15; 20.10 or newer is needed. Bring it up to date." in refused(cli)


def test_gpus_through_podman(cli: Cli, stub: Callable[..., None], gpu_project: Path) -> None:
    podman = [{"Name": "Podman Engine", "Version": "4.3.1"}]
    stub(Version="4.3.1", ApiVersion="1.41", MinAPIVersion="1.24", Os="linux", Arch="amd64", Components=podman)
    said = cli("run", gpu_project, "--gpus", "1", "-E", "tf0.0-cuda", "--", "python", "show.py", code=125).stderr
    assert "is Podman, whose Docker API takes requests for GPUs and gives none" in said
    assert list(cli.volume.iterdir()) == []


# ---------------------------------------------------------------- names


def test_a_container_of_the_runs_name_that_is_somebody_elses(
    cli: Cli, engine: engines.Engine, environment_image: Any
) -> None:
    name = name_of("mine", cli.volume)
    theirs = engine.client.containers.create(environment_image(COUNTER), ["sleep", "1"], name=name)
    try:
        said = refused(cli, "--name", "mine", code=2)
        assert f"there is a container {name} that is none of the runner's" in said and f"docker rm -f {name}" in said
        theirs.reload()  # it is still there
    finally:
        theirs.remove()


def test_runs_of_one_name_on_two_volumes(cli: Cli, tmp_path: Path) -> None:
    other = Cli(volume=tmp_path / "other", env={**cli.env, "RUNNER_VOLUME": str(tmp_path / "other")})
    other.volume.mkdir()
    both = [begin(one, "counter", "--name", "same") for one in (cli, other)]
    cli("stop", "same", "--volume", cli.volume)
    before = step_of(both[1])
    until(lambda: step_of(both[1]) > before, what="a step of the other one")
    assert (cli.only().state, other.only().state) == ("interrupted", "running")
    assert "same is on several volumes" in cli("stop", "same", code=2).stderr
    other("stop", "same", "--volume", other.volume)
    for one in (cli, other):
        one("rm", "same", "--files", "--volume", one.volume)
    assert [one for one in containers() if one.labels["runner.run"] == "same"] == []


# ---------------------------------------------------------------- GPUs: the devices and the driver are made up


SHOW = """
import os

print(os.environ.get("MADE_UP_GPU"), open("/etc/made-up-gpu").read().strip())
"""


@pytest.fixture
def gpu_project(cli: Cli, project: Path) -> Path:
    """A project with an environment for cuda that has no packages, in which the command line is called."""
    (project / "locks").mkdir()
    (project / "locks" / "tf0.0-cuda.txt").write_text("# No packages.\n")
    (project / "environments.yaml").write_text(ROW.format(""))
    (project / "show.py").write_text(SHOW)
    cli.cwd = project
    cli.env.pop("CUDA_VISIBLE_DEVICES", None)
    return project


@pytest.fixture
def cdi(tmp_path: Path, library: Callable[..., Path]) -> Path:  # noqa: F811
    """A folder with the CDI specification of two devices of NVIDIA's kind: each sets a variable, and both bring the driver."""
    (tmp_path / "file").write_text("brought in by CDI\n")
    folder = Path(f"/usr/lib/{platform.machine()}-linux-gnu")
    files = {library("libcuda.so.1", DRIVER): folder / "libcuda.so.1", tmp_path / "file": Path("/etc/made-up-gpu")}
    mounts = [
        {"hostPath": str(here), "containerPath": str(there), "options": ["ro", "bind"]} for here, there in files.items()
    ]
    devices = [{"name": str(one), "containerEdits": {"env": [f"MADE_UP_GPU=number {one}"]}} for one in range(2)]
    specification = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": devices,
        "containerEdits": {"mounts": mounts},
    }
    (tmp_path / "cdi").mkdir()
    (tmp_path / "cdi" / "nvidia.json").write_text(json.dumps(specification))
    return tmp_path / "cdi"


def ask(cli: Cli, *words: str, code: int = 0) -> Any:
    return cli("run", ".", "--name", "gpu", "-E", "tf0.0-cuda", *words, "--", "python", "show.py", code=code)


def test_a_gpu_by_cdi(cli: Cli, private_engine: Any, engine: engines.Engine, gpu_project: Path, cdi: Path) -> None:
    private_engine.start(cdi=cdi)
    private_engine.load(images.ensure(engine, "tf0.0-cuda", "# No packages.\n", "3.13", BASE_IMAGE))
    cli.env["DOCKER_HOST"] = private_engine.address
    assert ask(cli, "--gpus", "1").stdout == "number 0 brought in by CDI\n"
    cli.env["CUDA_VISIBLE_DEVICES"] = "1"  # the caller's choice
    assert ask(cli, "--gpus", "1", "--fresh").stdout == "number 1 brought in by CDI\n"
    del cli.env["CUDA_VISIBLE_DEVICES"]
    said = ask(cli, "--gpus", "2", "--fresh", code=78).stderr
    assert "1 GPU is visible, and 2 were asked for" in said  # the made-up driver says so
    said = ask(cli, "--gpus", "3", "--fresh", code=125).stderr
    assert (
        "this engine knows no CDI device" in said and "nvidia.com/gpu=2" in said and "nvidia-ctk cdi generate" in said
    )


def without_toolkit(cli: Cli, known: str) -> None:
    said = ask(cli, "--gpus", "1", code=125).stderr
    assert f"GPUs cannot be given to containers: this engine knows {known}" in said
    assert "Install the NVIDIA Container Toolkit (https://docs.nvidia.com/" in said
    assert list(cli.volume.iterdir()) == []


def test_a_gpu_that_has_no_cdi_specification(cli: Cli, private_engine: Any, gpu_project: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    private_engine.start(cdi=tmp_path / "empty")
    cli.env["DOCKER_HOST"] = private_engine.address
    without_toolkit(cli, "no CDI device")


def test_a_gpu_without_its_toolkit(cli: Cli, engine: engines.Engine, gpu_project: Path) -> None:
    there = engine.cdi or shutil.which("nvidia-container-runtime-hook") is not None
    need("an engine without GPUs", not there, "this one can give GPUs to containers, or knows CDI")
    without_toolkit(cli, "no device driver for GPUs")
