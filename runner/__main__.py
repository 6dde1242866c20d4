"""Starts the command line, and turns every failure into a sentence and an exit code."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; a traceback is for bugs only."""
    if sys.platform == "win32":
        sys.exit(
            "runner: Windows itself is not supported; it works in WSL (https://learn.microsoft.com/windows/wsl/install)."
        )
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a locale that lacks a sign must not end a run
    from runner.cli import cli
    from runner.errors import RunnerError

    try:
        cli.main(prog_name="runner", standalone_mode=True)
    except RunnerError as error:
        print(f"runner: {error}", file=sys.stderr)
        output = getattr(error, "output", "")
        if output:
            print(output.strip()[-2000:], file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `runner logs | head`: no complaint at exit
        sys.exit(0)


if __name__ == "__main__":
    main()
