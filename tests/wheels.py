"""A small wheel, for indexes that tests serve."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile


def build_wheel(more: bytes = b"") -> bytes:
    """Return a wheel of a package `small` with one module and one program, and a file of data where one is given."""
    files: dict[str, bytes] = {
        "small.py": b"def main():\n    print('small works')\n",
        **({"small.bin": more} if more else {}),
        "small-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: small\nVersion: 1.0\n",
        "small-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "small-1.0.dist-info/entry_points.txt": b"[console_scripts]\nsmall = small:main\n",
    }
    record = "small-1.0.dist-info/RECORD,,\n"
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        record += f"{name},sha256={digest},{len(content)}\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in {**files, "small-1.0.dist-info/RECORD": record.encode()}.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # dated 1980, so that the wheel's hash stays
    return packed.getvalue()


def lock_of(wheel: bytes) -> str:
    """Return the lock that has this wheel."""
    return f"small==1.0 \\\n    --hash=sha256:{hashlib.sha256(wheel).hexdigest()}\n"
