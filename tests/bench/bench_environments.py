"""How long an environment takes from a warm cache, ours and pip's of the same lock side by side; prints JSON.

python tests/bench/bench_environments.py [ENVIRONMENT]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from runner import environments, virtualenvs
from runner.interpreters import Search


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def pip(python: Path, folder: Path, lock: Path) -> None:
    """Make a virtualenv and install a lock into it, as one does without us."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", lock]
    subprocess.run(command, check=True)


def main(name: str = "tf2.21-cpu") -> None:
    row = environments.find(name)
    interpreter = Search().local(row.pythons)
    assert interpreter, f"{name} needs Python {' or '.join(row.pythons)}"
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(RUNNER_CACHE=f"{folder}/runner", PIP_CACHE_DIR=f"{folder}/pip")

        def ours() -> virtualenvs.Virtualenv:
            return virtualenvs.ensure(row.lock_text, [interpreter.minor], name)

        cold = seconds(ours)
        pip(interpreter.path, Path(folder, "first"), row.lock)
        virtualenvs.remove(ours().path)
        warm, again = seconds(ours), seconds(ours)
        with_pip = seconds(lambda: pip(interpreter.path, Path(folder, "second"), row.lock))
        empty = seconds(lambda: virtualenvs.ensure("", [interpreter.minor], "empty"))
    told = {"environment": name, "python": interpreter.version, "cold_s": cold, "warm_s": warm, "existing_s": again}
    told |= {"pip_warm_s": with_pip, "pip_over_ours": with_pip / warm, "empty_lock_s": empty}
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in told.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
