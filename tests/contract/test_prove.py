"""`runner prove`: what it says of a job that is resumable, of one that is not, and of one that checkpoints nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from conftest import Cli, until

LONG_ENOUGH = ("-P", "steps=60", "-P", "pause=0.02")


def processes_of(volume: Path) -> list[str]:
    """Return the processes that work on a volume, or did."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str(volume).encode() in (path / "environ").read_bytes() + (path / "cmdline").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [words for words in found if "launch.py" in words or "counter.py" in words]


@pytest.fixture(autouse=True)
def nothing_is_left(cli: Cli, volume: Path, tmp_path: Path):
    yield
    assert list(volume.iterdir()) == []
    assert list((tmp_path / "cache" / "submissions").iterdir()) == []
    assert processes_of(tmp_path) == []


def test_a_resumable_job_is_said_to_be_bit_identical(cli):
    result = cli("prove", "counter", "--kills", "3", "--seed", "1", *LONG_ENOUGH)
    assert result.stdout.startswith(
        "resumable, bit-identical: 6 arrays in 3 files are the same after 4 kills (checkpoints/"
    )
    said = result.stderr.splitlines()[-4:]  # of the last try, should the job have been faster than its kills
    assert sorted(line.split(":")[0] for line in said) == ["killed", "killed", "killed", "told to stop"]


def test_a_result_that_depends_on_the_attempts_is_named_with_file_array_and_step(cli):
    result = cli("prove", "counter", "--kills", "2", "-P", "drift=true", *LONG_ENOUGH, code=1)
    assert result.stdout.startswith("not the same after 3 kills: checkpoints/checkpoint-0000000000")
    assert ".npz, array value; the metrics part at step " in result.stdout


def test_a_job_that_checkpoints_nothing_is_told_so(cli, project):
    (project / "job.py").write_text("import time\ntime.sleep(0.5)\n")
    result = cli("prove", project / "job.py", "-E", "tf0.0-cpu", "--kills", "1", code=1)
    assert result.stdout.startswith("nothing was checkpointed: ")


def test_a_job_that_fails_by_itself_leaves_nothing_to_compare(cli):
    result = cli("prove", "counter", "-P", "fault=exit", code=125)
    assert "the uninterrupted run did not succeed, so there is nothing to compare" in result.stderr
    assert "Its last words: asked to end with 1" in result.stderr


def test_a_short_job_is_killed_as_often_as_can_be_and_the_count_is_honest(cli):
    result = cli("prove", "counter", "--kills", "9", "--json", "-P", "steps=2")
    verdict = result.json()
    assert verdict["identical"] is True
    assert f"after {verdict['kills']} kill" in verdict["sentence"]
    assert verdict["kills"] == 10 or f"after {verdict['kills']} of 10 kills" in result.stderr


def test_prove_in_json(cli):
    verdict = cli("prove", "counter", "--kills", "1", "--json", *LONG_ENOUGH).json()
    assert (verdict["identical"], verdict["compared"], verdict["kills"]) == (True, 6, 2)


def test_ctrl_c_leaves_nothing(cli):
    shell = cli.start("prove", "counter", "-P", "steps=100000", "-P", "pause=0.01")
    until(lambda: list(cli.volume.glob(".prove-*/*/counter-*/metrics.jsonl")), what="the first run's first step")
    shell.send_signal(signal.SIGINT)
    shell.communicate(timeout=30)
    assert shell.returncode == 130
