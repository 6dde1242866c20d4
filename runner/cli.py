"""The command line. Each command reads as a sentence; what it needs is imported when it runs, so that help is quick."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runner import __version__

if TYPE_CHECKING:
    from runner.plan import Asked, Plan
    from runner.runs import Found

F = TypeVar("F", bound=Callable[..., Any])


class _Command(click.Command):
    """A command whose refusal of an option says what people most often meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)  # click takes them out one by one
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(_unknown_option(error, self.name or "", words), ctx) from error


class _JobCommand(_Command):
    """A command that takes a job, and after `--` what to run in it; without the `--` a word there is a mistake."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        super().parse_args(ctx, args[:cut])
        stray = ctx.params.get("command")
        if stray and not ctx.resilient_parsing:
            raise click.UsageError(
                f"{stray[0]!r}: a parameter is given as -P {stray[0] if '=' in stray[0] else 'epochs=20'}, "
                f"and a command after --, such as: -- python train.py.",
                ctx,
            )
        ctx.params["command"] = tuple(args[cut + 1 :])
        return []


class _Group(click.Group):
    """A group that offers the nearest command, and gives the options of a profile in runner.yaml as defaults."""

    command_class = _Command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `runner logs | head`; click would make a 1 of it
            return 128 + signal.SIGPIPE

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            from runner.errors import unknown

            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


def _unknown_option(error: click.NoSuchOption, command: str, args: list[str]) -> str:
    option = error.option_name
    if option in ("--env", "--environment"):
        return f"there is no option {option}. The environment is given with -E, such as -E tf2.15; a variable with -e KEY=VALUE."
    close = difflib.get_close_matches(option.strip("-"), [other.strip("-") for other in error.possibilities or ()], n=1)
    nearest = f" Did you mean --{close[0]}?" if close else ""
    if command not in ("run", "prove", "render"):
        return f"there is no option {option}.{nearest}"
    name = option.lstrip("-").replace("-", "_")
    value = _value_of(option, args)
    return (
        f"there is no option {option}.{nearest} A job's parameter is given as -P {name}={value}, "
        f"and a script's own options after --, such as: -- {option} {value}."
    )


def _value_of(option: str, args: list[str]) -> str:
    """Return the value that was meant for an option that does not exist."""
    for word, following in zip(args, [*args[1:], "--"], strict=True):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else "VALUE" if following.startswith("-") else following
    return "VALUE"


class _Count(click.IntRange):
    """A whole number, which is also what a refusal calls it."""

    name = "whole number"


def _path(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Path | None:
    if value == "":
        raise click.BadParameter("it is empty; give a directory.", ctx, parameter)
    return Path(value) if value else None


def _volume(command: F) -> F:
    return click.option(
        "--volume",
        envvar="RUNNER_VOLUME",
        metavar="DIR",
        callback=_path,
        help="The directory where runs live [~/runs].",
    )(command)


def _places(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[Path]:
    """Return where a verb looks for runs: in the volume that was given, else in all that were used before."""
    from runner import plan, runs

    given = _path(ctx, parameter, value)
    configured = (ctx.find_root().default_map or {}).get("run", {}).get("volume")
    return [plan.place_of(given)] if given else runs.places(configured)


def _find(name: str | None, places: list[Path], backend: str | None) -> Found:
    """Return the run of this name; where no volume that is remembered has it, one that a backend knows of may."""
    from runner import runs
    from runner.errors import UsageError

    try:
        return runs.find(name, places, backend)
    except UsageError:
        more = _further(places, backend)
        if not more:
            raise
        return runs.find(name, [*places, *more], backend)


def _further(places: list[Path], backend: str | None) -> list[Path]:
    """Return the volumes that backends know of and we do not, unless the user has named one; say which did not answer."""
    from click.core import ParameterSource

    from runner import backends

    if click.get_current_context().get_parameter_source("places") is not ParameterSource.DEFAULT:
        return []
    found, silent = backends.volumes(places, backend)
    for sentence in silent:
        click.echo(sentence, err=True)
    return found


def _backend(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from runner import backends

    if value is not None:
        backends.check(value)
    return value


def _where(command: F) -> F:
    """Add the options that say where a verb looks for runs."""
    for option in (
        click.option(
            "--on",
            "backend",
            metavar="WHERE",
            callback=_backend,
            help="Only runs that ran there last: native or docker.",
        ),
        click.option(
            "--volume", "places", metavar="DIR", callback=_places, help="Only this volume [all that were used before]."
        ),
    ):
        command = option(command)
    return command


def _json(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="For programs.")(command)


def _what(command: F) -> F:
    """Add the options that say what to run; `run` and `render` have the same."""
    options = [
        click.argument("job", metavar="JOB|DIR|FILE"),
        click.argument("command", nargs=-1, metavar="[-- COMMAND ...]"),
        click.option("-E", "environment", help="The environment, such as tf2.15; `runner envs` lists them."),
        click.option(
            "--on",
            "backend",
            envvar="RUNNER_ON",
            default="native",
            show_default=True,
            metavar="WHERE",
            help="native or docker.",
        ),
        click.option(
            "--image",
            metavar="REF",
            help="An image of your own, in the environment's place (it needs python and TensorFlow).",
        ),
        click.option("--name", help="The run's name [the job's name and a hash of what is asked]."),
        click.option("-P", "parameters", multiple=True, metavar="KEY=VALUE", help="A parameter of the job."),
        click.option("-e", "variables", multiple=True, metavar="KEY[=VALUE]", help="A variable for the job."),
        click.option(
            "--secret", "secrets", multiple=True, metavar="KEY", help="A variable whose value is written nowhere."
        ),
        click.option("--data", multiple=True, metavar="NAME=PATH", help="Where a data set is."),
        click.option(
            "--gpus", type=_Count(min=0), metavar="N", help="How many GPUs; takes the cuda row. 0 hides them all."
        ),
        click.option(
            "--cpus",
            type=_Count(min=1),
            metavar="N",
            help="How many threads, fixed by the first attempt; a container gets no more processors.",
        ),
        click.option("--memory", metavar="4Gi", help="How much memory a container may use [all]."),
        click.option(
            "--user", metavar="UID[:GID]", help="Whose the container's files are [yours; for root the volume's owner]."
        ),
        click.option(
            "--retries", type=_Count(min=0), metavar="N", help="Crashes in a row without a newer checkpoint [2]."
        ),
        click.option("--fresh", is_flag=True, help="Begin again; the old run is kept as NAME.1, ..."),
        click.option("--update-code", is_flag=True, help="Continue with the code of now."),
        _volume,
        # Not for each command: from a variable or a profile.
        click.option("--base-image", envvar="RUNNER_BASE_IMAGE", hidden=True, help="What images are built on."),
        click.option("--registry", envvar="RUNNER_REGISTRY", hidden=True, help="Where images may be already."),
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


@cli.command(cls=_JobCommand)
@_what
@click.option("--detach", is_flag=True, help="Return at once; the run goes on.")
@_json
def run(detach: bool, as_json: bool, **options: Any) -> int:
    """Start a run, continue it, attach to it, or show its result."""
    from runner import attached
    from runner.plan import decide

    plan = decide(_asked(options))
    return attached.carry_out(plan, detach=detach, as_json=as_json)


@cli.command(cls=_JobCommand)
@_what
def render(**options: Any) -> None:
    """Print what `run` with the same options would send."""
    from runner import backends
    from runner.plan import decide

    click.echo(_rendered(decide(_asked(options)), backends.get(options["backend"])))


def _rendered(plan: Plan, backend: Any) -> str:
    if plan.run is None:
        return f"# nothing would be sent: {plan.directory.name} is {'going' if plan.action == 'attach' else 'done'}"
    return str(backend.render(plan.run))


@cli.command()
@_where
@_json
def ps(places: list[Path], backend: str | None, as_json: bool) -> None:
    """List the runs, the newest first."""
    from runner import listing

    listing.show_runs([*places, *_further(places, backend)], backend, as_json)


@cli.command()
@click.argument("name", metavar="[RUN]", required=False)
@_where
@_json
def status(name: str | None, places: list[Path], backend: str | None, as_json: bool) -> None:
    """Say in one sentence what a run does, why it ended, and what it would continue from."""
    from runner import listing

    listing.show_status(_find(name, places, backend), as_json)


@cli.command()
@click.argument("name", metavar="[RUN]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@_where
def logs(name: str | None, follow: bool, places: list[Path], backend: str | None) -> None:
    """Print what a run has printed, over all its attempts."""
    from runner import attached

    attached.show_logs(_find(name, places, backend), follow)


@cli.command()
@click.argument("name", metavar="[RUN]", required=False)
@_where
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def stop(name: str | None, places: list[Path], backend: str | None, yes: bool) -> None:
    """Tell a run to write a checkpoint and end; the same command continues it."""
    from runner import attached

    attached.stop(_chosen(name, places, backend, yes, "Stop"))


@cli.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@_where
def wait(names: tuple[str, ...], places: list[Path], backend: str | None) -> int:
    """Wait until runs have ended; return the code of the first that did not succeed."""
    from runner import attached

    return attached.wait([_find(name, places, backend) for name in names])


@cli.command()
@click.argument("name", metavar="[RUN]", required=False)
@click.argument("target", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("-f", "--follow", is_flag=True, help="Repeat until the run ends.")
@click.option("--all", "everything", is_flag=True, help="Checkpoints and the project's snapshot, too.")
@_where
def pull(
    name: str | None, target: Path | None, follow: bool, everything: bool, places: list[Path], backend: str | None
) -> None:
    """Copy the results of a run here: model, report, metrics, TensorBoard files, logs, what it wrote."""
    from runner import pulling

    pulling.pull(_find(name, places, backend), target, follow=follow, everything=everything)


@cli.command()
@click.argument("name", metavar="[RUN]", required=False)
@click.option("--files", is_flag=True, help="The run's directory, too: checkpoints and results.")
@click.option(
    "--unused",
    is_flag=True,
    help="Instead: failed runs, old copies, environments, images, containers and caches that nothing needs.",
)
@click.option("--older", metavar="30d", help="With --unused: only what is older.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_where
def rm(
    name: str | None, files: bool, unused: bool, older: str | None, yes: bool, places: list[Path], backend: str | None
) -> None:
    """Remove a run, or what nothing needs."""
    from runner import cleaning

    if unused and name is not None:
        raise click.UsageError(f"--unused takes no run. Remove {name} with: runner rm {name} --files")
    if older and not unused:
        raise click.UsageError("--older goes with --unused: runner rm --unused --older 30d")
    if unused:
        cleaning.remove_unused(places, backend, older, yes)
    else:
        cleaning.remove_run(_chosen(name, places, backend, yes, "Remove"), files)


@cli.command(cls=_JobCommand)
@_what
@click.option("--kills", type=_Count(min=1), default=3, show_default=True, help="How many SIGKILLs, at random moments.")
@click.option("--seed", type=int, help="For the same moments again.")
@_json
def prove(kills: int, seed: int | None, as_json: bool, **options: Any) -> int:
    """Kill a training at random moments and show whether its weights come out bit for bit the same."""
    from runner import proof

    return proof.prove(_asked(options), kills, seed, as_json)


@cli.command()
@click.argument("name", metavar="[NAME]", required=False)
@_json
def envs(name: str | None, as_json: bool) -> None:
    """List the environments, or explain one."""
    from runner import listing

    listing.show_environments(name, as_json)


@cli.command()
@click.argument("names", metavar="[ENV...]", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All environments.")
@click.option(
    "--base-image",
    envvar="RUNNER_BASE_IMAGE",
    metavar="REF",
    help="What they are built on; {python} stands for the version [python:{python}-slim-bookworm].",
)
@click.option("--platform", metavar="OS/ARCH", help="For another machine [this engine's; with --push linux/amd64].")
@click.option("--push", metavar="REGISTRY", help="Send them there, such as registry.example.org/team.")
@_json
def build(
    names: tuple[str, ...],
    everything: bool,
    base_image: str | None,
    platform: str | None,
    push: str | None,
    as_json: bool,
) -> None:
    """Build the images of environments now; a run builds what it lacks by itself."""
    from runner import images

    if bool(names) == everything:
        raise click.UsageError("name the environments, such as tf2.15-cpu, or give --all.")
    images.build(names, everything=everything, template=base_image, platform=platform, push=push, as_json=as_json)


@cli.command()
@click.argument("version", metavar="X.Y.Z")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="What it runs on.")
@click.option("--python", metavar="3.N", help="The Python to lock for [what the wheels allow].")
def lock(version: str, device: str, python: str | None) -> None:
    """Make an environment of your own for any other TensorFlow version, in ./environments.yaml and ./locks/."""
    from runner import environments

    row = environments.make_row(version, device, python)
    click.echo(
        f"{row.name} is in {Path('environments.yaml').absolute()}, its packages in {row.lock}. Use it here with: -E {row.name}"
    )


def _asked(options: dict[str, Any]) -> Asked:
    """Return what was asked. What a profile gives is a default, and not asked.

    So its environment is no part of the run's name, and what is for containers does not matter natively.
    """
    from click.core import ParameterSource

    from runner.plan import Asked

    source = click.get_current_context().get_parameter_source
    profile = {name for name in options if source(name) is ParameterSource.DEFAULT_MAP}
    if "environment" in profile:
        options = {**options, "environment": None, "preferred": options["environment"]}
    if options["backend"] == "native":
        options = {**options, **dict.fromkeys(profile & {"memory", "user"})}
    return Asked(**options)


def _chosen(name: str | None, places: list[Path], backend: str | None, yes: bool, verb: str) -> Found:
    """Return the run that was named; without a name the newest, after asking."""
    from runner import terminal

    found = _find(name, places, backend)
    if name is None and not yes:
        refusal = f"which run? The newest is {found.name}; give its name, or --yes."
        terminal.confirm(f"{verb} {found.name}, the newest?", refusal)
    return found
