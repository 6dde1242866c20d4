"""What bad input gets: a sentence with the next step, the right exit code, and nothing created or lost."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import JOBS, ROOT, need, until
from mounts import mounted, read_only


@pytest.fixture
def refused(cli, volume, tmp_path):
    """A function that runs a command, which must be refused with these words and leave nothing behind."""

    def check(*words, says, code=2, beside=()):
        result = cli(*words, code=code)
        assert result.stdout == ""
        assert result.stderr.startswith("runner: ") and result.stderr.count("\n") <= 12, result.stderr
        for part in [says] if isinstance(says, str) else says:
            assert part in result.stderr
        assert sorted(path.name for path in volume.iterdir()) == sorted(beside)
        assert not (tmp_path / "cache/submissions").exists()
        return result

    return check


def project(tmp_path, job=None, **files):
    folder = tmp_path / "project"
    folder.mkdir()
    if job is not None:
        (folder / "job.yaml").write_text(job)
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content)
    return folder


# Unknown names


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "counter", "-E", "tf2.51"], ["unknown environment 'tf2.51'. Did you mean tf2.", "tf1.15-cpu"]),
        (["run", "counter", "-E", "9.9.9"], ["unknown environment '9.9.9'", "`runner lock 9.9.9` makes it"]),
        (["run", "fashion-mnist"], ["unknown job 'fashion-mnist'. Did you mean fashion_mnist?"]),
        (["run", "./nowhere"], ["'./nowhere' is neither a directory nor a file"]),
        (["run", "nowhere.py"], ["'nowhere.py' is neither a directory nor a file"]),
        (["run", "~nobody-of-this-name/x"], ["is neither a directory nor a file"]),
        (["run", "x" * 300], ["unknown job"]),
        (["run", "counter/job.yaml"], ["'job.yaml' is not a Python script. Give a .py file, or a directory"]),
        (["run", "counter", "-P", "step=3"], ["unknown parameter 'step'. Did you mean steps?"]),
        (["run", "counter", "--on", "dokcer"], ["unknown backend 'dokcer'", "Known: ", "native"]),
        (["run", "counter", "--on", "natvie"], ["Did you mean native?"]),
        (["ps", "--on", "natvie"], ["Did you mean native?"]),
        (["runn", "counter"], ["unknown command 'runn'. Did you mean run?"]),
        (["--profile", "gpu", "run", "counter"], ["--profile gpu: there is no runner.yaml"]),
        (["envs", "tf2.51"], ["Did you mean tf2."]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_an_unknown_name_is_refused_with_the_nearest(refused, words, says):
    refused(*words, says=says)


# Options


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-P", "steps=many"], "-P steps=many: steps is a whole number, such as 20"),
        (["-P", "steps=0"], "steps must be at least 1"),
        (["-P", "code=300"], "code must be at most 255"),
        (["-P", "fault=crahs"], "Did you mean crash?"),
        (["-P", "steps"], "-P steps: a parameter is given as key=value"),
        (["--env", "tf2.15"], "The environment is given with -E"),
        (["--environment=tf2.15"], "The environment is given with -E"),
        (["--epochs", "20"], ["-P epochs=20", "after --", "-- --epochs 20"]),
        (["--epochs=20"], ["-P epochs=20", "-- --epochs 20"]),
        (["--learning-rate", "0.1"], ["-P learning_rate=0.1", "-- --learning-rate 0.1"]),
        (["--verbose"], ["there is no option --verbose", "after --"]),
        (["--detatch"], "Did you mean --detach?"),
        (["steps=3"], "'steps=3': a parameter is given as -P steps=3, and a command after --"),
        (["python", "counter.py"], "a command after --, such as: -- python train.py"),
        (["--name", ""], "a run's name is 1 to 48"),
        (["--name", "a/b"], "a run's name is 1 to 48"),
        (["--name", ".."], "a run's name is 1 to 48"),
        (["--name", "two\nlines"], "a run's name is 1 to 48"),
        (["--name", "x" * 300], "a run's name is 1 to 48"),
        (["--name", "Counter_1"], "lower-case letters"),
        (["--gpus", "1"], ["--gpus 1 needs an environment for cuda, and tf0.0-cpu is for the CPU", "Without --gpus"]),
        (["--gpus", "1", "-E", "tf2.15-cpu"], "and tf2.15-cpu is for the CPU. There is tf2.15-cuda. Without --gpus it"),
        (["--gpus", "-1"], ["-1 is not in the range", "runner run --help"]),
        (["--gpus", "many"], ["'many' is not a valid whole number", "runner run --help"]),
        (["--cpus", "0"], "0 is not in the range"),
        (["--retries", "-1"], "-1 is not in the range"),
        (["-e", "=x"], "a variable is given as KEY or KEY=VALUE"),
        (["-e", "my-key=x"], "a variable is given as KEY or KEY=VALUE"),
        (["-e", "NOWHERE_SET"], "whose value could be taken. Give -e NOWHERE_SET=VALUE"),
        (["--secret", "NOWHERE_SET"], "the secret NOWHERE_SET is not set here. Set it with: export NOWHERE_SET=..."),
        (["--data", "mine"], "a data set is given as NAME=PATH"),
        (["--data", "=/tmp"], "a data set is given as NAME=PATH"),
        (["--data", "Mine=/tmp"], "a data set is given as NAME=PATH"),
        (["--data", "mine=/no/such/place"], "--data mine=/no/such/place: there is no such directory"),
        (["-E", ""], "-E is empty. Give an environment, such as tf2.15"),
        (["--image", ""], "--image '': an image is given as NAME[:TAG]"),
        (["--image", "Bad Image"], ["--image 'Bad Image'", "such as registry.example.org/team/mine:1"]),
        (["--memory", ""], "is for containers, and this would run natively. Add --on docker"),
        (["--volume", ""], "it is empty; give a directory"),
        (["--volume", "/no/such/place"], "does not exist. Make it with: mkdir -p /no/such/place"),
        (["--volume", "~nobody-of-this-name/x"], "does not exist"),
        (["--volume", "x" * 300], "does not exist"),
        (["--volume", "counter/job.yaml"], "is not a directory. Give another with --volume"),
        (["--volume", "counter/job.yaml/inside"], "does not exist"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_wrong_option_is_refused(refused, words, says):
    refused("run", "counter", *words, says=says)


def test_a_command_without_its_argument_is_refused(refused):
    refused("run", says="Missing argument 'JOB|DIR|FILE'")
    refused("wait", says="Missing argument 'RUN...'")
    refused("ps", "--epochs", "3", says="there is no option --epochs")


def test_the_value_of_a_secret_is_not_repeated(refused):
    result = refused("run", "counter", "--secret", "TOKEN=hush-hush", says="give the name of a variable only")
    assert "hush" not in result.output
    result = refused("run", "counter", "-e", "MY-TOKEN=hush-hush", says="a variable is given as")
    assert "hush" not in result.output


# job.yaml, and data sets


@pytest.mark.parametrize(
    ("job", "line", "says"),
    [
        ("command: [python\n", 2, "this is not YAML"),
        ("retries: 1\nretries: 2\n", 2, "the key 'retries' stands here twice (first in line 1)"),
        ("command: [a]\nretrys: 1\n", 2, "unknown key 'retrys'. Did you mean retries?"),
        ("command: [a]\nretries: often\n", 2, "retries must be a whole number"),
        ("data: {fashion_mnist: {}}\ncommand: [a]\n", None, "unknown data set 'fashion_mnist'. Did you mean fashion-mnist?"),
    ],
)  # fmt: skip
def test_a_wrong_job_yaml_is_refused_with_file_and_line(refused, tmp_path, job, line, says):
    folder = project(tmp_path, job)
    where = f"{folder / 'job.yaml'}, line {line}: " if line else ""
    refused("run", folder, says=[where, says])


def test_a_job_yaml_that_asks_for_a_gpu_is_told_how_to_do_without(refused, tmp_path):
    folder = project(tmp_path, "command: [python, train.py]\nenvironment: tf2.15-cpu\nresources: {gpus: 1}\n", train="")
    says = ["job.yaml asks for gpus: 1, which needs an environment for cuda", "With --gpus 0 it runs on the CPU"]
    refused("run", folder, says=says)


def test_a_directory_that_does_not_say_what_to_run_is_refused_with_an_example(refused, tmp_path):
    folder = project(tmp_path, train="")
    refused("run", folder, says=f"Give the command after --, such as: runner run {folder} -- python train.py")
    refused("run", folder, "--", says="Give the command after --")


# Volumes and projects


def test_a_read_only_volume_is_refused_and_can_be_listed(cli, refused, volume):
    cli.run("counter", "--name", "here", steps=2)
    shutil.rmtree(cli.env["RUNNER_CACHE"] + "/submissions")
    with read_only(volume):
        refused("run", "counter", says=["cannot be written", "read-only", "--volume"], beside=["here"])
        assert "here" in cli("ps").stdout
        assert "It succeeded" in cli("status").stdout


def test_a_volume_that_went_read_only_keeps_its_run(cli, volume):
    cli.run("counter", "--name", "mine", steps=2)
    with read_only(volume):
        cli.run("counter", "--name", "mine", steps=4, code=2)
    cli.run("counter", "--name", "mine", steps=4)
    assert cli.report()["steps"] == 4


def test_a_project_over_200_mb_is_refused_naming_the_big_folders(refused, tmp_path):
    folder = project(tmp_path, train="")
    for name, size in (("data", 190_000_000), ("models", 30_000_000)):
        (folder / name).mkdir()
        (folder / name / "big").touch()
        os.truncate(folder / name / "big", size)
    refused(
        "run", folder, "--", "python", "train.py", says=["data (190 MB), models (30 MB)", ".runnerignore", "--data"]
    )


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_cannot_be_read_in_a_project_is_refused_by_name(volume, what):
    """Root can read everything: so this is done as nobody, in a folder that nobody can reach."""
    place = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        place.chmod(0o755)
        folder = project(place, "command: [python, train.py]\nenvironment: tf2.15-cpu\n", train="")
        (folder / "secret").mkdir() if what == "folder" else (folder / "secret").touch()
        (folder / "secret").chmod(0)
        (place / "volume").mkdir(mode=0o777)
        (place / "volume").chmod(0o777)
        user = {"user": 65534} if os.geteuid() == 0 else {}
        packages = next(Path(sys.prefix, "lib").glob("python3*/site-packages"))
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{packages}", "HOME": str(place),
               "RUNNER_VOLUME": str(place / "volume"), "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
        python = _python_for_all(env, user)
        done = subprocess.run([python, "-m", "runner", "run", folder], env=env, capture_output=True, text=True, **user)
        assert done.returncode == 2, done.stderr
        assert f"{folder / 'secret'} cannot be read" in done.stderr and ".runnerignore" in done.stderr
        assert not list((place / "volume").iterdir())
    finally:
        shutil.rmtree(place)


def _python_for_all(env, user):
    """Return a Python that this user may use: the tests' own may be in a private folder."""
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            if (
                subprocess.run(
                    [python, "-c", "import runner.cli, yaml"], env=env, capture_output=True, **user
                ).returncode
                == 0
            ):
                return python
    return need("python", False, "a Python 3.10 or later that every user of this machine may read")


# Commands


def test_a_command_that_is_missing_is_127_and_one_that_may_not_be_executed_126(cli, tmp_path):
    folder = project(tmp_path, "environment: tf0.0-cpu\n")
    (folder / "run.sh").write_text("#!/bin/sh\necho ran\n")
    missing = cli.run(folder, "--", "no-such-command", code=127)
    assert "could not be started: no-such-command: there is no such command" in missing.stderr
    assert "could not be started: ./missing.sh" in cli.run(folder, "--", "./missing.sh", code=127).stderr
    assert "Permission denied" in cli.run(folder, "--", "./run.sh", code=126).stderr
    (folder / "run.sh").chmod(0o755)
    assert "ran" in cli.run(folder, "--name", "runs", "--", "./run.sh").stdout


# Settings


def test_the_default_profile_a_named_one_a_variable_and_a_flag_win_in_this_order(cli, volume, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    for name in ("flag", "named", "default"):
        (here / name).mkdir()
    (here / "runner.yaml").write_text("default: {volume: default, retries: 7}\nnamed: {volume: named}\n")
    del cli.env["RUNNER_VOLUME"]
    cli.cwd = here
    job = JOBS / "counter"
    words = ("-E", "tf0.0-cpu", "-P", "steps=1")
    shutil.copytree(JOBS / "locks", here / "locks")
    shutil.copy(JOBS / "environments.yaml", here)
    cli("run", job, *words)
    (run,) = (here / "default").iterdir()
    assert json.loads((run / "request.json").read_text())["retries"] == 7
    cli("--profile", "named", "run", job, *words)
    cli("run", job, "--volume", "flag", *words)
    cli.env["RUNNER_VOLUME"] = str(volume)
    cli("--profile", "named", "run", job, *words)
    assert [len(list(folder.iterdir())) for folder in (here / "default", here / "named", here / "flag", volume)] == [
        1,
        1,
        1,
        1,
    ]
    del cli.env["RUNNER_VOLUME"]
    cli.cwd = tmp_path
    assert cli("ps", "--volume", here / "flag").stdout.count("counter") == 1
    cli.cwd = here
    assert cli("ps").stdout.splitlines()[1].endswith("/default")


def test_what_a_profile_says_for_containers_does_not_matter_natively(cli, tmp_path):
    (tmp_path / "runner.yaml").write_text("default: {memory: 4Gi, user: 1000:50, cpus: 1}\n")
    cli.cwd = tmp_path
    cli.env["RUNNER_VOLUME"] = str(cli.volume)
    job = JOBS / "counter"
    shutil.copytree(JOBS / "locks", tmp_path / "locks")
    shutil.copy(JOBS / "environments.yaml", tmp_path)
    cli.run(job, "--on", "native", steps=1)
    assert "--user" not in cli.only().record["again"] and "--memory" not in cli.only().record["again"]
    for option in (["--memory", "4Gi"], ["--user", "1000"]):  # typed
        assert f"{' '.join(option)} is for containers" in cli.run(job, *option, code=2, steps=1).stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("default: [\n", "line 2: this is not YAML"),
        ("default: {on: dokcer}\n", "unknown backend 'dokcer'. Did you mean docker?"),
        ("default: {yes: 1}\n", "line 1: unknown option 'yes'"),
        ("- a\n", "a mapping (key: value) is expected"),
        ("default: tf2.15\n", "line 1: a profile is a mapping"),
        ("default: {volum: x}\n", "line 1: unknown option 'volum'. Did you mean volume?"),
        ("default: {env: tf2.15}\n", "line 1: unknown option 'env'. Known: base_image, cpus, environment"),
        (
            "default: {environment: 2.15}\n",
            "line 1: environment must be a word or a number, not 2.15. Quotes keep 2.15 a word",
        ),
        ("default: {gpus: [1]}\n", "line 1: gpus must be a word or a number"),
        ("default: {retries: many}\n", "'many' is not a valid whole number"),
    ],
)
def test_a_wrong_runner_yaml_is_refused(refused, cli, tmp_path, text, says):
    shutil.copytree(JOBS / "counter", tmp_path / "counter")
    (tmp_path / "runner.yaml").write_text(text)
    cli.cwd = tmp_path
    refused("run", "counter", says=says)


def test_an_unknown_profile_is_refused_with_the_nearest(refused, cli, tmp_path):
    (tmp_path / "runner.yaml").write_text("cluster: {retries: 1}\n")
    cli.cwd = tmp_path
    refused("--profile", "clutser", "run", JOBS / "counter", says=["runner.yaml", "Did you mean cluster?"])


def test_a_backend_from_a_variable_is_checked_too(refused, cli):
    cli.env["RUNNER_ON"] = "natvie"
    refused("run", "counter", says="unknown backend 'natvie'. Did you mean native?")


# What lies in the way


def test_damaged_lists_and_foreign_folders_do_no_harm(cli, volume):
    cli.run("counter", "--name", "good", steps=1)
    Path(cli.env["RUNNER_STATE"]).mkdir(exist_ok=True)
    Path(cli.env["RUNNER_STATE"], "places.json").write_text("5")
    for name, content in (("empty", ""), ("list", "[1]"), ("cut", '{"format": 1, "na')):
        (volume / name).mkdir()
        (volume / name / "request.json").write_text(content)
        (volume / name / "run.json").write_text(content)
    (volume / "a file").write_text("")
    assert "good" in cli("ps").stdout
    assert json.loads(cli("ps", "--json").stdout)
    for name in ("empty", "list", "cut"):
        assert "request.json is missing or damaged" in cli("status", name).stdout
        refusal = cli.run("counter", "--name", name, code=2).stderr
        assert f"Its files are in {volume / name}; begin" in refusal
        assert len(list((volume / name).iterdir())) == 2


@pytest.mark.parametrize("file", ["request.json", "run.json"])
def test_a_run_of_a_newer_format_is_left_alone(refused, cli, volume, file):
    cli.run("counter", "--name", "newer", steps=1)
    shutil.rmtree(cli.env["RUNNER_CACHE"] + "/submissions")
    path = volume / "newer" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    before = path.read_bytes()
    says = [f"{file} of newer has format 99, written by a newer runner", "pip install --upgrade"]
    refused("run", "counter", "--name", "newer", "-P", "steps=1", says=says, beside=["newer"])
    assert path.read_bytes() == before


def test_two_starts_at_once_are_one_run(cli):
    words = ("run", "counter", "-P", "steps=30", "-P", "pause=0.02")
    started = [cli.start(*words) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], outputs
    assert len(cli.only().record["attempts"]) == 1
    assert all("counted to 30" in stdout for stdout, _ in outputs)


def test_a_name_that_is_going_is_not_begun_afresh(cli):
    cli.run("counter", "--detach", steps=1000, pause=0.05)
    until(lambda: cli.only().checkpoint())
    run = cli.only()
    result = cli.run("counter", "--fresh", steps=1000, pause=0.05, code=2)
    assert f"Stop it first: runner stop {run.name} --volume {run.directory.parent}" in result.stderr
    assert cli.only().going


def test_a_full_cache_is_a_sentence(cli, tmp_path):
    with mounted(tmp_path / "full", "-o", "size=64k") as full:
        (full / "filler").write_bytes(b"x" * 50_000)
        cli.env["RUNNER_CACHE"] = str(full)
        (full / "environments").symlink_to(tmp_path / "cache/environments")
        result = cli.run("counter", code=125)
        assert "No space left" in result.stderr and "RUNNER_CACHE moves the cache" in result.stderr
        assert not list(cli.volume.iterdir())
