"""The wheel: what is in it, that it works without a checkout, and that a newer one goes on with an older one's runs."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import JOBS, ROOT, Cli, kill_launcher, need, step_of, until

from runner import packages, runs

DATA = ("images", "jobs", "k8s")
ROW = """  {name}:
    tensorflow: "0.0.0"
    device: cpu
    pythons: ["3.13", "3.12", "3.11", "3.10"]
    packages: [nothing]
    exclude_newer: 2026-01-01
"""


def call(*words, **options):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def sources():
    need(
        "git",
        shutil.which("git") is not None and (ROOT / ".git").exists(),
        "run the tests in a clone, with git installed",
    )
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def build(folder: Path, change=lambda folder: None) -> Path:
    """Build a wheel from a copy of the sources, changed or not."""
    for name in sources():
        if name.startswith(("runner/", *(f"{part}/" for part in DATA))) or "/" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    change(folder)
    words = packages.command("build", "--wheel", "--quiet", "--out-dir", folder / "dist", folder)
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    need(
        "network",
        done.returncode == 0,
        f"a wheel is built with setuptools from the package index: {done.stderr.strip()[-500:]}",
    )
    return next((folder / "dist").glob("*.whl"))


def rows(folder: Path, default: str, locks: dict[str, str]) -> None:
    """Give a copy of the sources rows whose environments take no time to make."""
    shutil.rmtree(folder / "images/locks")
    (folder / "images/locks").mkdir()
    text = (folder / "images/environments.yaml").read_text()
    rules = text[text.index("\ncaps:") :]
    (folder / "images/environments.yaml").write_text(
        f"default: {default}\nenvironments:\n" + "".join(ROW.format(name=name) for name in locks) + rules
    )
    for name, lock in locks.items():
        (folder / "images/locks" / f"{name}.txt").write_text(lock)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("wheel")


@pytest.fixture(scope="module")
def wheel(place):
    """The wheel of these sources."""
    return build(place / "sources")


@pytest.fixture(scope="module")
def python(place, wheel):
    """The Python of a fresh virtualenv with the wheel, installed by pip."""
    call(sys.executable, "-m", "venv", "--without-pip", place / "venv")
    python = place / "venv/bin/python"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel], capture_output=True, text=True
    )
    need("network", done.returncode == 0, f"pip fetches what the wheel needs: {done.stderr.strip()[-500:]}")
    return python


class Installed(Cli):
    """The command as the wheel installs it."""

    def start(self, *words, **options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen([self.program, *map(str, words)], cwd=self.cwd, env=self.env, **{**pipes, **options})


@pytest.fixture
def installed(cli, python, tmp_path):
    env = {name: value for name, value in cli.env.items() if name != "PYTHONPATH"}
    found = Installed(volume=cli.volume, cwd=tmp_path, env=env)
    found.program = python.with_name("runner")
    return found


def test_the_wheel_has_all_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    data = {name.removeprefix("runner/_data/") for name in names if name.startswith("runner/_data/")}
    assert data == {name for name in sources() if name.startswith(tuple(f"{part}/" for part in DATA))}
    assert {
        "images/environments.yaml",
        "images/locks/tf2.15-cpu.txt",
        "jobs/launch.py",
        "jobs/fashion_mnist/train.py",
    } <= data
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", "images/", "jobs/"))]
    assert {name for name in names if name.endswith(".py") and not name.startswith("runner/_data/")} == {
        name for name in sources() if name.startswith("runner/")
    }


def test_what_the_wheel_installs_runs_a_job(installed):
    shutil.copytree(JOBS / "counter", installed.cwd / "counter")
    shutil.copytree(JOBS / "locks", installed.cwd / "locks")
    shutil.copy(JOBS / "environments.yaml", installed.cwd)
    assert "counted to 3" in installed.run("counter", steps=3).stdout
    assert "It succeeded" in installed.run("counter", steps=3).stderr
    assert "fashion_mnist" in installed("run", "fashion", code=2).stderr
    assert "tf2.21-cpu (default)" in installed("envs").stdout
    rendered = installed("render", "fashion_mnist").stdout
    assert '"environment": "tf2.21-cpu"' in rendered and '"tensorflow": "2.21.0"' in rendered


def test_a_newer_runner_whose_default_has_moved_goes_on_with_the_older_ones_lock(installed, python, place, tmp_path):
    older = build(tmp_path / "older", lambda folder: rows(folder, "tf0.1-cpu", {"tf0.1-cpu": "# made in spring\n"}))
    unusable = f"no-such-package-anywhere==1.0 --hash=sha256:{'0' * 64}\n"
    moved = {"tf0.1-cpu": unusable, "tf0.2-cpu": unusable}
    newer = build(tmp_path / "newer", lambda folder: rows(folder, "tf0.2-cpu", moved))
    project = installed.cwd / "project"
    shutil.copytree(JOBS / "counter", project)
    text = (project / "job.yaml").read_text()
    (project / "job.yaml").write_text(text.replace("environment: tf0.0-cpu\n", ""))
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--force-reinstall")
    words = ("run", project, "-P", "steps=30", "-P", "pause=0.1")
    call(*install, older)
    installed(*words, "--detach")
    run = installed.only()
    until(lambda: run.directory.exists() and step_of(run.directory) > 2)
    kill_launcher(run.directory)
    call(*install, newer)
    assert "tf0.2-cpu (default)" in installed("envs").stdout
    ended = installed(*words)
    assert "continues from step" in ended.stderr and "It succeeded" in ended.stderr
    (run,) = runs.on_volume(installed.volume)
    assert (
        run.request["environment"] == "tf0.1-cpu"
        and (run.directory / "runner.lock").read_text() == "# made in spring\n"
    )
    assert run.record["exact"] and len(run.record["attempts"]) == 2
    assert json.loads((run.directory / "request.json").read_text())["lock"] == run.record["conditions"]["lock"]
    refused = installed("run", project, "--name", run.name, "-E", "tf0.2", "-P", "steps=30", "-P", "pause=0.1", code=2)
    assert "environment: was tf0.1-cpu, now tf0.2-cpu" in refused.stderr
