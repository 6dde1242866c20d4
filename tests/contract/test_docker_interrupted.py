"""Runs in containers, interrupted in every way that there is on a real engine, and continued by the very same command."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import COUNTER, Cli, containers, step_of, until
from strangers import UID, Stranger, become_stranger

from runner import run_directory, runs

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("in_docker")]

STEPS = 200  # of 20 ms: enough to be met by an interruption, even on a slow machine
COMMAND = ("run", "counter", "-P", f"steps={STEPS}", "-P", "pause=0.02")


@pytest.fixture
def own_engine(private_engine: Any, cli: Cli, environment_image: Callable[[str], str]) -> Any:
    """An engine that may be killed, which the command line uses, with the counter's image."""
    private_engine.start()
    private_engine.load(environment_image(COUNTER))
    cli.env["DOCKER_HOST"] = private_engine.address
    return private_engine


def chain(steps: int) -> str:
    """Return the value that the counter must arrive at."""
    value = "0"
    for _ in range(steps):
        value = hashlib.sha256(value.encode()).hexdigest()
    return value


def attached(cli: Cli, step: int = 3) -> subprocess.Popen[str]:
    """Start the run and stay attached to it; return the command once there is a checkpoint."""
    command = cli.start(*COMMAND)
    until(lambda: reached(cli, step) or command.poll() is not None, what="a checkpoint")
    assert command.poll() is None, command.communicate()
    return command


def reached(cli: Cli, step: int) -> bool:
    return any(step_of(run.directory) >= step for run in runs.on_volume(cli.volume))


def cut_off(cli: Cli, command: subprocess.Popen[str], sentence: str, code: int = 75) -> None:
    """See how an attached command ended, and what `status` says then."""
    _, stderr = command.communicate(timeout=60)
    assert command.returncode == code, stderr
    assert "Traceback" not in stderr and sentence in stderr, stderr
    shown = cli("status", cli.only().name, "--json").json()
    assert (shown["state"], shown["exit_code"]) == ("interrupted", cli.only().record.get("exit_code"))
    assert sentence in shown["sentence"] and "The same command continues from step " in shown["sentence"]


def continued(cli: Cli) -> None:
    """Give the same command again, and see that it went on from a checkpoint and arrived where it must."""
    result = cli(*COMMAND)
    run = cli.only()
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("counting from"))
    began = int(line.split()[2])
    assert 0 < began < STEPS
    assert f"attempt {len(run.record['attempts'])}: continues from step {began} " in result.stderr
    assert cli.report() == {"steps": STEPS, "value": chain(STEPS)}
    assert run.state == "succeeded" and run.record["exact"] is True


def containers_of(cli: Cli) -> list[Any]:
    return [one for one in containers() if one.labels["runner.volume"] == str(cli.volume)]


def the_container(cli: Cli) -> Any:
    (found,) = containers_of(cli)
    return found


def kill_the_launcher(cli: Cli) -> None:
    holder = run_directory.holder(str(cli.only().directory / ".lock"))
    assert holder
    code, output = the_container(cli).exec_run(["sh", "-c", f"kill -KILL {holder['pid']}"])
    assert code == 0, output


# ---------------------------------------------------------------- the container

STOPPED, CUT_OFF = "it was told to stop", "It was cut off after"
WAYS: dict[str, tuple[Callable[[Cli], Any], str, str]] = {
    "runner stop": (lambda cli: cli("stop", cli.only().name), "interrupted", STOPPED),
    "docker stop": (lambda cli: the_container(cli).stop(), "interrupted", STOPPED),
    "docker kill": (lambda cli: the_container(cli).kill(), "lost", CUT_OFF),
    "docker rm -f": (lambda cli: the_container(cli).remove(force=True), "lost", CUT_OFF),
    "launch.py killed": (kill_the_launcher, "lost", CUT_OFF),
}


@pytest.mark.parametrize("way", WAYS)
def test_interrupted_and_continued_by_the_same_command(cli: Cli, way: str) -> None:
    interrupt, end, sentence = WAYS[way]
    command = attached(cli)
    interrupt(cli)
    cut_off(cli, command, sentence)
    continued(cli)
    assert [attempt["end"] for attempt in cli.only().record["attempts"]] == [end, "succeeded"]
    assert containers_of(cli) == []


EATER = """
import os, time
from pathlib import Path

begun = Path("begun.npz").exists()
Path("begun.npz").write_bytes(b"a checkpoint, for all that the runner sees")
print("continues" if begun else "begins", flush=True)
eaten = []
while int(os.environ["RUNNER_ATTEMPT"]) <= 3:
    eaten.append(bytearray(b"x") * 4_000_000)
    time.sleep(0.001)
"""


def test_out_of_memory_says_so_with_the_limit_and_the_same_command_continues(cli: Cli, project: Path) -> None:
    (project / "eater.py").write_text(EATER)
    words = ("run", project / "eater.py", "-E", COUNTER, "--memory", "64Mi")
    result = cli(*words, code=70)
    assert result.stdout.splitlines() == ["begins", "continues", "continues"]
    shown = cli("status", cli.only().name, "--json").json()
    assert shown["state"] == "failed"
    assert "OOM; the limit is 64 MiB" in shown["sentence"] and "OOM; the limit is 64 MiB" in result.stderr
    assert cli(*words).stdout == "continues\n"
    assert len(cli.only().record["attempts"]) == 4


def test_a_limit_that_is_too_small_for_the_launcher_itself_says_so(cli: Cli) -> None:
    for _ in range(2):
        said = cli.run("counter", "--memory", "8Mi", code=125, steps=5).stderr
        assert "limit of 8 MiB" in said and "OOM" in said and "--memory" in said
        assert containers_of(cli) == []
    cli.run("counter", steps=5)


# ---------------------------------------------------------------- the engine


def test_the_engine_is_killed_and_started_again(cli: Cli, own_engine: Any) -> None:
    command = attached(cli)
    own_engine.kill()
    step = step_of(cli.only().directory)
    until(lambda: step_of(cli.only().directory) > step, what="a checkpoint without an engine")
    assert cli("status", cli.only().name, "--json").json()["state"] == "running"
    own_engine.again()  # and it ends the containers that it finds
    cut_off(cli, command, STOPPED)
    continued(cli)
    assert own_engine.docker("ps", "--all", "--quiet") == ""


def test_the_engine_is_killed_with_all_containers(cli: Cli, own_engine: Any) -> None:
    command = attached(cli)
    own_engine.kill_everything()
    cut_off(cli, command, CUT_OFF)
    refused = cli(*COMMAND, code=125)
    assert "no Docker engine is running at" in refused.stderr
    own_engine.again()
    continued(cli)
    assert own_engine.docker("ps", "--all", "--quiet") == ""


def test_the_engine_is_stopped_in_an_orderly_way(cli: Cli, own_engine: Any) -> None:
    command = attached(cli)
    own_engine.stop()
    cut_off(cli, command, STOPPED)
    own_engine.again()
    continued(cli)


def test_a_run_that_is_done_while_the_engine_is_away_is_done(cli: Cli, own_engine: Any) -> None:
    command = attached(cli)
    own_engine.kill()
    _, stderr = command.communicate(timeout=60)
    assert (command.returncode, "Traceback" in stderr) == (0, False), stderr
    assert "It succeeded" in stderr
    assert "It succeeded" in cli(*COMMAND).stderr
    own_engine.again()
    cli("rm", cli.only().name)
    assert own_engine.docker("ps", "--all", "--quiet") == ""


# ---------------------------------------------------------------- the log

LINES = """
import os, signal, sys, time, zipfile

stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
number = int(zipfile.ZipFile("lines.npz").read("number")) if os.path.exists("lines.npz") else 0
while number < 100000:
    sys.stdout.write("".join("line %06d\\n" % one for one in range(number, number + 1000)))
    number += 1000
    with zipfile.ZipFile("partial", "w") as archive:
        archive.writestr("number", str(number))
    os.replace("partial", "lines.npz")
    time.sleep(0.01)
    if number == 40000 * int(os.environ["RUNNER_ATTEMPT"]):
        sys.stdout.write("a line without an end")
        sys.stdout.flush()
        while not stopping:
            time.sleep(0.01)
    if stopping:
        sys.exit(75)
"""


def lines(first: int, last: int) -> list[str]:
    return [f"line {number:06}" for number in range(first, last)]


def test_nothing_of_the_log_is_lost_or_repeated_over_engines_and_containers(
    cli: Cli, own_engine: Any, project: Path
) -> None:
    (project / "lines.py").write_text(LINES)
    words = ("run", project / "lines.py", "-E", COUNTER)
    partial = "a line without an end"

    first = cli.start(*words)
    until(lambda: runs.on_volume(cli.volume) and log(cli, 1).count("\n") > 10000, what="some lines")
    own_engine.kill()
    until(lambda: log(cli, 1).endswith(partial), what="the line without an end")
    own_engine.again()
    assert first.communicate()[0].splitlines() == [*lines(0, 40000), partial]
    assert first.returncode == 75

    second = cli.start(*words)
    until(lambda: "line 05" in log(cli, 2), what="some lines of the second attempt")
    beside = cli.start("logs", "-f", cli.only().name)
    until(lambda: log(cli, 2).endswith(partial), what="the line without an end")
    own_engine.docker("rm", "--force", *own_engine.docker("ps", "--quiet").split())
    assert second.communicate()[0].splitlines() == [*lines(40000, 80000), partial]
    assert beside.communicate()[0].splitlines() == [*lines(0, 40000), partial, *lines(40000, 80000), partial]

    assert cli(*words).stdout.splitlines() == lines(80000, 100000)
    whole = [*lines(0, 40000), partial, *lines(40000, 80000), partial, *lines(80000, 100000)]
    assert cli("logs", cli.only().name).stdout.splitlines() == whole


def log(cli: Cli, attempt: int) -> str:
    path = cli.only().directory / "logs" / f"attempt-{attempt}.log"
    return path.read_text() if path.exists() else ""


# ---------------------------------------------------------------- whose files, and other backends


@pytest.fixture
def stranger(cli: Cli, tmp_path: Path) -> Stranger:
    """A user who may use the engine through the group of its socket."""
    return become_stranger(cli, tmp_path, Path("/var/run/docker.sock").stat().st_gid)


def owners(*places: Path) -> set[int]:
    return {path.lstat().st_uid for place in places for path in (place, *place.rglob("*"))}


def test_all_files_are_the_users_whatever_the_backend(stranger: Stranger, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("volume", "cache", "home", "state")]
    for step, backend in ((3, "native"), (90, "docker")):
        stranger.env["RUNNER_ON"] = backend
        command = attached(stranger, step)
        stranger("stop", stranger.only().name)
        cut_off(stranger, command, STOPPED)
        assert owners(*places) == {UID}
    stranger.env["RUNNER_ON"] = "native"
    continued(stranger)
    stranger.run("counter", "--on", "docker", steps=STEPS + 10, pause=0.02)
    assert [attempt["backend"] for attempt in stranger.only().record["attempts"]] == ["native", "docker"] * 2
    assert stranger.report()["value"] == chain(STEPS + 10) and stranger.only().record["exact"] is True
    assert owners(*places) == {UID}
    stranger("rm", stranger.only().name, "--files")
    assert list(stranger.volume.iterdir()) == []


# ---------------------------------------------------------------- the trainer

TRAINING = (
    "run",
    "fashion_mnist",
    "-P",
    "train_images=6000",
    "-P",
    "hidden=32",
    "-P",
    "patience=200",
    "-P",
    "epochs=100",
)


def weights(cli: Cli, name: str) -> Any:
    run = runs.load(cli.volume / name)
    assert run and run.record["exact"] is True, run and run.record
    return json.loads((run.directory / "report.json").read_text())["weights_sha256"]


def train_a_while(cli: Cli, *words: str) -> subprocess.Popen[str]:
    """Start or continue the training, attached, until it has written a checkpoint of its own."""
    directory = cli.volume / "cut"
    before = step_of(directory) if directory.exists() else 0
    command = cli.start(*TRAINING, "--name", "cut", *words)
    until(lambda: step_of(directory) > before or command.poll() is not None, 120, "a newer checkpoint")
    assert command.poll() is None, command.communicate()
    return command


@pytest.mark.tensorflow
def test_the_training_has_the_same_bits_over_stops_kills_and_backends(
    cli: Cli, environment_image: Any, environment_python: Any, fashion_mnist: Path
) -> None:
    environment_image("tf2.21-cpu")
    environment_python("tf2.21-cpu")
    cli(*TRAINING, "--name", "whole")
    for interrupt in (lambda: cli("stop", "cut"), lambda: the_container(cli).kill()):
        command = train_a_while(cli)
        interrupt()
        assert command.wait(60) == 75
    cli(*TRAINING, "--name", "cut", "--on", "native")
    assert weights(cli, "cut") == weights(cli, "whole")


@pytest.mark.tensorflow
def test_the_training_has_the_same_bits_over_the_death_of_the_engine(
    cli: Cli, own_engine: Any, environment_image: Any, environment_python: Any, fashion_mnist: Path
) -> None:
    own_engine.load(environment_image("tf1.15-cpu"))  # the smallest: it has to get to the other engine
    environment_python("tf1.15-cpu")
    cli(*TRAINING, "--name", "whole", "-E", "tf1.15-cpu", "--on", "native")
    command = train_a_while(cli, "-E", "tf1.15-cpu", "--on", "native")
    cli("stop", "cut")
    assert command.wait(60) == 75
    command = train_a_while(cli, "-E", "tf1.15-cpu")
    own_engine.kill_everything()
    assert command.wait(60) == 75
    own_engine.again()
    cli(*TRAINING, "--name", "cut", "-E", "tf1.15-cpu")
    assert weights(cli, "cut") == weights(cli, "whole")
