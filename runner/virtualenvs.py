"""Virtualenvs made from the text of a lock, once per lock and Python, kept in the runner's cache.

A virtualenv is made under a temporary name and renamed when it is whole, so that one with its final name can be used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from runner import bytecode, locks, packages, resources
from runner.errors import EnvironmentFailed
from runner.interpreters import Interpreter, Search
from runner.terminal import ProgressLine, duration

_MARKER = "runner.json"
T = TypeVar("T")


@dataclass(frozen=True)
class Virtualenv:
    path: Path
    python: Path
    python_version: str
    created: bool


@dataclass(frozen=True)
class Installed:
    path: Path
    label: str
    lock_hash: str
    python_version: str
    bytes: int
    last_used: float


def lock_hash(text: str) -> str:
    """Return the SHA-256 over a lock's requirements; comments, blank lines and line ends do not count."""
    lines = (line.strip() for line in text.splitlines())
    return hashlib.sha256("\n".join(line for line in lines if line and not line.startswith("#")).encode()).hexdigest()


def ensure(lock_text: str, pythons: Sequence[str], label: str, prefer_python: str | None = None) -> Virtualenv:
    """Return the virtualenv of a lock, made now if there is none; `pythons` are the minors it may have, best first."""
    preferred = [python for python in pythons if prefer_python and f"{prefer_python}.".startswith(f"{python}.")]
    minors = [*preferred, *(python for python in pythons if python not in preferred)]
    digest = lock_hash(lock_text)
    search = Search()
    for some in ([preferred] if preferred else []) + [minors]:
        found = _existing(digest, some)
        if found:
            return found
        interpreter = search.local(some)
        if interpreter:
            return _made(lock_text, label, interpreter)
    with ProgressLine() as line:
        interpreter = _watched(lambda: search.downloaded(minors, label), line, f"environment {label}: fetching Python")
    return _made(lock_text, label, interpreter)


def installed() -> list[Installed]:
    """Return all virtualenvs in the cache."""
    return [_describe(marker) for marker in sorted(_root().glob(f"[!.]*/{_MARKER}"))]


def remove(path: Path) -> None:
    """Delete a virtualenv, when nobody is making it."""
    with _locked(_key_of(path), path.name):
        if path.exists():
            _discard(path)


def unused_downloads(removed: Sequence[Path] = ()) -> list[tuple[Path, int]]:
    """Return the unpacked packages that no virtualenv is linked to once those in `removed` are gone, and the bytes freed.

    Nothing while a virtualenv is being made, and nothing of a cache that the user gave uv for all that he does.
    """
    if os.environ.get("UV_CACHE_DIR") or any(_root().glob(".*.partial")):
        return []
    links = Counter(status.st_ino for path in removed for status in _files(path))
    found = []
    for folder in packages.download_cache().glob("archive-v*/*"):
        files = list(_files(folder))
        if all(status.st_nlink - links[status.st_ino] <= 1 for status in files):
            # What a removed virtualenv shares is counted with that.
            found.append((folder, sum(status.st_size for status in files if not links[status.st_ino])))
    return found


def _root() -> Path:
    return resources.cache("environments")


def _key(digest: str, minor: str) -> str:
    return f"{digest[:12]}-py{minor}"


def _key_of(path: Path) -> str:
    return "-".join(path.name.split("-")[-2:])


def _existing(digest: str, minors: Sequence[str]) -> Virtualenv | None:
    for minor in minors:
        for path in _root().glob(f"[!.]*-{_key(digest, minor)}"):
            # The interpreter that it was made from may be gone since: then the link points nowhere.
            if (path / _MARKER).is_file() and (path / "bin" / "python").exists():
                return _used(path)
    return None


def _used(path: Path, *, created: bool = False) -> Virtualenv:
    marker = path / _MARKER
    with contextlib.suppress(OSError):  # a cache that is read-only for this user
        os.utime(marker)
    return Virtualenv(path, path / "bin" / "python", json.loads(marker.read_text())["python_version"], created)


def _describe(marker: Path) -> Installed:
    told = json.loads(marker.read_text())
    return Installed(
        marker.parent, told["label"], told["lock_hash"], told["python_version"], told["bytes"], marker.stat().st_mtime
    )


def _made(lock_text: str, label: str, interpreter: Interpreter) -> Virtualenv:
    digest = lock_hash(lock_text)
    key = _key(digest, interpreter.minor)
    with _locked(key, label):
        found = _existing(digest, [interpreter.minor])  # another runner made it while this one waited
        if found:
            return found
        for leftover in _root().glob(f".{key}.*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = _root() / f".{key}.{uuid.uuid4().hex[:8]}.partial"
        try:
            _install(partial, lock_text, label, interpreter)
            return _finish(partial, _root() / f"{label}-{key}", label, digest, interpreter)
        except OSError as failure:
            reason = packages.explain(str(failure), str(failure))
            raise EnvironmentFailed(f"environment {label} could not be made. {reason}") from failure
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _finish(partial: Path, path: Path, label: str, digest: str, interpreter: Interpreter) -> Virtualenv:
    """Write the marker and give a whole virtualenv its name."""
    told: dict[str, Any] = {
        "label": label,
        "lock_hash": digest,
        "python_version": interpreter.version,
        "bytes": sum(status.st_size for status in _files(partial)),
    }
    (partial / _MARKER).write_text(json.dumps(told, indent=1) + "\n")
    if path.exists():
        _discard(path)
    partial.rename(path)
    return _used(path, created=True)


def _install(partial: Path, lock_text: str, label: str, interpreter: Interpreter) -> None:
    doing = f"making the environment {label}"
    packages.uv("venv", "--no-project", "--relocatable", "--python", interpreter.path, partial, doing=doing)
    names = re.findall(r"^([\w.-]+)\s*==", lock_text, re.MULTILINE)
    if not names:
        return
    with ProgressLine() as line:
        if not line.active:
            print(f"{doing} (once)", file=sys.stderr, flush=True)
        title, count = f"environment {label}", len(set(names))
        try:  # without asking the index, for all may be in uv's cache
            _watched(
                lambda: _sync(partial, lock_text, doing, "--offline"), line, f"{title}: installing {count} packages"
            )
        except EnvironmentFailed:
            _watched(lambda: _sync(partial, lock_text, doing), line, f"{title}: downloading {count} packages")
        _watched(lambda: bytecode.compile_all(partial), line, f"{title}: compiling")


def _sync(partial: Path, lock_text: str, doing: str, *options: str) -> None:
    lock = partial / "runner.lock"
    lock.write_text(lock_text)
    # The lock is also the constraint of what builds an sdist, since that must not change either.
    into = ("--python", partial / "bin" / "python")
    packages.uv("pip", "sync", *into, "--require-hashes", "--build-constraints", lock, lock, *options, doing=doing)


def _watched(work: Callable[[], T], line: ProgressLine, title: str) -> T:
    """Do some work in a thread, and show for how long it has been going."""
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        while wait([future], timeout=0.2).not_done:
            line.update(f"{title} … {duration(time.monotonic() - began)}")
        return future.result()


def _locked(key: str, label: str) -> contextlib.AbstractContextManager[None]:
    return locks.held(_root() / f".{key}.lock", f"environment {label}")


def _discard(path: Path) -> None:
    """Delete a folder such that nobody finds a half of it under its name."""
    doomed = path.with_name(f".{_key_of(path)}.{uuid.uuid4().hex[:8]}.partial")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _files(folder: Path) -> Iterator[os.stat_result]:
    return ((Path(where) / name).lstat() for where, _, names in os.walk(folder) for name in names)
