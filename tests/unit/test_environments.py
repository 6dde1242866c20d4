"""Rows: names, the user's file, refusals with file and line, locks' text, and rows for any other version."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from runner import environments, indexes, packages, resources, yamlfile
from runner.errors import EnvironmentFailed, UsageError

ROW = """\
environments:
  tf2.9.0-cpu:
    tensorflow: "2.9.0"
    device: cpu
    pythons: ["3.10"]
    packages: [tensorflow-cpu==2.9.0]
    exclude_newer: 2022-05-23
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str) -> None:
    Path("environments.yaml").write_text(text)


@pytest.mark.parametrize("name", ["tf2.15-cpu", "tf2.15", "2.15", "2.15-cpu", "2.15.1", "tf2.15.1"])
def test_a_row_is_found_by_each_of_its_names(name: str) -> None:
    assert environments.find(name).name == "tf2.15-cpu"


@pytest.mark.parametrize("name", ["tf2.15-cuda", "tf2.15", "2.15", "2.15.1"])
def test_with_a_gpu_the_row_for_cuda_is_found_by_the_same_names(name: str) -> None:
    assert environments.find(name, "cuda").name == "tf2.15-cuda"


def test_a_row_for_cuda_names_the_libraries_that_tensorflow_loads_and_has_them_in_its_lock() -> None:
    rows = environments.load().values()
    assert all(bool(row.libraries) == (row.device == "cuda") for row in rows)
    lock = environments.find("tf2.15-cuda").lock_text
    assert {"cuda-runtime", "cublas", "cudnn", "cuda-nvcc"} <= set(
        re.findall(r"^nvidia-([\w-]+)-cu12==", lock, re.MULTILINE)
    )
    assert "tensorrt" not in lock


def test_an_unknown_name_tells_the_nearest_and_all() -> None:
    with pytest.raises(UsageError, match=r"Did you mean tf2\.15-cpu\?.* Known: .*tf2\.21-cpu"):
        environments.find("tf2.15-gpu")
    with pytest.raises(UsageError, match=r"`runner lock 2\.15\.0` makes it"):
        environments.find("2.15.0")


def test_the_default_is_the_newest_row() -> None:
    rows = environments.load().values()
    newest = max(rows, key=lambda row: [int(part) for part in row.tensorflow.split(".")])
    assert environments.default() == newest


@pytest.mark.parametrize("row", environments.load().values(), ids=lambda row: row.name)
def test_a_shipped_row_has_reasons_and_a_lock_of_its_tensorflow(row: environments.Environment) -> None:
    assert row.why and row.links
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", row.lock_text, re.MULTILINE))
    assert pinned.get("tensorflow-cpu", pinned.get("tensorflow")) == row.tensorflow
    assert {"matplotlib", "tensorboard", "numpy", "setuptools", "protobuf"} <= pinned.keys()
    assert "://" not in row.lock_text and str(Path.home()) not in row.lock_text
    blocks = re.split(r"^(?=\w)", row.lock_text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in block for block in blocks)


def test_every_lock_is_of_a_row() -> None:
    locks = {path.stem for path in resources.data("images", "locks").glob("*.txt")}
    assert locks == {row.name for row in environments.load().values()}


def test_a_users_row_wins_and_its_lock_stands_beside_it(project: Path) -> None:
    write(ROW.replace("tf2.9.0", "tf2.15"))
    row = environments.find("2.15")
    assert (row.tensorflow, row.shipped) == ("2.9.0", False)
    with pytest.raises(UsageError, match=r"no lock .*locks/tf2\.15-cpu\.txt.*runner lock 2\.9\.0"):
        _ = row.lock_text
    row.lock.parent.mkdir()
    row.lock.write_text("six==1.16.0\n")
    assert row.lock_text == "six==1.16.0\n" and row.lock.is_relative_to(project)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "environments:\n"])
def test_a_users_file_may_be_empty(text: str) -> None:
    write(text)
    assert environments.find("2.15").shipped


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("device: cpu", "devise: cpu", r"line 4: unknown key 'devise'\. Did you mean device\?"),
        ("device: cpu", "device: tpu", r"line 4: device should be cpu or cuda, not 'tpu'"),
        ("device: cpu", "tensorflow: '2.9.1'", r"line 4: the key 'tensorflow' stands here twice"),
        ('"3.10"', "3.10", r"line 5: pythons should be a list of Python versions in quotes"),
        ('["3.10"]', '"3.10"', r"line 5: pythons should be a list"),
        ("    device: cpu\n", "", r"line 2: environment tf2\.9\.0-cpu lacks device"),
        ("tf2.9.0-cpu", "old", r"line 2: the name old should be like tf2\.15-cpu"),
        (
            "    exclude",
            "    libraries: [cudart]\n    exclude",
            r"line 7: libraries should be a list of shared libraries",
        ),
        ("2022-05-23", "May", r"line 7: exclude_newer should be a date"),
        ("environments:", "environment:", r"line 1: unknown key 'environment'"),
        ("environments:\n", "environments: 3\nother:\n", r"line 2: unknown key 'other'"),
        ("[tensorflow-cpu==2.9.0]", "[", r"not YAML"),
    ],
)
def test_a_mistake_in_a_users_row_is_told_with_its_line(old: str, new: str, message: str) -> None:
    write(ROW.replace(old, new))
    with pytest.raises(UsageError, match=rf"environments\.yaml, {message}|environments\.yaml.*{message}"):
        environments.load()


def test_a_locks_hash_is_over_its_requirements_alone() -> None:
    lock = "# made by\nsix==1.16.0 \\\n    --hash=sha256:ab\n"
    assert environments.lock_hash(lock) == environments.lock_hash("six==1.16.0 \\\r\n--hash=sha256:ab\r\n\r\n")
    assert environments.lock_hash(lock) != environments.lock_hash(lock.replace("ab", "cd"))


# Rows for any other version, from an index that answers as PEP 691 says.


def wheel(name: str, version: str, python: str, platform: str, day: str | None, size: int = 10**8) -> dict[str, Any]:
    stamp = {"upload-time": f"{day}T10:00:00Z"} if day else {}
    return {"filename": f"{name}-{version}-{python}-{python}-{platform}.whl", "size": size, **stamp}


FILES = {
    "tensorflow": [
        wheel("tensorflow", "2.9.0", "cp310", "manylinux2014_x86_64", "2022-05-16"),
        wheel("tensorflow", "2.15.0", "cp311", "manylinux2014_aarch64", "2023-11-14", size=2000),
        wheel("tensorflow", "2.15.0", "cp311", "manylinux2014_x86_64", "2023-11-14"),
        wheel("tensorflow", "2.3.0", "cp36", "manylinux2014_x86_64", "2020-07-27"),
        wheel("tensorflow", "2.4.0", "cp37", "manylinux2014_x86_64", None),
    ],
    "tensorflow-cpu": [
        wheel("tensorflow_cpu", "2.9.0", "cp37", "manylinux2014_x86_64", "2022-05-17"),
        wheel("tensorflow_cpu", "2.9.0", "cp310", "manylinux2014_x86_64", "2022-05-16"),
        wheel("tensorflow_cpu", "2.15.0", "cp311", "manylinux2014_x86_64", "2023-11-14"),
    ],
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        files = FILES.get(self.path.strip("/").split("/")[-1])
        self.send_response(200 if files else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"files": files}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://user:word@127.0.0.1:{server.server_port}/simple")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield
        server.shutdown()


@pytest.mark.usefixtures("index")
def test_a_release_is_read_from_the_index() -> None:
    release = indexes.release("2.9.0")
    assert (release.uploaded, release.pythons) == (date(2022, 5, 16), ("3.10", "3.7"))
    assert release.requirements == ("tensorflow-cpu==2.9.0",)
    arm = indexes.release("2.15.0").requirements
    assert [word.split("==")[0] for word in arm] == ["tensorflow-cpu", "tensorflow", "tensorflow-cpu-aws"]


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("version", "error", "message"),
    [
        ("2.9.7", UsageError, r"no TensorFlow 2\.9\.7\. Near it are 2\.9\.0\."),
        ("2.3.0", UsageError, r"Python 3\.6 and older only"),
        ("2.4.0", EnvironmentFailed, r"no upload dates"),
    ],
)
def test_what_the_index_lacks_is_told(version: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        indexes.release(version)


def test_an_index_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    with pytest.raises(EnvironmentFailed, match=r"could not be reached.*UV_DEFAULT_INDEX is set"):
        indexes.release("2.9.0")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "compile_lock", lambda row: f"tensorflow-cpu=={row.tensorflow}\n")


@pytest.mark.usefixtures("index", "compiled")
def test_a_made_row_has_the_caps_and_the_shorter_window_of_its_version() -> None:
    row = environments.make_row("2.9.0")
    assert row == environments.find("2.9.0")
    assert row.exclude_newer == "2022-05-23" and {"protobuf<3.21", "numpy<2", "setuptools<81"} <= set(row.packages)
    assert "h5py<3" not in row.packages and len(row.why) == 4
    assert row.lock_text.endswith("tensorflow-cpu==2.9.0\n")
    with pytest.raises(UsageError, match="already"):
        environments.make_row("2.9.0")


@pytest.mark.usefixtures("index", "compiled")
@pytest.mark.parametrize(
    "text", [ROW.replace("2.9.0", "2.8.1"), "# mine\nenvironments:  # all\n    # none yet", "# mine\n"]
)
def test_making_a_row_leaves_the_users_file_as_it_is(text: str) -> None:
    write(text)
    environments.make_row("2.9.0", python="3.7")
    assert Path("environments.yaml").read_text().startswith(text.rstrip())
    assert environments.find("2.9.0").pythons == ("3.7",)


@pytest.mark.usefixtures("index", "compiled")
def test_a_file_that_cannot_be_added_to_stays_and_the_row_is_shown() -> None:
    write("environments: {}\n")
    with pytest.raises(UsageError, match=r"by hand:\n  tf2\.9\.0-cpu:"):
        environments.make_row("2.9.0")
    assert Path("environments.yaml").read_text() == "environments: {}\n"


@pytest.mark.usefixtures("index", "compiled")
def test_a_python_without_wheels_and_a_cuda_row_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no wheels for Python 3\.9, only for 3\.10, 3\.7"):
        environments.make_row("2.9.0", python="3.9")
    with pytest.raises(UsageError, match="cpu rows only"):
        environments.make_row("2.9.0", device="cuda")
    assert not Path("environments.yaml").exists()


def test_rules_give_every_reason() -> None:
    shipped = yamlfile.load(resources.data("images", "environments.yaml"))
    assert all(rule["why"] and not set(rule) - {"from", "below", "packages", "why"} for rule in shipped["caps"])


# What uv is told of the user's settings.


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in list(packages.settings()):
        if re.match(r"PIP_|UV_|SSL_|REQUESTS_|CURL_|RUNNER_|\w*PROXY|\w*proxy", name):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return monkeypatch


def test_pips_settings_are_translated_and_uvs_own_win(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("PIP_INDEX_URL", "http://pip")
    bare.setenv("PIP_FIND_LINKS", "/a /b")
    told = packages.environment()
    assert (told["UV_DEFAULT_INDEX"], told["UV_FIND_LINKS"]) == ("http://pip", "/a,/b")
    bare.setenv("UV_INDEX_URL", "http://uv")
    assert packages.environment()["UV_DEFAULT_INDEX"] == "http://uv"


def test_pips_configuration_file_counts_too(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.delenv("PIP_CONFIG_FILE")
    bare.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "pip.conf").write_text("[global]\nindex-url = http://company\n")
    assert packages.environment()["UV_DEFAULT_INDEX"] == "http://company"


def test_nothing_else_of_uv_pip_or_python_comes_through(bare: pytest.MonkeyPatch) -> None:
    for name in ("UV_EXCLUDE_NEWER", "UV_CONSTRAINT", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "PIP_TARGET"):
        bare.setenv(name, "x")
    assert not {name for name, value in packages.environment().items() if value == "x"}


@pytest.mark.parametrize("name", packages.CA_VARIABLES)
def test_a_ca_bundle_is_taken_from_any_variable_and_ours_wins(
    bare: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    theirs, ours = tmp_path / "theirs.pem", tmp_path / "ours.pem"
    theirs.touch()
    ours.touch()
    bare.setenv(name, str(theirs))
    assert packages.environment()["SSL_CERT_FILE"] == str(theirs)
    bare.setenv("RUNNER_CA_BUNDLE", str(ours))
    assert packages.environment()["SSL_CERT_FILE"] == str(ours)
    ours.unlink()
    with pytest.raises(EnvironmentFailed, match=r"RUNNER_CA_BUNDLE names .*ours\.pem, which does not exist"):
        packages.environment()
