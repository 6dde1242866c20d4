"""Run inside an environment: what is installed is what its row and its lock say.

python check_versions.py TENSORFLOW [LOCK]
"""

import re
import sys

import pkg_resources


def locked(path):
    """Yield (name, version, has_marker) for each requirement of a lock."""
    with open(path) as lines:
        for line in lines:
            found = re.match(r"([\w.-]+)==([^\s;\\]+)\s*(;.*)?", line)
            if found:
                yield found.group(1), found.group(2), bool((found.group(3) or "").strip(" ;\\"))


def check_lock(path):
    # Python 3.7 has no importlib.metadata, and every row has a setuptools with pkg_resources.
    installed = {found.project_name.lower().replace("_", "-"): found.version for found in pkg_resources.working_set}
    wanted = {}
    for name, number, conditional in locked(path):
        wanted.setdefault(name, []).append((number, conditional))
    for name, numbers in sorted(wanted.items()):
        here = installed.get(name)
        allowed = [number for number, _ in numbers]
        if here is None:
            assert all(conditional for _, conditional in numbers), "%s is not installed" % name
        else:
            assert here in allowed, "%s is %s, and the lock says %s" % (name, here, allowed)
    return len(wanted)


def main(tensorflow, lock=None):
    import h5py
    import numpy
    import tensorflow as tf

    assert tf.__version__ == tensorflow, "tensorflow is %s, not %s" % (tf.__version__, tensorflow)
    assert numpy.zeros(3).sum() == 0 and h5py.__version__
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    count = check_lock(lock) if lock else 0
    print("versions: tensorflow %s, numpy %s, %d packages as locked" % (tf.__version__, numpy.__version__, count))


if __name__ == "__main__":
    main(*sys.argv[1:])
