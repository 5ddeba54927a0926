"""`multislo simulate goodput`: goodput of every contender, and the fluid bound."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from matplotlib.figure import Figure
from rich.table import Table

from multislo_sim.contenders import CONTENDERS, Knob, contender_named
from multislo_sim.experiments.asked import Asked, experiment
from multislo_sim.experiments.show import COLOURS, run_each, show, table_of
from multislo_sim.experiments.tune import KEYS, knobs_from
from multislo_sim.goodput import LATEST, LEVELS, Arena, Goodput, bounded_rate, bounds
from multislo_sim.goodput import goodput as goodput_of
from multislo_sim.trial import Window, classed

OURS = {"": "multislo", "half_": "multislo_half", "stock_": "multislo_stock"}
"""By the prefix of their keys in the report."""
QUICK_STEP = 0.02
QUICK_WINDOW = Window(30.0, 20.0, 5.0)
"""With less warm-up the cliff of capacity is not seen at all: all that plan ahead come to the bound."""
HOPELESS = ("random", "least_requests", "power_of_two", "multislo_half")
"""Left out where it has to be quick: the first three were never the best of the naive, the last is no end of the scale."""
COSTLY = ("polyserve", "multislo", "multislo_stock", "multislo_half", "qoserve", "static_partition", "llm_d_headroom")
"""Begun first, so that no process has the longest search to itself at the end."""
OWN = tuple(contender.name for contender in CONTENDERS if contender.group.startswith("ours"))
AGAINST = {
    "best_naive": ("naive",),
    "vllm_default": ("default",),
    "polyserve": ("polyserve",),
    "best_rival": ("rival", "polyserve"),
}
"""What the ratios are to: the best of these groups."""


@click.command()
@experiment([contender.name for contender in CONTENDERS])
@click.option("--rejecting", is_flag=True, help="Allow refusing requests that would be late; they count as missed.")
@click.option(
    "--tuned",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Output of `tune --json` on the same trace: gives the rivals their best knobs at each level.",
)
def goodput(asked: Asked, rejecting: bool, tuned: Path | None) -> None:
    """Find the rate with 90 % and 99 % of the requests in time, by policy, beside the fluid bound; and the rate with 99 % in time and no
    first token later than 3 times its TTFT. Co-located instances, PolyServe's SLO classes, 100 s of warm-up and 80 s measured.

    Example: multislo simulate goodput --trace azure.csv --quick
    """
    window, step = (QUICK_WINDOW, QUICK_STEP) if asked.quick else (asked.window, 0.01)
    arena = Arena(asked.profile, asked.lengths, asked.instances, asked.seeds, window, step, rejecting)
    left_out = () if asked.policies_given or not asked.quick else HOPELESS
    policies = sorted((name for name in asked.policies if name not in left_out), key=COSTLY.count, reverse=True)
    knobs = knobs_from(tuned) if tuned is not None else {}
    parts = {name: (arena, name, knobs.get(name, {}) if name not in OWN else {}) for name in policies}
    found = run_each(goodput_by_level, parts, asked.jobs)
    found = {name: found[name] for name in asked.policies if name in found}
    report = {**asked.facts(), "policies_left_out": list(left_out), **goodput_report(arena, found)}
    report["knobs"] = {name: parts[name][2] or dict(contender_named(name).chosen) for name in found}
    show(asked, report, goodput_tables(report), lambda figure: goodput_figure(figure, report))


def goodput_by_level(arena: Arena, policy: str, knobs: Mapping[str, Mapping[str, Knob]]) -> Goodput:
    """With knobs of its own for each level, where there are any."""
    if not knobs or knobs["p90"] == knobs["p99"]:
        found = goodput_of(arena, policy, knobs.get("p99"))
    else:
        each = [goodput_of(arena, policy, knobs[KEYS[level]], (level,)) for level in LEVELS]
        rates = {level: one.rates[level] for level, one in zip(LEVELS, each, strict=True)}
        found = Goodput(policy, rates, {rate: share for one in each for rate, share in one.tried.items()})
    return replace(found, bounded=bounded_rate(arena, policy, knobs.get("p99"), found.rates[max(LEVELS)]))


def goodput_report(arena: Arena, found: Mapping[str, Goodput]) -> dict[str, Any]:
    """The machine-readable answer. A ratio to nothing (a rival that attains 0, or was not run) is null."""
    ceilings = bounds(arena)
    kept, left_out = classed(arena.lengths, arena.profile, arena.seeds[0])
    report: dict[str, Any] = {
        "instances": arena.instances,
        "warmup_s": arena.window.warmup_s,
        "measured_s": arena.window.measured_s,
        "step": arena.step,
        "rejecting": arena.rejecting,
        "requests": len(kept),
        "requests_left_out": left_out,
        "bound_rps": {KEYS[level]: round(ceilings[level], 3) for level in LEVELS},
        "policies": {
            name: {f"{KEYS[level]}_rps": round(of.rates[level], 3) for level in LEVELS}
            | ({} if of.bounded is None else {"p99_bounded": round(of.bounded, 3)})
            for name, of in found.items()
        },
    }
    for key, ours in OURS.items():
        if ours in found:
            report[f"{key}ratio"] = {KEYS[level]: _ratios(found, found[ours].rates[level], level) for level in LEVELS}
            report[f"{key}share_of_bound"] = {
                KEYS[level]: round(found[ours].rates[level] / ceilings[level], 4) for level in LEVELS
            }
    return report


def _ratios(found: Mapping[str, Goodput], ours: float, level: float) -> dict[str, float | None]:
    def best(groups: Sequence[str]) -> float | None:
        rates = [found[c.name].rates[level] for c in CONTENDERS if c.group in groups and c.name in found]
        return round(ours / max(rates), 4) if rates and max(rates) > 0.0 else None

    return {name: best(groups) for name, groups in AGAINST.items()}


def goodput_tables(report: Mapping[str, Any]) -> list[Table]:
    bound = report["bound_rps"]
    rows = [
        (name, *(f"{rates[f'{key}_rps']:.1f}" for key in bound), *(rates[f"{key}_rps"] / bound[key] for key in bound))
        for name, rates in report["policies"].items()
    ]
    rows.append(("fluid bound", *(f"{bound[key]:.1f}" for key in bound), 1.0, 1.0))
    title = f"req/s in time, {report['instances']} instances" + (", with rejection" if report["rejecting"] else "")
    tables = [table_of(title, ("policy", "90 %", "99 %", "of bound", ""), rows)]
    tails = [
        (name, f"{rates['p99_bounded']:.1f}") for name, rates in report["policies"].items() if "p99_bounded" in rates
    ]
    if tails:
        tables.append(
            table_of(f"req/s, 99 % in time and nobody later than {LATEST:g} TTFTs", ("policy", "req/s"), tails)
        )
    for key, title in (("", "SLO-aware engines"), ("half_", "half of the engines stock"), ("stock_", "stock engines")):
        if f"{key}ratio" in report:
            ratios = report[f"{key}ratio"]
            against = [(name, ratios["p90"][name], ratios["p99"][name]) for name in ratios["p90"]]
            tables.append(table_of(f"multislo, {title}", ("against", "90 %", "99 %"), against))
    return tables


def goodput_figure(figure: Figure, report: Mapping[str, Any]) -> None:
    """A pair of bars a policy, the bound as lines."""
    axes = figure.subplots()
    names = list(report["policies"])
    for place, (key, label) in enumerate((("p90", "90 % in time"), ("p99", "99 % in time"))):
        rates = [report["policies"][name][f"{key}_rps"] for name in names]
        positions = [index + 0.4 * (place - 0.5) for index in range(len(names))]
        bars = axes.bar(positions, rates, 0.4, label=label, color=COLOURS[place])
        axes.bar_label(bars, [f"{rate:.3g}" for rate in rates], fontsize=7)
        axes.axhline(report["bound_rps"][key], color=COLOURS[place], linestyle=":", label=f"fluid bound, {label[:4]}")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_ylabel("requests a second")
    axes.set_ylim(0.0, 1.25 * max(report["bound_rps"].values()))
    axes.set_title(f"Goodput on {report['instances']} instances" + (", with rejection" if report["rejecting"] else ""))
    axes.legend(ncols=2, loc="upper center", fontsize=8)
