"""Runs in containers, interrupted in every way that there is on a real engine, and continued by the very same command."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, containers, step_of, until

from runner import run_directory, runs

pytestmark = pytest.mark.docker

STEPS = 200  # of 20 ms: enough to be met by an interruption, even on a slow machine
COMMAND = ("run", "counter", "-P", f"steps={STEPS}", "-P", "pause=0.02")
COUNTER = "tf0.0-cpu"


@pytest.fixture
def cli(cli: Cli, environment_image: Callable[[str], str]) -> Cli:
    """The command line, with Docker as the backend where none is named."""
    environment_image(COUNTER)
    cli.env["RUNNER_ON"] = "docker"
    return cli


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
