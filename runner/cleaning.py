"""Removes runs, and what nothing needs: always says what and how much first."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from runner import (
    backends,
    datasets,
    engines,
    environments,
    handovers,
    proof,
    resources,
    run_directory,
    runs,
    terminal,
    virtualenvs,
)
from runner.engines import Engine
from runner.errors import EngineFailed, RunnerError, UsageError
from runner.listing import folder_size

REMOVED = ".runner/removed"  # on a volume: what is being deleted
PROBE = ".runner-probe-"  # on a volume: with what an engine is asked whether it sees it
IN_USE = 600  # seconds: no check of an engine takes longer


@dataclass(frozen=True, kw_only=True)
class Waste:
    """Something that nothing needs, why, and how big it is."""

    path: Path
    why: str
    bytes: int
    used: float  # when it was last needed
    parts: tuple[Path, ...] = ()  # where only these folders in it are waste
    discard: Callable[[], bool | None] | None = None  # where it is no folder; it returns False where it could not


def remove_run(run: runs.Found, files: bool) -> None:
    """Remove what a backend keeps of a run; its directory only with `files`, holding its lock."""
    if run.going:
        raise UsageError(f"{run.name} is going. Stop it first: {runs.command('stop', run)}")
    for name in run.backends:
        try:
            backends.get(name).remove(run)
        except EngineFailed as error:  # an engine that is gone for good must not keep its runs here
            print(f"what {name} may keep of {run.name} was not removed: {error}", file=sys.stderr)
    if not files:
        print(f"{run.name} is removed; its directory stays (--files removes it): {run.directory}", file=sys.stderr)
        return
    size = folder_size(run.directory)
    _remove_directory(run.directory)
    print(f"{run.directory} is removed, {terminal.size(size)}", file=sys.stderr)


def _remove_directory(directory: Path) -> None:
    lock = run_directory.Lock(str(directory), "rm")
    try:
        lock.acquire()
    except run_directory.Refusal as error:
        raise UsageError(f"{directory.name} cannot be removed: {error}") from error
    except OSError as error:
        raise RunnerError(f"{directory} cannot be removed: {error.strerror}.") from error
    # Out of the way first: no half of a run is left if this is cut off, and a drive may keep what is open (our lock).
    doomed = directory.parent / REMOVED / f"{directory.name}-{secrets.token_hex(4)}"
    try:
        doomed.parent.mkdir(parents=True, exist_ok=True)
        directory.rename(doomed)
    except OSError as error:
        raise RunnerError(f"{directory} cannot be removed: {error.strerror}.") from error
    finally:
        lock.release()
    _delete(doomed)


def _delete(doomed: Path) -> None:
    """Delete what stands in a volume's folder of removed runs, and the folder with the last of them."""
    try:
        shutil.rmtree(doomed)
    except OSError as error:
        raise RunnerError(
            f"{error.filename} cannot be removed: {error.strerror}. `runner rm --unused` tries again."
        ) from error
    with contextlib.suppress(OSError):  # there is more in it
        doomed.parent.rmdir()
        doomed.parent.parent.rmdir()


def remove_unused(places: list[Path], backend: str | None, older: str | None, yes: bool) -> None:
    """List what nothing needs, ask, and delete it."""
    limit = time.time() - _age(older)
    found = [waste for waste in _unused(places, backend) if waste.used <= limit]
    found += [waste for waste in _unused_downloads([waste.path for waste in found]) if waste.used <= limit]
    if not found:
        print("nothing is unused", file=sys.stderr)
        return
    terminal.table(
        ["size", "what", "path"], [[terminal.size(waste.bytes), waste.why, str(waste.path)] for waste in found]
    )
    total = terminal.size(sum(waste.bytes for waste in found))
    if not yes:
        refusal = f"nothing was removed: {total} would be freed. Say --yes to remove it without being asked."
        terminal.confirm(f"Remove all this and free {total}?", refusal)
    freed = sum(waste.bytes for waste in found if _remove(waste))
    print(f"freed {terminal.size(freed)}", file=sys.stderr)


def _age(older: str | None) -> float:
    """Return seconds."""
    match = re.fullmatch(r"(\d+)([dhm])", older or "0d")
    if not match:
        raise UsageError(f"--older {older}: an age is given as 30d, 12h or 90m.")
    return int(match[1]) * {"d": 86400, "h": 3600, "m": 60}[match[2]]


def _unused(places: list[Path], backend: str | None) -> Iterator[Waste]:
    yield from _unused_runs(places, backend)
    # Whatever is to be cleaned: a run on any volume that is known, and one that is going on any other, has needs.
    everywhere = runs.on_volumes(list(dict.fromkeys([*places, *runs.places()])))
    requests = [run.request for run in everywhere if not _is_waste(run)] + handovers.requests_in_use()
    locks = {str(request.get("lock")) for request in requests}
    yield from _unused_environments(locks)
    yield from _unused_on_engine(requests)
    yield from _unused_files_of_builds()
    yield from _unused_data([request.get("data") or {} for request in requests])
    yield from _unused_bytecode()
    for folder in resources.cache("submissions").glob("*"):
        if not handovers.in_use(folder):
            yield _folder(folder, "hand-over of a run")


def _unused_runs(places: list[Path], backend: str | None) -> Iterator[Waste]:
    for run in runs.on_volumes(places, backend):
        if _is_waste(run):
            why = "failed run" if "." not in run.name else "kept by --fresh"
            used = float(run.record.get("ended") or run.directory.stat().st_mtime)
            yield Waste(path=run.directory, why=why, bytes=folder_size(run.directory), used=used)
    for place in runs.distinct(places):
        yield from (_folder(folder, "rest of a check of the engine") for folder in _old(place.glob(f"{PROBE}*")))
        yield from (_folder(folder, "rest of a proof") for folder in proof.leftovers(place))
        yield from (_folder(folder, "rest of a removed run") for folder in (place / REMOVED).glob("*"))


def _is_waste(run: runs.Found) -> bool:
    return not run.going and (run.state == "failed" or re.fullmatch(r".+\.\d+", run.name) is not None)


def _unused_environments(needed: set[str]) -> Iterator[Waste]:
    rows = {virtualenvs.lock_hash(row.lock.read_text()) for row in environments.load().values() if row.lock.is_file()}
    for made in virtualenvs.installed():
        if made.lock_hash not in needed:
            why = "environment that no run needs" if made.lock_hash in rows else "environment of a lock that is no more"
            yield Waste(path=made.path, why=why, bytes=made.bytes, used=made.last_used)


def _old(paths: Iterable[Path]) -> Iterator[Path]:
    """Give those that nobody can be at work with."""
    return (path for path in paths if path.stat().st_mtime < time.time() - IN_USE)


def _unused_on_engine(requests: Sequence[Mapping[str, Any]]) -> Iterator[Waste]:
    """Give the containers that have ended and the images that no run needs; an engine that does not answer is left alone."""
    if not engines.configured():
        return
    from runner.backends import docker

    try:
        engine = engines.connect(engines.QUICK)
        ended = docker.ended(engine)
        for one in ended:
            yield Waste(
                path=Path(one.name), why="container that has ended", bytes=0, used=one.used,
                discard=partial(docker.discard, engine, one.id),
            )  # fmt: skip
        yield from _unused_images(engine, requests, {one.id for one in ended})
        yield from _unused_probes(engine)
    except EngineFailed as error:
        print(f"docker was not asked: {error}", file=sys.stderr)


def _unused_images(engine: Engine, requests: Sequence[Mapping[str, Any]], ended: Container[str]) -> Iterator[Waste]:
    """Give the images that no run needs, then what builds have left in the engine's cache.

    A run needs the one that it ran in, and the current one of its lock: natively begun, it may go on in a container.
    Runs of others on this engine are known by their containers only.
    """
    from runner import buildx, images

    here = {str(request.get("container")) for request in requests}
    locks = {str(request.get("lock")) for request in requests}
    unknown = {str(request.get("lock")) for request in requests if "container" not in request and _in_docker(request)}
    busy = {one["ImageID"] for one in engine.api.containers(all=True) if one["Id"] not in ended}
    made, own = images.made(engine), images.own_bytes(engine)
    unused = []
    for image in made:
        lock = str(image.labels.get("runner.lock"))
        needed = image.reference in here or lock in unknown or (image.current and lock in locks)
        if not needed and image.id not in busy:
            unused.append(image)
    for image in unused:
        # Only what it shares with no other image is freed.
        yield Waste(
            path=Path(image.reference), why="image that no run needs (on the known volumes)", bytes=own.get(image.id, 0),
            used=image.used, discard=partial(images.remove, engine, image.id),
        )  # fmt: skip
    left = buildx.left_in_cache(engine, packages_too=len(unused) == len(made))
    if left:
        yield Waste(
            path=Path("build cache of the engine"), why="layers and packages of images that are no more",
            bytes=sum(one.bytes for one in left), used=max(one.used for one in left),
            discard=partial(buildx.forget, engine, [one.id for one in left]),
        )  # fmt: skip


def _unused_probes(engine: Engine) -> Iterator[Waste]:
    """Give the empty images that an engine was asked for GPUs with, by a runner that was killed meanwhile."""
    for image in engine.api.images(name="runner-probe"):
        if image["Created"] < time.time() - IN_USE:
            yield Waste(
                path=Path(image["RepoTags"][0]), why="rest of a check of the engine", bytes=0, used=float(image["Created"]),
                discard=partial(_remove_probe, engine, image["Id"]),
            )  # fmt: skip


def _remove_probe(engine: Engine, image: str) -> None:
    from runner import images
    from runner.backends import docker

    for container in engine.api.containers(all=True, filters={"ancestor": image}):
        docker.discard(engine, container["Id"])
    images.remove(engine, image)


def _in_docker(request: Mapping[str, Any]) -> bool:
    return request.get("backend") == "docker"


def _unused_files_of_builds() -> Iterator[Waste]:
    from runner import buildx

    for path in buildx.unused_files():
        why = "uv of another version, for builds" if path.is_dir() else "lock of a build that was killed"
        yield Waste(
            path=path, why=why, bytes=folder_size(path) if path.is_dir() else 0, used=path.stat().st_mtime,
            discard=None if path.is_dir() else partial(path.unlink, missing_ok=True),
        )  # fmt: skip


def _unused_data(needed: list[Mapping[str, Mapping[str, str]]]) -> Iterator[Waste]:
    sets = [datasets.DataSet(name, files) for data in needed for name, files in data.items()]
    names = {f"{one.name}-{one.digest[:8]}" for one in sets}
    for folder in resources.cache("data").iterdir() if resources.cache("data").is_dir() else ():
        if folder.is_dir() and folder.name.removesuffix(".partial") not in names:
            yield _folder(folder, "data set that no run needs")


def _unused_downloads(removed: list[Path]) -> Iterator[Waste]:
    """Give the packages that nothing is linked to once `removed` is gone, as one: there are dozens of each environment."""
    made = [path for path in removed if path.parent == resources.cache("environments")]
    found = virtualenvs.unused_downloads(made)
    if found:
        paths = tuple(path for path, _ in found)
        used = max(path.stat().st_mtime for path in paths)
        size = sum(size for _, size in found)
        yield Waste(path=paths[0].parent, parts=paths, why="packages that no environment uses", bytes=size, used=used)


def _unused_bytecode() -> Iterator[Waste]:
    """Give the folders of compiled code that no environment shares any more."""
    for folder in resources.cache("bytecode").glob("*"):
        if all(path.stat().st_nlink == 1 for path in folder.iterdir()):
            yield _folder(folder, "compiled code that no environment uses")


def _folder(path: Path, why: str) -> Waste:
    return Waste(path=path, why=why, bytes=folder_size(path), used=path.stat().st_mtime)


def _remove(waste: Waste) -> bool:
    """Remove it, and return whether that was done."""
    if waste.discard:
        return waste.discard() is not False
    if waste.parts:
        for path in waste.parts:
            shutil.rmtree(path, ignore_errors=True)
    elif waste.path.parent == resources.cache("environments"):
        virtualenvs.remove(waste.path)
    elif waste.path.name.startswith(proof.PREFIX):
        proof.remove(waste.path)
    elif waste.path.parent.match(REMOVED):
        _delete(waste.path)
    elif (waste.path / "request.json").exists() and waste.path.parent != resources.cache("submissions"):
        _remove_directory(waste.path)
    else:
        shutil.rmtree(waste.path, ignore_errors=True)
    return True
