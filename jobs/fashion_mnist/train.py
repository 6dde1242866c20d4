"""Trains a classifier of clothes on Fashion-MNIST, and goes on to the same bits when it is cut off.

Parameters come from the JSON file $RUNNER_PARAMETERS, the images from $RUNNER_DATA/fashion-mnist, results go to
$RUNNER_DIR. Without the runner, `python train.py` takes the defaults of job.yaml, ./fashion-mnist and ./run.

All that is random comes from the seed and the number of the epoch, never from a hidden state: that is why a run that
was killed and continued ends with the weights of one that was not.
"""

import json
import logging
import os
import re
import sys
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("RUNNER_DIR", os.path.abspath("run"))
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.dirname(HERE))  # where runner_checkpoint.py lies in a checkout

import numpy as np  # noqa: E402
from data import BadData, describe, load, split  # noqa: E402
from runner_checkpoint import Checkpoint  # noqa: E402

USAGE, DATA, NOT_THE_SAME = 64, 65, 70  # exit codes
SPLIT, WEIGHTS, SHUFFLE = 1, 2, 3  # each use of the seed draws its own numbers


def main():
    """Train, evaluate once, and leave model, report and pictures."""
    checkpoint = Checkpoint()
    parameters = read_parameters()
    restored = checkpoint.restore()
    if restored:
        refuse_other_parameters(restored.values["parameters"], parameters)
        if is_finished(restored, parameters):
            print("already done:", result_path("report.json"))
            return checkpoint.done()
    folder = os.path.join(os.environ.get("RUNNER_DATA", "."), "fashion-mnist")
    training, validation = training_data(folder, parameters)
    run = Run(parameters, checkpoint, training, validation, restored)
    run.train()
    run.finish(load(folder, "t10k"))
    return checkpoint.done()


# Parameters


def read_parameters():
    """Return the parameters, checked as far as one alone cannot be wrong."""
    parameters = defaults()
    if os.environ.get("RUNNER_PARAMETERS"):
        with open(os.environ["RUNNER_PARAMETERS"], encoding="utf-8") as file:
            parameters.update(json.load(file))
    hidden = str(parameters["hidden"])
    if not re.match(r"^([1-9]\d*(,[1-9]\d*)*)?$", hidden):
        refuse(f"hidden={hidden!r}: write the units of each layer, such as 128 or 256,128")
    if parameters["patience"] and not parameters["validation_fraction"]:
        refuse("patience needs validation images: set validation_fraction above 0, or patience to 0")
    if not 0 < parameters["learning_rate"] < float("inf"):
        refuse(f"learning_rate={parameters['learning_rate']}: it must be above 0")
    return parameters


def defaults():
    """Return the defaults that stand in job.yaml, one parameter a line (an environment has no YAML parser)."""
    with open(os.path.join(HERE, "job.yaml"), encoding="utf-8") as file:
        found = re.findall(r"^  (\w+): \{default: ([^,}]+)", file.read(), re.MULTILINE)
    return {name: json.loads(text) if re.match(r'[\d."-]', text) else text for name, text in found}


def refuse_other_parameters(old, new):
    """End with a sentence if the checkpoint was made with other parameters; only the number of epochs may change."""
    for name in sorted(set(old) | set(new)):
        if name != "epochs" and old.get(name) != new.get(name):
            refuse(f"the checkpoint was made with {name}={old.get(name)}, and this is {name}={new.get(name)}")


def refuse(sentence, code=USAGE):
    """End with a sentence and an exit code."""
    print(sentence, file=sys.stderr, flush=True)
    raise SystemExit(code)


def is_finished(restored, parameters):
    """Return whether nothing is left to do: known without loading TensorFlow."""
    ended = restored.values["epoch"] >= parameters["epochs"] or is_out_of_patience(restored.values, parameters)
    return ended and os.path.exists(result_path("done"))


def is_out_of_patience(progress, parameters):
    """Return whether early stopping ends the training."""
    return 0 < parameters["patience"] <= progress["wait"]


def result_path(name):
    """Return where a result is written."""
    return os.path.join(os.environ["RUNNER_DIR"], name)


# Data


def training_data(folder, parameters):
    """Return the images to train on and those to validate with, and print what they are."""
    data = load(folder, "train")
    count = parameters["train_images"]
    data = data._replace(images=data.images[:count], labels=data.labels[:count])
    random = random_for(parameters, SPLIT)
    training, validation = split(data, parameters["validation"], parameters["validation_fraction"], random)
    if not len(training.labels) or (parameters["patience"] and not len(validation.labels)):
        refuse(
            f"train_images={count} leaves {len(training.labels)} to train on and {len(validation.labels)} to validate"
        )
    print(describe("training", training))
    print(describe("validation", validation), flush=True)
    return training, validation


def random_for(parameters, *purpose):
    """Return the random numbers of one purpose, such as the shuffle of epoch 3: the same in every attempt."""
    return np.random.RandomState([parameters["seed"], *purpose])


# Training


class Run:
    """One training: the state that changes with each step, and what is remembered from epoch to epoch.

    `state` is of training.py; `progress` is what JSON can hold: epoch (complete ones), best (validation loss),
    best_epoch, wait (epochs since then), seconds; `best_weights` are those of the best epoch, if there is patience.
    """

    def __init__(self, parameters, checkpoint, training, validation, restored):
        global tf, model, report
        tf = import_tensorflow()
        import model
        import report
        from training import STEPS_PER_CALL, Loop, first_state, from_arrays

        self.parameters = parameters
        self.checkpoint = checkpoint
        self.training, self.validation = training, validation
        self.chunk = STEPS_PER_CALL
        self.batch = parameters["batch_size"]
        self.steps_per_epoch = -(-len(training.labels) // self.batch)
        optimizer, self.activation = parameters["optimizer"], parameters["activation"]
        self.loop = Loop(optimizer, self.activation, self.batch)
        if restored:
            self.state = from_arrays(restored.arrays, optimizer)
            self.progress = restored.values
            self.best_weights = arrays_of("best", restored.arrays)
            print(f"going on from step {restored.step}, in epoch {self.progress['epoch'] + 1}", flush=True)
        else:
            random = random_for(parameters, WEIGHTS)
            self.state = first_state(
                model.initial_weights(hidden_units(parameters), parameters["initializer"], random), optimizer
            )
            self.progress = {"epoch": 0, "best": None, "best_epoch": 0, "wait": 0, "seconds": 0.0}
            self.best_weights = []
        self.seconds_before, self.started = self.progress["seconds"], time.monotonic()
        self.epochs = report.read_metrics(result_path("metrics.jsonl"))
        self.events = report.Events(result_path("tensorboard"), tf, self.epochs)

    def train(self):
        """Train until the epochs are done or patience is out, and save the end, from which more epochs can go on."""
        while self.progress["epoch"] < self.parameters["epochs"]:
            if is_out_of_patience(self.progress, self.parameters):
                print(f"stopped early: no better validation loss since epoch {self.progress['best_epoch']}", flush=True)
                break
            self.train_epoch(self.progress["epoch"])
        if self.checkpoint.saved_step != int(self.state.step):
            self.checkpoint.save(int(self.state.step), self.arrays, self.values)

    def train_epoch(self, epoch):
        """Train on all images once, in the order of this epoch, from wherever in it the state is."""
        order = random_for(self.parameters, SHUFFLE, epoch).permutation(len(self.training.labels))
        images, labels = self.training.images.reshape(len(order), -1), self.training.labels
        rate = self.parameters["learning_rate"] / (1 + self.parameters["decay"] * epoch)
        done = int(self.state.step) - epoch * self.steps_per_epoch
        while done < self.steps_per_epoch:
            count = min(self.chunk, self.steps_per_epoch - done, self.checkpoint.steps_left(int(self.state.step)))
            part = order[done * self.batch : (done + count) * self.batch]
            self.state = self.loop.run(self.state, images[part], labels[part], rate)
            done += count
            if done == self.steps_per_epoch:
                self.end_epoch(epoch)
            self.show(done, epoch)
            self.checkpoint.step(int(self.state.step), self.arrays, self.values, epoch=self.progress["epoch"])

    def end_epoch(self, epoch):
        """Validate, remember the best, and write the line of this epoch."""
        from training import loss_and_accuracy, new_epoch

        count = len(self.training.labels)
        line = {"epoch": epoch + 1, "loss": float(self.state.loss) / count, "accuracy": int(self.state.correct) / count}
        if len(self.validation.labels):
            scores = self.loop.predict(self.state.weights, self.validation.images)
            line["val_loss"], line["val_accuracy"] = loss_and_accuracy(scores, self.validation.labels)
            self.remember_best(epoch, line["val_loss"])
        self.progress["epoch"] = epoch + 1
        self.state = new_epoch(self.state)
        self.checkpoint.metrics(int(self.state.step), total_steps=self.total_steps(), **line)
        self.epochs.append(dict(step=int(self.state.step), **line))
        self.events.write(line)
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in line.items() if name != "epoch")
        print(f"epoch {epoch + 1}/{self.parameters['epochs']}  {numbers}", flush=True)

    def remember_best(self, epoch, loss):
        """Keep the weights of the best epoch, and count the epochs since."""
        if self.progress["best"] is None or loss < self.progress["best"]:
            self.progress.update(best=loss, best_epoch=epoch + 1, wait=0)
            if self.parameters["patience"]:
                self.best_weights = [np.array(array) for array in self.state.weights]
        else:
            self.progress["wait"] += 1

    def show(self, done, epoch):
        """Show the progress within an epoch."""
        seen = min(done * self.batch, len(self.training.labels))
        numbers = {}
        if done < self.steps_per_epoch:
            numbers = {"loss": float(self.state.loss) / seen, "accuracy": int(self.state.correct) / seen}
        self.checkpoint.progress(
            step=int(self.state.step),
            total_steps=self.total_steps(),
            epoch=epoch + 1,
            epochs=self.parameters["epochs"],
            **numbers,
        )

    def total_steps(self):
        """Return the number of steps of the whole training."""
        return self.parameters["epochs"] * self.steps_per_epoch

    def arrays(self):
        """Return the arrays of a checkpoint."""
        from training import to_arrays

        best = {f"best/{place}": array for place, array in enumerate(self.best_weights)}
        return dict(to_arrays(self.state), **best)

    def values(self):
        """Return the other values of a checkpoint."""
        self.progress["seconds"] = self.seconds_before + time.monotonic() - self.started
        return dict(self.progress, parameters=self.parameters)

    # The end. All of it can be done again: an attempt that was killed here is healed by the next one.

    def finish(self, test):
        """Save the model, and evaluate it on the test images: the only time that they are used."""
        from training import loss_and_accuracy

        weights = [np.asarray(array) for array in self.best_weights or self.state.weights]
        print(describe("test", test), flush=True)
        scores = self.loop.predict(weights, test.images)
        loss, accuracy = loss_and_accuracy(scores, test.labels)
        keras_model = model.keras_model(weights, self.activation)
        some = test.images[:100].astype(np.float32) / 255
        try:
            saved = model.save_and_check(result_path("model"), keras_model, some)
        except model.NotTheSame as error:
            refuse(str(error), NOT_THE_SAME)
        matrix = report.confusion(test.labels, scores.argmax(axis=1))
        probabilities = model.predictions(model.softmax_model(keras_model))(some)
        report.draw(result_path("pictures"), self.epochs, matrix, test, probabilities)
        report.write_json(result_path("report.json"), self.summary(loss, accuracy, weights, matrix, saved))
        print(f"test images: loss {loss:.4f}  accuracy {accuracy:.4f}; see {result_path('report.json')}", flush=True)

    def summary(self, loss, accuracy, weights, matrix, saved):
        """Return what goes into report.json."""
        stopped_early = self.progress["epoch"] < self.parameters["epochs"]
        return {
            "test_accuracy": accuracy,
            "test_loss": loss,
            "weights_sha256": model.sha256(weights),
            "epochs": self.progress["epoch"],
            "best_epoch": self.progress["best_epoch"] or None,
            "stopped_early": stopped_early,
            "per_class": report.per_class(matrix),
            "confusion": matrix.tolist(),
            "models": saved,
            "seconds": round(self.progress["seconds"], 3),
            "checkpoint_seconds": round(self.checkpoint.saving_seconds, 3),
            "parameters": self.parameters,
            "versions": report.versions(tf),
        }


def import_tensorflow():
    """Import TensorFlow with the thread counts that the runner gives, and with eager execution in 1.15 too."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of 1.15 about numpy
    warnings.filterwarnings(
        "ignore", module="keras"
    )  # of new versions about the .h5 format, which we want all the same
    import tensorflow

    tensorflow.compat.v1.logging.set_verbosity("ERROR")
    logging.getLogger("absl").setLevel("ERROR")
    if tensorflow.__version__.startswith("1."):
        tensorflow.compat.v1.enable_v2_behavior()
    threading = tensorflow.config.threading
    for kind in ("intra", "inter"):
        count = os.environ.get(f"TF_NUM_{kind.upper()}OP_THREADS")
        if count:
            getattr(threading, f"set_{kind}_op_parallelism_threads")(int(count))
    return tensorflow


def hidden_units(parameters):
    """Return the units of each hidden layer."""
    return [int(units) for units in str(parameters["hidden"]).split(",") if units]


def arrays_of(kind, arrays):
    """Return the arrays `kind`/0, `kind`/1, ... of a checkpoint as a list."""
    return [arrays[f"{kind}/{place}"] for place in range(sum(name.startswith(kind + "/") for name in arrays))]


if __name__ == "__main__":
    try:
        main()
    except BadData as error:
        refuse(str(error), DATA)
