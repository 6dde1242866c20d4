"""The command line itself: help, what it imports, completion, and what it is called from: no terminal, a locale, a pipe."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT
from terminals import on_terminal

from runner import settings
from runner.cli import cli as group

HEAVY = ("docker", "kubernetes", "rich", "tensorflow", "yaml", "uv", "urllib.request", "asyncio")


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["envs", "-h"], ["--version"]])
def test_help_imports_nothing_heavy(words):
    code = f"""
import json, sys
sys.argv = ["runner", *{words!r}]
from runner.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_completion_imports_nothing_heavy_and_completes_commands_and_options():
    for words, expected in (("runner pro", "plain,prove"), ("runner run --upd", "plain,--update-code")):
        env = {
            **os.environ,
            "_RUNNER_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "runner"], env=env, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected
        assert not [name for name in HEAVY if f" {name}\n" in done.stderr]
    env["_RUNNER_COMPLETE"] = "bash_source"
    assert (
        "complete -o nosort"
        in subprocess.run([sys.executable, "-m", "runner"], env=env, capture_output=True, text=True).stdout
    )


@pytest.mark.parametrize("words", ["nonsense ", "run --nonsense ", "run counter -- py", "status "])
def test_completion_of_what_is_wrong_is_silent(words):
    env = {
        **os.environ,
        "_RUNNER_COMPLETE": "bash_complete",
        "COMP_WORDS": f"runner {words}",
        "COMP_CWORD": str(words.count(" ") + 0),
    }
    done = subprocess.run([sys.executable, "-m", "runner"], env=env, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("name", sorted(group.commands))
def test_every_command_and_option_has_help(name):
    command = group.commands[name]
    assert command.help and command.help.endswith(".")
    for option in command.params:
        if option.param_type_name == "option":
            assert getattr(option, "help", None), option.name


def test_a_profile_may_say_on(tmp_path, monkeypatch):
    """For YAML 1.1 the word is true."""
    (tmp_path / "runner.yaml").write_text("default: {on: docker, volume: runs}\n")
    monkeypatch.chdir(tmp_path)
    assert settings.defaults(None, group.commands)["run"] == {"backend": "docker", "volume": f"{tmp_path}/runs"}


def test_the_runner_alone_shows_its_help(cli):
    result = cli(code=2)
    assert result.stderr.startswith("Usage: runner") and "prove" in result.stderr
    assert "Usage: runner run" in cli("run", "--help").stdout


# Where it is called from


def test_closed_streams_do_no_harm(cli):
    """`nohup`, cron and systemd may give a program none of its three streams."""
    words = "-m runner run counter -P steps=2"
    for closing in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        subprocess.run(
            ["sh", "-c", f'exec "$0" {words} {closing}', sys.executable], cwd=cli.cwd, env=cli.env, check=True
        )
    assert len(cli.only().record["attempts"]) == 1
    assert cli.report()["steps"] == 2
    refused = subprocess.run(["sh", "-c", 'exec "$0" -m runner stop <&-', sys.executable], cwd=cli.cwd, env=cli.env,
                             capture_output=True, text=True)  # fmt: skip
    assert refused.returncode == 2 and "which run?" in refused.stderr


def test_without_a_terminal_there_is_no_progress_line_and_no_colour(cli):
    result = cli.run("counter", steps=30, pause=0.02)
    assert "\r" not in result.output and "\x1b" not in result.output and "step 1" not in result.output


@pytest.mark.parametrize("variables", [{}, {"TERM": "dumb"}, {"NO_COLOR": "1"}, {"JPY_PARENT_PID": "1"}])
def test_on_a_terminal_progress_is_one_line_that_never_moves_the_cursor_up(cli, variables):
    cli.env.update({"TERM": "xterm-256color", **variables})
    code, text = on_terminal(cli, "run", "counter", "-P", "steps=40", "-P", "pause=0.05")
    assert code == 0 and "counted to 40" in text and "It succeeded" in text
    assert "\r" in text.replace("\r\n", "") and "step 1" in text.replace("step 40/40", "")
    assert "\x1b[A" not in text and "\x1b[1A" not in text and "\x1b[F" not in text
    assert "\x1b" not in text  # nor any other
    code, text = on_terminal(cli, "ps")
    assert ("\x1b[" in text) is not bool({"TERM", "NO_COLOR"} & set(variables))


def test_a_narrow_terminal_still_shows_whole_names(cli):
    cli.env["COLUMNS"] = "30"
    cli.run("counter", "--name", "a-name-of-more-than-thirty-characters", steps=1)
    assert "a-name-of-more-than-thirty-characters  succeeded" in on_terminal(cli, "ps")[1]


LOCALES = {
    "C without UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "C": {"LC_ALL": "C"},
    "POSIX": {"LC_ALL": "POSIX", "LANG": ""},
    "Latin-1 output": {"PYTHONIOENCODING": "latin-1"},
}


@pytest.mark.parametrize("name", LOCALES)
def test_a_locale_without_utf_8_changes_neither_paths_nor_output(cli, tmp_path, name):
    volume, folder = tmp_path / "Läufe 数据", tmp_path / "Übung"
    volume.mkdir()
    folder.mkdir()
    (folder / "job.yaml").write_text("command: [python, 'zählen.py']\nparameters: {a: é}\n", encoding="utf-8")
    text = "import os\nprint('Grüße', os.path.basename(__file__), os.environ['RUNNER_DIR'])\n"
    (folder / "zählen.py").write_text(text, encoding="utf-8")
    words = ("run", folder, "-E", "tf0.0-cpu", "--volume", volume, "--name", "mine", "-P", "a=ü")
    cli.env.update(LOCALES[name])
    assert cli(*words).stdout == f"Grüße zählen.py {volume}/mine\n"  # the job's bytes, as they are
    shown = cli("ps", "--volume", volume).stdout
    for variable in LOCALES[name]:
        del cli.env[variable]
    assert cli("ps", "--volume", volume).stdout == shown or name.startswith("Latin-1")
    assert "It succeeded" in cli(*words).stderr  # the same run, and the same code, in any locale
    status = cli("status", "mine", "--volume", volume, "--json").json()
    assert status["directory"] == str(volume / "mine") and shlex.split(status["again"])[2] == str(folder)
