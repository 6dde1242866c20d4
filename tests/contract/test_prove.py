"""`runner prove`: what it says of a job that is resumable, of one that is not, and of one that checkpoints nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from conftest import Cli, kill_launcher, until

from runner import proof, runs

ENDLESS = ("-P", "steps=100000", "-P", "pause=0.01")
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
    assert list((tmp_path / "cache" / "submissions").glob("*")) == []
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


SAVER = """
import json, os, struct, sys, time, zipfile

RESTORES, REPORTS = "restores" in sys.argv, "reports" in sys.argv
step = 0
if RESTORES and os.path.exists("m.npz"):
    step = int(zipfile.ZipFile("m.npz").read("step.npy")[-1])
for step in range(step + 1, 61):
    time.sleep(0.03)
    with zipfile.ZipFile("partial", "w") as archive:
        header = "{'descr': '|u1', 'fortran_order': False, 'shape': (), }".ljust(117) + chr(10)
        archive.writestr("step.npy", b"\\x93NUMPY\\1\\0" + struct.pack("<H", 118) + header.encode() + bytes([step]))
    os.replace("partial", "m.npz")
    if REPORTS:
        with open(os.environ["RUNNER_DIR"] + "/metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step}) + chr(10))
"""


@pytest.fixture
def saver(project: Path) -> tuple[str | Path, ...]:
    """The words that prove a script which saves at each step; more words say what else it does."""
    (project / "saver.py").write_text(SAVER)
    return ("prove", project, "-E", "tf0.0-cpu", "--kills", "3", "--seed", "1", "--", "python", "saver.py")


@pytest.mark.parametrize("reports", [(), ("reports",)])
def test_a_job_that_never_restores_is_not_called_resumable(cli, saver, reports):
    result = cli(*saver, *reports, code=1)
    assert result.stdout.startswith("the same bits after 4 kills, but it begins again each time: nothing is restored (")


@pytest.mark.parametrize("reports", [(), ("reports",)])
def test_a_job_that_restores_is_seen_to_by_its_steps_or_else_by_its_time(cli, saver, reports):
    result = cli(*saver, "restores", *reports)
    assert result.stdout.startswith("resumable, bit-identical: 1 array in 1 file is the same after 4 kills (work/")


def ended(directory: Path, *seconds: float, begins_from: bool = True) -> runs.Found:
    """Return a run that reported no steps, with attempts that took so long."""
    (directory / "logs").mkdir(parents=True)
    attempts = []
    for number, length in enumerate(seconds, 1):
        (directory / f"logs/attempt-{number}.log").touch()
        began_from = {"path": "work/m.npz", "step": None} if begins_from else None
        attempts.append({"number": number, "started": 0.0, "ended": length, "began_from": began_from})
    return runs.Found(directory=directory, request={}, record={"attempts": attempts}, going=False)


@pytest.mark.parametrize(
    ("kills", "worked", "last", "begins_from", "resumes", "words"),
    [
        (0, 0, 10, True, None, "not proved: it was done before it could be killed"),
        (2, 8, 10, False, None, "not proved: the same bits after 2 kills, but none came after a checkpoint"),
        (2, 8, 10, True, False, "the same bits after 2 kills, but it begins again each time: nothing is restored"),
        (2, 8, 3, True, True, "resumable, bit-identical"),
        (2, 8, 7, True, None, "cannot be seen, for it reports no steps"),
        (2, 1, 10, True, None, "cannot be seen, for it reports no steps"),
    ],
)
def test_equal_bits_alone_do_not_make_a_job_resumable(kills, worked, last, begins_from, resumes, words, project):
    reference = ended(project / "reference", 10)
    killed = proof.Killed(
        run=ended(project / "killed", 4, last, begins_from=begins_from), kills=kills, worked=float(worked)
    )
    judged = proof._judged(reference, killed, "1 array in 1 file", "work/m.npz")
    assert judged[0] is resumes and words in judged[1]


def test_a_short_job_is_killed_as_often_as_can_be_and_the_count_is_honest(cli):
    result = cli("prove", "counter", "--kills", "9", "--json", "-P", "steps=2", code=None)
    verdict = result.json()
    assert verdict["identical"] is True
    assert f"after {verdict['kills']} kill" in verdict["sentence"] or "not proved" in verdict["sentence"]
    assert result.code == (0 if verdict["proved"] else 1)
    assert verdict["kills"] == 10 or f"after {verdict['kills']} of 10 kills" in result.stderr


def test_prove_in_json(cli):
    verdict = cli("prove", "counter", "--kills", "1", "--json", *LONG_ENOUGH).json()
    assert (verdict["identical"], verdict["compared"], verdict["kills"]) == (True, 6, 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_ends_it_is_left_with_nothing(cli, number):
    shell = cli.start("prove", "counter", *ENDLESS)
    until(lambda: list(cli.volume.glob(".prove-*/*/counter-*/metrics.jsonl")), what="the first run's first step")
    shell.send_signal(number)
    shell.communicate(timeout=30)
    assert shell.returncode == 130


def test_a_signal_before_the_run_was_taken_leaves_nothing(cli):
    shell = cli.start("prove", "counter", *ENDLESS)
    until(lambda: list(cli.volume.glob(".prove-*/uninterrupted")), what="the first run's volume")
    shell.send_signal(signal.SIGTERM)
    shell.communicate(timeout=30)
    assert shell.returncode == 130


def test_what_a_killed_proof_leaves_is_unused_once_its_run_has_ended(cli, tmp_path):
    (tmp_path / "cache").rename(tmp_path / "shared")  # `rm --unused` must not meet anybody else's environments
    (tmp_path / "cache").mkdir()
    shell = cli.start("prove", "counter", *ENDLESS)
    until(lambda: list(cli.volume.glob(".prove-*/*/counter-*/metrics.jsonl")), what="the first run's first step")
    assert "rest of a proof" not in cli("rm", "--unused", code=None).output
    shell.kill()
    shell.communicate()
    assert "rest of a proof" not in cli("rm", "--unused", code=None).output  # its run is going
    (directory,) = cli.volume.glob(".prove-*/*/counter-*")
    kill_launcher(directory)
    assert "rest of a proof" in cli("rm", "--unused", code=2).stdout
    cli("rm", "--unused", "--yes")
