"""Which of the caller's variables are named because the code reads them and a container will not have them."""

import json

import pytest

from runner.plan import Asked, decide

READS = [
    'import os\nprint(os.environ["TOKEN"])\n',
    'import os\nprint(os.environ.get("TOKEN", 1))\n',
    'import os\nprint(os.getenv("TOKEN"))\n',
    'import os\nprint("TOKEN" in os.environ)\n',
    'import os\nprint("TOKEN" not in os.environ)\n',
    'import os\nos.environ.setdefault("TOKEN", "1")\n',
    'from os import environ as e, environ, getenv\nprint(getenv("TOKEN"))\n',
    'from os import environ\nprint(environ["TOKEN"])\n',
    'import os\nif "TOKEN" not in os.environ:\n    os.environ["TOKEN"] = "1"\n',
    'import os\nos.environ["TOKEN"] = os.environ.get("TOKEN", "") + "1"\n',
    'import os\npattern = "\\d"\nprint(os.environ["TOKEN"])\n',
]
NOT_READ = [
    'import os\n# os.environ["TOKEN"]\n',
    'import os\n"""os.environ["TOKEN"]"""\n',
    'import os\nos.environ["TOKEN"] = "1"\n',
    'import os\nos.environ["TOKEN"] = "1"\nprint(os.environ["TOKEN"])\n',
    'import os\nprint(os.environ, {}["TOKEN"])\n',
    'import os\nprint(os.environ["OTHER"])\n',
    'import os\nprint(os.environ["TOKEN"\n',  # damaged
    'import os\nprint os.environ["TOKEN"]\n',  # for Python 2
    'import os\nprint(os.environ["TOKEN"])\0\n',
    "import os\nprint(os.environ['TOKEN'], " + "(" * 100000 + "\n",
]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    for name in ("TOKEN", "SECOND", "DISPLAY", "TZ", "HTTPS_PROXY", "PYTHONPATH", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")


def notes(project, volume, **asked):
    asked = {"backend": "docker", "command": ("python", "train.py"), **asked}
    return decide(Asked(job=str(project), volume=volume, **asked)).notes


@pytest.mark.parametrize("code", READS)
def test_a_variable_that_the_code_reads_is_named(project, volume, code, recwarn):
    (project / "train.py").write_text(code)
    assert notes(project, volume) == (
        "train.py reads TOKEN, which the container will not have. "
        "Give it with -e TOKEN or, if it is secret, --secret TOKEN.",
    )
    assert not recwarn.list


@pytest.mark.parametrize("code", NOT_READ, ids=range(len(NOT_READ)))
def test_what_the_code_does_not_read_or_sets_itself_is_not_named(project, volume, code):
    (project / "train.py").write_text(code)
    assert notes(project, volume) == ()


def test_several_are_named_in_one_sentence_each_with_the_first_file_that_reads_it(project, volume):
    (project / "a.py").write_text('import os\nos.getenv("TOKEN")\n')
    (project / "package").mkdir()
    (project / "package/b.py").write_text('import os\nos.getenv("SECOND"), os.getenv("TOKEN")\n')
    assert notes(project, volume) == (
        "a.py reads TOKEN, package/b.py reads SECOND, which the container will not have. "
        "Give them with -e TOKEN -e SECOND (what is secret with --secret).",
    )


@pytest.mark.parametrize(
    "given",
    [
        {"variables": ("TOKEN",)},
        {"variables": ("TOKEN=",)},
        {"secrets": ("TOKEN",)},
        {"backend": "native"},
    ],
)
def test_what_is_given_is_not_named_and_natively_nothing_is(project, volume, given):
    (project / "train.py").write_text(READS[0])
    assert notes(project, volume, **given) == ()


def test_what_is_not_set_here_is_not_named(project, volume, monkeypatch):
    monkeypatch.delenv("TOKEN")
    (project / "train.py").write_text(READS[0])
    assert notes(project, volume) == ()


def test_what_a_container_has_or_must_not_have_is_not_named(project, volume):
    names = ("HOME", "PATH", "DISPLAY", "TZ", "HTTPS_PROXY", "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "RUNNER_DIR")
    (project / "train.py").write_text("import os\n" + "".join(f'os.environ["{name}"]\n' for name in names))
    assert notes(project, volume) == ()


def test_an_image_of_ones_own_may_set_it(project, volume):
    (project / "train.py").write_text(READS[0])
    (note,) = notes(project, volume, image="example")
    assert "TOKEN, which the container will not have, unless the image sets it. Give it" in note


def test_notebooks_count_by_their_cells(project, volume):
    def cell(kind, *source):
        return {"cell_type": kind, "source": list(source), "outputs": [{"text": 'os.environ["SECOND"]'}]}

    cells = [
        cell("markdown", 'os.environ["SECOND"]'),
        cell("code", "%matplotlib inline\n", "for name in ():\n", "    !ls\n"),
        cell("code", "import os\n", 'print(os.environ["TOKEN"])'),
    ]
    (project / "notebook.ipynb").write_text(json.dumps({"cells": cells}))
    (project / "damaged.ipynb").write_text('{"cells": [{"cell_type": "code"}], "os.environ": "TOKEN"}')
    (note,) = notes(project, volume)
    assert note.startswith("notebook.ipynb reads TOKEN, which")
