"""What is left of a run to look at: numbers, TensorBoard events and pictures."""

import json
import os
import platform
import tempfile

import numpy as np
from data import CLASS_NAMES
from runner_checkpoint import write_file


def confusion(labels, predicted):
    """Return int64 [10, 10]: how many images of a class (row) were taken for which (column)."""
    matrix = np.zeros((len(CLASS_NAMES), len(CLASS_NAMES)), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def per_class(matrix):
    """Return class name -> share of its images that were recognised."""
    totals = np.maximum(matrix.sum(axis=1), 1)
    return {name: round(float(share), 4) for name, share in zip(CLASS_NAMES, matrix.diagonal() / totals)}


def versions(tf):
    """Return the versions that the result depends on."""
    keras = getattr(tf.keras, "__version__", "unknown")
    return {"python": platform.python_version(), "numpy": np.__version__, "tensorflow": tf.__version__, "keras": keras}


def write_json(path, content):
    """Write a JSON file, whole or not at all."""
    write_file(path, json.dumps(content, indent=2) + "\n")


def read_metrics(path):
    """Return the epochs of metrics.jsonl, as a list of dicts."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# TensorBoard


class Events:
    """Loss and accuracy of each epoch for TensorBoard, in the folders training/ and validation/.

    An attempt writes the epochs before it anew, from metrics.jsonl: so an interrupted run shows no epoch twice.
    """

    def __init__(self, folder, tf, epochs):
        self.summary = getattr(tf.compat, "v2", tf).summary
        self.writers = {}
        for kind in ("training", "validation"):
            path = os.path.join(folder, kind)
            _remove_events(path)
            self.writers[kind] = self.summary.create_file_writer(path)
        for line in epochs:
            self.write(line)

    def write(self, line):
        """Write a line of metrics.jsonl."""
        for kind, prefix in (("training", ""), ("validation", "val_")):
            with self.writers[kind].as_default():
                for name in ("loss", "accuracy"):
                    if prefix + name in line:
                        self.summary.scalar(f"epoch_{name}", line[prefix + name], step=line["epoch"])
            self.writers[kind].flush()


def _remove_events(folder):
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if name.startswith("events.out.tfevents."):
            os.unlink(os.path.join(folder, name))


# Pictures

BLUE, ORANGE, GREY, RED = "#1f6fb4", "#e07b1a", "#6b7280", "#c62828"


def draw(folder, epochs, matrix, test, probabilities):
    """Draw the learning curves, the confusion matrix and a sheet of test images."""
    plt = _pyplot()
    os.makedirs(folder, exist_ok=True)
    for name, figure in (
        ("learning-curves", learning_curves(plt, epochs)),
        ("confusion-matrix", confusion_matrix(plt, matrix)),
        ("samples", samples(plt, test, probabilities)),
    ):
        path = os.path.join(folder, name + ".png")
        write_file(path, lambda file, figure=figure: figure.savefig(file, format="png", dpi=120))
        plt.close(figure)


def _pyplot():
    """Import matplotlib without a screen, and with a folder for its font cache that can be written."""
    if not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), f"matplotlib-{os.getuid()}"))
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def learning_curves(plt, epochs):
    """Return a figure of loss and accuracy over the epochs, for training and validation images."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    numbers = [line["epoch"] for line in epochs]
    for axis, name in zip(axes, ("loss", "accuracy")):
        axis.plot(numbers, [line[name] for line in epochs], "o-", color=BLUE, markersize=4, label="training")
        if epochs and "val_" + name in epochs[0]:
            values = [line["val_" + name] for line in epochs]
            axis.plot(numbers, values, "o-", color=ORANGE, markersize=4, label="validation")
        axis.set_title(name.capitalize())
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(True, color="#e5e7eb")
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.legend(frameon=False)
    figure.tight_layout()
    return figure


def confusion_matrix(plt, matrix):
    """Return a figure of the confusion matrix, coloured by the share of each true class."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(7.5, 7))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(CLASS_NAMES))
    axis.set_xticks(places)
    axis.set_yticks(places)
    axis.set_xticklabels(CLASS_NAMES, rotation=45, ha="right")
    axis.set_yticklabels(CLASS_NAMES)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    accuracy = matrix.trace() / max(matrix.sum(), 1)
    axis.set_title(f"{accuracy:.2%} of {matrix.sum():,} test images recognised")
    for row, column in np.argwhere(matrix):
        color = "white" if shares[row, column] > 0.5 else "#111827"
        axis.text(column, row, matrix[row, column], ha="center", va="center", fontsize=8, color=color)
    figure.tight_layout()
    return figure


def samples(plt, test, probabilities, rows=4, columns=8):
    """Return a sheet of the first test images with the predicted class; where it is wrong, with the true one in red."""
    size, tile = test.images.shape[1], test.images.shape[1] + 12  # pixels: an image, and an image with room for words
    sheet = np.zeros((rows * tile, columns * tile), np.uint8)
    figure = plt.figure(figsize=(1.5 * columns, 1.5 * rows))
    axis = figure.add_axes([0, 0, 1, 1])  # one for all: an axis per image would take a second
    axis.set_axis_off()
    for place in range(min(rows * columns, len(test.labels))):
        top, left = place // columns * tile + 2, place % columns * tile + 6
        sheet[top : top + size, left : left + size] = test.images[place]
        axis.add_patch(
            plt.Rectangle((left - 1, top - 1), size + 1, size + 1, fill=False, color="#d1d5db", linewidth=0.8)
        )
        predicted, true = int(probabilities[place].argmax()), int(test.labels[place])
        words, color = f"{CLASS_NAMES[predicted]} {probabilities[place].max():.0%}", GREY
        if predicted != true:
            words, color = f"{words}\nis {CLASS_NAMES[true]}", RED
        axis.text(left + size / 2, top + size + 1, words, ha="center", va="top", fontsize=7.5, color=color)
    axis.imshow(sheet, cmap="gray_r", vmin=0, vmax=255)
    return figure
