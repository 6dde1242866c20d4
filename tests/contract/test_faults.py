"""What the job's exit codes, signals and SIGTERM lead to: each line of the contract's table, with real processes."""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest
from conftest import Cli, begin, kill_launcher, step_of, until

from runner import follow, run_directory, runs


def attempts(cli: Cli) -> int:
    return len(cli.only().record["attempts"])


# ---------------------------------------------------------------- by itself


def test_0_is_done(cli):
    cli.run("counter", steps=2)
    run = cli.only()
    assert run.record["exit_code"] == 0
    assert run.state == "succeeded"
    assert (run.directory / "done").exists()


@pytest.mark.parametrize("code", [2, 64, 65, 78])
def test_usage_data_and_configuration_are_final_even_after_a_checkpoint(cli, code):
    result = cli.run("counter", "--retries", "5", "-P", f"code={code}", fault="exit", at=2, code=code)
    assert attempts(cli) == 1
    assert "trying again is no use" in result.stderr


@pytest.mark.parametrize("code", [1, 3, 127])
def test_another_code_before_a_first_checkpoint_is_a_bug_and_passed_on_at_once(cli, code):
    cli.run("counter", "-P", f"code={code}", fault="exit", at=0, code=code)
    assert attempts(cli) == 1
    assert cli.only().state == "failed"


def test_another_code_after_a_checkpoint_is_tried_again_until_the_retries_are_used_up(cli):
    result = cli.run("counter", "--retries", "2", fault="exit", at=3, code=70)
    assert attempts(cli) == 3  # the first made checkpoints; two more did not
    assert "attempt 3: continues from step 3" in result.stderr


def test_what_fails_once_goes_on_and_succeeds(cli):
    cli.run("counter", fault="exit", at=3, times=1, steps=5)
    assert attempts(cli) == 2
    assert cli.only().record["attempts"][1]["began_from"]["step"] == 3


def test_75_without_a_sigterm_is_a_crash_like_any_other(cli):
    cli.run("counter", "-P", "code=75", fault="exit", at=0, code=70)
    assert attempts(cli) == 3


@pytest.mark.parametrize("fault", [["-P", "fault=crash"], ["-P", "fault=exit", "-P", "code=137"]])
def test_a_signal_or_128_and_above_is_tried_again_even_before_a_first_checkpoint(cli, fault):
    cli.run("counter", *fault, at=0, times=2, steps=2)
    assert attempts(cli) == 3


def test_consecutive_crashes_without_a_newer_checkpoint_end_with_70(cli):
    result = cli.run("counter", "--retries", "1", fault="crash", at=0, code=70)
    assert attempts(cli) == 2
    assert "killed by signal 9 (SIGKILL)" in result.stderr
    assert "2 times in a row without a newer checkpoint" in result.stderr


def test_no_retries_is_one_attempt(cli):
    cli.run("counter", "--retries", "0", fault="crash", at=0, code=70)
    assert attempts(cli) == 1


def test_progress_refills_the_retries(cli, project):
    (project / "stumbles.py").write_text(STUMBLES)
    cli.run(project / "stumbles.py", "-E", "tf0.0-cpu", "--retries", "1", "--", "step")
    assert attempts(cli) == 5


def test_a_file_written_anew_is_progress_too(cli, project):
    (project / "stumbles.py").write_text(STUMBLES)
    cli.run(project / "stumbles.py", "-E", "tf0.0-cpu", "--retries", "1", "--", "same")
    assert attempts(cli) == 5
    assert cli.only().checkpoint() == {"path": "work/" + project.name + "/model.npz", "step": None}


# Crashes four times, each time with a newer checkpoint: of the next step, or the same file written again.
STUMBLES = """
import os, sys, zipfile
attempt = int(os.environ["RUNNER_ATTEMPT"])
name = "model.npz"
if sys.argv[1] == "step":
    name = os.path.join(os.environ["RUNNER_DIR"], "checkpoints", "checkpoint-%012d.npz" % attempt)
with zipfile.ZipFile(name, "w") as archive:
    archive.writestr("a.npy", "x")
if attempt < 5:
    os.kill(os.getpid(), 9)
"""


def test_a_new_submission_has_a_new_budget(cli):
    for attempt in (2, 4):
        cli.run("counter", "--retries", "1", fault="crash", at=0, code=70)
        assert attempts(cli) == attempt


def test_a_command_that_is_missing_is_127_and_not_tried_again(cli, project):
    result = cli("run", project, "-E", "tf0.0-cpu", "--", "no-such-command", code=127)
    assert "no-such-command: there is no such command" in result.stderr
    assert attempts(cli) == 1


def test_a_command_that_may_not_be_executed_is_126(cli, project):
    (project / "script.sh").write_text("echo")
    result = cli("run", project, "-E", "tf0.0-cpu", "--", "./script.sh", code=126)
    assert "script.sh: Permission denied" in result.stderr


def test_the_last_words_of_a_failed_job_are_in_the_sentence(cli):
    result = cli.run("counter", fault="exit", at=0, code=1)
    assert "Its last words: asked to end with 1." in result.stderr


# ---------------------------------------------------------------- told to stop


def test_a_sigterm_is_passed_on_and_ends_with_75(cli):
    directory = begin(cli, "counter")
    kill_launcher(directory, signal.SIGTERM)
    run = cli.only()
    assert (run.record["exit_code"], run.state) == (75, "interrupted")
    assert run.record["attempts"][0]["code"] == 75


@pytest.mark.parametrize("on_term", ["zero", "fail"])
def test_any_code_after_a_sigterm_is_an_interruption(cli, on_term):
    directory = begin(cli, "counter", on_term=on_term)
    kill_launcher(directory, signal.SIGTERM)
    assert cli.only().record["exit_code"] == 75
    assert not (directory / "done").exists()


def test_0_after_a_sigterm_with_done_is_done(cli):
    directory = begin(cli, "counter", on_term="finish")
    kill_launcher(directory, signal.SIGTERM)
    assert cli.only().record["exit_code"] == 0


def test_a_job_that_ignores_sigterm_is_killed_after_the_grace(cli):
    cli.env["RUNNER_GRACE"] = "0.5"
    directory = begin(cli, "counter", fault="ignore", at=2, checkpoint=2)
    kill_launcher(directory, signal.SIGTERM)
    run = cli.only()
    assert (run.record["exit_code"], run.record["attempts"][0]["code"]) == (75, -signal.SIGKILL)
    assert run.checkpoint()["step"] == 2


def test_stop_says_what_the_same_command_continues_from(cli):
    begin(cli, "counter")
    result = cli("stop", cli.only().name)
    step = cli.only().checkpoint()["step"]
    assert "It was interrupted" in result.stderr
    assert f"The same command continues from step {step}" in result.stderr
    assert "again: runner run" in result.stderr


def test_an_interruption_does_not_use_up_the_retries(cli):
    for _ in range(2):
        directory = begin(cli, "counter", "--retries", "0")
        kill_launcher(directory, signal.SIGTERM)
    assert cli.only().record["budget"]["used"] == 0


def test_a_sigterm_reaches_the_job_alone_and_its_helpers_live_until_it_ends(cli, project):
    """A data loader that is told to stop would break the checkpoint that the job is about to write."""
    (project / "job.py").write_text(HELPER)
    cli.run(project / "job.py", "-E", "tf0.0-cpu", "--detach")
    log = cli.only().directory / "logs" / "attempt-1.log"
    until(lambda: "ready" in log.read_text(), what="the helper")
    kill_launcher(cli.only().directory, signal.SIGTERM)
    assert "the helper lives: True" in log.read_text()
    assert cli.only().state == "interrupted"


HELPER = """
import signal, subprocess, sys, time
helper = subprocess.Popen(["sleep", "600"])
def on_term(number, frame):
    time.sleep(0.2)
    print("the helper lives:", helper.poll() is None, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, on_term)
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


# ---------------------------------------------------------------- the terminal


def test_ctrl_c_writes_a_checkpoint_stops_and_returns_130(cli):
    shell = cli.start("run", "counter", "-P", "steps=100000", "-P", "pause=0.01", "-P", "every=100000")
    until(lambda: any(cli.volume.glob("*/metrics.jsonl")), what="a first step")
    shell.send_signal(signal.SIGINT)
    _, errors = shell.communicate(timeout=30)
    assert shell.returncode == 130
    assert "The same command continues from step" in errors  # only the signal made it write one
    assert cli.only().state == "interrupted"


def test_ctrl_c_twice_kills_and_the_last_checkpoint_stands(cli):
    shell = cli.start("run", "counter", "-P", "fault=ignore", "-P", "at=3")
    until(lambda: any(step_of(path) == 3 for path in cli.volume.iterdir()), what="checkpoint 3")
    shell.send_signal(signal.SIGINT)
    until(
        lambda: b"stopping" in (cli.only().directory / "logs" / "attempt-1.log").read_bytes(), what="the first signal"
    )
    shell.send_signal(signal.SIGINT)
    shell.communicate(timeout=30)
    assert shell.returncode == 130
    assert cli.only().record["attempts"][0]["code"] == -signal.SIGKILL
    assert cli.only().checkpoint()["step"] == 3


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_closed_terminal_changes_nothing(cli, number):
    shell = cli.start("run", "counter", "-P", "steps=100000", "-P", "pause=0.01", start_new_session=True)
    until(lambda: any(step_of(path) >= 1 for path in cli.volume.iterdir()), what="a first checkpoint")
    os.killpg(shell.pid, number)
    shell.communicate(timeout=30)
    before = step_of(cli.only().directory)
    until(lambda: step_of(cli.only().directory) > before, what="another checkpoint")
    assert cli.only().going


@pytest.mark.parametrize("words", [["wait"], ["run", "counter", "-P", "steps=100000", "-P", "pause=0.01"]])
def test_a_directory_that_vanishes_while_somebody_waits_is_a_sentence(cli, words):
    directory = begin(cli, "counter")
    shell = cli.start(*words, *([directory.name] if words == ["wait"] else []))
    until(
        lambda: words == ["wait"] or b"attached" in os.read(shell.stderr.fileno(), 4096), what="the command to attach"
    )
    time.sleep(1 if words == ["wait"] else 0.1)
    directory.rename(directory.parent.parent / "away")
    _, errors = shell.communicate(timeout=30)
    assert (shell.returncode, "Traceback" in errors) == (125, False)
    assert f"the run's directory {directory} is gone" in errors
    (directory.parent.parent / "away").rename(directory)


def test_who_is_attached_reads_the_records_of_a_run_seldom(cli, monkeypatch):
    begin(cli, "counter", steps=200)
    looks, load = [], runs.load
    monkeypatch.setattr(runs, "load", lambda directory: looks.append(time.monotonic()) or load(directory))
    directory = cli.only().directory
    looks.clear()
    ended = follow.follow(directory, follow.Screen(quiet=True))
    assert ended.state == "succeeded"
    assert min(later - sooner for sooner, later in itertools.pairwise(looks)) >= 0.15


# ---------------------------------------------------------------- what a job leaves behind


def test_a_stray_process_neither_keeps_the_run_going_nor_survives_it(cli):
    cli.run("counter", fault="stray", at=2, steps=5)
    run = cli.only()
    assert run.state == "succeeded"
    group = run.record["attempts"][0]["group"]
    assert run_directory.group_members(group, str(run.directory)) == []


def test_what_a_killed_launcher_left_is_killed_before_the_next_attempt(cli):
    directory = begin(cli, "counter", fault="stray", at=2, checkpoint=3)
    kill_launcher(directory)
    group = cli.only().record["attempts"][0]["group"]
    until(
        lambda: len(run_directory.group_members(group, str(directory))) == 1,
        what="the end of all but the stray process",
    )
    assert not cli.only().going
    begin(cli, "counter", fault="stray", at=2)
    assert run_directory.group_members(group, str(directory)) == []
    assert attempts(cli) == 2


def test_a_stray_process_in_a_session_of_its_own_does_not_hold_the_end_up(cli, project):
    (project / "job.py").write_text(
        "import subprocess\nprint(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)"
    )
    result = cli.run(project / "job.py", "-E", "tf0.0-cpu")
    os.kill(int(result.stdout), signal.SIGKILL)
    assert cli.only().state == "succeeded"


# ---------------------------------------------------------------- output


def test_a_flood_of_output_is_followed_whole_and_once(cli):
    result = cli.run("counter", fault="flood", at=1, steps=2)
    lines = [line for line in result.stdout.splitlines() if line.startswith("line ")]
    assert lines == [f"line {number:06d}" for number in range(100000)]


def test_a_last_line_without_an_end_is_shown(cli, project):
    (project / "job.py").write_text("print('whole')\nprint('a part', end='')")
    result = cli.run(project / "job.py", "-E", "tf0.0-cpu")
    assert result.stdout.splitlines() == ["whole", "a part"]


def test_lines_for_programs_are_in_the_log_and_hidden_from_people(cli):
    result = cli.run("counter", steps=2)
    assert "@runner" not in result.output
    log = (cli.only().directory / "logs" / "attempt-1.log").read_text()
    assert '@runner {"path": "checkpoints/checkpoint-000000000002.npz", "step": 2, "event": "checkpoint"}' in log


def test_logs_shows_all_attempts(cli):
    cli.run("counter", fault="crash", at=2, times=2, steps=4)
    lines = cli("logs", cli.only().name).stdout.splitlines()
    assert lines[:3] == ["counting from 0 to 4", "counting from 2 to 4", "counting from 2 to 4"]
    assert lines[3].startswith("counted to 4")


@pytest.mark.parametrize("lost", [1, 2])
def test_logs_shows_what_is_left_where_a_log_was_removed(cli, lost):
    cli.run("counter", fault="crash", at=2, times=2, steps=4)
    (cli.only().directory / "logs" / f"attempt-{lost}.log").unlink()
    lines = [line for line in cli("logs", cli.only().name).stdout.splitlines() if "counting" in line]
    assert len(lines) == 2


def test_logs_f_follows_to_the_end(cli):
    begin(cli, "counter", steps=100)
    result = cli("logs", "-f", cli.only().name)
    assert result.stdout.splitlines()[-1].startswith("counted to 100")
    assert cli.only().state == "succeeded"


def test_a_job_cannot_break_the_log_with_bytes_that_are_no_text(cli, project):
    (project / "job.py").write_text(
        "import os\nos.write(1, b'\\xff\\xfe\\n@runner {not json\\n@runner {\"progress\": 3}\\n')"
    )
    result = cli.run(project / "job.py", "-E", "tf0.0-cpu")
    assert "@runner" not in result.stdout


# ---------------------------------------------------------------- damage


def test_a_damaged_checkpoint_is_not_what_the_run_continues_from(cli):
    directory = begin(cli, "counter", checkpoint=5, pause=0.0)
    kill_launcher(directory)
    newest = sorted((directory / "checkpoints").glob("checkpoint-*"))
    newest[-1].write_bytes(newest[-1].read_bytes()[:100])
    before = newest[-2]
    said = cli("status", cli.only().name)
    assert before.name in said.stdout.splitlines()[0]
    begin(cli, "counter", pause=0.0)
    assert cli.only().record["attempts"][1]["began_from"]["path"] == f"checkpoints/{before.name}"
    log = directory / "logs" / "attempt-2.log"
    until(lambda: f"checkpoint {newest[-1].name} is damaged, the one before it is used" in log.read_text())


def test_a_copied_volume_continues_from_the_highest_step_whatever_the_times_are(cli):
    cli.run("counter", steps=5)
    directory = cli.only().directory
    for age, path in enumerate(sorted((directory / "checkpoints").glob("checkpoint-*"))):
        os.utime(path, (time.time() - age, time.time() - age))
    assert step_of(directory) == 5
