"""Virtualenvs from locks: really installed, from an index on this machine that serves one small wheel."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import need
from wheels import build_wheel, lock_of

from runner import cleaning, environments, resources, virtualenvs
from runner.errors import EnvironmentFailed

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
INSIDE = Path(__file__).resolve().parent.parent / "inside"
ENSURE = """
import sys
from runner import virtualenvs
made = virtualenvs.ensure(sys.argv[1], [sys.argv[2]], "small")
print(made.path, made.created)
"""


@dataclass
class Index:
    """A package index on the loopback; while `closed`, it takes requests for the wheel and does not answer."""

    address: str = ""
    wheel: bytes = field(default_factory=build_wheel)
    requests: list[str] = field(default_factory=list)
    opened: threading.Event = field(default_factory=threading.Event)

    @property
    def lock(self) -> str:
        return lock_of(self.wheel)

    def wait_for(self, path: str) -> None:
        end = time.monotonic() + 30
        while not any(path in request for request in self.requests):
            assert time.monotonic() < end, f"nobody asked for {path}"
            time.sleep(0.01)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    served = Index()
    served.opened.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append(self.path)
            body = b'<html><a href="/small-1.0-py3-none-any.whl">small-1.0-py3-none-any.whl</a></html>'
            if self.path.endswith(".whl"):
                served.opened.wait(60)
                body = served.wheel
            self.send_response(200)
            self.send_header("Content-Type", "application/zip" if self.path.endswith(".whl") else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        served.address = f"http://127.0.0.1:{server.server_port}/simple"
        monkeypatch.setenv("UV_DEFAULT_INDEX", served.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        yield served
        served.opened.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UV_CACHE_DIR", raising=False)
    return tmp_path / "cache"


def left(cache: Path) -> list[str]:
    """Return what is among the environments, less the lock files."""
    folder = cache / "environments"
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


def start(lock: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ENSURE, lock, HERE]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_empty_lock_makes_an_empty_virtualenv_once(cache: Path) -> None:
    made = virtualenvs.ensure("# nothing\n", [HERE], "empty")
    assert made.created and made.python_version.startswith(f"{HERE}.")
    again = virtualenvs.ensure("", [HERE], "other")
    assert not again.created and again.path == made.path
    assert subprocess.check_output([made.python, "-c", "import sys; print(sys.prefix)"], text=True).strip() == str(
        made.path
    )


def test_an_existing_virtualenv_is_found_without_a_process_or_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    virtualenvs.ensure("", [HERE], "empty")
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setenv("PATH", "")
    assert not virtualenvs.ensure("", ["3.5", HERE], "empty").created


def test_a_lock_is_installed_with_bytecode_and_programs(index: Index, cache: Path) -> None:
    made = virtualenvs.ensure(index.lock, [HERE], "small")
    assert subprocess.check_output([made.path / "bin" / "small"], text=True) == "small works\n"
    assert list(made.path.glob("lib/*/site-packages/__pycache__/small.*.pyc"))
    (described,) = virtualenvs.installed()
    assert (described.path, described.label) == (made.path, "small")
    assert described.lock_hash == virtualenvs.lock_hash(index.lock) and described.bytes > 0


def test_made_again_it_needs_neither_index_nor_compiler(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = virtualenvs.ensure(index.lock, [HERE], "small")
    virtualenvs.remove(made.path)
    assert left(cache) == []
    index.requests.clear()
    monkeypatch.setattr("runner.bytecode._compile", None)
    assert virtualenvs.ensure(index.lock, [HERE], "small").created
    assert index.requests == []
    assert list(made.path.glob("lib/*/site-packages/__pycache__/small.*.pyc"))


def test_packages_are_unused_once_no_virtualenv_is_linked_to_them(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_CACHE_DIR", raising=False)
    made = virtualenvs.ensure(index.lock, [HERE], "small")
    assert virtualenvs.unused_downloads() == []
    assert len(virtualenvs.unused_downloads([made.path])) == 1
    virtualenvs.remove(made.path)
    monkeypatch.setenv("UV_CACHE_DIR", str(cache / "uv"))
    assert virtualenvs.unused_downloads() == []  # the user's own
    monkeypatch.delenv("UV_CACHE_DIR")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")  # the images of this machine are not ours to remove
    cleaning.remove_unused([], None, None, yes=True)
    assert virtualenvs.unused_downloads() == [] and not list((cache / "uv").glob("archive-v*/*"))
    again = virtualenvs.ensure(index.lock, [HERE], "small")
    assert subprocess.check_output([again.path / "bin" / "small"], text=True) == "small works\n"


def test_a_virtualenv_whose_interpreter_is_gone_is_made_anew(cache: Path) -> None:
    made = virtualenvs.ensure("", [HERE], "empty")
    made.python.unlink()
    made.python.symlink_to("/nowhere/python")
    assert virtualenvs.ensure("", [HERE], "empty").created
    assert made.python.exists() and left(cache) == [made.path.name]


def test_a_killed_install_is_never_used_and_cleaned_away(index: Index, cache: Path) -> None:
    index.opened.clear()
    killed = start(index.lock)
    index.wait_for(".whl")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [name.endswith(".partial") for name in left(cache)] == [True]
    index.opened.set()
    made = virtualenvs.ensure(index.lock, [HERE], "small")
    assert made.created and left(cache) == [made.path.name]


def test_two_at_once_make_one_and_the_second_says_that_it_waits(index: Index, cache: Path) -> None:
    index.opened.clear()
    first = start(index.lock)
    index.wait_for(".whl")
    second = start(index.lock)
    assert second.stderr
    assert "another runner is making it; waiting" in second.stderr.readline()
    index.opened.set()
    outputs = [process.communicate(timeout=60)[0].split() for process in (first, second)]
    assert [words[1] for words in outputs] == ["True", "False"]
    assert outputs[0][0] == outputs[1][0] and left(cache) == [Path(outputs[0][0]).name]


def test_a_wrong_hash_is_refused_with_the_packages_name(index: Index, cache: Path) -> None:
    lock = re.sub("sha256:....", "sha256:0000", index.lock)
    with pytest.raises(EnvironmentFailed, match=r"served for small==1\.0 is not what the lock says"):
        virtualenvs.ensure(lock, [HERE], "small")
    assert left(cache) == []


def test_a_requirement_without_a_hash_is_refused(index: Index, cache: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="all requirements must have a hash"):
        virtualenvs.ensure("small==1.0\n", [HERE], "small")
    assert left(cache) == []


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple"}, r"index could not be reached \(UV_DEFAULT_INDEX is set"),
        ({"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}, r"(proxy|could not be reached).*HTTP_PROXY is set"),
        ({"RUNNER_CA_BUNDLE": "/nowhere.pem"}, r"RUNNER_CA_BUNDLE names /nowhere\.pem, which does not exist"),
    ],
)
def test_a_network_that_fails_is_told(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentFailed, match=message):
        virtualenvs.ensure(index.lock, [HERE], "small")
    assert left(cache) == []


def test_the_users_own_configuration_changes_nothing(
    index: Index, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uv.toml").write_text('exclude-newer = "2000-01-01"\n[pip]\nno-binary = [":all:"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UV_EXCLUDE_NEWER", "2000-01-01")
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    assert virtualenvs.ensure(index.lock, [HERE], "small").created


@pytest.fixture
def no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide all interpreters, and let uv download none; return a folder on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    return folder


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_without_an_interpreter_a_sentence_says_which_would_do(no_python: Path, cache: Path) -> None:
    program(no_python / "python3.7", "echo broken >&2; exit 3")
    with pytest.raises(EnvironmentFailed) as failure:
        virtualenvs.ensure("", ["3.7", "3.8"], "old")
    text = str(failure.value)
    assert text.startswith("environment old needs Python 3.7 or 3.8, and none was found")
    assert "python3.7 (broken)" in text and "uv python install 3.7" in text
    assert left(cache) == []


def test_an_interpreter_that_fails_is_passed_over(
    no_python: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(no_python / f"python{HERE}", "exit 127")
    other = no_python.parent / "other"
    other.mkdir()
    program(other / f"python{HERE}", f'exec {Path(sys.base_exec_prefix) / "bin" / f"python{HERE}"} "$@"')
    monkeypatch.setenv("PATH", f"{no_python}:{other}:/usr/bin:/bin")
    assert virtualenvs.ensure("", [HERE], "empty").created


def test_the_preferred_python_is_taken_where_there_is_one(cache: Path) -> None:
    made = virtualenvs.ensure("", ["3.5", HERE], "empty", prefer_python="3.5.1")
    assert made.created and made.python_version.startswith(HERE)
    assert virtualenvs.ensure("", ["3.5", HERE], "empty", prefer_python=made.python_version).path == made.path


def test_a_full_disk_is_told_and_leaves_nothing(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small-disk"
    small.mkdir()
    mount = shutil.which("mount")
    need("root", os.getuid() == 0, "only root can mount; run the tests as root, in a container for instance")
    words = [mount or "mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small]
    mounted = mount is not None and subprocess.run(words, check=False).returncode == 0
    need("mount", mounted, "this machine does not let root mount a tmpfs; a container needs --cap-add SYS_ADMIN")
    try:
        monkeypatch.setenv("RUNNER_CACHE", str(small))
        (small / "filler").write_bytes(b"x" * 260_000)
        with pytest.raises(EnvironmentFailed, match=r"The disk is full. Free some space"):
            virtualenvs.ensure(index.lock, [HERE], "small")
        assert left(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


# TensorFlow's rows, for real: in the cache that the user has, for they are large.


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "row", [row for row in environments.load().values() if row.device == "cpu"], ids=lambda row: row.name
)
def test_a_row_trains_and_shows_its_training(
    row: environments.Environment, environment_python: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNNER_CACHE")
    python = environment_python(row.name)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    for script, *arguments in (
        ("check_versions.py", row.tensorflow, row.lock),
        ("check_training.py",),
        ("check_tensorboard.py",),
    ):
        done = subprocess.run(
            [python, INSIDE / script, *arguments],
            env={**variables, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{script}:\n{textwrap.shorten(done.stderr[-3000:], 3000)}"


@pytest.mark.tensorflow
def test_locking_again_changes_nothing() -> None:
    row = environments.find("tf1.15")
    own = resources.data("images") in row.lock.parents
    need("our rows", own, f"{row.lock} stands before it; run the tests in a folder without environments.yaml")
    assert environments.relock([row.name]) == []
