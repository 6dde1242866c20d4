"""The main job as a user runs it: through the command line, killed and stopped, with the same weights at the end."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, kill_launcher, need, step_of, until

from runner import runs

pytestmark = pytest.mark.tensorflow

SMALL = {"train_images": 6000, "epochs": 12, "hidden": "32", "patience": 50}
LONG = {
    **SMALL,
    "epochs": 120,
    "patience": 0,
    "optimizer": "nesterov",
    "learning_rate": 0.05,
}  # to be killed on a fast machine


@pytest.fixture
def small(cli: Cli, environment_python: Any, fashion_mnist: Path) -> Cli:
    """The command line, where environment and data are there."""
    environment_python("tf2.21-cpu")
    return cli


def report(cli: Cli, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cli.volume / name / "report.json").read_text())
    return found


def test_extended_killed_stopped_and_continued_on_one_core_it_ends_with_the_same_weights(small: Cli) -> None:
    need("taskset", shutil.which("taskset") is not None, "apt install util-linux")
    directory = small.volume / "killed"
    small.run("fashion_mnist", "--name", "whole", "--detach", **LONG)
    small.run("fashion_mnist", "--name", "killed", **{**LONG, "epochs": 5})
    first = report(small, "killed")
    for attempt, number in ((2, signal.SIGKILL), (3, signal.SIGTERM)):
        before = step_of(directory)
        small.run("fashion_mnist", "--name", "killed", "--detach", **LONG)
        until(lambda before=before: step_of(directory) > before, 60, "a newer checkpoint")
        kill_launcher(directory, number)
        run = runs.load(directory)
        assert run and run.attempt == attempt and run.state == "interrupted"
    assert "stopped by SIGTERM at step" in (directory / "logs" / "attempt-3.log").read_text()
    command = ["taskset", "-c", "0", *small.command("run", "fashion_mnist", "--name", "killed", *parameters(LONG))]
    said = subprocess.run(command, cwd=small.cwd, env=small.env, check=True, capture_output=True, text=True).stdout
    assert "going on from step" in said
    small("wait", "whole")
    last, whole = report(small, "killed"), report(small, "whole")
    assert first["weights_sha256"] != last["weights_sha256"]
    for key in ("weights_sha256", "test_loss", "test_accuracy", "best_epoch", "epochs", "confusion"):
        assert last[key] == whole[key], key
    run = runs.load(directory)
    assert run and run.record["exact"]
    assert [a["end"] for a in run.record["attempts"]] == ["succeeded", "lost", "interrupted", "succeeded"]
    assert steps(directory) == steps(small.volume / "whole")


def steps(directory: Path) -> list[dict[str, Any]]:
    """Return what metrics.jsonl says of each epoch, but for the total, which is another before it was extended."""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "total_steps"} for line in lines]


def test_prove_says_bit_identical_in_the_oldest_environment_too(small: Cli, environment_python: Any) -> None:
    environment_python("tf1.15-cpu")
    words = ["-E", "tf1.15", *parameters({**SMALL, "epochs": 60})]  # most of its time is training, so kills meet that
    seed = "445"  # its kills come after a quarter and two fifths of the work: so none comes too late, and is repeated
    verdict = small("prove", "fashion_mnist", "--kills", "1", "--seed", seed, *words, "--json").json()
    assert verdict["identical"], verdict
    assert verdict["kills"] == 2


def parameters(wanted: dict[str, Any]) -> list[str]:
    return [word for key, value in wanted.items() for word in ("-P", f"{key}={value}")]
