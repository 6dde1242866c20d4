"""What `status` says: the keys of the object, the states, and the sentence for each way to begin, go and end."""

from __future__ import annotations

import fcntl
import json
import shlex
import signal
from pathlib import Path

import pytest
from conftest import LONG, Cli, begin, kill_launcher, step_of, until

KEYS = (
    "name", "job", "environment", "backend", "state", "sentence", "attempt", "exit_code", "checkpoint", "exact", "reasons",
    "progress", "again", "directory", "started", "ended",
)  # fmt: skip


def status(cli: Cli) -> dict:
    found = cli("status", cli.only().name, "--json").json()
    assert tuple(found) == KEYS
    return found


def test_running(cli):
    cli.run("counter", "--detach", **LONG)
    until(lambda: cli.only().record.get("progress"), what="progress")
    found = status(cli)
    assert (found["state"], found["exit_code"], found["ended"]) == ("running", None, None)
    assert found["sentence"].startswith("It is running, at step ")
    assert " of 100000. Its last checkpoint: step " in found["sentence"]
    assert set(found["progress"]) == {"step", "total_steps", "metrics", "seconds_left"}
    assert set(found["progress"]["metrics"]) == {"loss"}


def test_running_without_a_step_yet(cli):
    cli.run("counter", "--detach", fault="hang")
    assert status(cli)["sentence"] == "It is running, and has not reported a step yet."


def test_pending(cli):
    cli.run("counter", steps=1)
    run = cli.only()
    (run.directory / "run.json").write_text(json.dumps({**run.record, "attempts": [], "exit_code": None}))
    with (run.directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = status(cli)
    assert (found["state"], found["sentence"]) == ("pending", "It is starting.")


def test_succeeded(cli):
    cli.run("counter", steps=3)
    found = status(cli)
    assert (found["state"], found["exit_code"], found["attempt"], found["exact"]) == ("succeeded", 0, 1, True)
    assert found["sentence"] in ("It succeeded after 0 s.", "It succeeded after 1 s.")
    assert found["checkpoint"] == {"path": "checkpoints/checkpoint-000000000003.npz", "step": 3}
    assert found["started"] <= found["ended"]


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGTERM, "it was told to stop."), (signal.SIGKILL, "its launcher was killed or the machine went down.")],
)
def test_interrupted(cli, number, said):
    kill_launcher(begin(cli, "counter"), number)
    found = status(cli)
    assert found["state"] == "interrupted"
    assert found["exit_code"] == (75 if number == signal.SIGTERM else None)
    step = found["checkpoint"]["step"]
    assert said in found["sentence"]
    assert found["sentence"].endswith(f"The same command continues from step {step} ({found['checkpoint']['path']}).")


@pytest.mark.parametrize(
    ("parameters", "code", "said"),
    [
        (
            {"code": 1},
            1,
            "the job ended with 1. Its last words: asked to end with 1. "
            "The same command starts it again from the beginning, for there is no checkpoint yet.",
        ),
        (
            {"code": 65, "at": 1},
            65,
            "the job ended with 65, which says that trying again is no use. Its last words: asked to end with 65. "
            "The same command tries step 1 (checkpoints/checkpoint-000000000001.npz) again; "
            "--fresh begins anew (the old files are kept).",
        ),
        ({"code": 9, "at": 1}, 70, "the job ended with 9, 3 times in a row without a newer checkpoint."),
    ],
)
def test_failed(cli, parameters, code, said):
    words = [word for key, value in parameters.items() for word in ("-P", f"{key}={value}")]
    cli.run("counter", *words, fault="exit", code=code)
    found = status(cli)
    assert (found["state"], found["exit_code"]) == ("failed", code)
    assert said in found["sentence"]


def damage_all(directory: Path) -> None:
    for path in (directory / "checkpoints").glob("checkpoint-*.npz"):
        path.write_bytes(path.read_bytes()[:50])


def test_damaged_checkpoints_are_counted_and_fresh_is_named(cli):
    directory = begin(cli, "counter", checkpoint=5)
    kill_launcher(directory)
    damage_all(directory)
    found = status(cli)
    assert found["checkpoint"] is None
    assert found["sentence"].endswith(
        " 3 checkpoint files are damaged, and none is whole. The same command starts it again without one; "
        "--fresh begins anew (the old files are kept)."
    )


def test_where_no_checkpoint_can_be_read_the_same_command_is_not_promised(cli, project):
    (project / "job.py").write_text(
        "import time\nfrom runner_checkpoint import Checkpoint\ncheckpoint = Checkpoint(every='1steps')\n"
        "state = checkpoint.restore()\nfor step in range(state.step if state else 0, 100000):\n"
        "    time.sleep(0.01)\n    checkpoint.step(step + 1)\n"
    )
    cli.run(project / "job.py", "-E", "tf0.0-cpu", "--detach")
    directory = cli.only().directory
    until(lambda: step_of(directory) >= 5, what="checkpoint 5")
    kill_launcher(directory)
    damage_all(directory)
    ended = cli.run(project / "job.py", "-E", "tf0.0-cpu", code=65)
    assert (
        "3 checkpoint files are damaged, and none is whole. --fresh begins anew (the old files are kept)."
        in ended.stderr
    )
    assert "The same command" not in ended.stderr
    cli.run(project / "job.py", "-E", "tf0.0-cpu", "--fresh", "--detach")
    assert cli.only().record["attempts"][0]["began_from"] is None


def test_the_sentence_comes_first_and_again_is_complete(cli, tmp_path):
    cli.run("counter", "-P", "fault=exit", code=1)
    lines = cli("status").stdout.splitlines()
    assert lines[0].startswith("It failed after ")
    again = next(line.split(None, 1)[1] for line in lines if line.startswith("again:"))
    cli.cwd = tmp_path  # from any other directory
    command, *words = shlex.split(again)
    assert command == "runner"
    cli(*words, code=1)
    assert len(cli.only().record["attempts"]) == 2


def test_the_object_is_the_last_line_of_run_json(cli):
    found = cli.run("counter", "--json", steps=2).json()
    assert tuple(found) == KEYS
    assert found["state"] == "succeeded"


def test_run_json_has_it_too_where_the_job_failed_or_it_was_detached(cli):
    assert cli.run("counter", "--json", "-P", "code=65", "-P", "fault=exit", code=65).json()["exit_code"] == 65
    assert cli("run", "counter", "--json", "--detach", "-P", "fault=hang").json()["state"] in ("pending", "running")
