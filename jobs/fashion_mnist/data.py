"""Fashion-MNIST: reading the four files, looking at them, and splitting off the validation images."""

import collections
import gzip
import os
import struct
import zlib

import numpy as np

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SIZE = 28  # pixels in a row, and rows

Split = collections.namedtuple("Split", "images labels")
Split.__doc__ = "images: uint8 [n, 28, 28], 0 is the white ground; labels: uint8 [n], 0 to 9."


class BadData(Exception):
    """A file of the data set is missing, cut or something else."""


def load(folder, kind):
    """Return the "train" (60,000) or the "t10k" (10,000) images with their labels."""
    images = read_idx(os.path.join(folder, kind + "-images-idx3-ubyte.gz"), dimensions=3)
    labels = read_idx(os.path.join(folder, kind + "-labels-idx1-ubyte.gz"), dimensions=1)
    if images.shape[1:] != (SIZE, SIZE) or len(images) != len(labels) or not len(labels):
        raise BadData(f"{folder}: {kind} has images of shape {images.shape} for {len(labels)} labels")
    if labels.max() >= len(CLASS_NAMES):
        raise BadData(f"{folder}: {kind} has the label {labels.max()}, and there are 10 classes")
    return Split(images, labels)


def read_idx(path, dimensions):
    """Return the array of an IDX file: two zero bytes, 8 (uint8), the number of dimensions, their sizes, the bytes."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise BadData(f"{path} is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{path} cannot be unpacked: {error}") from error
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise BadData(f"{path} is no IDX file of {dimensions} dimensions: it begins with {content[:4].hex()}")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != np.prod(shape, dtype=np.int64):
        raise BadData(f"{path} should hold {shape} bytes and holds {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def split(data, how, fraction, random):
    """Return training and validation images; `random` is a RandomState of its own, so that each run splits alike.

    sequential: the last ones; random: any; stratified: the same share of each class.
    """
    count = int(round(len(data.labels) * fraction))
    if how == "sequential":
        chosen = np.arange(len(data.labels) - count, len(data.labels))
    elif how == "random":
        chosen = random.permutation(len(data.labels))[:count]
    else:
        chosen = _stratified(data.labels, fraction, random)
    for_validation = np.zeros(len(data.labels), bool)
    for_validation[chosen] = True
    return _take(data, ~for_validation), _take(data, for_validation)


def _stratified(labels, fraction, random):
    chosen = []
    for label in range(len(CLASS_NAMES)):
        members = random.permutation(np.flatnonzero(labels == label))
        chosen.append(members[: int(round(len(members) * fraction))])
    return np.concatenate(chosen)


def _take(data, mask):
    return Split(data.images[mask], data.labels[mask])


def describe(name, data):
    """Return a line with shapes, types and how many of each class there are."""
    counts = np.bincount(data.labels, minlength=len(CLASS_NAMES))
    return (
        f"{name:<10} images {data.images.dtype} {data.images.shape}, labels {data.labels.dtype} {data.labels.shape}, "
        f"per class {' '.join(str(count) for count in counts)}"
    )
