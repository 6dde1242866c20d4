"""Compiled bytecode for a new virtualenv: linked from a store by the hash of its source, compiled only where missing.

Compiling takes most of the time that a new environment takes, and is the same for the same source and Python.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner import process, resources
from runner.errors import CommandFailed


def compile_all(virtualenv: Path) -> None:
    """Give each source file of a virtualenv its bytecode."""
    (site,) = virtualenv.glob("lib/python3*/site-packages")
    tag = "cpython-" + site.parent.name.removeprefix("python").replace(".", "")
    store = resources.cache("bytecode", tag)
    store.mkdir(parents=True, exist_ok=True)
    wanted = {compiled: (source, store / digest) for compiled, source, digest in _sources(site, tag)}
    missing = {compiled: pair for compiled, pair in wanted.items() if not _link(pair[1], compiled)}
    if missing:
        _compile(virtualenv / "bin" / "python", [source for source, _ in missing.values()])
        for compiled, (_, stored) in missing.items():
            _link(compiled, stored)


def _sources(site: Path, tag: str) -> list[tuple[Path, Path, str]]:
    """Return (bytecode, source, hash) for all sources that the installed packages' records name."""
    found = []
    for record in site.glob("*.dist-info/RECORD"):
        with record.open(newline="", encoding="utf-8") as lines:
            for name, digest, *_ in csv.reader(lines):
                if name.endswith(".py") and digest.startswith("sha256=") and not name.startswith(("..", "/")):
                    source = site / name
                    compiled = source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc"
                    found.append((compiled, source, digest.removeprefix("sha256=")))
    return found


def _link(existing: Path, new: Path) -> bool:
    """Link a file, or copy it where that cannot be; tell whether there was something to link."""
    new.parent.mkdir(exist_ok=True)
    try:
        os.link(existing, new)
    except FileExistsError:
        pass
    except FileNotFoundError:
        return False
    except OSError:
        shutil.copyfile(existing, new)
    return True


def _compile(python: Path, sources: list[Path]) -> None:
    # "unchecked": the runner's environments do not change, and a file's time is not its content.
    options = ("-I", "-m", "compileall", "-q", "-q", "--invalidation-mode", "unchecked-hash", "-i")
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        for number in range(workers):
            part = Path(folder, str(number))
            part.write_text("".join(f"{source}\n" for source in sources[number::workers]))
            pool.submit(_compile_part, [python, *options, part])


def _compile_part(argv: list[str | Path]) -> None:
    with contextlib.suppress(CommandFailed):  # a package may ship files that are no Python of this version
        process.call(argv)
