"""`multislo plan`: how many instances of each tier a rate and an attainment take, and what to write into the manifest."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from multislo_api.cli import manifest_at
from multislo_api.duration import format_duration
from multislo_api.number import Number
from multislo_perf.profile import ProfileInvalid
from multislo_sim.experiments.asked import SHAPED_REQUESTS
from multislo_sim.experiments.show import told
from multislo_sim.plan import RATE_MAX, Wish, planned
from multislo_sim.trace_options import AskedTrace, trace_options
from multislo_sim.whatif.answer import fixed_report
from multislo_sim.whatif.case import Case, case_of, with_profile
from multislo_sim.whatif.search import Found
from multislo_sim.whatif.show import share, table_of_text, wide
from multislo_sim.whatif.traffic import shares_of
from multislo_sim.workloads.request import Request, WorkloadInvalid
from multislo_sim.workloads.shapes import SHAPES, shape_named, shaped_lengths
from multislo_sim.workloads.traces import TraceInvalid

FILE = click.Path(path_type=Path, dir_okay=False)
RATE = Number(min=0.01, max=RATE_MAX)
Report = Mapping[str, Any]


@click.command(
    "plan",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: multislo plan --manifest examples/llama-h200.yaml --rate 50 --attainment 0.99 --peak 120",
)
@click.option("-f", "--manifest", "path", type=FILE, required=True, help="The fleet: a MultiSLOServing manifest.")
@click.option("--profile", help="Latency profile (shipped name or path) instead of the manifest's.")
@click.option("--rate", type=RATE, required=True, help="Requests per second over all tiers, arriving at random.")
@click.option(
    "--peak",
    type=RATE,
    help="Highest rate: its GPUs become acceleratorsMax, the counts for --rate each tier's min.",
)
@click.option(
    "--attainment",
    type=Number(0.5, 1.0),
    help="Goal: share of each tier's requests in time. Default: the manifest's.",
)
@trace_options("its lengths (and tiers, if it names them) are used")
@click.option(
    "--workload",
    type=click.Choice(sorted(SHAPES)),
    help="Lengths of a built-in shape instead of a trace. Default: azure-like.",
)
@click.option("--shares", help="TIER=SHARE,...: shares of the tiers in requests that name none. Default: equal.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=1, show_default=True, help="Same seed, same answer.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def plan(
    path: Path,
    profile: str | None,
    rate: float,
    peak: float | None,
    attainment: float | None,
    trace: AskedTrace | None,
    workload: str | None,
    shares: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Find the cheapest instance counts by tier that serve a rate in time.

    Searches with the simulator: the production router and simulated engines, 100 s of warm-up and at least 80 s measured.

    Exit codes: 0 the manifest's limits suffice, 1 they do not or no fleet attains the goal, 2 wrong use.
    """
    manifest = with_profile(manifest_at(path), profile)
    if peak is not None and peak < rate:
        raise click.UsageError(f"--peak: {peak:g} must be at least --rate ({rate:g})")
    try:
        case = case_of(manifest.metadata.name, manifest)
        lengths, source = _lengths(trace, workload, case.tiers)
        goal = manifest.spec.scaling.attainment if attainment is None else attainment
        wish = Wish(lengths, None if shares is None else shares_of(shares), goal, seed)
        if shares is None and len(case.tiers) > 1 and any(request.tier is None for request in lengths):
            told("requests are drawn over all tiers equally (--shares sets the shares)")
        found = {"rate": planned(case, wish, rate, told)}
        if peak is not None:
            told(f"now at {peak:g} requests/s")
            found["peak"] = planned(case, wish, peak, told)
    except (WorkloadInvalid, TraceInvalid, ProfileInvalid) as error:
        raise click.UsageError(str(error)) from None
    problems = [line for of in found.values() for line in problems_of(case, of, goal)]
    report: dict[str, Any] = {
        "manifest": f"{manifest.metadata.namespace}/{manifest.metadata.name}",
        "profile": case.profile.name,
        "workload": source,
        "attainment": goal,
        "seed": seed,
        "rate_rps": rate,
        "peak_rps": peak,
        **{key: fixed_report(case, of) for key, of in found.items()},
        "snippet": snippet(case, found),
        "problems": problems,
        "attained": not problems,
    }
    if as_json:
        click.echo(json.dumps(report))
    else:
        _show(case, report)
    sys.exit(1 if problems else 0)


def _lengths(trace: AskedTrace | None, workload: str | None, tiers: Sequence[str]) -> tuple[Sequence[Request], str]:
    if trace is not None and workload is not None:
        raise click.UsageError("give either --trace FILE or --workload NAME, not both")
    if trace is not None:
        read = trace.read(lengths_only=True, tiers=tiers)
        for note in read.notes:
            told(note)
        return read.requests, trace.path.name
    name = workload or "azure-like"
    return shaped_lengths(shape_named(name), SHAPED_REQUESTS, 1), name


def problems_of(case: Case, found: Found, goal: float) -> list[str]:
    """Why the answer is no; empty where it is yes."""
    said = []
    for name, tally in found.played.tiers.items():
        if tally.beyond > (1.0 - goal) * tally.counted:
            reached = 1.0 - tally.beyond / tally.counted
            said.append(
                f"tier {name}: at most {reached:.4f} can be in time whatever the fleet: an idle instance would miss the SLO of the "
                "others; the counts are for those within reach"
            )
    if found.counts is None:
        worst = min(
            (name for name, tally in found.played.tiers.items() if tally.counted),
            key=lambda name: found.played.tiers[name].attainment or 0.0,
        )
        most = found.played.tiers[worst].attainment
        said.append(
            f"no fleet attains {goal:g}: tier {worst} came to {most:.4f} at best, with six times the instances of the fluid bound"
        )
    elif found.short:
        said.append(f"the manifest's limits are in the way: {found.short}")
    return said


def snippet(case: Case, found: Mapping[str, Found]) -> str | None:
    """What to write into the manifest's `spec`: minima for the rate, the budget for the peak. A tier's own `max` stays, or is raised where
    it is in the way."""
    spec = case.manifest.spec
    counts = [of.counts for of in found.values()]
    lines = ["tiers:"]
    most = 0
    for each in counts:
        if each is None:
            return None
        most = max(most, sum(each.values()))
    for tier in spec.tiers:
        least, needed = (each[tier.name] for each in (counts[0], counts[-1]) if each is not None)
        bounds = f"min: {least}"
        if "max" in tier.instances.model_fields_set:
            bounds += f", max: {max(tier.instances.max, least, needed)}"
        lines += [f"  - name: {tier.name}", f"    instances: {{{bounds}}}"]
    budget = (most + spec.scaling.warm_pool.min) * case.per_instance
    if "peak" in found or budget > spec.scaling.accelerators_max:
        lines += ["scaling:", f"  acceleratorsMax: {budget}"]
    return "\n".join(lines)


def _show(case: Case, report: Report) -> None:
    console = wide()
    for key, rate in (("rate", "rate_rps"), ("peak", "peak_rps")):
        if key in report:
            console.print(_line(case, report[key], report[rate], report["attainment"]), highlight=False)
            console.print(_table(case, report[key]))
    if report["snippet"]:
        click.echo(f"In the manifest's spec:\n\n{report['snippet']}\n")
    for problem in report["problems"]:
        Console(stderr=True).print(problem, style="red", highlight=False)


def _line(case: Case, of: Report, rate: float, goal: float) -> str:
    answer = "no fleet attains it"
    if of["instances"]:
        by_bound = of["instances_by_bound"] * case.per_instance
        share_of_bound = f"{of['share_of_bound']:.0%} of the fluid bound"
        answer = f"{of['accelerators']} GPUs (no policy could do with less than {by_bound:.1f}: {share_of_bound})"
    return f"{rate:g} requests/s, {goal:g} of each tier in time: {answer}"


def _table(case: Case, of: Report) -> Table:
    rows: list[list[object]] = []
    for name in case.tiers:
        ttft_s, tpot_s = case.slo(name)
        rows.append(
            [
                name,
                f"{format_duration(ttft_s)} / {format_duration(tpot_s)}",
                of["requests_counted"][name],
                share(of["attainment"][name]),
                of["instances"][name] if of["instances"] else None,
            ]
        )
    return table_of_text(None, ["tier", "TTFT / TPOT", "requests", "in time", "instances"], rows)
