"""What the package index knows about a release of TensorFlow: its date, its wheels' Pythons and platforms."""

from __future__ import annotations

import bisect
import json
import re
import ssl
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from runner import packages
from runner.errors import EnvironmentFailed, UsageError

_ACCEPT = "application/vnd.pypi.simple.v1+json"  # PEP 691; the dates are PEP 700
_OLDEST_PYTHON = (3, 7)  # what runs inside an environment needs it


@dataclass(frozen=True)
class Wheel:
    package: str
    version: str
    python: str
    platform: str
    size: int
    uploaded: date | None


@dataclass(frozen=True)
class Release:
    version: str
    uploaded: date
    pythons: tuple[str, ...]
    requirements: tuple[str, ...]

    def cutoff(self, days: int) -> str:
        """Return the date up to which packages count as of this release's time."""
        return (self.uploaded + timedelta(days=days)).isoformat()


def release(version: str) -> Release:
    """Ask the index for a release's wheels: tensorflow-cpu's where there are some, tensorflow's elsewhere."""
    plain = _wheels("tensorflow")
    known = {wheel.version for wheel in plain}
    if version not in known:
        raise UsageError(f"there is no TensorFlow {version}. Near it are {', '.join(_nearest(version, known))}.")
    cpu = [wheel for wheel in _wheels("tensorflow-cpu", missing_is_empty=True) if wheel.version == version]
    full = [wheel for wheel in plain if wheel.version == version]
    own = cpu or full
    dates = [wheel.uploaded for wheel in own if wheel.uploaded]
    if not dates:
        raise EnvironmentFailed(
            "the package index tells no upload dates, and `runner lock` chooses packages of TensorFlow's time by them. "
            "Set UV_DEFAULT_INDEX to one that does (as the public index does) for this command."
        )
    return Release(version, min(dates), _pythons(own, version), tuple(_requirements(version, cpu, full)))


def _requirements(version: str, cpu: Sequence[Wheel], full: Sequence[Wheel]) -> Iterable[str]:
    if not cpu:
        yield f"tensorflow=={version}"
        return
    arm = [wheel for wheel in full if re.search("aarch64|arm64", wheel.platform)]
    yield f"tensorflow-cpu=={version}" + (" ; platform_machine == 'x86_64'" if arm else "")
    if arm:
        yield f"tensorflow=={version} ; platform_machine != 'x86_64'"
    # For some versions this wheel is an empty one, which stands for a build that Amazon made.
    if any("aarch64" in wheel.platform and 0 < wheel.size < 1_000_000 for wheel in arm):
        yield f"tensorflow-cpu-aws=={version} ; sys_platform == 'linux' and platform_machine == 'aarch64'"


def _pythons(wheels: Sequence[Wheel], version: str) -> tuple[str, ...]:
    tags = {re.fullmatch(r"cp3(\d+)", wheel.python) for wheel in wheels}
    minors = sorted({(3, int(tag[1])) for tag in tags if tag}, reverse=True)
    usable = [f"{major}.{minor}" for major, minor in minors if (major, minor) >= _OLDEST_PYTHON]
    if not usable:
        raise UsageError(f"TensorFlow {version} has wheels for Python 3.6 and older only, and the runner needs 3.7.")
    return tuple(usable)


def _nearest(version: str, known: Iterable[str], count: int = 6) -> list[str]:
    ordered = sorted((v for v in known if re.fullmatch(r"[\d.]+", v)), key=_key)
    minor = [v for v in ordered if v.split(".")[:2] == version.split(".")[:2]]
    place = bisect.bisect([_key(v) for v in ordered], _key(version))
    return minor or ordered[max(place - count // 2, 0) :][:count]


def _key(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _wheels(package: str, *, missing_is_empty: bool = False) -> list[Wheel]:
    try:
        files = _page(package)["files"]
    except urllib.error.HTTPError as error:
        if error.code == 404 and missing_is_empty:
            return []
        raise EnvironmentFailed(f"the package index answered {error.code} when asked for {package}.") from error
    except (OSError, ssl.SSLError) as error:
        reason = str(getattr(error, "reason", error))
        raise EnvironmentFailed(f"asking the package index for {package} failed. {_explain(reason)}") from error
    except (ValueError, KeyError) as error:
        raise EnvironmentFailed(
            f"the package index does not answer in JSON when asked for {package}, so that release dates are unknown. "
            "Set UV_DEFAULT_INDEX to one that does (as the public index does) for this command."
        ) from error
    return [_wheel(package, file) for file in files if file["filename"].endswith(".whl") and not file.get("yanked")]


def _explain(reason: str) -> str:
    return packages.explain("", reason if "certificate" in reason.lower() else f"could not connect: {reason}")


def _wheel(package: str, file: dict[str, Any]) -> Wheel:
    _, version, *_, python, _, platform = file["filename"].removesuffix(".whl").split("-")
    stamp = file.get("upload-time")
    uploaded = date.fromisoformat(stamp[:10]) if stamp else None
    return Wheel(package, version, python, platform, file.get("size") or 0, uploaded)


def _page(package: str) -> dict[str, Any]:
    address = urlsplit(packages.index_url() or _default_index())
    host = address.netloc.rpartition("@")[2]
    request = urllib.request.Request(f"{address.scheme}://{host}{address.path.rstrip('/')}/{package}/")
    request.add_header("Accept", _ACCEPT)
    if address.username:
        words = f"{unquote(address.username)}:{unquote(address.password or '')}"
        request.add_header("Authorization", "Basic " + b64encode(words.encode()).decode())
    bundle = packages.ca_bundle()
    context = ssl.create_default_context(cafile=str(bundle) if bundle else None)
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:
        page: dict[str, Any] = json.load(answer)
    return page


def _default_index() -> str:
    """Ask uv, so that there is one opinion on what the public index is."""
    with tempfile.NamedTemporaryFile(suffix=".in") as empty:
        told = packages.uv(
            "pip", "compile", Path(empty.name), "--emit-index-url", "--no-header", "--quiet", doing="finding the index"
        )
    return told.split()[-1]
