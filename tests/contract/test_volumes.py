"""Volumes of all kinds: odd names, poor file systems, copies with holes, full disks; and projects in odd places."""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import JOBS, kill_launcher, step_of, until
from mounts import drive, fat, mounted

from runner import runs

ODD = 'it\'s "my" Läufe & $HOME;数据'


@pytest.fixture
def odd(cli, tmp_path):
    """A volume whose path has all that a shell would take for something else."""
    path = tmp_path / ODD
    path.mkdir()
    cli.env["RUNNER_VOLUME"] = str(path)
    cli.volume = path
    yield path
    for run in runs.on_volume(path):
        kill_launcher(run.directory)


@pytest.fixture
def paste(cli, tmp_path):
    """A function that runs a printed command in a shell, elsewhere, as somebody who pastes it."""
    program = tmp_path / "bin" / "runner"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m runner "$@"\n')
    program.chmod(0o755)
    env = {**cli.env, "GIVEN": "x", "PATH": f"{program.parent}:{cli.env['PATH']}"}
    del env["RUNNER_VOLUME"]

    def run(command):
        done = subprocess.run(command, shell=True, cwd="/", env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_any_path_works_and_printed_commands_can_be_pasted_elsewhere(cli, odd, paste, tmp_path):
    folder = tmp_path / "mein $Projekt 'neu'"
    shutil.copytree(JOBS / "counter", folder)
    (tmp_path / "some data").mkdir()
    words = (
        "-E",
        "tf0.0-cpu",
        "-e",
        "GREETING=it's me",
        "-e",
        "GIVEN",
        "--retries",
        "1",
        "--data",
        "mine=../../some data",
    )
    cli.env["GIVEN"] = "x"  # the shell has it, too: a value that is not typed is in no command
    cli.cwd = folder.parent / "some data" / "deeper"
    cli.cwd.mkdir()
    shutil.copytree(JOBS / "locks", cli.cwd / "locks")
    shutil.copy(JOBS / "environments.yaml", cli.cwd)
    detached = cli.run(folder, *words, "--detach", steps=1000, pause=0.05)
    run = cli.only()
    until(lambda: run.directory.exists() and step_of(run.directory) > 0)
    commands = [line.strip() for line in detached.stderr.splitlines() if line.startswith("  runner ")]
    assert paste(commands[0]).stdout.startswith("It is running")
    assert "It was interrupted" in paste(commands[2]).stderr
    again = cli("status").stdout.splitlines()[-1].removeprefix("again:").strip()
    assert "GREETING=it" in again and f"mine={tmp_path / 'some data'}" in again
    # The number of steps can be raised, so that the run comes to its end.
    done = paste(
        again.replace("-P steps=1000", "-P steps=1000 -P steps=1001").replace("pause=0.05", "pause=0.05") + " --detach"
    )
    assert done.stdout.strip() == run.name
    assert len(until(lambda: runs.load(run.directory).record["attempts"][1:])) == 1


def test_a_project_that_contains_its_volume_does_not_swallow_it(cli, tmp_path):
    folder = tmp_path / "counter"
    shutil.copytree(JOBS / "counter", folder)
    (folder / "runs").mkdir()
    words = ("-E", "tf0.0-cpu", "--volume", folder / "runs")
    cli.run(folder, *words, steps=2)
    cli.run(folder, *words, steps=2, seed=7)
    assert "It succeeded" in cli.run(folder, *words, steps=2).stderr
    (first, second) = runs.on_volume(folder / "runs")
    assert set(first.request["code"]) == set(second.request["code"]) == {"counter.py", "job.yaml"}


# A file is a job


def test_a_script_takes_its_project_and_its_options(cli, tmp_path):
    folder = tmp_path / "project"
    (folder / "deep").mkdir(parents=True)
    (folder / "output").mkdir()
    (folder / "requirements.txt").write_text("")
    (folder / "deep/train.py").write_text(
        "import os, sys\nprint(sys.argv[1:], os.path.basename(os.getcwd()), os.listdir('output'))\n"
    )
    done = cli.run(folder / "deep/train.py", "-E", "tf0.0-cpu", "--", "--epochs", "20")
    assert "['--epochs', '20'] project []" in done.stdout
    assert cli.only().name.startswith("project-")


def test_a_script_in_a_home_travels_alone_with_its_modules(cli, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    cli.env["HOME"] = str(home)
    (home / "train.py").write_text("import os, helper\nprint(helper.VALUE, sorted(os.listdir()))\n")
    (home / "helper.py").write_text("VALUE = 42\n")
    (home / "private").write_text("")
    assert "42 ['helper.py', 'train.py']" in cli.run(home / "train.py", "-E", "tf0.0-cpu").stdout.replace(
        "'__pycache__', ", ""
    )


# Poor file systems


def survive_a_kill(cli, steps=40):
    """Kill the launcher of a run half way and ask again: the value must be that of a run without a kill."""
    cli.run("counter", "--name", "mine", "--detach", steps=steps, pause=0.05)
    directory = cli.volume / "mine"
    until(lambda: step_of(directory) > 3)
    assert "mine" in cli("ps").stdout and "is going already: attached" in cli.run(
        "counter", "--name", "mine", "--detach", steps=steps, pause=0.05).stderr  # fmt: skip
    kill_launcher(directory)
    assert "It was cut off" in cli("status", "mine").stdout
    ended = cli.run("counter", "--name", "mine", steps=steps, pause=0.05)
    assert "continues from step" in ended.stderr
    report = json.loads((directory / "report.json").read_text())
    cli.run("counter", "--name", "whole", steps=steps)
    assert report == json.loads((cli.volume / "whole/report.json").read_text())
    assert len(runs.load(directory).record["attempts"]) == 2


def test_a_run_survives_a_kill_on_fat(cli, tmp_path):
    with fat(tmp_path / "fat", tmp_path / "image") as cli.volume:
        cli.env["RUNNER_VOLUME"] = str(cli.volume)
        survive_a_kill(cli)
        cli("rm", "mine", "--files")


def test_a_run_survives_a_kill_on_a_drive_without_flock_chmod_links_and_fsync(cli, tmp_path):
    with drive(tmp_path / "drive", tmp_path / "backing") as cli.volume:
        cli.env["RUNNER_VOLUME"] = str(cli.volume)
        with pytest.raises(OSError, match="not supported"):
            cli.volume.chmod(0o777)
        with (cli.volume / "x").open("w") as file, pytest.raises(OSError, match="not supported"):
            fcntl.flock(file, fcntl.LOCK_EX)
        (cli.volume / "x").unlink()
        survive_a_kill(cli)
        cli("pull", "mine", tmp_path / "out")
        cli("rm", "mine", "--files")
        assert [path.name for path in cli.volume.iterdir()] == ["whole"]


@pytest.mark.parametrize("hole", ["missing", "cut", "empty"])
def test_a_copied_volume_with_holes_goes_on_from_the_checkpoint_before(cli, volume, tmp_path, hole):
    """A drive that was synchronized by halves: the newest checkpoint is not all there."""
    cli.run("counter", "--name", "mine", "--detach", steps=1000, pause=0.03)
    until(lambda: step_of(volume / "mine") > 5)
    kill_launcher(volume / "mine", signal.SIGTERM)
    copy = tmp_path / "copy"
    shutil.copytree(volume, copy)
    kept = sorted((copy / "mine/checkpoints").glob("checkpoint-*"))
    before = int(kept[-2].stem.rpartition("-")[2])
    if hole == "missing":
        kept[-1].unlink()
    else:
        os.truncate(kept[-1], 100 if hole == "cut" else 0)
    status = cli("status", "mine", "--volume", copy, "--json").json()
    assert status["checkpoint"]["step"] == before
    problem = "missing" if hole == "missing" else "damaged"
    lost = f"heckpoint step {before + 1} (checkpoints/{kept[-1].name}) is {problem}"
    said = cli("status", "mine", "--volume", copy).stdout
    assert f"C{lost}. The same command continues from step {before} " in said
    ended = cli.run(
        "counter", "--name", "mine", "--volume", copy, steps=before + 5, pause=0.03, code=2
    )  # fewer than asked
    assert "steps: was 1000" in ended.stderr
    cli.run("counter", "--name", "mine", "--volume", copy, "--detach", steps=1000, pause=0.03)
    lines = until(
        lambda: [line for line in cli("logs", "mine", "--volume", copy).stdout.splitlines() if "counting" in line][1:]
    )
    kill_launcher(copy / "mine")
    assert lines == [f"counting from {before} to 1000"]
    assert f"c{lost}\n" in cli("logs", "mine", "--volume", copy).stderr
    log = (copy / "mine/logs/attempt-2.log").read_text()
    assert (f"{kept[-1].name} is damaged, the one before it is used" in log) is (hole != "missing")


# Full disks


def test_a_full_disk_ends_a_run_with_a_sentence_and_it_goes_on_when_there_is_space(cli, tmp_path):
    with mounted(tmp_path / "small", "-o", "size=2m") as cli.volume:
        cli.env["RUNNER_VOLUME"] = str(cli.volume)
        words = {"steps": 200, "pause": 0.02}
        cli.run("counter", "--name", "mine", "--detach", "--retries", "0", **words)
        until(lambda: step_of(cli.volume / "mine") > 3)
        filler = cli.volume / "filler"
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"x" * 4096)
                except OSError:
                    break
        ended = cli("wait", "mine", code=70)
        assert "It failed" in ended.stderr and "No space left on device" in ended.stderr
        reached = step_of(cli.volume / "mine")
        assert reached > 3 and f"The same command continues from step {reached} " in ended.stderr
        assert cli("status", "mine", "--json").json()["state"] == "failed"
        again = cli.run("counter", "--name", "mine", "--retries", "0", code=None, **words)  # still full
        assert again.code != 0 and again.stderr.strip()
        assert step_of(cli.volume / "mine") == reached
        filler.unlink()
        cli.run("counter", "--name", "mine", **words)
        full = json.loads((cli.volume / "mine/report.json").read_text())
        cli.run("counter", "--name", "whole", steps=200)
        assert full == json.loads((cli.volume / "whole/report.json").read_text())


def test_a_volume_that_is_full_before_the_start_is_a_sentence(cli, tmp_path):
    with mounted(tmp_path / "small", "-o", "size=256k") as cli.volume:
        (cli.volume / "filler").write_bytes(b"x" * 61 * 4096)
        result = cli.run("counter", "--name", "mine", "--volume", cli.volume, code=78, steps=2)
        assert "No space left on device" in result.stderr and "runner: " in result.stderr
        (cli.volume / "filler").unlink()
        cli.run("counter", "--name", "mine", "--volume", cli.volume, steps=2)


def test_the_default_volume_is_made_on_demand(cli, tmp_path):
    del cli.env["RUNNER_VOLUME"]
    cli.env["HOME"] = str(tmp_path / "home")
    Path(cli.env["HOME"]).mkdir()
    cli("render", "counter", "-P", "steps=2")
    assert not (tmp_path / "home/runs").exists()
    cli.run("counter", steps=2)
    assert len(list((tmp_path / "home/runs").iterdir())) == 1
