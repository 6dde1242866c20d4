"""The runs on a volume: finding them by name, reading what happened, and the status object that every listing shows."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import resources, run_directory
from runner.errors import UsageError, unknown

DEFAULT_VOLUME = "~/runs"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A run as its directory shows it."""

    directory: Path
    request: Mapping[str, Any]
    record: Mapping[str, Any]
    going: bool

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def environment(self) -> str:
        """Return the environment, or the image that took its place."""
        return str(self.request.get("environment") or self.request.get("image") or "")

    @property
    def backend(self) -> str:
        """Return where it goes on, which its lock says, else where it ran last."""
        holder = (run_directory.holder(str(self.directory / ".lock")) if self.going else None) or {}
        return str(holder.get("backend") or self.record.get("backend") or self.request.get("backend") or "native")

    @property
    def backends(self) -> set[str]:
        """Return where its attempts ran."""
        return {self.backend, *(str(entry.get("backend")) for entry in self.record.get("attempts") or [])}

    @property
    def state(self) -> str:
        """Return pending, running, interrupted, succeeded or failed."""
        if self.going:
            return "running" if self.record.get("attempts") and self.record.get("exit_code") is None else "pending"
        code = self.record.get("exit_code")
        if code == 0:
            return "succeeded"
        return "interrupted" if code in (None, run_directory.INTERRUPTED) else "failed"

    @property
    def exit_code(self) -> int:
        """Return what its last submission returned; 75 where none is known, for then it was cut off."""
        code = self.record.get("exit_code")
        return int(run_directory.INTERRUPTED if code is None else code)

    @property
    def attempt(self) -> int:
        """Return the number of the last attempt, 0 where there was none."""
        number: int = run_directory.last_attempt(str(self.directory), self.record)
        return number

    def counted(self, submission: str | None) -> bool:
        """Return whether a submission was admitted; one that came in the same moment may be the last that is recorded."""
        return submission in (self.record.get("submissions") or [])

    def checkpoint(self) -> dict[str, Any] | None:
        """Return {path, step} of what the next attempt would continue from."""
        found: dict[str, Any] | None = run_directory.newest_checkpoint(
            str(self.directory), self.request.get("code", {})
        )
        return found


def load(directory: Path) -> Found | None:
    """Return the run in a directory, or None where there is none."""
    read = run_directory.read_json
    going = run_directory.going(str(directory))  # first: whoever is no longer going has written down how it ended
    record = read(str(directory / "run.json"))  # before the request, which is written first: no record without one
    request = read(str(directory / "request.json"))
    if request is None and record is None and not (directory / "request.json").exists():
        return None
    request, record = (value if isinstance(value, dict) else {} for value in (request, record))
    return Found(directory=directory, request=request, record=record, going=going)


def on_volume(volume: Path) -> list[Found]:
    """Return the runs on a volume, the newest first. Only folders with a request.json are runs."""
    if not volume.is_dir():
        return []
    folders = [path.parent for path in volume.glob("*/request.json")]
    found = [run for run in map(load, folders) if run]
    return sorted(found, key=lambda run: -_began(run))


def on_volumes(volumes: list[Path], backend: str | None = None) -> list[Found]:
    """Return the runs on several volumes; with `backend` those that ran there last."""
    return [run for place in distinct(volumes) for run in on_volume(place) if _ran_on(run, backend)]


def distinct(volumes: list[Path]) -> list[Path]:
    """Return each volume once, by its first name: one may be known by its path and by links."""
    found: dict[str, Path] = {}
    for place in volumes:
        found.setdefault(os.path.realpath(place), place)
    return list(found.values())


def _ran_on(run: Found, backend: str | None) -> bool:
    return backend is None or backend == run.backend


def _began(run: Found) -> float:
    attempts = run.record.get("attempts") or []
    return float(attempts[-1]["started"]) if attempts else 0.0


def find(name: str | None, volumes: list[Path], backend: str | None = None) -> Found:
    """Return the run of this name or unique prefix on these volumes; None is the newest."""
    if name is not None:
        exact = [run for place in volumes for run in [load(_inside(place, name))] if run and _ran_on(run, backend)]
        if exact:
            return _only(exact)
    found = on_volumes(volumes, backend)
    if name is None:
        if not found:
            raise UsageError(f"there is no run on {_listed(volumes)}. Start one with: runner run fashion_mnist")
        return max(found, key=_began)
    known = list(dict.fromkeys(run.name for run in found))
    matches = sorted(other for other in known if other.startswith(name))
    matches = [other for other in matches if "." not in other] or matches  # not those that --fresh has kept
    if len(matches) > 1:
        raise UsageError(
            f"{name!r} is the beginning of several runs: {', '.join(matches[:10])}. Give more of the name."
        )
    if not matches:
        raise unknown(f"run on {_listed(volumes)}:", name, known[:20])
    return _only([run for run in found if run.name == matches[0]])


def _only(same: list[Found]) -> Found:
    """Return the run of one name; none of several volumes may win, as long as the name stops and removes runs."""
    places = {
        run.directory.resolve(): run.directory.parent for run in reversed(same)
    }  # a volume may be known by a link, too
    if len(places) > 1:
        listed = _listed(list(reversed(places.values())))
        raise UsageError(f"{same[0].name} is on several volumes: {listed}. Say which with --volume.")
    return same[0]


def _inside(volume: Path, name: str) -> Path:
    if "/" in name or name in ("", ".", "..") or "\n" in name or len(name) > 255:
        raise UsageError(f"{name[:60]!r} is no run's name. List them with: runner ps")
    return volume / name


def _listed(volumes: list[Path]) -> str:
    return ", ".join(str(volume) for volume in volumes)


def status(run: Found) -> dict[str, Any]:
    """Return the status object, the same in all backends and for `--json`."""
    record, request = run.record, run.request
    attempts = record.get("attempts") or []
    return {
        "name": run.name,
        "job": request.get("job"),
        "environment": run.environment,
        "backend": run.backend,
        "state": run.state,
        "sentence": sentence(run),
        "attempt": run.attempt,
        "exit_code": None if run.going else record.get("exit_code"),
        "checkpoint": run.checkpoint(),
        "exact": record.get("exact"),
        "reasons": record.get("reasons", []),
        "progress": record.get("progress"),
        "again": record.get("again") or request.get("again"),
        "directory": str(run.directory),
        "started": _iso(attempts[0]["started"]) if attempts else None,
        "ended": None if run.going else _iso(record.get("ended")),
    }


def sentence(run: Found) -> str:
    """Return the one sentence: what the run does, or why it ended, and what it would continue from."""
    if not run.request:
        return "Its request.json is missing or damaged, so it cannot be continued; its files are untouched."
    if run.state == "pending":
        return "It is starting."
    words: str = run_directory.describe(run.record, str(run.directory), run.going, run.request.get("code", {}))
    last = (run.record.get("attempts") or [{}])[-1]
    if run.state == "failed" and last.get("oom") and run.backend != "native":
        words += " Give it more memory with --memory, or a smaller batch."
    checkpoint = run.record.get("checkpoint") if run.going else None
    return words + (f" Its last checkpoint: {run_directory.checkpoint_words(checkpoint)}." if checkpoint else "")


def _iso(moment: float | None) -> str | None:
    return None if moment is None else time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(moment))


def places(configured: str | None = None) -> list[Path]:
    """Return the volumes that were used before, the default first. Losing the list loses nothing."""
    default = Path(os.environ.get("RUNNER_VOLUME") or configured or DEFAULT_VOLUME).expanduser().absolute()
    return list(dict.fromkeys([default, *map(Path, _remembered())]))


def _remembered() -> list[str]:
    places = run_directory.read_json(str(resources.state("places.json")))
    return [place for place in places if isinstance(place, str)] if isinstance(places, list) else []


def remember(volume: Path) -> None:
    """Add a volume to the list of places, whatever named it: a variable may be another one, or none, the next time."""
    known = _remembered()
    if str(volume) in known or volume == Path(DEFAULT_VOLUME).expanduser().absolute():
        return
    path = resources.state("places.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        run_directory.write_json(str(path), [*known, str(volume)][-50:])
    except OSError:
        pass  # only convenience is lost


def command(verb: str, run: Found) -> str:
    """Return the command that does something with a run; it works from any directory."""
    return f"runner {verb} {run.name} --volume {shlex.quote(str(run.directory.parent))}"


def next_commands(run_name: str, volume: Path) -> Iterator[str]:
    """Give the commands that are useful next; they work from any directory."""
    where = f" --volume {shlex.quote(str(volume))}"
    for verb in ("status", "logs -f", "stop"):
        yield f"runner {verb} {run_name}{where}"


def as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
