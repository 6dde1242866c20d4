"""The same command again: each line of the table of states, names, what is frozen and what is free, and secrets."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import JOBS, LONG, Cli, begin, kill_launcher, step_of, until


@pytest.fixture
def counter(project: Path) -> Path:
    """A copy of the counter job, whose code a test can change."""
    return Path(shutil.copytree(JOBS / "counter", project / "counter", ignore=shutil.ignore_patterns("__pycache__")))


def change(project: Path) -> None:
    with (project / "counter.py").open("a") as file:
        file.write("# changed\n")


def interrupted(cli: Cli, job: Path | str, *words: str | Path, number: int = signal.SIGKILL, **parameters: Any) -> Path:
    """Start a run, and cut it off after its first checkpoint; return its directory."""
    directory = begin(cli, job, *words, **parameters)
    kill_launcher(directory, number)
    return directory


def chain(steps: int, seed: int = 0) -> str:
    """Return the value that the counter must arrive at."""
    value = str(seed)
    for _ in range(steps):
        value = hashlib.sha256(value.encode()).hexdigest()
    return value


# ---------------------------------------------------------------- going


def test_going_attaches_and_sees_the_end(cli):
    words = ("run", "counter", "-P", "steps=40", "-P", "pause=0.03")
    first = cli.start(*words)
    until(lambda: any(step_of(path) for path in cli.volume.iterdir()), what="a first checkpoint")
    second = cli(*words)
    assert "is going already: attached to it" in second.stderr
    assert second.stdout == first.communicate()[0]
    assert chain(40) in second.stdout
    assert first.returncode == 0
    assert len(cli.only().record["attempts"]) == 1


def test_going_and_detached_gives_the_status_to_programs(cli):
    first = cli.run("counter", "--detach", "--json", **LONG).json()
    second = cli.run("counter", "--detach", "--json", **LONG).json()
    assert (second["name"], second["state"]) == (first["name"], "running")


def test_going_with_changed_code_attaches_and_says_so(cli, counter):
    cli.run(counter, "--detach", **LONG)
    change(counter)
    result = cli.run(counter, "--detach", **LONG)
    assert "the code here has changed since this run began" in result.stderr
    assert cli.only().going


@pytest.mark.parametrize("option", ["--fresh", "--update-code"])
def test_going_refuses_to_begin_again(cli, option):
    cli.run("counter", "--detach", **LONG)
    assert f"is going, so {option} is refused" in cli.run("counter", option, code=2, **LONG).stderr


def test_going_with_other_parameters_under_its_name_is_refused(cli):
    cli.run("counter", "--detach", "--name", "mine", **LONG)
    result = cli.run("counter", "--name", "mine", "-P", "seed=5", "--detach", code=2, **LONG)
    assert "parameter seed: was 0, now 5" in result.stderr


def test_two_starts_in_the_same_moment_one_runs_and_the_other_attaches(cli):
    both = [cli.start("run", "counter", "-P", "steps=30", "-P", "pause=0.03") for _ in range(2)]
    output = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    assert all(chain(30) in stdout for stdout, _ in output), output
    assert len(cli.only().record["attempts"]) == 1


def test_two_detached_starts_in_the_same_moment_are_both_well(cli):
    both = [cli.start("run", "counter", "--detach", "-P", "steps=100000", "-P", "pause=0.01") for _ in range(2)]
    output = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], output


# ---------------------------------------------------------------- no checkpoint yet


def test_no_checkpoint_yet_is_a_new_attempt(cli):
    cli.run("counter", fault="exit", at=0, code=1)
    result = cli.run("counter", fault="exit", at=0, code=1)
    assert "attempt 2: continues from the beginning" in result.stderr


def test_no_checkpoint_yet_and_changed_code_takes_the_new_code_and_keeps_the_old_work(cli, counter):
    cli.run(counter, fault="exit", at=0, code=1)
    source = (counter / "counter.py").read_text()
    (counter / "counter.py").write_text(source.replace('fault == "exit"', 'fault == "no more"'))
    result = cli.run(counter, fault="exit", at=0)
    assert "the code has changed and there is no checkpoint yet" in result.stderr
    run = cli.only()
    assert run.state == "succeeded"
    assert (run.directory / "work.1" / "counter" / "counter.py").read_text() == source
    assert run.record["exact"] is True


# ---------------------------------------------------------------- interrupted or failed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted_continues_from_its_checkpoint(cli, number):
    directory = interrupted(cli, "counter", number=number)
    assert cli.only().state == "interrupted"
    step = step_of(directory)
    interrupted(cli, "counter")
    assert cli.only().record["attempts"][1]["began_from"]["step"] == step
    assert "counting from 0" not in (directory / "logs" / "attempt-2.log").read_text()


def test_interrupted_says_what_it_continues_from(cli):
    interrupted(cli, "counter", steps=30)
    step = cli.only().checkpoint()["step"]
    result = cli.run("counter", **{**LONG, "steps": 30})
    assert f"attempt 2: continues from step {step} (checkpoints/checkpoint-{step:012d}.npz)" in result.stderr
    assert chain(30) in result.stdout


def test_failed_continues_with_a_new_budget(cli):
    cli.run("counter", fault="crash", at=3, code=70)
    cli.run("counter", fault="crash", at=3, code=70)
    assert len(cli.only().record["attempts"]) == 6
    assert cli.only().record["attempts"][3]["began_from"]["step"] == 3


def test_changed_code_is_refused_with_the_list(cli, counter):
    directory = interrupted(cli, counter)
    change(counter)
    (counter / "new.py").write_text("")
    (counter / "job.yaml").rename(counter / "job.yaml.old")
    (counter / "job.yaml").write_bytes((counter / "job.yaml.old").read_bytes())
    before = (directory / "run.json").read_bytes()
    result = cli.run(counter, code=2, **LONG)
    assert "counter.py: changed" in result.stderr
    assert "new.py: added" in result.stderr
    assert "--update-code goes on with the new code, --fresh begins again" in result.stderr
    assert (directory / "run.json").read_bytes() == before


def test_update_code_writes_removes_and_keeps_what_the_job_had_altered(cli, counter):
    (counter / "altered.txt").write_text("as it came")
    (counter / "deleted.txt").write_text("")
    (counter / "kept.txt").write_text("")
    directory = interrupted(cli, counter)
    work = directory / "work" / "counter"
    (work / "altered.txt").write_text("by the job")
    (work / "output.txt").write_text("of the job")
    change(counter)
    (counter / "altered.txt").write_text("by the user")
    (counter / "deleted.txt").unlink()
    (counter / "sub").mkdir()
    (counter / "sub" / "added.txt").write_text("added")
    step = step_of(directory)
    result = cli.run(counter, "--update-code", "--detach", **LONG)
    assert "4 files of the code: updated; the run is no longer exact" in result.stderr
    assert {path.relative_to(work).as_posix() for path in work.rglob("*") if path.suffix != ".pyc"} == {
        "counter.py", "job.yaml", "altered.txt", "altered.txt.before-update", "kept.txt", "output.txt", "sub", "sub/added.txt",
        *(["__pycache__"] if (work / "__pycache__").exists() else []),
    }  # fmt: skip
    assert (work / "altered.txt").read_text() == "by the user"
    assert (work / "altered.txt.before-update").read_text() == "by the job"
    assert "# changed" in (work / "counter.py").read_text()
    record = cli.only().record
    assert record["attempts"][1]["began_from"]["step"] >= step
    assert (record["exact"], record["reasons"]) == (False, ["the code was changed by --update-code before attempt 2"])


def test_update_code_without_a_change_leaves_the_run_exact(cli, counter):
    interrupted(cli, counter, steps=20)
    cli.run(counter, "--update-code", **{**LONG, "steps": 20})
    assert cli.only().record["exact"] is True


def test_after_update_code_the_new_code_is_the_runs_own(cli, counter):
    interrupted(cli, counter)
    change(counter)
    cli.run(counter, "--update-code", "--detach", **LONG)
    kill_launcher(cli.only().directory)
    cli.run(counter, "--detach", **LONG)
    assert cli.only().record["exact"] is False
    assert len(cli.only().record["reasons"]) == 1


# ---------------------------------------------------------------- --fresh


def test_fresh_begins_again_and_keeps_the_old_runs(cli):
    first = cli.run("counter", steps=2).stdout
    again = cli.run("counter", "--fresh", steps=2)
    cli.run("counter", "--fresh", steps=2)
    name = cli.only().name
    assert sorted(path.name for path in cli.volume.iterdir()) == [name, f"{name}.1", f"{name}.2"]
    assert again.stdout == first  # of the new attempt only
    assert f"what was there is kept as {name}.1" in again.stderr
    assert len(cli.only().record["attempts"]) == 1


def test_fresh_left_standing_in_the_command_continues_an_interrupted_run(cli):
    directory = interrupted(cli, "counter", "--fresh")
    result = cli.run("counter", "--fresh", "--detach", **LONG)
    assert "was begun afresh by this very command and was interrupted: it is continued" in result.stderr
    assert len(cli.only().record["attempts"]) == 2
    kill_launcher(directory)
    cli.run("counter", "--fresh", "--detach", **LONG)
    assert len(cli.only().record["attempts"]) == 3


def test_fresh_begins_again_where_the_run_was_not_begun_by_it(cli):
    interrupted(cli, "counter")
    cli.run("counter", "--fresh", "--detach", **LONG)
    assert len(cli.only().record["attempts"]) == 1


def test_fresh_begins_again_where_code_or_parameters_are_others(cli, counter):
    interrupted(cli, counter, "--fresh", "--name", "mine")
    cli.run(counter, "--fresh", "--name", "mine", "--detach", "-P", "seed=7", **LONG)
    kill_launcher(cli.only().directory)
    change(counter)
    cli.run(counter, "--fresh", "--name", "mine", "--detach", "-P", "seed=7", **LONG)
    assert len(cli.only().record["attempts"]) == 1
    assert (cli.volume / "mine.2").is_dir()


# ---------------------------------------------------------------- succeeded


def test_succeeded_shows_its_result_and_starts_nothing(cli):
    cli.run("counter", steps=3)
    before = (cli.only().directory / "run.json").read_bytes()
    result = cli.run("counter", steps=3)
    assert "It succeeded" in result.stderr
    assert f"report: {cli.only().directory / 'report.json'}" in result.stderr
    assert (cli.only().directory / "run.json").read_bytes() == before


def test_succeeded_with_changed_code_is_refused(cli, counter):
    cli.run(counter, steps=3)
    change(counter)
    for option in ([], ["--update-code"]):
        result = cli.run(counter, *option, steps=3, code=2)
        assert "counter.py: changed\n--fresh begins again (the old run is kept)." in result.stderr


def test_extended_is_the_same_as_at_once(cli):
    cli.run("counter", steps=10)
    cli.run("counter", steps=20)
    assert len(cli.only().record["attempts"]) == 2
    assert "counting from 10 to 20" in (cli.only().directory / "logs" / "attempt-2.log").read_text()
    assert cli.report() == {"steps": 20, "value": chain(20)}
    assert cli.only().record["exact"] is True


def test_a_lower_value_is_refused(cli):
    cli.run("counter", steps=10)
    assert "parameter steps: was 10, now 9" in cli.run("counter", steps=9, code=2).stderr
    assert cli.report()["steps"] == 10


def test_left_out_an_extended_parameter_stays_as_it_was(cli):
    cli.run("counter", steps=25)
    assert "It succeeded" in cli.run("counter").stderr
    assert cli.report()["steps"] == 25


# ---------------------------------------------------------------- names


def name_of(cli: Cli, *words: str | Path) -> str:
    request = cli("render", *words).stdout.split("# request.json\n")[1]
    name: str = json.loads(request)["name"]
    return name


def test_the_name_is_the_jobs_and_a_hash_of_what_was_asked(cli):
    name = name_of(cli, "counter")
    assert name.rpartition("-")[0] == "counter"
    asked = [
        [], ["-E", "tf0.0-cpu"], ["-P", "seed=1"], ["-P", "seed=2"], ["-P", "seed=1", "-P", "every=2"], ["--", "python", "x.py"],
        ["--", "python", "y.py"],
    ]  # fmt: skip
    assert len({name_of(cli, "counter", *words) for words in asked}) == len(asked)


def test_the_name_does_not_depend_on_order_place_or_what_may_be_extended(cli, counter):
    name = name_of(cli, "counter", "-P", "seed=1", "-P", "every=2")
    assert name_of(cli, "counter", "-P", "every=2", "-P", "seed=1", "-P", "steps=99") == name
    assert name_of(cli, counter, "-P", "seed=1", "-P", "every=2") == name
    cli.cwd = with_environments(counter)
    assert name_of(cli, ".", "-P", "seed=1", "-P", "every=2") == name


def test_a_file_is_the_same_run_as_its_project_with_the_command_and_another_file_is_another(cli, project):
    for name in ("a.py", "b.py"):
        (project / name).write_text("")
    for arguments in ([], ["--x"]):
        after = ["--", *arguments] if arguments else []
        name = name_of(cli, project / "a.py", *after)
        assert name == name_of(cli, project, "--", "python", "a.py", *arguments)
        assert name != name_of(cli, project / "b.py", *after)


def test_a_profile_names_an_environment_without_changing_the_name_or_a_run_that_began(cli, project):
    name = name_of(cli, JOBS / "counter")
    cli.cwd = with_environments(project)
    (project / "runner.yaml").write_text("default: {environment: tf0.1-cpu}\n")
    assert name_of(cli, JOBS / "counter") == name
    cli.run(JOBS / "counter", steps=2)
    assert cli.only().request["environment"] == "tf0.1-cpu"  # before job.yaml's
    (project / "runner.yaml").unlink()
    assert "It succeeded" in cli.run(JOBS / "counter", steps=2).stderr


def test_the_same_command_in_a_clone_is_the_same_run(cli, counter):
    cli.run("counter", steps=3)
    assert "It succeeded" in cli.run(counter, steps=3).stderr


def test_another_project_of_the_same_name_is_refused_with_its_path(cli, project):
    jobs = [project / "a" / "job", project / "b" / "job"]
    for number, job in enumerate(jobs):
        job.mkdir(parents=True)
        (job / "main.py").write_text(f"print({number})")
    words = ("-E", "tf0.0-cpu", "--", "python", "main.py")
    cli("run", jobs[0], *words)
    for option in ([], ["--fresh"], ["--update-code"]):
        result = cli("run", jobs[1], *option, *words, code=2)
        assert f"belongs to another project: {jobs[0]}" in result.stderr
        assert "--name" in result.stderr
    shutil.rmtree(jobs[0])  # it has moved
    cli("run", jobs[1], "--fresh", *words)


def test_another_project_of_the_same_name_is_refused_while_it_is_going_too(cli, project):
    jobs = [project / "a" / "job", project / "b" / "job"]
    for number, job in enumerate(jobs):
        job.mkdir(parents=True)
        (job / "main.py").write_text(f"import time\ntime.sleep(600 + {number})")
    words = ("-E", "tf0.0-cpu", "--detach", "--", "python", "main.py")
    cli("run", jobs[0], *words)
    assert f"belongs to another project: {jobs[0]}" in cli("run", jobs[1], *words, code=2).stderr


# ---------------------------------------------------------------- frozen and free


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-P", "seed=3"], "parameter seed: was 0, now 3"),
        (["--", "python", "other.py"], 'command: was ["python", "counter.py"], now ["python", "other.py"]'),
        (["-E", "tf0.1-cpu"], "environment: was tf0.0-cpu, now tf0.1-cpu"),
        (["--data", "numbers={project}"], "data: was {}, now "),
    ],
)
def test_what_is_frozen_is_refused_and_shown(cli, project, words, said):
    cli.cwd = with_environments(project)
    cli.run(JOBS / "counter", "--name", "mine", steps=2)
    before = (cli.only().directory / "request.json").read_bytes()
    result = cli.run(JOBS / "counter", "--name", "mine", *(word.format(project=project) for word in words), code=2)
    assert said in result.stderr
    assert "--fresh" in result.stderr
    assert (cli.only().directory / "request.json").read_bytes() == before


def with_environments(folder: Path, pythons: str = '["3.13", "3.12", "3.11", "3.10"]') -> Path:
    """Make rows of the user's own: tf0.0-cpu as in tests/jobs, and tf0.1-cpu."""
    (folder / "locks").mkdir()
    rows = []
    for number in (0, 1):
        shutil.copy(JOBS / "locks" / "tf0.0-cpu.txt", folder / "locks" / f"tf0.{number}-cpu.txt")
        rows.append(
            f"  tf0.{number}-cpu: {{tensorflow: 0.{number}.0, device: cpu, pythons: {pythons}, "
            "packages: [nothing], exclude_newer: 2026-01-01}\n"
        )
    (folder / "environments.yaml").write_text("environments:\n" + "".join(rows))
    return folder


def test_a_run_that_lost_its_lock_goes_on_in_the_environment_that_it_began_with(cli, project):
    cli.cwd = with_environments(project)
    words = (JOBS / "counter", "--name", "mine")
    cli.run(*words, "-E", "tf0.1-cpu", steps=2)
    (cli.volume / "mine" / "runner.lock").unlink()
    cli.run(*words, steps=4)
    assert (cli.only().request["environment"], cli.report()["steps"]) == ("tf0.1-cpu", 4)


def test_changed_data_are_refused(cli, project):
    data = project / "data"
    data.mkdir()
    (data / "a").write_text("1")
    cli.run("counter", "--data", f"numbers={data}", steps=2)
    cli.run("counter", "--data", f"numbers={data}", steps=2)
    (data / "a").write_text("2")
    assert "data: was" in cli.run("counter", "--data", f"numbers={data}", steps=2, code=2).stderr


def test_what_is_free_may_differ_from_attempt_to_attempt(cli):
    directory = interrupted(cli, "counter", "--retries", "0", "-e", "A=1", "--cpus", "2", steps=20)
    cli.env["TOKEN"] = "x"
    cli.run(
        "counter",
        "--retries",
        "5",
        "-e",
        "A=2",
        "-e",
        "B=3",
        "--secret",
        "TOKEN",
        "--cpus",
        "1",
        **{**LONG, "steps": 20},
    )
    assert step_of(directory) == 20


def test_of_notebooks_only_the_sources_of_the_cells_count(cli, counter):
    def notebook(source: str, output: str) -> str:
        return json.dumps({"cells": [{"cell_type": "code", "source": [source], "outputs": [output]}], "metadata": {}})

    (counter / "n.ipynb").write_text(notebook("1 + 1", ""))
    interrupted(cli, counter)
    (counter / "n.ipynb").write_text(notebook("1 + 1", "2"))
    cli.run(counter, "--detach", **LONG)
    kill_launcher(cli.only().directory)
    (counter / "n.ipynb").write_text(notebook("1 + 2", "2"))
    assert "n.ipynb: changed" in cli.run(counter, code=2, **LONG).stderr


def test_settings_of_the_runner_in_the_project_are_no_code(cli, counter):
    interrupted(cli, counter)
    cli.cwd = with_environments(counter)
    (counter / "runner.yaml").write_text("default: {retries: 5}\n")
    result = cli.run(counter, "--update-code", "--detach", **LONG)
    assert "of the code" not in result.stderr
    assert cli.only().request["retries"] == 5


def test_free_keys_of_job_yaml_may_change_and_the_others_are_code(cli, counter):
    job = counter / "job.yaml"
    directory = interrupted(cli, counter)
    text = job.read_text().replace("retries: 2", "retries: 7").replace("1steps", "1epoch")
    job.write_text(text + "resources: {cpus: 1}\n")
    cli.run(counter, "--detach", **LONG)
    assert (cli.only().request["retries"], cli.only().request["checkpoint_every"]) == (7, "1epoch")
    kill_launcher(directory)
    job.write_text(job.read_text().replace("max: 255", "max: 254"))
    assert "job.yaml: changed" in cli.run(counter, code=2, **LONG).stderr
    cli.run(counter, "--update-code", "--detach", **LONG)
    work = directory / "work" / "counter"
    assert (work / "job.yaml").read_text() == job.read_text()
    assert not (work / "job.yaml.before-update").exists()


# ---------------------------------------------------------------- exact


def test_the_number_of_threads_is_that_of_the_first_attempt(cli, project):
    (project / "job.py").write_text(
        "import os, time\nprint(os.environ['OMP_NUM_THREADS'], os.environ['TF_NUM_INTRAOP_THREADS'],"
        "os.environ['TF_NUM_INTEROP_THREADS'])\nraise SystemExit(1)"
    )
    first = cli.run(project / "job.py", "-E", "tf0.0-cpu", "--cpus", "3", code=1)
    second = cli.run(project / "job.py", "-E", "tf0.0-cpu", "--cpus", "1", code=1)
    assert first.stdout == second.stdout == "3 3 3\n"
    assert cli.only().record["exact"] is True


def test_without_a_number_of_threads_it_is_what_the_process_may_use(cli):
    cli.run("counter", steps=1)
    assert cli.only().record["threads"] == len(os.sched_getaffinity(0))


def test_another_python_is_no_longer_exact(cli, project):
    """As on a machine that lacks the Python of the first attempt."""
    directory = interrupted(cli, "counter", steps=20)
    record = json.loads((directory / "run.json").read_text())
    record["conditions"]["python"] = "3.5"
    (directory / "run.json").write_text(json.dumps(record))
    result = cli.run("counter", **{**LONG, "steps": 20})
    now = cli.only().record["versions"]["python"].rpartition(".")[0]
    assert f"no longer exact: attempt 2 ran with Python {now} instead of 3.5" in result.stderr
    status = cli("status", cli.only().name).stdout
    assert f"exact:       no: attempt 2 ran with Python {now} instead of 3.5" in status


def test_variables_of_python_reach_the_job_and_not_its_launcher(cli, project):
    (project / "tarfile.py").write_text("raise SystemExit('the wrong one')")
    (project / "job.py").write_text("import os\nprint(os.environ['PYTHONPATH'].split(os.pathsep)[1:])")
    result = cli.run(project / "job.py", "-E", "tf0.0-cpu", "-e", f"PYTHONPATH={project}")
    assert result.stdout == f"{[str(project)]}\n"


# ---------------------------------------------------------------- secrets


def test_a_secret_reaches_the_job_and_is_written_nowhere(cli, project, tmp_path):
    (project / "job.py").write_text(
        "import os, time\nopen('/proc/self/cmdline').read()\nassert os.environ['TOKEN'] == 'hush-' + 'hush'\n"
        "print('it knows', flush=True)\ntime.sleep(600)"
    )
    cli.env["TOKEN"] = "hush-hush"
    cli.run(project / "job.py", "-E", "tf0.0-cpu", "--secret", "TOKEN", "--detach")
    log = cli.only().directory / "logs" / "attempt-1.log"
    until(lambda: "it knows" in log.read_text(), what="the job's first line")
    assert "hush-hush" not in arguments_of_all_processes()
    assert json.loads((cli.only().directory / "request.json").read_text())["secrets"] == ["TOKEN"]
    for folder in (cli.volume, tmp_path / "state", tmp_path / "cache" / "submissions"):
        for path in folder.rglob("*"):
            assert not path.is_file() or b"hush-hush" not in path.read_bytes(), path
    assert "hush-hush" not in cli("status", "--json").stdout


def arguments_of_all_processes() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def test_a_later_attempt_without_the_secret_is_refused_by_name(cli):
    cli.env["TOKEN"] = "hush"
    interrupted(cli, "counter", "--secret", "TOKEN")
    del cli.env["TOKEN"]
    result = cli.run("counter", code=2, **LONG)
    assert "the secret TOKEN is not set here" in result.stderr
    cli.env["TOKEN"] = "hush"
    cli.run("counter", "--detach", **LONG)


def test_attaching_and_seeing_a_result_need_no_secret(cli):
    cli.env["TOKEN"] = "hush"
    cli.run("counter", "--secret", "TOKEN", "--detach", steps=60, pause=0.02)
    del cli.env["TOKEN"]
    assert chain(60) in cli.run("counter", steps=60, pause=0.02).stdout
    assert "It succeeded" in cli.run("counter", steps=60, pause=0.02).stderr
