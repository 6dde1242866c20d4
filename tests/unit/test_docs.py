"""The documents say what is there: every command, every option's existence, every link."""

import re
from pathlib import Path

import click
import pytest

from runner.cli import cli
from runner.settings import KEYS, defaults

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def commands() -> list[click.Command]:
    return list(cli.commands.values())


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_every_command_stands_in_the_readme(command):
    assert f"`runner {command.name}" in README


def test_commands_in_the_readme_exist():
    code = [*re.findall(r"```.*?```", README, re.DOTALL), *re.findall(r"`[^`\n]+`", README)]
    named = {name for text in code for name in re.findall(r"(?:^|[`$! ])runner ([a-z]+)\b", text)}
    assert named and named <= cli.commands.keys()


def test_every_option_in_the_readme_exists():
    known = {flag for command in [*commands(), cli] for parameter in command.params for flag in parameter.opts}
    known |= {"--help", "--epochs", "--logdir"}
    assert set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", README)) <= known


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_a_profile_stands_in_the_readme(key):
    assert f"`{key}`" in README


def test_the_profiles_in_the_readme_are_accepted(tmp_path, monkeypatch):
    profiles = [text for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if text.startswith("default:")]
    monkeypatch.chdir(tmp_path)
    assert profiles
    for text in profiles:
        (tmp_path / "runner.yaml").write_text(text)
        assert defaults(None, cli.commands)["run"]


def test_every_variable_of_an_option_stands_in_the_readme():
    options = [parameter for command in commands() for parameter in command.params]
    assert {option.envvar for option in options if option.envvar} <= set(re.findall(r"RUNNER_[A-Z_]+", README))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_variables_in_the_documents_are_read_somewhere(document):
    code = "".join(path.read_text() for folder in ("runner", "jobs", "tests") for path in (ROOT / folder).rglob("*.py"))
    assert set(re.findall(r"RUNNER_[A-Z_]+", (ROOT / document).read_text())) <= set(re.findall(r"RUNNER_[A-Z_]+", code))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_readme_shows_the_exit_codes_of_the_launcher():
    for code in (0, 2, 64, 70, 75, 125, 126, 130):
        assert re.search(rf"^\| (\d+, )*{code}[ ,]", README, re.MULTILINE), code


def test_make_targets_in_the_documents_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        assert set(re.findall(r"`make ([a-z]+)", (ROOT / document).read_text())) <= targets
