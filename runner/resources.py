"""Where files are: the data that travels with the package, and the runner's own cache and state folders."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data(*parts: str) -> Path:
    """Return the path of a file of images/, jobs/ or k8s/, in a wheel as well as in a checkout."""
    installed = _PACKAGE / "_data"
    root = installed if installed.is_dir() else _PACKAGE.parent
    return root.joinpath(*parts)


def cache(*parts: str) -> Path:
    """Return a path in the cache: what can be made again. RUNNER_CACHE moves it."""
    return _folder("RUNNER_CACHE", "XDG_CACHE_HOME", ".cache").joinpath(*parts)


def state(*parts: str) -> Path:
    """Return a path in the state folder: what is remembered, and whose loss costs nothing but convenience."""
    return _folder("RUNNER_STATE", "XDG_STATE_HOME", ".local/state").joinpath(*parts)


def _folder(own: str, base: str, default: str) -> Path:
    if own in os.environ:
        return Path(os.environ[own]).expanduser().absolute()
    parent = os.environ.get(base)
    return (Path(parent) if parent else Path.home() / default) / "tensorflow-runner"
