"""Finds a Python of a wanted minor version: on PATH, this one, pyenv's, uv's, or downloaded by uv."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner import packages, process
from runner.errors import CommandFailed, EnvironmentFailed

# TensorFlow cannot work without these modules; a Python built without their libraries lacks them.
_PROBE = (
    "import ctypes, zlib, platform, sys, sysconfig;"
    "print(platform.python_version(), sys.implementation.name, sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
)


@dataclass(frozen=True)
class Interpreter:
    path: Path
    version: str

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])


@dataclass
class Search:
    """A search over several minor versions, which remembers what it has rejected and why."""

    rejected: list[str] = field(default_factory=list)

    def local(self, minors: Sequence[str]) -> Interpreter | None:
        """Return the first working Python on this machine, in the order of `minors`."""
        found = (self._probe(path, minor) for minor in minors for path in _candidates(minor))
        return next((interpreter for interpreter in found if interpreter), None)

    def downloaded(self, minors: Sequence[str], label: str) -> Interpreter:
        """Let uv download the first of `minors` that it can, or raise with all that was tried."""
        reason = ""
        for minor in minors:
            reason = _download(minor)
            interpreter = None if reason else self.local([minor])
            if interpreter:
                return interpreter
        raise EnvironmentFailed(self._sentence(minors, label, reason))

    def _probe(self, path: Path, minor: str) -> Interpreter | None:
        try:
            version, name, free_threaded = process.call([path, "-I", "-S", "-c", _PROBE]).split()
        except (CommandFailed, ValueError) as failure:
            lines = getattr(failure, "output", "").strip().splitlines()
            self.rejected.append(f"{path} ({lines[-1].strip() if lines else failure})")
            return None
        if name != "cpython" or free_threaded != "0" or not version.startswith(f"{minor}."):
            self.rejected.append(f"{path} ({name} {version})")
            return None
        return Interpreter(path, version)

    def _sentence(self, minors: Sequence[str], label: str, reason: str) -> str:
        rejected = f" These do not work: {'; '.join(self.rejected)}." if self.rejected else ""
        return (
            f"environment {label} needs Python {_or(minors)}, and none was found on PATH, in pyenv or among uv's own."
            f"{rejected} {reason}\n"
            f"Get one with `uv python install {minors[0]}`, `pyenv install {minors[0]}` or your system's packages "
            f"(python{minors[0]}); without a network, put its folder on PATH."
        )


def _download(minor: str) -> str:
    """Let uv download a Python; return why it could not."""
    try:
        process.call(packages.command("python", "install", minor, "--no-bin"), env=packages.environment())
    except CommandFailed as failure:
        lines = failure.output.strip().splitlines() or [str(failure)]
        return f"uv could not download one ({lines[-1].strip().removeprefix('error: ').removeprefix('cause: ')})."
    return ""


def _candidates(minor: str) -> Iterator[Path]:
    """Yield the programs that may be a Python of this minor version, the likeliest first, each once."""
    seen: set[Path] = set()
    for path in _places(minor):
        if os.access(path, os.X_OK) and path.resolve() not in seen:
            seen.add(path.resolve())
            yield path


def _places(minor: str) -> Iterator[Path]:
    program = f"python{minor}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    own = [folder / "bin" / program for folder in _newest(pyenv / "versions", f"{minor}.*")]
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        # A shim of pyenv's is slow, and fails for versions that are installed but not chosen: look behind it.
        yield from own if Path(folder) == pyenv / "shims" else [Path(folder or ".").absolute() / program]
    yield Path(sys.base_prefix, "bin", program)
    yield from own
    yield from (folder / "bin" / program for folder in _newest(_managed(), f"cpython-{minor}.*"))


def _managed() -> Path:
    """Return where uv keeps the Pythons that it has downloaded."""
    own = os.environ.get("UV_PYTHON_INSTALL_DIR")
    data = os.environ.get("XDG_DATA_HOME")
    return Path(own) if own else (Path(data) if data else Path.home() / ".local" / "share") / "uv" / "python"


def _newest(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)], reverse=True)


def _or(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
