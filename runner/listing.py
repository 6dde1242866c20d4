"""What the listings show: runs, one run's status, environments; as tables on a terminal, as JSON for programs."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import engines, environments, runs, terminal, virtualenvs
from runner.errors import EngineFailed

if TYPE_CHECKING:
    from runner.images import Made


def show_runs(volumes: list[Path], backend: str | None, as_json: bool) -> None:
    """List the runs on some volumes, or those of them that ran on one backend last."""
    found = runs.on_volumes(volumes, backend)
    if as_json:
        print(runs.as_json([{**runs.status(run), "bytes": folder_size(run.directory)} for run in found]))
        return
    if not found:
        print(f"no runs on {', '.join(map(str, volumes))}; start one with: runner run fashion_mnist")
        return
    rows = [_row(run) for run in found]
    terminal.table(["run", "state", "progress", "environment", "on", "began", "size", "volume"], rows)


def _row(run: runs.Found) -> list[str]:
    attempts = run.record.get("attempts") or [{}]
    began = attempts[0].get("started")
    return [
        run.name, run.state, _short_progress(run.record.get("progress")), run.environment, run.backend,
        time.strftime("%Y-%m-%d %H:%M", time.localtime(began)) if began else "",
        terminal.size(folder_size(run.directory)), str(run.directory.parent),
    ]  # fmt: skip


def _short_progress(progress: Mapping[str, Any] | None) -> str:
    for name, total in (("epoch", "epochs"), ("step", "total_steps")):
        if progress and progress.get(name) is not None:
            return f"{name} {progress[name]}" + (f"/{progress[total]}" if progress.get(total) else "")
    return ""


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    total, todo = 0, [str(folder)]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue  # it vanished while we looked
    return total


def show_status(run: runs.Found, as_json: bool) -> None:
    """Say first in one sentence what there is to say, then the facts."""
    found = runs.status(run)
    if as_json:
        print(runs.as_json(found))
        return
    print(found["sentence"])
    checkpoint, progress = found["checkpoint"], found["progress"]
    exact = {True: "yes", False: "no: " + "; ".join(found["reasons"]), None: None}[found["exact"]]
    facts = {
        "run": f"{found['name']}, {found['state']}",
        "environment": f"{found['environment']} on {found['backend']}",
        "attempts": found["attempt"],
        "progress": _short_progress(progress),
        "metrics": ", ".join(f"{k} {v:.4g}" for k, v in (progress or {}).get("metrics", {}).items()),
        "checkpoint": checkpoint and checkpoint["path"],
        "exact": exact,
        "directory": found["directory"],
        "again": found["again"],
    }
    for name, value in facts.items():
        if value:
            print(f"{name + ':':13}{value}")


def show_environments(name: str | None, as_json: bool) -> None:
    """List the environments, or explain one."""
    rows = [environments.find(name)] if name else list(environments.load().values())
    made, images = virtualenvs.installed(), _images()
    described = [_environment(row, made, images) for row in rows]
    if as_json:
        print(runs.as_json(described[0] if name else described))
    elif name:
        _explain(rows[0], described[0])
    else:
        table = [[row["name"] + (" (default)" if row["default"] else ""), row["tensorflow"], ", ".join(row["pythons"]),
                  row["device"], _made(row) or "not made yet"] for row in described]  # fmt: skip
        terminal.table(["environment", "tensorflow", "python", "device", "on this machine"], table)


def _images() -> list[Made]:
    """Return the images on the engine, the current ones first; none where no engine answers at once."""
    if not engines.configured():
        return []
    from runner import images

    try:
        return sorted(images.made(engines.connect(engines.QUICK)), key=lambda image: not image.current)
    except EngineFailed:
        return []


def _made(row: Mapping[str, Any]) -> str:
    """Say what there is of an environment: all its virtualenvs, and the image that a run would have."""
    virtualenv = [f"{terminal.size(row['bytes'])} virtualenv"] if row["virtualenvs"] else []
    image = [f"{terminal.size(row['images'][0]['bytes'])} image"] if row["images"] else []
    return ", ".join(virtualenv + image)


def _environment(
    row: environments.Environment, made: list[virtualenvs.Installed], images: list[Made]
) -> dict[str, Any]:
    digest = virtualenvs.lock_hash(row.lock.read_text()) if row.lock.is_file() else None
    mine = [one for one in made if one.lock_hash == digest]
    labels = {"runner.environment": row.name, "runner.lock": digest}
    own = [image for image in images if labels.items() <= image.labels.items()]
    values = {key: value for key, value in dataclasses.asdict(row).items() if key not in ("lock", "shipped")}
    return {
        **values, "default": row.name == environments.default().name, "lock": digest, "own": not row.shipped,
        "bytes": sum(one.bytes for one in mine), "virtualenvs": [str(one.path) for one in mine],
        "images": [{"reference": image.reference, "bytes": image.bytes} for image in own],
    }  # fmt: skip


def _explain(row: environments.Environment, found: Mapping[str, Any]) -> None:
    print(f"{row.name}: TensorFlow {row.tensorflow} for {row.device}, on Python {' or '.join(row.pythons)}.")
    print(f"\nPackages as of {row.exclude_newer}: {', '.join(row.packages)}, and all that they need:")
    lines = row.lock.read_text().splitlines() if row.lock.is_file() else []
    print("  " + ", ".join(line.split(" ")[0] for line in lines if line[:1].isalnum() and "==" in line))
    if row.why:
        print("\nWhy so:\n  " + "\n  ".join(row.why))
    if row.links:
        print("\nMore: " + " ".join(row.links))
    there = [*found["virtualenvs"], *(image["reference"] for image in found["images"])]
    print("\nOn this machine: " + (", ".join(there) or "not made yet; the first run makes it"))
