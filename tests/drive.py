"""A mounted drive as hosted notebooks have them: no flock, no chmod, no links, and an fsync that refuses.

`python drive.py BACKING PLACE` serves the folder BACKING at PLACE until it is unmounted; it needs libfuse and mfusepy.
"""

import errno
import os
import sys
from pathlib import Path

import mfusepy


class Drive(mfusepy.Operations):
    """Passes everything on to a folder, less what such drives cannot do."""

    def __init__(self, backing):
        self.backing = backing

    def _at(self, path):
        return self.backing + path

    def _refuse(self, *_):
        raise mfusepy.FuseOSError(errno.EOPNOTSUPP)

    chmod = chown = link = symlink = readlink = flock = fsync = fsyncdir = _refuse

    def getattr(self, path, fh=None):
        found = os.lstat(self._at(path))
        return {name: getattr(found, name) for name in
                ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_atime", "st_mtime", "st_ctime")}  # fmt: skip

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(self._at(path))]

    def create(self, path, mode, fi=None):
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def open(self, path, flags):
        return os.open(self._at(path), flags & ~os.O_APPEND)

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self._at(path), length)
        return 0

    def release(self, path, fh):
        os.close(fh)
        return 0

    def unlink(self, path):
        Path(self._at(path)).unlink()
        return 0

    def mkdir(self, path, mode):
        Path(self._at(path)).mkdir(0o700)
        return 0

    def rmdir(self, path):
        Path(self._at(path)).rmdir()
        return 0

    def rename(self, old, new, flags=0):
        Path(self._at(old)).rename(self._at(new))
        return 0

    def utimens(self, path, times=None):
        os.utime(self._at(path), ns=times) if times and isinstance(times[0], int) else os.utime(self._at(path), times)
        return 0

    def statfs(self, path):
        found = os.statvfs(self._at(path))
        return {name: getattr(found, name) for name in ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_frsize")}


if __name__ == "__main__":
    mfusepy.FUSE(Drive(sys.argv[1]), sys.argv[2], foreground=True)
