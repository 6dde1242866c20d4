"""GPUs as launch.py finds them: refused in words before the job starts, and what the job is given. The driver is a stub."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import JOBS, Cli, need
from test_launcher import edit, handover

ROW = """\
environments:
  tf0.0-cuda:
    tensorflow: "0.0.0"
    device: cuda
    pythons: ["3.13", "3.12", "3.11", "3.10"]
    packages: [nothing]
    libraries: [{}]
    exclude_newer: 2026-01-01
"""

# What launch.py asks of NVIDIA's driver, answered as variables say: there is no GPU where these tests run.
DRIVER = """\
#include <stdio.h>
#include <stdlib.h>
static int told(const char *name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }
int cuInit(unsigned flags) { return told("STUB_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = told("STUB_VERSION", 12020); return 0; }
int cuDeviceGetCount(int *count) { *count = told("STUB_COUNT", 1); return 0; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Stub %d", device); return 0; }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_OF_THE_STUB"; return 0; }
"""

SHOW = (
    "import json, os\n"
    "names = ('CUDA_VISIBLE_DEVICES', 'LD_LIBRARY_PATH', 'XLA_FLAGS', 'PATH')\n"
    "print(json.dumps({name: os.environ.get(name) for name in names}))\n"
)


Gpus = Callable[..., Cli]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile shared libraries, each into a folder of its own."""
    compiler = shutil.which("cc")
    need("cc", compiler is not None, "install a C compiler, such as gcc")

    def compile_library(name: str, source: str = "", *needs: Path) -> Path:
        path = tmp_path_factory.mktemp("library") / name
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name},--no-as-needed", "-o", path, "-x", "c", "-", "-x", "none", *needs],
            input=source, text=True, check=True,
        )  # fmt: skip
        return path

    return compile_library


@pytest.fixture(scope="session")
def driver(library: Callable[..., Path]) -> Path:
    return library("libcuda.so.1", DRIVER)


@pytest.fixture
def gpus(cli: Cli, project: Path, driver: Path) -> Gpus:
    """Return the command line with a row for cuda that names some libraries, and a driver that answers as it is told."""

    def prepare(*libraries: str, **answers: int) -> Cli:
        (project / "locks").mkdir()
        (project / "locks" / "tf0.0-cuda.txt").write_text("# No packages.\n")
        (project / "environments.yaml").write_text(ROW.format(", ".join(libraries)))
        (project / "show.py").write_text(SHOW)
        cli.cwd = project
        cli.env.pop("CUDA_VISIBLE_DEVICES", None)
        cli.env.update({f"STUB_{name.upper()}": str(value) for name, value in answers.items()})
        return cli

    return prepare


def run(cli: Cli, job: str | Path, driver: Path, *words: str, code: int = 0) -> str:
    """Run a job with the driver where its loader finds it; return what was said."""
    given = f"LD_LIBRARY_PATH={driver.parent}"
    return cli.run(job, "-E", "tf0.0-cuda", "-e", given, *words, code=code).output


def refused(cli: Cli, driver: Path, *words: str) -> str:
    said = run(cli, JOBS / "counter", driver, *words, code=78)
    assert list(cli.volume.iterdir()) == [], "something was left behind"
    return said


def test_with_a_gpu_a_job_whose_environment_has_no_row_for_cuda_is_told_which_have_one(cli: Cli) -> None:
    said = cli.run("fashion_mnist", "--gpus", "1", code=2).stderr
    assert "--gpus 1 needs an environment for cuda, and tf2.21-cpu is for the CPU" in said
    assert "tf2.15-cuda" in said
    planned = cli("render", "fashion_mnist", "-E", "tf2.15", "--gpus", "1").stdout
    assert '"environment": "tf2.15-cuda"' in planned
    assert '"libcudnn.so.8"' in planned


def test_without_a_driver_it_is_named_before_anything_is_there(gpus: Gpus, tmp_path: Path) -> None:
    there = "libcuda.so" in subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
    need("a machine without NVIDIA's driver", not there, "run this test where there is none")
    said = refused(gpus(), tmp_path / "nothing" / "here", "--gpus", "1")
    assert "the GPUs cannot be used: libcuda.so.1 cannot be loaded" in said
    assert "Install NVIDIA's driver" in said


def test_a_library_that_is_missing_is_named(gpus: Gpus, driver: Path) -> None:
    said = refused(gpus("libcuda.so.1", "libnothing.so.9"), driver, "--gpus", "1")
    assert "libnothing.so.9 cannot be loaded (libnothing.so.9: cannot open shared object file" in said
    assert "is damaged: remove it, and it is made anew" in said


def test_what_a_library_needs_and_does_not_find_is_named(
    gpus: Gpus, driver: Path, library: Callable[..., Path], tmp_path: Path
) -> None:
    deeper = library("libdeeper.so.3")
    shutil.copy(library("libupper.so.2", "", deeper), driver.parent)
    deeper.unlink()
    said = refused(gpus("libupper.so.2"), driver, "--gpus", "1")
    assert "libupper.so.2 cannot be loaded (libdeeper.so.3: cannot open shared object file" in said


@pytest.mark.parametrize(
    ("answers", "wanted", "message"),
    [
        ({"init": 999}, 1, "does not start: cuInit gave 999 (CUDA_ERROR_OF_THE_STUB)"),
        ({"init": 100}, 1, "no GPU is visible"),
        ({"count": 0}, 1, "0 GPUs are visible, and 1 were asked for"),
        ({"count": 1}, 2, "1 GPU is visible, and 2 were asked for"),
    ],
)
def test_gpus_that_cannot_be_used_are_refused_with_the_reason(
    gpus: Gpus, driver: Path, answers: dict[str, int], wanted: int, message: str
) -> None:
    assert message in refused(gpus(**answers), driver, "--gpus", str(wanted))


def test_a_driver_older_than_the_libraries_is_refused(gpus: Gpus, driver: Path, library: Callable[..., Path]) -> None:
    shutil.copy(library("libcudart.so.12"), driver.parent)
    said = refused(gpus("libcudart.so.12", version=11040), driver, "--gpus", "1")
    assert "too old: it knows CUDA up to 11.4, and TensorFlow needs 12 here" in said


@pytest.mark.parametrize(
    ("source", "message"), [("abort();", "was killed by signal 6 (SIGABRT)"), ("exit(0);", "ended with 0")]
)
def test_a_driver_that_ends_the_look_at_it_is_a_refusal_too(
    gpus: Gpus, library: Callable[..., Path], source: str, message: str
) -> None:
    broken = library(
        "libcuda.so.1", f"#include <stdlib.h>\nint cuDriverGetVersion(int *version) {{ {source} return 0; }}"
    )
    assert f"the look at NVIDIA's driver failed: {message}" in refused(gpus(), broken, "--gpus", "1")


def shown(said: str) -> dict[str, str | None]:
    line = next(line for line in said.splitlines() if line.startswith('{"CUDA'))
    values: dict[str, str | None] = json.loads(line)
    return values


@pytest.mark.parametrize(
    ("visible", "words", "expected"),
    [
        (None, ["--gpus", "2"], "0,1"),  # no more than were asked for
        ("6,3,5", ["--gpus", "2"], "6,3"),
        ("6", ["--gpus", "0"], "-1"),
        ("6", [], "6"),
        (None, [], None),
    ],
)
def test_the_job_sees_as_many_gpus_as_were_asked_for_of_those_that_the_caller_sees(
    gpus: Gpus, driver: Path, project: Path, visible: str | None, words: list[str], expected: str | None
) -> None:
    cli = gpus(count=2)
    if visible is not None:
        cli.env["CUDA_VISIBLE_DEVICES"] = visible
    assert shown(run(cli, project / "show.py", driver, *words))["CUDA_VISIBLE_DEVICES"] == expected
    named = ["Stub 0", "Stub 1"] if words == ["--gpus", "2"] else "cpu"
    assert cli.only().record["devices"] == named


def test_what_the_caller_hid_is_told_where_it_is_too_little(gpus: Gpus, driver: Path) -> None:
    cli = gpus(count=1)
    cli.env["CUDA_VISIBLE_DEVICES"] = "3"
    said = refused(cli, driver, "--gpus", "2")
    assert "1 GPU is visible, and 2 were asked for (CUDA_VISIBLE_DEVICES is '3')" in said


def test_nvidias_wheels_are_found_by_the_loader_and_by_xla(
    gpus: Gpus, driver: Path, project: Path, library: Callable[..., Path], tmp_path: Path
) -> None:
    """launch.py by itself, in a virtualenv with a folder as these wheels make it."""
    cli = gpus("libcudnn.so.8")
    run(cli, project / "show.py", driver, "--name", "mine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    for name in ("cudnn/lib", "cuda_nvcc/bin"):
        (packages / "nvidia" / name).mkdir(parents=True)
    shutil.copy(library("libcudnn.so.8"), packages / "nvidia" / "cudnn" / "lib")
    edit(handover(cli) / "request.json", submission="with-gpu", resources={"gpus": 1})
    edit(cli.only().directory / "run.json", exit_code=75)
    done = subprocess.run(
        [python, "-E", handover(cli) / "launch.py", cli.volume], capture_output=True, text=True,
        env={**cli.env, "LD_LIBRARY_PATH": str(driver.parent), "XLA_FLAGS": "--given"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = shown(done.stdout)
    assert found["LD_LIBRARY_PATH"] == f"{driver.parent}:{packages / 'nvidia' / 'cudnn' / 'lib'}"
    assert found["XLA_FLAGS"] == f"--given --xla_gpu_cuda_data_dir={packages / 'nvidia' / 'cuda_nvcc'}"
    assert str(found["PATH"]).startswith(f"{python.parent}:{packages / 'nvidia' / 'cuda_nvcc' / 'bin'}:")
