"""`multislo simulate ablation`: the value of each part of multislo, by switching it off."""

from collections.abc import Mapping
from typing import Any

import click
from matplotlib.figure import Figure
from rich.table import Table

from multislo_sim.ablated import WHAT, ablated
from multislo_sim.experiments.asked import Asked, experiment
from multislo_sim.experiments.show import COLOURS, run_each, show, table_of
from multislo_sim.experiments.tune import KEYS
from multislo_sim.goodput import LEVELS, Arena, Goodput, bounds
from multislo_sim.goodput import goodput as goodput_of

FULL = "full"


@click.command()
@experiment(tuple(WHAT))
def ablation(asked: Asked) -> None:
    """Goodput of multislo (SLO-aware engines) with one of its parts switched off. --policies takes the parts' names.

    Example: multislo simulate ablation --trace mooncake.jsonl --policies 'full,no EDF'
    """
    arena = Arena(
        asked.profile, asked.lengths, asked.instances, asked.seeds, asked.window, 0.02 if asked.quick else 0.01
    )
    found = run_each(ablated_goodput, {name: (arena, name) for name in asked.policies}, asked.jobs)
    report = {**asked.facts(), **ablation_report(arena, found)}
    show(asked, report, [ablation_table(report)], lambda figure: ablation_figure(figure, report))


def ablated_goodput(arena: Arena, name: str) -> Goodput:
    return goodput_of(arena, ablated(name))


def ablation_report(arena: Arena, found: Mapping[str, Goodput]) -> dict[str, Any]:
    """`kept`: the part of the full goodput that is left; null where nothing is known of that."""
    ceilings = bounds(arena)
    full = found.get(FULL)
    parts = {}
    for name, goodput in found.items():
        rates = goodput.rates
        parts[name] = {
            "what": WHAT[name],
            **{f"{KEYS[level]}_rps": round(rates[level], 3) for level in LEVELS},
            "kept": {
                KEYS[level]: round(rates[level] / full.rates[level], 4) if full and full.rates[level] else None
                for level in LEVELS
            },
        }
    return {"bound_rps": {KEYS[level]: round(ceilings[level], 3) for level in LEVELS}, "parts": parts}


def ablation_table(report: Mapping[str, Any]) -> Table:
    rows = [
        (name, f"{of['p90_rps']:.1f}", f"{of['p99_rps']:.1f}", of["kept"]["p90"], of["kept"]["p99"], of["what"])
        for name, of in report["parts"].items()
    ]
    title = f"req/s in time, {report['instances']} instances, and the share of the full goodput"
    table = table_of(title, ("part", "90 %", "99 %", "kept", "kept", "what it means"), rows)
    table.columns[-1].justify = "left"
    return table


def ablation_figure(figure: Figure, report: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    names = list(report["parts"])
    for place, key in enumerate(("p90", "p99")):
        rates = [report["parts"][name][f"{key}_rps"] for name in names]
        at = [index + 0.38 * (place - 0.5) for index in range(len(names))]
        bars = axes.barh(at, rates, 0.38, color=COLOURS[place], label=f"{key[1:]} % in time")
        axes.bar_label(bars, [f"{rate:.3g}" for rate in rates], fontsize=7, padding=2)
        axes.axvline(report["bound_rps"][key], color=COLOURS[place], linestyle=":", label=f"fluid bound, {key[1:]} %")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.08 * max(report["bound_rps"].values()))
    axes.set_xlabel("requests a second")
    axes.set_title(f"multislo with one part switched off, {report['instances']} instances")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, fontsize=8)
