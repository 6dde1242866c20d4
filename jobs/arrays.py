"""Prints a hash of each array in checkpoints and models, as JSON: {file: {array: sha256}}.

Runs inside an environment (Python 3.7 to 3.13): `python arrays.py FILE...`. TensorFlow and h5py are imported only where a
file needs them; .npz and .keras files are read as the zip files that they are.
"""

import hashlib
import io
import json
import os
import re
import sys
import zipfile

# A SavedModel has each variable in several lists, and names it by the list that it came to first: the next process by
# another (1.15), or with other numbers (Keras 3).
LISTED = re.compile(r"^(_all_variables|(non_)?(trainable_)?variables)/\d+/")


def arrays(path):
    """Return {array name: SHA-256 over its type, shape and bytes} of one file."""
    if path.endswith(".index"):
        return tensorflow_checkpoint(path[: -len(".index")])
    if path.endswith("saved_model.pb"):
        return tensorflow_checkpoint(os.path.join(os.path.dirname(path), "variables", "variables"))
    if zipfile.is_zipfile(path):
        return zip_members(path)
    return hdf5(path)


def zip_members(path):
    """Hash .npy members and the HDF5 file in a .keras archive; the rest (texts, dates) is no array."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".h5"):
                found.update(hdf5(io.BytesIO(content)))
            elif name.endswith(".npy") and not name.startswith("__"):
                found[name[: -len(".npy")]] = hashlib.sha256(content).hexdigest()
    return found


def hdf5(file):
    import h5py

    found = {}

    def visit(name, node):
        if isinstance(node, h5py.Dataset):
            found[name] = digest(node[()])

    with h5py.File(file, "r") as opened:
        opened.visititems(visit)
    return found


def tensorflow_checkpoint(prefix):
    import tensorflow as tf

    reader = tf.train.load_checkpoint(prefix)
    names = [name for name in reader.get_variable_to_shape_map() if _is_array(name)]
    found = {name: digest(reader.get_tensor(name)) for name in sorted(names)}
    listed = [name for name in found if LISTED.match(name)]
    return dict(
        {name: found[name] for name in found if name not in listed},
        **{"variables/%d" % number: hashed for number, hashed in enumerate(sorted(found[name] for name in listed))},
    )


def _is_array(name):
    return not name.startswith("_CHECKPOINTABLE") and "save_counter" not in name


def digest(value):
    import numpy

    array = numpy.asarray(value)
    content = array.tobytes() if array.dtype != object else repr(array.tolist()).encode()
    return hashlib.sha256(("%s %s " % (array.dtype, array.shape)).encode() + content).hexdigest()


if __name__ == "__main__":
    print(json.dumps({path: arrays(path) for path in sys.argv[1:]}))
