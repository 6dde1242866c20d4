"""job.yaml, its typed parameters, and names: what is accepted, and the sentence that refuses the rest."""

import re

import pytest

from runner import specs, yamlfile
from runner.errors import UsageError

GOOD = """
environment: tf2.15-cpu
command: [python, train.py, --epochs, "{epochs}", 3, 0.5]
parameters:
  epochs: {default: 10, min: 1, max: 99, extend: true}
  rate: 0.5
  fast: true
  optimizer: {default: adam, choices: [sgd, adam]}
  note: ""
data: {fashion-mnist: {}, mine: null}
resources: {cpus: 2, memory: 4Gi, gpus: 0}
retries: 0
checkpoint_every: 500steps
"""

BAD = {  # a wrong job.yaml -> the line, and what the sentence says
    "command: [python\n": (2, "this is not YAML"),
    "a: b: c\n": (1, "this is not YAML"),
    "- python\n": (1, "a mapping (key: value) is expected"),
    "command: [a]\nretries: 1\ncommand: [b]\n": (3, "the key 'command' stands here twice (first in line 1)"),
    "parameters:\n  a: 1\n  a: 2\n": (3, "the key 'a' stands here twice (first in line 2)"),
    "command: [a]\nparametres: {}\n": (2, "unknown key 'parametres'. Did you mean parameters?"),
    "command: python train.py\n": (1, "command must be a list of words"),
    'command: [python, "{epoch}"]\nparameters: {epochs: 1}\n': (1, "unknown parameter 'epoch'. Did you mean epochs?"),
    "environment: 2.15\n": (1, 'environment must be text, not 2.15. A number is text in quotes: "2.15"'),
    "retries: -1\n": (1, "retries must be a whole number from 0 on"),
    "retries: twice\n": (1, "retries must be a whole number"),
    "retries: true\n": (1, "retries must be a whole number"),
    "parameters: [a]\n": (1, "parameters must be a mapping"),
    "parameters:\n  a: {min: 1}\n": (2, "the parameter a needs a default; it gives the type"),
    "parameters:\n  a: {default: 1, minimum: 1}\n": (2, "unknown key 'minimum'. Did you mean min?"),
    "parameters:\n  a: {default: 1, min: low}\n": (2, "min must be a number"),
    "parameters:\n  a: {default: 0, min: 1}\n": (2, "a must be at least 1"),
    "parameters:\n  a: {default: b, choices: c}\n": (2, "choices must be a list"),
    "parameters:\n  a: {default: b, choices: [c]}\n": (2, "unknown value"),
    "parameters:\n  a: {default: b, extend: true}\n": (2, "only a number can be extended"),
    "parameters:\n  a: [1]\n": (2, "a value must be text, a number, true or false"),
    "parameters:\n  a:\n": (2, "a value must be text, a number, true or false"),
    "parameters:\n  a-b: 1\n": (2, "a parameter's name is letters, digits and _"),
    "resources: {cpu: 2}\n": (1, "unknown resource 'cpu'. Did you mean cpus?"),
    "resources: {gpus: many}\n": (1, "gpus must be a whole number"),
    "resources: {memory: lots}\n": (1, "memory is a number of bytes, such as 4Gi or 500M"),
    "resources:\n  memory: 1Mi\n": (2, "1Mi is too little, for no engine takes less than 6Mi"),
    "resources:\n  memory: 4\n": (2, "4 is too little"),  # bytes, where gigabytes were meant
    "checkpoint_every: often\n": (1, "such as 10s, 500steps or 1epoch"),
    "command: [a]\nrequirements: requirements.txt\n": (
        2,
        "requirements: packages of a project's own come in a later version",
    ),
    "data: {a: [b]}\n": (1, "a must be a mapping"),
    "{[a]: b}\n": (1, "a key must be a word"),
    "command: [a]\non: docker\n": (2, "unknown key 'on'"),
}


def read(tmp_path, text):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return specs.read_job(path)


def test_a_job_is_read_with_all_its_keys(tmp_path):
    job = read(tmp_path, GOOD)
    assert job.command == ("python", "train.py", "--epochs", "{epochs}", "3", "0.5")
    assert {name: parameter.default for name, parameter in job.parameters.items()} == {
        "epochs": 10, "rate": 0.5, "fast": True, "optimizer": "adam", "note": "",
    }  # fmt: skip
    assert job.parameters["epochs"].extend and not job.parameters["rate"].extend
    assert (job.retries, job.checkpoint_every, set(job.data)) == (0, "500steps", {"fashion-mnist", "mine"})
    assert (job.resources.cpus, job.resources.memory, job.resources.gpus) == (2, "4Gi", 0)


def test_an_empty_job_has_defaults(tmp_path):
    job = read(tmp_path, "# nothing yet\n")
    assert (job.command, job.environment, job.retries, job.resources.cpus) == ((), None, 2, None)


@pytest.mark.parametrize("text", BAD)
def test_a_wrong_job_is_refused_with_file_and_line(tmp_path, text):
    line, words = BAD[text]
    with pytest.raises(UsageError, match=re.escape(words)) as refusal:
        read(tmp_path, text)
    assert str(refusal.value).startswith(f"{tmp_path / 'job.yaml'}, line {line}: ")


def test_a_key_is_its_own_text_whatever_yaml_takes_it_for(tmp_path):
    keys = ("on", "off", "yes", "no", "null", "~", "1.10", "0x10", "1:30", "2026-01-01")
    path = tmp_path / "some.yaml"
    path.write_text("".join(f"{key}: {number}\n" for number, key in enumerate(keys)))
    assert yamlfile.load(path) == {key: number for number, key in enumerate(keys)}


def test_a_user_and_its_group_are_no_number_to_the_base_of_60(tmp_path):
    (tmp_path / "some.yaml").write_text("{user: 1000:50, time: 1:30.5, number: 7, ratio: 0.5, hex: 0x10}\n")
    expected = {"user": "1000:50", "time": "1:30.5", "number": 7, "ratio": 0.5, "hex": 16}
    assert yamlfile.load(tmp_path / "some.yaml") == expected


@pytest.mark.parametrize("content", [b"a: \xff\xfe\x00b\n", b"a: \x00\n", "a: \u2028\x07\n".encode()])
def test_what_is_no_text_is_refused_with_the_file(tmp_path, content):
    (tmp_path / "job.yaml").write_bytes(content)
    with pytest.raises(UsageError, match="this is not YAML"):
        specs.read_job(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("typed", "value"),
    [("epochs=20", 20), ("rate=1", 1.0), ("rate=1e-3", 0.001), ("fast=no", False), ("fast=TRUE", True),
     ("optimizer=sgd", "sgd"), ("note=a=b c", "a=b c"), ("note=", "")],
)  # fmt: skip
def test_a_parameter_has_the_type_of_its_default(tmp_path, typed, value):
    (found,) = read(tmp_path, GOOD).values([typed]).values()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("typed", "words"),
    [("epochs", "-P epochs: a parameter is given as key=value"), ("epoch=3", "unknown parameter 'epoch'. Did you mean epochs?"),
     ("epochs=0", "epochs must be at least 1"), ("epochs=100", "epochs must be at most 99"),
     ("epochs=2.5", "epochs is a whole number, such as 10"), ("epochs=", "epochs is a whole number"),
     ("rate=quick", "rate is a number, such as 0.5"), ("rate=nan", "rate is a number"), ("rate=inf", "rate is a number"),
     ("fast=maybe", "fast is true or false"), ("optimizer=sdg", "Did you mean sgd? Known: adam, sgd")],
)  # fmt: skip
def test_a_wrong_parameter_is_refused_with_what_is_allowed(tmp_path, typed, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        read(tmp_path, GOOD).values([typed])


@pytest.mark.parametrize("text", ["6Mi", "6291456", "6.5M", "4Gi", "0.5G"])
def test_memory_that_an_engine_takes(text):
    assert specs.memory_bytes(text, "--memory") >= 6 << 20


@pytest.mark.parametrize("text", ["", "0", "5Mi", "6M", "4", "1.5Ki"])
def test_memory_that_no_engine_takes_is_refused(text):
    with pytest.raises(UsageError, match="such as 4Gi"):
        specs.memory_bytes(text, "--memory")


def test_a_user_is_a_number_and_neither_root_nor_in_its_group():
    assert (specs.user_ids("1000"), specs.user_ids("1000:50")) == ((1000, 1000), (1000, 50))
    for text, words in (("0", "as root"), ("0:50", "as root"), ("1000:0", "in root's group. Give another, such as 1000:1000"),
                        ("me", "by number"), ("", "by number")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            specs.user_ids(text)


@pytest.mark.parametrize(
    "name",
    [
        "a", "python:3.12-slim", "team/a__b-c.d:1", "localhost:5000/x", "registry.example.org:5000/team/mine:1",
        "[::1]:5000/x", "a@sha256:" + "0" * 64, "a:1@sha256:" + "0" * 64, "sha256:" + "0" * 64,
    ],
)  # fmt: skip
def test_an_image_is_accepted(name):
    assert specs.check_image(name) == name


@pytest.mark.parametrize("name", ["", " ", "Bad Image", "Mine", "a:", "a b", "https://x/y", "a:1:2", "-a", "a\n", "/a"])
def test_what_can_be_no_image_is_refused_with_an_example(name):
    with pytest.raises(UsageError, match=r"such as registry\.example\.org/team/mine:1"):
        specs.check_image(name)


@pytest.mark.parametrize("name", ["a", "7", "a-b", "x" * 48, "0-0"])
def test_a_name_is_accepted(name):
    assert specs.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a_b", "a/b", "..", ".", "a.b", "a\n", "a b", "é", "x" * 49, "x" * 300]
)
def test_a_wrong_name_is_refused_in_one_short_line(name):
    with pytest.raises(UsageError, match="1 to 48 lower-case letters, digits and '-'") as refusal:
        specs.check_name(name)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 250


def test_the_same_request_has_the_same_name_and_another_has_another():
    first = specs.run_name("my_job", None, {"a": 1, "b": 2}, ["python", "x.py"])
    assert re.fullmatch(r"my-job-[0-9a-f]{6}", first)
    assert first == specs.run_name("my_job", None, {"b": 2, "a": 1}, ["python", "x.py"])
    others = [
        specs.run_name("my-job", None, {"a": 1, "b": 2}, ["python", "x.py"]),
        specs.run_name("my_job", "tf2.15", {"a": 1, "b": 2}, ["python", "x.py"]),
        specs.run_name("my_job", None, {"a": 1, "b": 3}, ["python", "x.py"]),
        specs.run_name("my_job", None, {"a": 1, "b": 2}, ["python", "y.py"]),
    ]
    assert len({first, *others}) == 5


@pytest.mark.parametrize("base", ["x" * 300, "Projekt (alt) 2", "数据", "---", "_", "a" * 40 + "-b"])
def test_any_folder_gives_a_name_that_is_one(base):
    name = specs.run_name(base, None, {}, [])
    assert specs.check_name(name) == name
