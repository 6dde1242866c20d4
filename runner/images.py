"""Images: what one is made from and called, and the ways to have it on an engine: there, fetched, or made now.

buildx.py (imported where it is used: most runs find their image) makes one, registries.py fetches and sends one; all
else is asked of the engine itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from runner import engines, environments, locks, registries, resources, terminal, yamlfile
from runner.engines import Engine
from runner.errors import EngineFailed, UsageError, unknown
from runner.virtualenvs import lock_hash

REPOSITORY = "tensorflow-runner"
TEMPLATE = "python:{python}-slim-bookworm"
PLATFORMS = ("linux/amd64", "linux/arm64")  # those that the locks are for


class Made(NamedTuple):
    """An image of ours on an engine; `bytes` counts its base, too."""

    reference: str
    id: str
    bytes: int
    used: float  # when it was made: an engine does not know when it was used
    labels: dict[str, str]
    current: bool  # the last one that was made of its environment


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
    def in_registry(self) -> str:
        """The name in a registry, where it is for whom it was pushed."""
        return f"{REPOSITORY}:{self.tag}"

    @property
    def alias(self) -> str:
        return f"{REPOSITORY}:{self.name}{self._suffix}"

    @property
    def dockerfile(self) -> str:
        return dockerfile()

    @property
    def arguments(self) -> list[str]:
        """What decides about a build, as `docker buildx build` takes it."""
        given = {"BASE": self.base, "PYTHON": self.python}
        words = (f"--build-arg={name}={value}" for name, value in given.items())
        return [f"--target={self.device}", *words, f"--tag={self.reference}"]

    def platform_on(self, engine: Engine) -> str:
        return self.platform or f"linux/{engine.architecture}"

    @property
    def _suffix(self) -> str:
        return f"-{self.platform.rpartition('/')[2]}" if self.platform else ""


def dockerfile() -> str:
    """Return the text of the Dockerfile that all images are made with."""
    return resources.data("images", "Dockerfile").read_text()


def described(name: str, lock_text: str, python: str, template: str | None = None) -> str:
    """Return what an image is made with: the arguments of its build as a comment, and the Dockerfile."""
    recipe = Recipe(name=name, lock=lock_text, python=python, base=base_image(python, template))
    return f"# docker buildx build {shlex.join(recipe.arguments)}\n{dockerfile().rstrip()}"


def registry(text: str, source: str = "the registry") -> str:
    """Return a registry such as registry.example.org/team, or refuse what is none; `source` says where it was asked for."""
    return registries.checked(text, source)


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
    registry = registries.checked(registry) if registry else None
    recipe = Recipe(name=name, lock=lock_text, python=python, base=base_image(python, template))
    if not _there(engine, recipe.reference):
        _make(engine, recipe, registry)
    return recipe.reference


def pull(engine: Engine, image: str) -> None:
    """Fetch an image of the user's own, unless it is there."""
    if not registries.inspected(engine, image):
        registries.refuse_without_docker(f"fetching the image {image}")
        with terminal.ProgressLine() as line:
            registries.fetch(engine, image, "image", line, elsewhere="or build it here (docker build -t)")


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
    registry = None if push is None else registries.checked(push, "--push")
    wanted = _platform(platform or (PLATFORMS[0] if registry else None))
    bases = {row.name: base_image(row.pythons[0], template) for row in rows}
    engine = engines.connect()
    other = "" if wanted in (None, f"linux/{engine.architecture}") else str(wanted)
    if other and not platform:
        print(_for_others(engine, other), file=sys.stderr, flush=True)
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
            told[-1]["pushed"] = registries.push(engine, recipe, registry)
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
        labels = dict(image.get("Labels") or {})
        current = f"{REPOSITORY}:{labels['runner.environment']}" in own
        found.append(Made(name, image["Id"], int(image["Size"]), float(image["Created"]), labels, current))
    return found


def own_bytes(engine: Engine) -> dict[str, int]:
    """Return of all images, by their ids, the bytes that no other image has: what their removal frees at least."""
    from runner import buildx

    found = buildx.usage(engine, "image", "Images")
    return {str(image["Id"]): int(image["Size"]) - max(int(image.get("SharedSize") or 0), 0) for image in found}


def remove(engine: Engine, image: str) -> bool:
    """Remove an image with all its names, and its layers from the cache of builds; return False where a container uses it."""
    import docker

    from runner import buildx

    layers = buildx.layers_of_images(engine)
    try:
        engine.api.remove_image(image, force=True)
    except docker.errors.APIError as error:
        if error.status_code == 409:
            return False
        if error.status_code != 404:
            raise EngineFailed(f"the image could not be removed: {engines.explain(error)}.") from error
    buildx.forget(engine, layers - buildx.layers_of_images(engine))
    return True


def _device(name: str) -> str:
    return "cuda" if name.endswith("-cuda") else "cpu"


def _platform(asked: str | None) -> str | None:
    if asked is not None and asked not in PLATFORMS:
        raise unknown("platform", asked, PLATFORMS)
    return asked


def _for_others(engine: Engine, other: str) -> str:
    return (
        f"building for {other}, as most clusters are, and not for this machine's linux/{engine.architecture}; "
        "--platform says otherwise"
    )


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
        return list(engine.api.images(filters=filters))
    except Exception as error:  # the SDK lets through what requests and urllib3 raise
        raise EngineFailed(f"the Docker engine could not list its images: {engines.explain(error)}.") from error


def _there(engine: Engine, name: str) -> bool:
    return bool(_listed(engine, reference=name))


# Making one.


def _make(engine: Engine, recipe: Recipe, registry: str | None = None) -> None:
    """Fetch or build an image, unless another runner does so meanwhile."""
    from runner import buildx

    buildx.refuse_without_docker()
    lock = resources.cache("images", f"{recipe.tag}.lock")
    with locks.held(lock, f"image {recipe.name}"), contextlib.ExitStack() as left:
        left.callback(lock.unlink, missing_ok=True)  # whoever waits for it finds the image
        if _there(engine, recipe.reference) or (registry and registries.fetched(engine, recipe, registry)):
            return
        buildx.refuse_without_buildx(engine)
        with terminal.ProgressLine() as line:
            if not line.active:
                print(f"making the image {recipe.name} (once)", file=sys.stderr, flush=True)
            digest = registries.base_digest(engine, recipe, line)
            buildx.build(engine, recipe, digest, line)
