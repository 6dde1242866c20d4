"""launch.py by itself: replaced launchers, the lock, the heartbeat, kills at any moment, damaged and newer records."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import JOBS, LONG, Cli, begin, kill_launcher, need, step_of, until

from runner import interpreters, run_directory, runs


def handover(cli: Cli) -> Path:
    """Return the folder of the newest submission."""
    return max((Path(cli.env["RUNNER_CACHE"]) / "submissions").iterdir(), key=lambda path: path.stat().st_mtime)


def launch(
    cli: Cli, folder: Path, *before: str | Path, stdin: int = subprocess.DEVNULL, **variables: str
) -> subprocess.Popen[str]:
    """Start launch.py from a hand-over, as a replaced pod does; `before` are the words of a command that starts it."""
    return subprocess.Popen(
        [*before, sys.executable, folder / "launch.py", cli.volume], env={**cli.env, **variables},
        stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---------------------------------------------------------------- replaced launchers


def child_of(cli: Cli, number: int) -> int | None:
    """Return the process of an attempt, once it is recorded."""
    last = cli.only().record["attempts"][-1]
    group: int | None = last.get("group") if last["number"] == number else None
    return group


def test_a_replaced_launcher_has_the_same_budget(cli):
    cli.run("counter", "--retries", "2", "--detach", fault="hang", at=0)
    directory, folder = cli.only().directory, handover(cli)
    for number in (2, 3):
        kill_launcher(directory)
        replaced = launch(cli, folder)
        until(lambda number=number: child_of(cli, number), what=f"the child of attempt {number}")
        replaced.kill()
        replaced.communicate()
    last = launch(cli, folder)
    last.communicate(timeout=20)
    assert last.returncode == 70
    assert len(cli.only().record["attempts"]) == 3


def test_what_was_returned_is_final_for_the_submission(cli):
    cli.run("counter", fault="exit", at=0, code=1)
    again = launch(cli, handover(cli))
    again.communicate(timeout=20)
    assert again.returncode == 1
    assert len(cli.only().record["attempts"]) == 1


def test_an_interrupted_submission_goes_on_in_a_replaced_launcher(cli):
    directory = begin(cli, "counter", steps=30)
    kill_launcher(directory, signal.SIGTERM)
    again = launch(cli, handover(cli))
    again.communicate(timeout=30)
    assert again.returncode == 0
    assert len(cli.only().record["attempts"]) == 2


def test_fresh_is_applied_once(cli):
    cli.run("counter", "--name", "mine", steps=2)
    directory = begin(cli, "counter", "--name", "mine", "--fresh")
    kill_launcher(directory)
    again = launch(cli, handover(cli))
    until(lambda: cli.only().record["attempts"][1:], what="attempt 2")
    again.kill()
    again.communicate()
    assert sorted(path.name for path in cli.volume.iterdir()) == ["mine", "mine.1"]
    assert cli.only().record["attempts"][1]["began_from"]["step"] >= 1


def test_of_two_fresh_starts_in_the_same_moment_one_begins_and_the_other_is_refused(cli):
    """Whoever waited for the lock of a directory that was set aside in the meantime must not take it for the new one's."""
    cli.run("counter", "--name", "mine", fault="hang", at=1, steps=1, times=0)
    cli.run("counter", "--name", "mine", "--fresh", "--detach", fault="hang", at=1, steps=1)
    kill_launcher(cli.only().directory)
    folders = [handover(cli)]
    folders.append(Path(shutil.copytree(folders[0], folders[0].with_name("other"))))
    for number, folder in enumerate(folders):
        edit(folder / "request.json", submission=f"fresh-{number}")
    both = [launch(cli, folder) for folder in folders]
    until(lambda: any(process.poll() is not None for process in both), what="the refusal of one")
    loser = next(process for process in both if process.poll() is not None)
    winner = next(process for process in both if process is not loser)
    assert (loser.returncode, winner.poll()) == (69, None)
    until(lambda: cli.only().going and len(cli.only().record.get("attempts", [])) == 1, what="the attempt of the other")
    assert sorted(path.name for path in cli.volume.iterdir()) == ["mine", "mine.1", "mine.2"]
    winner.kill()
    for process in both:
        process.communicate()


def test_update_code_is_applied_once(cli, project):
    job = Path(shutil.copytree(JOBS / "counter", project / "counter"))
    directory = begin(cli, job)
    kill_launcher(directory)
    (job / "new.txt").write_text("")
    cli.run(job, "--update-code", "--detach", **LONG)
    kill_launcher(directory)
    again = launch(cli, handover(cli))
    until(lambda: (directory / "logs" / "attempt-3.log").exists(), what="attempt 3")
    again.kill()
    again.communicate()
    reasons = [reason for reason in cli.only().record["reasons"] if "update-code" in reason]
    assert reasons == ["the code was changed by --update-code before attempt 2"]


def test_update_code_lays_out_the_whole_project_where_a_start_was_cut_off_before(cli, project):
    job = Path(shutil.copytree(JOBS / "counter", project / "counter"))
    cli.run(job, fault="exit", at=0, code=1)
    shutil.rmtree(cli.only().directory / "work")
    (job / "new.txt").write_text("")
    cli.run(job, "--update-code", fault="exit", at=0, code=1)


def test_update_code_twice_keeps_both_of_what_the_job_had_altered(cli, project):
    job = Path(shutil.copytree(JOBS / "counter", project / "counter"))
    (job / "altered.txt").write_text("0")
    directory = begin(cli, job)
    for number in (1, 2):
        kill_launcher(directory)
        work = directory / "work" / "counter"
        (work / "altered.txt").write_text(f"by the job {number}")
        (job / "altered.txt").write_text(f"by the user {number}")
        cli.run(job, "--update-code", "--detach", **LONG)
    kept = sorted(work.glob("altered.txt.before-update*"))
    assert [path.read_text() for path in kept] == ["by the job 1", "by the job 2"]


def test_a_clone_in_a_folder_of_another_name_goes_on_in_the_runs_own(cli, project):
    first = Path(shutil.copytree(JOBS / "counter", project / "counter"))
    directory = begin(cli, first, "--name", "mine")
    kill_launcher(directory)
    clone = first.rename(project / "counter-main")
    begin(cli, clone, "--name", "mine", checkpoint=step_of(directory) + 1)
    assert json.loads((directory / "request.json").read_text())["folder"] == "counter"
    assert [path.name for path in (directory / "work").iterdir()] == ["counter"]


def test_update_code_where_a_folder_became_a_file_and_a_file_a_folder(cli, project):
    job = Path(shutil.copytree(JOBS / "counter", project / "counter"))
    for name in ("empty/deep", "kept"):
        (job / name).mkdir(parents=True)
        (job / name / "inside.txt").write_text("old")
    (job / "file").write_text("old")
    directory = begin(cli, job)
    kill_launcher(directory)
    work = directory / "work" / "counter"
    for path in ("kept/output.txt", "made"):
        (work / path).write_text("of the job")
    for name in ("empty", "kept"):
        shutil.rmtree(job / name)
        (job / name).write_text("new")
    (job / "file").unlink()
    for name in ("file", "made"):
        (job / name).mkdir()
        (job / name / "inside.txt").write_text("new")
    cli.run(job, "--update-code", "--detach", **LONG)
    new = ("empty", "kept", "file/inside.txt", "made/inside.txt")
    assert [(work / path).read_text() for path in new] == ["new"] * 4
    assert (work / "kept.before-update" / "output.txt").read_text() == "of the job"
    assert (work / "made.before-update").read_text() == "of the job"
    assert len(list(work.glob("*.before-update*"))) == 2


def test_update_code_before_a_checkpoint_leaves_the_run_exact(cli, project):
    job = Path(shutil.copytree(JOBS / "counter", project / "counter"))
    cli.run(job, fault="exit", at=0, code=1)
    (job / "new.txt").write_text("")
    cli.run(job, "--update-code", fault="exit", at=0, code=1)
    assert (cli.only().directory / "work" / "counter" / "new.txt").exists()
    assert cli.only().record["exact"] is True


def test_a_users_pythonpath_reaches_the_job_and_not_the_launcher_under_e(cli, project):
    """Its tarfile.py would end the launcher; the backend starts it with `python -E`."""
    (project / "tarfile.py").write_text("raise SystemExit('not that one')")
    (project / "job.py").write_text("import os\nprint('path:', os.environ['PYTHONPATH'])\nraise SystemExit(1)")
    cli.run(project / "job.py", "-E", "tf0.0-cpu", "--name", "mine", code=1)
    folder = handover(cli)
    edit(folder / "request.json", submission="another")
    done = subprocess.run(
        [sys.executable, "-E", folder / "launch.py", cli.volume],
        env={**cli.env, "PYTHONPATH": str(project)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert f"path: {folder / 'lib'}:{project}\n" in done.stdout


def test_killed_after_the_end_of_the_job_and_before_it_was_recorded(cli):
    """The run is done: the next launcher says so, and starts nothing."""
    cli.run("counter", steps=3)
    record = cli.only().record
    attempt = {key: value for key, value in record["attempts"][0].items() if key not in ("code", "how", "end")}
    edit(cli.only().directory / "run.json", exit_code=None, ended=None, attempts=[{**attempt, "ended": None}])
    assert cli.only().state == "interrupted"
    assert "It succeeded" in cli.run("counter", steps=3).stderr
    assert len(cli.only().record["attempts"]) == 1


def test_a_sigterm_before_there_is_a_child_is_75_at_once(cli):
    """Here, while launch.py waits for the heartbeat of a holder on another machine."""
    cli.run("counter", "--detach", fault="hang", at=0)
    directory = cli.only().directory
    kill_launcher(directory)
    of_another_machine(directory)
    waiting = launch(cli, handover(cli), RUNNER_STALE="600")
    until(
        lambda: not list(directory.glob(".clock-*")) and opened(waiting.pid, directory / ".lock"),
        what="the lock to be open",
    )
    waiting.terminate()
    waiting.communicate(timeout=20)
    assert waiting.returncode == 75
    assert len(cli.only().record["attempts"]) == 1


def opened(pid: int, path: Path) -> bool:
    try:
        return any(link.readlink() == path for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_a_secret_that_does_not_arrive_is_a_refusal_not_a_run_without_it(cli):
    cli.env["TOKEN"] = "hush"
    cli.run("counter", "--secret", "TOKEN", steps=1)
    again = launch(cli, handover(cli))
    _, errors = again.communicate(timeout=20)
    assert again.returncode == 64
    assert "the secret TOKEN was not handed over" in errors


# ---------------------------------------------------------------- what a container has that this machine has not


def in_a_container(cli: Cli, project: Path, script: str, *words: str) -> Path:
    """Return the hand-over of a script as the backend for containers makes it."""
    (project / "job.py").write_text(script)
    cli.run(project / "job.py", "-E", "tf0.0-cpu", "--name", "mine", "--detach", *words)
    until(lambda: cli.only().record.get("ended"), what="the end of the native attempt")
    edit(handover(cli) / "request.json", backend="docker", submission="in-a-container")
    return handover(cli)


SHOW = "import os, sys\nprint({name: os.environ.get(name) for name in %r})\nprint('end', flush=True)\nsys.exit(1)"


def test_variables_come_on_the_standard_input_and_reach_the_job_alone(cli, project):
    names = ["https_proxy", "TOKEN", "RUNNER_STDIN", "PYTHONUNBUFFERED"]
    folder = in_a_container(cli, project, SHOW % names)
    edit(folder / "request.json", secrets=["TOKEN"])
    started = launch(cli, folder, stdin=subprocess.PIPE, RUNNER_STDIN="1")
    output, _ = started.communicate(
        json.dumps({"https_proxy": "http://a:b@c", "TOKEN": "hush", "PYTHONUNBUFFERED": ""}) + "\n"
    )
    expected = {"https_proxy": "http://a:b@c", "TOKEN": "hush", "RUNNER_STDIN": None, "PYTHONUNBUFFERED": ""}
    assert repr(expected) in output
    kept = b"".join(path.read_bytes() for path in cli.only().directory.rglob("*.json"))
    assert b"hush" not in kept
    assert b"a:b@c" not in kept


@pytest.mark.parametrize("sent", ["", "[1]\n"])
def test_without_secrets_a_line_that_never_came_costs_the_proxies_and_not_the_run(cli, project, sent):
    started = launch(
        cli, in_a_container(cli, project, SHOW % ["RUNNER_STDIN"]), stdin=subprocess.PIPE, RUNNER_STDIN="1"
    )
    output, errors = started.communicate(sent)
    assert (started.returncode, errors) == (1, "")
    assert "{'RUNNER_STDIN': None}" in output


def test_a_sigterm_while_nobody_writes_on_the_standard_input_is_75(cli, project):
    folder = in_a_container(cli, project, SHOW % [])
    started = launch(cli, folder, stdin=subprocess.PIPE, RUNNER_STDIN="1")
    until(lambda: catches(started.pid, signal.SIGTERM), what="the handler")
    started.terminate()
    assert started.wait(20) == 75


def catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_home_is_on_the_volume_and_what_is_cached_there_is_neither_result_nor_checkpoint(cli, project, tmp_path):
    folder = in_a_container(
        cli, project,
        "import os, sys\nfrom pathlib import Path\n"
        "Path.home().joinpath('.keras').mkdir(exist_ok=True)\nPath.home().joinpath('.keras/data.h5').write_bytes(b'')\n"
        "Path.home().joinpath('weights-7.npz').write_bytes(b'PK\\5\\6' + bytes(18))\n"
        "print('home', Path.home(), os.environ.get('XDG_CACHE_HOME'), flush=True)\nsys.exit(1)",
    )  # fmt: skip
    started = launch(cli, folder, HOME="/nowhere", XDG_CACHE_HOME="/nowhere/cache")
    output, _ = started.communicate(timeout=20)
    directory = cli.only().directory
    assert f"home {directory / 'home'} None\n" in output
    assert "there is no checkpoint yet" in cli("status").stdout
    cli("pull", "mine", tmp_path / "results")
    assert not list((tmp_path / "results").rglob("data.h5"))


def test_a_home_that_the_user_gave_is_left_as_it_is(cli, project):
    folder = in_a_container(
        cli, project, SHOW % ["HOME", "XDG_CACHE_HOME"], "-e", "HOME=/given", "-e", "XDG_CACHE_HOME=/too"
    )
    output, _ = launch(cli, folder, HOME="/given", XDG_CACHE_HOME="/too").communicate(timeout=20)
    assert repr({"HOME": "/given", "XDG_CACHE_HOME": "/too"}) in output


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group with 64 MiB of memory: the file that a process writes its number into to be in it."""
    version_1 = Path("/sys/fs/cgroup/memory")
    group = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / f"runner-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        need("a memory cgroup", False, f"run the tests as root where cgroups can be made ({error})")
    limit = group / ("memory.limit_in_bytes" if version_1.is_dir() else "memory.max")
    try:
        need("a memory cgroup", limit.exists(), "enable the memory controller in /sys/fs/cgroup/cgroup.subtree_control")
        limit.write_text(str(64 << 20))
        yield group / "cgroup.procs"
    finally:
        until(lambda: not (group / "cgroup.procs").read_text(), what="the end of all in the cgroup")
        group.rmdir()


EAT = "import os\nif os.environ.get('EAT'):\n    {}\nraise SystemExit(3)"
ENTER = ("sh", "-c", 'echo $$ > "$0" && exec "$@"')


def test_a_job_that_is_killed_for_want_of_memory_says_oom_and_the_limit(cli, project, small_memory):
    folder = in_a_container(cli, project, EAT.format("b'x' * (256 << 20)"), "--retries", "1")
    started = launch(cli, folder, *ENTER, small_memory, EAT="1")
    started.communicate(timeout=30)
    assert started.returncode == 70
    attempts = cli.only().record["attempts"]
    assert [attempt.get("oom") for attempt in attempts] == [None, True, True]
    assert "the job was killed for want of memory (OOM; the limit is 64 MiB), 2 times in a row" in cli("status").stdout


def test_a_process_of_the_job_that_is_killed_for_want_of_memory_is_named_beside_the_jobs_own_end(
    cli, project, small_memory
):
    eat = "import subprocess, sys; subprocess.call([sys.executable, '-c', 'b\"x\" * (256 << 20)'])"
    folder = in_a_container(cli, project, EAT.format(eat))
    started = launch(cli, folder, *ENTER, small_memory, EAT="1")
    started.communicate(timeout=30)
    assert started.returncode == 3
    expected = "ended with 3, after a process of it was killed for want of memory (OOM; the limit is 64 MiB)"
    assert expected in cli("status").stdout


def test_a_job_that_is_killed_by_somebody_does_not_say_oom(cli, project, small_memory):
    folder = in_a_container(cli, project, EAT.format("os.kill(os.getpid(), 9)"), "--retries", "0")
    started = launch(cli, folder, *ENTER, small_memory, EAT="1")
    started.communicate(timeout=30)
    assert started.returncode == 70
    assert "killed by signal 9 (SIGKILL)" in cli("status").stdout
    assert "OOM" not in cli("status").stdout


# ---------------------------------------------------------------- the lock and the heartbeat


def of_another_machine(directory: Path) -> None:
    """Make the lock look as if a launcher on another machine had just given a sign of life."""
    holder = {
        "backend": "native",
        "host": "elsewhere",
        "boot": "another",
        "space": "x",
        "pid": 4000000,
        "process_started": 1,
    }
    (directory / ".lock").write_text(json.dumps({**holder, "started": time.time(), "heartbeat": time.time()}))


def test_taken_is_69_and_names_the_holder(cli):
    directory = begin(cli, "counter")
    pid = run_directory.holder(str(directory / ".lock"))["pid"]
    second = launch(cli, handover(cli))
    _, errors = second.communicate(timeout=20)
    assert second.returncode == 69
    assert f"this run is going already: native on {os.uname().nodename}, process {pid}, since" in errors
    assert cli.only().going


def test_a_heartbeat_that_stands_still_is_taken_for_dead_when_it_is_stale(cli):
    cli.env["RUNNER_STALE"] = "1.5"
    directory = begin(cli, "counter", steps=30)
    kill_launcher(directory)
    of_another_machine(directory)
    again = launch(cli, handover(cli))
    again.communicate(timeout=30)
    assert again.returncode == 0


def test_a_heartbeat_that_moves_is_a_living_holder(cli):
    cli.env["RUNNER_STALE"] = "5"
    directory = begin(cli, "counter")
    kill_launcher(directory)
    of_another_machine(directory)
    second = launch(cli, handover(cli))
    until(lambda: os.utime(directory / ".lock") or second.poll() is not None, what="the refusal")
    assert second.returncode == 69
    assert "native on elsewhere" in second.stderr.read()


def test_the_command_attaches_to_a_holder_on_another_machine_until_its_heartbeat_is_stale(cli):
    cli.env["RUNNER_STALE"] = "1.5"
    directory = begin(cli, "counter")
    kill_launcher(directory)
    of_another_machine(directory)
    attached = cli.run("counter", code=75, **LONG)
    assert "is going already: attached to it" in attached.stderr
    cli.run("counter", "--detach", **LONG)
    assert len(cli.only().record["attempts"]) == 2


def test_a_run_on_another_machine_cannot_be_stopped_from_here(cli):
    cli.env["RUNNER_STALE"] = "600"
    directory = begin(cli, "counter")
    kill_launcher(directory)
    of_another_machine(directory)
    assert "runs on elsewhere, not here" in cli("stop", directory.name, code=2).stderr


def test_without_flock_the_process_and_the_heartbeat_decide(cli, monkeypatch):
    """As on mounted drives: here the functions of launch.py are asked as a launcher would."""
    directory = begin(cli, "counter")
    monkeypatch.setattr(run_directory._module(), "_flock", lambda *_: "unsupported")
    assert run_directory.going(str(directory))
    with pytest.raises(run_directory.Refusal, match="going already"):
        run_directory.Lock(str(directory)).acquire()
    monkeypatch.undo()
    kill_launcher(directory)
    monkeypatch.setattr(run_directory._module(), "_flock", lambda *_: "unsupported")
    assert not run_directory.going(str(directory))


@pytest.mark.parametrize("machines", [1, 2])
def test_of_two_starts_in_the_same_moment_one_gets_the_lock_without_flock(volume, monkeypatch, machines):
    """Both have seen that nobody holds it. On one machine a lock outside the volume decides, between two who wrote last."""
    there, together = run_directory._module(), multiprocessing.get_context("fork")
    meet, answers, over = together.Barrier(2), together.Queue(), together.Event()
    real_flock, real_look = there._flock, there.holder_alive

    def flock(descriptor: int, *kind: int) -> str:
        on_volume = Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(volume)
        return "unsupported" if on_volume or machines == 2 else real_flock(descriptor, *kind)

    def look(*given: Any, **options: Any) -> bool:
        found: bool = real_look(*given, **options)
        with contextlib.suppress(threading.BrokenBarrierError):
            meet.wait(3 if machines == 2 else 0.5)  # on one machine only one of them comes here
        return found

    def start() -> None:
        try:
            there.Lock(str(volume / "run")).acquire()
        except there.Refusal as refusal:
            answers.put(refusal.code)
        else:
            answers.put(0)
            over.wait(20)

    monkeypatch.setattr(there, "_flock", flock)
    monkeypatch.setattr(there, "holder_alive", look)
    both = [together.Process(target=start) for _ in range(2)]
    for process in both:
        process.start()
    assert sorted(answers.get(timeout=20) for _ in both) == [0, run_directory.TAKEN]
    over.set()
    for process in both:
        process.join()


# ---------------------------------------------------------------- kills


def test_a_killed_launcher_takes_its_child_with_it(cli):
    directory = begin(cli, "counter")
    group = cli.only().record["attempts"][0]["group"]
    os.kill(run_directory.holder(str(directory / ".lock"))["pid"], signal.SIGKILL)
    until(lambda: run_directory.group_members(group, str(directory)) == [], what="the child's end")
    assert cli.only().state == "interrupted"
    assert "It was cut off" in cli("status").stdout


def test_two_hundred_kills_change_nothing(cli):
    """In the write of a checkpoint, in launch.py before, while and after it starts the job, and in between; of two runs."""
    words = ("-P", "steps=60", "-P", "pause=0.004", "-P", "hold=0.01", "--retries", "1000")
    cli("run", "counter", "--name", "calm", *words)
    expected = json.loads((cli.volume / "calm" / "report.json").read_text())
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: kill_often(cli, name, words, expected), ("first", "second")))


def kill_often(cli: Cli, name: str, words: tuple[str, ...], expected: dict[str, Any]) -> None:
    cli("run", "counter", "--name", name, "--detach", *words)
    directory, (folder,) = cli.volume / name, (Path(cli.env["RUNNER_CACHE"]) / "submissions").glob(f"{name}-*")
    kill_launcher(directory)
    chance, kills = random.Random(name), 1
    while kills < 100:
        going = launch(cli, folder)
        time.sleep(chance.choice([chance.uniform(0, 0.08), chance.uniform(0.08, 0.2)]))
        run = runs.load(directory)
        victim = run.record["attempts"][-1].get("group") if run and chance.random() < 0.2 else None
        if victim and run_directory.group_members(victim, str(directory)):
            os.kill(victim, signal.SIGKILL)  # the child alone: launch.py tries again
            kills += 1
            time.sleep(chance.uniform(0, 0.05))
        if going.poll() is None:
            going.kill()
            kills += 1
        going.communicate()
        if (directory / "done").exists():  # it came through: once more from the beginning
            assert json.loads((directory / "report.json").read_text()) == expected
            back_to_the_beginning(directory)
    cli("run", "counter", "--name", name, *words)
    assert json.loads((directory / "report.json").read_text()) == expected


def back_to_the_beginning(directory: Path) -> None:
    for name in ("done", "report.json"):
        (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / "checkpoints")
    edit(directory / "run.json", exit_code=None, ended=None)


# ---------------------------------------------------------------- damaged and newer records


@pytest.mark.parametrize("file", ["request.json", "run.json"])
def test_records_of_a_newer_runner_are_refused_before_anything_changes(cli, file):
    cli.run("counter", steps=2)
    path = cli.only().directory / file
    edit(path, format=2)
    before = contents(cli.volume)
    result = cli.run("counter", steps=3, code=2)
    assert f"{file} of" in result.stderr
    assert "has format 2, written by a newer runner" in result.stderr
    assert contents(cli.volume) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("file", ["request.json", "run.json"])
def test_launch_py_refuses_records_of_a_newer_runner_too(cli, file):
    cli.run("counter", steps=2)
    edit(cli.only().directory / file, format=2)
    refused = launch(cli, handover(cli))
    _, errors = refused.communicate(timeout=20)
    assert refused.returncode == 64
    assert f"{file} has format 2, written by a newer runner; this one knows 1" in errors


@pytest.mark.parametrize("content", [None, b"", b'{"format": 1, "attempts": [{'])
def test_a_lost_run_json_costs_the_history_and_not_the_run(cli, content):
    directory = begin(cli, "counter")
    kill_launcher(directory)
    step, path = step_of(directory), directory / "run.json"
    path.unlink() if content is None else path.write_bytes(content)
    said = cli("status", directory.name).stdout
    assert f"How it ended is not known, for its run.json is lost. The same command continues from step {step}" in said
    begin(cli, "counter")
    record = cli.only().record
    assert record["attempts"][0]["number"] == 2
    assert record["attempts"][0]["began_from"]["step"] == step
    assert (record["exact"], len(record["reasons"])) == (False, 1)
    assert (directory / "run.json.damaged").exists() == (content is not None)


def test_after_a_lost_run_json_only_the_new_attempt_is_shown_and_it_has_its_number(cli):
    directory = begin(cli, "counter", steps=30)
    kill_launcher(directory)
    (directory / "run.json").unlink()
    result = cli.run("counter", **{**LONG, "steps": 30})
    assert "counting from 0" not in result.stdout
    assert cli("status", "--json").json()["attempt"] == 2


def test_a_damaged_request_is_refused_and_fresh_keeps_the_files(cli):
    cli.run("counter", steps=2)
    directory = cli.only().directory
    (directory / "request.json").write_text("{")
    result = cli.run("counter", steps=2, code=2)
    assert "request.json of" in result.stderr
    assert "--fresh" in result.stderr
    cli.run("counter", "--fresh", steps=2)
    assert (cli.volume / f"{directory.name}.1" / "report.json").exists()


# ---------------------------------------------------------------- old Pythons


def test_launch_py_works_on_python_3_7(cli, project):
    there = interpreters.Search().local(["3.7"]) is not None
    need("Python 3.7", there, "install it with: uv python install 3.7")
    (project / "locks").mkdir()
    (project / "locks" / "tf0.7-cpu.txt").write_text("# No packages.\n")
    (project / "environments.yaml").write_text(
        "environments:\n  tf0.7-cpu: {tensorflow: 0.7.0, device: cpu, pythons: ['3.7'], packages: [nothing], "
        "exclude_newer: 2026-01-01}\n"
    )
    cli.cwd = project
    cli.run(JOBS / "counter", "-E", "tf0.7-cpu", "-P", "steps=5", fault="crash", at=2, times=1)
    assert cli.only().record["versions"]["python"].startswith("3.7.")
    assert len(cli.only().record["attempts"]) == 2


# ---------------------------------------------------------------- an image of the user's own


def in_an_image(cli: Cli) -> Path:
    """Return the hand-over of a counter that a native attempt has begun and that goes on in an image."""
    cli.run("counter", "--retries", "0", fault="crash", at=2, times=1, code=70)
    edit(
        handover(cli) / "request.json",
        backend="docker",
        image="example.org/mine:1",
        submission="in-an-image",
        retries=2,
    )
    edit(cli.only().directory / "request.json", image="example.org/mine:1")
    return handover(cli)


def test_an_image_without_tensorflow_is_refused_by_its_name(cli):
    refused = launch(cli, in_an_image(cli))
    _, errors = refused.communicate(timeout=20)
    assert refused.returncode == 78
    assert "the image example.org/mine:1 has no TensorFlow for its Python 3." in errors
    assert len(cli.only().record["attempts"]) == 1


def test_an_image_with_tensorflow_is_accepted_and_it_is_not_imported(cli, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('it was imported')")
    accepted = launch(cli, in_an_image(cli), PYTHONPATH=str(tmp_path))
    _, errors = accepted.communicate(timeout=20)
    assert (accepted.returncode, errors) == (0, "")


def test_an_image_may_have_python_3_6(cli, tmp_path):
    found = interpreters.Search().local(["3.6"])
    need("Python 3.6", found is not None, "install it with: pyenv install 3.6")
    (tmp_path / "tensorflow.py").touch()
    folder = in_an_image(cli)
    variables = {**cli.env, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [found.path, "-E", folder / "launch.py", cli.volume], env=variables, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert cli.only().record["versions"]["python"].startswith("3.6.")


def test_an_image_with_an_older_python_is_refused_in_words(cli):
    candidates = [
        shutil.which("python2.7"),
        *Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv").glob("versions/2.7.*/bin/python"),
    ]  # the first may be a shim
    found = next((path for path in candidates if path and subprocess.run([path, "-c", ""]).returncode == 0), None)
    need("Python 2.7", found is not None, "install it with: pyenv install 2.7")
    done = subprocess.run([found, "-E", JOBS.parent.parent / "jobs" / "launch.py", "/"], capture_output=True, text=True)
    said = f"launch.py: Python 2.7 ({found}) is too old: 3.6 or newer is needed.\n"
    assert (done.returncode, done.stderr) == (78, said)
