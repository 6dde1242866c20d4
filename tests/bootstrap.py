"""Makes the project's virtualenv: `python3 bootstrap.py .venv requirements.txt`, with hashes required.

Needs nothing but Python: where the distribution left out the parts that make virtualenvs (Debian's python3 without
python3-venv), uv is fetched first, from the package index that pip would use, and checked against the hash in the file.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(target: Path, requirements: Path) -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"Python 3.10 to 3.13 is needed, and this is {platform.python_version()}: make PYTHON=python3.12 ...")
    print(f"making {target} (once)", flush=True)
    shutil.rmtree(target, ignore_errors=True)
    uv = shutil.which("uv") or fetched_uv(requirements)
    python = target / "bin" / "python"
    run(uv, "venv", "--quiet", "--python", sys.executable, target)
    run(uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "--requirements", requirements)
    run(uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--no-build-isolation", "--editable", ROOT)


def fetched_uv(requirements: Path) -> str:
    """Return the path of a uv that is fetched into a temporary folder of this process."""
    version, hashes = pinned("uv", requirements)
    with fetched(f"{index()}/uv/", accept="application/vnd.pypi.simple.v1+json") as answer:
        files = json.load(answer)["files"]
    file = next((f for f in files if f["filename"].startswith(f"uv-{version}-") and fits(f["filename"])), None)
    if file is None:
        sys.exit(f"there is no uv {version} for this machine ({platform.machine()}); install uv, and try again")
    with fetched(file["url"]) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() not in hashes:
        sys.exit(
            f"{file['filename']} is not what {requirements} expects: its SHA-256 is another; nothing was installed"
        )
    folder = Path(tempfile.mkdtemp())
    wheel = folder / file["filename"]
    wheel.write_bytes(content)
    with zipfile.ZipFile(wheel) as archive:
        program = next(name for name in archive.namelist() if name.endswith("/scripts/uv"))
        path = Path(archive.extract(program, folder))
    path.chmod(0o755)
    return str(path)


def pinned(name: str, requirements: Path) -> tuple[str, set[str]]:
    """Return the version and the hashes of a package in a requirements file."""
    text = requirements.read_text()
    match = re.search(rf"^{name}==(\S+)((?:.*\\\n)(?:\s+--hash=\S+.*\n)+)", text, re.MULTILINE)
    assert match, f"{name} is not in {requirements}"
    return match[1], set(re.findall(r"sha256:([0-9a-f]{64})", match[2]))


def index() -> str:
    return (os.environ.get("UV_INDEX_URL") or os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple").rstrip("/")


def fetched(url: str, accept: str = "*/*"):  # type: ignore[no-untyped-def]
    bundle = next(
        (os.environ[name] for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if os.environ.get(name)), None
    )
    request = urllib.request.Request(url, headers={"Accept": accept})
    return urllib.request.urlopen(request, timeout=60, context=ssl.create_default_context(cafile=bundle))


def fits(filename: str) -> bool:
    machine = platform.machine()
    if sys.platform == "darwin":
        return "macosx" in filename and machine in filename
    libc = "musllinux" if platform.libc_ver()[0] != "glibc" else "manylinux"
    return libc in filename and filename.endswith(f"_{machine}.whl")


def run(*words: object) -> None:
    """Run a program; where it cannot reach the index through a private CA, uv must look at the system's certificates."""
    certificates = {"SSL_CERT_FILE": os.environ["PIP_CERT"]} if os.environ.get("PIP_CERT") else {}
    done = subprocess.run([str(word) for word in words], env={**certificates, **os.environ})
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} ended with {done.returncode}; see above. `make setup` tries again.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
