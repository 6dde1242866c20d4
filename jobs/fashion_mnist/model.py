"""The classifier: its initial weights, what it computes, and the Keras model that is saved.

The weights are a plain list of arrays, [kernel, bias] of each layer: kernel [inputs, units], bias [units]. Training
works on that list (see training.py); Keras builds the same network around it for saving.
"""

import hashlib
import os
import shutil

import numpy as np
import tensorflow as tf
from data import CLASS_NAMES, SIZE

PIXELS = SIZE * SIZE


# Initial weights. Made by numpy, so that a seed gives the same ones in every version of TensorFlow.


def initial_weights(hidden, initializer, random):
    """Return kernels drawn by `initializer` and biases of zero, for layers of `hidden` units and ten at the end."""
    sizes = [PIXELS, *hidden, len(CLASS_NAMES)]
    weights = []
    for inputs, units in zip(sizes[:-1], sizes[1:]):  # noqa: RUF007 - Python 3.7
        weights.append(initial_kernel(inputs, units, initializer, random).astype(np.float32))
        weights.append(np.zeros(units, np.float32))
    return weights


def initial_kernel(inputs, units, initializer, random):
    """Return a kernel [inputs, units] as Keras's initializer of that name draws it."""
    shape = (inputs, units)
    if initializer == "zeros":
        return np.zeros(shape)
    if initializer == "random_normal":
        return random.normal(0, 0.05, shape)
    if initializer == "random_uniform":
        return random.uniform(-0.05, 0.05, shape)
    family, distribution = initializer.split("_")
    variance = {"glorot": 2 / (inputs + units), "he": 2 / inputs, "lecun": 1 / inputs}[family]
    if distribution == "uniform":
        limit = np.sqrt(3 * variance)
        return random.uniform(-limit, limit, shape)
    return truncated_normal(shape, random) * np.sqrt(variance)


def truncated_normal(shape, random):
    """Return normal numbers of variance 1 of which none is beyond two deviations (of the normal they are cut from)."""
    numbers = random.normal(size=shape)
    while np.any(np.abs(numbers) > 2):
        far = np.abs(numbers) > 2
        numbers[far] = random.normal(size=np.count_nonzero(far))
    return numbers / 0.87962566103423978


# What it computes


def logits(weights, images, activation):
    """Return the ten scores [n, 10] of images [n, 784] in 0..1; the largest one is the predicted class."""
    values = images
    for place in range(0, len(weights), 2):
        if place:
            values = getattr(tf.nn, activation)(values)
        values = tf.matmul(values, weights[place]) + weights[place + 1]
    return values


def keras_model(weights, activation):
    """Return the same network as a Keras model of images [n, 28, 28] in 0..1, compiled so that it can be evaluated."""
    layers = tf.keras.layers
    inputs = tf.keras.Input((SIZE, SIZE))
    values = layers.Flatten()(inputs)
    for bias in weights[1:-1:2]:
        values = layers.Dense(len(bias), activation=activation)(values)
    model = tf.keras.Model(inputs, layers.Dense(len(weights[-1]))(values))
    model.set_weights(weights)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="sgd", loss=loss, metrics=["accuracy"])
    return model


def softmax_model(model):
    """Return the model that gives probabilities instead of scores: the trained one with a Softmax behind it."""
    return tf.keras.Sequential([model, tf.keras.layers.Softmax()])


def sha256(weights):
    """Return a hash over all weights in their order, with shapes and types: equal means equal to the last bit."""
    digest = hashlib.sha256()
    for array in weights:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# Saving


class NotTheSame(Exception):
    """A model that was saved predicts something else after it was loaded."""


def save_and_check(folder, model, images):
    """Save the model in every format of this TensorFlow, load each again, and compare what it predicts of `images`.

    All is made in a folder of another name, which then takes the place of the old one: a model that is there is whole.
    """
    partial, old = _beside(folder, "partial"), _beside(folder, "old")
    for left_over in (partial, old):
        shutil.rmtree(left_over, ignore_errors=True)
    os.makedirs(partial)
    names = []
    for name, saved, save, load in formats(model):
        path = os.path.join(partial, name)
        save(path)
        difference = float(np.max(np.abs(load(path)(images) - predictions(saved)(images))))
        if not difference <= 1e-5:
            raise NotTheSame(f"{name} predicts something else after it was loaded: it differs by {difference}")
        names.append(name)
    if os.path.exists(folder):
        os.rename(folder, old)
    os.rename(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
    return names


def _beside(folder, word):
    return os.path.join(os.path.dirname(folder), f".{os.path.basename(folder)}.{word}")


def formats(model):
    """Yield name, model, save(path) and load(path) of each; what `load` returns computes predictions of images.

    The files hold the classifier, to train on or to look into; the SavedModel is for serving, and gives probabilities.
    """
    yield "classifier.weights.h5", model, model.save_weights, lambda path: _load_weights(model, path)
    yield "classifier.h5", model, model.save, _load_model
    if _version() >= (2, 12):  # before, a file named .keras was an .h5 file
        yield "classifier.keras", model, model.save, _load_model
    served = softmax_model(model)
    if _keras_3():
        yield "saved_model", served, lambda path: served.export(path, verbose=False), _load_exported
    else:
        yield "saved_model", served, lambda path: served.save(path, save_format="tf"), _load_model


def predictions(model):
    """Return the function of images that gives the model's predictions as an ndarray."""
    return lambda images: np.asarray(model(images))


def _load_weights(model, path):
    other = tf.keras.models.clone_model(model)
    other.load_weights(path)
    return predictions(other)


def _load_model(path):
    return predictions(tf.keras.models.load_model(path))


def _load_exported(path):
    loaded = tf.saved_model.load(path)
    return lambda images: np.asarray(loaded.serve(images))


def _version():
    return tuple(int(part) for part in tf.__version__.split(".")[:2])


def _keras_3():
    return getattr(tf.keras, "__version__", "2").startswith("3")
