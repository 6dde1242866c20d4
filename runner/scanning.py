"""Looks for variables that a project's code reads and a container will not have. Nothing of it is run."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from runner.backends.native import DROPPED
from runner.packages import CA_VARIABLES, PROXY_VARIABLES
from runner.specs import VARIABLE, Run

# Set here, and no loss there, each for a reason:
NOT_MISSED = re.compile(
    "|".join(
        (
            "PATH|HOME|USER|LOGNAME|HOSTNAME|LANG|LANGUAGE|TZ|LC_.*",  # a container has its own
            "TMP|TEMP|TMPDIR|PWD|OLDPWD|XDG_.*|CUDA_HOME|CUDA_PATH",  # places that are not there
            "SHELL|SHLVL|_|TERM|COLORTERM|COLUMNS|LINES|EDITOR|.*DISPLAY|SSH_.*|DBUS_.*",  # of somebody who sits here
            "CUDA_VISIBLE_DEVICES|NVIDIA_.*",  # choose the GPUs that it is given, which it counts from 0
            "OMP_NUM_THREADS|TF_NUM_INT(RA|ER)OP_THREADS",  # launch.py sets them
            "|".join(f"{name}.*" for name in DROPPED),  # natively the job does not have them, either
            "|".join((*CA_VARIABLES, *PROXY_VARIABLES, "NO_PROXY", "no_proxy")),  # passed on without being asked for
        )
    )
)


def missed(run: Run, here: Mapping[str, str] = os.environ) -> str | None:
    """Return a sentence that names the variables that are set here, and that the code will not find in a container."""
    given = {*run.variables, *run.request["secrets"]}
    wanted = {name for name in here if VARIABLE.fullmatch(name) and not NOT_MISSED.fullmatch(name)} - given
    found: dict[str, str] = {}  # the variable -> the first file that reads it
    for file, path in run.code.items():
        for name in sorted(_read_in(path, wanted - found.keys())) if file.endswith((".py", ".ipynb")) else ():
            found[name] = file
    return _sentence(found, bool(run.request["image"])) if found else None


def _sentence(found: Mapping[str, str], own_image: bool) -> str:
    files = dict.fromkeys(found.values())
    reads = [f"{file} reads {' and '.join(name for name in found if found[name] == file)}" for file in files]
    options = shlex.join(word for name in found for word in ("-e", name))
    which = "which the container will not have" + (", unless the image sets it" if own_image else "")
    if len(found) == 1:
        return f"{reads[0]}, {which}. Give it with {options} or, if it is secret, --secret {next(iter(found))}."
    return f"{', '.join(reads)}, {which}. Give them with {options} (what is secret with --secret)."


def _read_in(path: Path, wanted: set[str]) -> set[str]:
    """Return which of these variables a file reads before it sets them itself."""
    try:
        content = path.read_bytes()
    except OSError:
        return set()
    if not wanted or not _likely(content, wanted):
        return set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the project's own code
            tree = ast.parse(_cells(content) if path.suffix == ".ipynb" else content)
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError):
        return set()  # damaged, or for another Python
    # A line's value is found before the variable is set from it.
    uses = sorted((line, sets, name) for line, sets, name in _uses(tree) if name in wanted)
    first: dict[str, bool] = {}
    for _, sets, name in uses:
        first.setdefault(name, sets)
    return {name for name, sets in first.items() if not sets}


def _likely(content: bytes, wanted: set[str]) -> bool:
    """Return whether one of these names stands in quotes near `environ` or `getenv`: to parse all files would be slow."""
    quoted = re.compile(rb"[\"'](?:%s)\\?[\"']" % "|".join(sorted(wanted)).encode())  # a notebook has \" for its quotes
    places = re.finditer(rb"env(?:iron)?\b", content)
    return any(quoted.search(content, max(0, place.start() - 200), place.end() + 200) for place in places)


def _cells(content: bytes) -> str:
    """Return the code of a notebook, less what only a notebook understands."""
    cells = ["".join(cell["source"]) for cell in json.loads(content)["cells"] if cell["cell_type"] == "code"]
    return re.sub(r"^(\s*)[%!?].*", r"\1pass", "\n".join(cells), flags=re.MULTILINE)


def _uses(tree: ast.AST) -> Iterator[tuple[int, bool, str]]:
    """Give (line, whether it is set there, name) of each variable that is named in the code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _is(node.value, "environ"):  # os.environ["X"]
            yield from _named(node.slice, not isinstance(node.ctx, ast.Load))
        elif isinstance(node, ast.Call) and node.args and _reads(node.func):  # os.getenv("X"), os.environ.get("X")
            yield from _named(node.args[0], False)
        elif isinstance(node, ast.Compare) and _is(node.comparators[0], "environ"):  # "X" in os.environ
            yield from _named(node.left, False)


def _reads(function: ast.expr) -> bool:
    of_environ = isinstance(function, ast.Attribute) and _is(function.value, "environ")
    return _is(function, "getenv") or (of_environ and (_is(function, "get") or _is(function, "setdefault")))


def _is(node: ast.expr, name: str) -> bool:
    """Return whether an expression is this name, on its own or of a module."""
    return (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)) == name


def _named(node: ast.expr, sets: bool) -> Iterator[tuple[int, bool, str]]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, sets, node.value
