"""The command line's own costs, each beside what one would do instead: help, overhead, installation, listing; prints JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import uv

from runner import environments, specs, virtualenvs

ROOT = Path(__file__).resolve().parents[2]
JOBS = ROOT / "tests" / "jobs"
RUNNER = [sys.executable, "-m", "runner"]


def best(work: Callable[[int], object], times: int = 7) -> float:
    """Return the least seconds of several tries: the others were disturbed."""
    found = []
    for number in range(times):
        began = time.perf_counter()
        work(number)
        found.append(time.perf_counter() - began)
    return min(found)


def call(command: Sequence[str | Path], **variables: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # no user sets it
    subprocess.run(command, cwd=JOBS, env={**kept, **variables}, check=True, capture_output=True)


def help_ratio() -> float:
    click = best(lambda _: call([sys.executable, "-c", "import click"]))
    return best(lambda _: call([*RUNNER, "--help"])) / click


def overhead(folder: Path) -> dict[str, float]:
    """Return the seconds of the counter as a bare process and as a run."""
    os.chdir(JOBS)
    row = environments.find("tf0.0-cpu")
    python = virtualenvs.ensure(row.lock_text, row.pythons, row.name).python
    job = specs.read_job(JOBS / "counter" / "job.yaml")
    defaults = {name: parameter.default for name, parameter in job.parameters.items()}

    def bare(number: int) -> None:
        home = folder / f"bare-{number}"
        (home / "checkpoints").mkdir(parents=True)
        (home / "p.json").write_text(json.dumps({**defaults, "steps": 5}))
        variables = {"RUNNER_DIR": str(home), "RUNNER_ATTEMPT": "1", "RUNNER_PARAMETERS": str(home / "p.json")}
        call([python, JOBS / "counter" / "counter.py"], **variables)

    def run(number: int) -> None:
        call([*RUNNER, "run", "counter", "-P", "steps=5", "--name", f"run-{number}", "--volume", str(folder)])

    seconds = {"bare_s": best(bare), "run_s": best(run)}
    return {**seconds, "overhead_s": seconds["run_s"] - seconds["bare_s"]}


def installed(folder: Path) -> dict[str, float]:
    """Return the megabytes that an installation adds to an empty virtualenv, without uv's binary."""
    tool = uv.find_uv_bin()
    call([tool, "venv", "-q", "--python", sys.executable, folder / "venv"])
    (site,) = (folder / "venv").glob("lib/*/site-packages")
    empty = megabytes(site)
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "build", "*.egg-info", "__pycache__"))
    call([tool, "pip", "install", "-q", "--compile-bytecode", "--python", folder / "venv" / "bin" / "python", source])
    return {"core_mb": megabytes(site) - empty}


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def listing(folder: Path) -> dict[str, float]:
    """Return the seconds of `ps` over 1,000 runs."""
    call([*RUNNER, "run", "counter", "-P", "steps=5", "--name", "run-0", "--volume", str(folder)])
    for number in range(1, 1000):
        shutil.copytree(folder / "run-0", folder / f"run-{number}")
    return {"ps_1000_runs_s": best(lambda _: call([*RUNNER, "ps", "--volume", str(folder)]), 3)}


def main() -> None:
    found: dict[str, float] = {"help_over_import_click": help_ratio()}
    for measure in (overhead, installed, listing):
        with tempfile.TemporaryDirectory() as folder:
            found.update(measure(Path(folder)))
    print(json.dumps({key: round(value, 3) for key, value in found.items()}))


if __name__ == "__main__":
    main()
