"""Run inside an environment: the tensorboard program starts, and serves a folder of events over HTTP."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

PROGRAM = os.path.join(os.path.dirname(sys.executable), "tensorboard")


def write_events(folder):
    import tensorflow as tf

    if hasattr(tf, "summary") and hasattr(tf.summary, "create_file_writer"):
        with tf.summary.create_file_writer(folder).as_default():
            tf.summary.scalar("loss", 1.0, step=0)
    else:
        writer = tf.compat.v1.summary.FileWriter(folder)
        writer.add_summary(tf.compat.v1.Summary(value=[tf.compat.v1.Summary.Value(tag="loss", simple_value=1.0)]), 0)
        writer.close()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(address, server, seconds=120):
    """Fetch an address of a server that is still starting."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.time() + seconds
    while True:
        try:
            return opener.open(address, timeout=10).read()
        except OSError:
            assert server.poll() is None, "tensorboard ended with %s" % server.returncode
            assert time.time() < end, "tensorboard does not answer at %s" % address
            time.sleep(0.2)


def main():
    version = subprocess.check_output([PROGRAM, "--version"], stderr=subprocess.DEVNULL).decode().split()[-1]
    with tempfile.TemporaryDirectory() as folder:
        write_events(os.path.join(folder, "run"))
        port = free_port()
        server = subprocess.Popen([PROGRAM, "--logdir", folder, "--host", "127.0.0.1", "--port", str(port)])
        try:
            address = "http://127.0.0.1:%d" % port
            assert b"<!doctype html>" in get(address + "/", server).lower()
            end = time.time() + 60
            while "run" not in json.loads(get(address + "/data/runs", server).decode()):
                assert time.time() < end, "tensorboard does not show the events"
                time.sleep(0.2)
        finally:
            server.terminate()
            server.wait()
    print("tensorboard: %s serves events" % version)


if __name__ == "__main__":
    sys.exit(main())
