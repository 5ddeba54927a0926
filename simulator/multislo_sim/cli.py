"""`multislo simulate`: what a placement attains on a simulated fleet."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import click
from rich.console import Console
from rich.table import Table

from multislo_perf.profile import ProfileInvalid, load_profile
from multislo_router.core.events import Scheduler
from multislo_sim.trial import POLICIES, Trial, play
from multislo_sim.workloads.request import Request
from multislo_sim.workloads.shapes import SHAPES, shape_named, shaped_lengths
from multislo_sim.workloads.traces import TraceInvalid, read_trace

SHAPED_REQUESTS = 20_000
INSTANCES_MIN = 4
"""One for each of the four SLO classes."""


@click.command()
@click.option("--trace", type=click.Path(path_type=Path), help="Azure CSV or Mooncake JSONL; its lengths are used.")
@click.option("--workload", type=click.Choice(sorted(SHAPES)), help="A built-in shape instead of a trace.")
@click.option("--rate", "rates", type=click.FloatRange(min=0.0, min_open=True), multiple=True, required=True)
@click.option("--instances", type=click.IntRange(min=INSTANCES_MIN), default=4, show_default=True)
@click.option("--policy", "policies", type=click.Choice(POLICIES), multiple=True, default=POLICIES)
@click.option("--profile", "profile_name", default="llama-3.1-8b-h200-tp1", show_default=True)
@click.option("--scheduler", type=click.Choice([s.value for s in Scheduler]), default="fcfs", show_default=True)
@click.option("--batch-tokens", type=click.IntRange(min=16), help="One token budget for all; default: by tier.")
@click.option("--duration", type=click.FloatRange(min=1.0), default=100.0, show_default=True, help="Seconds.")
@click.option("--warmup", type=click.FloatRange(min=0.0), default=30.0, show_default=True, help="Seconds not counted.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--json", "as_json", is_flag=True)
def simulate(
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
    if (trace is None) == (workload is None):
        raise click.UsageError("give either --trace or --workload")
    if warmup >= duration:
        raise click.UsageError(f"--warmup: {warmup:g} must be less than --duration ({duration:g})")
    try:
        profile = load_profile(profile_name)
        lengths: list[Request] = (
            read_trace(trace) if trace else shaped_lengths(shape_named(workload or ""), SHAPED_REQUESTS, 1)
        )
    except (ProfileInvalid, TraceInvalid) as error:
        raise click.UsageError(str(error)) from error
    console = Console(stderr=True)
    rows = []
    for rate in rates:
        for policy in policies:
            runs = []
            for seed in seeds:
                console.print(f"{policy}, {rate:g} req/s, seed {seed}", style="dim")
                trial = Trial(
                    policy, profile, instances, rate, duration, warmup, seed, Scheduler(scheduler), batch_tokens
                )
                runs.append(play(trial, lengths)[0])
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
