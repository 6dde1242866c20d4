"""File systems that tests mount: small, read-only, or poor in what they can do. Only root can mount."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from conftest import need, until


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


SYSTEM = os.environ["PATH"] + ":/sbin:/usr/sbin"


@contextlib.contextmanager
def fat(place: Path, image: Path) -> Iterator[Path]:
    """Mount a file system that has neither links nor modes, in a file: vfat, or exFAT by FUSE where the kernel has no vfat."""
    with image.open("wb") as file:
        file.truncate(32_000_000)
    if "vfat" in Path("/proc/filesystems").read_text() or Path("/lib/modules").is_dir():
        _make("mkfs.vfat", "dosfstools", image)
        with mounted(place, "-o", "loop", source=image, kind="vfat"):
            yield place
        return
    _make("mkfs.exfat", "exfatprogs", image)
    driver = shutil.which("mount.exfat-fuse", path=SYSTEM)
    need("fat", driver is not None, "this kernel has no vfat: apt install exfat-fuse")
    place.mkdir(exist_ok=True)
    device = subprocess.check_output(["losetup", "--find", "--show", image], text=True).strip()
    try:
        subprocess.run([str(driver), device, place], check=True, capture_output=True)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=False)
        subprocess.run(["losetup", "--detach", device], check=True)


def _make(program: str, package: str, image: Path) -> None:
    need("root", os.geteuid() == 0, "only root can mount; run the tests as root, in a container for instance")
    path = shutil.which(program, path=SYSTEM)
    need("fat", path is not None, f"{program} makes the file system: apt install {package}")
    subprocess.run([str(path), image], check=True, capture_output=True)


@contextlib.contextmanager
def drive(place: Path, backing: Path) -> Iterator[Path]:
    """Serve a folder as a mounted drive, which has no flock, chmod, links or fsync (see drive.py)."""
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError):
        need("fuse", False, "install libfuse (apt install fuse3) and pip install mfusepy")
    need("fuse", os.access("/dev/fuse", os.R_OK | os.W_OK), "/dev/fuse may not be used here")
    for folder in (place, backing):
        folder.mkdir(exist_ok=True)
    server = subprocess.Popen([sys.executable, Path(__file__).with_name("drive.py"), backing, place])
    try:
        until(lambda: server.poll() is not None or os.path.ismount(place), what="the drive")
        need("fuse", server.poll() is None, "the drive could not be mounted")
        yield place
    finally:
        subprocess.run(
            ["umount" if os.geteuid() == 0 else "fusermount3", *([] if os.geteuid() == 0 else ["-u"]), place],
            check=False,
        )
        server.terminate()
        server.wait()
