"""Run inside an environment for cuda, with the names of its row's `libraries`: all that TensorFlow loads is found.

Nothing but NVIDIA's driver may be missing: it comes from the machine. Natively LD_LIBRARY_PATH must be as launch.py sets it.
"""

import ctypes
import glob
import importlib.util
import mmap
import os
import re
import subprocess
import sys

DRIVERS_OWN = re.compile(r"^(libcuda|libnvidia-[\w-]+)\.so")
STUB = b"_stub.cc\0"
NOT_OURS = {"cuda", "nvinfer", "nvinfer_plugin"}  # the driver's; TensorRT's, without which TensorFlow goes on


def main(libraries):
    tensorflow, nvidia = folder("tensorflow"), folder("nvidia")
    own = elf_files(tensorflow, "**", "*.so*")
    wheels = elf_files(nvidia, "*", "lib", "*.so*")
    assert own and wheels and libraries, "nothing to check in %s" % tensorflow
    problems = not_loaded(libraries, "the row") + not_loaded(map(os.path.basename, wheels), "NVIDIA's wheels")
    problems += not_needed_found(own + wheels)
    problems += not_named(own, libraries)
    if not os.path.exists(os.path.join(nvidia, "cuda_nvcc", "nvvm", "libdevice", "libdevice.10.bc")):
        problems.append("libdevice.10.bc, with which XLA compiles, is not in %s" % nvidia)
    if not os.access(os.path.join(nvidia, "cuda_nvcc", "bin", "ptxas"), os.X_OK):
        problems.append("ptxas, with which XLA compiles, is not in %s" % nvidia)
    if problems:
        sys.exit("\n".join(problems))
    counts = (len(own), len(wheels), len(libraries))
    print(
        "libraries: %d files of TensorFlow, %d of NVIDIA's wheels and the %d of the row find all but the driver"
        % counts
    )


def folder(package):
    """Return where a package is, without importing it."""
    spec = importlib.util.find_spec(package)
    return os.path.realpath(next(iter(spec.submodule_search_locations))) if spec else os.devnull


def elf_files(*pattern):
    return [path for path in sorted(glob.glob(os.path.join(*pattern), recursive=True)) if is_elf(path)]


def is_elf(path):
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def not_loaded(names, whose):
    """Load libraries by their names, as TensorFlow and they themselves do; return what could not be."""
    problems = []
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError as error:
            problems.append("%s of %s cannot be loaded: %s" % (name, whose, error))
    return problems


def not_needed_found(paths):
    """Let the loader itself list what each file needs; return what it does not find."""
    with open("/proc/self/maps") as file:
        loader = re.search(r"/\S*/ld-[\w.-]+\.so\S*", file.read()).group()
    missing = []
    for path in paths:
        listed = subprocess.check_output([loader, path], env=dict(os.environ, LD_TRACE_LOADED_OBJECTS="1")).decode()
        assert "libc.so" in listed, "%s says of %s: %s" % (loader, path, listed)
        names = re.findall(r"(\S+) => not found", listed)
        missing += ["%s needs %s, which is not found" % (path, name) for name in names if not DRIVERS_OWN.match(name)]
    return missing


def not_named(paths, libraries):
    """Compare the row's names with the loaders in TensorFlow, which bear the names of their source files."""
    loaders = set()
    for path in paths:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            place = content.find(STUB)
            while place >= 0:
                name = re.search(rb"[/\0]((cu|nv)\w+)$", content[max(0, place - 50) : place])
                loaders.update([name.group(1).decode()] if name else [])
                place = content.find(STUB, place + 1)
    assert "cudart" in loaders, "the loaders in TensorFlow are not known by the names of their source files any more"
    named = {name[len("lib") :].split(".so")[0] for name in libraries}
    return ["TensorFlow loads lib%s, which the row does not name" % name for name in sorted(loaders - named - NOT_OURS)]


if __name__ == "__main__":
    main(sys.argv[1:])
