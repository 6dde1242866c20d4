"""Images' names, what comes with a build as a secret, and what the words of buildx and of registries mean."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from runner import buildx, cleaning, environments, images, locks, registries, resources
from runner.engines import Engine
from runner.errors import EngineFailed, UsageError
from runner.terminal import ProgressLine

LOCK = "small==1.0 --hash=sha256:00\n"


class Answers:
    """Stands for an engine's client: what a full disk's sentence asks for is all that these tests need of one."""

    def info(self) -> dict[str, Any]:
        return {"DockerRootDir": "/var/lib/docker"}


ENGINE = Engine(
    client=Answers(), api=Answers(), address="unix:///nowhere", cpus=2, version="26.1", podman=False, rootless=False,
    remapped=False, cdi=False, architecture="amd64",
)  # fmt: skip
RECIPE = images.Recipe(name="tf2.15-cpu", lock=LOCK, python="3.11", base="python:3.11.14-slim-bookworm")


@pytest.mark.parametrize(
    ("template", "base"),
    [
        (None, "python:3.11.14-slim-bookworm"),
        ("", "python:3.11.14-slim-bookworm"),
        ("mirror.example.org:5000/python:{minor}-slim", "mirror.example.org:5000/python:3.11-slim"),
        ("mirror.example.org/python:{python}", "mirror.example.org/python:3.11.14"),
        ("ours@sha256:" + 64 * "0", "ours@sha256:" + 64 * "0"),
    ],
)
def test_a_base_image_is_the_pinned_one_or_the_templates(template: str | None, base: str) -> None:
    assert images.base_image("3.11", template) == base


@pytest.mark.parametrize("row", environments.load().values(), ids=lambda row: row.name)
def test_the_base_of_each_row_has_a_pinned_patch(row: environments.Environment) -> None:
    for python in row.pythons:
        assert re.fullmatch(rf"python:{python}\.\d+-slim-bookworm", images.base_image(python, None))


def test_a_python_that_nobody_pinned_is_its_minor() -> None:
    assert images.base_image("3.14", None) == "python:3.14-slim-bookworm"


def test_a_name_says_what_the_image_is_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = images.reference("tf2.15-cpu", LOCK, "3.11")
    assert re.fullmatch(r"tensorflow-runner:tf2\.15-cpu-[0-9a-f]{8}", name)
    assert images.reference("tf2.15-cpu", f"# made by a newer uv\n\n{LOCK}", "3.11", "", "cpu") == name
    others = [
        images.reference("tf2.15-cpu", LOCK + "more==1\n", "3.11"),
        images.reference("tf2.15-cpu", LOCK, "3.10"),
        images.reference("tf2.15-cpu", LOCK, "3.11", "python:3.11"),
        images.reference("tf2.15-cpu", LOCK, "3.10", "python:3.11"),
        images.reference("tf2.15-cuda", LOCK, "3.11"),
    ]
    monkeypatch.setattr(images, "dockerfile", lambda: "FROM scratch")
    others.append(images.reference("tf2.15-cpu", LOCK, "3.11"))
    assert len({name, *others}) == 7


def test_another_platforms_image_never_has_this_ones_name() -> None:
    other = images.Recipe(name="tf2.15-cpu", lock=LOCK, python="3.11", base=RECIPE.base, platform="linux/arm64")
    assert (other.reference, other.alias) == (f"{RECIPE.reference}-arm64", f"{RECIPE.alias}-arm64")
    assert other.tag == RECIPE.tag  # in a registry it is for whom it was pushed


def test_only_what_a_build_can_reach_comes_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_FIND_LINKS", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://reader:it's secret@index.example.org/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path} https://wheels.example.org/")
    monkeypatch.setenv("PIP_PROXY", "http://proxy.example.org:3128")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "somebody's")
    found = buildx._index_settings()
    assert found["UV_DEFAULT_INDEX"] == "https://reader:it's secret@index.example.org/simple"
    assert found["UV_FIND_LINKS"] == "https://wheels.example.org/"
    assert found["HTTPS_PROXY"] == "http://proxy.example.org:3128" and found["NO_PROXY"] == "localhost"
    assert not {"UV_CACHE_DIR", "UV_PYTHON_INSTALL_DIR", "AWS_SECRET_ACCESS_KEY", "PATH"} & set(found)


@pytest.mark.parametrize(
    ("value", "there"),
    [
        ("http://127.0.0.1:3128", True),
        ("https://me:pw@localhost/simple", True),
        ("https://index.example.org/simple http://localhost:8080", True),
        ("mine=http://[::1]:8080", True),
        ("https://localhost.example.org", False),
        ("https://pypi.org/simple", False),
        ("localhost,127.0.0.1", False),
    ],
)
def test_what_is_on_this_machine_is_known(value: str, there: bool) -> None:
    assert bool(buildx._LOOPBACK.search(value)) is there


@pytest.mark.parametrize(
    ("image", "host"),
    [
        ("python:3.11", "docker.io"),
        ("bitnami/python:3.11", "docker.io"),
        ("localhost/python", "localhost"),
        ("127.0.0.1:5000/team/python:3.11", "127.0.0.1:5000"),
        ("registry.example.org/python@sha256:00", "registry.example.org"),
    ],
)
def test_an_images_registry_is_known(image: str, host: str) -> None:
    assert registries.host_of(image) == host


# What engines of several ages say, and the beginning of what that means.
SAID = {
    "toomanyrequests: You have reached your pull rate limit. You may increase the limit by authenticating": "r.example.org limits how",
    "unauthorized: authentication required": "r.example.org refused: it wants a login",
    "denied: requested access to the resource is denied": "r.example.org refused: it wants a login",
    "unexpected status from HEAD request to https://r.example.org/v2/python/manifests/3.11: 403 Forbidden": "r.example.org refused",
    "no basic auth credentials": "r.example.org refused: it wants a login",
    "manifest for r.example.org/python:3.99 not found: manifest unknown": "There is no such image in r.example.org",
    'Get "https://r.example.org/v2/": tls: failed to verify certificate: x509: certificate signed by unknown authority': (
        "The engine does not trust the certificate of r.example.org"
    ),
    'Get "https://r.example.org/v2/": proxyconnect tcp: dial tcp 10.0.0.1:3128: connect: connection refused': (
        "The engine's proxy did not let it reach r.example.org"
    ),
    'Get "https://r.example.org/v2/": dial tcp: lookup r.example.org on 10.0.0.2:53: no such host': (
        "The engine cannot reach r.example.org"
    ),
    'Get "https://r.example.org/v2/": net/http: request canceled (Client.Timeout exceeded)': "The engine cannot reach",
    "no matching manifest for linux/arm64/v8 in the manifest list entries": "What r.example.org has under this name is for another",
    "image with reference r.example.org/python:3.11 was found but does not match the specified platform: wanted linux/amd64": (
        "What r.example.org has under this name is for another kind of processor"
    ),
    "write /var/lib/docker/tmp/GetImageBlob12345: no space left on device": "The disk of the Docker engine is full (it keeps images "
    "in /var/lib/docker)",
}


@pytest.mark.parametrize("said", SAID)
def test_what_a_registry_says_is_told_in_a_sentence(said: str) -> None:
    meaning = registries.meaning(
        registries.MEANINGS,
        f"Error response from daemon: {said}\n",
        ENGINE,
        host="r.example.org",
        elsewhere="or --push",
    )
    sentence, shown = meaning.splitlines()
    assert sentence.startswith(SAID[said]) and "{" not in sentence and shown.endswith(said)


BUILD = """\
#0 building with "default" instance using docker driver

#1 [internal] load remote build context
#1 DONE 0.0s

#2 [internal] load metadata for docker.io/library/python:3.11
#2 DONE 0.0s

#3 [cpu 1/4] FROM docker.io/library/python:3.11
#3 CACHED

#4 [cpu 2/4] RUN step="compiling the modules of Python"; set -eu; ...
#4 CACHED

#5 [cpu 3/4] RUN --mount=type=tmpfs,target=/run step="installing the packages"; set -eu; ...
#5 0.211 Resolved 2 packages in 12ms
#5 1.934 error: Failed to install: tensorflow-2.15.1-py3-none-any.whl
#5 1.934   cause: failed to write to file: No space left on device (os error 28)
#5 ERROR: process "/bin/sh -c step=... no space left on device" did not complete successfully: exit code: 2
------
 > [cpu 3/4] RUN --mount=type=tmpfs,target=/run step="installing the packages"; set -eu; ...:
------
ERROR: failed to solve: process "/bin/sh -c ..." did not complete successfully: exit code: 2
"""


def test_the_failing_step_of_a_build_is_named_with_what_it_printed() -> None:
    steps = buildx._Steps("image small", ProgressLine())
    for text in BUILD.splitlines():
        steps.heard(text)
    told = buildx._why(ENGINE, RECIPE, steps, BUILD)
    sentence, *lines = told.splitlines()
    assert sentence.startswith(
        "making the image tf2.15-cpu failed while installing the packages. The disk of the Docker engine is full"
    )
    assert lines[-1] == "  cause: failed to write to file: No space left on device (os error 28)"


def test_what_fails_outside_of_all_steps_is_told_too() -> None:
    steps, said = buildx._Steps("image small", ProgressLine()), 'ERROR: no builder "desktop" found\n'
    steps.heard(said)
    told = buildx._why(ENGINE, RECIPE, steps, said)
    assert told == "making the image tf2.15-cpu failed while reading the lock. It says:\n" + said.strip()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"podman": True}, "Podman runs images, but has no BuildKit"),
        ({"version": "20.10.24"}, "is version 20.10.24, which runs images, but cannot make them"),
    ],
)
def test_an_engine_that_cannot_make_images_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineFailed, match=message):
        buildx.refuse_without_buildx(replace(ENGINE, **changes))


@pytest.mark.parametrize("asked", ["https://registry.example.org", "", "Registry.example.org", "a b", "host:port/x"])
def test_what_is_no_registry_is_refused(asked: str) -> None:
    with pytest.raises(UsageError, match="a registry is given as"):
        images.registry(asked)


def test_where_a_registry_was_asked_for_is_said() -> None:
    with pytest.raises(UsageError, match=r"^RUNNER_REGISTRY https://r\.example\.org: a registry is given as"):
        images.registry("https://r.example.org", "RUNNER_REGISTRY")


def test_how_an_image_is_made_is_described_with_all_that_decides() -> None:
    first, rest = images.described("tf2.15-cuda", LOCK, "3.11", "mirror.example.org/python:{minor}").split("\n", 1)
    assert first == (
        "# docker buildx build --target=cuda --build-arg=BASE=mirror.example.org/python:3.11 --build-arg=PYTHON=3.11 --tag="
        + images.reference("tf2.15-cuda", LOCK, "3.11", "mirror.example.org/python:{minor}")
    )
    assert rest == images.dockerfile().rstrip()
    assert set(first.split()[4:]) == set(
        replace(RECIPE, name="tf2.15-cuda", base="mirror.example.org/python:3.11").arguments
    )


def test_files_of_builds_that_nothing_needs_are_unused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path))
    folder, version = resources.cache("images"), metadata.version("uv")
    for name in (f"uv-{version}-amd64", "uv-0.0.1-amd64", "uv-0.0.1-arm64.partial"):
        (folder / name / "bin").mkdir(parents=True)
        (folder / name / "bin" / "uv").write_bytes(bytes(1000))
    for name in (
        f"uv-{version}-amd64.lock",
        "uv-0.0.1-amd64.lock",
        "killed-cpu-00000000.lock",
        "going-cpu-00000000.lock",
    ):
        (folder / name).touch()
    with locks.held(folder / "going-cpu-00000000.lock", "image going"):
        found = list(cleaning._unused_files_of_builds())
    assert {waste.path.name: waste.bytes for waste in found} == {
        "uv-0.0.1-amd64": 1000, "uv-0.0.1-arm64.partial": 1000, "uv-0.0.1-amd64.lock": 0, "killed-cpu-00000000.lock": 0,
    }  # fmt: skip
    assert all(map(cleaning._remove, found))
    left = {path.name for path in folder.iterdir()}
    assert left == {f"uv-{version}-amd64", f"uv-{version}-amd64.lock", "going-cpu-00000000.lock"}


@pytest.mark.parametrize("asked", ["registry.example.org", "localhost:5000/", "ghcr.io/some-body/team_1"])
def test_a_registry_may_have_a_port_and_a_path(asked: str) -> None:
    assert images.registry(asked) == asked.rstrip("/")
