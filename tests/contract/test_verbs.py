"""The verbs: how they find a run, what they show, and what they remove."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import JOBS, Cli, kill_launcher, until
from terminals import on_terminal

from runner import runs


@pytest.fixture
def slow(cli):
    """A run that is going, with a checkpoint."""
    cli.run("counter", "--name", "slow", "--detach", steps=1000, pause=0.05)
    until(lambda: runs.load(cli.volume / "slow").checkpoint())
    return runs.load(cli.volume / "slow")


def finished(cli, *names):
    for name in names:
        cli.run("counter", "--name", name, steps=2)


# Finding the run


def test_a_unique_prefix_or_nothing_finds_a_run(cli):
    finished(cli, "first-a", "first-b", "second")
    assert "run:         second" in cli("status", "sec").stdout
    assert "run:         second" in cli("status").stdout  # the newest
    refusal = cli("status", "first", code=2).stderr
    assert "'first' is the beginning of several runs: first-a, first-b. Give more of the name." in refusal
    assert "unknown run" in (refusal := cli("logs", "frist-a", code=2).stderr) and "Did you mean first-a?" in refusal
    for name in ("../volume", "..", "", "x" * 300, "a\nb"):
        assert "is no run's name. List them with: runner ps" in cli("status", name, code=2).stderr


def test_what_fresh_has_kept_does_not_make_a_prefix_ambiguous(cli):
    finished(cli, "mine")
    cli.run("counter", "--name", "mine", "--fresh", steps=2)
    assert "run:         mine, succeeded" in cli("status", "mi").stdout
    assert "run:         mine.1, succeeded" in cli("status", "mine.1").stdout


def test_runs_are_found_from_anywhere_in_all_places_that_were_used(cli, tmp_path):
    finished(cli, "here")
    other = tmp_path / "other volume"
    other.mkdir()
    cli.run("counter", "--name", "there", "--volume", other, steps=2)
    cli.cwd = tmp_path
    assert "run:         there" in cli("status").stdout
    assert "counted to 2" in cli("logs", "ther").stdout
    assert {line.split()[0] for line in cli("ps").stdout.splitlines()[1:]} == {"here", "there"}
    assert "there" not in cli("ps", "--volume", cli.volume).stdout
    assert "unknown run" in cli("status", "there", "--volume", cli.volume, code=2).stderr
    assert "does not exist" in cli("ps", "--volume", tmp_path / "nowhere", code=2).stderr
    relative = json.loads(cli("status", "there", "--volume", "other volume", "--json").stdout)
    assert relative["directory"] == str(other / "there")
    del cli.env["RUNNER_VOLUME"]  # found again in the list
    cli.env["HOME"] = str(tmp_path)
    assert "run:         there" in cli("status").stdout
    shutil.rmtree(cli.env["RUNNER_STATE"])  # whose loss loses nothing
    assert "there is no run" in cli("status", code=2).stderr
    assert "run:         there" in cli("status", "--volume", other).stdout


def test_a_name_that_is_on_several_volumes_needs_the_volume(cli, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    cli.run("counter", "--name", "dup", "--volume", other, steps=2)
    cli.run("counter", "--name", "dup", "--detach", steps=1000, pause=0.05)
    for words in (["stop", "dup"], ["rm", "dup", "--files"], ["status", "du"]):
        refusal = cli(*words, code=2).stderr
        assert f"dup is on several volumes: {cli.volume}, {other}. Say which with --volume" in refusal
    cli("rm", "dup", "--files", "--volume", other)
    assert "run:         dup, running" in cli("status", "dup").stdout


def test_a_volume_that_a_variable_named_is_remembered(cli, tmp_path):
    finished(cli, "mine")
    del cli.env["RUNNER_VOLUME"]
    cli.env["HOME"] = str(tmp_path)
    assert "run:         mine" in cli("status").stdout


def test_on_a_backend_only_what_ran_there_is_found(cli):
    finished(cli, "native-one")
    assert "native-one" in cli("ps", "--on", "native").stdout
    request = cli.volume / "native-one" / "run.json"
    request.write_text(json.dumps({**json.loads(request.read_text()), "backend": "elsewhere"}))
    assert "no runs on" in cli("ps", "--on", "native").stdout
    assert "there is no run" in cli("status", "--on", "native", code=2).stderr


def test_without_any_run_the_next_step_is_said(cli):
    assert "start one with: runner run fashion_mnist" in cli("ps").stdout
    assert cli("ps", "--json").json() == []
    for verb in ("status", "logs", "stop", "pull", "rm"):
        assert "Start one with: runner run fashion_mnist" in cli(verb, code=2).stderr


# Looking


def test_ps_lists_the_newest_first_as_a_table_and_as_json(cli, slow):
    finished(cli, "done")
    cli.run("counter", "--name", "bad", steps=2, fault="exit", code=1)
    lines = [line.split() for line in cli("ps").stdout.splitlines()]
    assert lines[0] == ["run", "state", "progress", "environment", "on", "began", "size", "volume"]
    assert [line[:2] for line in lines[1:]] == [["bad", "failed"], ["done", "succeeded"], ["slow", "running"]]
    listed = cli("ps", "--json").json()
    assert [(run["name"], run["state"], run["exit_code"]) for run in listed] == [
        ("bad", "failed", 1), ("done", "succeeded", 0), ("slow", "running", None),
    ]  # fmt: skip
    assert all(run["bytes"] > 0 and run["sentence"] and run["again"] for run in listed)


def test_a_thousand_runs_are_listed(cli, tmp_path):
    finished(cli, "one")
    for number in range(1000):
        folder = cli.volume / f"copy-{number:04d}"
        (folder / "checkpoints").mkdir(parents=True)
        for name in ("request.json", "run.json", "checkpoints/checkpoint-000000000002.npz"):
            shutil.copy(cli.volume / "one" / name, folder / name)
    assert len(cli("ps").stdout.splitlines()) == 1002
    assert len(cli("ps", "--json").json()) == 1001


def test_status_says_first_in_one_sentence_what_there_is_to_say(cli, slow):
    lines = cli("status").stdout.splitlines()
    assert lines[0].startswith("It is running, at step ") and "Its last checkpoint: step " in lines[0]
    assert lines[1] == "run:         slow, running"
    cli("stop", "slow")
    assert cli("status").stdout.startswith("It was interrupted after ")
    assert "The same command continues from step " in cli("status").stdout
    status = cli("status", "--json").json()
    keys = ("name job environment backend state sentence attempt exit_code checkpoint exact reasons progress again "
            "directory started ended")  # fmt: skip
    assert list(status) == keys.split()
    assert (status["state"], status["exit_code"], status["exact"], status["attempt"]) == ("interrupted", 75, True, 1)
    assert status["progress"]["step"] >= status["checkpoint"]["step"] > 0


def test_logs_are_those_of_all_attempts(cli):
    cli.run("counter", "--name", "twice", steps=4, fault="crash", at=2, times=1)
    assert cli("logs").stdout.count("counting from") == 2
    assert "@runner" not in cli("logs").output


def test_logs_can_be_followed_to_the_end(cli):
    cli.run("counter", "--name", "mine", "--detach", steps=30, pause=0.03)
    followed = cli("logs", "-f")
    assert followed.stdout.count("counting from 0") == 1 and "counted to 30" in followed.stdout
    assert cli("logs", "-f", "mine").stdout == followed.stdout  # of an ended run, the log


def test_a_reader_that_goes_away_is_no_failure(cli):
    cli.run("counter", "--name", "flood", steps=2, fault="flood", at=1)
    with cli.start("logs", "flood") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_wait_returns_the_code_of_the_first_that_did_not_succeed(cli, slow):
    finished(cli, "good")
    cli.run("counter", "--name", "bad", steps=2, fault="exit", code=1)
    cli.run("counter", "--name", "short", "--detach", steps=20, pause=0.03)
    waited = cli("wait", "good", "short")
    assert "short: It succeeded" in waited.stderr
    process = cli.start("wait", "good", "slow", "bad")
    kill_launcher(slow.directory, signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75 and "slow: It was interrupted" in stderr and "bad: It failed" in stderr
    assert cli("wait", "bad", "slow", code=1)
    kill_launcher(slow.directory)
    assert "unknown run" in cli("wait", "good", "nowhere", code=2).stderr


# Stopping


def test_stop_writes_a_checkpoint_and_says_how_to_go_on(cli, slow):
    result = cli("stop", "slow")
    assert "The same command continues from step" in result.stderr and "again: runner run" in result.stderr
    assert "slow is not going" in cli("stop", "slow").stderr


def test_ctrl_c_twice_while_a_run_is_starting_leaves_no_launcher(cli, tmp_path):
    (cli.volume / "mine").mkdir()
    holder = {"boot": "another", "space": "another", "host": "elsewhere", "pid": 1, "started": time.time()}
    (cli.volume / "mine" / ".lock").write_text(json.dumps(holder))  # whose heartbeat a launcher waits for
    shell = cli.start("run", "counter", "--name", "mine")
    until(lambda: launchers(cli.volume), what="the launcher")
    time.sleep(0.3)
    shell.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert shell.poll() is None and launchers(cli.volume)
    shell.send_signal(signal.SIGINT)
    shell.communicate(timeout=20)
    assert shell.returncode == 130 and not launchers(cli.volume)


def launchers(volume):
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if is_launcher(path, volume)]


def is_launcher(cmdline, volume):
    try:
        words = cmdline.read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(volume) in words and any(word.endswith(b"/launch.py") for word in words)


def test_stop_and_rm_without_a_name_ask_first(cli, slow):
    for verb in ("stop", "rm"):
        refusal = cli(verb, code=2).stderr
        assert "which run? The newest is slow; give its name, or --yes" in refusal
        code, text = on_terminal(cli, verb, answer="n\n")
        assert code == 2 and "slow, the newest? [y/N]" in text and "nothing was done" in text
        assert runs.load(slow.directory).going
    code, text = on_terminal(cli, "stop", answer="y\n")
    assert code == 0 and "It was interrupted" in text
    assert "slow is removed; its directory stays" in cli("rm", "--yes").stderr


# Pulling


def test_pull_brings_the_results_once_and_nothing_else(cli, tmp_path):
    cli.run("counter", "--name", "mine", steps=5)
    (cli.volume / "mine/work/counter/made.txt").write_text("by the job")
    (cli.volume / "mine/model/model.npz").write_bytes(b"x" * 100)
    cli.cwd = tmp_path
    first = cli("pull")
    assert "mine: 7 files" in first.stderr
    pulled = {
        path.relative_to(tmp_path / "mine").as_posix(): path
        for path in (tmp_path / "mine").rglob("*")
        if path.is_file()
    }
    assert set(pulled) == {"report.json", "metrics.jsonl", "model/model.npz", "logs/attempt-1.log", "run.json", "request.json",
                           "work/counter/made.txt"}  # fmt: skip
    before = {name: path.stat().st_ino for name, path in pulled.items()}
    cli("pull", "mine")
    assert {name: path.stat().st_ino for name, path in pulled.items()} == before  # nothing was copied again
    pulled["report.json"].unlink()
    pulled["metrics.jsonl"].write_text("cut")
    cli("pull", "mine")  # brings what is missing or differs
    after = {name: path.stat().st_ino for name, path in pulled.items()}
    assert {name for name in after if after[name] != before[name]} == {"report.json", "metrics.jsonl"}
    assert pulled["metrics.jsonl"].read_bytes() == (cli.volume / "mine/metrics.jsonl").read_bytes()
    cli("pull", "mine", tmp_path / "whole", "--all")
    assert (tmp_path / "whole/checkpoints/checkpoint-000000000005.npz").exists()
    assert (tmp_path / "whole/work/counter/counter.py").exists()


def test_pull_follows_a_run_to_its_end(cli, tmp_path):
    cli.run("counter", "--name", "mine", "--detach", steps=60, pause=0.05)
    until(lambda: runs.load(cli.volume / "mine").checkpoint())
    cli("pull", "-f", "mine", tmp_path / "out")
    assert json.loads((tmp_path / "out/report.json").read_text())["steps"] == 60
    assert json.loads((tmp_path / "out/run.json").read_text())["exit_code"] == 0


def test_pull_does_not_write_where_runs_are(cli, tmp_path):
    finished(cli, "mine", "other")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(cli.volume)
    cli.cwd = cli.volume
    assert "is a run's own directory" in cli("pull", "mine", code=2).stderr
    assert "is a run's own directory" in cli("pull", "mine", "mine/x", code=2).stderr
    assert "is a run's own directory" in cli("pull", "mine", tmp_path / "link/other", code=2).stderr
    assert "would look like a run" in cli("pull", "mine", "copy", code=2).stderr
    assert "is not a directory" in cli("pull", "mine", tmp_path / "file", code=2).stderr
    assert {path.name for path in cli.volume.iterdir()} == {"mine", "other"}


def test_what_was_pulled_into_a_project_is_no_code(cli, tmp_path):
    shutil.copytree(JOBS / "counter", tmp_path / "counter")
    shutil.copytree(JOBS / "locks", tmp_path / "counter/locks")
    shutil.copy(JOBS / "environments.yaml", tmp_path / "counter")
    cli.cwd = tmp_path / "counter"
    cli.run(".", "--name", "mine", steps=2)
    cli("pull")
    assert "It succeeded" in cli.run(".", "--name", "mine", steps=2).stderr


# Removing


def test_rm_is_refused_while_the_run_is_going(cli, slow):
    refusal = cli("rm", "slow", "--files", code=2).stderr
    assert f"slow is going. Stop it first: runner stop slow --volume {cli.volume}" in refusal
    assert runs.load(slow.directory).going


def test_rm_removes_the_directory_only_with_files(cli, tmp_path):
    finished(cli, "mine", "mine-too")
    handovers = tmp_path / "cache/submissions"
    assert {path.name[:-13] for path in handovers.iterdir()} == {"mine", "mine-too"}
    assert f"its directory stays (--files removes it): {cli.volume / 'mine'}" in cli("rm", "mine").stderr
    assert {path.name[:-13] for path in handovers.iterdir()} == {"mine-too"}
    assert "counted to 2" in cli("logs", "mine", "--volume", cli.volume).stdout
    assert "is removed" in cli("rm", "mine", "--files").stderr
    assert {path.name for path in cli.volume.iterdir()} == {"mine-too"}
    finished(cli, "mine")  # and begins anew
    assert len(runs.load(cli.volume / "mine").record["attempts"]) == 1


def test_a_hand_over_is_private_and_its_archive_goes_when_the_end_is_seen(cli, tmp_path):
    cli.run("counter", "--name", "mine", "--detach", steps=1000, pause=0.05)
    (folder,) = (tmp_path / "cache/submissions").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "project.tar").exists()
    cli("stop", "mine")
    cli.run("counter", "--name", "other", steps=2)
    (other,) = (path for path in folder.parent.iterdir() if path.name.startswith("other"))
    assert (other / "launch.py").exists() and not (other / "project.tar").exists()


@pytest.fixture
def own(cli, tmp_path):
    """The command line with environments of its own: `rm --unused` must not meet anybody else's."""
    cli.env["RUNNER_CACHE"] = str(tmp_path / "own cache")
    assert not (tmp_path / "own cache").exists()
    return cli


def test_the_hand_over_of_the_same_run_on_another_volume_is_left_to_it(own, tmp_path):
    own.run("counter", "--name", "slow", "--detach", steps=1000, pause=0.05)
    (mine,) = (tmp_path / "own cache/submissions").iterdir()
    os.utime(mine, (0, 0))  # older than any start that is just going on
    (tmp_path / "other").mkdir()
    own.run("counter", "--name", "slow", "--volume", tmp_path / "other", steps=2)
    own("rm", "slow", "--volume", tmp_path / "other")
    own("rm", "--unused", "--yes", "--volume", tmp_path / "other", code=None)
    assert (mine / "lib/runner_checkpoint.py").exists()


def test_rm_unused_lists_asks_and_removes_what_nothing_needs(own: Cli, tmp_path):
    cache = tmp_path / "own cache"
    finished(own, "good")
    own.run("counter", "--name", "good", "--fresh", steps=2)
    own.run("counter", "--name", "bad", steps=2, fault="exit", code=1)
    own.run("counter", "--name", "slow", "--detach", steps=1000, pause=0.05)
    until(lambda: runs.load(own.volume / "slow").checkpoint())
    unneeded = cache / "environments/other-000000000000-py3.1"
    unneeded.mkdir()
    told = {"label": "other", "lock_hash": "0" * 64, "python_version": "3.1.4", "bytes": 5}
    (unneeded / "runner.json").write_text(json.dumps(told))
    (cache / "data/old-12345678").mkdir(parents=True)
    (cache / "bytecode/cpython-31").mkdir(parents=True)
    (cache / "bytecode/cpython-31/0000").write_text("")
    for folder in (cache / "submissions").iterdir():
        os.utime(folder, (0, 0))
    refusal = own("rm", "--unused", code=2)
    words = ("failed run", "kept by --fresh", "environment of a lock that is no more", "hand-over of a run",
             "data set that no run needs", "compiled code that no environment uses")  # fmt: skip
    assert all(word in refusal.stdout for word in words)
    assert "nothing was removed" in refusal.stderr and "--yes" in refusal.stderr
    assert own("rm", "--unused", "--older", "1d", code=2).stdout.count("\n") == 4  # the header, and the old hand-overs
    code, text = on_terminal(own, "rm", "--unused", answer="n\n")
    assert code == 2 and "nothing was done" in text
    assert {path.name for path in own.volume.iterdir()} == {"good", "good.1", "bad", "slow"}
    code, text = on_terminal(own, "rm", "--unused", answer="y\n")
    assert code == 0 and "Remove all this and free" in text and "freed" in text
    assert {path.name for path in own.volume.iterdir()} == {"good", "slow"}
    assert not unneeded.exists() and not list((cache / "data").iterdir()) and not list((cache / "bytecode").iterdir())
    assert [path.name[:-13] for path in (cache / "submissions").iterdir()] == ["slow"]
    assert len(list((cache / "environments").glob("tf0.0-cpu-*"))) == 1  # good and slow need it
    assert runs.load(own.volume / "slow").going
    assert "nothing is unused" in own("rm", "--unused").stderr


def test_rm_unused_counts_the_runs_on_all_volumes(own, tmp_path):
    finished(own, "good")
    (tmp_path / "other").mkdir()
    assert "nothing is unused" in own("rm", "--unused", "--volume", tmp_path / "other").stderr
    own("rm", "good", "--files")
    assert "environment that no run needs" in own("rm", "--unused", "--yes").stdout
    assert not list((tmp_path / "own cache/environments").glob("tf0.0-cpu-*"))


def test_a_volume_that_is_known_by_a_link_too_is_one(own, tmp_path):
    own.run("counter", "--name", "bad", steps=2, fault="exit", code=1)
    (tmp_path / "link").symlink_to(own.volume)
    own.run("counter", "--name", "other", "--volume", tmp_path / "link", steps=2)
    listed = own("ps", "--json").json()
    assert sorted(run["name"] for run in listed) == ["bad", "other"]
    assert own("rm", "--unused", code=2).stdout.count("failed run") == 1


def test_what_a_killed_check_of_the_engine_leaves_on_a_volume_is_removed(own):
    for name, age in ((".runner-probe-old", 3600), (".runner-probe-new", 0)):
        (own.volume / name).mkdir()
        os.utime(own.volume / name, (time.time() - age,) * 2)
    assert own("rm", "--unused", "--yes").stdout.count("rest of a check of the engine") == 1
    assert [path.name for path in own.volume.iterdir()] == [".runner-probe-new"]


def test_rm_refuses_what_does_not_go_together(cli):
    finished(cli, "mine")
    assert "--unused takes no run" in cli("rm", "mine", "--unused", code=2).stderr
    assert "--older goes with --unused" in cli("rm", "mine", "--older", "3d", code=2).stderr
    assert "an age is given as 30d, 12h or 90m" in cli("rm", "--unused", "--older", "long", code=2).stderr
    assert (cli.volume / "mine").exists()


# Environments


def test_envs_lists_and_explains(cli):
    lines = [line.split()[0] for line in cli("envs").stdout.splitlines()]
    assert lines[0] == "environment" and {"tf2.21-cpu", "tf2.15-cpu", "tf1.15-cpu", "tf0.0-cpu"} <= set(lines)
    listed = {row["name"]: row for row in cli("envs", "--json").json()}
    assert [name for name, row in listed.items() if row["default"]] == ["tf2.21-cpu"]
    assert listed["tf0.0-cpu"]["own"] and not listed["tf2.15-cpu"]["own"]
    one = cli("envs", "tf1.15").stdout
    assert one.startswith("tf1.15-cpu: TensorFlow 1.15.5 for cpu, on Python 3.7.") and "Why so:" in one
    assert cli("envs", "2.15.1", "--json").json()["name"] == "tf2.15-cpu"


# Rendering


def test_render_prints_what_run_sends_and_creates_nothing(cli, tmp_path):
    cli.env.update(HUSH="value-of-the-secret", PRIVATE="of-the-caller", GIVEN="taken")
    words = ("counter", "--name", "mine", "-P", "steps=3", "-e", "A=it's", "-e", "GIVEN", "--secret", "HUSH")
    rendered = cli("render", *words).stdout
    assert cli("render", *words).stdout == rendered
    assert not list(cli.volume.iterdir()) and not (tmp_path / "cache/submissions").exists()
    assert "value-of-the-secret" not in rendered and "of-the-caller" not in rendered
    lines = rendered.splitlines()
    assert "A='it'\"'\"'s'" in lines and "GIVEN=taken" in lines and "HUSH=<secret>" in lines
    request = json.loads(rendered[rendered.index("{") :])
    cli("run", *words)
    (handover,) = (tmp_path / "cache/submissions").iterdir()
    sent = json.loads((handover / "request.json").read_text())
    assert request == {**sent, "submission": "<new>"}
    argv = next(line for line in lines if "launch.py" in line)
    assert argv.replace("<new>", sent["submission"]).endswith(f"{handover}/launch.py' {cli.volume} ''")
    assert "# nothing would be sent: mine is done" in cli("render", *words).stdout


def test_the_next_commands_are_printed_and_work_from_anywhere(cli, tmp_path):
    shown = cli.run("counter", "--name", "mine", "--detach", steps=40, pause=0.05).stdout.splitlines()
    assert shown == ["mine"]
    detached = cli.run("counter", "--name", "two", "--detach", steps=40, pause=0.05)
    commands = [line.strip().split()[1:] for line in detached.stderr.splitlines() if line.startswith("  runner ")]
    assert [command[0] for command in commands] == ["status", "logs", "stop"]
    cli.cwd = tmp_path
    for command in commands:
        cli(*command)
    assert runs.load(cli.volume / "two").state in ("succeeded", "interrupted")
