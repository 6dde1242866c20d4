"""Data sets: a name, files with their SHA-256, and sources in order; fetched once, verified, and never half there.

A file is collected in `<set>.partial/`, hashed, and only then renamed into `<set>/`: what stands there is whole.
Hashes are remembered with size and time of each file: a data set that is in place costs a few milliseconds, no network
call and no process. (urllib costs more to import than that, and is therefore imported where a download begins.)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from runner import packages, process, resources, terminal, yamlfile
from runner.errors import CommandFailed, DataError, UsageError, unknown

if TYPE_CHECKING:
    import ssl
    import urllib.request

KEYS = ("files", "sources", "link", "licence")
FILE_KEYS = ("sha256", "size", "also")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]+")

PATIENCE = 5.0  # seconds for the first mirror to accept a connection
LESS_PATIENCE = 2.0  # for the others, once one was silent: probably there is no network
STALL = 10.0  # seconds without a byte; then the download is resumed on a new connection
TRIES = 3  # connections in a row that bring less than CHUNK
CHUNK = 1 << 20


@dataclass(frozen=True)
class Directory:
    """A directory of this machine that may hold the files."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Mirror:
    """A place on the network that has each file under its name."""

    url: str

    def address(self, name: str) -> str:
        """Return the address of a file."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))

    def __str__(self) -> str:
        return urlunsplit(urlsplit(self.url)._replace(query=""))  # a signed address has its key there


@dataclass(frozen=True)
class DebianPackage:
    """A package of a Debian-like system, which apt fetches and dpkg unpacks without root."""

    package: str
    path: str

    def __str__(self) -> str:
        return f"Debian package {self.package}"


Source = Directory | Mirror | DebianPackage
_Entry = list[Any]  # size, modification time, SHA-256: as JSON gives them back


@dataclass(frozen=True)
class DataSet:
    """What a data set is (`files`: name -> SHA-256, what a run freezes) and where it can be had."""

    name: str
    files: Mapping[str, str]
    sources: tuple[Source, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # the same data in another wrapping

    @property
    def digest(self) -> str:
        """The hash over names and contents, by which the cache knows this data set."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()

    @property
    def size(self) -> int:
        """The bytes of all files, as far as they are known."""
        return sum(self.sizes.values())

    def accepts(self, name: str, sha256: str | None) -> bool:
        """Tell whether a file of this hash is the data set's file."""
        return sha256 is not None and sha256 in (self.files[name], *self.also.get(name, ()))


class _Malformed(Exception):
    """What is wrong with a definition, and the key where it is."""


class _Refused(Exception):
    """Why a source did not bring the files."""


class _Silence(_Refused):
    """Nobody answered at all: perhaps there is no network."""


# What a data set is


def find(name: str, definition: Mapping[str, Any] | None = None, base: Path | None = None) -> DataSet:
    """Return a data set by its name and what job.yaml, in the folder `base`, says of it (nothing: a known one)."""
    known = yamlfile.load(resources.data("jobs", "datasets.yaml"))
    try:
        if not NAME.fullmatch(name):
            raise _Malformed("a name has letters, digits, '.', '_' and '-'.")
        if definition is not None and not isinstance(definition, Mapping):
            raise _Malformed("a mapping with files and sources is expected, or {} for a known one.")
        if not definition and name not in known:
            raise UsageError(f"{unknown('data set', name, known)} A directory of your own is --data {name}=DIR.")
        return _read(name, {**known.get(name, {}), **(definition or {})}, base or Path())
    except _Malformed as error:
        text, key = (*error.args, "")[:2]
        where = f"{definition.where(key)}: " if isinstance(definition, yamlfile.Mapping) else ""
        raise UsageError(f"{where}data set {name!r}: {text}") from error


def _read(name: str, definition: Mapping[str, Any], base: Path) -> DataSet:
    for key in definition:
        if key not in KEYS:
            raise _Malformed(str(unknown("key", key, KEYS)), key)
    files, sources = definition.get("files"), definition.get("sources", [])
    if not isinstance(files, Mapping) or not files:
        raise _Malformed("files is expected: a mapping of each file's name to its sha256.", "files")
    if not isinstance(sources, list):
        raise _Malformed("sources is a list, such as [{url: https://example.org/data}].", "sources")
    entries = {file: _read_file(file, value) for file, value in files.items()}
    return DataSet(
        name=name,
        files={file: entry["sha256"] for file, entry in entries.items()},
        sources=tuple(_read_source(source, base) for source in sources),
        sizes={file: entry["size"] for file, entry in entries.items() if "size" in entry},
        also={file: tuple(entry["also"]) for file, entry in entries.items() if "also" in entry},
    )


def _read_file(file: object, value: object) -> dict[str, Any]:
    if not isinstance(file, str) or not NAME.fullmatch(file) or ".." in file:
        raise _Malformed(f"{file!r} is no file's name: letters, digits, '.', '_' and '-', and no folder.", "files")
    entry = dict(value) if isinstance(value, Mapping) else {"sha256": value}
    for key in entry:
        if key not in FILE_KEYS:
            raise _Malformed(f"{file}: {unknown('key', str(key), FILE_KEYS)}", "files")
    also, size = entry.get("also", []), entry.get("size", 0)
    for sha256 in (entry.get("sha256"), *(also if isinstance(also, list) else [also])):
        if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
            raise _Malformed(f"{file}: a sha256 has 64 digits of 0-9 and a-f, unlike {sha256!r}.", "files")
    if not isinstance(size, int) or size < 0:
        raise _Malformed(f"{file}: size is a number of bytes, unlike {size!r}.", "files")
    return entry


def _read_source(value: object, base: Path) -> Source:
    match value:
        case {"directory": str(path), **rest} if not rest:
            return Directory(base / Path(path).expanduser())
        case {"url": str(url), **rest} if not rest:
            return _read_url(url)
        case {"debian": str(package), "path": str(path), **rest} if not rest:
            if PACKAGE.fullmatch(package) and ".." not in path:
                return DebianPackage(package, path.lstrip("/"))
    forms = "{directory: ...}, {url: ...} or {debian: PACKAGE, path: ...}"
    raise _Malformed(f"a source is {forms}, unlike {value!r}.", "sources")


def _read_url(url: str) -> Source:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Directory(Path(parts.path))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _Malformed(f"a url begins with http://, https:// or file://, unlike {url!r}.", "sources")
    if parts.username or parts.password:
        raise _Malformed(f"the url of {parts.hostname} has a password in it, and messages would show it.", "sources")
    return Mirror(url)


# Where a data set is


def ensure(dataset: DataSet, given: Path | None = None) -> Path:
    """Return a directory with the verified files: the given one as it is, else the cache's, filled if need be."""
    if given is not None:
        return _in_place(dataset, given.expanduser())
    folder = resources.cache("data", f"{dataset.name}-{dataset.digest[:8]}")
    if _as_it_should_be(dataset, folder):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # whatever the umask: a container's user reads it too
        with _alone(folder, dataset.name):
            _fill(dataset, folder)
    except OSError as error:
        raise DataError(f"the cache {folder.parent} cannot be used: {_why(error)}. RUNNER_CACHE moves it.") from error
    return folder


def fingerprint(path: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a directory, by its path in there; unchanged files are not read again."""
    path = path.expanduser()
    if not path.is_dir():
        raise UsageError(f"{path} is no directory; data is given as --data NAME=DIR.")
    return _checksums(path, sorted(_walk(path)))


def _in_place(dataset: DataSet, given: Path) -> Path:
    """Verify a directory that the user named, and return it."""
    said = f"--data {dataset.name}={given}"
    expected = f"Expected is a directory with {', '.join(dataset.files)}."
    if not given.is_dir():
        raise UsageError(f"{said}: there is no such directory. {expected}")
    found = _checksums(given, dataset.files)
    missing = [name for name in dataset.files if name not in found]
    if missing:
        raise UsageError(f"{said}: {', '.join(missing)} not found there. {expected}")
    for name in dataset.files:
        if not dataset.accepts(name, found[name]):
            raise DataError(
                f"{said}: {_mismatch(dataset, name, given / name, found[name])}. Without --data it is fetched."
            )
    return given.absolute()


def _as_it_should_be(dataset: DataSet, folder: Path) -> bool:
    found = _checksums(folder, dataset.files)
    return all(dataset.accepts(name, found.get(name)) for name in dataset.files) and not _strays(dataset, folder)


def _strays(dataset: DataSet, folder: Path) -> list[Path]:
    """Return what else is in the cache's folder, save what systems hide there (.DS_Store, .nfs*)."""
    return [path for path in folder.glob("[!.]*") if path.name not in dataset.files]


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Hold the data set's lock, which the system lets go when its holder dies: of ten runs one fetches for all."""
    with folder.with_name(f"{folder.name}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another run that is fetching data set {name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if failure := lock.read():
                raise DataError(failure) from None
        except OSError:
            pass  # a file system without locks: two may fetch at once, and nothing unverified gets in all the same
        lock.truncate(0)
        try:
            yield
        except DataError as error:
            lock.write(str(error))
            raise


def _fill(dataset: DataSet, folder: Path) -> None:
    """Bring the cache's folder to exactly the files of the data set."""
    for stray in _strays(dataset, folder):
        _say(f"{stray} does not belong to data set {dataset.name}, and is removed")
        _remove(stray)
    found = _checksums(folder, dataset.files)
    for name, sha256 in found.items():
        if not dataset.accepts(name, sha256):
            _say(f"{_mismatch(dataset, name, folder / name, sha256)}; it is fetched again")
            _remove(folder / name)
    missing = [name for name in dataset.files if not dataset.accepts(name, found.get(name))]
    if missing:
        with terminal.ProgressLine() as line:
            _Errand(dataset, folder, missing, line).run()


def _mismatch(dataset: DataSet, name: str, path: Path, found: str) -> str:
    size = f" ({dataset.sizes[name]} bytes)" if name in dataset.sizes else ""
    expected = f"expected sha256 {dataset.files[name]}{size}"
    return f"{name} is not what it should be: {expected}, found {found} ({path.stat().st_size} bytes)"


# Fetching


@dataclass
class _Errand:
    """One fetching of what is missing, from the sources in their order."""

    dataset: DataSet
    folder: Path
    missing: list[str]
    line: terminal.ProgressLine
    patience: float = field(default_factory=lambda: PATIENCE)
    done: int = 0
    tried: list[str] = field(default_factory=list)

    @property
    def partial(self) -> Path:
        """Where unfinished files are; they stay there for the next run to go on with."""
        return self.folder.with_name(f"{self.folder.name}.partial")

    def run(self) -> None:
        """Try each source until nothing is missing."""
        self.partial.mkdir(exist_ok=True)
        if self.dataset.sources and not self.line.active:
            size = f" ({terminal.size(self.dataset.size)})" if self.dataset.size else ""
            _say(f"fetching data set {self.dataset.name}{size}")
        for source in self.dataset.sources:
            if self.missing:
                self._try(source)
        if self.missing:
            raise DataError(self._failure())
        shutil.rmtree(self.partial, ignore_errors=True)

    def accept(self, name: str) -> None:
        """Move a complete file into the cache if it is the right one, else remove it."""
        path = self.partial / name
        found = _sha256(path)
        if not self.dataset.accepts(name, found):
            reason = _mismatch(self.dataset, name, path, found)
            path.unlink()
            raise _Refused(reason)
        path.chmod(0o444)
        with path.open("rb") as file:
            os.fsync(file)
        self.done += path.stat().st_size
        path.replace(self.folder / name)
        _remember(self.folder, name, found)
        self.missing.remove(name)

    def show(self, name: str, count: int) -> None:
        """Show how much is there, `count` bytes of it in the file that is just coming."""
        total = self.dataset.size
        of = f" of {terminal.size(total)}" if total else ""
        meter = f"{terminal.bar(self.done + count, total)} " if total else ""
        self.line.update(f"data set {self.dataset.name} {meter}{terminal.size(self.done + count)}{of}, {name}")

    def _try(self, source: Source) -> None:
        before = len(self.missing)
        try:
            self._bring(source)
        except OSError as error:
            self._give_up_if_full(error)
            self.tried.append(f"  {source}: {_why(error)}")
        except CommandFailed as error:
            self.tried.append(f"  {source}: {_complaint(error)}")
        except _Refused as reason:
            self.tried.append(f"  {source}: {reason}")
            self.patience = LESS_PATIENCE if isinstance(reason, _Silence) else self.patience
        self.line.clear()
        if brought := before - len(self.missing):
            _say(f"data set {self.dataset.name}: {_files(brought)} from {source}, verified")

    def _bring(self, source: Source) -> None:
        match source:
            case Directory(path):
                _copy(self, path)
            case Mirror():
                _download(self, source)
            case DebianPackage():
                _unpack(self, source)

    def _give_up_if_full(self, error: OSError) -> None:
        """A full disk is full for every source; free what this errand took of it."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return
        shutil.rmtree(self.partial, ignore_errors=True)
        needed = sum(self.dataset.sizes.get(name, 0) for name in self.missing)
        need = f"{terminal.size(needed)} are needed and " if needed else ""
        free = terminal.size(shutil.disk_usage(self.folder).free)
        raise DataError(
            f"no space for data set {self.dataset.name}: {need}{free} are free in {self.folder.parent}. "
            "Free some, or let RUNNER_CACHE name a folder elsewhere."
        ) from error

    def _failure(self) -> str:
        what = f"data set {self.dataset.name} could not be had: {', '.join(self.missing)} missing."
        tried = "\n".join(["Tried:", *self.tried]) if self.tried else "It has no sources."
        return f"{what} {tried}\nA directory that has the files is --data {self.dataset.name}=DIR."


def _copy(errand: _Errand, directory: Path) -> None:
    if not directory.is_dir():
        raise _Refused("there is no such directory")
    for name in tuple(errand.missing):
        if not (directory / name).is_file():
            raise _Refused(f"{name} is missing there")
        errand.show(name, 0)
        (errand.partial / name).unlink(missing_ok=True)  # it may be read-only already
        shutil.copyfile(directory / name, errand.partial / name)
        errand.accept(name)


def _unpack(errand: _Errand, source: DebianPackage) -> None:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise _Refused(f"{program} is missing, this is no Debian-like system")
    with tempfile.TemporaryDirectory(prefix="debian-", dir=errand.partial) as folder:
        errand.line.update(f"data set {errand.dataset.name}: {source}", force=True)
        package = _apt_download(source.package, Path(folder), errand.patience)
        tree = Path(folder, "tree")
        process.call(["dpkg-deb", "--extract", package, tree])
        _copy(errand, tree / source.path)


def _apt_download(package: str, folder: Path, patience: float) -> Path:
    """Fetch a package, with package lists of our own where the system's are missing or out of date (as in an image)."""
    try:
        _apt(folder, patience, "download", package)
    except CommandFailed as error:
        if re.search(r"connect|resolv", error.output, re.IGNORECASE):
            raise
        own = [f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}/cache", "Acquire::Languages=none"]
        Path(folder, "lists", "partial").mkdir(parents=True)
        Path(folder, "cache", "archives", "partial").mkdir(parents=True)
        with contextlib.suppress(CommandFailed):  # one source list of several may be broken: the download tells
            _apt(folder, patience, "update", options=own)
        _apt(folder, patience, "download", package, options=own)
    return next(folder.glob("*.deb"))


def _apt(folder: Path, patience: float, *words: str, options: Iterable[str] = ()) -> None:
    # Sandbox: where root calls, apt's own user could not write here. RES_OPTIONS: a silent name server, see resolv.conf(5).
    limits = [f"Acquire::{scheme}::Timeout={2 * patience:.0f}" for scheme in ("http", "https")]
    settings = [*limits, "Acquire::Retries=0", "APT::Sandbox::User=root", *options]
    env = {**os.environ, "LC_ALL": "C", "RES_OPTIONS": f"timeout:{patience:.0f} attempts:1"}
    process.call(["apt-get", "-q", *(f"-o{setting}" for setting in settings), *words], env=env, cwd=folder)


def _complaint(error: CommandFailed) -> str:
    """Return the line in which apt or dpkg says what is wrong."""
    lines = [line for line in error.output.splitlines() if line.startswith(("E: ", "dpkg-deb: error: "))]
    return lines[0].removeprefix("E: ") if lines else str(error)


# Downloads


def _download(errand: _Errand, mirror: Mirror) -> None:
    _reach(mirror.url, errand.patience)
    opener = _opener()
    for name in tuple(errand.missing):
        resumed = (errand.partial / name).exists()
        _download_file(errand, opener, mirror, name)
        try:
            errand.accept(name)
        except _Refused:
            if not resumed:
                raise
            _download_file(errand, opener, mirror, name)  # perhaps only what an earlier run had left was wrong
            errand.accept(name)


def _download_file(errand: _Errand, opener: urllib.request.OpenerDirector, mirror: Mirror, name: str) -> None:
    """Fetch a file, and go on where it was cut off as long as that gets it any further."""
    from http.client import HTTPException
    from urllib.error import HTTPError

    target, idle, reason = errand.partial / name, 0, ""
    while idle < TRIES:
        before = _size(target)
        try:
            if _receive(errand, opener, mirror.address(name), target):
                return
            reason = "the connection ended early"
        except HTTPError as error:
            if error.code != 416:
                raise _Refused(f"{name}: {error.code} {error.reason}") from error
            target.unlink(missing_ok=True)  # more than the server has: what is there cannot be the beginning
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and (error.errno in (errno.ENOSPC, errno.EDQUOT) or _is_untrusted(error)):
                raise
            reason = _why(error)
        idle = 0 if _size(target) - before >= CHUNK else idle + 1
        time.sleep(0.1 * idle)
    raise _Refused(f"{name}: cut off after {_size(target)} bytes, {TRIES} times: {reason}")


def _receive(errand: _Errand, opener: urllib.request.OpenerDirector, url: str, target: Path) -> bool:
    """Append what one connection brings, and tell whether that is all."""
    from urllib.request import Request

    start, limit = _size(target), errand.dataset.sizes.get(target.name)
    if start and start == limit:
        return True
    request = Request(
        url, headers={"User-Agent": "tensorflow-runner", **({"Range": f"bytes={start}-"} if start else {})}
    )
    with opener.open(request, timeout=STALL) as answer:
        resumes = answer.status == 206
        got, length = start if resumes else 0, answer.headers.get("Content-Length")
        whole = got + int(length) if length else limit
        with target.open("ab" if resumes else "wb") as file:
            while chunk := answer.read1(CHUNK):
                got += file.write(chunk)
                errand.show(target.name, got)
                if limit is not None and got > limit:
                    break
    if limit is not None and got > limit:
        target.unlink()
        raise _Refused(f"{target.name}: sends more than the {limit} bytes that are expected")
    return whole is None or got >= whole


def _reach(url: str, seconds: float) -> None:
    """Connect once within a time: neither a silent name server nor a silent network may hold up a run for minutes."""
    host, port = _peer(url)
    outcome: list[OSError | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds / 2).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome or isinstance(outcome[0], TimeoutError):
        raise _Silence(f"no connection within {seconds:g} s")
    if outcome[0] is not None:
        raise outcome[0]


def _peer(url: str) -> tuple[str, int]:
    """Return the host and port to connect to: the proxy's, where the environment names one for this address."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.netloc):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _opener() -> urllib.request.OpenerDirector:
    """Return what opens http and https addresses and nothing else, wherever a redirect may point."""
    import urllib.request as request

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.UnknownHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(context=_trust()),
        request.HTTPDefaultErrorHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _trust() -> ssl.SSLContext:
    """Return the system's certificates, and those that the first of the variables names."""
    import ssl

    context = ssl.create_default_context()
    given = packages.settings()
    variable = next((variable for variable in packages.CA_VARIABLES if variable in given), None)
    if variable:
        bundle = os.fspath(Path(given[variable]).expanduser())
        try:
            context.load_verify_locations(**{"capath" if Path(bundle).is_dir() else "cafile": bundle})
        except OSError as error:
            raise _Refused(f"{variable} names no readable file of certificates") from error
    return context


def _is_untrusted(error: BaseException) -> bool:
    import ssl

    return isinstance(_cause(error), ssl.SSLCertVerificationError)


def _cause(error: BaseException) -> BaseException:
    """Return what urllib's URLError stands for."""
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, BaseException) else error


def _why(error: BaseException) -> str:
    """Return a network's or a file's error in words."""
    cause = _cause(error)
    if isinstance(cause, socket.gaierror):
        return "the name of the host is not known here (no network?)"
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if _is_untrusted(cause):
        detail = getattr(cause, "verify_message", "")
        *others, last = packages.CA_VARIABLES
        return f"its TLS certificate is not trusted ({detail}). {', '.join(others)} or {last} can name the certificates to trust"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror + (f": {cause.filename}" if cause.filename else "")
    return str(cause) or type(cause).__name__


# Hashes, remembered


def _checksums(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of those files that exist, reading only what changed in size or time since the last time."""
    known = _recall(root)
    with terminal.ProgressLine() as line:
        entries = {name: _entry(root, name, known.get(name), line) for name in names}
    found = {name: entry for name, entry in entries.items() if entry is not None}
    if any(known.get(name) != entry for name, entry in found.items()):
        _write_memory(root, {**known, **found})
    return {name: entry[2] for name, entry in found.items()}


def _entry(root: Path, name: str, known: _Entry | None, line: terminal.ProgressLine) -> _Entry | None:
    path = root / name
    try:
        stamp = _stamp(path)
        if known and tuple(known[:2]) == stamp:
            return known
        return [*stamp, _sha256(path, _meter(line, name, stamp[0]))]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {_why(error)}.") from error


def _meter(line: terminal.ProgressLine, name: str, total: int) -> Callable[[int], None]:
    return lambda done: line.update(f"verifying {terminal.bar(done, total)} {name}")


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _sha256(path: Path, advance: Callable[[int], None] = lambda done: None) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            advance(done)
    return digest.hexdigest()


def _memory(root: Path) -> Path:
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return resources.cache("data", f"hashes-{key}.json")


def _recall(root: Path) -> dict[str, _Entry]:
    try:
        found = json.loads(_memory(root).read_text("ascii"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(root: Path, name: str, sha256: str) -> None:
    _write_memory(root, {**_recall(root), name: [*_stamp(root / name), sha256]})


def _write_memory(root: Path, entries: Mapping[str, _Entry]) -> None:
    """Keep the hashes for the next time; where the cache cannot be written they are computed again."""
    path = _memory(root)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(entries), "ascii")
        temporary.replace(path)


def _walk(root: Path) -> Iterator[str]:
    """Yield the path of each file below a directory, links followed, each folder once."""
    seen: set[Path] = set()
    for folder, below, files in os.walk(root, followlinks=True):
        here = Path(folder)
        if here.resolve() in seen:
            below.clear()
            continue
        seen.add(here.resolve())
        yield from ((here / name).relative_to(root).as_posix() for name in files if (here / name).is_file())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
