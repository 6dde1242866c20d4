"""Starts the command line, and turns every failure into a sentence and an exit code."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import sys


def main() -> None:
    """Run the command line and end with its exit code."""
    if sys.platform == "win32":
        sys.exit(
            "runner: Windows itself is not supported; it works in WSL (https://learn.microsoft.com/windows/wsl/install)."
        )
    _use_utf_8()
    _open_streams()
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # no complaint at exit
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _run() -> int:
    """Run the command line; a traceback is for bugs only."""
    import click

    from runner.cli import cli
    from runner.errors import RunnerError

    try:
        return int(cli.main(prog_name="runner", standalone_mode=False) or 0)
    except click.ClickException as error:
        return _fail(_words(error), error.exit_code)
    except RunnerError as error:
        return _fail(f"{error}\n{getattr(error, 'output', '').strip()[-2000:]}", error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except OSError as error:  # a full disk, a file that may not be read: nothing that the runner could have known
        return _fail(f"{error.filename or 'the runner'}: {error.strerror or error}.", RunnerError.exit_code)


def _fail(sentence: str, code: int) -> int:
    print(sentence if sentence.startswith("Usage:") else f"runner: {sentence.strip()}", file=sys.stderr)
    return code


def _words(error: Exception) -> str:
    """Return what click has to say, and where the options are explained."""
    context = getattr(error, "ctx", None)
    message = str(error.format_message())  # type: ignore[attr-defined]
    if not context or message.startswith("Usage:"):  # `runner` alone shows its help
        return message
    return f"{message} All options: {context.command_path} --help"


def _use_utf_8() -> None:
    """Begin again in Python's UTF-8 mode where the locale is another: a run is the same run in all locales."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _open_streams() -> None:
    """Give the runner its three streams, whatever the caller closed, and let it print what the locale has no sign for."""
    for number in range(3):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, so that no other file gets it
    sys.stdin, sys.stdout, sys.stderr = (
        stream or os.fdopen(number, mode)
        for number, (stream, mode) in enumerate([(sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w")])
    )
    codecs.register_error("as-utf-8", _as_utf_8)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="as-utf-8")  # type: ignore[union-attr]


def _as_utf_8(error: UnicodeError) -> tuple[bytes, int]:
    """Encode what the locale cannot: the bytes that a path really has, and UTF-8 else."""
    assert isinstance(error, UnicodeEncodeError)
    return error.object[error.start : error.end].encode("utf-8", "surrogateescape"), error.end


if __name__ == "__main__":
    main()
