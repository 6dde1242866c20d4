"""Fetches images from registries and sends them there, by calling `docker`, which has the user's logins."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner import engines, packages, process, terminal
from runner.engines import Engine
from runner.errors import CommandFailed, EngineFailed, EnvironmentFailed, UsageError

if TYPE_CHECKING:
    from runner.images import Recipe

DISK_FULL = (
    r"no space left|os error 28|disk quota|os error 122",
    "The disk of the Docker engine is full (it keeps images in {root}). Free some space there: `runner rm --unused`, "
    "`docker builder prune`, `docker image prune`.",
)
# What an engine says that fetches from a registry, or sends there, told by the first pattern that matches.
MEANINGS = (
    DISK_FULL,
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
OTHER_BASE = "or name another base image: RUNNER_BASE_IMAGE, such as registry.example.org/python:{minor}-slim"


def checked(asked: str, source: str = "the registry") -> str:
    """Return a registry as images' names begin with it, or refuse what is none; `source` says where it was asked for."""
    registry = asked.rstrip("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*(:\d+)?(/[a-z0-9._-]+)*", registry):
        raise UsageError(
            f"{source} {asked}: a registry is given as registry.example.org/team, without https:// and without the image's name."
        )
    return registry


def refuse_without_docker(doing: str) -> None:
    if not shutil.which("docker"):
        raise EngineFailed(
            f"{doing} needs Docker's command line, and there is no `docker` on PATH. Install it: docker-ce-cli of Docker, "
            "docker-cli of Debian, docker.io of Ubuntu (https://docs.docker.com/engine/install/)."
        )


def base_digest(engine: Engine, recipe: Recipe, line: terminal.ProgressLine) -> str | None:
    """Return the digest of the base image, which is fetched before the build, since the label has to say it."""
    if recipe.platform:  # to fetch it would put it in the place of this platform's
        return _remote_digest(recipe.base)
    if not inspected(engine, recipe.base):
        fetch(engine, recipe.base, f"image {recipe.name}", line, elsewhere=OTHER_BASE)
    found = inspected(engine, recipe.base)
    digests = [name.partition("@")[2] for name in found.get("RepoDigests") or ()]
    return digests[0] if digests else found.get("Id")


def inspected(engine: Engine, image: str) -> dict[str, Any]:
    """Return what the engine knows of an image, nothing if it does not have it."""
    try:
        return dict(engine.api.inspect_image(image))
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


def fetch(engine: Engine, image: str, title: str, line: terminal.ProgressLine, **values: str) -> None:
    """Fetch an image; `values` has what the sentences of a failure name."""
    transfer = _Transfer(f"{title}: fetching {image}", "Pull complete", line)
    try:
        process.stream(["docker", "pull", f"--platform=linux/{engine.architecture}", image], transfer.heard)
    except CommandFailed as failure:
        line.clear()
        said = meaning(MEANINGS, failure.output, engine, host=host_of(image), **values)
        raise EnvironmentFailed(f"the image {image} could not be fetched. {said}") from failure


def fetched(engine: Engine, recipe: Recipe, registry: str) -> bool:
    """Fetch an image that was pushed before; where that fails it is built instead, and one line says why."""
    remote = f"{registry}/{recipe.in_registry}"
    with terminal.ProgressLine() as line:
        try:
            fetch(engine, remote, f"image {recipe.name}", line, elsewhere="or RUNNER_REGISTRY")
        except EnvironmentFailed as failure:
            print(" ".join(str(failure).split()), "It is built instead.", file=sys.stderr, flush=True)
            return False
    try:
        for name in (recipe.reference, recipe.alias):
            process.call(["docker", "tag", remote, name])
    finally:
        process.call(["docker", "image", "rm", remote])
    return True


def push(engine: Engine, recipe: Recipe, registry: str) -> str:
    """Send an image to a registry with the user's own login, and return the name that means this very image."""
    refuse_without_docker("sending an image")
    remote = f"{registry}/{recipe.in_registry}"
    process.call(["docker", "tag", recipe.reference, remote])
    with terminal.ProgressLine() as line:
        transfer = _Transfer(f"image {recipe.name}: pushing to {registry}", "Pushed", line)
        try:
            output = process.stream(["docker", "push", remote], transfer.heard)
        except CommandFailed as failure:
            line.clear()
            said = meaning(MEANINGS, failure.output, engine, host=host_of(remote), elsewhere="or --push")
            raise EnvironmentFailed(f"pushing {remote} failed. {said}") from failure
        finally:
            process.call(["docker", "image", "rm", remote])
    digest = re.search(r"digest: (sha256:[0-9a-f]{64})", output)
    return f"{remote.rpartition(':')[0]}@{digest[1]}" if digest else remote


def host_of(image: str) -> str:
    """Return the registry that an image's name means."""
    first, slash, _ = image.partition("/")
    return first if slash and (re.search(r"[.:]", first) or first == "localhost") else "docker.io"


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


def meaning(meanings: Sequence[tuple[str, str]], printed: str, engine: Engine, **values: str) -> str:
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
