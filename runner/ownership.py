"""Whose a container's files are: the caller's; where root asks, the volume's owner's, since no container runs as root."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path

from runner.engines import Engine
from runner.errors import RunnerError, UsageError
from runner.specs import Run

NOBODY = 10001  # where root asks, and the volume is root's
OURS = (".runner", ".prove-")  # how names begin that the runner itself puts on a volume


def user_of(engine: Engine, run: Run) -> tuple[int, int]:
    """Return the uid and gid of the container's processes."""
    if run.user:
        return run.user
    if engine.rootless:
        return 0, 0  # this user, seen from outside
    if os.getuid():
        return os.getuid(), os.getgid()
    with contextlib.suppress(OSError):
        found = run.volume.stat()
        if found.st_uid:
            return found.st_uid, found.st_gid or found.st_uid
    return NOBODY, NOBODY


def refuse(run: Run, user: tuple[int, int]) -> None:
    """Refuse what the container's user could not write, before anything is created."""
    if os.getuid():
        _refuse_others(run)
    elif user[0] and _is_roots(run.volume):
        _refuse_shared(run.volume, user)


def refuse_unreadable(run: Run, user: tuple[int, int]) -> None:
    """Refuse a folder of data that root gives and the container's user could not read."""
    for name, (_, given) in run.data.items():
        if given and os.getuid() == 0 and user[0] and not _readable(given, user):
            raise UsageError(
                f"--data {name}={given}: uid {user[0]}, as whom the container runs, cannot read it. "
                f"Allow it (chmod o+rx {shlex.quote(str(given))}), or give its owner with --user."
            )


def _readable(folder: Path, user: tuple[int, int]) -> bool:
    state = folder.stat()
    shift = 6 if state.st_uid == user[0] else 3 if state.st_gid == user[1] else 0
    return state.st_mode >> shift & 0o5 == 0o5


def _refuse_others(run: Run) -> None:
    if run.user and run.user[0] != os.getuid():
        raise UsageError(f"--user {run.user[0]}: only root can run a job as another user. Leave it out: it is yours.")
    try:
        owner = run.directory.stat().st_uid
    except FileNotFoundError:
        return
    if owner != os.getuid():
        raise UsageError(
            f"{run.directory} belongs to uid {owner}, so a container of yours could not write there. "
            f"Take it over with: sudo chown -R {os.getuid()}:{os.getgid()} {shlex.quote(str(run.directory))}"
        )


def _refuse_shared(volume: Path, user: tuple[int, int]) -> None:
    """Refuse to give root's folder away where other things than runs are in it: who owns a folder rules what is in it."""
    others = [path for path in volume.iterdir() if not path.name.startswith(OURS) and not _is_runs(path)]
    if others or volume.parent == volume:
        what = f" and holds {others[0].name}" if others else ""
        raise UsageError(
            f"the volume {volume} belongs to root{what}; no container runs as root, and the whole folder would have to "
            f"be given to uid {user[0]}. Give a folder for runs alone: mkdir {shlex.quote(str(volume / 'runs'))}, and --volume."
        )


def _is_roots(volume: Path) -> bool:
    """Return whether a volume is root's alone, so that a container's user could not make or rename folders there."""
    state = volume.stat()
    return state.st_uid == 0 and not state.st_mode & 0o002


def _is_runs(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and ((path / "request.json").exists() or not any(path.iterdir()))


def hand_over(run: Run, user: tuple[int, int]) -> None:
    """Where root asks: give the run's directory, and a volume that is root's own, to the container's user."""
    if os.getuid() != 0 or user[0] == 0:
        return
    try:
        run.directory.mkdir(exist_ok=True)
        if _is_roots(run.volume):
            os.chown(run.volume, *user)
        for path in (run.directory, *run.directory.rglob("*")):
            if path.lstat().st_uid != user[0]:
                os.lchown(path, *user)
    except OSError as error:
        raise RunnerError(f"{run.directory} cannot be given to uid {user[0]}: {error.strerror}.") from error
