"""File systems that tests mount: small, read-only, or poor in what they can do. Only root can mount."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from conftest import need


@contextlib.contextmanager
def mounted(place: Path, *options: str, source: str | Path = "tmpfs", kind: str | None = "tmpfs") -> Iterator[Path]:
    """Mount something, a tmpfs by default, while the block runs; skip where that is not possible."""
    need("root", os.geteuid() == 0, "only root can mount; run the tests as root, in a container for instance")
    place.mkdir(exist_ok=True)
    words = ["mount", *(["-t", kind] if kind else []), *options, str(source), str(place)]
    done = subprocess.run(words, capture_output=True, text=True)
    need("mount", done.returncode == 0, f"`{' '.join(words)}` says: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[Path]:
    """Make a directory read-only, for root too."""
    with mounted(place, "--bind", source=place, kind=None):
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        yield place
