"""Programs that are followed while they run: their lines, their failures, and their end with ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import until

from runner import process
from runner.errors import CommandFailed


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_lines_come_one_by_one_and_silence_is_told() -> None:
    heard: list[str | None] = []
    output = process.stream(shell("echo one; echo two >&2; sleep 0.5; printf 'three\\nhalf'"), heard.append)
    assert [line for line in heard if line is not None] == ["one", "two", "three", "half"]
    assert None in heard[2:-2] and output == "one\ntwo\nthree\nhalf\n"


def test_a_failure_has_what_was_printed() -> None:
    with pytest.raises(CommandFailed, match="ended with 3") as failure:
        process.stream(shell("echo why; exit 3"), lambda line: None)
    assert failure.value.output == "why\n"
    with pytest.raises(CommandFailed, match="could not be started"):
        process.stream(["/nowhere/program"], lambda line: None)


def test_its_standard_input_may_be_a_file() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"from a file\n")
        file.seek(0)
        assert process.stream(["cat"], lambda line: None, stdin=file) == "from a file\n"
    assert process.stream(["cat"], lambda line: None) == ""


STREAM = """
import sys
from runner import process
process.stream(["sh", "-c", sys.argv[1]], lambda line: line and print(line, flush=True))
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="sees in /proc who is alive")
def test_what_ends_us_ends_it_and_what_it_started(number: signal.Signals) -> None:
    script = "sleep 1000 & echo $! $$; wait"
    ours = subprocess.Popen(
        [sys.executable, "-c", STREAM, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert ours.stdout
    pids = [int(word) for word in ours.stdout.readline().split()]
    assert all(map(alive, pids)) and os.getsid(pids[1]) != os.getsid(0)
    ours.send_signal(number)
    _, errors = ours.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    until(lambda: not any(map(alive, pids)), what="the end of both")


def test_the_callers_own_handlers_are_put_back_and_obeyed() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with process.ends_like_ctrl_c():
            os.kill(os.getpid(), signal.SIGTERM)
        assert got == [signal.SIGTERM] and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
