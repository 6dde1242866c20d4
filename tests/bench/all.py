"""`make bench`: every budget, measured in one run beside what one would do instead, printed as a table and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from runner import datasets, environments, virtualenvs
from runner.terminal import table

HERE = Path(__file__).parent


def measured(script: str, python: Path | str = sys.executable, **variables: str) -> dict[str, Any]:
    """Run one of the scripts beside this file and return the JSON object that it prints last."""
    print(f"{script} ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        [python, HERE / script], env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def trainer() -> dict[str, Any]:
    row = environments.find("tf2.21-cpu")
    python = virtualenvs.ensure(row.lock_text, row.pythons, row.name).python
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "fashion-mnist").symlink_to(datasets.ensure(datasets.find("fashion-mnist")))
        threads = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), "2")
        return measured("bench_trainer.py", python, RUNNER_DATA=folder, **threads)


def told(found: dict[str, Any], name: str, unit: str) -> str:
    return f"{found[name]:.2f} {unit}" if name in found else f"not measured: {found['skipped']}"


def main() -> None:
    runner, environment, training = measured("bench_runner.py"), measured("bench_environments.py"), trainer()
    checkpoint = training["checkpoint"]
    rows = [
        ["`runner --help` over `import click`", f"{runner['help_over_import_click']:.2f} x", "at most 1.6 x"],
        ["a native run over the bare process", f"{runner['overhead_s']:.2f} s", "at most 0.3 s"],
        ["installed over an empty virtualenv, without uv", f"{runner['core_mb']:.1f} MB", "at most 15 MB"],
        ["1,000 runs listed", f"{runner['ps_1000_runs_s']:.2f} s", "at most 2 s"],
        ["an environment: pip over ours, both caches warm", f"{environment['pip_over_ours']:.1f} x", "at least 10 x"],
        ["an epoch with SGD: `Model.fit` over ours", f"{training['sgd']['times_faster']:.1f} x", "at least 8 x"],
        ["an epoch with Adam: `Model.fit` over ours", f"{training['adam']['times_faster']:.1f} x", "at least 5 x"],
        ["checkpoints' share, one every 10 s", f"{100 * checkpoint['share_at_10s']:.2f} %", "at most 2 %"],
        [
            "checkpoints' share, when asked every 10 ms",
            f"{100 * checkpoint['share_when_asked_every_10ms']:.2f} %",
            "at most 2 %",
        ],
    ]
    docker, image = measured("bench_docker.py"), measured("bench_images.py")
    rows += [
        ["a run in Docker over `docker run`", told(docker, "overhead_s", "s"), "at most 0.4 s"],
        ["an unchanged image built again", told(image, "unchanged_s", "s"), "at most 1 s"],
        [
            "an image: a naive build over ours, packages cached",
            told(image, "build_naive_over_ours", "x"),
            "more than 1 x",
        ],
        ["its first training step: naive over ours", told(image, "first_step_naive_over_ours", "x"), "at least 1 x"],
        ["its size: naive over ours", told(image, "size_naive_over_ours", "x"), "at least 1 x"],
    ]
    table(["what", "measured", "budget"], rows)
    parts = {"runner": runner, "environment": environment, "training": training, "docker": docker, "image": image}
    print(json.dumps(parts))


if __name__ == "__main__":
    main()
