"""Makes an image with BuildKit, which only the command line `docker buildx` can ask for: what goes in, and what comes out."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shlex
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from runner import __version__, engines, locks, packages, process, registries, resources, terminal
from runner.engines import Engine
from runner.errors import CommandFailed, EngineFailed, EnvironmentFailed
from runner.virtualenvs import lock_hash

if TYPE_CHECKING:
    from runner.images import Recipe

_NO_BUILDX = (
    "making an image needs Docker's command line with its buildx plugin, and {lacking}. Install it: packages docker-ce-cli "
    "and docker-buildx-plugin of Docker, docker-cli and docker-buildx of Debian, docker.io and docker-buildx of Ubuntu "
    "(https://docs.docker.com/go/buildx/). Without Docker: --on native."
)
_NO_CONTEXTS = ("20.", "22.")  # the Dockerfile frontends that know one build context only
_LARGEST_SECRET = 500 * 1024  # for BuildKit
_LOOPBACK = re.compile(r"://(?:[^/@\s]*@)?(?:localhost|127\.[\d.]+|\[::1\])(?=[:/\s,]|$)")

# What buildx says went wrong, told by the first pattern that matches; what packages.explain knows comes after these.
_BUILD = (
    (r"runner: (?P<what>.+)", "{what}"),
    registries.DISK_FULL,
    (
        r"exec format error",
        "This machine cannot run programs for {platform}. Build it on such a machine, or install an emulator: "
        "docker run --privileged --rm tonistiigi/binfmt --install {architecture}",
    ),
    (
        r"because (?P<what>[\w.-]+)(?:\{[^}]*\})?==\S+ has no (?:wheels|usable)|no wheels with a matching",
        "There is no wheel of {what} for Python {python} on {platform}. Another environment may have one (`runner envs`).",
    ),
)
_LOOKING_UP = "looking up the base image"


class Left(NamedTuple):
    """Something that builds have left in the engine's cache."""

    id: str
    bytes: int
    used: float


def refuse_without_docker() -> None:
    """Refuse before anything is done, where there is not even the program that fetches images."""
    if not shutil.which("docker"):
        raise EngineFailed(_NO_BUILDX.format(lacking="there is no `docker` on PATH"))


def refuse_without_buildx(engine: Engine) -> None:
    """Refuse an engine or a command line that cannot make images."""
    if engine.podman:
        raise EngineFailed(
            "Podman runs images, but has no BuildKit to make them. Take them from a registry (RUNNER_REGISTRY) to which an "
            "engine of Docker's has pushed them (runner build --push), or run an image of your own: --image."
        )
    if engine.version.startswith(_NO_CONTEXTS):
        raise EngineFailed(
            f"the Docker engine at {engine.address} is version {engine.version}, which runs images, but cannot make them "
            "(23.0 can). Bring it up to date, or take images from a registry (RUNNER_REGISTRY)."
        )
    try:
        process.call(["docker", "buildx", "version"])
    except CommandFailed as failure:
        raise EngineFailed(_NO_BUILDX.format(lacking="`docker buildx version` fails")) from failure


def build(engine: Engine, recipe: Recipe, digest: str | None, line: terminal.ProgressLine) -> None:
    """Make an image; `digest` is that of its base."""
    index = _index_settings()
    command = _command(engine, recipe, digest, index, _uv(engine, recipe, line))
    with _context(recipe) as context:
        steps = _Steps(f"image {recipe.name}", line)
        try:
            process.stream(
                command,
                steps.heard,
                env={**os.environ, "RUNNER_INDEX": _as_shell(index), "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"},
                stdin=context,
            )
        except CommandFailed as failure:
            line.clear()
            raise EnvironmentFailed(_why(engine, recipe, steps, failure.output)) from failure


def _command(engine: Engine, recipe: Recipe, digest: str | None, index: Mapping[str, str], uv: Path) -> list[str]:
    """Return the command line; the Dockerfile and the lock come in on its standard input."""
    secrets = {"index": "env=RUNNER_INDEX"}
    bundle, netrc = packages.ca_bundle(), Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    if bundle:
        secrets["ca"] = f"src={_small(bundle)}"
    if netrc.is_file():
        secrets["netrc"] = f"src={netrc}"
    return [
        "docker", "buildx", "build", *_builder(), "--load", "--progress=plain", f"--platform={recipe.platform_on(engine)}",
        *recipe.arguments, f"--tag={recipe.alias}", f"--build-context=uv={uv}",
        *(f"--label={key}={value}" for key, value in _labels(recipe, digest).items()),
        *(f"--secret=id={key},{value}" for key, value in secrets.items()),
        # A proxy or an index on this machine is on another address in the build's own network.
        *(["--network=host"] if any(map(_LOOPBACK.search, index.values())) else []),
        "-",
    ]  # fmt: skip


def _small(bundle: Path) -> Path:
    if bundle.stat().st_size > _LARGEST_SECRET:
        raise EnvironmentFailed(
            f"the CA bundle {bundle} is larger than the {terminal.size(_LARGEST_SECRET)} that a build may be given as a secret. "
            "Name a file with your own CA in it alone: RUNNER_CA_BUNDLE=/path/to/ca.pem."
        )
    return bundle


def _builder() -> list[str]:
    """Name the builder that is the engine itself: one in a container does not have the engine's images."""
    if "BUILDX_BUILDER" in os.environ:
        return []
    return [f"--builder={process.call(['docker', 'context', 'inspect', '--format', '{{.Name}}']).strip()}"]


def _labels(recipe: Recipe, digest: str | None) -> dict[str, str]:
    tensorflow = re.search(r"^tensorflow(?:-cpu)?==([\w.]+)", recipe.lock, re.MULTILINE)
    labels = {
        "org.opencontainers.image.title": recipe.name,
        "org.opencontainers.image.created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "org.opencontainers.image.version": __version__,
        "org.opencontainers.image.revision": _revision(),
        "org.opencontainers.image.base.name": recipe.base,
        "org.opencontainers.image.base.digest": digest,
        "runner.environment": recipe.name,
        "runner.tensorflow": tensorflow[1] if tensorflow else None,
        "runner.lock": lock_hash(recipe.lock),
        "runner.python": recipe.python,
    }
    return {key: value for key, value in labels.items() if value}


def _revision() -> str | None:
    """Return the commit that the Dockerfile is of, where the runner stands in a checkout of its own."""
    file = resources.data("images", "Dockerfile")
    try:
        return process.call(["git", "log", "-1", "--format=%H", "--", file.name], cwd=file.parent).strip() or None
    except CommandFailed:
        return None


def _context(recipe: Recipe) -> IO[bytes]:
    """Pack what the build needs into a file that nobody sees, so that nothing of it is ever left behind."""
    packed = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in (("Dockerfile", recipe.dockerfile), ("lock.txt", recipe.lock)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, BytesIO(text.encode()))
    packed.seek(0)
    return packed


def _uv(engine: Engine, recipe: Recipe, line: terminal.ProgressLine) -> Path:
    """Return a folder with a uv that runs in the image: this machine's own, or the same version for the other platform."""
    architecture = recipe.platform_on(engine).rpartition("/")[2]
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(architecture, architecture)
    version = metadata.version("uv")
    folder = resources.cache("images", f"uv-{version}-{architecture}")
    with locks.held(folder.with_name(f"{folder.name}.lock"), f"uv for {architecture}"):
        if (folder / "bin" / "uv").exists():
            return folder / "bin"
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a runner that was killed
        if sys.platform == "linux" and platform.machine() == machine:
            (partial / "bin").mkdir(parents=True)
            shutil.copy2(packages.command()[0], partial / "bin" / "uv")
        else:
            line.update(f"image {recipe.name}: fetching uv for {architecture}", force=True)
            options = ("--target", partial, "--python-platform", f"{machine}-unknown-linux-gnu", "--no-deps")
            packages.uv("pip", "install", *options, f"uv=={version}", doing=f"fetching uv for {architecture}")
        partial.rename(folder)
    return folder / "bin"


def unused_files() -> list[Path]:
    """Return the copies of uv that are of another version, and the lock files that killed builds have left."""
    folder, current = resources.cache("images"), f"uv-{metadata.version('uv')}-"
    copies = [path for path in folder.glob("uv-*") if not path.name.startswith(current)]
    return copies + [path for path in folder.glob("*.lock") if not path.name.startswith("uv-") and _is_free(path)]


def _is_free(lock: Path) -> bool:
    try:
        with lock.open() as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # gone, or the file system has none
        return lock.exists()
    return True


# What builds leave in the engine's cache: there an image's layers stay when it is removed.


def usage(engine: Engine, kind: str, key: str) -> list[dict[str, Any]]:
    """Return what takes space on the engine, of one kind."""
    api = engine.api
    try:
        answer = api.get(
            f"{api.base_url}/v{api.api_version}/system/df", params={"type": kind}, timeout=engines.PATIENCE
        )
        answer.raise_for_status()
        return list(answer.json().get(key) or ())
    except OSError as error:  # as what requests raises is
        raise EngineFailed(f"the Docker engine could not tell what it keeps: {engines.explain(error)}.") from error


def _cached(engine: Engine) -> list[dict[str, Any]]:
    return usage(engine, "build-cache", "BuildCache")


def layers_of_images(engine: Engine) -> set[str]:
    """Return what in the cache is a layer of an image, too."""
    return {str(record["ID"]) for record in _cached(engine) if record["Shared"]}


def forget(engine: Engine, records: Iterable[str]) -> None:
    """Remove some records from the cache; what other builds go on from stays."""
    import docker

    left = set(records)
    try:
        while left:
            # One at a time, for the engine takes one id; a layer goes after those that stand on it.
            gone = {id for id in left if _pruned(engine, id)}
            if not gone:
                return
            left -= gone
    except docker.errors.APIError as error:
        said = engines.explain(error)
        print(f"layers stay in the cache of builds ({said}). Free them with: docker builder prune", file=sys.stderr)


def _pruned(engine: Engine, id: str) -> bool:
    return bool(engine.api.prune_builds(filters={"id": [id]}, all=True).get("CachesDeleted"))


def left_in_cache(engine: Engine, packages_too: bool) -> list[Left]:
    """Return what builds of ours have left in the cache that no image has; with the packages that they have fetched."""
    kinds = ("regular", "exec.cachemount") if packages_too else ("regular",)
    return [
        Left(str(record["ID"]), int(record["Size"]), _seconds(record.get("LastUsedAt") or record["CreatedAt"]))
        for record in _cached(engine)
        if record["Type"] in kinds and '/bin/sh -c step="' in record["Description"]
        and record["Size"] and not record["Shared"] and not record["InUse"]
    ]  # fmt: skip


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(f"{moment[:19]}+00:00").timestamp()


# Where packages come from, as secrets of the build: in a variable of the command line's, and never in a file of ours.


def _index_settings() -> dict[str, str]:
    """Return the variables that say where packages come from, less those that mean a place on this machine."""
    names = ("NO_PROXY", "no_proxy", *packages.PROXY_VARIABLES)
    told = {
        name: value
        for name, value in packages.environment().items()
        if name in names or (name.startswith("UV_") and not re.match(r"UV_(CACHE_DIR|LINK_MODE|PYTHON_|KEYRING)", name))
    }
    links = [link for link in told.pop("UV_FIND_LINKS", "").split(",") if link.startswith(("http://", "https://"))]
    return {**told, **({"UV_FIND_LINKS": ",".join(links)} if links else {})}


def _as_shell(variables: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


# What buildx prints.


@dataclass
class _Steps:
    """Follows the steps of a build: what each is for, what it has printed, and which one failed."""

    title: str
    line: terminal.ProgressLine
    titles: dict[str, str] = field(default_factory=dict)
    printed: dict[str, list[str]] = field(default_factory=dict)
    doing: str = "reading the lock"
    failed: str = ""
    began: float = field(default_factory=time.monotonic)

    def heard(self, text: str | None) -> None:
        found = re.match(r"#(\d+) (?:[\d.]+ )?(.*)", text or "")
        if found:
            number, words = found.groups()
            self.titles.setdefault(number, _purpose(words) or self.doing)
            self.printed.setdefault(number, []).append(words)
            if words.startswith("ERROR"):
                self.failed = self.failed or number
            elif not words.startswith(("CACHED", "CANCELED", "DONE")):
                self.doing = self.titles[number]
        self.line.update(f"{self.title}: {self.doing} … {terminal.duration(time.monotonic() - self.began)}")


def _purpose(words: str) -> str | None:
    """Return what a step is for, from its first line."""
    step = re.search(r'step="([^"]+)"', words)
    if step:
        return step[1]
    if re.match(r"\[internal\] load metadata|\[\w+ 1/\d+\] FROM|resolve image", words):
        return _LOOKING_UP
    return "writing the image" if words.startswith("exporting") else None


def _why(engine: Engine, recipe: Recipe, steps: _Steps, output: str) -> str:
    """Return which step failed, what that means, and what to do next."""
    doing = steps.titles.get(steps.failed, steps.doing)
    lines = steps.printed.get(steps.failed, [])[1:]
    # The last one repeats the whole RUN where that is what failed.
    printed = "\n".join(line for line in lines if not line.startswith("ERROR: process ")) or output
    meanings = registries.MEANINGS if doing == _LOOKING_UP else _BUILD
    said = registries.meaning(
        meanings, printed, engine, host=registries.host_of(recipe.base), elsewhere=registries.OTHER_BASE,
        platform=recipe.platform_on(engine), python=recipe.python,
    )  # fmt: skip
    return f"making the image {recipe.name} failed while {doing}. {said}"
