"""Training by mini-batches, in one compiled loop over images that are in memory.

`Model.fit` crosses from Python into TensorFlow for each batch of 32 images, which costs more than computing it. Here
many batches are one call: the loop over them, the gradients and the optimizer are compiled together. All that changes
from step to step is in a `State` that goes in and comes out, so nothing is hidden that a checkpoint could miss.
"""

import collections

import numpy as np
import tensorflow as tf
from model import PIXELS, logits

STEPS_PER_CALL = 75  # long enough to hide the cost of a call, short enough (10 ms) to stop and to show progress between

State = collections.namedtuple("State", "step weights slots loss correct")
State.__doc__ = """Where the training is.

step: int64, batches so far. weights: the list of model.py. slots: what the optimizer remembers, a list of lists like
weights. loss (float64) and correct (int64): sums over the images of this epoch so far.
"""


# Optimizers: from weight, gradient, slots, learning rate and step (1 at the first) to the new weight and the new slots.
# Written out because they are few lines, and so the same in every version of TensorFlow; the numbers are Keras's.


def sgd(weight, gradient, slots, rate, step):
    """Go against the gradient."""
    return weight - rate * gradient, []


def momentum(weight, gradient, slots, rate, step):
    """Keep nine tenths of the last movement."""
    movement = 0.9 * slots[0] - rate * gradient
    return weight + movement, [movement]


def nesterov(weight, gradient, slots, rate, step):
    """Momentum that looks one movement ahead."""
    movement = 0.9 * slots[0] - rate * gradient
    return weight + 0.9 * movement - rate * gradient, [movement]


def rmsprop(weight, gradient, slots, rate, step):
    """Divide by the size that the gradient had lately (Keras puts 1e-7 under the root from TensorFlow 2.11 on)."""
    square = 0.9 * slots[0] + 0.1 * gradient * gradient
    return weight - rate * gradient / (tf.sqrt(square) + 1e-7), [square]


def adagrad(weight, gradient, slots, rate, step):
    """Divide by the size of all gradients so far."""
    total = slots[0] + gradient * gradient
    return weight - rate * gradient / tf.sqrt(total + 1e-7), [total]


def adam(weight, gradient, slots, rate, step):
    """Momentum divided by size, both corrected for having begun at zero."""
    mean = 0.9 * slots[0] + 0.1 * gradient
    square = 0.999 * slots[1] + 0.001 * gradient * gradient
    corrected = rate * tf.sqrt(1 - tf.pow(0.999, step)) / (1 - tf.pow(0.9, step))
    return weight - corrected * mean / (tf.sqrt(square) + 1e-7), [mean, square]


OPTIMIZERS = {  # name: function, and what each of its slots begins with
    "sgd": (sgd, []),
    "momentum": (momentum, [0.0]),
    "nesterov": (nesterov, [0.0]),
    "rmsprop": (rmsprop, [0.0]),
    "adagrad": (adagrad, [0.1]),
    "adam": (adam, [0.0, 0.0]),
}


# States


def first_state(weights, optimizer):
    """Return the state before the first step."""
    slots = [[np.full_like(array, value) for array in weights] for value in OPTIMIZERS[optimizer][1]]
    return State(np.int64(0), weights, slots, np.float64(0), np.int64(0))


def to_arrays(state):
    """Return a state as name -> ndarray, for a checkpoint."""
    arrays = {f"weight/{place}": np.asarray(array) for place, array in enumerate(state.weights)}
    for number, slot in enumerate(state.slots):
        arrays.update({f"slot/{number}/{place}": np.asarray(array) for place, array in enumerate(slot)})
    arrays.update(step=np.asarray(state.step), loss=np.asarray(state.loss), correct=np.asarray(state.correct))
    return arrays


def from_arrays(arrays, optimizer):
    """Return the state of a checkpoint."""
    weights = [arrays[f"weight/{place}"] for place in range(sum(name.startswith("weight/") for name in arrays))]
    numbers = range(len(OPTIMIZERS[optimizer][1]))
    slots = [[arrays[f"slot/{number}/{place}"] for place in range(len(weights))] for number in numbers]
    return State(arrays["step"], weights, slots, arrays["loss"], arrays["correct"])


def new_epoch(state):
    """Return the state with the sums of the epoch at zero."""
    return state._replace(loss=np.float64(0), correct=np.int64(0))


# The compiled loop


class Loop:
    """Trains on batches and predicts; `run` takes at most STEPS_PER_CALL batches at a time."""

    def __init__(self, optimizer, activation, batch_size):
        self.update = OPTIMIZERS[optimizer][0]
        self.activation = activation
        self.batch = batch_size
        self.compiled = compile_with_xla(self._steps)
        self.compiled_logits = tf.function(self._logits, autograph=False)

    def run(self, state, images, labels, rate):
        """Return the state after one pass over images (uint8 [n, 784]) and labels (uint8 [n]) at a learning rate.

        Both are filled up to one length, so that there is one compiled program: the bits of a step then do not depend
        on how many steps a call makes.
        """
        length = STEPS_PER_CALL * self.batch
        arguments = (state, filled(images, length), filled(labels, length), np.int32(len(labels)), np.float32(rate))
        # All as tensors: a number would be taken for a constant, and another one for the wish to compile again.
        return self.compiled(*tf.nest.map_structure(tf.convert_to_tensor, arguments))

    def _steps(self, state, images, labels, count, rate):
        steps = (count + self.batch - 1) // self.batch

        def body(place, state):
            return place + 1, self._step(place * self.batch, state, images, labels, count, rate)

        # One at a time: with more in flight, the order of additions would be open.
        return tf.while_loop(lambda place, state: place < steps, body, (0, state), parallel_iterations=1)[1]

    def _step(self, start, state, images, labels, count, rate):
        """Return the state after the batch that begins at `start`; images beyond `count` weigh nothing."""
        pixels = scaled(tf.slice(images, [start, 0], [self.batch, PIXELS]))
        classes = tf.cast(tf.slice(labels, [start], [self.batch]), tf.int32)
        real = tf.cast(tf.range(self.batch) + start < count, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(state.weights)
            scores = logits(state.weights, pixels, self.activation)
            total = tf.reduce_sum(real * tf.nn.sparse_softmax_cross_entropy_with_logits(labels=classes, logits=scores))
            loss = total / tf.reduce_sum(real)
        gradients = tape.gradient(loss, state.weights)
        hit = tf.cast(tf.equal(tf.argmax(scores, axis=1, output_type=tf.int32), classes), tf.float32) * real
        weights, slots = self._updated(state, gradients, rate)
        return State(
            state.step + 1,
            weights,
            slots,
            state.loss + tf.cast(total, tf.float64),
            state.correct + tf.cast(tf.reduce_sum(hit), tf.int64),
        )

    def _logits(self, weights, images):
        return logits(weights, scaled(images), self.activation)

    def _updated(self, state, gradients, rate):
        number = tf.cast(state.step + 1, tf.float32)
        weights, slots = [], [[] for _ in state.slots]
        for place, weight in enumerate(state.weights):
            own = [slot[place] for slot in state.slots]
            weight, own = self.update(weight, gradients[place], own, rate, number)
            weights.append(weight)
            for slot, value in zip(slots, own):
                slot.append(value)
        return weights, slots

    def predict(self, weights, images, batch=1000):
        """Return the scores float32 [n, 10] of images uint8 [n, 28, 28]."""
        flat = images.reshape(-1, PIXELS)
        parts = [
            np.asarray(self.compiled_logits(weights, filled(flat[start : start + batch], batch)))
            for start in range(0, len(flat), batch)
        ]
        return np.concatenate(parts)[: len(flat)]


def scaled(images):
    """Return pixels in 0..1 instead of 0..255."""
    return tf.cast(images, tf.float32) / 255.0


def filled(array, length):
    """Return the array with zeros behind it, up to `length`."""
    missing = length - len(array)
    return array if not missing else np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])


def compile_with_xla(function):
    """Return a tf.function, compiled to machine code by XLA where this TensorFlow can do so on a CPU.

    Without autograph: the loop is written as tf.while_loop, and reading its source again would take seconds.
    """
    for option in ("jit_compile", "experimental_compile"):
        try:
            return tf.function(function, autograph=False, **{option: True})
        except TypeError:
            continue
    return tf.function(function, autograph=False)


def loss_and_accuracy(scores, labels):
    """Return mean cross-entropy and share of hits of scores [n, 10]; in float64, so that the order hardly matters."""
    scores = scores.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    loss = -log_probabilities[np.arange(len(labels)), labels].mean()
    return float(loss), float(np.mean(scores.argmax(axis=1) == labels))
