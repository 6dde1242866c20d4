"""Pulling from a run that is going: its files come and go while they are listed and copied."""

import shutil

import pytest

from runner import pulling, run_directory, runs


@pytest.fixture
def run(tmp_path):
    directory = tmp_path / "volume" / "mine"
    work = directory / "work" / "project"
    (directory / "logs").mkdir(parents=True)
    work.mkdir(parents=True)
    for path in (directory / "report.json", directory / "logs" / "attempt-1.log", work / "code.py", work / "made.txt"):
        path.write_text("x")
    request = {"folder": "project", "code": {"code.py": "of the snapshot"}}
    return runs.Found(directory=directory, request=request, record={}, going=False)


def pull(run, target):
    pulling.pull(run, target, follow=False, everything=False)
    return {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}


def test_a_file_that_vanishes_before_it_is_copied_is_left_out(run, tmp_path, monkeypatch):
    copy = pulling._copy

    def vanishing(source, target):
        shutil.rmtree(run.directory / "logs", ignore_errors=True)
        copy(source, target)

    monkeypatch.setattr(pulling, "_copy", vanishing)
    assert pull(run, tmp_path / "out") == {"report.json", "work/project/code.py", "work/project/made.txt"}


def test_a_file_that_vanishes_before_it_is_compared_is_left_out(run, tmp_path, monkeypatch):
    def hashed(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(run_directory, "code_hash", hashed)
    assert pull(run, tmp_path / "out") == {"report.json", "logs/attempt-1.log", "work/project/made.txt"}
