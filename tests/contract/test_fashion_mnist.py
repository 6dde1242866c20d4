"""The Fashion-MNIST job in the environments it promises to run in: real trainings, real kills, equal bits."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml

from runner import datasets

JOBS = Path(__file__).resolve().parents[2] / "jobs"
JOB = JOBS / "fashion_mnist"
ROWS = ["tf1.15-cpu", "tf2.8-cpu", "tf2.15-cpu", "tf2.21-cpu"]
SHORT = {"train_images": 1000, "epochs": 2}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like RUNNER_DATA: it holds fashion-mnist/ with the real four files."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "fashion-mnist").symlink_to(datasets.ensure(datasets.find("fashion-mnist")))
    return folder


@dataclass
class Job:
    """Starts the job as launch.py does."""

    python: Path
    data: Path
    folder: Path

    def start(self, name: str, *, prefix: tuple[str, ...] = (), every: str = "10s", **parameters: Any):
        (self.folder / name).mkdir(exist_ok=True)
        variables = environment(self.data, self.folder / name, every, parameters)
        command = [*prefix, str(self.python), "train.py"]
        with (self.folder / name / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=JOB, env=variables, stdout=log, stderr=subprocess.STDOUT)

    def run(self, name: str, *, code: int = 0, **options: Any) -> dict[str, Any]:
        """Run it to its end; return the report."""
        return self.wait(self.start(name, **options), name, code)

    def wait(self, process: subprocess.Popen[bytes], name: str, code: int = 0) -> dict[str, Any]:
        assert process.wait(300) == code, self.log(name)
        return self.report(name) if code == 0 else {}

    def report(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name / "report.json").read_text())

    def log(self, name: str) -> str:
        return (self.folder / name / "log").read_text()

    def epochs(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]


def environment(data: Path, directory: Path, every: str, parameters: dict[str, Any]) -> dict[str, str]:
    (directory / "parameters.json").write_text(json.dumps(parameters))
    return {
        **os.environ,
        "RUNNER_DIR": str(directory),
        "RUNNER_DATA": str(data),
        "RUNNER_PARAMETERS": str(directory / "parameters.json"),
        "RUNNER_CHECKPOINT_EVERY": every,
        "TF_NUM_INTRAOP_THREADS": "2",
        "TF_NUM_INTEROP_THREADS": "2",
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": str(JOBS),
    }


@pytest.fixture
def job(environment_python: Callable[[str], Path], data: Path, tmp_path: Path) -> Callable[[str], Job]:
    return lambda row: Job(environment_python(row), data, tmp_path)


# Forks of one process that has TensorFlow and the data loaded start in no time, and are killed as truly as any other
# process; two runs go on beside each other.
FORKS = """
import functools, json, os, random, runpy, signal, sys, time
# Loaded, and not used before the fork: so there are no threads yet.
import tensorflow.keras
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot
import data

folder, kills = sys.argv[1], int(sys.argv[2])
luck = random.Random(3)
data.load = functools.lru_cache(None)(data.load)
for kind in ("train", "t10k"):
    data.load(os.path.join(os.environ["RUNNER_DATA"], "fashion-mnist"), kind)


def start(name):
    directory = os.path.join(folder, name)
    os.makedirs(directory, exist_ok=True)
    child = os.fork()
    if child:
        return child
    os.environ["RUNNER_DIR"] = directory
    log = os.open(os.path.join(directory, "log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1), os.dup2(log, 2)
    code = 1
    try:
        runpy.run_path("train.py", run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code or 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def go_on(name):
    # What was continued is done sooner: mostly early, so that kills meet it; a SIGTERM after the training changes nothing.
    planned = done + sum(end is not None for _, end, _ in going.values())
    number = signal.SIGTERM if planned % 5 == 4 else signal.SIGKILL
    latest = 0.95 if planned % 3 == 0 and number == signal.SIGKILL else 0.6
    end = time.monotonic() + luck.uniform(0.15, latest) * seconds if planned < kills else None
    going[start(name)] = name, end, number


began = time.monotonic()
assert os.waitpid(start("whole"), 0)[1] == 0
seconds = time.monotonic() - began
going, done, runs = {}, 0, 2
go_on("killed-1")
go_on("killed-2")
while going:
    time.sleep(0.002)
    for child, (name, end, number) in list(going.items()):
        late = end is not None and time.monotonic() > end
        if late:
            os.kill(child, number)
        found, status = os.waitpid(child, 0 if late else os.WNOHANG)
        if not found:
            continue
        del going[child]
        if status:
            assert late, status
            assert status == signal.SIGKILL or os.WEXITSTATUS(status) == 75 or status == signal.SIGTERM, status
            done += 1
            go_on(name)
        elif done + len(going) < kills:
            runs += 1
            go_on("killed-%d" % runs)
print(json.dumps({"seconds": seconds, "kills": done, "runs": runs}))
"""


# Without TensorFlow: what stands in job.yaml, the data, and refusals


def test_the_job_finds_the_defaults_of_job_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(JOBS))
    monkeypatch.syspath_prepend(str(JOB))
    monkeypatch.setenv("RUNNER_DIR", "unused")
    import train

    stated = yaml.safe_load((JOB / "job.yaml").read_text())["parameters"]
    assert train.defaults() == {name: parameter["default"] for name, parameter in stated.items()}
    assert all(type(train.defaults()[name]) is type(stated[name]["default"]) for name in stated)


@pytest.mark.parametrize("how", ["sequential", "random", "stratified"])
def test_a_split_leaves_out_and_doubles_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(JOB))
    from data import Split, split

    labels = numpy.repeat(numpy.arange(10, dtype=numpy.uint8), 20)
    images = numpy.arange(200, dtype=numpy.uint8).reshape(200, 1, 1)
    first, second = (split(Split(images, labels), how, 0.1, numpy.random.RandomState(5)) for _ in range(2))
    training, validation = first
    assert len(validation.labels) == 20
    assert sorted([*training.images.flat, *validation.images.flat]) == list(range(200))
    assert all(numpy.array_equal(a.images, b.images) for a, b in zip(first, second, strict=True))
    if how == "stratified":
        assert numpy.bincount(validation.labels).tolist() == [2] * 10
    if how == "sequential":
        assert list(validation.images.flat) == list(range(180, 200))


def _cut(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100_000])


def _wrong_magic(folder: Path) -> None:
    with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(b"\0\0\x0b\x01\0\0\0\0")


def _short(folder: Path) -> None:
    with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(b"\0\0\x08\x01\0\0\xea\x60" + b"\0" * 100)


def _missing(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").unlink()


@pytest.mark.parametrize("damage", [_cut, _wrong_magic, _short, _missing])
def test_bad_data_ends_with_65_and_the_file_s_name(damage: Callable[[Path], None], data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "fashion-mnist", tmp_path / "data/fashion-mnist")
    damage(tmp_path / "data/fashion-mnist")
    job = Job(Path(sys.executable), tmp_path / "data", tmp_path)
    job.run("run", code=65)
    assert "-ubyte.gz" in job.log("run")
    assert "Traceback" not in job.log("run")


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"patience": 3, "validation_fraction": 0}, "validation_fraction"),
        ({"hidden": "128;64"}, "256,128"),
        ({"learning_rate": 0}, "learning_rate"),
    ],
)
def test_parameters_that_do_not_go_together_end_with_64(parameters, word: str, data: Path, tmp_path: Path) -> None:
    job = Job(Path(sys.executable), data, tmp_path)
    job.run("run", code=64, **parameters)
    assert word in job.log("run")
    assert "Traceback" not in job.log("run")


# In the environments


@pytest.mark.tensorflow
@pytest.mark.parametrize("row", ROWS)
def test_each_row_trains_saves_reports_and_draws(row: str, job: Callable[[str], Job]) -> None:
    here = job(row)
    report = here.run("run", every="1epoch", patience=1, **SHORT)
    assert report["versions"]["tensorflow"].startswith(row[2:].split("-")[0] + ".")
    assert report["test_accuracy"] > 0.5
    assert numpy.sum(report["confusion"]) == 10_000
    assert next(iter(report["per_class"])) == "T-shirt/top"
    assert {"classifier.h5", "classifier.weights.h5", "saved_model"} <= set(report["models"])
    assert sorted(os.listdir(here.folder / "run/model")) == sorted(report["models"])
    assert [line["epoch"] for line in here.epochs("run")] == [1, 2]
    assert here.epochs("run")[-1]["step"] == here.epochs("run")[-1]["total_steps"] == 2 * 29
    for name in ("learning-curves", "confusion-matrix", "samples"):
        assert (here.folder / f"run/pictures/{name}.png").read_bytes().startswith(b"\x89PNG")
    for kind in ("training", "validation"):
        (events,) = (here.folder / "run/tensorboard" / kind).iterdir()
        assert events.stat().st_size > 200
    assert (here.folder / "run/done").exists()
    index = json.loads((here.folder / "run/checkpoints/index.json").read_text())["checkpoints"]
    assert [entry["step"] for entry in index] == [29, 58]  # the last epoch's, and not once more at the end
    assert index[-1]["number"] == 2
    assert here.run("run", patience=1, **SHORT) == report
    assert "already done" in here.log("run")


@pytest.mark.tensorflow
@pytest.mark.parametrize(("row", "kills", "optimizer"), [("tf2.21-cpu", 20, "adam"), ("tf1.15-cpu", 3, "momentum")])
def test_kills_at_any_moment_change_no_bit(row: str, kills: int, optimizer: str, job: Callable[[str], Job]) -> None:
    here = job(row)
    parameters = {"train_images": 1000, "epochs": 8, "patience": 3, "optimizer": optimizer}
    variables = environment(here.data, here.folder, "10steps", parameters)
    del variables["RUNNER_DIR"]
    command = [str(here.python), "-c", FORKS, str(here.folder), str(kills)]
    output = subprocess.run(command, cwd=JOB, env=variables, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr
    summary = json.loads(output.stdout.splitlines()[-1])
    print(summary)
    assert summary["kills"] >= kills
    whole = here.report("whole")
    for number in range(1, summary["runs"] + 1):
        killed = here.report(f"killed-{number}")
        for key in ("weights_sha256", "test_loss", "test_accuracy", "best_epoch", "confusion"):
            assert killed[key] == whole[key], (number, key)
        assert here.epochs(f"killed-{number}") == here.epochs("whole")
        assert not [name for name in os.listdir(here.folder / f"killed-{number}") if name.startswith(".")]


@pytest.mark.tensorflow
def test_more_epochs_after_an_early_stop_are_the_same_bits_as_all_at_once(job: Callable[[str], Job]) -> None:
    here = job("tf2.8-cpu")
    parameters = {"train_images": 1000, "optimizer": "nesterov", "learning_rate": 0.05, "patience": 1}
    beside = here.start("whole", epochs=9, **parameters)
    here.run("run", epochs=4, **parameters)
    later = here.run("run", epochs=9, **parameters)
    whole = here.wait(beside, "whole")
    for key in ("weights_sha256", "test_loss", "best_epoch", "stopped_early", "epochs"):
        assert later[key] == whole[key], key
    assert later["stopped_early"]


@pytest.mark.tensorflow
def test_ten_epochs_recognise_88_percent(job: Callable[[str], Job]) -> None:
    assert job("tf2.21-cpu").run("run")["test_accuracy"] >= 0.88


OPTIMIZERS = """
import sys
import numpy as np, tensorflow as tf
from model import initial_weights, keras_model
from training import OPTIMIZERS, Loop, first_state

random = np.random.RandomState(0)
images, labels = random.randint(0, 256, (320, 784), np.uint8), random.randint(0, 10, 320).astype(np.uint8)
made = {
    "sgd": tf.keras.optimizers.SGD(0.01),
    "momentum": tf.keras.optimizers.SGD(0.01, momentum=0.9),
    "nesterov": tf.keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    "rmsprop": tf.keras.optimizers.RMSprop(0.001),
    "adagrad": tf.keras.optimizers.Adagrad(0.01),
    "adam": tf.keras.optimizers.Adam(0.001),
}
assert set(made) == set(OPTIMIZERS)
for name, optimizer in made.items():
    weights = initial_weights([128], "glorot_uniform", np.random.RandomState(0))
    model = keras_model(weights, "relu")
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    scaled = images.reshape(-1, 28, 28) / np.float32(255)
    for start in range(0, 320, 32):
        model.train_on_batch(scaled[start : start + 32], labels[start : start + 32])
    rate = 0.001 if name in ("rmsprop", "adam") else 0.01
    state = Loop(name, "relu", 32).run(first_state(weights, name), images, labels, rate)
    for ours, theirs, before in zip(state.weights, model.get_weights(), weights):
        far = np.mean(np.abs(np.asarray(ours) - theirs)) / np.mean(np.abs(theirs - before))
        assert far < 0.01, (name, far)
    print(name, "is Keras's")
"""


@pytest.mark.tensorflow
def test_the_optimizers_are_those_of_keras(job: Callable[[str], Job]) -> None:
    here = job("tf2.8-cpu")
    variables = {**environment(here.data, here.folder, "10s", {}), "PYTHONPATH": f"{JOBS}:{JOB}"}
    output = subprocess.run([here.python, "-c", OPTIMIZERS], env=variables, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stdout + output.stderr


KERAS = """
import os, signal, sys
import numpy as np, tensorflow as tf
from runner_checkpoint import keras_checkpoint

random = np.random.RandomState(0)
x, y = random.rand(256, 20).astype("float32"), random.randint(0, 2, 256)


class Stop(tf.keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def train(folder, *more):
    os.environ["RUNNER_DIR"] = folder
    start = tf.keras.initializers.Constant(0.1)
    dense = tf.keras.layers.Dense
    model = tf.keras.Sequential([dense(8, activation="tanh", kernel_initializer="ones"), dense(2)])
    model.build((None, 20))
    weights = np.random.RandomState(1)
    model.set_weights([weights.normal(size=array.shape) for array in model.get_weights()])
    model.compile(optimizer="adam", loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    early = tf.keras.callbacks.EarlyStopping("loss", patience=2, min_delta=0.02, restore_best_weights=True)
    checkpoint = keras_checkpoint(model, every="1epoch", callbacks=[early])
    print("from", checkpoint.epoch)
    model.fit(x, y, epochs=40, initial_epoch=checkpoint.epoch, shuffle=False, verbose=0, callbacks=[*more, early, checkpoint])
    return early.stopped_epoch, model.get_weights()


whole = train("whole")
try:
    train("stopped", Stop())
    raise AssertionError("not stopped")
except SystemExit as error:
    assert error.code == 75, error.code
assert not os.path.exists("stopped/done")
stopped = train("stopped")
assert os.path.exists("stopped/done")
assert 3 < stopped[0] == whole[0], (stopped[0], whole[0])
for a, b in zip(stopped[1], whole[1]):
    assert np.array_equal(a, b)
assert open("whole/metrics.jsonl").read() == open("stopped/metrics.jsonl").read()
print("equal")
"""


@pytest.mark.tensorflow
@pytest.mark.parametrize("row", ROWS)
def test_a_keras_model_goes_on_with_the_same_bits(row: str, job: Callable[[str], Job]) -> None:
    here = job(row)
    for name in ("whole", "stopped"):
        (here.folder / name).mkdir()
    command = [str(here.python), "-c", KERAS]
    variables = environment(here.data, here.folder, "1epoch", {})
    output = subprocess.run(command, cwd=here.folder, env=variables, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stdout + output.stderr
    assert output.stdout.splitlines()[-1] == "equal"
    assert "from 3" in output.stdout
