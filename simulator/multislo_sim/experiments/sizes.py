"""`multislo simulate sizes`: goodput of fleets of several sizes as a share of their bound."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click
from matplotlib.figure import Figure
from rich.table import Table

from multislo_sim.contenders import CONTENDERS
from multislo_sim.experiments.asked import INSTANCES_MIN, Asked, experiment
from multislo_sim.experiments.show import COLOURS, run_each, show, table_of
from multislo_sim.experiments.tune import KEYS
from multislo_sim.goodput import Arena, Goodput, bounds
from multislo_sim.goodput import goodput as goodput_of

POLICIES = ("multislo", "multislo_stock", "least_predicted_time", "qoserve", "polyserve")
SIZES = "8,16,20,32,64"
SIZES_QUICK = "8,20"


@click.command()
@experiment([contender.name for contender in CONTENDERS], POLICIES, instances=None)
@click.option("--sizes", help=f"Sizes of the fleets in instances. Default: {SIZES}, with --quick {SIZES_QUICK}.")
@click.option("--level", type=click.Choice(["90", "99"]), default="90", show_default=True, help="% in time.")
def sizes(asked: Asked, sizes: str | None, level: str) -> None:
    """Find goodput as a share of the fluid bound, by the number of instances.

    Example: multislo simulate sizes --trace azure.csv --policies multislo,least_predicted_time
    """
    counts = _counts(sizes or (SIZES_QUICK if asked.quick else SIZES))
    at = int(level) / 100.0
    arena = Arena(asked.profile, asked.lengths, 0, asked.seeds, asked.window, 0.02 if asked.quick else 0.01)
    parts = {
        f"{policy}, {count} instances": (replace(arena, instances=count), policy, None, (at,))
        for count in sorted(counts, reverse=True)  # the longest runs first
        for policy in asked.policies
    }
    found = run_each(goodput_of, parts, asked.jobs)
    report = {**asked.facts(), "level": KEYS[at], **sizes_report(arena, asked.policies, counts, at, found)}
    del report["instances"]
    show(asked, report, [sizes_table(report)], lambda figure: sizes_figure(figure, report))


def _counts(given: str) -> list[int]:
    try:
        counts = [int(count) for count in given.split(",")]
    except ValueError as error:
        raise click.UsageError(f"--sizes: {given!r} must be whole numbers, separated by commas") from error
    for count in counts:
        if count < INSTANCES_MIN:
            raise click.UsageError(f"--sizes: {count} must be at least {INSTANCES_MIN}")
    return counts


def sizes_report(
    arena: Arena, policies: Sequence[str], counts: Sequence[int], level: float, found: Mapping[str, Goodput]
) -> dict[str, Any]:
    bound_rps = {count: bounds(replace(arena, instances=count))[level] for count in counts}
    return {
        "bound_rps": {str(count): round(bound_rps[count], 3) for count in counts},
        "policies": {
            policy: {
                str(count): {
                    "rps": round(rate := found[f"{policy}, {count} instances"].rates[level], 3),
                    "share_of_bound": round(rate / bound_rps[count], 4),
                }
                for count in counts
            }
            for policy in policies
        },
    }


def sizes_table(report: Mapping[str, Any]) -> Table:
    counts = list(report["bound_rps"])
    rows = [
        (policy, *(f"{of[count]['rps']:.0f} ({of[count]['share_of_bound']:.3f})" for count in counts))
        for policy, of in report["policies"].items()
    ]
    rows.append(("fluid bound", *(f"{report['bound_rps'][count]:.0f}" for count in counts)))
    title = f"req/s with {report['level'][1:]} % in time (share of the bound), by instances"
    return table_of(title, ("policy", *counts), rows)


def sizes_figure(figure: Figure, report: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    counts = [int(count) for count in report["bound_rps"]]
    for index, (policy, of) in enumerate(report["policies"].items()):
        shares = [of[str(count)]["share_of_bound"] for count in counts]
        axes.plot(counts, shares, marker="o", label=policy, color=COLOURS[index % len(COLOURS)])
    axes.axhline(1.0, color="black", linestyle=":", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("instances")
    axes.set_ylabel("share of the fluid bound")
    axes.set_title(f"Goodput, {report['level'][1:]} % in time, by the size of the fleet")
    axes.legend()
