"""What tests share: the command line as a user calls it, volumes, environments, and skips that say what is missing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runner import datasets, engines, environments, resources, run_directory, runs, virtualenvs
from runner.errors import DataError, EngineFailed, EnvironmentFailed

ROOT = Path(__file__).resolve().parent.parent
JOBS = ROOT / "tests" / "jobs"
BASE_IMAGE = os.environ.get("RUNNER_TEST_BASE_IMAGE")  # where the official images cannot be had: tests/engine/bases
COUNTER = "tf0.0-cpu"  # the environment of the counter, whose image is only its base
LONG: Any = {"steps": 100000, "pause": 0.01}  # parameters of a counter that goes on until somebody ends it


def need(what: str, there: bool, how: str) -> None:
    """Skip a test for want of something, saying how to get it; where RUNNER_REQUIRE names it, fail instead."""
    if there:
        return
    if what in os.environ.get("RUNNER_REQUIRE", "").split(","):
        pytest.fail(f"RUNNER_REQUIRE asks for {what}, and it is missing. {how}")
    pytest.skip(f"needs {what}: {how}")


@dataclass
class Result:
    """What a command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    def json(self) -> Any:
        return json.loads(self.stdout.strip().splitlines()[-1])


@dataclass
class Cli:
    """The command `runner` as a user calls it, in a directory, with a volume and a cache of its own."""

    volume: Path
    cwd: Path = JOBS
    env: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def command(*words: str | Path) -> list[str]:
        return [sys.executable, "-m", "runner", *map(str, words)]

    def start(self, *words: str | Path, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        return subprocess.Popen(
            self.command(*words), cwd=self.cwd, env=self.env, text=True, errors="replace", **options
        )

    def __call__(self, *words: str | Path, code: int | None = 0, timeout: float = 300) -> Result:
        """Run a command to its end and check its exit code (None: any); no failure may show a traceback."""
        process = self.start(*words)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            pytest.fail(f"runner {' '.join(map(str, words))} did not end in {timeout} s:\n{stdout}\n{stderr}")
        result = Result(process.returncode, stdout, stderr)
        assert "Traceback (most recent call last)" not in result.stderr, result.stderr
        assert code is None or result.code == code, f"ended with {result.code}, not {code}:\n{result.output}"
        return result

    def run(self, job: str | Path, *words: str | Path, code: int | None = 0, **parameters: Any) -> Result:
        """`runner run JOB -P ... WORDS`."""
        given = [word for key, value in parameters.items() for word in ("-P", f"{key}={value}")]
        return self("run", job, *given, *words, code=code)

    def only(self) -> runs.Found:
        """Return the one run on the volume."""
        found = [run for run in runs.on_volume(self.volume) if "." not in run.name]
        assert len(found) == 1, found
        return found[0]

    def report(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.only().directory / "report.json").read_text())
        return value


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.mkdir()
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty folder for a project of the test's own."""
    path = tmp_path / "project"
    path.mkdir()
    return path


@pytest.fixture
def cli(volume: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cli]:
    """The command line; whatever still goes on the volume at the end of a test is killed."""
    command = Cli(volume=volume, env=_variables(volume, tmp_path))
    docker = request.node.get_closest_marker("docker")
    if not docker:
        command.env["DOCKER_HOST"] = "unix:///nowhere"  # what others run and keep on this machine's engine is not ours
    yield command
    if docker:
        _remove_containers(volume)
    for run in runs.on_volume(volume):
        kill_launcher(run.directory)


def _remove_containers(volume: Path) -> None:
    """Remove the containers of a volume, and of those that proofs made on it."""
    for container in containers():
        if (container.labels["runner.volume"] + "/").startswith(f"{volume}/"):
            container.remove(force=True)


def _variables(volume: Path, tmp_path: Path) -> dict[str, str]:
    """Return the caller's variables with a state and a cache of the test's own; environments and data are shared."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("environments", "bytecode", "data"):
        resources.cache(name).mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(resources.cache(name))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RUNNER_")}
    kept.update(RUNNER_CACHE=str(cache), RUNNER_STATE=str(tmp_path / "state"), RUNNER_VOLUME=str(volume))
    kept.update(PYTHONPATH=str(ROOT), COLUMNS="200")
    if BASE_IMAGE:
        kept["RUNNER_BASE_IMAGE"] = BASE_IMAGE
    return kept


def until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "the condition") -> Any:
    """Wait until something is so, and return it; fail after a while."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about in {seconds} s"
        time.sleep(0.01)
    return value


def step_of(directory: Path) -> int:
    """Return the step of the newest checkpoint, 0 where there is none."""
    newest = run_directory.newest_checkpoint(str(directory))
    return int(newest["step"]) if newest else 0


def begin(cli: Cli, job: str | Path, *words: str | Path, checkpoint: int = 1, **parameters: Any) -> Path:
    """Start a counter that goes on by itself, wait for a checkpoint, and return the run's directory."""
    cli.run(job, "--detach", *words, **{**LONG, **parameters})
    directory = cli.only().directory
    until(lambda: step_of(directory) >= checkpoint, what=f"checkpoint {checkpoint}")
    return directory


def kill_launcher(directory: Path, number: int = signal.SIGKILL) -> None:
    """Send a signal to the launcher of a run that is going, and wait until it is gone."""
    holder = run_directory.holder(str(directory / ".lock"))
    if holder and holder["boot"] == run_directory.boot() and run_directory.going(str(directory)):
        try:
            os.kill(holder["pid"], number)
        except ProcessLookupError:
            return
        until(lambda: not run_directory.going(str(directory)), what="the launcher's end")


@pytest.fixture(scope="session")
def environment_python() -> Callable[[str], Path]:
    """Return the Python of a row's virtualenv, which is made on demand and kept in the cache."""

    def python(name: str) -> Path:
        row = environments.find(name)
        try:
            return virtualenvs.ensure(row.lock_text, row.pythons, row.name).python
        except EnvironmentFailed as error:
            need("tensorflow", False, str(error))
            raise

    return python


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """Return the folder of the real Fashion-MNIST, which is fetched on demand and kept in the cache."""
    try:
        return datasets.ensure(datasets.find("fashion-mnist"))
    except DataError as error:
        need("data", False, str(error))
        raise


@pytest.fixture(scope="session")
def engine() -> engines.Engine:
    """The Docker engine of this machine."""
    try:
        return engines.connect()
    except EngineFailed as error:
        need("docker", False, f"{error} On Debian and Ubuntu: tests/engine/install, tests/engine/start (as root).")
        raise


def containers() -> list[Any]:
    """Return the containers of runs that the engine has, of all volumes."""
    found: list[Any] = engines.connect().client.containers.list(all=True, filters={"label": "runner.volume"})
    return found


@pytest.fixture(scope="session")
def environment_image(engine: engines.Engine) -> Callable[[str], str]:
    """Return the image of a row, which is built on demand and stays on the engine."""

    def image(name: str) -> str:
        from runner import images

        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(JOBS)  # the row may be one of the tests'
            row = environments.find(name)
        try:
            return images.ensure(engine, row.name, row.lock_text, row.pythons[0], BASE_IMAGE)
        except EnvironmentFailed as error:
            need(
                "docker",
                False,
                f"{error}\nWithout the official base images: tests/engine/bases (CONTRIBUTING.md, Tests)",
            )
            raise

    return image


@pytest.fixture
def in_docker(cli: Cli, environment_image: Callable[[str], str]) -> None:
    """Let the command line run jobs in Docker where no backend is named; the counter's image is there."""
    environment_image(COUNTER)
    cli.env["RUNNER_ON"] = "docker"


@pytest.fixture(scope="session")
def _room() -> Iterator[Path]:
    """A folder on a disk, with a name short enough for sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="engine-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def private_engine(engine: engines.Engine, _room: Path) -> Iterator[Any]:
    """A Docker engine of the test's own, not started yet (see engines.py)."""
    import engines as own  # it imports this module

    with own.private_engine(_room) as found:
        yield found
