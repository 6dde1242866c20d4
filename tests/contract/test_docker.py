"""What a user asks of runs in containers: every verb and option, on a real engine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import BASE_IMAGE, COUNTER, JOBS, LONG, Cli, begin, containers, need, step_of, until
from strangers import UID, become_stranger

from runner import engines, images, runs
from runner.engines import SOCKET

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("in_docker")]


class Slow:
    """The machine's engine behind a socket of its own, where one request never gets through: time enough to interrupt it."""

    def __init__(self, path: Path) -> None:
        self.held, self.met = "none", threading.Event()
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(path))
        self.listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                client, engine = self.listening.accept()[0], socket.socket(socket.AF_UNIX)
                engine.connect(str(SOCKET))
                for source, target in ((client, engine), (engine, client)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                if self.held.encode() in content.partition(b" HTTP/")[0]:
                    self.met.set()
                    return
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def slow(cli: Cli, tmp_path: Path) -> Iterator[Slow]:
    """An engine that the command line uses, with a request that it does not answer."""
    found = Slow(tmp_path / "slow")
    cli.env["DOCKER_HOST"] = f"unix://{tmp_path / 'slow'}"
    yield found
    found.listening.close()


def containers_of(cli: Cli) -> list[Any]:
    return [one for one in containers() if one.labels["runner.volume"] == str(cli.volume.resolve())]


def owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in folder.rglob("*")}


def test_all_verbs_from_the_beginning_to_the_end(cli: Cli, tmp_path: Path) -> None:
    cli.run("counter", "--detach", "--name", "mine", **LONG)
    directory = cli.volume / "mine"
    until(lambda: step_of(directory) > 3, what="a checkpoint")
    where = ("--volume", cli.volume)
    (shown,) = cli("ps", "--json", "--on", "docker", *where).json()
    assert (shown["name"], shown["state"], shown["backend"]) == ("mine", "running", "docker")
    assert cli("ps", "--json", "--on", "native", *where).json() == []
    assert "It is running, at step " in cli("status", "mine").stdout
    assert "counting from 0" in cli("logs", "mine").stdout
    cli("pull", "mine", tmp_path / "home")
    assert (tmp_path / "home" / "metrics.jsonl").stat().st_size > 0
    assert "is going. Stop it first" in cli("rm", "mine", code=2).stderr
    cli("stop", "mine")
    assert cli("wait", "mine", code=75).stderr.startswith("mine: It was interrupted after")
    cli("rm", "mine", "--files")
    assert containers_of(cli) == [] and not directory.exists()


def test_a_run_is_found_by_its_container_where_nobody_remembers_its_volume(cli: Cli, tmp_path: Path) -> None:
    directory = begin(cli, "counter", "--name", "lost-one")
    elsewhere = {**cli.env, "RUNNER_STATE": str(tmp_path / "other state"), "HOME": str(tmp_path)}
    elsewhere.pop("RUNNER_VOLUME")
    stranger = Cli(volume=cli.volume, cwd=tmp_path, env=elsewhere)
    assert "lost-one" in stranger("ps").stdout
    assert "It is running" in stranger("status", "lost-one").stdout
    stranger("stop", "lost-one")
    run = runs.load(directory)
    assert run and run.state == "interrupted"
    stranger.env["DOCKER_HOST"] = "unix:///nowhere"
    assert "docker was not asked: no Docker engine is running at unix:///nowhere" in stranger("ps").stderr


def test_the_container_is_without_root_and_rights(cli: Cli) -> None:
    cli.env["TOKEN"] = "open sesame"
    begin(cli, "counter", "--secret", "TOKEN", "-e", "COLOUR=green", "--memory", "256Mi", "--cpus", "1")
    (one,) = containers_of(cli)
    host, config = one.attrs["HostConfig"], one.attrs["Config"]
    assert config["User"].partition(":")[0] not in ("", "0")
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False)
    assert host["SecurityOpt"] == ["no-new-privileges"] and host["Init"] is True
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (256 << 20, 256 << 20, 10**9)
    assert host["ShmSize"] == 1 << 30 and host["LogConfig"]["Config"] == {"max-file": "3", "max-size": "10m"}
    assert host["RestartPolicy"]["Name"] == "no"
    assert (config["StopSignal"], config["StopTimeout"]) == ("SIGTERM", 120)
    _, environment = one.exec_run(["sh", "-c", "cat /proc/[0-9]*/environ | tr '\\0' '\\n'"])
    assert b"TOKEN=open sesame" in environment and b"COLOUR=green" in environment  # the job has them
    told = json.dumps(one.attrs) + one.logs().decode() + str(one.top())
    told += "".join(path.read_text(errors="replace") for path in cli.volume.rglob("*") if path.is_file())
    told += "".join(
        path.read_text(errors="replace") for path in Path(cli.env["RUNNER_CACHE"], "submissions").rglob("*.*")
    )
    assert "open sesame" not in told
    cli.env.pop("TOKEN")
    cli("stop", cli.only().name)
    assert "the secret TOKEN is not set here" in cli.run("counter", "--cpus", "1", code=2, **LONG).stderr


def test_render_shows_the_container_that_is_created(cli: Cli) -> None:
    words = ("counter", "-e", "COLOUR=green", "--memory", "1Gi")
    shown = cli("render", *words, *(word for key, value in LONG.items() for word in ("-P", f"{key}={value}"))).stdout
    container = yaml.safe_load(shown.partition("# on standard input")[0])
    begin(cli, *words)
    (one,) = containers_of(cli)
    config, host = one.attrs["Config"], one.attrs["HostConfig"]
    submission = one.labels["runner.submission"]
    assert {**container["Labels"], "runner.submission": submission}.items() <= config["Labels"].items()
    assert set(container["Env"]) <= set(config["Env"])  # the image has some of its own
    for key in ("Image", "Cmd", "Entrypoint", "User", "Hostname", "StopTimeout", "OpenStdin"):
        assert config[key] == container[key], key
    for key, value in container["HostConfig"].items():
        handover = cli.env["RUNNER_CACHE"] + f"/submissions/{cli.only().name}-{submission}"
        assert host[key] == json.loads(json.dumps(value).replace("/<handover>", handover)), key
    assert "FROM ${BASE}" in shown and container["Image"] == config["Image"]


def test_whose_the_files_are(cli: Cli) -> None:
    if os.getuid() != 0:
        cli.run("counter", steps=5)
        assert owners(cli.volume) == {os.getuid()}
        return
    cli.run("counter", "--name", "a", steps=5)
    assert owners(cli.volume) == {10001}  # the volume was root's
    cli("run", "counter", "--on", "native", "--name", "a", "-P", "steps=6")
    assert 0 in owners(cli.volume)
    cli.run("counter", "--name", "a", steps=7)
    assert owners(cli.volume) == {10001}
    cli.run("counter", "--name", "b", "--user", "4321:4322", steps=5)
    assert owners(cli.volume / "b") == {4321}
    os.chown(cli.volume, 1234, 1234)
    cli.run("counter", "--name", "c", steps=5)
    assert owners(cli.volume / "c") == {1234}
    refused = cli.run("counter", "--user", "0", code=2, steps=5)
    assert "no container runs as root" in refused.stderr
    assert "UID or UID:GID" in cli.run("counter", "--user", "me", code=2, steps=5).stderr


@pytest.mark.parametrize("name", ["with a space", "with:colon,comma=and'quote", "ümläut 数"])
def test_a_volume_of_any_name(cli: Cli, tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    cli("run", "counter", "-P", "steps=5", "--volume", place)
    (run,) = runs.on_volume(place)
    assert run.state == "succeeded"
    cli("rm", run.name, "--files", "--volume", place)
    assert list(place.iterdir()) == []


def test_paths_that_a_job_stores_hold_natively_too(cli: Cli, project: Path) -> None:
    (project / "train.py").write_text(
        "import os, pathlib\nnote = pathlib.Path('note')\n"
        "print('found', note.exists() and pathlib.Path(note.read_text()).exists())\n"
        "note.write_text(os.path.abspath('note'))\n"
    )
    words = (project, "--name", "places", "-E", COUNTER, "--", "python", "train.py")
    cli("run", *words)
    (cli.volume / "places" / "run.json").unlink()  # as if it had been cut off
    assert "found True" in cli("run", "--on", "native", *words).stdout


def test_a_folder_of_roots_with_other_things_in_it_is_not_given_away(cli: Cli, tmp_path: Path) -> None:
    need("root", os.getuid() == 0, "It is about volumes that are root's.")
    (tmp_path / "busy" / "other").mkdir(parents=True)
    (tmp_path / "busy" / "other" / "file").touch()
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    (tmp_path / "home" / ".ssh" / "id").touch()
    for volume in (tmp_path / "busy", tmp_path / "home", Path("/")):
        refused = cli("run", "counter", "-P", "steps=5", "--volume", volume, code=2)
        assert f"the volume {volume} belongs to root" in refused.stderr
        assert volume.stat().st_uid == 0
    assert {path.name for path in tmp_path.glob("[bh]*/*")} == {"other", ".ssh"}


def test_data_that_the_containers_user_cannot_read_is_refused(cli: Cli, tmp_path: Path) -> None:
    need("root", os.getuid() == 0, "It is about a container's user who is not the caller.")
    (tmp_path / "private").mkdir(mode=0o700)
    words = ("counter", "--data", f"mine={tmp_path / 'private'}")
    refused = cli.run(*words, code=2, steps=5)
    assert "uid 10001, as whom the container runs, cannot read it. Allow it (chmod o+rx" in refused.stderr
    assert list(cli.volume.iterdir()) == []
    os.chown(tmp_path / "private", 4321, 4322)
    cli.run(*words, "--user", "4321:4322", steps=5)


@pytest.mark.parametrize("who", ["root", "a stranger"])
def test_a_volume_that_is_tmp(cli: Cli, tmp_path: Path, who: str) -> None:
    """A container has a /tmp of its own, in memory, in which the results would be lost."""
    need("root", os.getuid() == 0, "only root can become another user")
    user = cli if who == "root" else become_stranger(cli, tmp_path, SOCKET.stat().st_gid)
    name, ours = f"runner-tests-{os.getpid()}", not Path("/tmp/.runner").exists()
    try:
        user.run("counter", "--name", name, "--volume", "/tmp", steps=5)
        assert json.loads(Path("/tmp", name, "report.json").read_text())["steps"] == 5
        assert owners(Path("/tmp", name)) == {10001 if who == "root" else UID}
        user("rm", name, "--files", "--volume", "/tmp")
        assert not Path("/tmp", name).exists()
    finally:
        shutil.rmtree(Path("/tmp", name), ignore_errors=True)
        if ours:
            shutil.rmtree("/tmp/.runner", ignore_errors=True)


def test_more_threads_than_processors_are_given_as_natively(cli: Cli, engine: engines.Engine) -> None:
    many = engine.cpus + 5
    begin(cli, "counter", "--cpus", str(many))
    (one,) = containers_of(cli)
    assert one.attrs["HostConfig"]["NanoCpus"] == engine.cpus * 10**9
    assert cli.only().record["conditions"]["threads"] == many


def test_a_path_for_the_job_does_not_matter_for_its_launcher(cli: Cli) -> None:
    cli.run("counter", "-e", "PATH=/foo:/bin:/usr/bin", steps=5)
    assert cli.only().state == "succeeded"


def test_a_profile_says_where_and_with_how_much(cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(JOBS, tmp_path / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "jobs" / "runner.yaml").write_text("default: {on: docker, memory: 256Mi}\n")
    del cli.env["RUNNER_ON"]
    cli.cwd = tmp_path / "jobs"
    begin(cli, "counter")
    (one,) = containers_of(cli)
    assert one.attrs["HostConfig"]["Memory"] == 256 << 20
    cli("stop", cli.only().name)
    cli.run("counter", "--on", "native", steps=1, code=0)  # it does not matter there


def test_two_commands_at_once_are_one_run(cli: Cli) -> None:
    words = ("run", "counter", "-P", "steps=60", "-P", "pause=0.02")
    both = [cli.start(*words) for _ in range(2)]
    outputs = [one.communicate(timeout=60) for one in both]
    assert [one.returncode for one in both] == [0, 0], outputs
    run = cli.only()
    assert len(run.record["attempts"]) == 1 and run.state == "succeeded"
    assert sum("attached to it" in stderr for _, stderr in outputs) == 1
    assert containers_of(cli) == []


def test_a_closed_terminal_does_not_touch_it(cli: Cli) -> None:
    command = cli.start("run", "counter", *(word for key, value in LONG.items() for word in ("-P", f"{key}={value}")))
    until(lambda: any(step_of(run.directory) for run in runs.on_volume(cli.volume)), what="a checkpoint")
    command.kill()
    command.communicate()
    before = step_of(cli.only().directory)
    until(lambda: step_of(cli.only().directory) > before, what="another checkpoint")
    assert cli.only().state == "running"


def test_a_run_whose_command_was_killed_leaves_no_container_when_another_one_sees_its_end(cli: Cli) -> None:
    words = ("run", "counter", *(word for key, value in LONG.items() for word in ("-P", f"{key}={value}")))
    first = cli.start(*words)
    until(lambda: any(step_of(run.directory) for run in runs.on_volume(cli.volume)), what="a checkpoint")
    second = cli.start(*words, stderr=subprocess.STDOUT)
    assert second.stdout and "attached to it" in second.stdout.readline()
    first.kill()
    first.communicate()
    (one,) = containers_of(cli)
    one.stop()
    second.communicate(timeout=60)
    assert second.returncode == 75 and containers_of(cli) == []


@pytest.mark.parametrize("held", ["/attach", "/start"])
def test_a_command_that_is_told_to_end_while_it_submits_leaves_nothing(cli: Cli, slow: Slow, held: str) -> None:
    slow.held = held
    command = cli.start("run", "counter", "-P", "steps=5")
    until(slow.met.is_set, what=f"the request {held}")
    assert [one.status for one in containers_of(cli)] == ["created"]
    command.terminate()
    _, stderr = command.communicate(timeout=60)
    assert command.returncode == 130 and "Traceback" not in stderr, stderr
    assert containers_of(cli) == [] and list(cli.volume.iterdir()) == []
    assert list(Path(cli.env["RUNNER_CACHE"], "submissions").iterdir()) == []


def test_ctrl_c_stops_with_a_checkpoint(cli: Cli) -> None:
    command = cli.start("run", "counter", *(word for key, value in LONG.items() for word in ("-P", f"{key}={value}")))
    until(lambda: any(step_of(run.directory) for run in runs.on_volume(cli.volume)), what="a checkpoint")
    command.send_signal(2)
    _, stderr = command.communicate(timeout=60)
    assert command.returncode == 130 and "it writes a checkpoint first" in stderr
    assert cli.only().state == "interrupted" and containers_of(cli) == []


def test_what_cannot_be_is_refused_before_anything_is_created(cli: Cli) -> None:
    for words, sentence in (
        (("--memory", "3x"), "--memory 3x: memory is a number of bytes, such as 4Gi or 500M"),
        (("--gpus", "many"), "'many' is not a valid whole number"),
        (("--gpus", "-1"), "-1 is not in the range"),
        (("--image", "x", "-E", "tf2.15"), "-E and --image exclude each other"),
        (("--image", ""), "--image '': an image is given as NAME[:TAG]"),
        (("--image", "Bad Image"), "such as registry.example.org/team/mine:1"),
        (("--memory", "1Mi"), "--memory 1Mi: 1Mi is too little, for no engine takes less than 6Mi"),
        (("--user", "4343:0"), "no container runs in root's group. Give another, such as 4343:4343"),
        (("--registry", "https://foo/x"), "https://foo/x: a registry is given as registry.example.org/team"),
        (("--on", "native", "--image", "x"), "--image x is for containers"),
        (("--on", "native", "--memory", "1Gi"), "--memory 1Gi is for containers"),
    ):
        refused = cli.run("counter", *words, code=2, steps=5)
        assert sentence in refused.stderr
    assert list(cli.volume.iterdir()) == [] and containers_of(cli) == []


@pytest.fixture
def own_image(engine: engines.Engine, tmp_path: Path) -> Any:
    """An image of the user's own, by its name: it has python3, and a package tensorflow where that is asked for."""
    base = images.base_image("3.12", BASE_IMAGE)
    name = f"runner-tests/own:{os.getpid()}"
    made = set()

    def make(*steps: str) -> str:
        (tmp_path / "Dockerfile").write_text("\n".join([f"FROM {base}", *steps, ""]))
        words = ["docker", "build", "--quiet", "--tag", name, tmp_path]
        made.add(subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip())
        return name

    yield make
    for one in made:  # an earlier one has lost its name to a later one
        engine.client.api.remove_image(one, force=True)


def test_an_image_of_the_users_own(cli: Cli, own_image: Callable[..., str]) -> None:
    # A package that only has the name: what is shown is how an image is treated, and TensorFlow would be 1.5 GB.
    package = "RUN mkdir \"$(python3 -c 'import site; print(site.getsitepackages()[0])')/tensorflow\""
    image = own_image(package)
    cli.run("counter", "--image", image, steps=10)
    run = cli.only()
    assert run.request["image"] == image and run.request["environment"] is None and run.record["exact"]
    assert cli("ps", "--json").json()[0]["environment"] == image
    own_image(package, "LABEL changed=yes")
    cli.run("counter", "--image", image, steps=20)
    assert cli.only().record["reasons"] == ["attempt 2 ran with other packages"]


def test_an_image_without_what_it_needs_is_refused(cli: Cli, own_image: Callable[..., str]) -> None:
    image = own_image("LABEL empty=yes")
    refused = cli.run("counter", "--image", image, code=78, steps=10)
    assert image in refused.stderr and "TensorFlow" in refused.stderr
    image = own_image("USER 0", "RUN rm -f /usr/local/bin/python*")
    refused = cli.run("counter", "--image", image, code=78, steps=10)
    assert "the image has no python" in refused.stderr
    assert containers_of(cli) == []
    assert "could not be fetched" in cli.run("counter", "--image", "runner-tests/no-such", code=125).stderr


def test_an_image_that_has_python3_only(cli: Cli, own_image: Callable[..., str]) -> None:
    package = "RUN mkdir \"$(python3 -c 'import site; print(site.getsitepackages()[0])')/tensorflow\""
    image = own_image("USER 0", package, 'RUN rm -f "$(command -v python)"')
    words = ("--image", image, "-P", "steps=60", "-P", "pause=0.02", "--kills", "1", "--json")
    told = cli("prove", "counter", *words, "--", "python3", "counter.py").json()
    assert told["proved"] and told["identical"]


def test_prove(cli: Cli) -> None:
    told = cli("prove", "counter", "--kills", "2", "--json", "-P", "steps=150", "-P", "pause=0.01").json()
    assert told["proved"] and told["identical"] and told["kills"] == 3
    assert list(cli.volume.iterdir()) == []
    assert not [one for one in containers() if ".prove" in one.labels["runner.volume"]]


def test_rm_unused_removes_ended_containers_and_images(
    cli: Cli, private_engine: Any, environment_image: Callable[[str], str], tmp_path: Path
) -> None:
    cli.env["RUNNER_CACHE"] = str(tmp_path / "own cache")  # it must not meet anybody else's environments
    private_engine.start()
    image = environment_image(COUNTER)
    private_engine.load(image)  # other tests may have left others there
    cli.env["DOCKER_HOST"] = private_engine.address
    cli.run("counter", "--name", "ended", "--detach", steps=5)
    assert cli("wait", "ended").code == 0
    listed = cli("rm", "--unused", code=None).stdout
    assert "container that has ended" in listed and image not in listed
    cli("rm", "ended", "--files")
    (line,) = (line for line in cli("rm", "--unused", "--yes").stdout.splitlines() if image in line)
    assert "image that no run needs" in line
    assert private_engine.docker("images", "--quiet") == "" and private_engine.docker("ps", "--all", "--quiet") == ""
