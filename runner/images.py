"""Images made from the text of a lock, once per lock, Dockerfile and base, kept in the Docker engine.

BuildKit makes them, which only the command line `docker buildx` can ask for; all else is asked of the engine itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

from runner import __version__, engines, environments, locks, packages, process, resources, terminal, yamlfile
from runner.engines import Engine
from runner.errors import CommandFailed, EngineFailed, EnvironmentFailed, UsageError, unknown
from runner.virtualenvs import lock_hash

REPOSITORY = "tensorflow-runner"
TEMPLATE = "python:{python}-slim-bookworm"
PLATFORMS = ("linux/amd64", "linux/arm64")  # those that the locks are for
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
    (
        r"no space left|os error 28|disk quota|os error 122",
        "The disk of the Docker engine is full (it keeps images in {root}). Free some space there: `runner rm --unused`, "
        "`docker builder prune`, `docker image prune`.",
    ),
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
# What an engine says that fetches from a registry, or sends there.
_REGISTRY = (
    *_BUILD[:2],
    (
        r"toomanyrequests|rate limit|\b429\b",
        "{host} limits how many images one address may fetch. Wait, or log in (`docker login {host}`), {elsewhere}.",
    ),
    (
        r"x509|certificate",
        "The engine does not trust the certificate of {host}. Give the engine its CA: /etc/docker/certs.d/{host}/ca.crt.",
    ),
    (
        r"proxyconnect|proxy",
        "The engine's proxy did not let it reach {host}. The engine's own settings count here, not HTTPS_PROXY of this "
        "shell: https://docs.docker.com/engine/daemon/proxy/.",
    ),
    (
        r"unauthorized|no basic auth|authentication required|denied|\b40[13]\b|forbidden",
        "{host} refused: it wants a login, or this login may not do that. Log in with: docker login {host}",
    ),
    (
        r"no matching manifest|not match the specified platform",
        "What {host} has under this name is for another kind of processor. Check the name, {elsewhere}.",
    ),
    (
        r"not found|manifest unknown|does not exist|invalid reference format|\b404\b",
        "There is no such image in {host}. Check the name, {elsewhere}.",
    ),
    (
        r"no such host|connection refused|i/o timeout|timeout|network is unreachable|connection reset|EOF|deadline|lookup ",
        "The engine cannot reach {host}. Check its network and proxy, {elsewhere}.",
    ),
)
_LOOKING_UP = "looking up the base image"
_OTHER_BASE = "or name another base image: RUNNER_BASE_IMAGE, such as registry.example.org/python:{minor}-slim"


class Made(NamedTuple):
    """An image of ours on an engine; `bytes` counts its base, too."""

    reference: str
    id: str
    bytes: int
    used: float  # when it was made: an engine does not know when it was used
    labels: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what an image is."""

    name: str
    lock: str
    python: str
    base: str
    platform: str = ""  # empty: the engine's own

    @property
    def device(self) -> str:
        return _device(self.name)

    @property
    def tag(self) -> str:
        parts = (lock_hash(self.lock), dockerfile(), self.base, self.python, self.device)
        return f"{self.name}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]}"

    @property
    def reference(self) -> str:
        """The name on the engine: that of another platform's image never stands for this platform's."""
        return f"{REPOSITORY}:{self.tag}{self._suffix}"

    @property
    def alias(self) -> str:
        return f"{REPOSITORY}:{self.name}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return f"-{self.platform.rpartition('/')[2]}" if self.platform else ""


def dockerfile() -> str:
    """Return the text of the Dockerfile that all images are made with."""
    return resources.data("images", "Dockerfile").read_text()


def base_image(python: str, template: str | None) -> str:
    """Return the base image for a Python: {python} in the template is its pinned patch, {minor} what it is of."""
    template = template or TEMPLATE
    patches = yamlfile.load(resources.data("images", "environments.yaml"))["bases"]
    base = template.replace("{python}", str(patches.get(python, python))).replace("{minor}", python)
    if not re.fullmatch(r"[a-z0-9][\w.:/@-]*", base):
        raise UsageError(
            f"the base image {template!r} is no image's name. It looks like registry.example.org/python:{{python}}-slim; "
            f"{{python}} stands for {patches.get(python, python)}, {{minor}} for {python}."
        )
    return base


def reference(name: str, lock_text: str, python: str, template: str | None = None, device: str = "") -> str:
    """Return the image's name, which asks no engine. The device is the end of the environment's name."""
    assert device in ("", _device(name))
    return Recipe(name=name, lock=lock_text, python=python, base=base_image(python, template)).reference


def ensure(
    engine: Engine,
    name: str,
    lock_text: str,
    python: str,
    template: str | None = None,
    registry: str | None = None,
) -> str:
    """Return the name of an environment's image, which is fetched from a registry or made now if there is none."""
    recipe = Recipe(name=name, lock=lock_text, python=python, base=base_image(python, template))
    if not _there(engine, recipe.reference):
        _make(engine, recipe, registry)
    return recipe.reference


def pull(engine: Engine, image: str) -> None:
    """Fetch an image of the user's own, unless it is there."""
    if not _inspected(engine, image):
        _refuse_without_docker()
        with terminal.ProgressLine() as line:
            _pull(engine, image, "image", line, elsewhere="or build it here (docker build -t)")


def build(
    names: Sequence[str],
    *,
    everything: bool,
    template: str | None,
    platform: str | None,
    push: str | None,
    as_json: bool = False,
) -> None:
    """Make the images of some environments, or of all, and say what was done; `push` is the registry to send them to."""
    rows = list(environments.load().values()) if everything else [environments.find(name) for name in names]
    registry = None if push is None else _registry(push)
    wanted = _platform(platform or (None if push is None else PLATFORMS[0]))
    bases = {row.name: base_image(row.pythons[0], template) for row in rows}
    engine = engines.connect()
    other = "" if wanted is None or wanted == f"linux/{engine.architecture}" else wanted
    recipes = [
        Recipe(name=row.name, lock=row.lock_text, python=row.pythons[0], base=bases[row.name], platform=other)
        for row in rows
    ]
    told = []
    for recipe in recipes:
        told.append(_built(engine, recipe))
        if not as_json:
            print(_sentence(told[-1]), flush=True)
        if registry:
            told[-1]["pushed"] = _push(engine, recipe, registry)
            if not as_json:
                print(f"{recipe.reference}: pushed as {told[-1]['pushed']}", flush=True)
    if as_json:
        print(json.dumps(told))


def made(engine: Engine) -> list[Made]:
    """Return the images of ours on an engine, each by the name that says what it was made from, if it has one still."""
    found = []
    for image in _listed(engine, label="runner.environment"):
        names = [tag for tag in image.get("RepoTags") or () if tag != "<none>:<none>"]
        own = sorted((tag for tag in names if tag.startswith(f"{REPOSITORY}:")), key=len)
        name = own[-1] if own else (names or [image["Id"]])[0]
        found.append(
            Made(name, image["Id"], int(image["Size"]), float(image["Created"]), dict(image.get("Labels") or {}))
        )
    return found


def remove(engine: Engine, image: str) -> None:
    """Remove an image with all its names; one that a container uses stays."""
    import docker

    try:
        engine.client.api.remove_image(image, force=True)
    except docker.errors.APIError as error:
        if error.status_code not in (404, 409):
            raise EngineFailed(f"the image could not be removed: {engines.explain(error)}.") from error


def _device(name: str) -> str:
    return "cuda" if name.endswith("-cuda") else "cpu"


def _platform(asked: str | None) -> str | None:
    if asked is not None and asked not in PLATFORMS:
        raise unknown("platform", asked, PLATFORMS)
    return asked


def _registry(asked: str) -> str:
    registry = asked.rstrip("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*(:\d+)?(/[a-z0-9._-]+)*", registry):
        raise UsageError(
            f"--push {asked}: a registry is given as registry.example.org/team, without https:// and without the image's name."
        )
    return registry


def _built(engine: Engine, recipe: Recipe) -> dict[str, Any]:
    """Make an image if there is none, and return what was done."""
    began = time.monotonic()
    made = not _there(engine, recipe.reference)
    if made:
        _make(engine, recipe)
    image = _listed(engine, reference=recipe.reference)[0]
    return {
        "environment": recipe.name,
        "image": recipe.reference,
        "id": image["Id"],
        "bytes": int(image["Size"]),
        "made": made,
        "seconds": round(time.monotonic() - began, 1),
    }


def _sentence(told: Mapping[str, Any]) -> str:
    done = f"made in {terminal.duration(told['seconds'])}" if told["made"] else "unchanged"
    return f"{told['image']}: {done}, {terminal.size(told['bytes'])}"


def _listed(engine: Engine, **filters: str) -> list[dict[str, Any]]:
    try:
        return list(engine.client.api.images(filters=filters))
    except Exception as error:  # the SDK lets through what requests and urllib3 raise
        raise EngineFailed(f"the Docker engine could not list its images: {engines.explain(error)}.") from error


def _there(engine: Engine, name: str) -> bool:
    return bool(_listed(engine, reference=name))


# Making one.


def _make(engine: Engine, recipe: Recipe, registry: str | None = None) -> None:
    """Fetch or build an image, unless another runner does so meanwhile."""
    _refuse_without_docker()
    with locks.held(resources.cache("images", f"{recipe.tag}.lock"), f"image {recipe.name}"):
        if _there(engine, recipe.reference) or (registry and _fetched(engine, recipe, registry)):
            return
        _refuse_without_buildx(engine)
        with terminal.ProgressLine() as line:
            if not line.active:
                print(f"making the image {recipe.name} (once)", file=sys.stderr, flush=True)
            digest = _base_digest(engine, recipe, line)
            _build(engine, recipe, digest, line)


def _refuse_without_docker() -> None:
    if not shutil.which("docker"):
        raise EngineFailed(_NO_BUILDX.format(lacking="there is no `docker` on PATH"))


def _refuse_without_buildx(engine: Engine) -> None:
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


def _build(engine: Engine, recipe: Recipe, digest: str | None, line: terminal.ProgressLine) -> None:
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
    arguments = {"BASE": recipe.base, "PYTHON": recipe.python}
    return [
        "docker", "buildx", "build", *_builder(), "--load", "--progress=plain", f"--platform={_platform_of(engine, recipe)}",
        f"--build-context=uv={uv}", f"--target={recipe.device}", f"--tag={recipe.reference}", f"--tag={recipe.alias}",
        *(f"--build-arg={key}={value}" for key, value in arguments.items()),
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


def _platform_of(engine: Engine, recipe: Recipe) -> str:
    return recipe.platform or f"linux/{engine.architecture}"


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
        for name, text in (("Dockerfile", dockerfile()), ("lock.txt", recipe.lock)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, BytesIO(text.encode()))
    packed.seek(0)
    return packed


def _uv(engine: Engine, recipe: Recipe, line: terminal.ProgressLine) -> Path:
    """Return a folder with a uv that runs in the image: this machine's own, or the same version for the other platform."""
    architecture = _platform_of(engine, recipe).rpartition("/")[2]
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


# The base image, and registries.


def _base_digest(engine: Engine, recipe: Recipe, line: terminal.ProgressLine) -> str | None:
    """Return the digest of the base image, which is fetched before the build, since the label has to say it."""
    if recipe.platform:  # to fetch it would put it in the place of this platform's
        return _remote_digest(recipe.base)
    if not _inspected(engine, recipe.base):
        _pull(engine, recipe.base, f"image {recipe.name}", line, elsewhere=_OTHER_BASE)
    found = _inspected(engine, recipe.base)
    digests = [name.partition("@")[2] for name in found.get("RepoDigests") or ()]
    return digests[0] if digests else found.get("Id")


def _inspected(engine: Engine, image: str) -> dict[str, Any]:
    """Return what the engine knows of an image, nothing if it does not have it."""
    try:
        return dict(engine.client.api.inspect_image(image))
    except Exception as error:
        if getattr(error, "status_code", None) == 404:
            return {}
        raise EngineFailed(f"the Docker engine refused the image {image}: {engines.explain(error)}.") from error


def _remote_digest(image: str) -> str | None:
    try:
        told = process.call(["docker", "buildx", "imagetools", "inspect", image, "--format", "{{json .Manifest}}"])
    except CommandFailed:
        return None  # the build will tell what is the matter
    return str(json.loads(told)["digest"])


def _pull(engine: Engine, image: str, title: str, line: terminal.ProgressLine, **values: str) -> None:
    transfer = _Transfer(f"{title}: fetching {image}", "Pull complete", line)
    try:
        process.stream(["docker", "pull", f"--platform=linux/{engine.architecture}", image], transfer.heard)
    except CommandFailed as failure:
        line.clear()
        said = _meaning(_REGISTRY, failure.output, engine, host=_host(image), **values)
        raise EnvironmentFailed(f"the image {image} could not be fetched. {said}") from failure


def _fetched(engine: Engine, recipe: Recipe, registry: str) -> bool:
    """Fetch an image that was pushed before; where that fails it is built instead, and one line says why."""
    remote = f"{_registry(registry)}/{REPOSITORY}:{recipe.tag}"
    with terminal.ProgressLine() as line:
        try:
            _pull(engine, remote, f"image {recipe.name}", line, elsewhere="or RUNNER_REGISTRY")
        except EnvironmentFailed as failure:
            print(" ".join(str(failure).split()), "It is built instead.", file=sys.stderr, flush=True)
            return False
    try:
        for name in (recipe.reference, recipe.alias):
            process.call(["docker", "tag", remote, name])
    finally:
        process.call(["docker", "image", "rm", remote])
    return True


def _push(engine: Engine, recipe: Recipe, registry: str) -> str:
    """Send an image to a registry with the user's own login, and return the name that means this very image."""
    _refuse_without_docker()
    remote = f"{registry}/{REPOSITORY}:{recipe.tag}"
    process.call(["docker", "tag", recipe.reference, remote])
    with terminal.ProgressLine() as line:
        transfer = _Transfer(f"image {recipe.name}: pushing to {registry}", "Pushed", line)
        try:
            output = process.stream(["docker", "push", remote], transfer.heard)
        except CommandFailed as failure:
            line.clear()
            said = _meaning(_REGISTRY, failure.output, engine, host=_host(remote), elsewhere="or --push")
            raise EnvironmentFailed(f"pushing {remote} failed. {said}") from failure
        finally:
            process.call(["docker", "image", "rm", remote])
    digest = re.search(r"digest: (sha256:[0-9a-f]{64})", output)
    return f"{registry}/{REPOSITORY}@{digest[1]}" if digest else remote


def _host(image: str) -> str:
    """Return the registry that an image's name means."""
    first, slash, _ = image.partition("/")
    return first if slash and (re.search(r"[.:]", first) or first == "localhost") else "docker.io"


# What buildx prints.


@dataclass
class _Transfer:
    """Shows how many layers have come or gone."""

    title: str
    done: str
    line: terminal.ProgressLine
    layers: dict[str, bool] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def heard(self, text: str | None) -> None:
        found = re.match(r"([0-9a-f]{12}): (.+)", text or "")
        if found:
            self.layers[found[1]] = found[2].startswith(
                (self.done, "Already exists", "Layer already exists", "Mounted")
            )
        count = f", {sum(self.layers.values())} of {len(self.layers)} layers" if self.layers else ""
        self.line.update(f"{self.title}{count} … {terminal.duration(time.monotonic() - self.began)}")


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
    said = _meaning(
        _REGISTRY if doing == _LOOKING_UP else _BUILD, printed, engine, host=_host(recipe.base), elsewhere=_OTHER_BASE,
        platform=_platform_of(engine, recipe), python=recipe.python,
    )  # fmt: skip
    return f"making the image {recipe.name} failed while {doing}. {said}"


def _meaning(meanings: Sequence[tuple[str, str]], printed: str, engine: Engine, **values: str) -> str:
    """Return what a message means, and its last lines; what uv says is known elsewhere."""
    for pattern, sentence in meanings:
        match = re.search(pattern, printed, re.IGNORECASE)
        if match:
            found = {"what": "one of the packages", **{key: word for key, word in match.groupdict().items() if word}}
            architecture = values.get("platform", "").rpartition("/")[2]
            said = sentence.format_map({**found, "root": _root_folder(engine), "architecture": architecture, **values})
            lines = [line for line in printed.splitlines() if line.strip()][-6:]
            return "\n".join([said, *lines]) if said != found["what"] else said
    return packages.explain("It says:", printed)


def _root_folder(engine: Engine) -> str:
    try:
        return str(engine.client.info()["DockerRootDir"])
    except Exception:  # a sentence about a failure must not fail itself
        return "its data folder"
