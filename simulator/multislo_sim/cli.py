"""`multislo simulate`: what a placement attains on a simulated fleet, and the experiments that compare it with others."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import click
from rich.console import Console
from rich.table import Table

from multislo_perf.profile import Profile, ProfileInvalid, load_profile
from multislo_router.core.config import Placement
from multislo_router.core.events import Scheduler
from multislo_sim.contenders import CONTENDERS, Setup, budgets
from multislo_sim.goodput import Arena
from multislo_sim.report import goodput_report, goodput_tables, run_all
from multislo_sim.rivals import RIVALS
from multislo_sim.trial import Window, arriving, classed, fleet_of, homes_of, play
from multislo_sim.workloads.request import Request
from multislo_sim.workloads.shapes import SHAPES, shape_named, shaped_lengths
from multislo_sim.workloads.traces import TraceInvalid, read_trace

SHAPED_REQUESTS = 20_000
INSTANCES_MIN = 4
"""One for each of the four SLO classes."""
POLICIES = (*(placement.value for placement in Placement), *RIVALS)
QUICK = Window(20.0, 20.0, 5.0)
SETTLING_S = 20.0
"""Load goes on for so long after the requests that count."""


@click.group(invoke_without_command=True)
@click.option("--trace", type=click.Path(path_type=Path), help="Azure CSV or Mooncake JSONL; its lengths are used.")
@click.option("--workload", type=click.Choice(sorted(SHAPES)), help="A built-in shape instead of a trace.")
@click.option("--rate", "rates", type=click.FloatRange(min=0.0, min_open=True), multiple=True)
@click.option("--instances", type=click.IntRange(min=INSTANCES_MIN), default=4, show_default=True)
@click.option("--policy", "policies", type=click.Choice(POLICIES), multiple=True, default=POLICIES)
@click.option("--profile", "profile_name", default="llama-3.1-8b-h200-tp1", show_default=True)
@click.option("--scheduler", type=click.Choice([s.value for s in Scheduler]), default="fcfs", show_default=True)
@click.option("--batch-tokens", type=click.IntRange(min=16), help="One token budget for all; default: by tier.")
@click.option("--duration", type=click.FloatRange(min=1.0), default=100.0, show_default=True, help="Seconds.")
@click.option("--warmup", type=click.FloatRange(min=0.0), default=30.0, show_default=True, help="Seconds not counted.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def simulate(
    context: click.Context,
    trace: Path | None,
    workload: str | None,
    rates: Sequence[float],
    instances: int,
    policies: Sequence[str],
    profile_name: str,
    scheduler: str,
    batch_tokens: int | None,
    duration: float,
    warmup: float,
    seeds: Sequence[int],
    as_json: bool,
) -> None:
    """The share of requests in time, by router policy, on a simulated fleet of fixed size (no rejection, PolyServe's SLO classes).

    Example: multislo simulate --workload azure-like --rate 105 --instances 4 --policy Pack --policy round_robin
    """
    if context.invoked_subcommand is not None:
        return
    if not rates:
        raise click.UsageError("--rate: give at least one, or an experiment: goodput")
    if warmup >= duration:
        raise click.UsageError(f"--warmup: {warmup:g} must be less than --duration ({duration:g})")
    profile, lengths = _asked(profile_name, trace, workload)
    console = Console(stderr=True)
    window = Window(warmup, duration - warmup, SETTLING_S)
    rows = []
    for rate in rates:
        for policy in policies:
            runs = []
            for seed in seeds:
                console.print(f"{policy}, {rate:g} req/s, seed {seed}", style="dim")
                setup = Setup(
                    budgets(profile, batch_tokens or "by tier"),
                    RIVALS[policy]() if policy in RIVALS else None,
                    scheduler=Scheduler(scheduler),
                    placement=Placement.PACK if policy in RIVALS else Placement(policy),
                )
                requests = arriving(classed(lengths, profile, seed)[0], rate, window.total_s, seed)
                played = play(fleet_of(setup, profile, homes_of(instances), requests), window)
                runs.append(played.attained)
            tiers = {name: mean(run[name] for run in runs if name in run) for name in runs[0]}
            rows.append({"rate": rate, "policy": policy, "attainment": tiers})
    if as_json:
        click.echo(json.dumps({"instances": instances, "scheduler": scheduler, "seeds": list(seeds), "rows": rows}))
        return
    _show(rows)


def _show(rows: Sequence[dict[str, object]]) -> None:
    table = Table("req/s", "policy", "all", "20ms", "30ms", "50ms", "100ms", title="share of requests in time")
    for row in rows:
        attained = row["attainment"]
        assert isinstance(attained, dict)
        cells = [
            f"{attained[name]:.3f}" if name in attained else "-" for name in ("all", "20ms", "30ms", "50ms", "100ms")
        ]
        table.add_row(f"{row['rate']:g}", str(row["policy"]), *cells)
    Console().print(table)


def _asked(profile_name: str, trace: Path | None, workload: str | None) -> tuple[Profile, list[Request]]:
    if (trace is None) == (workload is None):
        raise click.UsageError("give either --trace or --workload")
    try:
        profile = load_profile(profile_name)
        if trace is not None:
            return profile, read_trace(trace)
        return profile, shaped_lengths(shape_named(workload or ""), SHAPED_REQUESTS, 1)
    except (ProfileInvalid, TraceInvalid) as error:
        raise click.UsageError(str(error)) from error


@simulate.command()
@click.option("--trace", type=click.Path(path_type=Path), help="Azure CSV or Mooncake JSONL; its lengths are used.")
@click.option("--workload", type=click.Choice(sorted(SHAPES)), help="A built-in shape instead of a trace.")
@click.option("--policies", help="Names, separated by commas; default: all.")
@click.option("--instances", type=click.IntRange(min=INSTANCES_MIN), default=20, show_default=True)
@click.option("--profile", "profile_name", default="llama-3.1-8b-h200-tp1", show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="How many.")
@click.option(
    "--quick",
    is_flag=True,
    help="Coarser: 20 s of warm-up and 20 s measured, rates 4 % apart; so short a window flatters.",
)
@click.option("--jobs", type=click.IntRange(min=1), default=os.cpu_count, help="Processes; default: one for each CPU.")
@click.option("--json", "as_json", is_flag=True)
def goodput(
    trace: Path | None,
    workload: str | None,
    policies: str | None,
    instances: int,
    profile_name: str,
    seeds: int,
    quick: bool,
    jobs: int,
    as_json: bool,
) -> None:
    """The rate at which 90 % and 99 % of requests meet every deadline, by policy: 20 instances, co-located, PolyServe's SLO classes,
    no rejection, 100 s of warm-up and 80 s measured; against the fluid bound.

    Example: multislo simulate goodput --trace azure.csv --quick
    """
    known = [contender.name for contender in CONTENDERS]
    names = policies.split(",") if policies else known
    for name in names:
        if name not in known:
            raise click.UsageError(f"--policies: {name!r} is none of {', '.join(known)}")
    profile, lengths = _asked(profile_name, trace, workload)
    window, step = (QUICK, 0.04) if quick else (Window(), 0.01)
    arena = Arena(profile, tuple(lengths), instances, tuple(range(1, seeds + 1)), window, step)
    console = Console(stderr=True)
    found = run_all(arena, names, jobs, lambda name, took_s: console.print(f"{name}: {took_s:.0f} s", style="dim"))
    report = goodput_report(arena, found)
    if as_json:
        click.echo(json.dumps(report))
        return
    for table in goodput_tables(report):
        Console().print(table)
