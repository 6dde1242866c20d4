"""Seconds per epoch of Model.fit and of the Fashion-MNIST job's loop, side by side: run it in an environment.

    RUNNER_DATA=... python tests/bench/bench_trainer.py [--epochs 10]

Same network, initial weights, batch size and 60,000 images. They take turns epoch by epoch, and the fastest epoch of
each counts, so that a busy machine disturbs both alike. The last line is JSON with the ratios.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
JOBS = Path(__file__).resolve().parents[2] / "jobs"
sys.path[:0] = [str(JOBS), str(JOBS / "fashion_mnist")]

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402, TID251
from data import load  # noqa: E402
from model import initial_weights, keras_model  # noqa: E402
from runner_checkpoint import Checkpoint  # noqa: E402
from training import STEPS_PER_CALL, Loop, first_state, loss_and_accuracy, new_epoch, to_arrays  # noqa: E402

BATCH = 32
RATES = {"sgd": 0.01, "adam": 0.001}


def main():
    """Measure both optimizers and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    folder = str(Path(os.environ["RUNNER_DATA"]) / "fashion-mnist")
    training, test = load(folder, "train"), load(folder, "t10k")
    results = {"tensorflow": tf.__version__, "epochs": options.epochs}
    for optimizer in RATES:
        results[optimizer] = compare(optimizer, training, test, options.epochs)
        print(optimizer, json.dumps(results[optimizer]), flush=True)
    results["checkpoint"] = checkpoint_share(training, results["adam"]["loop_seconds"])
    print(json.dumps(results))


def compare(optimizer, training, test, epochs):
    """Return the fastest epoch of `fit` and of our loop, and the accuracies that both end with."""
    fit, loop = Fit(optimizer, training), Ours(optimizer, training)
    times = {"fit": [], "loop": []}
    for epoch in range(epochs):
        for name, contender in (("fit", fit), ("loop", loop)):
            started = time.perf_counter()
            contender.epoch(epoch)
            times[name].append(time.perf_counter() - started)
    fastest = {name: min(seconds) for name, seconds in times.items()}
    return {
        "fit_seconds": round(fastest["fit"], 3),
        "loop_seconds": round(fastest["loop"], 3),
        "times_faster": round(fastest["fit"] / fastest["loop"], 2),
        "median_times_faster": round(float(np.median(times["fit"]) / np.median(times["loop"])), 2),
        "fit_accuracy": round(loss_and_accuracy(fit.scores(test), test.labels)[1], 4),
        "loop_accuracy": round(loss_and_accuracy(loop.scores(test), test.labels)[1], 4),
    }


def start_weights():
    """Return the same initial weights for both."""
    return initial_weights([128], "glorot_uniform", np.random.RandomState(0))


class Fit:
    """Keras's own loop, as the tutorial writes it."""

    def __init__(self, optimizer, training):
        self.images, self.labels = training.images / np.float32(255), training.labels
        self.model = keras_model(start_weights(), "relu")
        keras = {"sgd": tf.keras.optimizers.SGD, "adam": tf.keras.optimizers.Adam}[optimizer]
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(optimizer=keras(RATES[optimizer]), loss=loss, metrics=["accuracy"])

    def epoch(self, epoch):
        self.model.fit(self.images, self.labels, batch_size=BATCH, epochs=1, verbose=0)

    def scores(self, test):
        return np.asarray(self.model(test.images / np.float32(255)))


class Ours:
    """The job's loop, with the shuffling that belongs to an epoch."""

    def __init__(self, optimizer, training):
        self.images, self.labels = training.images.reshape(len(training.labels), -1), training.labels
        self.loop = Loop(optimizer, "relu", BATCH)
        self.rate = RATES[optimizer]
        self.state = first_state(start_weights(), optimizer)

    def epoch(self, epoch, after_call=lambda state: None):
        order = np.random.RandomState([0, epoch]).permutation(len(self.labels))
        self.state = new_epoch(self.state)
        for start in range(0, len(order), STEPS_PER_CALL * BATCH):
            part = order[start : start + STEPS_PER_CALL * BATCH]
            self.state = self.loop.run(self.state, self.images[part], self.labels[part], self.rate)
            after_call(self.state)
        float(self.state.loss)

    def scores(self, test):
        return self.loop.predict(self.state.weights, test.images)


def checkpoint_share(training, epoch_seconds):
    """Return what a checkpoint of the Adam training costs, and its share of the time at the default interval."""
    ours = Ours("adam", training)
    ours.epoch(0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(directory=folder, every="10s")
        for step in range(20):
            checkpoint.save(step, lambda: to_arrays(ours.state), {"epoch": 1})
        cost = checkpoint.saving_seconds / 20
        # Wished for much too often: the interval stretches until the share is within the limit.
        eager = Checkpoint(directory=str(Path(folder) / "eager"), every="0.01s")
        started = time.perf_counter()
        for epoch in range(max(1, int(5 / epoch_seconds))):
            ours.epoch(epoch, lambda state: eager.step(int(state.step), lambda: to_arrays(state), {}))
        share = eager.saving_seconds / (time.perf_counter() - started)
    return {
        "milliseconds": round(1000 * cost, 2),
        "share_at_10s": round(cost / 10, 5),
        "share_when_asked_every_10ms": round(share, 4),
    }


if __name__ == "__main__":
    main()
