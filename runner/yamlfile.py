"""Reads YAML files that people write: duplicate and unknown keys are refused, and every refusal names file and line."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from runner.errors import UsageError, unknown

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Mapping(dict[str, Any]):
    """A mapping of a file, with the file's path and the line of each key."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.lines: dict[str, int] = {}

    def where(self, key: str | None = None) -> str:
        """Return `file, line N` of a key, for a message."""
        line = self.lines.get(key or "")
        return f"{self.path}, line {line}" if line else str(self.path)

    def refuse_unknown(self, known: Collection[str], kind: str = "key") -> None:
        """Refuse keys that nothing reads: a misspelt key must not be a default in disguise."""
        for key in self:
            if key not in known:
                raise UsageError(f"{self.where(key)}: {unknown(kind, key, known)}")


def load(path: Path) -> Mapping:
    """Return the mapping in a YAML file (an empty file is an empty mapping)."""
    return parse(path.read_bytes(), path)


def parse(content: bytes, path: Path) -> Mapping:
    """Return the mapping in YAML text; `path` is for messages."""
    loader = _loader(path)(content)
    try:
        value = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: this is not YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{path}: this is not YAML: {error}.") from error
    finally:
        loader.dispose()
    if value is None:
        return Mapping(path)
    if not isinstance(value, Mapping):
        raise UsageError(f"{path}, line 1: a mapping (key: value) is expected, not {type(value).__name__}.")
    return value


def _loader(path: Path) -> Any:
    class Loader(_Loader):  # type: ignore[misc]
        pass

    def mapping(loader: Any, node: yaml.MappingNode) -> Mapping:
        loader.flatten_mapping(node)
        found = Mapping(path)
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UsageError(f"{path}, line {line}: a key must be a word.")
            # A key is its own text: YAML 1.1 takes on, off, yes and no for true and false, and 3.10 for 3.1.
            key = key_node.value
            if key in found:
                raise UsageError(
                    f"{path}, line {line}: the key {key!r} stands here twice (first in line {found.lines[key]})."
                )
            found[key] = loader.construct_object(value_node, deep=True)
            found.lines[key] = line
        return found

    def number(loader: Any, node: yaml.ScalarNode) -> Any:
        if ":" in node.value:  # `user: 1000:50`, which YAML 1.1 takes for a number to the base of 60
            return node.value
        kind = node.tag.rpartition(":")[2]
        return getattr(loader, f"construct_yaml_{kind}")(node)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", number)
    return Loader
