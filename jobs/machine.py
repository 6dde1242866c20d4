"""What the machine, or the container, lets a process have: processors and memory. Python 3.6 to 3.13."""

import contextlib
import os
import platform
import re


def processor():
    """Return what decides the bits of a result: the architecture and the instruction sets that libraries choose by."""
    with contextlib.suppress(OSError, StopIteration, IndexError):
        with open("/proc/cpuinfo") as file:
            flags = next(line for line in file if line.startswith(("flags", "Features"))).split(":")[1].split()
        chosen = [flag for flag in flags if re.match(r"avx|fma|sse4|amx|asimd|sve", flag)]
        return " ".join([platform.machine()] + sorted(chosen))
    return platform.machine()


def usable_cpus():
    """Return how many processors this process may use: the smaller of affinity and cgroup quota, at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(count, int(quota)) if quota else count)


def _cgroup_quota():
    with contextlib.suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/cpu.max") as file:  # version 2
            limit, period = file.read().split()
        return None if limit == "max" else -(-int(limit) // int(period))
    with contextlib.suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:
            limit = int(file.read())
        with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
            return None if limit <= 0 else -(-limit // int(file.read()))
    return None


def memory():
    """Return (how many processes the kernel has killed for want of memory, the limit in bytes) of this cgroup; None: unknown."""
    for events, limit in _memory_files():
        with contextlib.suppress(OSError, AttributeError):
            with open(events) as file:
                kills = int(re.search(r"^oom_kill (\d+)$", file.read(), re.MULTILINE).group(1))
            return kills, _memory_limit(limit)
    return None, None


def _memory_files():
    """Give where the counter and the limit may be: at the cgroup's own path, or, in a container, at the top."""
    with contextlib.suppress(OSError):
        with open("/proc/self/cgroup") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
        own = {kinds: path.strip("/") for _, kinds, path in groups}
        for path in (own.get("", ""), ""):
            yield [os.path.join("/sys/fs/cgroup", path, name) for name in ("memory.events", "memory.max")]
        for path in (own.get("memory", ""), ""):
            names = ("memory.oom_control", "memory.limit_in_bytes")  # version 1
            yield [os.path.join("/sys/fs/cgroup/memory", path, name) for name in names]


def _memory_limit(path):
    with contextlib.suppress(OSError, ValueError):  # "max"
        with open(path) as file:
            limit = int(file.read())
        return limit if limit < 1 << 60 else None  # version 1 says "none" by the largest number that there is
    return None


def size(count):
    """Return a number of bytes in words."""
    return "%d GiB" % (count >> 30) if count % (1 << 30) == 0 else "%d MiB" % (count >> 20)
