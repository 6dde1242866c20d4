"""Counts, and can be told to fail in every way: a job with the full contract that needs nothing but Python.

The state is a chain of hashes, so that a step that was lost, repeated or done differently shows in the last value.
"""

import hashlib
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zipfile

DIRECTORY = os.environ["RUNNER_DIR"]
CHECKPOINTS = os.path.join(DIRECTORY, "checkpoints")
ATTEMPT = int(os.environ["RUNNER_ATTEMPT"])
stopping = False


def on_term(number, frame):
    global stopping
    stopping = True


def main():
    with open(os.environ["RUNNER_PARAMETERS"]) as file:
        wanted = json.load(file)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if wanted["fault"] == "ignore" else on_term)
    step, value = restore(str(wanted["seed"]))
    print("counting from %d to %d" % (step, wanted["steps"]), flush=True)
    if wanted["drift"]:
        value += str(ATTEMPT)
    while True:
        if step == wanted["at"] and wanted["times"] >= ATTEMPT:
            fail(wanted)
        if step >= wanted["steps"]:
            break
        time.sleep(wanted["pause"])
        step, value = step + 1, hashlib.sha256(value.encode()).hexdigest()
        metrics(step, wanted["steps"], value)
        if step % wanted["every"] == 0 or step == wanted["steps"] or stopping:
            save(step, value, wanted["hold"])
        if stopping and wanted["on_term"] == "finish":
            break
        if stopping:
            sys.exit({"save": 75, "zero": 0, "fail": 3}[wanted["on_term"]])
    finish(step, value)


def finish(step, value):
    with open(os.path.join(DIRECTORY, "report.json"), "w") as file:
        json.dump({"steps": step, "value": value}, file)
    with open(os.path.join(DIRECTORY, "done"), "w") as file:
        file.write("{}")
    print("counted to %d: %s" % (step, value), flush=True)


def restore(seed):
    """Return (step, value) of the newest checkpoint that can be read, else the beginning."""
    for name in sorted(os.listdir(CHECKPOINTS), reverse=True):
        if not re.match(r"checkpoint-\d+\.npz$", name):
            continue
        try:
            with zipfile.ZipFile(os.path.join(CHECKPOINTS, name)) as archive:
                values = json.loads(archive.read("values.json").decode())
                return values["step"], values["value"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            print("checkpoint %s is damaged, the one before it is used" % name, flush=True)
    return 0, seed


def save(step, value, hold):
    """Write the checkpoint under a temporary name, then rename it; the last three are kept."""
    path = os.path.join(CHECKPOINTS, "checkpoint-%012d.npz" % step)
    partial = os.path.join(CHECKPOINTS, ".partial")
    with zipfile.ZipFile(partial, "w") as archive:
        archive.writestr("values.json", json.dumps({"step": step, "value": value}))
        archive.writestr("step.npy", npy(step))
        archive.writestr("value.npy", npy(int(hashlib.sha256(value.encode()).hexdigest()[:15], 16)))
        archive.fp.flush()
        time.sleep(hold)
    os.replace(partial, path)
    for name in sorted(name for name in os.listdir(CHECKPOINTS) if name.startswith("checkpoint-"))[:-3]:
        os.unlink(os.path.join(CHECKPOINTS, name))


def npy(number):
    """Return a 64-bit integer as a NumPy array file (format version 1.0), without NumPy."""
    header = "{'descr': '<i8', 'fortran_order': False, 'shape': (), }"
    header = header.ljust(128 - 11) + "\n"
    content = io.BytesIO()
    content.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + struct.pack("<q", number))
    return content.getvalue()


def metrics(step, total, value):
    with open(os.path.join(DIRECTORY, "metrics.jsonl"), "a") as file:
        file.write(json.dumps({"step": step, "total_steps": total, "loss": int(value[:4], 16) / 65536}) + "\n")


def fail(wanted):
    fault = wanted["fault"]
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "exit":
        print("asked to end with %d" % wanted["code"], flush=True)
        sys.exit(wanted["code"])
    elif fault in ("hang", "ignore"):
        print("hanging", flush=True)
        while True:
            time.sleep(60)
    elif fault == "flood":
        for number in range(100000):
            print("line %06d" % number)
    elif fault == "stray":
        subprocess.Popen(["sleep", "600"])
    elif fault == "partial":
        sys.stdout.write("a line without an end")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
