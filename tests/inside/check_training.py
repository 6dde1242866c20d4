"""Run inside an environment: Keras trains a step, saves, loads, and the loaded model says the same."""

import os
import sys
import tempfile

import numpy
import tensorflow as tf


def model():
    built = tf.keras.Sequential(
        [
            tf.keras.layers.Flatten(input_shape=(28, 28)),
            tf.keras.layers.Dense(16, activation="relu"),
            tf.keras.layers.Dense(10, activation="softmax"),
        ]
    )
    # The loss by its name: TensorFlow 1.14 cannot load a model whose loss is an object.
    built.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return built


def main():
    numpy.random.seed(0)
    images = numpy.random.rand(256, 28, 28).astype("float32")
    labels = numpy.random.randint(0, 10, 256)
    with tempfile.TemporaryDirectory() as folder:
        events = os.path.join(folder, "events")
        trained = model()
        before = trained.get_weights()[0].copy()
        callback = tf.keras.callbacks.TensorBoard(log_dir=events)
        losses = trained.fit(images, labels, batch_size=64, epochs=2, verbose=0, callbacks=[callback]).history["loss"]
        assert len(losses) == 2 and numpy.isfinite(losses).all(), losses
        assert not numpy.array_equal(before, trained.get_weights()[0]), "training changed no weight"
        assert any("tfevents" in name for _, _, names in os.walk(events) for name in names), "no events were written"
        saved = os.path.join(folder, "model.h5")
        trained.save(saved)
        loaded = tf.keras.models.load_model(saved)
        difference = abs(loaded.predict(images) - trained.predict(images)).max()
        assert difference == 0, "the loaded model differs by %g" % difference
        assert all(map(numpy.array_equal, trained.get_weights(), loaded.get_weights()))
    print("training: loss %.4f, saved and loaded without a difference" % losses[-1])


if __name__ == "__main__":
    sys.exit(main())
