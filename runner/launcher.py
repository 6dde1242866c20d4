"""Gives the runner the functions of jobs/launch.py, so that both sides read a run's directory with the same code."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

from runner import resources


@functools.cache
def module() -> Any:
    """Return jobs/launch.py as a module. It is a file that travels, not a part of this package."""
    spec = importlib.util.spec_from_file_location("runner_launch", resources.data("jobs", "launch.py"))
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
