"""Gives the runner the functions of jobs/run_directory.py, with which launch.py reads and writes a run's directory, too.

That file travels to where jobs run and is not a part of this package, so it is loaded by its path.
"""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType
from typing import Any

from runner import resources


def __getattr__(name: str) -> Any:
    return getattr(_module(), name)


@functools.cache
def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_directory", resources.data("jobs", "run_directory.py"))
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
