"""From what was asked to what is done: reads what the run already is, decides by the table, and builds the `Run`.

Everything that can be refused is refused here, before anything is created.
"""

from __future__ import annotations

import os
import platform
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from runner import (
    backends,
    datasets,
    environments,
    projects,
    resources,
    run_directory,
    runs,
    scanning,
    specs,
    virtualenvs,
    yamlfile,
)
from runner.errors import UsageError
from runner.specs import Run


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user typed."""

    job: str
    environment: str | None = None
    preferred: str | None = None  # the environment of the profile: a default, and not asked
    backend: str = "native"
    name: str | None = None
    parameters: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    image: str | None = None
    gpus: int | None = None
    cpus: int | None = None
    memory: str | None = None
    user: str | None = None
    base_image: str | None = None
    registry: str | None = None
    volume: Path | None = None
    retries: int | None = None
    fresh: bool = False
    update_code: bool = False
    command: tuple[str, ...] = ()
    checkpoint_every: str | None = None  # `prove` asks for shorter intervals


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do: submit a run, attach to one that is going, or show the result of one that is done."""

    action: Literal["submit", "attach", "show"]
    directory: Path
    run: Run | None = None
    existing: runs.Found | None = None
    notes: tuple[str, ...] = field(default=())


def decide(asked: Asked) -> Plan:
    """Return what the command means now: the same command starts, attaches, continues, or shows the result."""
    backends.check(asked.backend)
    _refuse_what_native_lacks(asked)
    _refuse_registry(asked)
    project = projects.find(asked.job)
    values = project.job.values(asked.parameters)
    volume = volume_of(asked.volume)
    name = _name(asked, project, values) if asked.name is None else specs.check_name(asked.name)
    existing = runs.load(volume / name)
    files = projects.snapshot(project, volume)
    code = projects.manifest(files)
    if existing:
        _refuse_newer(existing)
    if existing and not existing.request and not asked.fresh:
        raise UsageError(
            f"request.json of {name} is missing or damaged, so it cannot be continued. Its files are in "
            f"{existing.directory}; begin again with --fresh (they are kept), or under another name with --name."
        )

    def build(past: Mapping[str, Any] | None, mode: str) -> Run:
        return _build(asked, project, values, volume, name, files, code, past, mode)

    run = build(existing.request if existing else None, "update-code" if asked.update_code else "continue")
    notes: list[str] = []
    if existing:
        _refuse_other_project(existing, run)
    if existing and existing.going:
        return _attach(existing, run, asked)
    if existing and asked.fresh and not _begun_by(existing, run):
        run = build(None, "fresh")
    elif existing:
        if asked.fresh:
            notes.append("this run was begun afresh by this very command and was interrupted: it is continued")
        _compare(existing, run, notes)
        if existing.state == "succeeded" and not _extended(existing, run):
            return Plan(action="show", directory=existing.directory, existing=existing)
    run = replace(run, secrets=_values(run.request["secrets"]))
    missed = scanning.missed(run) if asked.backend != "native" else None
    notes += [missed] if missed else []
    return Plan(action="submit", directory=run.directory, run=run, existing=existing, notes=tuple(notes))


def _refuse_what_native_lacks(asked: Asked) -> None:
    if asked.environment == "":
        raise UsageError("-E is empty. Give an environment, such as tf2.15, or leave it out.")
    if asked.image is not None:
        specs.check_image(asked.image)
    if asked.image and asked.environment:
        raise UsageError("-E and --image exclude each other: an image of your own takes the environment's place.")
    if asked.backend != "native":
        return
    for option, value in (("--image", asked.image), ("--memory", asked.memory), ("--user", asked.user)):
        if value is not None:
            raise UsageError(f"{option} {value} is for containers, and this would run natively. Add --on docker.")


def _refuse_registry(asked: Asked) -> None:
    """Refuse what is no registry where images matter; it may come from a variable or a profile."""
    if asked.registry and asked.backend == "docker":
        from runner import images

        images.registry(asked.registry)


def _refuse_newer(existing: runs.Found) -> None:
    known = run_directory.FORMAT
    for file, content in (("request.json", existing.request), ("run.json", existing.record)):
        if content.get("format", known) > known:
            raise UsageError(
                f"{file} of {existing.name} has format {content['format']}, written by a newer runner; this one knows "
                f"{known}. Continue it with that one, or bring this one up to date: pip install --upgrade tensorflow-runner"
            )


def volume_of(given: Path | None) -> Path:
    """Return the volume as an absolute path; one that was named must exist, the default is made when it is needed."""
    path = place_of(given) if given else Path(runs.DEFAULT_VOLUME).expanduser()
    if path.exists() and not os.access(path, os.W_OK):
        raise UsageError(
            f"the volume {str(path)!r} cannot be written by this user, or is mounted read-only. Give another with --volume."
        )
    return path


def place_of(given: Path) -> Path:
    """Return a directory that was named as a volume, as an absolute path, if it exists."""
    path = Path(os.path.expanduser(given)).absolute()  # noqa: PTH111 (pathlib's own fails where there is no such user)
    if os.path.isdir(path):  # noqa: PTH112 (pathlib's own fails where a name is too long)
        return path
    if os.path.exists(path):  # noqa: PTH110
        raise UsageError(f"the volume {str(path)!r} is not a directory. Give another with --volume.")
    raise UsageError(f"the volume {str(path)!r} does not exist. Make it with: mkdir -p {shlex.quote(str(path))}")


def _name(asked: Asked, project: projects.Project, values: Mapping[str, specs.Value]) -> str:
    named = {key: value for key, value in values.items() if not project.job.parameters[key].extend}
    return specs.run_name(project.base, asked.image or asked.environment, named, (*project.command, *asked.command))


def _attach(existing: runs.Found, run: Run, asked: Asked) -> Plan:
    if asked.fresh or asked.update_code:
        option = "--fresh" if asked.fresh else "--update-code"
        raise UsageError(
            f"{existing.name} is going, so {option} is refused. Stop it first: {runs.command('stop', existing)}"
        )
    notes = []
    if existing.request and _changes(existing, run):
        notes.append("the code here has changed since this run began; it goes on with the code that it began with")
    if existing.request and _extended(existing, run):
        notes.append("it goes on to where it was told to end; the same command extends it then")
    return Plan(action="attach", directory=existing.directory, existing=existing, notes=tuple(notes))


def _begun_by(existing: runs.Found, run: Run) -> bool:
    """Return whether `--fresh` was left standing in the command: this very command began the run, which was interrupted."""
    past = existing.request
    begun = past.get("begun_fresh") and not run_directory.differences(past, run.request)
    return bool(begun) and existing.state == "interrupted"


def _changes(existing: runs.Found, run: Run) -> list[str]:
    """Return what is changed in the code; refuse what else differs from the run's beginning, showing it."""
    past, now = existing.request, run.request
    frozen = run_directory.differences({**past, "code": {}}, {**now, "code": {}})
    if frozen:
        raise UsageError(
            f"{existing.name} was begun differently ({existing.directory}):\n  " + "\n  ".join(frozen)
            + "\nAsk for the same, choose another --name, or begin again with --fresh (the old run is kept)."
        )  # fmt: skip
    changed: list[str] = run_directory.code_differences(past, now)
    return changed


def _refuse_other_project(existing: runs.Found, run: Run) -> None:
    """Refuse to touch a run of another project that is still there; a clone of the same code is the same project."""
    owner = existing.request.get("project")
    if not owner or owner == run.request["project"] or not Path(owner).exists():
        return
    if run_directory.code_differences(existing.request, run.request):
        raise UsageError(
            f"{existing.name} belongs to another project: {owner}. Give this one a name of its own with --name."
        )


def _compare(existing: runs.Found, run: Run, notes: list[str]) -> None:
    """Refuse what differs from the run's beginning; note what is accepted."""
    changed = _changes(existing, run)
    if not changed:
        return
    if run.request["mode"] == "update-code" and existing.state != "succeeded":
        files = f"{len(changed)} file{'s' if len(changed) > 1 else ''}"
        exact = "; the run is no longer exact" if existing.checkpoint() else ""
        notes.append(f"{files} of the code: updated{exact}")
    elif existing.checkpoint() is None and existing.state != "succeeded":
        notes.append("the code has changed and there is no checkpoint yet: it begins anew with the code of now")
    else:
        options = "--fresh begins again (the old run is kept)"
        if existing.state != "succeeded":
            options = f"--update-code goes on with the new code, {options}"
        raise UsageError(
            f"the code of {existing.name} has changed since it began:\n  " + "\n  ".join(changed[:20])
            + (f"\n  and {len(changed) - 20} more" if len(changed) > 20 else "") + f"\n{options}."
        )  # fmt: skip


def _extended(existing: runs.Found, run: Run) -> bool:
    past, now = existing.request["parameters"], run.request["parameters"]
    return any(now[name] > past[name] for name in run.request["extend"] if name in past and now[name] != past[name])


def _build(asked: Asked, project: projects.Project, values: Mapping[str, specs.Value], volume: Path, name: str,
           files: Mapping[str, Path], code: Mapping[str, str], past: Mapping[str, Any] | None, mode: str) -> Run:  # fmt: skip
    row, lock, pythons = (None, "", []) if asked.image else _environment(asked, project.job, volume / name, past)
    variables = _variables(asked.variables)
    data = _data(asked, project)
    job = project.job
    command, from_job = _command(asked, project)
    parameters = {key: parameter.default for key, parameter in job.parameters.items()}
    if past:
        parameters.update({key: value for key, value in past["parameters"].items() if key in parameters})
    every = asked.checkpoint_every or job.checkpoint_every
    described = projects.job_hash(files)
    request = {
        "format": run_directory.FORMAT,
        "name": name,
        "job": project.base,
        "project": str(project.alone or project.root),
        "folder": project.root.name or "project",
        "environment": row,
        "image": asked.image,
        "libraries": _libraries(row),
        "tensorflow": _tensorflow(lock),
        "pythons": list(pythons),
        "lock": virtualenvs.lock_hash(lock),
        "command": list(command),
        "format_command": from_job,
        "parameters": {**parameters, **values},
        "extend": [key for key, parameter in job.parameters.items() if parameter.extend],
        "code": _code(code, past, described),
        "job_yaml": described,
        "data": {key: _hashes(*source) for key, source in data.items()},
        "resources": _resources(asked, job),
        "hide_gpus": asked.gpus == 0,
        "retries": job.retries if asked.retries is None else asked.retries,
        "checkpoint_every": every or "10s",
        "checkpoint_explicit": every is not None,
        "variables": sorted(variables),
        "secrets": _secrets(asked.secrets, past),
        "backend": asked.backend,
        "submission": secrets.token_hex(6),
        "mode": mode,
        "begun_fresh": bool(past.get("begun_fresh")) if past else asked.fresh,
        "user": _user(),
        "again": shlex.join(again(asked, project, volume)),
    }
    return Run(
        name=name, volume=volume, request=request, root=project.root, code=files, lock=lock, pythons=tuple(pythons),
        python=_first_python(volume / name) if past else None, data=data,
        variables=variables, base_image=asked.base_image, registry=asked.registry,
        user=None if asked.user is None else specs.user_ids(asked.user),
    )  # fmt: skip


def _code(code: Mapping[str, str], past: Mapping[str, Any] | None, described: str | None) -> dict[str, str]:
    """Return the manifest; a job.yaml that says the same but for its free keys counts as the one of the beginning."""
    if past and described and past.get("job_yaml") == described and "job.yaml" in past.get("code", {}):
        return {**code, "job.yaml": past["code"]["job.yaml"]}
    return dict(code)


def _environment(
    asked: Asked, job: specs.Job, directory: Path, past: Mapping[str, Any] | None
) -> tuple[str, str, list[str]]:
    """Return the row's name, the lock's text and the Pythons: those the run began with, else the row's of today."""
    began = past["environment"] if past else None
    kept = directory / "runner.lock"
    if past and kept.is_file() and (asked.environment is None or _same_row(asked.environment, began)):
        return past["environment"], kept.read_text(), list(past["pythons"])
    row = _row(asked.environment or began or asked.preferred or job.environment, asked, job)
    if past and kept.is_file() and row.name == began:
        return row.name, kept.read_text(), list(past["pythons"])
    return row.name, row.lock_text, list(row.pythons)


def _resources(asked: Asked, job: specs.Job) -> dict[str, Any]:
    memory = job.resources.memory if asked.memory is None else asked.memory
    if memory is not None:
        specs.memory_bytes(memory, f"--memory {memory}")
    return {"cpus": asked.cpus or job.resources.cpus, "memory": memory, "gpus": _gpus(asked, job)}


def _libraries(row: str | None) -> list[str]:
    """Return the libraries that TensorFlow loads for a GPU; a row that is no longer there leaves them unchecked."""
    known = environments.load()
    return list(known[row].libraries) if row in known else []


def _gpus(asked: Asked, job: specs.Job) -> int:
    return job.resources.gpus if asked.gpus is None else asked.gpus


def _row(wanted: str | None, asked: Asked, job: specs.Job) -> environments.Environment:
    """Return the row of this name; with GPUs it must be one of those for cuda."""
    wanted, gpus = wanted or environments.default().name, _gpus(asked, job)
    if not gpus:
        return environments.find(wanted)
    names = [row.name for row in environments.load().values() if row.device == "cuda"]
    base = environments.find(wanted).name if wanted.endswith("-cpu") else wanted
    try:
        row = environments.find(base, "cuda")
    except UsageError:
        row = environments.find(base)  # unknown for the CPU too: that refusal says more
    if row.device != "cuda":
        asking = f"job.yaml asks for gpus: {gpus}, which" if asked.gpus is None else f"--gpus {gpus}"
        there = f"There is {', '.join(names) or 'none yet'}."
        without = "With --gpus 0" if job.resources.gpus else "Without --gpus"
        raise UsageError(
            f"{asking} needs an environment for cuda, and {row.name} is for the CPU. {there} {without} it runs on the CPU."
        )
    return row


def _same_row(wanted: str, name: str | None) -> bool:
    return wanted == name or f"{wanted}-cpu" == name or f"tf{wanted}-cpu" == name


def _tensorflow(lock: str) -> str | None:
    for line in lock.splitlines():
        package, equals, version = line.split(" ")[0].partition("==")
        if equals and package in ("tensorflow", "tensorflow-cpu"):
            return version
    return None


def _command(asked: Asked, project: projects.Project) -> tuple[tuple[str, ...], bool]:
    if asked.command or project.command:
        return (*project.command, *asked.command), False
    if project.job.command:
        return project.job.command, True
    scripts = sorted(path.name for path in project.root.glob("*.py"))
    example = f"python {scripts[0]}" if scripts else "python train.py"
    raise UsageError(
        f"{project.root} does not say what to run. Give the command after --, such as: runner run {shlex.quote(asked.job)} -- {example}"
    )


def _variables(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not specs.VARIABLE.fullmatch(key):
            raise UsageError(
                f"-e {key}: a variable is given as KEY or KEY=VALUE; a KEY has letters, digits and _ only."
            )
        if not equals and key not in os.environ:
            raise UsageError(
                f"-e {key}: there is no variable {key} here whose value could be taken. Give -e {key}=VALUE."
            )
        found[key] = value if equals else os.environ[key]
    return found


def _secrets(given: tuple[str, ...], past: Mapping[str, Any] | None) -> list[str]:
    """Return the secrets' names: those that are given, and those that the run began with."""
    for key in given:
        if not specs.VARIABLE.fullmatch(key):
            raise UsageError(
                f"--secret {key.partition('=')[0]}: give the name of a variable only, so that its value stands in no command line."
            )
    return sorted({*given, *(past or {}).get("secrets", [])})


def _values(secrets: list[str]) -> dict[str, str]:
    """Return the secrets' values, taken from the caller's environment, when an attempt needs them."""
    for key in secrets:
        if key not in os.environ:
            raise UsageError(f"the secret {key} is not set here. Set it with: export {key}=...")
    return {key: os.environ[key] for key in secrets}


def _data(asked: Asked, project: projects.Project) -> dict[str, tuple[datasets.DataSet | None, Path | None]]:
    """Return each data set's description (None: any directory) and the directory that was given for it; nothing is fetched yet."""
    given = {}
    for item in asked.data:
        name, equals, path = item.partition("=")
        if not equals or not path or not specs.NAME.fullmatch(name):
            raise UsageError(
                f"--data {item}: a data set is given as NAME=PATH, such as --data fashion-mnist=/data/fashion-mnist."
            )
        given[name] = _absolute(path)
    return {name: _data_set(name, project, given.get(name)) for name in {**project.job.data, **given}}


def _absolute(path: str) -> Path:
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 (pathlib's own fails where there is no such user)


def _data_set(name: str, project: projects.Project, given: Path | None) -> tuple[datasets.DataSet | None, Path | None]:
    definition = project.job.data.get(name)
    if given and not given.is_dir():
        raise UsageError(f"--data {name}={given}: there is no such directory.")
    if given and not definition and name not in yamlfile.load(resources.data("jobs", "datasets.yaml")):
        return None, given
    return datasets.find(name, definition or None, project.root), given


def _hashes(dataset: datasets.DataSet | None, given: Path | None) -> dict[str, str]:
    if dataset:
        return dict(dataset.files)
    assert given
    return datasets.fingerprint(given)


def _first_python(directory: Path) -> str | None:
    record = run_directory.read_json(str(directory / "run.json")) or {}
    python: str | None = record.get("conditions", {}).get("python")
    return python


def _user() -> str:
    import getpass

    try:
        return f"{getpass.getuser()}@{platform.node()}"
    except (KeyError, OSError):  # a user without a name
        return f"{os.getuid()}@{platform.node()}"


def again(asked: Asked, project: projects.Project, volume: Path) -> list[str]:
    """Return the command that continues this run, complete: it works from any directory."""
    path = _absolute(asked.job)
    words = ["runner", "run", str(path.resolve()) if path.exists() else asked.job]
    for option, value in (
        ("-E", asked.environment),
        ("--on", None if asked.backend == "native" else asked.backend),
        ("--name", asked.name),
        ("--image", asked.image),
        ("--memory", asked.memory),
        ("--user", asked.user),
    ):
        words += [option, value] if value else []
    data = (f"{name}={_absolute(path)}" for name, _, path in (item.partition("=") for item in asked.data))
    for option, values in (
        ("-P", asked.parameters),
        ("-e", asked.variables),
        ("--secret", asked.secrets),
        ("--data", data),
    ):
        for item in values:
            words += [option, item]
    for option, number in (("--cpus", asked.cpus), ("--gpus", asked.gpus), ("--retries", asked.retries)):
        words += [] if number is None else [option, str(number)]
    words += ["--volume", str(volume)] if volume != Path(runs.DEFAULT_VOLUME).expanduser() else []
    return words + (["--", *asked.command] if asked.command else [])
