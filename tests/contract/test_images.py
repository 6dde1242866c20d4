"""Images on a real engine: what is in them, what is not, who may run them, and what bad input and bad moments get."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.server
import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import BASE_IMAGE, ROOT, Cli, need, until
from engines import PrivateEngine
from terminals import on_terminal
from wheels import build_wheel, lock_of

from runner import cleaning, engines, environments, images
from runner.engines import Engine
from runner.errors import EngineFailed, UsageError
from runner.virtualenvs import lock_hash

pytestmark = pytest.mark.docker
INSIDE = ROOT / "tests" / "inside"
PYTHON = "3.13"  # the tests' own rows have the Python of the counter's, so that they share its layers
NOTHING = "# a lock without a package\n"
# As runs have it, and with fewer rights still: no network, and a user that the image does not know.
BEFORE = {name: value for name, value in os.environ.items() if re.match(r"PIP_|UV_|SSL_CERT|\w+_PROXY", name)}
RESTRICTED = (
    "run", "--rm", "--read-only", "--tmpfs", "/tmp", "--user", "12345:12345", "--network", "none", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges",
)  # fmt: skip


def docker(*words: str | Path, check: bool = True, **options: Any) -> str:
    done = subprocess.run(["docker", *map(str, words)], capture_output=True, text=True, timeout=300, **options)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Row:
    """An environment of a test's own, with a name that no other test has, and the command line in its folder."""

    cli: Cli
    engine: Engine
    name: str = field(default_factory=lambda: f"tf0.{secrets.randbelow(10**9)}-cpu")

    def write(self, lock: str, python: str = PYTHON) -> None:
        row = {"tensorflow": "0.0.0", "device": "cpu", "pythons": [python], "packages": ["small"]}
        rows = {"environments": {self.name: {**row, "exclude_newer": "2026-01-01"}}}
        (self.cli.cwd / "environments.yaml").write_text(json.dumps(rows))
        (self.cli.cwd / "locks").mkdir(exist_ok=True)
        (self.cli.cwd / "locks" / f"{self.name}.txt").write_text(lock)

    def images(self) -> list[dict[str, Any]]:
        """Return what the engine has of it, tagged or not."""
        found: list[dict[str, Any]] = self.engine.client.api.images(
            all=True, filters={"label": f"runner.environment={self.name}"}
        )
        return found

    def fails(self, *words: str) -> str:
        """Build it in vain, and return the sentence; nothing is left."""
        told = self.cli("build", self.name, *words, code=125).stderr
        assert self.images() == []
        return told


@pytest.fixture
def row(
    own_variables: None, cli: Cli, engine: Engine, environment_image: Callable[[str], str], project: Path
) -> Iterator[Row]:
    environment_image("tf0.0-cpu")  # skips where there is no base image
    cli.cwd = project
    made = Row(cli, engine)
    made.write(NOTHING)
    yield made
    for image in made.images():
        images.remove(engine, image["Id"])  # with its layers, which pile up in the cache of builds


def files_of(image: str) -> set[str]:
    """Return the paths in an image's file system."""
    container = docker("create", image).strip()
    try:
        exported = subprocess.run(["docker", "export", container], capture_output=True, check=True).stdout
    finally:
        docker("rm", container)
    with tarfile.open(fileobj=io.BytesIO(exported)) as archive:
        return {member.name.rstrip("/") for member in archive}


def saved(image: str) -> bytes:
    """Return all that `docker save` gives of an image, unpacked: layers, history, labels."""
    packed = subprocess.run(["docker", "save", image], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        parts = [file.read() for member in archive if (file := archive.extractfile(member))]
    return b"".join(gzip.decompress(part) if part.startswith(b"\x1f\x8b") else part for part in parts)


# What an image is.


def test_an_image_is_made_once_and_found_again(row: Row) -> None:
    first = row.cli("build", row.name)
    assert "making the image" in first.stderr and re.search(
        rf"^tensorflow-runner:{row.name}-[0-9a-f]{{8}}: made in", first.stdout
    )
    row.cli.env["PATH"] = ""  # nothing is built any more, and no program is needed
    again = row.cli("build", row.name)
    assert ": unchanged, " in again.stdout and again.stderr == ""
    (told,) = row.cli("build", row.name, "--json").json()
    (image,) = row.images()
    assert sorted(image["RepoTags"]) == [f"tensorflow-runner:{row.name}", told["image"]]
    assert (told["environment"], told["id"], told["made"]) == (row.name, image["Id"], False)
    assert told["bytes"] == image["Size"] > 10_000_000


def test_its_labels_say_what_it_was_made_from(row: Row) -> None:
    row.write(NOTHING + "tensorflow-cpu==9.9.9 ; python_version < '3'  --hash=sha256:" + 64 * "0")
    (told,) = row.cli("build", row.name, "--json").json()
    labels = images_of(row)[told["image"]].labels
    base = images.base_image(PYTHON, BASE_IMAGE)
    found = json.loads(docker("image", "inspect", base))[0]
    digests = [name.partition("@")[2] for name in found.get("RepoDigests") or ()] or [found["Id"]]
    oci = {key.rpartition("image.")[2]: value for key, value in labels.items() if key.startswith("org.opencontainers")}
    assert (oci["title"], oci["base.name"]) == (row.name, base) and oci["base.digest"] in digests
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", oci["created"]) and oci["version"]
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%H", "--", "images/Dockerfile"], cwd=ROOT, capture_output=True
    )
    assert oci.get("revision", "") == commit.stdout.decode().strip()
    lock = (row.cli.cwd / "locks" / f"{row.name}.txt").read_text()
    assert {key: value for key, value in labels.items() if key.startswith("runner.")} == {
        "runner.environment": row.name, "runner.lock": lock_hash(lock), "runner.python": PYTHON, "runner.tensorflow": "9.9.9",
    }  # fmt: skip


def images_of(row: Row) -> dict[str, images.Made]:
    return {made.reference: made for made in images.made(row.engine) if made.labels["runner.environment"] == row.name}


def test_anybody_can_run_it_with_no_rights_at_all(environment_image: Callable[[str], str]) -> None:
    script = """
import asyncio, decimal, email, json, os, sys, tempfile, unittest
loaded = [m for m in list(sys.modules.values()) if getattr(m, "__cached__", None)]
assert len(loaded) > 100, len(loaded)
print(json.dumps({
    "uncompiled": [m.__name__ for m in loaded if not os.path.exists(m.__cached__)], "uid": os.getuid(),
    "prefix": sys.prefix, "home": os.environ["HOME"], "temporary": tempfile.gettempdir(),
    "version": "%d.%d" % sys.version_info[:2],
    "writable": [path for path in (sys.prefix, os.path.dirname(os.__file__), "/") if os.access(path, os.W_OK)],
}))
"""
    told = json.loads(docker(*RESTRICTED, environment_image("tf0.0-cpu"), "python", "-c", script))
    assert told == {
        "uncompiled": [], "uid": 12345, "prefix": "/opt/environment", "home": "/tmp", "temporary": "/tmp",
        "version": PYTHON, "writable": [],
    }  # fmt: skip


def test_its_own_user_is_not_root_and_no_entrypoint_is_in_the_way(environment_image: Callable[[str], str]) -> None:
    config = json.loads(docker("image", "inspect", environment_image("tf0.0-cpu")))[0]["Config"]
    assert (config["User"], config.get("Entrypoint"), config["Cmd"]) == ("10001:10001", None, ["python"])


def test_it_adds_to_its_base_the_packages_and_bytecode_and_nothing_else(row: Row, served: Index) -> None:
    row.write(served.lock)
    served.trusted_by(row.cli)
    (told,) = row.cli("build", row.name, "--json").json()
    new = files_of(told["image"]) - files_of(images.base_image(PYTHON, BASE_IMAGE))
    added = {path for path in new if "/__pycache__" not in path}
    assert {path for path in added if not path.startswith("opt/environment")} == set()
    packages = {path.partition("site-packages/")[2] for path in added if "site-packages/" in path}
    assert "small.py" in packages and not any(re.search(r"(^|/)(uv|pip|launch\.py)$", path) for path in added)
    programs = {Path(path).name for path in added if "/bin/" in path}
    assert "small" in programs and not programs & {"uv", "uvx", "pip", "gcc", "cc"}
    assert docker(*RESTRICTED, told["image"], "small") == "small works\n"
    assert any(path.endswith("small.cpython-313.pyc") for path in new)


def test_on_a_terminal_one_line_shows_the_step(row: Row, served: Index) -> None:
    row.write(served.lock)
    served.trusted_by(row.cli)
    code, shown = on_terminal(row.cli, "build", row.name)
    assert code == 0 and f"image {row.name}: installing the packages … " in shown
    lines = [line.split("\r")[-1].strip() for line in shown.split("\r\n") if line.strip()]
    assert len(lines) == 1 and re.match(rf"tensorflow-runner:{row.name}-\w+: made in \d+ s, \d+ MB$", lines[0]), shown


# Where packages come from.


@dataclass
class Index:
    """A package index on the loopback that wants TLS and a password; while closed, it does not hand out the wheel."""

    certificate: Path
    wheel: bytes
    password: str = field(default_factory=lambda: f"pass{secrets.token_hex(8)}")
    port: int = 0
    asked: list[str] = field(default_factory=list)
    opened: threading.Event = field(default_factory=threading.Event)

    @property
    def lock(self) -> str:
        return lock_of(self.wheel)

    @property
    def address(self) -> str:
        return f"https://reader:{self.password}@127.0.0.1:{self.port}/simple"

    def trusted_by(self, cli: Cli) -> None:
        cli.env.update(UV_DEFAULT_INDEX=self.address, RUNNER_CA_BUNDLE=str(self.certificate), UV_HTTP_RETRIES="0")


def handler(index: Index) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            words = base64.b64encode(f"reader:{index.password}".encode()).decode()
            if self.headers.get("Authorization") != f"Basic {words}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            index.asked.append(self.path)
            body = b'<html><a href="/small-1.0-py3-none-any.whl">small-1.0-py3-none-any.whl</a></html>'
            if self.path.endswith(".whl"):
                index.opened.wait(60)
                body = index.wheel
            self.send_response(200)
            self.send_header("Content-Type", "application/zip" if self.path.endswith(".whl") else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Index]:
    """An index whose wheel nobody has seen before, so that nothing comes from a cache."""
    need("openssl", shutil.which("openssl") is not None, "it makes the certificate; apt-get install openssl")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    index = Index(certificate, build_wheel(secrets.token_bytes(16)))
    index.opened.set()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(index)) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        index.port = server.server_port
        yield index
        index.opened.set()
        server.shutdown()


@pytest.fixture
def own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what this machine says about packages and certificates: a test says its own."""
    for name in list(os.environ):
        if re.match(r"(PIP|UV)_|(SSL_CERT|REQUESTS_CA|CURL_CA|HTTPS?_PROXY|ALL_PROXY)", name, re.IGNORECASE):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_certificate_index_and_password_leave_no_trace(row: Row, served: Index, tmp_path: Path) -> None:
    row.write(served.lock)
    served.trusted_by(row.cli)
    row.cli.env.update(HTTP_PROXY="http://somebody:hidden-word@proxy.invalid:3128", PIP_FIND_LINKS=str(tmp_path))
    (told,) = row.cli("build", row.name, "--json").json()
    assert any(path.endswith(".whl") for path in served.asked), "it came from a cache"
    content = saved(told["image"])
    assert b"small works" in content and row.name.encode() in content, "these are not the layers and the labels"
    lines = served.certificate.read_bytes().splitlines()[1:-1]
    for secret in (
        *lines,
        served.password.encode(),
        f"127.0.0.1:{served.port}".encode(),
        b"hidden-word",
        b"proxy.invalid",
    ):
        assert secret not in content, secret
    assert served.password not in docker("history", "--no-trunc", told["image"]) + docker("inspect", told["image"])


def test_a_password_may_stand_in_netrc(row: Row, served: Index, tmp_path: Path) -> None:
    row.write(served.lock)
    served.trusted_by(row.cli)
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login reader password {served.password}\n")
    row.cli.env.update(NETRC=str(tmp_path / "netrc"), UV_DEFAULT_INDEX=f"https://127.0.0.1:{served.port}/simple")
    row.cli("build", row.name)
    assert served.password.encode() not in saved(f"tensorflow-runner:{row.name}")


def without_certificate(index: Index, env: dict[str, str]) -> None:
    del env["RUNNER_CA_BUNDLE"]


def with_another_password(index: Index, env: dict[str, str]) -> None:
    env["UV_DEFAULT_INDEX"] = index.address.replace(index.password, "wrong")


def with_a_wrong_proxy(index: Index, env: dict[str, str]) -> None:
    env.update(HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY="")


def without_a_network(index: Index, env: dict[str, str]) -> None:
    env["UV_DEFAULT_INDEX"] = "https://127.0.0.1:9/simple"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_certificate, r"index's certificate was not accepted \(no CA bundle is set\).*RUNNER_CA_BUNDLE="),
        (with_another_password, r"lacks small.*refuse the name and password in its address"),
        (with_a_wrong_proxy, r"(proxy|could not be reached).*HTTPS_PROXY is set"),
        (without_a_network, r"index could not be reached \(UV_DEFAULT_INDEX is set"),
    ],
)
def test_an_index_that_refuses_is_told(
    row: Row, served: Index, change: Callable[[Index, dict[str, str]], None], message: str
) -> None:
    row.write(served.lock)
    served.trusted_by(row.cli)
    change(served, row.cli.env)
    told = row.fails()
    assert f"making the image {row.name} failed while installing the packages." in told
    assert re.search(message, told) and served.password not in told, told


def test_a_ca_bundle_that_is_not_there_is_told(row: Row, served: Index) -> None:
    row.write(served.lock)
    row.cli.env["PIP_CERT"] = "/nowhere/ca.pem"
    assert "PIP_CERT names /nowhere/ca.pem, which does not exist" in row.fails()


def test_a_ca_bundle_that_is_too_large_is_told(row: Row, tmp_path: Path) -> None:
    large = tmp_path / "ca.pem"
    large.write_bytes(b"#" * 600_000)
    row.cli.env["PIP_CERT"] = str(large)
    assert f"the CA bundle {large} is larger than the 512 kB that a build may be given" in row.fails()


def test_a_package_that_is_not_the_locks_is_refused(row: Row, served: Index) -> None:
    row.write(lock_of(b"another"))
    served.trusted_by(row.cli)
    assert "small==1.0 is not what the lock says (hash mismatch)" in row.fails()


# The base image, the platform, and what Docker needs for it.


def test_a_base_without_the_rows_python_is_refused(row: Row) -> None:
    row.cli.env["RUNNER_BASE_IMAGE"] = images.base_image("3.12", BASE_IMAGE)
    told = row.fails()
    assert f"The base image has no Python {PYTHON} (its own: 3.12)" in told and "RUNNER_BASE_IMAGE" in told
    assert len(told.splitlines()) == 2, told  # with the line that it is being made


def test_a_base_that_cannot_be_fetched_is_told(row: Row) -> None:
    told = row.fails("--base-image", "127.0.0.1:9/python:{minor}")
    assert f"127.0.0.1:9/python:{PYTHON} could not be fetched. The engine cannot reach 127.0.0.1:9." in told
    assert "RUNNER_BASE_IMAGE" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--base-image", "Python {python}"], "no image's name"),
        (["--base-image", "python:{version}"], "no image's name"),
        (["--platform", "linux/amd46"], "unknown platform 'linux/amd46'. Did you mean linux/amd64?"),
        (["--push", "https://registry.example.org"], "without https://"),
        (["--push", ""], "a registry is given as"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(row: Row, words: list[str], message: str) -> None:
    assert message in row.cli("build", row.name, *words, code=2).stderr
    assert row.images() == []


def test_another_platforms_image_has_a_name_of_its_own(row: Row, engine: Engine) -> None:
    other = "arm64" if engine.architecture == "amd64" else "amd64"
    base = f"runner-tests/{secrets.token_hex(4)}:1"
    # Made from nothing but the first bytes of a program for that processor, which no kernel here can begin.
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + (b"\xb7\x00" if other == "arm64" else b"\x3e\x00") + bytes(44)
    )
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in (("Dockerfile", b"FROM scratch\nCOPY sh /bin/sh"), ("sh", header)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    build = [
        "docker",
        "buildx",
        "build",
        "--quiet",
        "--platform",
        f"linux/{other}",
        "--provenance=false",
        "--tag",
        base,
        "-",
    ]
    subprocess.run(build, input=content.getvalue(), check=True, capture_output=True)
    row.cli.env.update(BEFORE)  # uv for that platform comes from an index of this machine's
    try:
        told = row.fails("--base-image", base, "--platform", f"linux/{other}")
    finally:
        docker("image", "rm", base)
    assert f"This machine cannot run programs for linux/{other}" in told and f"--install {other}" in told


def test_an_image_of_the_users_own_needs_the_command_line_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        EngineFailed, match=r"fetching the image runner-tests/none:1 needs Docker's .*no `docker` on"
    ) as refused:
        images.pull(engine, "runner-tests/none:1")
    assert "buildx" not in str(refused.value)


def test_a_registry_that_is_none_is_refused_before_anything_is_made(row: Row, engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"the registry https://registry\.example\.org: a registry is given as"):
        images.ensure(engine, row.name, NOTHING, PYTHON, BASE_IMAGE, registry="https://registry.example.org")
    assert row.images() == []


def test_that_a_push_is_for_another_processor_is_said(
    row: Row, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # No machine with another processor is at hand: the engine is said to be one, so that nothing here can be built for it.
    monkeypatch.setattr(engines, "connect", lambda: replace(engine, architecture="arm64"))
    monkeypatch.setattr(images, "_built", lambda *_: pytest.skip("it went on"))
    monkeypatch.chdir(row.cli.cwd)

    def said(**asked: Any) -> str:
        with contextlib.suppress(pytest.skip.Exception):
            images.build([row.name], everything=False, template=BASE_IMAGE, **asked)
        return capsys.readouterr().err

    told = "building for linux/amd64, as most clusters are, and not for this machine's linux/arm64; --platform says otherwise\n"
    assert said(platform=None, push="registry.example.org") == told
    assert said(platform="linux/arm64", push="registry.example.org") == said(platform=None, push=None) == ""


def test_without_the_command_line_a_sentence_says_what_to_install(row: Row, tmp_path: Path) -> None:
    row.cli.env["PATH"] = str(tmp_path)
    told = row.fails()
    assert "no `docker` on PATH" in told and "docker-buildx-plugin" in told


def test_without_buildx_a_sentence_says_what_to_install(row: Row, tmp_path: Path) -> None:
    told = without_buildx(row.cli, tmp_path) or row.fails()
    assert "`docker buildx version` fails" in told and "docker-buildx-plugin" in told


def without_buildx(cli: Cli, folder: Path) -> None:
    """Put a docker on PATH that has no buildx: the plugins of the system cannot be hidden from the real one."""
    program = folder / "bin" / "docker"
    program.parent.mkdir()
    real = shutil.which("docker")
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = buildx ]; then echo "docker: unknown command: docker buildx" >&2; exit 1; fi\nexec {real} "$@"\n'
    )
    program.chmod(0o755)
    cli.env["PATH"] = f"{program.parent}:{cli.env['PATH']}"


# Cut off, and at the same time.


def building(row: Row, served: Index) -> subprocess.Popen[str]:
    """Start a build, and wait until it stands in the middle of its installation."""
    row.write(served.lock)
    served.trusted_by(row.cli)
    served.opened.clear()
    process = row.cli.start("build", row.name)
    until(lambda: any(path.endswith(".whl") for path in served.asked), 60, "the request for the wheel")
    return process


def clients(row: Row) -> list[int]:
    """Return the processes that build it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"buildx" in words and any(row.name.encode() in word for word in words):
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_cut_off_leaves_nothing_and_the_next_one_works(
    row: Row, served: Index, number: signal.Signals, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    row.cli.env["TMPDIR"] = str(temporary)
    process = building(row, served)
    assert clients(row)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert clients(row) == []
    served.opened.set()
    until(lambda: not clients(row), what="the end of buildx")
    assert row.images() == [] or number == signal.SIGKILL  # buildx may have come to its end: then it is whole
    assert list(temporary.iterdir()) == []
    row.cli("build", row.name)
    assert docker(*RESTRICTED, f"tensorflow-runner:{row.name}", "small") == "small works\n"
    assert len(row.images()) == 1


def test_two_at_once_make_one_image(row: Row, served: Index) -> None:
    first = building(row, served)
    second = row.cli.start("build", row.name)
    assert second.stderr
    assert "another runner is making it; waiting" in second.stderr.readline()
    served.opened.set()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert len({output.partition(": ")[0] for output in outputs}) == 1 and row.name in outputs[0]
    assert len(row.images()) == 1


# A registry that wants a login.


@dataclass
class Registry:
    host: str
    password: str
    login: dict[str, str]  # the variables of somebody who is logged in


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    program = shutil.which("docker-registry") or shutil.which("registry")
    need("docker-registry", program is not None, "the registry itself; tests/engine/install (as root).")
    need(
        "htpasswd",
        shutil.which("htpasswd") is not None,
        "it makes the registry's users; tests/engine/install (as root).",
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    password = secrets.token_hex(8)
    users = subprocess.run(["htpasswd", "-Bbn", "pusher", password], capture_output=True, text=True, check=True).stdout
    (tmp_path / "users").write_text(users)
    (tmp_path / "registry.yml").write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(tmp_path / "stored")}},
                "http": {"addr": host, "secret": "of a test"},
                "auth": {"htpasswd": {"realm": "test", "path": str(tmp_path / "users")}},
            }
        )
    )
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen([str(program), "serve", tmp_path / "registry.yml"], stdout=log, stderr=log)
    try:
        until(lambda: answers(host) or process.poll() is not None, what="the registry's answer")
        assert process.poll() is None, (tmp_path / "registry.log").read_text()
        login = {**os.environ, "DOCKER_CONFIG": str(tmp_path / "config")}
        docker("login", "--username", "pusher", "--password-stdin", host, input=password, env=login)
        yield Registry(host, password, {"DOCKER_CONFIG": login["DOCKER_CONFIG"]})
    finally:
        process.terminate()
        process.wait()


def answers(host: str) -> bool:
    with socket.socket() as connection:
        name, _, port = host.partition(":")
        return connection.connect_ex((name, int(port))) == 0


def test_push_with_the_users_login_and_fetch_it_on_another_engine(
    row: Row, registry: Registry, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("build", row.name, "--push", f"{registry.host}/team", "--platform", f"linux/{engine.architecture}")
    refused = row.cli(*words, code=125).stderr
    assert f"pushing {registry.host}/team/tensorflow-runner:{row.name}" in refused
    assert f"Log in with: docker login {registry.host}" in refused

    row.cli.env.update(registry.login)
    pushed = row.cli(*words).stdout
    found = re.search(
        rf"(\S+): pushed as ({registry.host}/team/tensorflow-runner@sha256:[0-9a-f]{{64}})$", pushed, re.M
    )
    assert found and ": unchanged" in pushed, pushed
    (image,) = row.images()
    assert sorted(image["RepoTags"]) == [f"tensorflow-runner:{row.name}", found[1]]  # no name is left of the way

    engine.client.api.remove_image(image["Id"], force=True)
    monkeypatch.setenv("DOCKER_CONFIG", registry.login["DOCKER_CONFIG"])
    without_buildx(row.cli, tmp_path)
    monkeypatch.setenv("PATH", row.cli.env["PATH"])  # so that it cannot be built
    reference = images.ensure(engine, row.name, NOTHING, PYTHON, BASE_IMAGE, registry=f"{registry.host}/team")
    (fetched,) = row.images()
    assert (reference, fetched["Id"]) == (found[1], image["Id"])
    assert sorted(fetched["RepoTags"]) == [f"tensorflow-runner:{row.name}", reference]
    assert registry.password not in refused + pushed


def test_what_a_registry_lacks_is_built(
    row: Row, registry: Registry, engine: Engine, monkeypatch: Any, capfd: Any
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", registry.login["DOCKER_CONFIG"])
    images.ensure(engine, row.name, NOTHING, PYTHON, BASE_IMAGE, registry=registry.host)
    assert len(row.images()) == 1
    assert "There is no such image" in capfd.readouterr().err


def test_a_base_that_the_registry_lacks_or_keeps_to_itself(row: Row, registry: Registry) -> None:
    base = f"{registry.host}/python:{PYTHON}"
    assert f"{base} could not be fetched. {registry.host} refused: it wants a login" in row.fails("--base-image", base)
    row.cli.env.update(registry.login)
    told = row.fails("--base-image", base)
    assert f"There is no such image in {registry.host}. Check the name" in told and "RUNNER_BASE_IMAGE" in told


# What is not needed any more, and what is there.


def marked(engine: Engine, names: list[str], lock: str) -> None:
    """Make an image that has nothing in it but the labels of ours."""
    labels = [f"LABEL runner.environment={names[0].partition(':')[2]} runner.lock={lock}"]
    first, *others = names
    made = engine.api.import_image_from_data(
        bytes(1024), repository=first, changes=[*labels, "LABEL name=" + names[-1]]
    )
    for name in others:
        engine.api.tag(json.loads(made)["status"], *name.split(":"))


@pytest.mark.parametrize(
    ("requests", "unused"),
    [
        ([], ["new", "old"]),
        ([{"lock": "L", "backend": "native"}], ["old"]),  # it may go on in a container
        ([{"lock": "other", "backend": "docker", "container": "{}-old"}], ["new"]),
        ([{"lock": "L", "backend": "docker", "container": "{}-new"}], ["old"]),
        ([{"lock": "L", "backend": "docker"}], []),  # of a runner that did not write it down
    ],
)
def test_an_image_is_needed_by_the_run_that_was_in_it_and_by_its_lock(
    engine: Engine, requests: list[dict[str, str]], unused: list[str]
) -> None:
    name, lock = f"tensorflow-runner:tf0.{secrets.randbelow(10**9)}-cpu", secrets.token_hex(8)
    marked(engine, [name, f"{name}-old"], lock)
    engine.api.remove_image(name)
    marked(engine, [name, f"{name}-new"], lock)
    asked = [{key: value.format(name) for key, value in one.items()} for one in requests]
    asked = [{**one, "lock": lock if one["lock"] == "L" else one["lock"]} for one in asked]
    try:
        found = [str(waste.path) for waste in cleaning._unused_images(engine, asked, ())]
        assert sorted(path for path in found if path.startswith(name)) == [f"{name}-{which}" for which in unused]
        container = engine.api.create_container(f"{name}-new", "/nothing")["Id"]
        try:  # somebody else's, whose runs are not known here
            found = [str(waste.path) for waste in cleaning._unused_images(engine, asked, ())]
            assert f"{name}-new" not in found
            found = [str(waste.path) for waste in cleaning._unused_images(engine, asked, {container})]
            assert (f"{name}-new" in found) is ("new" in unused)
        finally:
            engine.api.remove_container(container)
    finally:
        for which in ("old", "new"):
            engine.api.remove_image(f"{name}-{which}", force=True)
        engine.api.remove_image(name, force=True)


def blocks(folder: Path) -> int:
    """Return the bytes that a folder takes on its disk."""
    return 512 * sum((Path(where) / name).lstat().st_blocks for where, _, names in os.walk(folder) for name in names)


def test_rm_unused_frees_what_it_says(row: Row, served: Index, private_engine: PrivateEngine, tmp_path: Path) -> None:
    row.cli.env.update(RUNNER_CACHE=str(tmp_path / "own cache"))
    private_engine.start()
    row.cli.env["DOCKER_HOST"] = private_engine.address
    base = images.base_image(PYTHON, BASE_IMAGE)
    private_engine.load(base)
    row.cli("rm", "--unused", "--yes")  # of other tests on this engine
    served.wheel = build_wheel(secrets.token_bytes(20_000_000))
    row.write(served.lock)
    served.trusted_by(row.cli)
    row.cli("build", row.name)
    before = blocks(private_engine.data / "overlay2")
    told = row.cli("rm", "--unused", "--yes")
    freed = before - blocks(private_engine.data / "overlay2")
    assert "image that no run needs" in told.stdout and "layers and packages of images" in told.stdout
    (said,) = re.findall(r"freed (\d+) MB", told.stderr)
    assert int(said) >= 40 and abs(freed / 1e6 - int(said)) < 5, (freed, told.output)  # in the image, and in uv's cache
    assert "nothing is unused" in row.cli("rm", "--unused").stderr
    assert private_engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}") == base
    private_engine.docker("image", "rm", base)


def test_an_image_that_a_container_uses_is_not_removed(row: Row, engine: Engine) -> None:
    (told,) = row.cli("build", row.name, "--json").json()
    container = docker("run", "--detach", "--init", told["image"], "sleep", "600").strip()
    try:
        assert not images.remove(engine, told["id"])
        assert len(row.images()) == 1
    finally:
        docker("rm", "--force", container)
    assert images.remove(engine, told["id"]) and row.images() == []


def test_what_a_killed_check_of_the_engine_leaves_is_removed(
    engine: Engine, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"runner-probe:{secrets.token_hex(6)}"
    engine.api.import_image_from_data(bytes(1024), repository=name)
    container = engine.api.create_container(name, "/nothing")["Id"]

    def found() -> list[cleaning.Waste]:
        return [waste for waste in cleaning._unused_probes(engine) if str(waste.path) == name]

    try:
        assert found() == []  # it may be at work
        monkeypatch.setattr(cleaning, "IN_USE", -60)
        (probe,) = found()
        cleaning._remove(probe)
        assert docker("images", "--quiet", name) == "" and container not in docker(
            "ps", "--all", "--quiet", "--no-trunc"
        )
    finally:
        docker("rm", "--force", container, check=False)
        docker("image", "rm", "--force", name, check=False)


def test_envs_shows_images(row: Row) -> None:
    def shown() -> str:
        return next(line for line in row.cli("envs").stdout.splitlines() if line.startswith(row.name))

    nothing = f"none==1.{secrets.randbelow(10**9)} ; python_version < '3'  --hash=sha256:"
    row.write(nothing + 64 * "0")  # a lock of its own, with no virtualenv
    assert "not made yet" in shown()
    (told,) = row.cli("build", row.name, "--json").json()
    assert re.search(r"\d+ MB image$", shown())
    assert told["image"] in row.cli("envs", row.name).stdout
    assert row.cli("envs", row.name, "--json").json()["images"] == [
        {"reference": told["image"], "bytes": told["bytes"]}
    ]
    row.cli.env["DOCKER_HOST"] = "unix:///nowhere"
    assert "not made yet" in shown() and row.cli("envs").stderr == ""


# A full disk.


@pytest.fixture
def small_engine(tmp_path: Path) -> Iterator[PrivateEngine]:
    """An engine whose data is on a disk of its own, in memory."""
    need("root", os.getuid() == 0, "only root can mount; run the tests as root, in a container for instance")
    from engines import private_engine

    room = Path("/tmp") / f"engine-{secrets.token_hex(4)}"  # short enough for sockets in it
    room.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700m", "tmpfs", room], check=False).returncode == 0
    need("mount", mounted, "this machine does not let root mount a tmpfs; a container needs --cap-add SYS_ADMIN")
    try:
        with private_engine(room) as own:
            own.start()
            yield own
    finally:
        subprocess.run(["umount", "--lazy", room], check=True)
        room.rmdir()


def test_a_full_disk_while_building_is_told(row: Row, served: Index, small_engine: PrivateEngine) -> None:
    small_engine.load(images.base_image(PYTHON, BASE_IMAGE))
    served.wheel = build_wheel(secrets.token_bytes(60_000_000))
    free = shutil.disk_usage(small_engine.data).free
    with (small_engine.data / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, free - 70_000_000)
    row.write(served.lock)
    served.trusted_by(row.cli)
    row.cli.env["DOCKER_HOST"] = small_engine.address
    told = row.cli("build", row.name, code=125).stderr
    assert (
        f"making the image {row.name} failed while installing the packages. The disk of the Docker engine is full"
        in told
    )
    assert str(small_engine.data) in told
    assert small_engine.docker("images", "--quiet", "--filter", f"label=runner.environment={row.name}") == ""
    (small_engine.data / "filler").unlink()
    row.cli("build", row.name)


# TensorFlow's rows, for real.


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", environments.load())
def test_a_row_trains_saves_and_shows_it(name: str, environment_image: Callable[[str], str]) -> None:
    found, image = environments.find(name), environment_image(name)
    scripts = {
        "versions": f"check_versions.py {found.tensorflow} /locks/{found.lock.name}",
        "training": "check_training.py",
        "tensorboard": "check_tensorboard.py",
        "bytecode": "check_bytecode.py",
    }
    if found.device == "cuda":
        scripts["libraries"] = f"check_libraries.py {' '.join(found.libraries)}"
    mounts = [f"--volume={INSIDE}:/inside:ro", f"--volume={found.lock.parent}:/locks:ro"]
    command = " && ".join(f"python -B /inside/{script}" for script in scripts.values())
    told = docker(*RESTRICTED, *mounts, "--env=TF_CPP_MIN_LOG_LEVEL=2", image, "sh", "-c", command)
    assert re.findall(r"^(\w+): ", told, re.MULTILINE) == list(scripts), told
