"""Run inside an environment: all that TensorFlow imports is compiled, so that nothing is when a job starts."""

import os
import sys


def main():
    import tensorflow

    assert tensorflow.__version__
    loaded = [module.__cached__ for module in list(sys.modules.values()) if getattr(module, "__cached__", None)]
    missing = [path for path in loaded if not os.path.exists(path)]
    assert len(loaded) > 500 and not missing, "%d of %d: %s" % (len(missing), len(loaded), missing[:5])
    print("bytecode: %d modules are compiled" % len(loaded))


if __name__ == "__main__":
    sys.exit(main())
