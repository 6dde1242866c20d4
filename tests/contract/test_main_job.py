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
LONG = {**SMALL, "epochs": 120, "patience": 200}  # long enough to be killed on a fast machine, too


@pytest.fixture
def small(cli: Cli, environment_python: Any, fashion_mnist: Path) -> Cli:
    """The command line, where environment and data are there."""
    environment_python("tf2.21-cpu")
    return cli


def report(cli: Cli, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cli.volume / name / "report.json").read_text())
    return found


def test_killed_stopped_and_continued_on_one_core_it_ends_with_the_same_weights(small: Cli) -> None:
    need("taskset", shutil.which("taskset") is not None, "apt install util-linux")
    directory = small.volume / "killed"
    small.run("fashion_mnist", "--name", "whole", **LONG)
    for attempt, number in ((1, signal.SIGKILL), (2, signal.SIGTERM)):
        before = step_of(directory)
        small.run("fashion_mnist", "--name", "killed", "--detach", **LONG)
        until(lambda before=before: step_of(directory) > before, 60, "a newer checkpoint")
        kill_launcher(directory, number)
        run = runs.load(directory)
        assert run and run.attempt == attempt and run.state == "interrupted"
    command = ["taskset", "-c", "0", *small.command("run", "fashion_mnist", "--name", "killed", *parameters(LONG))]
    subprocess.run(command, cwd=small.cwd, env=small.env, check=True, capture_output=True)
    assert report(small, "killed")["weights_sha256"] == report(small, "whole")["weights_sha256"]
    run = runs.load(directory)
    assert (
        run
        and run.record["exact"]
        and [a["end"] for a in run.record["attempts"]] == ["lost", "interrupted", "succeeded"]
    )
    assert (directory / "metrics.jsonl").read_text() == (small.volume / "whole" / "metrics.jsonl").read_text()


def test_ten_epochs_then_more_are_all_at_once(small: Cli) -> None:
    wanted = {**SMALL, "patience": 0}
    small.run("fashion_mnist", "--name", "whole", **wanted)
    small.run("fashion_mnist", "--name", "extended", **{**wanted, "epochs": 5})
    small.run("fashion_mnist", "--name", "extended", **wanted)
    assert report(small, "extended")["weights_sha256"] == report(small, "whole")["weights_sha256"]


def test_prove_says_bit_identical(small: Cli) -> None:
    words = small("prove", "fashion_mnist", "--kills", "2", "--seed", "1", *parameters(SMALL), "--json").json()
    assert words["identical"], words
    assert words["kills"] == 3


def parameters(wanted: dict[str, Any]) -> list[str]:
    return [word for key, value in wanted.items() for word in ("-P", f"{key}={value}")]
