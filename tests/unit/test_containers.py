"""What a run's container is, where no engine is needed to tell: its GPUs, and where the volume is in it."""

from dataclasses import replace
from pathlib import Path

import pytest

from runner import containers
from runner.backends.docker import UNKNOWN
from runner.errors import UsageError

CDI = replace(UNKNOWN, cdi=True)


def requested(engine, count):
    """Return the devices of the one request, or how many of any."""
    (request,) = containers.gpus(engine, count)["DeviceRequests"]
    return request.get("DeviceIDs") or request["Count"]


@pytest.mark.parametrize(
    ("visible", "count", "by_number", "by_cdi"),
    [
        (None, 2, 2, ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]),
        ("2,3", 2, ["2", "3"], ["nvidia.com/gpu=2", "nvidia.com/gpu=3"]),
        (" 2, 3", 1, ["2"], ["nvidia.com/gpu=2"]),
        ("0,-1,1", 1, ["0"], ["nvidia.com/gpu=0"]),  # CUDA reads it up to the first that is none
        ("GPU-8a", 1, ["GPU-8a"], ["nvidia.com/gpu=GPU-8a"]),
    ],
)
def test_the_callers_choice_of_gpus_limits_the_runs(monkeypatch, visible, count, by_number, by_cdi):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert requested(UNKNOWN, count) == by_number
    assert requested(CDI, count) == by_cdi


@pytest.mark.parametrize(("visible", "count", "left"), [("", 1, 0), ("-1", 1, 0), ("0,-1,1", 2, 1), ("2,3", 3, 2)])
@pytest.mark.parametrize("engine", [UNKNOWN, CDI], ids=["by number", "by CDI"])
def test_more_gpus_than_the_caller_sees_are_refused(monkeypatch, engine, visible, count, left):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UsageError) as refusal:
        containers.gpus(engine, count)
    assert f"CUDA_VISIBLE_DEVICES is {visible!r} here, which leaves {left}. Unset it" in str(refusal.value)


def test_without_gpus_none_are_requested_whatever_the_caller_sees(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert containers.gpus(CDI, 0) == {}


@pytest.mark.parametrize("volume", ["/data/runs", "/home/me/runs", "/tmp/runs", "/root/runs", "/opt/runs", "/usrx"])
def test_a_volume_is_at_its_own_path(volume):
    assert containers.place(Path(volume), own_image=False) == volume


@pytest.mark.parametrize(
    "volume", ["/tmp", "/usr", "/usr/local/runs", "/opt", "/opt/environment/x", "/run/runs", "/etc"]
)
def test_a_volume_hides_nothing_of_the_image_and_is_not_hidden(volume):
    assert containers.place(Path(volume), own_image=False) == containers.VOLUME
