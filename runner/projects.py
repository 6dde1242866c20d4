"""The project of a job: where it is, what of it travels (the snapshot), and the archive that launch.py unpacks."""

from __future__ import annotations

import ast
import fnmatch
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner import launcher, resources, terminal
from runner.errors import UsageError, unknown
from runner.specs import Job, read_job

LIMIT = 200_000_000  # bytes; beyond this a sentence names the big folders
IGNORED = (".git", ".hg", ".svn", "__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".mypy_cache", ".ruff_cache",
           ".tox", ".nox", ".eggs", "node_modules", ".DS_Store", ".Trash*", "*.pyc", "lost+found")  # fmt: skip
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
    path = Path(argument).expanduser()
    if path.is_dir():
        return _directory(path.resolve())
    if path.is_file():
        return _file(path.resolve())
    if os.sep in argument or argument.startswith(".") or path.suffix in (".py", ".ipynb"):
        raise UsageError(
            f"{argument!r} is neither a directory nor a file. Give the path of a project or a script, or a job's name."
        )
    jobs = {folder.parent.name: folder.parent for folder in resources.data("jobs").glob("*/job.yaml")}
    if argument not in jobs:
        raise unknown("job", argument, jobs)
    return _directory(jobs[argument])


def _directory(root: Path) -> Project:
    description = root / "job.yaml"
    return Project(root=root, job=read_job(description) if description.is_file() else Job(), base=root.name or "job")


def _file(path: Path) -> Project:
    if path.suffix != ".py":
        raise UsageError(
            f"{path.name!r} is not a Python script. Give a .py file, or a directory and a command after --."
        )
    root = next((folder for folder in path.parents if any((folder / name).exists() for name in MARKERS)), path.parent)
    command = ("python", path.relative_to(root).as_posix())
    if _too_wide(root):
        return Project(root=path.parent, job=Job(), base=path.stem, command=("python", path.name), alone=path)
    return Project(root=root, job=_directory(root).job, base=root.name, command=command)


def _too_wide(root: Path) -> bool:
    """Return whether a folder holds much more than a project: a home, a drive's root, a notebook's /content."""
    return root == Path.home().resolve() or root == Path("/content") or os.path.ismount(root)


def snapshot(project: Project, volume: Path | None) -> dict[str, Path]:
    """Return the files that travel: path in the project -> where it is."""
    if project.alone:
        return {path.name if path.parent == project.root else path.relative_to(project.root).as_posix(): path
                for path in _with_imports(project.alone, project.root)}  # fmt: skip
    found = dict(_walk(project.root, volume))
    _refuse_large(project.root, found)
    return found


def _walk(root: Path, volume: Path | None) -> Iterator[tuple[str, Path]]:
    ignored = [*IGNORED, *_runnerignore(root)]
    device = root.stat().st_dev
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if _travels(here / name, root, ignored, device, volume))
        for name in sorted(names):
            path = here / name
            relative = path.relative_to(root).as_posix()
            if not _matches(relative, ignored) and _is_file(path):
                yield relative, path


def _travels(folder: Path, root: Path, ignored: list[str], device: int, volume: Path | None) -> bool:
    if folder.is_symlink() or _matches(folder.relative_to(root).as_posix(), ignored):
        return False
    if (folder / "pyvenv.cfg").exists() or folder == volume or (folder / "conda-meta").is_dir():
        return False
    return folder.stat().st_dev == device


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False  # a broken link


def _runnerignore(root: Path) -> list[str]:
    path = root / ".runnerignore"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line.strip().rstrip("/") for line in lines if line.strip() and not line.startswith("#")]


def _matches(relative: str, patterns: list[str]) -> bool:
    name = relative.rsplit("/", 1)[-1]
    return any(
        fnmatch.fnmatch(relative, p.lstrip("/")) or ("/" not in p and fnmatch.fnmatch(name, p)) for p in patterns
    )


def _refuse_large(root: Path, found: Mapping[str, Path]) -> None:
    sizes: dict[str, int] = {}
    for relative, path in found.items():
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
            tree = ast.parse(current.read_bytes())
        except SyntaxError:
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


def manifest(files: Mapping[str, Path]) -> dict[str, str]:
    """Return path -> SHA-256 of the snapshot; of notebooks only the cells' sources count."""
    try:
        return {relative: launcher.module().code_hash(str(path)) for relative, path in files.items()}
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be read: {error.strerror}. Name it in .runnerignore if the job does not need it."
        ) from error


def archive(root: Path, files: Mapping[str, Path], target: Path) -> None:
    """Write the snapshot as a tar file; links within the project stay links, others become what they point to."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for relative, path in files.items():
            inside = path.is_symlink() and path.resolve().is_relative_to(root.resolve())
            tar.dereference = not (inside and not path.readlink().is_absolute())
            tar.inodes.clear()  # type: ignore[attr-defined]  # hard links travel as files of their own
            tar.add(path, arcname=relative, recursive=False, filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
