"""What is asked: jobs (job.yaml), their typed parameters, the run's name, and the frozen `Run` that a backend submits."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner import yamlfile
from runner.datasets import DataSet
from runner.errors import UsageError, unknown

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
IMAGE = re.compile(  # [registry[:port]/]name[:tag][@digest]
    r"([A-Za-z0-9.\-\[\]:]+/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:\w[\w.-]{0,127})?(@[A-Za-z0-9+._-]+:[0-9a-f]{32,})?",
    re.ASCII,
)
# What a Docker engine takes at least. TensorFlow needs a hundred times as much, and launch.py itself more than that;
# but how much is enough only the job knows, and where it is not, the run says so (OOM, with the limit).
LEAST_MEMORY = 6 << 20
Value = bool | int | float | str

JOB_KEYS = ("environment", "command", "parameters", "requirements", "data", "resources", "retries", "checkpoint_every")
PARAMETER_KEYS = ("default", "min", "max", "choices", "extend")
RESOURCE_KEYS = ("cpus", "memory", "gpus")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A typed parameter of a job; the type is that of its default."""

    name: str
    default: Value
    min: float | None = None
    max: float | None = None
    choices: tuple[Value, ...] = ()
    extend: bool = False

    def parse(self, text: str) -> Value:
        """Return the value that a user typed, or refuse it with what is allowed."""
        return self.check(self._convert(text), f"-P {self.name}={text}")

    def check(self, value: Value, where: str) -> Value:
        """Return a value of the right type if it is allowed."""
        if self.choices and value not in self.choices:
            raise UsageError(f"{where}: {unknown('value', str(value), [str(choice) for choice in self.choices])}")
        if self.min is not None and not isinstance(value, (str, bool)) and value < self.min:
            raise UsageError(f"{where}: {self.name} must be at least {self.min:g}.")
        if self.max is not None and not isinstance(value, (str, bool)) and value > self.max:
            raise UsageError(f"{where}: {self.name} must be at most {self.max:g}.")
        return value

    def _convert(self, text: str) -> Value:
        kind = type(self.default)
        try:
            if kind is bool:
                return {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}[text.lower()]
            value = kind(text)
            if value != value or value in (float("inf"), float("-inf")):
                raise ValueError(text)
            return value
        except (ValueError, KeyError) as error:
            words = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            raise UsageError(
                f"-P {self.name}={text}: {self.name} is {words}, such as {json.dumps(self.default)}."
            ) from error


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a run may use; None is: as much as there is."""

    cpus: int | None = None
    memory: str | None = None
    gpus: int = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run, as job.yaml says it; a directory without one has defaults for all but the command."""

    environment: str | None = None
    command: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    retries: int = 2
    checkpoint_every: str | None = None

    def values(self, asked: Sequence[str]) -> dict[str, Value]:
        """Return the parameters that were asked for as `key=value`, checked."""
        found: dict[str, Value] = {}
        for item in asked:
            key, equals, text = item.partition("=")
            if not equals:
                raise UsageError(f"-P {item}: a parameter is given as key=value, such as -P epochs=20.")
            if key not in self.parameters:
                raise unknown("parameter", key, self.parameters)
            found[key] = self.parameters[key].parse(text)
        return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """A job, an environment and parameters on a volume, with a name: all that a backend needs to submit it."""

    name: str
    volume: Path
    request: Mapping[str, Any]  # what launch.py reads; see jobs/launch.py
    root: Path  # the project
    code: Mapping[str, Path]  # where the files of the snapshot are, by their path in it
    lock: str  # the text of runner.lock
    pythons: tuple[str, ...]
    python: str | None = None  # the one of the first attempt, preferred for exactness
    base_image: str | None = None  # a template of the user's, for the images
    registry: str | None = None  # where images may be there already
    user: tuple[int, int] | None = None  # whose the container's processes are, where it is not the caller
    data: Mapping[str, tuple[DataSet | None, Path | None]] = field(default_factory=dict)  # description, directory given
    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def directory(self) -> Path:
        return self.volume / self.name


def read_job(path: Path) -> Job:
    """Return the job that a job.yaml describes."""
    found = yamlfile.load(path)
    found.refuse_unknown(JOB_KEYS)
    _refuse_requirements(found)
    parameters = _section(found, "parameters")
    return Job(
        environment=_text(found, "environment"),
        command=_command(found, parameters),
        parameters={name: _parameter(parameters, name) for name in parameters},
        data={name: _section(_section(found, "data"), name) for name in _section(found, "data")},
        resources=_resources(_section(found, "resources")),
        retries=_whole(found, "retries", 2),
        checkpoint_every=checkpoint_interval(_text(found, "checkpoint_every"), found.where("checkpoint_every")),
    )


def _refuse_requirements(found: yamlfile.Mapping) -> None:
    """Refuse what is not there yet: a job that lacks its packages would only fail later."""
    if _text(found, "requirements"):
        raise UsageError(
            f"{found.where('requirements')}: requirements: packages of a project's own come in a later version. Until then "
            "add them, pinned and with their hashes, to the lock of an environment of your own (`runner lock X.Y.Z` makes "
            "one in ./locks/), or put them beside the script if they are pure Python: pip install --no-deps --target . PACKAGE"
        )


def _section(found: yamlfile.Mapping, key: str) -> yamlfile.Mapping:
    value = found.get(key)
    if value is None:
        return yamlfile.Mapping(found.path)
    if not isinstance(value, yamlfile.Mapping):
        raise UsageError(f"{found.where(key)}: {key} must be a mapping (key: value), not {value!r}.")
    return value


def _text(found: yamlfile.Mapping, key: str) -> str | None:
    value = found.get(key)
    if value is not None and not isinstance(value, str):
        raise UsageError(
            f'{found.where(key)}: {key} must be text, not {value!r}. A number is text in quotes: "{value}".'
        )
    return value


def _whole(found: yamlfile.Mapping, key: str, default: int) -> int:
    value = found.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{found.where(key)}: {key} must be a whole number from 0 on, not {value!r}.")
    return value


def _command(found: yamlfile.Mapping, parameters: Iterable[str]) -> tuple[str, ...]:
    value = found.get("command", [])
    if not isinstance(value, list) or not all(isinstance(word, (str, int, float)) for word in value):
        raise UsageError(f"{found.where('command')}: command must be a list of words, such as [python, train.py].")
    words = tuple(str(word) for word in value)
    for word in words:
        for name in re.findall(r"\{([A-Za-z_]\w*)\}", word):
            if name not in parameters:
                raise UsageError(f"{found.where('command')}: {unknown('parameter', name, parameters)}")
    return words


def _parameter(parameters: yamlfile.Mapping, name: str) -> Parameter:
    value, where = parameters[name], parameters.where(name)
    if not VARIABLE.fullmatch(name):
        raise UsageError(f"{where}: a parameter's name is letters, digits and _, not {name!r}.")
    if not isinstance(value, yamlfile.Mapping):
        return Parameter(name=name, default=_value(value, where))
    value.refuse_unknown(PARAMETER_KEYS)
    if "default" not in value:
        raise UsageError(f"{where}: the parameter {name} needs a default; it gives the type.")
    for bound in ("min", "max"):
        if not isinstance(value.get(bound, 0), (int, float)):
            raise UsageError(f"{value.where(bound)}: {bound} must be a number, not {value[bound]!r}.")
    choices = value.get("choices", [])
    if not isinstance(choices, list):
        raise UsageError(f"{value.where('choices')}: choices must be a list.")
    default = _value(value["default"], where)
    if value.get("extend") and type(default) not in (int, float):
        raise UsageError(f"{value.where('extend')}: only a number can be extended.")
    found = Parameter(
        name=name, default=default, min=value.get("min"), max=value.get("max"),
        choices=tuple(_value(choice, where) for choice in choices), extend=bool(value.get("extend", False)),
    )  # fmt: skip
    found.check(default, where)
    return found


def _value(value: object, where: str) -> Value:
    if isinstance(value, (bool, int, float, str)):
        return value
    raise UsageError(f"{where}: a value must be text, a number, true or false, not {value!r}.")


def _resources(found: yamlfile.Mapping) -> Resources:
    found.refuse_unknown(RESOURCE_KEYS, "resource")
    memory = found.get("memory")
    if memory is not None:
        memory_bytes(str(memory), found.where("memory"))
    cpus = _whole(found, "cpus", 0) or None
    return Resources(cpus=cpus, memory=None if memory is None else str(memory), gpus=_whole(found, "gpus", 0))


def memory_bytes(text: str, where: str) -> int:
    """Return a size such as 4Gi, 500M or 2000000000 in bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:([KMGT])(i?))?", text)
    if not match or not float(match[1]):
        raise UsageError(f"{where}: memory is a number of bytes, such as 4Gi or 500M, not {text!r}.")
    power = " KMGT".index(match[2]) if match[2] else 0
    found = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if found < LEAST_MEMORY:
        raise UsageError(
            f"{where}: {text} is too little, for no engine takes less than 6Mi. Give what the job needs, such as 4Gi."
        )
    return found


def user_ids(text: str) -> tuple[int, int]:
    """Return the numbers of UID or UID:GID; no container runs as root."""
    match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text)
    if not match:
        raise UsageError(f"--user {text}: a user is given by number, as UID or UID:GID, such as 1000:1000.")
    user, group = int(match[1]), int(match[2] or match[1])
    if not user:
        raise UsageError(f"--user {text}: no container runs as root. Give the number of another user.")
    if not group:
        raise UsageError(f"--user {text}: no container runs in root's group. Give another, such as {user}:{user}.")
    return user, group


def check_image(text: str) -> str:
    """Return the name of an image if it can be one."""
    if not IMAGE.fullmatch(text):
        raise UsageError(
            f"--image {text[:200]!r}: an image is given as NAME[:TAG], in lower case and with its registry before it, "
            "such as registry.example.org/team/mine:1."
        )
    return text


def checkpoint_interval(text: str | None, where: str) -> str | None:
    """Return an interval such as 10s, 500steps or 1epoch if it is one."""
    if text is not None and not re.fullmatch(r"\d+(\.\d+)?s|\d+steps?|\d+epochs?", text):
        raise UsageError(
            f"{where}: checkpoint_every is a time, steps or epochs, such as 10s, 500steps or 1epoch, not {text!r}."
        )
    return text


def check_name(name: str) -> str:
    """Return a run's name if it is one."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"--name {name[:60]!r}: a run's name is 1 to 48 lower-case letters, digits and '-', "
            "and begins and ends with a letter or digit."
        )
    return name


def run_name(base: str, environment: str | None, asked: Mapping[str, Value], command: Sequence[str]) -> str:
    """Return `<job>-<6 hex>` over what was asked, so that the same command is the same run, wherever and whenever."""
    content = json.dumps([base, environment, sorted(asked.items()), list(command)])
    return f"{slug(base)[:41].rstrip('-')}-{hashlib.sha256(content.encode()).hexdigest()[:6]}"


def slug(text: str) -> str:
    """Return text with only what a name may have."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "job"
