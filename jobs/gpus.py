"""Says which GPUs TensorFlow could use here, or why none: `python gpus.py BACKEND LIBRARY...`. Python 3.6 to 3.13.

It loads what TensorFlow would load, the driver first, and asks the driver for its devices: milliseconds, without TensorFlow.
"""

import contextlib
import ctypes
import json
import re
import sys


def look(backend, *libraries):
    """Print {"names": of the GPUs that TensorFlow could use, "problem": why it could use none}.

    In a process of its own, with the job's variables: so it meets what the job would, and leaves nothing open on a GPU.
    """
    names, problem = [], None
    native = backend == "native"
    no_driver = "Install NVIDIA's driver" if native else "It is NVIDIA's driver, which its container toolkit brings in"
    damaged = "%s is damaged: remove it, and it is made anew" % (sys.prefix if native else "The image")
    try:
        driver = _load("libcuda.so.1", no_driver)
        for name in libraries:
            _load(name, damaged)
        _start(driver, libraries)
        names = list(_names(driver))
    except _Unusable as error:
        problem = str(error)
    print(json.dumps({"names": names, "problem": problem}))


class _Unusable(Exception):
    pass


def _load(name, remedy):
    try:
        return ctypes.CDLL(name)
    except OSError as error:  # the loader names the file, also where it is one that this library needs
        problem = error
    raise _Unusable("%s cannot be loaded (%s). %s" % (name, problem, remedy))


def _start(driver, libraries):
    """Start the driver, and compare the CUDA that it knows with the one that the libraries are of."""
    known = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(known))
    wanted = [int(match.group(1)) for match in (re.match(r"libcudart\.so\.(\d+)", name) for name in libraries) if match]
    if wanted and known.value // 1000 < wanted[0]:
        words = "NVIDIA's driver is too old: it knows CUDA up to %d.%d, and TensorFlow needs %d here. Install a newer driver"
        raise _Unusable(words % (known.value // 1000, known.value % 1000 // 10, wanted[0]))
    code = driver.cuInit(0)
    if code == 100:
        raise _Unusable("no GPU is visible. `nvidia-smi` shows those of the machine")
    if code:
        raise _Unusable(
            "NVIDIA's driver does not start: cuInit gave %d%s. See `nvidia-smi`" % (code, _cuda_name(driver, code))
        )


def _cuda_name(driver, code):
    name = ctypes.c_char_p()
    with contextlib.suppress(AttributeError):
        driver.cuGetErrorName(code, ctypes.byref(name))
    return " (%s)" % name.value.decode() if name.value else ""


def _names(driver):
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    for number in range(count.value):
        name = ctypes.create_string_buffer(100)
        driver.cuDeviceGetName(name, len(name), number)  # a device's handle is its number
        yield name.value.decode("utf-8", "replace")


if __name__ == "__main__":
    look(*sys.argv[1:])
