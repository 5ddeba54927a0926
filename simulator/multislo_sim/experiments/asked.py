"""The options of all experiments, and their values. An experiment's command is a function of an `Asked` under `@experiment`."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from multislo_perf.profile import Profile, ProfileInvalid, load_profile
from multislo_sim.token_range import TokenRange
from multislo_sim.trace_options import AskedTrace, trace_options
from multislo_sim.trial import Window
from multislo_sim.workloads.request import Request, WorkloadInvalid
from multislo_sim.workloads.shapes import SHAPES, shape_named, shaped_lengths, uniform_lengths
from multislo_sim.workloads.traces import TraceInvalid

SHAPED_REQUESTS = 20_000
UNIFORM = "uniform"
OF_UNIFORM = f"Range for --workload {UNIFORM}."
INSTANCES_MIN = 4
"""One for each of the four SLO classes."""
Command = TypeVar("Command", bound=Callable[..., Any])

QUICK = Window(20.0, 20.0, 5.0)


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of one experiment."""

    profile: Profile
    lengths: tuple[Request, ...]
    workload: str
    """The trace's file name or the shape's name."""
    policies: tuple[str, ...]
    policies_given: bool
    """By `--policies`; else they are the experiment's usual ones."""
    instances: int
    seeds: tuple[int, ...]
    quick: bool
    jobs: int
    as_json: bool
    png: Path | None

    @property
    def window(self) -> Window:
        return QUICK if self.quick else Window()

    def facts(self) -> dict[str, Any]:
        """The settings that a report contains."""
        return {
            "workload": self.workload,
            "instances": self.instances,
            "profile": self.profile.name,
            "seeds": list(self.seeds),
            "warmup_s": self.window.warmup_s,
            "measured_s": self.window.measured_s,
            "quick": self.quick,
        }


def workload_options(command: Command) -> Command:
    """`--trace` (with its part), `--workload` (with its ranges) and `--profile`: for `lengths_asked`."""
    for option in (
        click.option("--output-tokens", type=TokenRange(), default="50-400", show_default=True, help=OF_UNIFORM),
        click.option("--prompt-tokens", type=TokenRange(), default="100-2000", show_default=True, help=OF_UNIFORM),
        click.option("--profile", "profile_name", default="llama-3.1-8b-h200-tp1", show_default=True),
        click.option(
            "--workload", type=click.Choice([*sorted(SHAPES), UNIFORM]), help="A built-in shape instead of a trace."
        ),
        trace_options("its lengths are used", "--trace-duration"),
    ):
        command = option(command)
    return command


def lengths_asked(
    profile_name: str,
    trace: AskedTrace | None,
    workload: str | None,
    prompt_tokens: tuple[int, int],
    output_tokens: tuple[int, int],
) -> tuple[Profile, list[Request]]:
    if (trace is None) == (workload is None):
        raise click.UsageError("give either --trace or --workload")
    try:
        profile = load_profile(profile_name)
        if trace is not None:
            read = trace.read(lengths_only=True)
            for note in read.notes:
                click.echo(note, err=True)
            return profile, read.requests
        if workload == UNIFORM:
            return profile, uniform_lengths(SHAPED_REQUESTS, prompt_tokens, output_tokens, 1)
        return profile, shaped_lengths(shape_named(workload or ""), SHAPED_REQUESTS, 1)
    except (ProfileInvalid, TraceInvalid, WorkloadInvalid) as error:
        raise click.UsageError(str(error)) from error


def experiment(
    known: Sequence[str], policies: Sequence[str] | None = None, instances: int | None = 20
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options that all experiments have and calls it with an `Asked` and whatever options it adds itself.

    `known` are the names that `--policies` takes, `policies` those that are run where it is not given (None: all). `instances` is the
    usual size of the fleet (None: the experiment has no `--instances`).
    """
    usual = tuple(known if policies is None else policies)
    said = "all" if policies is None else ",".join(usual)

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def asked(**given: Any) -> None:
            trace, workload = given.pop("trace"), given.pop("workload")
            ranges = given.pop("prompt_tokens"), given.pop("output_tokens")
            profile, lengths = lengths_asked(given.pop("profile_name"), trace, workload, *ranges)
            policies = given.pop("policies")
            command(
                Asked(
                    profile,
                    tuple(lengths),
                    trace.path.name if trace is not None else workload,
                    _named(policies, known, usual),
                    policies is not None,
                    given.pop("instances", 0),
                    tuple(range(1, given.pop("seeds") + 1)),
                    given.pop("quick"),
                    given.pop("jobs"),
                    given.pop("as_json"),
                    given.pop("png"),
                ),
                **given,
            )

        options = (
            click.option(
                "--png", type=click.Path(path_type=Path, dir_okay=False), help="Also write a plot to this file."
            ),
            click.option("--json", "as_json", is_flag=True),
            click.option(
                "--jobs",
                type=click.IntRange(min=1),
                default=os.cpu_count,
                help="Parallel processes. Default: one per CPU.",
            ),
            click.option(
                "--quick",
                is_flag=True,
                help="Coarser: short windows (which flatter) and fewer points; the report says which.",
            ),
            click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Number of seeds."),
            click.option("--policies", help=f"Names, separated by commas; default: {said}."),
        )
        if instances is not None:
            size = click.IntRange(min=INSTANCES_MIN)
            asked = click.option("--instances", type=size, default=instances, show_default=True)(asked)
        for option in options:
            asked = option(asked)
        return workload_options(asked)

    return wrap


def _named(given: str | None, known: Sequence[str], usual: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(given.split(",")) if given else usual
    for name in names:
        if name not in known:
            raise click.UsageError(f"--policies: {name!r} is none of {', '.join(known)}")
    return names
