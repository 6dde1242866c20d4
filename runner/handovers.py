"""The folder that a launcher is started from: launch.py, the request, the project's archive and the checkpoint module.

One per submission, in the runner's cache, for this user alone. A run that is going needs the one of its submission.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner import projects, resources, run_directory, runs
from runner.errors import RunnerError
from runner.runs import Found
from runner.specs import Run

FILES = ("launch.py", "run_directory.py", "machine.py", "gpus.py", "output.py")


def root() -> Path:
    """Return the folder of all hand-overs."""
    folder = resources.cache("submissions")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def path(run: Run) -> Path:
    """Return where the hand-over of a submission is."""
    return resources.cache("submissions", f"{run.name}-{run.request['submission']}")


def write(run: Run, folder: Path, owner: tuple[int, int] | None = None) -> None:
    """Write the hand-over of a submission, for another user where one is given; those that no launcher needs go."""
    for old in _of(run.name):
        if not in_use(old):
            shutil.rmtree(old, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)  # the archive has all files of the project, whoever may read them there
        (folder / "lib").mkdir()
        for name in FILES:
            shutil.copyfile(resources.data("jobs", name), folder / name)
        shutil.copyfile(resources.data("jobs", "runner_checkpoint.py"), folder / "lib" / "runner_checkpoint.py")
        projects.archive(run.code, folder / "project.tar")
        (folder / "directory").write_bytes(os.fsencode(run.directory))
        (folder / "runner.lock").write_text(run.lock)
        (folder / "request.json").write_text(json.dumps(dict(run.request)))
        if owner:
            for one in (folder, *folder.rglob("*")):
                os.chown(one, *owner)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RunnerError(
            f"the request could not be written to {folder}: {error.strerror}. RUNNER_CACHE moves the cache."
        ) from error


def remove(run: Found) -> None:
    """Remove the hand-overs of a run that is not going."""
    for folder in _of(run.name):
        if _directory(folder) == run.directory or not in_use(folder):
            shutil.rmtree(folder, ignore_errors=True)


def tidy(run: Found) -> None:
    """Remove the project's archive of a run that has ended, which its launcher needs no more."""
    for folder in _of(run.name):
        if _directory(folder) == run.directory:
            (folder / "project.tar").unlink(missing_ok=True)


def in_use(folder: Path) -> bool:
    """Return whether a launcher works from this hand-over, or is about to: a run of this name on any volume may."""
    try:
        if time.time() - folder.stat().st_mtime < 60:
            return True
    except FileNotFoundError:
        return False
    directory = _directory(folder)
    run = runs.load(directory) if directory else None
    return run is not None and run.going and folder.name.endswith(str(run.record.get("submission")))


def requests_in_use() -> list[Mapping[str, Any]]:
    """Return what launchers were asked that work now, also on volumes that nobody remembers."""
    folders = [folder for folder in resources.cache("submissions").glob("*") if in_use(folder)]
    return [run_directory.read_json(str(folder / "request.json")) or {} for folder in folders]


def _directory(folder: Path) -> Path | None:
    """Return the directory of the run that a hand-over is for."""
    try:
        return Path(os.fsdecode((folder / "directory").read_bytes()))
    except OSError:
        return None


def _of(name: str) -> list[Path]:
    return list(resources.cache("submissions").glob(f"{name}-{'?' * 12}"))


def discard(folder: Path) -> None:
    """Remove a hand-over that no launcher will take."""
    shutil.rmtree(folder, ignore_errors=True)
