"""Defaults from runner.yaml: named profiles, whose keys are the options' names. A flag and a RUNNER_* variable win."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

KEYS = {
    "volume": "volume",
    "on": "backend",
    "environment": "environment",
    "retries": "retries",
    "cpus": "cpus",
    "gpus": "gpus",
    "memory": "memory",
    "user": "user",
    "base_image": "base_image",
    "registry": "registry",
}


def defaults(profile: str | None, commands: Mapping[str, click.Command]) -> dict[str, dict[str, Any]]:
    """Return the defaults for each command: those of the profile, or of the one called `default`."""
    path = _file()
    if path is None:
        if profile:
            from runner.errors import UsageError

            raise UsageError(f"--profile {profile}: there is no runner.yaml here or in {_home()}.")
        return {}
    options = _profile(path, profile)
    return {
        name: {
            KEYS[key]: value
            for key, value in options.items()
            if KEYS[key] in {parameter.name for parameter in command.params}
        }
        for name, command in commands.items()
    }


def _file() -> Path | None:
    return next((path for path in (Path("runner.yaml").absolute(), _home() / "runner.yaml") if path.is_file()), None)


def _home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "tensorflow-runner"


def _profile(path: Path, name: str | None) -> Mapping[str, Any]:
    from runner import yamlfile
    from runner.errors import UsageError, unknown

    profiles = yamlfile.load(path)
    if name and name not in profiles:
        raise UsageError(f"{path}: {unknown('profile', name, profiles)}")
    options = profiles.get(name or "default") or {}
    if not isinstance(options, yamlfile.Mapping):
        if options:
            raise UsageError(f"{profiles.where(name or 'default')}: a profile is a mapping (option: value).")
        return {}
    options.refuse_unknown(KEYS, "option")
    for key, value in options.items():
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise UsageError(
                f"{options.where(key)}: {key} must be a word or a number, not {value!r}. Quotes keep 2.15 a word."
            )
    return {**options, "volume": _beside(path, options["volume"])} if "volume" in options else options


def _beside(file: Path, folder: str | int) -> str:
    """Return a folder as an absolute path; one that is given without / is beside the file that names it."""
    return os.path.join(file.parent, os.path.expanduser(str(folder)))  # noqa: PTH111, PTH118
