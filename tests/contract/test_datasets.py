"""Data sets, against real servers on loopback that behave badly, real processes, and Debian's real archive."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import need

from runner import datasets, packages, resources
from runner.errors import DataError, UsageError

FILES = {"one.bin": os.urandom(300_000), "two.bin": os.urandom(5_000)}
SHA = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


class Server(ThreadingHTTPServer):
    """A mirror of FILES with one fault; `asked` has (path, Range) of each request, `sent` the bytes that went out."""

    daemon_threads = True
    request_queue_size = 50

    def __init__(self, fault: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = fault
        self.asked: list[tuple[str, str | None]] = []
        self.sent = 0
        self.scheme = "http"
        self.gate = threading.Event()
        self.gate.set()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/data"

    def ranges(self, name: str) -> list[str | None]:
        return [wanted for path, wanted in self.asked if path.endswith(name)]

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        fault, name, wanted = self.server.fault, self.path.rsplit("/", 1)[-1], self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        if fault == "404" or name not in FILES:
            self.send_error(404)
        elif fault.startswith("redirect ") and "moved" not in self.path:
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("redirect ") + "/moved/" + name)
            self.end_headers()
        else:
            self.send_file(FILES[name], wanted, fault)

    def send_file(self, content: bytes, wanted: str | None, fault: str) -> None:
        content = {"wrong": content[::-1], "truncated": content[:1000], "long": content * 100}.get(fault, content)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and fault != "no ranges, cut" else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.send_slowly(content[start:], fault)

    def send_slowly(self, content: bytes, fault: str) -> None:
        if "cut" in fault and len(content) > 100_000:
            content = content[:100_000]
        self.server.gate.wait(60)
        for begin in range(0, len(content), 10_000):
            if fault == "stall" and begin:
                time.sleep(60)
            if fault == "slow":
                time.sleep(0.03)
            self.wfile.write(content[begin : begin + 10_000])
            self.server.sent += 10_000

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.lower().endswith("_proxy") or name in packages.CA_VARIABLES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def serve() -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def start(fault: str = "") -> Server:
            server = Server(fault)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return server

        yield start


def definition(*sources: object, sizes: bool = True) -> dict[str, Any]:
    files = {name: {"sha256": SHA[name], "size": len(FILES[name])} if sizes else SHA[name] for name in FILES}
    return {"files": files, "sources": [s if isinstance(s, dict) else {"url": s} for s in sources]}


def mine(*sources: object, sizes: bool = True) -> datasets.DataSet:
    return datasets.find("mine", definition(*sources, sizes=sizes))


def write(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def holds(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Child:
    """A process that wants the data set; `said` is what it wrote on standard error."""

    def __init__(self, folder: Path, *sources: object) -> None:
        code = "import json, sys; from runner import datasets as d; print(d.ensure(d.find('mine', json.loads(sys.argv[1]))))"
        self.errors = folder / f"errors-{len(list(folder.glob('errors-*')))}"
        with self.errors.open("w") as errors:
            argv = [sys.executable, "-c", code, json.dumps(definition(*sources))]
            self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True)

    @property
    def said(self) -> str:
        return self.errors.read_text()

    def end(self) -> str:
        return self.process.communicate(timeout=60)[0]


def one_fetches_others_wait(server: Server, count: int, folder: Path) -> list[Child]:
    server.gate.clear()
    first = Child(folder, server.url)
    wait_for(lambda: server.asked)
    others = [Child(folder, server.url) for _ in range(count - 1)]
    wait_for(lambda: all("waiting for another run that is fetching data set mine" in other.said for other in others))
    server.gate.set()
    return [first, *others]


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def black_hole(stack: contextlib.ExitStack) -> str:
    """Return an address that never answers: a listener whose queue is full."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(4):
        caller = stack.enter_context(socket.socket())
        caller.setblocking(False)
        caller.connect_ex(listener.getsockname())
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


# Fetched, once


def test_fetched_files_are_verified_read_only_and_alone_in_their_folder(serve: Any) -> None:
    folder = datasets.ensure(mine(serve().url))
    assert holds(folder) == FILES
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    assert folder.parent == resources.cache("data") and folder.name.startswith("mine-")
    assert not list(folder.parent.glob("*.partial"))


def test_what_is_in_place_needs_no_network_and_not_even_the_code_for_it(serve: Any, tmp_path: Path) -> None:
    server = serve()
    datasets.ensure(mine(server.url))
    asked = len(server.asked)
    code = (
        "import json, sys; from runner import datasets as d; d.ensure(d.find('mine', json.loads(sys.argv[1])));"
        "assert 'urllib.request' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(definition(server.url))], check=True)
    assert len(server.asked) == asked


def test_verified_files_are_not_read_again(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = mine(serve().url)
    datasets.ensure(dataset)
    monkeypatch.setattr(datasets, "_sha256", lambda *_: pytest.fail("read again"))
    datasets.ensure(dataset)


def test_ten_runs_at_once_fetch_each_file_once(serve: Any, tmp_path: Path) -> None:
    server = serve()
    children = one_fetches_others_wait(server, 10, tmp_path)
    folders = {child.end() for child in children}
    assert [child.process.returncode for child in children] == [0] * 10 and len(folders) == 1
    assert holds(Path(folders.pop().strip())) == FILES
    assert sorted(path for path, _ in server.asked) == ["/data/one.bin", "/data/two.bin"]


def test_runs_that_wait_for_one_that_fails_fail_with_it(serve: Any, tmp_path: Path) -> None:
    server = serve("wrong")
    children = one_fetches_others_wait(server, 3, tmp_path)
    assert [child.end() for child in children] == [""] * 3
    assert all("one.bin is not what it should be" in child.said for child in children)
    assert len(server.asked) == 1
    server.fault = ""
    assert holds(datasets.ensure(mine(server.url))) == FILES


def test_a_killed_run_frees_the_lock_and_its_download_is_continued(serve: Any, tmp_path: Path) -> None:
    server = serve("slow")
    dataset = mine(server.url)
    child = Child(tmp_path, server.url)
    partial = resources.cache("data", f"mine-{dataset.digest[:8]}.partial", "one.bin")
    wait_for(lambda: partial.exists() and partial.stat().st_size > 50_000)
    child.process.send_signal(signal.SIGKILL)
    child.end()
    left = partial.stat().st_size
    assert left < len(FILES["one.bin"])
    assert holds(datasets.ensure(dataset)) == FILES
    assert server.ranges("one.bin") == [None, f"bytes={left}-"]


def test_a_download_that_is_cut_goes_on_where_it_was(serve: Any) -> None:
    server = serve("cut")
    assert holds(datasets.ensure(mine(server.url))) == FILES
    assert server.ranges("one.bin") == [None, "bytes=100000-", "bytes=200000-"]


def test_another_mirror_goes_on_with_what_a_failing_one_began(serve: Any) -> None:
    bad, good = serve("no ranges, cut"), serve()
    assert holds(datasets.ensure(mine(bad.url, good.url))) == FILES
    assert good.ranges("one.bin") == ["bytes=100000-"]


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * 300_000, b"x" * 400_000])
def test_a_wrong_beginning_left_by_an_earlier_run_is_not_the_mirrors_fault(serve: Any, left: bytes) -> None:
    dataset = mine(serve().url)
    write(resources.cache("data", f"mine-{dataset.digest[:8]}.partial"), {"one.bin": left})
    assert holds(datasets.ensure(dataset)) == FILES


def test_a_damaged_cache_is_repaired_and_one_line_says_so(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve()
    folder = datasets.ensure(mine(server.url))
    damaged = folder / "one.bin"
    damaged.chmod(0o644)
    damaged.write_bytes(b"?" * len(FILES["one.bin"]))
    (folder / "stray").write_text("not ours")
    capsys.readouterr()
    assert holds(datasets.ensure(mine(server.url))) == FILES
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "one.bin" in line and SHA["one.bin"] in line and "fetched again" in line]
    assert len(server.ranges("one.bin")) == 2 and len(server.ranges("two.bin")) == 1


def test_a_terminal_sees_a_bar(serve: Any) -> None:
    terminal, end = pty.openpty()
    code = "import json, sys; from runner import datasets as d; d.ensure(d.find('mine', json.loads(sys.argv[1])))"
    argv = [sys.executable, "-c", code, json.dumps(definition(serve("slow").url))]
    subprocess.run(argv, stderr=end, check=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    os.close(end)
    shown = os.read(terminal, 100_000).decode()
    assert "█" in shown and "of 305 kB" in shown and "\x1b" not in shown


# Where it comes from


def test_sources_are_asked_in_order_and_only_for_what_is_missing(serve: Any, tmp_path: Path) -> None:
    server = serve()
    part = write(tmp_path / "part", {"one.bin": FILES["one.bin"]})
    assert holds(datasets.ensure(mine({"directory": str(part)}, server.url))) == FILES
    assert [path for path, _ in server.asked] == ["/data/two.bin"]


def test_a_file_address_is_a_directory_and_a_relative_one_is_beside_the_job(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole")
    assert holds(datasets.ensure(mine(whole.as_uri()))) == FILES
    relative = datasets.find("mine", definition({"directory": "whole"}), tmp_path)
    assert relative.sources == (datasets.Directory(whole),)


def test_redirects_are_followed_to_http_only(serve: Any, tmp_path: Path) -> None:
    good = serve()
    assert holds(datasets.ensure(mine(serve(f"redirect {good.url}").url))) == FILES
    shutil.rmtree(resources.cache())
    with pytest.raises(DataError, match="file"):
        datasets.ensure(mine(serve(f"redirect file://{write(tmp_path / 'moved').parent}").url))


def test_the_proxy_of_the_environment_is_used(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve()
    monkeypatch.setenv("http_proxy", proxy.url)
    assert holds(datasets.ensure(mine("http://mirror.invalid/data"))) == FILES
    assert proxy.asked[0][0] == "http://mirror.invalid/data/one.bin"


def test_an_untrusted_certificate_names_the_variables_that_help(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openssl", shutil.which("openssl") is not None, "it makes the certificate; apt-get install openssl")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = serve()
    server.socket, server.scheme = (
        context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False),
        "https",
    )
    for variable in packages.CA_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)  # may name certificates, too
    with pytest.raises(DataError) as refusal:
        datasets.ensure(mine(server.url))
    assert all(variable in str(refusal.value) for variable in packages.CA_VARIABLES)
    for variable in packages.CA_VARIABLES:
        shutil.rmtree(resources.cache(), ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(certificate))
            assert holds(datasets.ensure(mine(server.url))) == FILES
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))  # PIP_CERT goes before it, as it does for packages
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "nowhere.pem"))
    shutil.rmtree(resources.cache())
    with pytest.raises(DataError, match="PIP_CERT names no readable"):
        datasets.ensure(mine(server.url))


# What cannot be had


@pytest.mark.parametrize("fault", ["wrong", "truncated"])
@pytest.mark.parametrize("sizes", [True, False])
def test_wrong_bytes_are_refused_with_both_hashes_and_never_kept(serve: Any, fault: str, sizes: bool) -> None:
    server = serve(fault)
    dataset = mine(server.url, sizes=sizes)
    sent = FILES["one.bin"][::-1] if fault == "wrong" else FILES["one.bin"][:1000]
    with pytest.raises(DataError) as refusal:
        datasets.ensure(dataset)
    text = str(refusal.value)
    assert "one.bin" in text and server.url in text
    assert SHA["one.bin"] in text and hashlib.sha256(sent).hexdigest() in text and f"({len(sent)} bytes)" in text
    assert not list(resources.cache("data", f"mine-{dataset.digest[:8]}").iterdir())


def test_each_source_is_named_with_its_reason(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "STALL", 0.2)
    monkeypatch.setattr(datasets, "PATIENCE", 0.6)
    monkeypatch.setattr(datasets, "LESS_PATIENCE", 0.2)
    monkeypatch.setenv("PATH", "")
    missing, stalling, closed = serve("404"), serve("stall"), f"http://127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        silent = black_hole(stack)
        dataset = mine({"directory": str(tmp_path / "no")}, missing.url, stalling.url, closed, silent, silent,
                       "http://mirror.invalid", {"debian": "some-package", "path": "usr"})  # fmt: skip
        began = time.monotonic()
        with pytest.raises(DataError) as refusal:
            datasets.ensure(dataset)
        assert time.monotonic() - began < 5
    lines = str(refusal.value).splitlines()
    assert lines[0] == "data set mine could not be had: one.bin, two.bin missing. Tried:"
    assert lines[1] == f"  {tmp_path / 'no'}: there is no such directory"
    assert lines[2] == f"  {missing.url}: one.bin: 404 Not Found"
    assert lines[3] == f"  {stalling.url}: one.bin: cut off after 30000 bytes, 3 times: no answer in time"
    assert lines[4] == f"  {closed}: Connection refused"
    assert [line for line in lines[5:7] if line.startswith(f"  {silent}: no connection within")] == lines[5:7]
    assert "mirror.invalid: the name of the host is not known here" in lines[7]
    assert "some-package: apt-get is missing" in lines[8]
    assert lines[9] == "A directory that has the files is --data mine=DIR."


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def test_a_silent_name_server_does_not_hold_up_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched, because a machine's resolver cannot be made silent by its own user.
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30) or [])
    monkeypatch.setattr(datasets, "PATIENCE", 0.2)
    began = time.monotonic()
    with pytest.raises(DataError, match="no connection within"):
        datasets.ensure(mine("http://mirror.invalid"))
    assert time.monotonic() - began < 5


def test_a_mirror_that_sends_too_much_is_stopped(serve: Any) -> None:
    server = serve("long")
    with pytest.raises(DataError, match="more than the 300000 bytes"):
        datasets.ensure(mine(server.url))
    assert server.sent < 20_000_000


def test_a_full_disk_says_what_is_needed_and_free_and_leaves_nothing(serve: Any) -> None:
    need("/dev/full", Path("/dev/full").exists(), "Linux has it")
    dataset = mine(serve().url, serve().url)
    partial = resources.cache("data", f"mine-{dataset.digest[:8]}.partial")
    partial.mkdir(parents=True)
    (partial / "one.bin").symlink_to("/dev/full")
    with pytest.raises(
        DataError, match=r"no space for data set mine: 305 kB are needed and .+ are free in .+RUNNER_CACHE"
    ):
        datasets.ensure(dataset)
    assert not partial.exists()


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="RUNNER_CACHE moves it"):
        datasets.ensure(mine())


# Given by the user


def test_a_given_directory_is_verified_and_used_in_place(tmp_path: Path) -> None:
    given = write(tmp_path / "given", {**FILES, "README": b"more is allowed here"})
    assert datasets.ensure(mine(), given) == given
    (given / "one.bin").write_bytes(b"other")
    with pytest.raises(DataError) as refusal:
        datasets.ensure(mine(), given)
    assert SHA["one.bin"] in str(refusal.value) and hashlib.sha256(b"other").hexdigest() in str(refusal.value)
    (given / "two.bin").unlink()
    with pytest.raises(UsageError, match=r"two\.bin not found there\. Expected is a directory with one\.bin, two\.bin"):
        datasets.ensure(mine(), given)
    with pytest.raises(UsageError, match=r"there is no such directory\. Expected is a directory with one\.bin"):
        datasets.ensure(mine(), tmp_path / "nowhere")


def test_the_same_data_in_another_wrapping_is_accepted(tmp_path: Path) -> None:
    other = hashlib.sha256(b"wrapped otherwise").hexdigest()
    files = {"one.bin": {"sha256": SHA["one.bin"], "also": [other]}}
    given = write(tmp_path, {"one.bin": b"wrapped otherwise"})
    dataset = datasets.find("mine", {"files": files, "sources": [{"directory": str(given)}]})
    assert datasets.ensure(dataset, given) == given
    assert holds(datasets.ensure(dataset)) == {"one.bin": b"wrapped otherwise"}
    assert dataset.files == {"one.bin": SHA["one.bin"]}


def test_any_directory_has_a_fingerprint_that_sees_every_change(tmp_path: Path) -> None:
    root = write(tmp_path / "data")
    write(root / "below", {"three.bin": b"3"})
    (root / "loop").symlink_to(root)
    (root / "dangling").symlink_to(root / "nowhere")
    (root / "link.bin").symlink_to("one.bin")
    three = hashlib.sha256(b"3").hexdigest()
    assert datasets.fingerprint(root) == {**SHA, "below/three.bin": three, "link.bin": SHA["one.bin"]}
    write(root / "below", {"three.bin": b"4"})
    assert datasets.fingerprint(root)["below/three.bin"] == hashlib.sha256(b"4").hexdigest()
    with pytest.raises(UsageError, match="no directory"):
        datasets.fingerprint(root / "one.bin")


def test_a_fingerprint_reads_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "data")
    first = datasets.fingerprint(root)
    monkeypatch.setattr(datasets, "_sha256", lambda *_: pytest.fail("read again"))
    assert datasets.fingerprint(root) == first


# Definitions


def test_fashion_mnist_is_known_with_every_hash_and_size() -> None:
    for dataset in (datasets.find("fashion-mnist"), datasets.find("fashion-mnist", {})):
        assert len(dataset.files) == len(dataset.sizes) == 4 and dataset.size == 30_878_645
        kinds = [type(source) for source in dataset.sources]
        assert kinds == [datasets.Directory, datasets.Mirror, datasets.Mirror, datasets.Mirror, datasets.DebianPackage]


def test_a_job_may_name_its_own_mirror_of_a_known_data_set() -> None:
    dataset = datasets.find("fashion-mnist", {"sources": [{"url": "https://mirror.example/fashion?key=secret"}]})
    assert dataset.files == datasets.find("fashion-mnist").files
    (mirror,) = dataset.sources
    assert isinstance(mirror, datasets.Mirror) and str(mirror) == "https://mirror.example/fashion"
    assert mirror.address("a b.gz") == "https://mirror.example/fashion/a%20b.gz?key=secret"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"Did you mean fashion-mnist\?.*--data fashion_mnist=DIR"):
        datasets.find("fashion_mnist", {})


ZERO = "0" * 64


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("../up", {"files": {"a": ZERO}}, "a name has"),
        ("mine", [], "a mapping with files and sources is expected"),
        ("mine", {"sources": []}, "files is expected"),
        ("mine", {"files": {}}, "files is expected"),
        ("mine", {"file": {"a": ZERO}}, "Did you mean files"),
        ("mine", {"files": {"a/b": ZERO}}, "'a/b' is no file's name"),
        ("mine", {"files": {"..": ZERO}}, "'..' is no file's name"),
        ("mine", {"files": {1: ZERO}}, "1 is no file's name"),
        ("mine", {"files": {"a": "abc"}}, "64 digits"),
        ("mine", {"files": {"a": ZERO.replace("0", "A")}}, "64 digits"),
        ("mine", {"files": {"a": None}}, "64 digits"),
        ("mine", {"files": {"a": {"sha256": ZERO, "size": "1 MB"}}}, "size is a number of bytes"),
        ("mine", {"files": {"a": {"sha256": ZERO, "also": "x"}}}, "64 digits"),
        ("mine", {"files": {"a": {"sha": ZERO}}}, "Did you mean sha256"),
        ("mine", {"files": {"a": ZERO}, "sources": {"url": "http://x"}}, "sources is a list"),
        ("mine", {"files": {"a": ZERO}, "sources": ["http://x"]}, "a source is"),
        ("mine", {"files": {"a": ZERO}, "sources": [{"url": "ftp://x/y"}]}, "begins with http"),
        ("mine", {"files": {"a": ZERO}, "sources": [{"url": "https://me:word@x/y"}]}, "has a password"),
        ("mine", {"files": {"a": ZERO}, "sources": [{"debian": "-o evil", "path": "usr"}]}, "a source is"),
        ("mine", {"files": {"a": ZERO}, "sources": [{"debian": "good", "path": "../etc"}]}, "a source is"),
    ],
)
def test_a_malformed_definition_is_one_sentence(name: str, wrong: Any, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        datasets.find(name, wrong)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert "word@" not in str(refusal.value)


# Debian's archive


def debian_only() -> datasets.DataSet:
    need("apt", all(map(shutil.which, ("apt-get", "dpkg-deb"))), "Debian and Ubuntu have apt-get and dpkg-deb")
    sites = subprocess.run(["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True)
    archive = urlsplit((sites.stdout.splitlines() or [""])[0])
    need("debian", bool(archive.hostname), "name a Debian archive in apt's sources")
    try:
        socket.create_connection((archive.hostname, archive.port or 80), 5).close()
    except OSError as error:
        need("debian", False, f"connect this machine to its Debian archive, {archive.hostname} ({error})")
    known = datasets.find("fashion-mnist")
    return datasets.DataSet(known.name, known.files, known.sources[-1:], known.sizes, known.also)


def test_debians_package_is_fetched_and_unpacked(capsys: pytest.CaptureFixture[str]) -> None:
    folder = datasets.ensure(debian_only())
    assert sorted(holds(folder)) == sorted(datasets.find("fashion-mnist").files)
    assert "4 files from Debian package dataset-fashion-mnist, verified" in capsys.readouterr().err
    assert [path.name for path in folder.parent.iterdir() if path.name.endswith(".partial")] == []


def test_debians_package_is_found_without_package_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = debian_only()
    lists = tmp_path / "lists"
    (lists / "partial").mkdir(parents=True)
    (tmp_path / "apt.conf").write_text(f'Dir::State::Lists "{lists}";\nDir::State::Status "/dev/null";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    assert sorted(holds(datasets.ensure(dataset))) == sorted(dataset.files)
    assert [path.name for path in lists.iterdir() if path.name not in ("partial", "lock")] == []
