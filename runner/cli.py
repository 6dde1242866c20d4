"""The command line. Each command reads as a sentence; what it needs is imported when it runs, so that help is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runner import __version__

if TYPE_CHECKING:
    from runner.plan import Plan
    from runner.runs import Found

F = TypeVar("F", bound=Callable[..., Any])


class _Command(click.Command):
    """A command whose refusal of an option says what people most often meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(_unknown_option(error, self.name or ""), ctx) from error


class _Group(click.Group):
    """A group that offers the nearest command, and gives the options of a profile in runner.yaml as defaults."""

    command_class = _Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            from runner.errors import unknown

            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


def _unknown_option(error: click.NoSuchOption, command: str) -> str:
    if error.option_name.split("=")[0] in ("--env", "--environment"):
        return f"there is no option {error.option_name}. The environment is given with -E, such as -E tf2.15; a variable with -e KEY=VALUE."
    nearest = f" Did you mean {error.possibilities[0]}?" if error.possibilities else ""
    hint = (
        " A job's parameter is given as -P epochs=20, and the script's own options go after --."
        if command in ("run", "prove", "render")
        else ""
    )
    return f"there is no option {error.option_name}.{nearest}{hint}"


def _volume(command: F) -> F:
    return click.option(
        "--volume",
        envvar="RUNNER_VOLUME",
        type=click.Path(path_type=Path),
        help="The directory where runs live [~/runs].",
    )(command)


def _json(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="For programs.")(command)


def _what(command: F) -> F:
    """Add the options that say what to run; `run` and `render` have the same."""
    options = [
        click.argument("job", metavar="JOB|DIR|FILE"),
        click.argument("command", nargs=-1, metavar="[-- COMMAND ...]"),
        click.option("-E", "environment", help="The environment, such as tf2.15; `runner envs` lists them."),
        click.option("--on", "backend", envvar="RUNNER_ON", default="native", show_default=True, help="Where: native."),
        click.option("--name", help="The run's name [the job's name and a hash of what is asked]."),
        click.option("-P", "parameters", multiple=True, metavar="KEY=VALUE", help="A parameter of the job."),
        click.option("-e", "variables", multiple=True, metavar="KEY[=VALUE]", help="A variable for the job."),
        click.option(
            "--secret", "secrets", multiple=True, metavar="KEY", help="A variable whose value is written nowhere."
        ),
        click.option("--data", multiple=True, metavar="NAME=PATH", help="Where a data set is."),
        click.option("--gpus", type=click.IntRange(min=0), help="How many GPUs; takes the cuda row."),
        click.option("--cpus", type=click.IntRange(min=1), help="How many threads; fixed by the first attempt."),
        click.option("--retries", type=click.IntRange(min=0), help="Crashes in a row without a newer checkpoint [2]."),
        click.option("--fresh", is_flag=True, help="Begin again; the old run is kept as NAME.1, ..."),
        click.option("--update-code", is_flag=True, help="Continue with the code of now."),
        _volume,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, prog_name="runner")
@click.option("--profile", help="A profile of runner.yaml, whose options become defaults.")
@click.pass_context
def cli(ctx: click.Context, profile: str | None) -> None:
    """Run a TensorFlow job in the version it was written for, and go on from its last checkpoint when it is cut off.

    The same command starts a run, continues it, or shows its result:

        runner run fashion_mnist
    """
    from runner import settings

    ctx.default_map = settings.defaults(profile, cli.commands)


@cli.command()
@_what
@click.option("--detach", is_flag=True, help="Return at once; the run goes on.")
@_json
def run(detach: bool, as_json: bool, **options: Any) -> None:
    """Start a run, continue it, attach to it, or show its result."""
    from runner import attached
    from runner.plan import Asked, decide

    plan = decide(Asked(**options))
    sys.exit(attached.carry_out(plan, detach=detach, as_json=as_json))


@cli.command()
@_what
def render(**options: Any) -> None:
    """Print what `run` with the same options would send."""
    from runner import backends
    from runner.plan import Asked, decide

    click.echo(_rendered(decide(Asked(**options)), backends.get(options["backend"])))


def _rendered(plan: Plan, backend: Any) -> str:
    if plan.run is None:
        return f"# nothing would be sent: {plan.directory.name} is {'going' if plan.action == 'attach' else 'done'}"
    return str(backend.render(plan.run))


@cli.command()
@_volume
@_json
def ps(volume: Path | None, as_json: bool) -> None:
    """List the runs, the newest first."""
    from runner import listing

    listing.show_runs(volume, as_json)


@cli.command()
@click.argument("name", metavar="[RUN]", required=False)
@_volume
@_json
def status(name: str | None, volume: Path | None, as_json: bool) -> None:
    """Say in one sentence what a run does, why it ended, and what it would continue from."""
    from runner import listing, runs

    listing.show_status(runs.find(name, volume), as_json)


@cli.command()
@click.argument("name", metavar="[RUN]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@_volume
def logs(name: str | None, follow: bool, volume: Path | None) -> None:
    """Print what a run has printed, over all its attempts."""
    from runner import attached, runs

    attached.show_logs(runs.find(name, volume), follow)


@cli.command()
@click.argument("name", metavar="[RUN]", required=False)
@_volume
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def stop(name: str | None, volume: Path | None, yes: bool) -> None:
    """Tell a run to write a checkpoint and end; the same command continues it."""
    from runner import attached

    attached.stop(_chosen(name, volume, yes, "Stop"))


@cli.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@_volume
def wait(names: tuple[str, ...], volume: Path | None) -> None:
    """Wait until runs have ended; return the code of the first that did not succeed."""
    from runner import attached, runs

    sys.exit(attached.wait([runs.find(name, volume) for name in names]))


@cli.command()
@click.argument("name", metavar="[RUN]", required=False)
@click.argument("target", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("-f", "--follow", is_flag=True, help="Repeat until the run ends.")
@click.option("--all", "everything", is_flag=True, help="Checkpoints and the project's snapshot, too.")
@_volume
def pull(name: str | None, target: Path | None, follow: bool, everything: bool, volume: Path | None) -> None:
    """Copy the results of a run here: model, report, metrics, TensorBoard files, logs, what it wrote."""
    from runner import pulling, runs

    pulling.pull(runs.find(name, volume), target, follow=follow, everything=everything)


@cli.command()
@click.argument("name", metavar="[RUN]", required=False)
@click.option("--files", is_flag=True, help="The run's directory, too: checkpoints and results.")
@click.option(
    "--unused", is_flag=True, help="Instead: failed runs, old copies, environments and caches that nothing needs."
)
@click.option("--older", metavar="30d", help="With --unused: only what is older.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_volume
def rm(name: str | None, files: bool, unused: bool, older: str | None, yes: bool, volume: Path | None) -> None:
    """Remove a run, or what nothing needs."""
    from runner import cleaning

    if unused:
        cleaning.remove_unused(volume, older, yes)
    else:
        cleaning.remove_run(_chosen(name, volume, yes, "Remove"), files)


@cli.command()
@_what
@click.option(
    "--kills", type=click.IntRange(min=1), default=3, show_default=True, help="How many SIGKILLs, at random moments."
)
@click.option("--seed", type=int, help="For the same moments again.")
@_json
def prove(kills: int, seed: int | None, as_json: bool, **options: Any) -> None:
    """Kill a training at random moments and show whether its weights come out bit for bit the same."""
    from runner import proof
    from runner.plan import Asked

    sys.exit(proof.prove(Asked(**options), kills, seed, as_json))


@cli.command()
@click.argument("name", metavar="[NAME]", required=False)
@_json
def envs(name: str | None, as_json: bool) -> None:
    """List the environments, or explain one."""
    from runner import listing

    listing.show_environments(name, as_json)


@cli.command()
@click.argument("version", metavar="X.Y.Z")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--python", metavar="3.N", help="The Python to lock for [what the wheels allow].")
def lock(version: str, device: str, python: str | None) -> None:
    """Make an environment of your own for any other TensorFlow version, in ./environments.yaml and ./locks/."""
    from runner import environments

    row = environments.make_row(version, device, python)
    click.echo(
        f"{row.name} is in {Path('environments.yaml').absolute()}, its packages in {row.lock}. Use it here with: -E {row.name}"
    )


def _chosen(name: str | None, volume: Path | None, yes: bool, verb: str) -> Found:
    """Return the run that was named; without a name the newest, after asking."""
    from runner import runs
    from runner.errors import UsageError

    found = runs.find(name, volume)
    if name is None and not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"which run? The newest is {found.name}; give its name, or --yes.")
        click.confirm(f"{verb} {found.name}, the newest?", abort=True)
    return found
