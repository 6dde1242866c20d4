"""The checkpoint module in real processes with real signals: nothing here needs TensorFlow."""

from __future__ import annotations

import ast
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
from conftest import need

JOBS = Path(__file__).resolve().parents[2] / "jobs"
sys.path.insert(0, str(JOBS))

import runner_checkpoint  # noqa: E402
from runner_checkpoint import Checkpoint, Damaged  # noqa: E402

# A training of which every step depends on all steps before: what is lost or done twice shows in the result.
TRAINER = """
import os, sys, time
import numpy
from runner_checkpoint import Checkpoint

total, size, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
checkpoint = Checkpoint()
state = checkpoint.restore()
weights, seen = (state.arrays["weights"], state.values["seen"]) if state else (numpy.arange(size) * 1.0, 0)
print("from", state.step if state else 0, flush=True)
for step in range(state.step if state else 0, total):
    weights = weights * 1.000001 + step
    seen = (seen * 31 + step) % 1000003
    time.sleep(pause)
    if (step + 1) % 10 == 0:
        checkpoint.metrics(step + 1, epoch=(step + 1) // 10, loss=seen, total_steps=total)
    checkpoint.step(step + 1, lambda: {"weights": weights}, lambda: {"seen": seen}, epoch=(step + 1) // 10)
print("result", weights.sum(), seen)
checkpoint.done()
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts the trainer in a run directory of its own."""
    (tmp_path / "trainer.py").write_text(TRAINER)

    def start(name: str, total: int = 400, *, size: int = 1000, pause: float = 0.0, every: str = "1steps", **options):
        (tmp_path / name).mkdir(exist_ok=True)
        variables = {"RUNNER_DIR": str(tmp_path / name), "PYTHONPATH": str(JOBS), "RUNNER_CHECKPOINT_EVERY": every}
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "trainer.py"), str(total), str(size), str(pause)],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checkpoint]:
    """A checkpoint in this process, whose signal handler is taken back."""
    monkeypatch.setenv("RUNNER_DIR", str(tmp_path))
    monkeypatch.delenv("RUNNER_CHECKPOINT_EVERY", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield Checkpoint()
    signal.signal(signal.SIGTERM, before)


def end(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stdout + stderr
    return stdout, stderr


def result(stdout: str) -> str:
    return next(line for line in stdout.splitlines() if line.startswith("result"))


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def step_of(directory: Path) -> int:
    """Return the step of the newest file, 0 where there is none."""
    names = [name for name in files(directory) if name.endswith(".npz") and not name.startswith(".")]
    return int(names[-1][11:-4]) if names else 0


def saved(checkpoint: Checkpoint, *steps: int) -> Path:
    """Save checkpoints of these steps, and return the folder they are in."""
    for step in steps:
        assert checkpoint.save(step, {"weights": numpy.full(100, step)}, {"best": step / 2})
    return Path(checkpoint.directory)


def path_of(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:012d}.npz"


# Kills


def test_a_run_killed_many_times_ends_like_one_that_was_not(start, tmp_path: Path) -> None:
    expected, _ = end(start("whole"))
    luck = random.Random(1)
    for _ in range(25):
        process = start("killed", pause=0.002)
        process.stdout.readline()
        time.sleep(luck.uniform(0, 0.12))
        process.kill()
        process.communicate()
    assert step_of(tmp_path / "killed") > 0
    stdout, stderr = end(start("killed"))
    assert result(stdout) == result(expected)
    assert not stderr
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert json.loads((tmp_path / "killed/done").read_text()) == {"step": 400}


def test_a_kill_while_a_large_checkpoint_is_written_leaves_the_one_before(start, tmp_path: Path) -> None:
    """With 16 MB a step nearly all the time goes into writing: most kills hit a file that is half there."""
    expected, _ = end(start("whole", 30, size=2_000_000, every="1000steps"))
    luck, left_over = random.Random(2), 0
    for _ in range(12):
        process = start("killed", 30, size=2_000_000)
        process.stdout.readline()
        time.sleep(luck.uniform(0.01, 0.2))
        process.kill()
        process.communicate()
        left_over += any(name.startswith(".") for name in files(tmp_path / "killed"))
    stdout, stderr = end(start("killed", 30, size=2_000_000))
    assert result(stdout) == result(expected)
    assert not stderr
    assert left_over, "no kill came while a file was written"
    assert not any(name.startswith(".") for name in files(tmp_path / "killed"))


def test_sigterm_saves_and_exits_with_75(start, tmp_path: Path) -> None:
    expected, _ = end(start("whole", 60))
    process = start("stopped", 60, pause=0.02, every="1h")
    process.stdout.readline()
    time.sleep(0.3)
    process.terminate()
    _, stderr = end(process, 75)
    step = step_of(tmp_path / "stopped")
    assert 0 < step < 60
    assert f"stopped by SIGTERM at step {step}" in stderr
    assert not (tmp_path / "stopped/done").exists()
    stdout, _ = end(start("stopped", 60, every="1h"))
    assert f"from {step}\n" in stdout
    assert result(stdout) == result(expected)
    assert (tmp_path / "stopped/done").exists()


def test_a_run_that_was_done_and_goes_on_is_not_done(start, tmp_path: Path) -> None:
    end(start("run", 50))
    process = start("run", 100, pause=0.05)
    process.stdout.readline()
    time.sleep(0.3)
    assert not (tmp_path / "run/done").exists()
    process.terminate()
    end(process, 75)
    assert result(end(start("run", 100))[0]) == result(end(start("whole", 100))[0])


def test_a_second_start_after_the_end_has_nothing_to_do(start, tmp_path: Path) -> None:
    first, _ = end(start("run", 50))
    stdout, _ = end(start("run", 50))
    assert "from 50\n" in stdout
    assert result(stdout) == result(first)
    assert (tmp_path / "run/done").exists()


def test_the_example_of_the_docstring_runs_without_the_runner(tmp_path: Path) -> None:
    example = runner_checkpoint.__doc__.split("\n\n", 1)[1].split("\n\n`step`")[0]
    lines = [line[4:] for line in example.splitlines()]
    head = "total, weights, best = 5, [0.0], 1\ndef train(weights, step): return [weights[0] + step]\n"
    (tmp_path / "example.py").write_text(head + "\n".join(lines) + "\nprint(weights[0])")
    variables = {key: value for key, value in os.environ.items() if not key.startswith("RUNNER_")}
    variables.update(PYTHONPATH=str(JOBS))
    command = [sys.executable, "example.py"]
    assert subprocess.check_output(command, cwd=tmp_path, env=variables, text=True) == "10.0\n"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoints"]


def test_a_loop_without_arrays_needs_no_numpy(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "from runner_checkpoint import Checkpoint\n"
        "c = Checkpoint(every='1steps'); s = c.restore(); n = s.step if s else 0\n"
        "c.step(n + 1, values={'n': n}); print(n, s.values if s else None)\n"
    )
    variables = {**os.environ, "RUNNER_DIR": str(tmp_path), "PYTHONPATH": str(JOBS)}
    runs = [subprocess.check_output([sys.executable, "-c", program], env=variables, text=True) for _ in range(2)]
    assert runs == ["0 None\n", "1 {'n': 0}\n"]


# Signals


def test_the_handler_that_was_there_before_is_called_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_DIR", str(tmp_path))
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    try:
        checkpoint = Checkpoint()
        os.kill(os.getpid(), signal.SIGTERM)
        assert called == [signal.SIGTERM]
        with pytest.raises(SystemExit, match="75"):
            checkpoint.step(7, values={"a": 1})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert Checkpoint.restore(checkpoint).step == 7


def test_a_forked_worker_still_dies_of_sigterm(checkpoint: Checkpoint) -> None:
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        os.write(tell, b".")
        time.sleep(30)
        os._exit(0)
    os.read(ready, 1)  # Python itself drops a signal that comes before the fork is complete
    os.kill(child, signal.SIGTERM)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
    assert not checkpoint.stop_asked


# Damage


def test_a_damaged_newest_is_named_kept_and_the_one_before_is_used(checkpoint: Checkpoint, capsys) -> None:
    folder = saved(checkpoint, 100, 200, 300)
    newest = path_of(folder, 300)
    newest.write_bytes(newest.read_bytes()[:500])
    state = checkpoint.restore()
    assert (state.step, state.values, state.arrays["weights"].tolist()) == (200, {"best": 100.0}, [200] * 100)
    said = capsys.readouterr().err
    assert "checkpoint at step 300 is damaged" in said
    assert "going on from step 200" in said
    saved(checkpoint, 300)
    assert checkpoint.restore().step == 300
    assert (folder / (newest.name + ".damaged")).stat().st_size == 500


def test_a_missing_newest_is_named(checkpoint: Checkpoint, capsys) -> None:
    folder = saved(checkpoint, 100, 200, 300)
    path_of(folder, 300).unlink()
    assert checkpoint.restore().step == 200
    assert "checkpoint at step 300 is missing" in capsys.readouterr().err
    assert checkpoint.restore().step == 200
    assert not capsys.readouterr().err, "said once is enough"


def test_if_none_can_be_used_it_says_so_and_ends_with_65(checkpoint: Checkpoint, capsys) -> None:
    folder = saved(checkpoint, 100, 200)
    for step in (100, 200):
        path_of(folder, step).write_bytes(b"no zip")
    with pytest.raises(SystemExit, match="65"):
        checkpoint.restore()
    said = capsys.readouterr().err
    assert "--fresh" in said
    assert all(path_of(folder, step).name in said for step in (100, 200))
    assert all(path_of(folder, step).read_bytes() == b"no zip" for step in (100, 200))


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"checkpoints": [1]}', b"\xff"])
def test_without_a_usable_index_it_goes_by_the_files(checkpoint: Checkpoint, content: bytes | None) -> None:
    folder = saved(checkpoint, 100, 200)
    if content is None:
        (folder / "index.json").unlink()
    else:
        (folder / "index.json").write_bytes(content)
    assert checkpoint.restore().step == 200
    saved(checkpoint, 300, 400)
    assert path_of(folder, 400).exists()
    assert len([name for name in os.listdir(folder) if name.endswith(".npz")]) == 3


def test_each_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = str(tmp_path / "file.npz")
    arrays = {"a": numpy.arange(6.0).reshape(2, 3), "b": numpy.float32(7)}
    runner_checkpoint.write_file(path, lambda file: runner_checkpoint.write_npz(file, arrays, {"x": [1, 2]}))
    whole = Path(path).read_bytes()
    noticed = 0
    for place in range(len(whole)):
        noticed += _read_damaged(tmp_path, whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :], arrays)
    assert noticed > len(whole) / 2
    for length in range(len(whole)):
        assert _read_damaged(tmp_path, whole[:length], arrays), length


def _read_damaged(tmp_path: Path, content: bytes, arrays: dict) -> bool:
    """Return whether the damage was noticed; if not, it must have changed nothing."""
    folder = tmp_path / "damaged"
    folder.mkdir(exist_ok=True)
    reader = Checkpoint.__new__(Checkpoint)
    reader.directory = str(folder)
    path_of(folder, 1).write_bytes(content)
    try:
        state = reader._read(1)
    except Damaged:
        return True
    assert state.values == {"x": [1, 2]}
    assert all(numpy.array_equal(state.arrays[name], array) for name, array in arrays.items())
    return False


def test_leftovers_of_a_killed_attempt_are_removed_and_never_taken_for_checkpoints(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RUNNER_DIR", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/.checkpoint-000000000100.npz.partial").write_bytes(b"half")
    before = signal.getsignal(signal.SIGTERM)
    assert Checkpoint().restore() is None
    signal.signal(signal.SIGTERM, before)
    assert files(tmp_path) == []


# Full disks


def test_a_checkpoint_that_cannot_be_written_costs_a_sentence_not_the_training(start, tmp_path: Path) -> None:
    """The limit on a file's size stands for a full disk: the write fails halfway, for real."""
    expected, _ = end(start("whole", 50))
    limit = 4096
    small = start("full", 50, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    stdout, stderr = end(small)
    assert result(stdout) == result(expected)
    assert "no checkpoint at step 1: " in stderr
    assert "there is no checkpoint yet" in stderr
    assert [name for name in files(tmp_path / "full") if "checkpoint" in name] == []


def test_a_full_disk_is_named_with_what_it_needs_and_has(checkpoint: Checkpoint, capsys) -> None:
    folder = saved(checkpoint, 100)
    mounted = Path(checkpoint.home) / "small"
    mounted.mkdir()
    need("root", os.getuid() == 0, "only root can mount; run the tests as root, in a container for instance")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", mounted], capture_output=True, text=True)
    need("mount", done.returncode == 0, f"mount says: {done.stderr.strip()}")
    try:
        full = Checkpoint(directory=str(mounted))
        full.save(100, {"weights": numpy.zeros(10)})
        assert not full.save(200, {"weights": numpy.zeros(20_000)})
        said = capsys.readouterr().err
        assert f"no checkpoint at step 200: {os.strerror(errno.ENOSPC)}" in said
        assert "needs 160000 bytes" in said
        assert "the checkpoint of step 100 stands" in said
        full.stop_asked = True
        with pytest.raises(SystemExit, match="75"):
            full.step(300, {"weights": numpy.zeros(20_000)})
        assert full.restore().step == 100
        assert sorted(os.listdir(mounted)) == ["checkpoint-000000000100.npz", "index.json"]
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert path_of(folder, 100).exists()


# When, and which are kept


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("10s", ("seconds", 10)),
        ("0.5s", ("seconds", 0.5)),
        ("5min", ("seconds", 300)),
        ("500steps", ("steps", 500)),
        ("1step", ("steps", 1)),
        ("1epoch", ("epochs", 1)),
        ("2epochs", ("epochs", 2)),
    ],
)
def test_intervals(text: str, meaning: tuple[str, float]) -> None:
    assert runner_checkpoint.parse_interval(text) == meaning


@pytest.mark.parametrize("text", ["10", "", "often", "0steps", "1.5epochs", "-3s"])
def test_an_interval_that_is_none_ends_with_64(text: str, capsys) -> None:
    with pytest.raises(SystemExit, match="64"):
        runner_checkpoint.parse_interval(text)
    assert "500steps" in capsys.readouterr().err


def test_steps_and_epochs_are_obeyed_exactly(start, tmp_path: Path) -> None:
    end(start("steps", 100, every="30steps"))
    assert files(tmp_path / "steps") == [f"checkpoint-{step:012d}.npz" for step in (30, 60, 90)] + ["index.json"]
    end(start("epochs", 100, every="4epochs"))
    assert files(tmp_path / "epochs") == [f"checkpoint-{step:012d}.npz" for step in (40, 80)] + ["index.json"]


def test_steps_left_leads_to_the_next_checkpoint(checkpoint: Checkpoint) -> None:
    assert checkpoint.steps_left(5) > 10**6
    checkpoint.unit, checkpoint.count = "steps", 500
    assert [checkpoint.steps_left(step) for step in (0, 499, 500, 730)] == [500, 1, 500, 270]


def test_the_interval_is_stretched_so_that_checkpoints_cost_two_percent(checkpoint: Checkpoint) -> None:
    checkpoint.count = 0.001
    checkpoint.save(1, lambda: time.sleep(0.1) or {}, {})
    assert checkpoint.interval() == pytest.approx(checkpoint.saving_seconds / 0.02)
    assert checkpoint.interval() >= 5
    assert not checkpoint.step(2)


def test_a_slow_disk_costs_two_percent_from_the_second_checkpoint_on(checkpoint: Checkpoint, monkeypatch) -> None:
    """The clock is ours, so that a slow fsync costs the test no time and a busy machine does not change the share."""
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(runner_checkpoint, "time", types.SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    monkeypatch.setattr(os, "fsync", lambda _: wait(0.3))
    checkpoint.count = 0.01
    wait(5)  # TensorFlow is imported
    saves, costs = [], []
    for step in range(1, 10_001):
        wait(0.02)
        if checkpoint.step(step, {"weights": numpy.zeros(10)}):
            saves.append(step)
            costs.append(checkpoint.saving_seconds)
    assert saves[0] > 1  # the time until the first step is none of training
    assert 2 <= len(saves) <= 6
    assert (costs[-1] - costs[0]) / now[0] <= 0.02


def test_a_mounted_drive_gets_one_gigabyte_an_hour_unless_asked(checkpoint: Checkpoint) -> None:
    saved(checkpoint, 1)
    checkpoint._costs.clear()
    checkpoint._size = 500_000_000
    assert checkpoint.interval() == 10
    checkpoint._on_fuse = True
    assert checkpoint.interval() == 1800
    checkpoint.explicit = True
    assert checkpoint.interval() == 10


def test_a_mounted_drive_is_known_by_its_longest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    drive = tmp_path / "My Drive"
    escaped = str(drive).replace(" ", "\\040")
    mounts.write_text(
        f"/dev/sda / ext4 rw 0 0\ndrive {escaped} fuse.drivefs rw 0 0\ntmp {escaped}/local tmpfs rw 0 0\n"
    )
    assert runner_checkpoint.is_fuse(str(drive / "runs"), mounts)
    assert not runner_checkpoint.is_fuse(str(drive / "local/runs"), mounts)
    assert not runner_checkpoint.is_fuse(str(tmp_path / "My Drive too"), mounts)
    assert not runner_checkpoint.is_fuse(str(tmp_path), tmp_path / "none")


def test_three_are_kept_and_the_oldest_stays_behind(checkpoint: Checkpoint) -> None:
    oldest = set()
    for step in range(1, 40):
        folder = saved(checkpoint, step)
        steps = sorted(int(name[11:-4]) for name in os.listdir(folder) if name.endswith(".npz"))
        assert steps[-2:] == [max(step - 1, 1), step][-len(steps) :]
        assert len(steps) <= 3
        oldest.add(steps[0])
    assert len(oldest) == 5, oldest
    index = json.loads((folder / "index.json").read_text())["checkpoints"]
    assert [entry["step"] for entry in index] == steps
    assert [entry["bytes"] for entry in index] == [(folder / entry["file"]).stat().st_size for entry in index]


# The files


def test_the_file_is_a_plain_npz_and_the_same_state_gives_the_same_bytes(checkpoint: Checkpoint) -> None:
    path = path_of(saved(checkpoint, 100), 100)
    first = path.read_bytes()
    with numpy.load(path) as content:
        assert sorted(content.files) == ["__values__", "weights"]
        assert content["weights"].tolist() == [100] * 100
        assert json.loads(content["__values__"].tobytes())["values"] == {"best": 50.0}
    with zipfile.ZipFile(path) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    saved(checkpoint, 100)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    "array",
    [
        numpy.array(3.5),
        numpy.zeros((0, 4)),
        numpy.asfortranarray(numpy.arange(6, dtype=numpy.float16).reshape(2, 3)),
        numpy.arange(10)[::3],
        numpy.array([True, False]),
        numpy.array([1 + 2j], numpy.complex64),
    ],
)
def test_arrays_come_back_as_they_were(checkpoint: Checkpoint, array: numpy.ndarray) -> None:
    checkpoint.save(1, {"layer/kernel:0": array})
    back = checkpoint.restore().arrays["layer/kernel:0"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert numpy.array_equal(back, array)


def test_metrics_beyond_the_restored_step_are_removed(checkpoint: Checkpoint) -> None:
    metrics = Path(checkpoint.home) / "metrics.jsonl"
    checkpoint.restore()
    for step in (10, 20):
        checkpoint.metrics(step, loss=1 / step)
    saved(checkpoint, 20)
    checkpoint.metrics(30, loss=0.1)
    with metrics.open("a") as file:
        file.write('{"step": 40, "lo')
    checkpoint.restore()
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [10, 20]
    checkpoint.metrics(30, loss=0.2)
    assert json.loads(metrics.read_text().splitlines()[-1]) == {"step": 30, "loss": 0.2}


def test_without_a_checkpoint_the_metrics_begin_anew(checkpoint: Checkpoint) -> None:
    metrics = Path(checkpoint.home) / "metrics.jsonl"
    metrics.write_text('{"step": 10, "loss": 1}\n')
    assert checkpoint.restore() is None
    assert metrics.read_text() == ""


def test_progress_is_one_line_a_second_for_the_launcher(checkpoint: Checkpoint, capsys) -> None:
    for step in range(100):
        checkpoint.progress(step=step, total_steps=100)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line[len("@runner ") :]) == {"progress": {"step": 0, "total_steps": 100}}


def test_what_runs_inside_an_environment_is_python_37() -> None:
    for path in [JOBS / "runner_checkpoint.py", *(JOBS / "fashion_mnist").glob("*.py")]:
        ast.parse(path.read_text(), str(path), feature_version=(3, 7))
