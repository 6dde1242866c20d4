"""An image of ours beside the same TensorFlow from a Dockerfile as people write it: size, build, first step; prints JSON.

python tests/bench/bench_images.py [ENVIRONMENT]; RUNNER_BASE_IMAGE names the base where the official ones cannot be had.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from runner import engines, environments, images, packages
from runner.errors import EngineFailed

TEMPLATE = os.environ.get("RUNNER_BASE_IMAGE")
TIMES = 5
NAIVE = """\
FROM {base}
RUN --mount=type=secret,id=ca {certificates} pip install {package}
"""
STEP = """
import numpy, tensorflow as tf
model = tf.keras.Sequential([tf.keras.layers.Dense(16, "relu", input_shape=(784,)), tf.keras.layers.Dense(10, "softmax")])
model.compile("sgd", "sparse_categorical_crossentropy")
model.train_on_batch(numpy.zeros((32, 784), "float32"), numpy.zeros(32))
"""


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def docker(*words: str, **options: object) -> None:
    subprocess.run(["docker", *words], check=True, capture_output=True, **options)  # type: ignore[call-overload]


def build_naively(row: environments.Environment, name: str) -> None:
    """Build it with nothing but the certificates that this machine may need."""
    bundle = packages.ca_bundle()
    (package,) = (word.split(";")[0].strip() for word in row.packages[:1])
    text = NAIVE.format(
        base=images.base_image(row.pythons[0], TEMPLATE),
        package=package,
        certificates="PIP_CERT=/run/secrets/ca" if bundle else "",
    )
    secret = [f"--secret=id=ca,src={bundle}"] if bundle else []
    docker(
        "buildx", "build", "--builder=default", "--load", "--no-cache", *secret, "--tag", name, "-", input=text.encode()
    )


def measure(engine: engines.Engine, row: environments.Environment, naive: str, label: str) -> dict[str, object]:
    python = row.pythons[0]
    ours = images.ensure(engine, row.name, row.lock_text, python, TEMPLATE)  # and the cache of packages is warm

    def anew() -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            images.ensure(engine, label, f"{row.lock_text}\n# {label}\n", python, TEMPLATE)

    told = {"ours_build_s": seconds(anew), "naive_build_s": seconds(lambda: build_naively(row, naive))}
    command = [sys.executable, "-m", "runner", "build", row.name]
    told["unchanged_s"] = statistics.median(
        seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(TIMES)
    )
    first: dict[str, list[float]] = {ours: [], naive: []}
    for _ in range(TIMES):  # they take turns, so that a busy machine disturbs both alike
        for image, times in first.items():
            words = ("run", "--rm", "--env=TF_CPP_MIN_LOG_LEVEL=3", image, "python", "-c", STEP)
            times.append(seconds(lambda words=words: docker(*words)))
    told |= {"ours_first_step_s": statistics.median(first[ours]), "naive_first_step_s": statistics.median(first[naive])}
    sizes = {name: engine.client.images.get(image).attrs["Size"] for name, image in (("ours", ours), ("naive", naive))}
    return {
        "environment": row.name,
        **{name: round(value, 3) for name, value in told.items()},
        **{f"{name}_mb": round(size / 1e6) for name, size in sizes.items()},
        "build_naive_over_ours": round(told["naive_build_s"] / told["ours_build_s"], 2),
        "first_step_naive_over_ours": round(told["naive_first_step_s"] / told["ours_first_step_s"], 2),
        "size_naive_over_ours": round(sizes["naive"] / sizes["ours"], 2),
    }


def main(name: str = "tf2.15-cpu") -> None:
    row, unique = environments.find(name), secrets.token_hex(4)
    try:
        engine = engines.connect()
    except EngineFailed as error:
        print(json.dumps({"skipped": str(error)}))
        return
    naive, label = f"naive-{unique}:1", f"bench-{unique}-cpu"
    try:
        print(json.dumps(measure(engine, row, naive, label)))
    finally:
        for image in (naive, *(made.id for made in images.made(engine) if made.labels["runner.environment"] == label)):
            images.remove(engine, image)  # with its layers in the cache of builds, which would take gigabytes


if __name__ == "__main__":
    main(*sys.argv[1:])
