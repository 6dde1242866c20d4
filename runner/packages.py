"""uv, told nothing but where packages come from: index, CA bundle and proxy as the user set them for us, uv or pip."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from runner import process, resources
from runner.errors import CommandFailed, EnvironmentFailed

CA_VARIABLES = ("RUNNER_CA_BUNDLE", "SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")

# What uv may hear of its own variables. Others (constraints, dates, a Python) would make the lock a half-truth.
_KEPT = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX|EXTRA_INDEX_URL|INDEX_\w+_(USERNAME|PASSWORD)|FIND_LINKS|NO_INDEX|OFFLINE"
    r"|KEYRING_PROVIDER|INSECURE_HOST|NATIVE_TLS|SYSTEM_CERTS|HTTP_\w+|REQUEST_TIMEOUT|LINK_MODE|CONCURRENT_\w+"
    r"|PYTHON_DOWNLOADS|PYTHON_INSTALL_DIR|PYTHON_INSTALL_MIRROR|PYTHON_CACHE_DIR)"
)
_DROPPED = re.compile(r"UV_|PIP_|PYTHON|VIRTUAL_ENV$|CONDA_")

# Each variable for uv, and those that give its value: the first that is set.
_TRANSLATED = {
    "UV_DEFAULT_INDEX": ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"),
    "UV_EXTRA_INDEX_URL": ("UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"),
    "UV_FIND_LINKS": ("UV_FIND_LINKS", "PIP_FIND_LINKS"),
    "UV_NO_INDEX": ("UV_NO_INDEX", "PIP_NO_INDEX"),
    "UV_INSECURE_HOST": ("UV_INSECURE_HOST", "PIP_TRUSTED_HOST"),
    "HTTPS_PROXY": ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "PIP_PROXY"),
}

_CHATTER = ("Using Python", "Resolved ", "warning: ", " Downloaded", "Downloading")

# What went wrong is told by the first pattern that uv's message matches; the sentence says it, and what to do next.
_MEANINGS: tuple[tuple[str, str], ...] = (
    (
        r"no space left|os error 28|disk quota|os error 122",
        "The disk is full. Free some space (`runner rm --unused`), or set RUNNER_CACHE (now {cache}) to another disk.",
    ),
    (
        r"hash mismatch for `?(?P<what>[^`\s]+)",
        "What the index served for {what} is not what the lock says (hash mismatch). An index or proxy of yours may "
        "rewrite packages; else make the lock again.",
    ),
    (
        r"certificate|unknownissuer",
        "The index's certificate was not accepted ({ca}). Behind a company proxy, name its CA bundle: "
        "RUNNER_CA_BUNDLE=/path/to/ca.pem (or PIP_CERT, SSL_CERT_FILE, REQUESTS_CA_BUNDLE).",
    ),
    (
        r"proxy|tunnel",
        "The proxy did not let the request through ({proxy}). Check its address and the credentials in it.",
    ),
    (
        r"because (?P<what>[\w.-]+)(?:\{[^}]*\})?==\S+ has no (?:wheels|usable)|no wheels with a matching",
        "There is no wheel of {what} for this Python and platform ({platform}). Another environment may have one "
        "(`runner envs`), or run it in a container for linux/amd64 (`--on docker`).",
    ),
    (
        r"there is no version of (?P<what>[\w.-]+==[\w.]+)|because (?P<other>[\w.-]+) was not found in the",
        "The index ({index}) lacks {what}. An index of yours may mirror only a part of the public one, or refuse the "
        "name and password in its address.",
    ),
    (
        r"upload date|upload time",
        "The index ({index}) tells no upload dates, which a lock needs to choose packages of TensorFlow's time.",
    ),
    (
        r"error sending request|client error|dns error|connection (refused|reset)|network is unreachable|timed out"
        r"|could not connect|failed to fetch|network connectivity is disabled",
        "The package index could not be reached ({index}, {proxy}). Check the network, the index (UV_DEFAULT_INDEX, "
        "PIP_INDEX_URL) and the proxy (HTTPS_PROXY).",
    ),
)


def uv(*arguments: str | Path, doing: str, cwd: Path | None = None) -> str:
    """Run uv; a failure is told in a sentence that begins with what was being done."""
    try:
        return process.call(command(*arguments), env=environment(), cwd=cwd)
    except CommandFailed as failure:
        raise EnvironmentFailed(f"{doing} failed. {explain('uv says:', failure.output)}") from failure


def command(*arguments: str | Path) -> list[str | Path]:
    """Return a command line of uv that reads no configuration file."""
    from uv import find_uv_bin

    return [find_uv_bin(), *arguments, "--no-config", "--no-progress", "--color", "never"]


def environment() -> dict[str, str]:
    """Return the variables for uv: the caller's, less what would change what a lock means, with pip's translated."""
    given = settings()
    kept = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name) or not _DROPPED.match(name)}
    for name, sources in _TRANSLATED.items():
        source = _first(sources, given)
        if source:
            kept[name] = given[source]
    if _first(_TRANSLATED["UV_FIND_LINKS"], given) == "PIP_FIND_LINKS":
        kept["UV_FIND_LINKS"] = ",".join(given["PIP_FIND_LINKS"].split())  # pip separates by spaces
    bundle = ca_bundle()
    if bundle:
        kept["SSL_CERT_FILE"] = str(bundle)
    # Hashes decide what is installed, so it does not matter which of the user's indexes has it.
    return {**kept, "UV_INDEX_STRATEGY": "unsafe-best-match", "UV_CACHE_DIR": str(download_cache())}


def settings() -> dict[str, str]:
    """Return the caller's variables, and below them what pip's configuration files say, named like pip's variables."""
    home, chosen = Path.home(), os.environ.get("PIP_CONFIG_FILE", "")
    own = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path("/etc/pip.conf"), home / ".pip" / "pip.conf", own / "pip" / "pip.conf"]
    parser = configparser.RawConfigParser(strict=False)
    with contextlib.suppress(configparser.Error, UnicodeDecodeError):  # pip itself will complain of it
        parser.read([] if chosen == os.devnull else [*files, chosen])
    told = {
        f"PIP_{key.upper().replace('-', '_')}": value
        for section in ("global", "install")
        if parser.has_section(section)
        for key, value in parser.items(section)
    }
    return {name: value for name, value in {**told, **os.environ}.items() if value}


def download_cache() -> Path:
    """Return uv's cache: ours stands beside the environments, so that files can be linked instead of copied."""
    return Path(os.environ.get("UV_CACHE_DIR") or resources.cache("uv"))


def index_url() -> str | None:
    """Return the package index that the user set, if any."""
    given = settings()
    source = _first(_TRANSLATED["UV_DEFAULT_INDEX"], given)
    return given[source] if source else None


def ca_bundle() -> Path | None:
    """Return the file of certificates that the user set for us, uv, pip or requests, if any."""
    given = settings()
    source = _first(CA_VARIABLES, given)
    path = Path(given[source]).expanduser() if source else None
    if path and not path.exists():
        raise EnvironmentFailed(
            f"{source} names {path}, which does not exist. Name a file of CA certificates, or unset it."
        )
    return path


def explain(short: str, output: str) -> str:
    """Return what uv's message means and what to do next, and the end of the message itself."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith(_CHATTER)]
    for pattern, sentence in _MEANINGS:
        match = re.search(pattern, output, re.IGNORECASE)
        if match:
            short = sentence.format(**_values(match.groupdict()))
            break
    return "\n".join([short, *lines[-6:]])


def _values(found: Mapping[str, str | None]) -> dict[str, str]:
    uname = os.uname()
    return {
        "what": next((value for value in found.values() if value), "one of the packages"),
        "cache": str(resources.cache()),
        "ca": _told(CA_VARIABLES, "no CA bundle is set"),
        "proxy": _told(PROXY_VARIABLES, "no proxy is set"),
        "index": _told(_TRANSLATED["UV_DEFAULT_INDEX"], "the public one"),
        "platform": f"{uname.sysname} {uname.machine}",
    }


def _told(names: Sequence[str], otherwise: str) -> str:
    """Name the variable that decides. Its value stays untold, since it may hold a password."""
    source = _first(names, settings())
    return f"{source} is set" if source else otherwise


def _first(names: Sequence[str], given: Mapping[str, str]) -> str | None:
    return next((name for name in names if name in given), None)
