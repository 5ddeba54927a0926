"""`multislo simulate`: the attainment of placements on a simulated fleet, and the experiments that compare them with others."""

import json
from collections.abc import Sequence

import click
from rich.console import Console

from multislo_api.number import Number
from multislo_router.build import build
from multislo_router.core.events import Scheduler
from multislo_sim.experiments import EXPERIMENTS
from multislo_sim.experiments.asked import INSTANCES_MIN, lengths_asked, workload_options
from multislo_sim.experiments.attainment import POLICIES, attainment_table, attainments
from multislo_sim.trace_options import AskedTrace
from multislo_sim.trial import Window
from multislo_sim.whatif.cli import ByManifest, what_if

SETTLING_S = 20.0
"""Load goes on for so long after the requests that count."""


@click.group(cls=ByManifest, invoke_without_command=True)
@workload_options
@click.option("--rate", "rates", type=Number(min=0.0, min_open=True), multiple=True)
@click.option("--instances", type=click.IntRange(min=INSTANCES_MIN), default=4, show_default=True)
@click.option("--policy", "policies", type=click.Choice(POLICIES), multiple=True, default=POLICIES)
@click.option("--scheduler", type=click.Choice([s.value for s in Scheduler]), default="fcfs", show_default=True)
@click.option("--batch-tokens", type=click.IntRange(min=16), help="Token budget of all instances. Default: by tier.")
@click.option("--duration", type=Number(min=1.0), default=100.0, show_default=True, help="Seconds.")
@click.option("--warmup", type=Number(min=0.0), default=30.0, show_default=True, help="Seconds not counted.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def simulate(
    context: click.Context,
    trace: AskedTrace | None,
    workload: str | None,
    prompt_tokens: tuple[int, int],
    output_tokens: tuple[int, int],
    profile_name: str,
    rates: Sequence[float],
    instances: int,
    policies: Sequence[str],
    scheduler: str,
    batch_tokens: int | None,
    duration: float,
    warmup: float,
    seeds: Sequence[int],
    as_json: bool,
) -> None:
    """Simulate router policies on a fleet of fixed size and print the share of requests in time.

    No rejection, PolyServe's SLO classes. With --manifest FILE, the command is `what-if` instead: see multislo simulate what-if --help.

    Example: multislo simulate --workload azure-like --rate 105 --instances 4 --policy Pack --policy round_robin
    """
    if context.invoked_subcommand is not None:
        return
    if not rates:
        names = ", ".join(str(command.name) for command in EXPERIMENTS)
        raise click.UsageError(f"--rate: give at least one, or an experiment: {names}")
    if warmup >= duration:
        raise click.UsageError(f"--warmup: {warmup:g} must be less than --duration ({duration:g})")
    profile, lengths = lengths_asked(profile_name, trace, workload, prompt_tokens, output_tokens)
    window = Window(warmup, duration - warmup, SETTLING_S)
    rows = attainments(profile, lengths, rates, policies, instances, Scheduler(scheduler), batch_tokens, window, seeds)
    if as_json:
        report = {"instances": instances, "scheduler": scheduler, "seeds": list(seeds), "rows": rows, "build": build()}
        click.echo(json.dumps(report))
        return
    Console().print(attainment_table(rows))


for command in (*EXPERIMENTS, what_if):
    simulate.add_command(command)
