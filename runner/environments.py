"""The rows of environments.yaml, shipped and the user's own: which TensorFlow, Pythons and packages, and why."""

from __future__ import annotations

import json
import re
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from runner import packages, resources, yamlfile
from runner.errors import UsageError, unknown
from runner.interpreters import Search
from runner.virtualenvs import lock_hash

__all__ = ["Environment", "default", "find", "load", "lock_hash", "make_row", "relock"]

DEVICES = ("cpu", "cuda")
_REQUIRED = ("tensorflow", "device", "pythons", "packages", "exclude_newer")
_OPTIONAL = ("libraries", "why", "links")
_LISTS = ("pythons", "packages", "libraries", "why", "links")
_FORMS = {
    "tensorflow": (r"\d+\.\d+\.\d+", 'a version in quotes, such as "2.15.1"'),
    "device": ("|".join(DEVICES), " or ".join(DEVICES)),
    "pythons": (r"3\.\d+", 'a list of Python versions in quotes, such as ["3.11", "3.10"]'),
    "libraries": (r"lib[\w.+-]+\.so(\.\d+)*", "a list of shared libraries, such as [libcudart.so.12, libcudnn.so.8]"),
    "exclude_newer": (r"\d{4}-\d\d-\d\d", "a date, such as 2024-05-07"),
}
_HEADER = "# {name}: made by `make lock` (your own rows: `runner lock`) from environments.yaml. Do not edit.\n"


@dataclass(frozen=True, kw_only=True)
class Environment:
    name: str
    tensorflow: str
    device: str
    pythons: tuple[str, ...]
    packages: tuple[str, ...]
    exclude_newer: str
    lock: Path
    libraries: tuple[str, ...] = ()  # what TensorFlow loads when it finds a GPU
    why: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    shipped: bool = True

    @property
    def lock_text(self) -> str:
        """Return the lock, which a row of the user's may still lack."""
        try:
            return self.lock.read_text()
        except FileNotFoundError:
            hint = "make lock" if self.shipped or self.device != "cpu" else f"runner lock {self.tensorflow}"
            raise UsageError(f"environment {self.name} has no lock {self.lock}. Make it with `{hint}`.") from None


def load() -> dict[str, Environment]:
    """Return all rows by name; a row of ./environments.yaml wins over a shipped one."""
    rows = _read(resources.data("images", "environments.yaml"), shipped=True)
    own = Path("environments.yaml").absolute()
    if own.exists() and not own.samefile(resources.data("images", "environments.yaml")):
        rows |= _read(own, shipped=False)
    return rows


def default() -> Environment:
    """Return the environment of a job that names none."""
    return load()[_shipped()["default"]]


def find(name: str, device: str = "cpu") -> Environment:
    """Return a row by its name, its name without the device, or its TensorFlow's version."""
    rows = load()
    version = name.removeprefix("tf")
    for candidate in (name, f"tf{version}", f"tf{version}-{device}"):
        if candidate in rows:
            return rows[candidate]
    exact = [row for row in rows.values() if row.tensorflow == version and row.device == device]
    if exact:
        return exact[0]
    hint = f" `runner lock {version}` makes it." if re.fullmatch(r"\d+\.\d+\.\d+", version) else ""
    raise UsageError(f"{unknown('environment', name, rows)}{hint}")


def relock(names: Sequence[str] | None = None) -> list[Path]:
    """Make the locks of some rows, or of all, and return those that changed."""
    rows = load()
    missing = [name for name in names or () if name not in rows]
    if missing:
        raise unknown("environment", missing[0], rows)
    return [row.lock for row in rows.values() if (names is None or row.name in names) and _write_lock(row)]


def _write_lock(row: Environment) -> bool:
    text = _HEADER.format(name=row.name) + compile_lock(row)
    if row.lock.exists() and row.lock.read_text() == text:
        return False
    row.lock.parent.mkdir(parents=True, exist_ok=True)
    row.lock.write_text(text)
    return True


def compile_lock(row: Environment) -> str:
    """Resolve a row as of its date, for all its Pythons and platforms at once, with hashes."""
    lowest = min(row.pythons, key=_version)
    # Old sdists tell their requirements only to a Python of their time.
    interpreter = Search().local([lowest, *row.pythons])
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.in")
        wanted.write_text("".join(f"{package}\n" for package in row.packages))
        return packages.uv(
            "pip", "compile", wanted, "--universal", "--generate-hashes", "--no-annotate", "--no-header", "--quiet",
            "--exclude-newer", f"{row.exclude_newer}T00:00:00Z", "--python-version", lowest,
            *(("--python", interpreter.path) if interpreter else ()),
            doing=f"locking {row.name}",
        )  # fmt: skip


# Reading a file of rows: every refusal names the file and the line.


def _shipped() -> yamlfile.Mapping:
    return yamlfile.load(resources.data("images", "environments.yaml"))


def _read(path: Path, *, shipped: bool) -> dict[str, Environment]:
    file = yamlfile.load(path)
    file.refuse_unknown(["environments", "default", "bases", "caps", "windows"] if shipped else ["environments"])
    rows = file.get("environments")
    if rows is None:
        return {}
    if not isinstance(rows, yamlfile.Mapping):
        raise UsageError(
            f"{file.where('environments')}: here should be the names of environments, with their keys below."
        )
    return {name: _row(name, rows, path, shipped) for name in rows}


def _row(name: str, rows: yamlfile.Mapping, path: Path, shipped: bool) -> Environment:
    row = rows[name]
    if not isinstance(row, yamlfile.Mapping):
        raise UsageError(f"{rows.where(name)}: environment {name} should have the keys {', '.join(_REQUIRED)}.")
    row.refuse_unknown([*_REQUIRED, *_OPTIONAL])
    missing = [key for key in _REQUIRED if not row.get(key)]
    if missing:
        raise UsageError(f"{rows.where(name)}: environment {name} lacks {', '.join(missing)}.")
    values = {key: _value(row, key) for key in row}
    if not re.fullmatch(rf"tf\d+(\.\d+)+-{values['device']}", name):
        raise UsageError(f"{rows.where(name)}: the name {name} should be like tf2.15-{values['device']}.")
    return Environment(name=name, lock=path.parent / "locks" / f"{name}.txt", shipped=shipped, **values)


def _value(row: yamlfile.Mapping, key: str) -> Any:
    """Return a checked value; lists become tuples, and a date the word that it was."""
    form, words = _FORMS.get(key, (r".+", "a list of words"))
    value = row[key].isoformat() if isinstance(row[key], date) else row[key]
    listed = value if isinstance(value, list) else [value]
    if isinstance(value, list) is not (key in _LISTS) or not all(_fits(form, word) for word in listed):
        raise UsageError(f"{row.where(key)}: {key} should be {words}, not {value!r}.")
    return tuple(value) if isinstance(value, list) else value


def _fits(form: str, word: object) -> bool:
    return isinstance(word, str) and re.fullmatch(form, word) is not None


# Rows for any other patch: `runner lock X.Y.Z`.


def make_row(version: str, device: str = "cpu", python: str | None = None) -> Environment:
    """Make a row and its lock for any TensorFlow in ./environments.yaml and ./locks/."""
    from runner import indexes

    if device != "cpu":
        raise UsageError(f"--device {device}: `runner lock` makes cpu rows only so far.")
    release = indexes.release(version)
    pythons = _pythons(release.pythons, version, python)
    caps = [cap for cap in _shipped()["caps"] if _applies(cap, version)]
    row = Environment(
        name=f"tf{version}-{device}",
        tensorflow=version,
        device=device,
        pythons=pythons,
        packages=(*release.requirements, *(package for cap in caps for package in cap["packages"])),
        exclude_newer=release.cutoff(_window(version)),
        lock=Path("locks", f"tf{version}-{device}.txt").absolute(),
        why=tuple(cap["why"] for cap in caps),
        shipped=False,
    )
    _refuse_existing(row)
    _write_lock(row)
    _append(Path("environments.yaml"), row)
    return load()[row.name]


def _pythons(available: Sequence[str], version: str, python: str | None) -> tuple[str, ...]:
    if python is None:
        return tuple(available)
    if python not in available:
        raise UsageError(f"TensorFlow {version} has no wheels for Python {python}, only for {', '.join(available)}.")
    return (python,)


def _applies(cap: Mapping[str, Any], version: str) -> bool:
    below = cap.get("below")
    return _version(cap["from"]) <= _version(version) and (below is None or _version(version) < _version(below))


def _window(version: str) -> int:
    windows = _shipped()["windows"]
    shorter = [int(entry["days"]) for entry in windows["shorter"] if version in entry["versions"]]
    return min(shorter, default=int(windows["default"]))


def _refuse_existing(row: Environment) -> None:
    if row.name in load():
        raise UsageError(f"environment {row.name} is in environments.yaml already. Take it out there to make it anew.")


def _append(path: Path, row: Environment) -> None:
    """Add a row at the end of the user's file, and leave all else in it as it is."""
    text = path.read_text() if path.exists() else "# Environments of this project, made by `runner lock`.\n"
    if not re.search(r"^environments:", text, re.MULTILINE):
        text = text.rstrip("\n") + "\nenvironments:\n"
    indent = re.search(r"^environments:.*\n(?:\s*#.*\n|\s*\n)*( +)[^#\s]", text, re.MULTILINE)
    added = textwrap.indent(_yaml(row), indent[1] if indent else "  ")
    text = f"{text.rstrip()}\n{added}"
    try:
        understood = row.name in yamlfile.parse(text.encode(), path)["environments"]
    except UsageError:
        understood = False
    if not understood:
        raise UsageError(f"the row could not be added to {path.absolute()}. Add it there by hand:\n{added}")
    replacement = path.with_name(f".{path.name}.new")
    replacement.write_text(text)
    replacement.replace(path)


def _yaml(row: Environment) -> str:
    lines = [f"{row.name}:", f'  tensorflow: "{row.tensorflow}"', f"  device: {row.device}"]
    lines.append(f"  pythons: [{', '.join(map(json.dumps, row.pythons))}]")
    lines += ["  packages:", *(f"    - {json.dumps(package)}" for package in row.packages)]
    lines.append(f"  exclude_newer: {row.exclude_newer}")
    lines += ["  why:", *(f"    - {json.dumps(reason)}" for reason in row.why)]
    return "\n".join(lines) + "\n"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
