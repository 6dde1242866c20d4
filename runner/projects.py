"""The project of a job: where it is, what of it travels (the snapshot), and the archive that launch.py unpacks."""

from __future__ import annotations

import ast
import errno
import fnmatch
import hashlib
import json
import os
import stat
import tarfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner import resources, run_directory, terminal, yamlfile
from runner.errors import UsageError, unknown
from runner.specs import Job, read_job

LIMIT = 200_000_000  # bytes; beyond this a sentence names the big folders
IGNORED = (".git", ".hg", ".svn", "__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".mypy_cache", ".ruff_cache",
           ".tox", ".nox", ".eggs", "node_modules", ".DS_Store", ".Trash*", "*.pyc", "lost+found")  # fmt: skip
FREE = ("retries", "resources", "checkpoint_every")  # keys of job.yaml that may differ from attempt to attempt
MOUNTS = Path("/proc/mounts")
MARKERS = (".git", "job.yaml", "pyproject.toml", "requirements.txt")


@dataclass(frozen=True, kw_only=True)
class Project:
    """A job in its place: the folder that travels, the job's description, and the command that a FILE stands for."""

    root: Path
    job: Job
    base: str  # the name that the run's name begins with
    command: tuple[str, ...] = ()
    alone: Path | None = None  # a file that travels without its folder


def find(argument: str) -> Project:
    """Return the project that JOB, DIR or FILE names."""
    path = Path(os.path.expanduser(argument))  # noqa: PTH111 (pathlib's own fails where there is no such user)
    if os.path.isdir(path):  # noqa: PTH112 (pathlib's own fails where a name is too long)
        return _directory(path.resolve())
    if os.path.isfile(path):  # noqa: PTH113
        return _file(path.resolve())
    if os.sep in argument or argument.startswith(".") or path.suffix in (".py", ".ipynb"):
        raise UsageError(
            f"{argument[:200]!r} is neither a directory nor a file. Give the path of a project or a script, or a job's name."
        )
    jobs = {folder.parent.name: folder.parent for folder in resources.data("jobs").glob("*/job.yaml")}
    if argument not in jobs:
        raise unknown("job", argument[:200], jobs)
    return _directory(jobs[argument])


def _directory(root: Path) -> Project:
    description = root / "job.yaml"
    return Project(root=root, job=read_job(description) if description.is_file() else Job(), base=root.name or "job")


def _file(path: Path) -> Project:
    if path.suffix != ".py":
        raise UsageError(
            f"{path.name!r} is not a Python script. Give a .py file, or a directory and a command after --."
        )
    root = next((folder for folder in path.parents if _is_project(folder)), path.parent)
    if _too_wide(root) and not _is_project(root):
        return Project(root=path.parent, job=Job(), base=path.stem, command=("python", path.name), alone=path)
    command = ("python", path.relative_to(root).as_posix())
    return Project(root=root, job=_directory(root).job, base=root.name, command=command)


def _is_project(folder: Path) -> bool:
    """Return whether a folder is marked as a project. A home is none, whatever lies in it."""
    return any((folder / name).exists() for name in MARKERS) and folder not in _homes()


def _too_wide(folder: Path) -> bool:
    """Return whether a folder holds much more than a script's modules: a home, a notebook's /content, a drive's root."""
    return folder in _homes() or os.path.ismount(folder) or folder.parent in _drives()


def _drives() -> list[Path]:
    """Return where drives are mounted that show their files a folder below: /content/drive/MyDrive is a drive's root, too."""
    try:
        mounts = [line.split() for line in MOUNTS.read_text(errors="surrogateescape").splitlines()]
    except OSError:  # macOS
        return []
    # Not fuseblk, a local disk; and a container's root may be FUSE as well.
    return [Path(place) for _, place, kind, *_ in mounts if (kind + ".").startswith("fuse.") and place != "/"]


def _homes() -> tuple[Path, ...]:
    return (Path.home().resolve(), Path("/content"), Path("/"))


def snapshot(project: Project, volume: Path | None) -> dict[str, Path]:
    """Return what travels: path in the project -> where it is; a path that ends with / is a folder without files."""
    try:
        if project.alone:
            files = _with_imports(project.alone, project.root)
            return {path.relative_to(project.root).as_posix(): path for path in files}
        found = dict(_Walk(project.root, volume.resolve() if volume else None).entries(project.root))
    except OSError as error:
        raise _unreadable(error) from error
    _refuse_large(project.root, found)
    return found


def _unreadable(error: OSError) -> UsageError:
    return UsageError(
        f"{error.filename} cannot be read: {error.strerror}. Name it in .runnerignore if the job does not need it."
    )


class _Walk:
    """A walk over a project: what is ignored, where it ends, and that no link leads it round in circles."""

    def __init__(self, root: Path, volume: Path | None) -> None:
        self.root, self.volume = root, volume
        self.ignored = [*IGNORED, *_runnerignore(root)]
        self.settings = {"runner.yaml", *_own_rows(root)}
        self.device = root.stat().st_dev

    def entries(self, folder: Path, trail: tuple[Path, ...] = ()) -> Iterator[tuple[str, Path]]:
        """Give (path in the project, where it is) of all that travels below a folder; `trail` is where we came from."""
        trail = (*trail, folder.resolve())
        paths = [path for path in sorted(folder.iterdir()) if not self._stays(self._name(path))]
        files = [path for path in paths if _is_file(path)]
        yield from ((self._name(path), path) for path in files)
        if not files and folder != self.root:
            yield self._name(folder) + "/", folder
        for path in paths:
            if path.is_dir() and self._travels(path, trail):
                yield from self.entries(path, trail)

    def _stays(self, name: str) -> bool:
        return name in self.settings or _matches(name, self.ignored)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _travels(self, folder: Path, trail: tuple[Path, ...]) -> bool:
        names = set(os.listdir(folder))
        if names & {"pyvenv.cfg", "conda-meta"} or names >= {"request.json", "run.json"}:
            return False  # a virtualenv; a run, on a volume in the project or pulled into it
        there = folder.resolve()
        circle = there in trail or self.root.is_relative_to(there)
        return not circle and there != self.volume and folder.stat().st_dev == self.device


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False  # a broken link
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _runnerignore(root: Path) -> list[str]:
    path = root / ".runnerignore"
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if path.is_file() else []
    return [line.strip().rstrip("/") for line in lines if line.strip() and not line.startswith("#")]


def _own_rows(root: Path) -> list[str]:
    """Return the files that `runner lock` makes, where they lie in the project: settings of the runner, and no code."""
    path = root / "environments.yaml"
    try:
        rows = yamlfile.load(path).get("environments") if path.is_file() else None
    except UsageError:
        return []
    if not isinstance(rows, dict) or not all(isinstance(row, dict) and "tensorflow" in row for row in rows.values()):
        return []  # the project's own, which only has the same name
    return ["environments.yaml", *(f"locks/{name}.txt" for name in rows)]


def _matches(relative: str, patterns: list[str]) -> bool:
    name = relative.rsplit("/", 1)[-1]
    return any(
        fnmatch.fnmatch(relative, p.lstrip("/")) or ("/" not in p and fnmatch.fnmatch(name, p)) for p in patterns
    )


def _refuse_large(root: Path, found: Mapping[str, Path]) -> None:
    sizes: dict[str, int] = {}
    for relative, path in _files(found):
        top = relative.split("/", 1)[0]
        sizes[top] = sizes.get(top, 0) + path.stat().st_size
    total = sum(sizes.values())
    if total > LIMIT:
        big = ", ".join(f"{name} ({terminal.size(sizes[name])})" for name in sorted(sizes, key=lambda n: -sizes[n])[:3])
        raise UsageError(
            f"the project {root} has {terminal.size(total)}, and at most {terminal.size(LIMIT)} travel with a run. "
            f"The biggest: {big}. Name what the job does not need in .runnerignore, or give data with --data NAME=PATH."
        )


def _with_imports(path: Path, folder: Path) -> list[Path]:
    """Return a script and the modules beside it that it imports, directly or not."""
    found, todo = [], [path]
    while todo:
        current = todo.pop()
        if current in found:
            continue
        found.append(current)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about strings such as "\d": the job itself will say so
                tree = ast.parse(current.read_bytes())
        except (SyntaxError, ValueError):
            continue  # written for another Python, or wrong: the job itself will say so
        for name in _imported(tree):
            todo += [module for module in _module_files(folder, name) if module.is_file()]
    return sorted(found)


def _imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def _module_files(folder: Path, name: str) -> list[Path]:
    package = folder / name
    return [folder / f"{name}.py", *(sorted(package.rglob("*.py")) if (package / "__init__.py").is_file() else [])]


def _files(entries: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    return ((relative, path) for relative, path in entries.items() if not relative.endswith("/"))


def manifest(entries: Mapping[str, Path]) -> dict[str, str]:
    """Return path -> SHA-256 of the snapshot's files; of notebooks only the cells' sources count."""
    try:
        return {relative: run_directory.code_hash(str(path)) for relative, path in _files(entries)}
    except OSError as error:
        raise _unreadable(error) from error


def job_hash(entries: Mapping[str, Path]) -> str | None:
    """Return the SHA-256 of what job.yaml says, less its free keys: others may be given without a change of the code."""
    if "job.yaml" not in entries:
        return None
    said = {key: value for key, value in yamlfile.load(entries["job.yaml"]).items() if key not in FREE}
    return hashlib.sha256(json.dumps(said, default=str, sort_keys=True).encode()).hexdigest()


def archive(entries: Mapping[str, Path], target: Path) -> None:
    """Write the snapshot as a tar file. Links become what they point to: not every volume has links."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT, dereference=True) as tar:
        for relative, path in entries.items():
            tar.inodes.clear()  # type: ignore[attr-defined]  # hard links travel as files of their own
            tar.add(path, arcname=relative, recursive=False, filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
