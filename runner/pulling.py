"""Copies the results of a run to where somebody wants them; resumable, and also while the run is going."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from runner import run_directory, runs, terminal
from runner.errors import RunnerError, UsageError

RESULTS = ("report.json", "metrics.jsonl", "model", "pictures", "tensorboard", "logs", "run.json", "request.json")
PAUSE = 2.0  # seconds between two rounds of `-f`


def pull(run: runs.Found, target: Path | None, *, follow: bool, everything: bool) -> None:
    """Copy results into `target` (./<run> by default); with `follow` again and again until the run ends."""
    folder = Path(os.path.expanduser(target or run.name)).absolute()  # noqa: PTH111 (as in projects.py)
    _refuse_bad(folder, run)
    wanted = _wanted(run, everything)
    print(
        f"{run.name}: {len(wanted)} files, {terminal.size(sum(size for _, size in wanted))}, to {folder}",
        file=sys.stderr,
    )
    try:
        _copy_all(run, folder, everything)
        while follow and (now := runs.load(run.directory)) and now.going:
            time.sleep(PAUSE)
            _copy_all(run, folder, everything)
        if follow:
            _copy_all(run, folder, everything)
    except OSError as error:
        raise RunnerError(
            f"{error.filename} could not be copied: {error.strerror}. The same command goes on where it stopped."
        ) from error


def _refuse_bad(folder: Path, run: runs.Found) -> None:
    """Refuse to write into a run, where only its launcher may write, or beside one, where it would look like a run."""
    there, own = folder.resolve(), run.directory.resolve()
    if there.is_relative_to(own) or (there / ".lock").exists():
        raise UsageError(f"{folder} is a run's own directory. Give another folder.")
    if there.parent == own.parent:
        raise UsageError(f"{folder} is on the volume, where it would look like a run. Give a folder elsewhere.")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a directory. Give another folder.")


def _copy_all(run: runs.Found, folder: Path, everything: bool) -> None:
    wanted = _wanted(run, everything)
    total, done = sum(size for _, size in wanted), 0
    with terminal.ProgressLine() as line:
        for relative, size in wanted:
            line.update(f"{terminal.bar(done, total)} {terminal.size(done)} of {terminal.size(total)}  {relative}")
            _copy(run.directory / relative, folder / relative)
            done += size


def _copy(source: Path, target: Path) -> None:
    """Copy a file unless it is there already, or the run has removed it in the meantime; never leave half of one."""
    try:
        content = source.open("rb")
    except FileNotFoundError:
        return
    with content:
        state = os.fstat(content.fileno())
        if _is_there(target, state):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        with partial.open("wb") as copy:
            shutil.copyfileobj(content, copy, 1 << 20)
    os.utime(partial, (state.st_atime, state.st_mtime))
    partial.replace(target)


def _is_there(target: Path, state: os.stat_result) -> bool:
    if not target.exists():
        return False
    there = target.stat()
    return (there.st_size, int(there.st_mtime)) == (state.st_size, int(state.st_mtime))


def _wanted(run: runs.Found, everything: bool) -> list[tuple[Path, int]]:
    if not everything:
        return sorted(_results(run))
    return sorted(
        entry for entry in _all(run.directory) if entry[0].parts[0] != "home"
    )  # what libraries keep for themselves


def _results(run: runs.Found) -> Iterator[tuple[Path, int]]:
    for name in RESULTS:
        path = run.directory / name
        if path.is_dir():
            yield from ((Path(name) / relative, size) for relative, size in _all(path))
        elif path.is_file():
            with contextlib.suppress(FileNotFoundError):
                yield Path(name), path.stat().st_size
    yield from _written(run)


def _written(run: runs.Found) -> Iterator[tuple[Path, int]]:
    """Give what the job wrote in work/: what is not in the snapshot, or is no longer as it was there."""
    folder = Path("work") / str(run.request.get("folder", ""))
    code = run.request.get("code", {})
    for relative, size in _all(run.directory / folder):
        known = code.get(relative.as_posix())
        if "__pycache__" not in relative.parts and known != _hash(run.directory / folder / relative, known):
            yield folder / relative, size


def _hash(path: Path, known: str | None) -> str | None:
    """Return a file's hash where there is one to compare with: that of a file that is no more is not another one."""
    try:
        return run_directory.code_hash(str(path)) if known else ""
    except FileNotFoundError:
        return known


def _all(folder: Path) -> Iterator[tuple[Path, int]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            with contextlib.suppress(FileNotFoundError):  # the run replaced it in the meantime
                if path.is_file() and not name.startswith((".lock", ".clock", ".writable", ".reserve")):
                    yield path.relative_to(folder), path.stat().st_size
