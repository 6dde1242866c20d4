"""What of a project travels with a run, and what is left where it is."""

import os
import socket
import tarfile
from pathlib import Path

import pytest
from mounts import mounted

from runner import projects
from runner.errors import UsageError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")


def snapshot(root, volume=None):
    return projects.snapshot(projects.find(str(root)), volume)


def files(root, volume=None):
    return sorted(name for name in snapshot(root, volume) if not name.endswith("/"))


def packed(root, target):
    """Return path -> content of the archive, None for a folder."""
    projects.archive(snapshot(root), target)
    with tarfile.open(target) as tar:
        return {m.name: tar.extractfile(m).read() if m.isfile() else None for m in tar.getmembers()}


def test_caches_virtualenvs_and_version_control_stay(root):
    write(root, "train.py", "package/a.py", ".hidden", ".git/config", "__pycache__/a.pyc", "x.pyc", "node_modules/a.js",
          "env/pyvenv.cfg", "env/lib/a.py", "conda/conda-meta/history", "conda/a.py", "lost+found/a", ".ipynb_checkpoints/a")  # fmt: skip
    assert files(root) == [".hidden", "package/a.py", "train.py"]


def test_runnerignore_names_what_stays(root):
    write(
        root,
        "a.py",
        "data/big.bin",
        "sub/data/x",
        "notes.txt",
        "sub/notes.txt",
        "sub/keep.md",
        "top.csv",
        "sub/top.csv",
    )
    (root / ".runnerignore").write_text("# what the job does not need\n\ndata/\n*.txt\n/top.csv\n")
    assert files(root) == [".runnerignore", "a.py", "sub/keep.md", "sub/top.csv"]


def test_rows_of_the_runners_stay_and_files_that_only_have_their_names_travel(root):
    write(root, "runner.yaml", "sub/runner.yaml", "locks/tf2.3.1-cpu.txt", "locks/other.txt", "train.py")
    (root / "environments.yaml").write_text("environments:\n  tf2.3.1-cpu: {tensorflow: 2.3.1}\n")
    assert files(root) == ["locks/other.txt", "sub/runner.yaml", "train.py"]
    (root / "environments.yaml").write_text("- cartpole\n")
    assert files(root) == [
        "environments.yaml",
        "locks/other.txt",
        "locks/tf2.3.1-cpu.txt",
        "sub/runner.yaml",
        "train.py",
    ]


def test_a_runnerignore_in_another_encoding_is_read(root):
    (root / ".runnerignore").write_bytes(b"caf\xe9\n")
    (root / os.fsdecode(b"caf\xe9")).write_text("")
    write(root, "a.py")
    assert files(root) == [".runnerignore", "a.py"]


def test_empty_folders_travel_but_are_no_code(root, tmp_path):
    write(root, "a.py")
    (root / "output/pictures").mkdir(parents=True)
    entries = snapshot(root)
    assert set(projects.manifest(entries)) == {"a.py"}
    assert packed(root, tmp_path / "tar") == {"a.py": b"# a.py\n", "output": None, "output/pictures": None}


def test_links_become_what_they_point_to(root, tmp_path):
    write(root, "src/model.py", "data/a.csv")
    write(tmp_path, "elsewhere/b.csv")
    (root / "model.py").symlink_to("src/model.py")
    (root / "absolute.py").symlink_to(root / "src/model.py")
    (root / "lib").symlink_to("src")
    (root / "other").symlink_to(tmp_path / "elsewhere")
    assert packed(root, tmp_path / "tar") == {
        "src/model.py": b"# src/model.py\n", "data/a.csv": b"# data/a.csv\n", "model.py": b"# src/model.py\n",
        "absolute.py": b"# src/model.py\n", "lib/model.py": b"# src/model.py\n", "other/b.csv": b"# elsewhere/b.csv\n",
    }  # fmt: skip


def test_links_in_a_circle_broken_links_and_sockets_stay(root):
    write(root, "a/x.py", "b/y.py")
    (root / "a/to_b").symlink_to("../b")
    (root / "b/to_a").symlink_to("../a")
    (root / "self").symlink_to(".")
    (root / "above").symlink_to("..")
    (root / "everything").symlink_to("/")
    (root / "broken").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root)  # a socket's path is short
        server.bind("socket")
        os.chdir(here)
        assert files(root) == ["a/to_b/y.py", "a/x.py", "b/to_a/x.py", "b/y.py"]


def test_hard_links_are_files_of_their_own(root, tmp_path):
    write(root, "a.py")
    os.link(root / "a.py", root / "b.py")
    assert packed(root, tmp_path / "tar") == {"a.py": b"# a.py\n", "b.py": b"# a.py\n"}


@pytest.mark.parametrize("through_link", [False, True])
def test_the_volume_and_other_runs_in_the_project_stay(root, tmp_path, through_link):
    write(
        root,
        "train.py",
        "runs/a-1/work/a.py",
        "runs/note",
        "pulled/request.json",
        "pulled/run.json",
        "pulled/report.json",
    )
    write(root, "old/b-1/request.json", "old/b-1/run.json", "old/b-1/checkpoints/c", "old/readme")
    volume = root / "runs"
    if through_link:
        (tmp_path / "link").symlink_to(root)
        volume = tmp_path / "link/runs"
    assert files(root, volume) == ["old/readme", "train.py"]


def test_a_mount_in_the_project_is_not_crossed(root):
    write(root, "train.py")
    (root / "mounted").mkdir()
    with mounted(root / "mounted"):
        write(root, "mounted/a.py")
        assert files(root) == ["train.py"]


def test_a_large_project_is_refused_naming_the_big_folders(root):
    write(root, "train.py", "data/a", "models/b", "small/c")
    os.truncate(root / "data/a", 150_000_000)
    os.truncate(root / "models/b", 60_000_000)
    with pytest.raises(UsageError, match=r"The biggest: data \(150 MB\), models \(60 MB\), .*\.runnerignore.*--data"):
        snapshot(root)
    (root / ".runnerignore").write_text("data\n")
    assert files(root) == [".runnerignore", "models/b", "small/c", "train.py"]


@pytest.mark.parametrize("name", [b"caf\xe9.py", "数据.py".encode(), b"a\nb.py", b"'quote\".py", b" space "])
def test_any_file_name_travels(root, tmp_path, name):
    (root / os.fsdecode(name)).write_text("x")
    projects.archive(snapshot(root), tmp_path / "tar")
    with tarfile.open(tmp_path / "tar") as tar:
        assert [os.fsencode(member.name) for member in tar.getmembers()] == [name]


def test_only_the_cells_of_a_notebook_count(root):
    (root / "a.ipynb").write_text('{"cells": [{"cell_type": "code", "source": ["1"], "outputs": []}], "metadata": {}}')
    before = projects.manifest(snapshot(root))
    (root / "a.ipynb").write_text(
        '{"cells": [{"cell_type": "code", "source": ["1"], "outputs": [2]}], "metadata": {"a": 1}}'
    )
    assert projects.manifest(snapshot(root)) == before
    (root / "a.ipynb").write_text('{"cells": [{"cell_type": "code", "source": ["2"], "outputs": []}], "metadata": {}}')
    assert projects.manifest(snapshot(root)) != before


# A file is a job


@pytest.mark.parametrize("marker", ["requirements.txt", ".git/config", "pyproject.toml", "job.yaml"])
def test_a_script_runs_in_its_project(root, marker):
    write(root, marker, "deep/er/train.py", "helpers.py")
    found = projects.find(str(root / "deep/er/train.py"))
    assert (found.root, found.command, found.base) == (root, ("python", "deep/er/train.py"), "project")


def test_a_script_without_a_project_runs_in_its_own_folder(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    write(root.parent, ".git/config", "requirements.txt")  # a home under version control is no project
    write(root, "train.py")
    found = projects.find(str(root / "train.py"))
    assert (found.root, found.command, found.alone) == (root, ("python", "train.py"), None)


def test_a_script_in_a_home_travels_with_the_modules_that_it_imports(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    write(root, ".git/config", "other.py", "private.txt", "package/__init__.py", "package/deep/a.py", "loose/b.py")
    (root / "train.py").write_text("import os, helper\nfrom package.deep import a\nimport loose\n")
    (root / "helper.py").write_text("def f():\n    import late\n")
    (root / "late.py").write_text("print 'old Python'\n")
    assert files(root / "train.py") == ["helper.py", "late.py", "package/__init__.py", "package/deep/a.py", "train.py"]
    found = projects.find(str(root / "train.py"))
    assert (found.base, found.command) == ("train", ("python", "train.py"))


def test_a_script_at_the_root_of_a_mounted_drive_travels_alone(root, monkeypatch):
    write(root, "MyDrive/train.py", "MyDrive/photos/a.jpg", "MyDrive/project/train.py")
    mounts = f"overlay / fuse.fuse-overlayfs rw 0 0\ndrive {root} fuse.drive rw 0 0\ndisk {root / 'MyDrive'} fuseblk rw 0 0\n"
    (root.parent / "mounts").write_text(mounts)
    monkeypatch.setattr(projects, "MOUNTS", root.parent / "mounts")
    assert files(root / "MyDrive/train.py") == ["train.py"]
    assert projects.find(str(root / "MyDrive/project/train.py")).alone is None


def test_what_is_no_script_is_refused(root):
    write(root, "a.ipynb", "run.sh")
    for name in ("a.ipynb", "run.sh"):
        with pytest.raises(UsageError, match="not a Python script"):
            projects.find(str(root / name))
