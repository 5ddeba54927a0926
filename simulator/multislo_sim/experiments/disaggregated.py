"""`multislo simulate disaggregated`: goodput with prefill and decode on separate instances."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click
from rich.table import Table

from multislo_sim.bound import stage_bounds
from multislo_sim.contenders import Knob
from multislo_sim.disaggregated import KV_BYTES_PER_S, KV_BYTES_PER_TOKEN, KV_TRANSFER_S, attainable, play_stages
from multislo_sim.disaggregated_contenders import MORE_PREFILL, POLICIES, policy_named
from multislo_sim.experiments.asked import Asked, experiment
from multislo_sim.experiments.goodput import goodput_figure, goodput_tables
from multislo_sim.experiments.show import run_each, show, table_of
from multislo_sim.experiments.tune import KEYS
from multislo_sim.goodput import LEVELS, SCOUT, SCOUT_STEP, Arena, Goodput, searched
from multislo_sim.trial import arriving, classed
from multislo_sim.workloads.request import Request

AGAINST = {"best_naive": ("naive",), "polyserve": ("polyserve",), "best_rival": ("rival", "polyserve")}
SCOUT_NEAR = 0.04
"""A split is measured in full if with a short window and one seed it came within this share of its policy's best."""
Split = tuple[Knob, ...]
"""A policy's name, how many more instances prefill than in the fluid bound's split, and whose homes the others are."""
INSTANCES_MIN = 5
"""One that prefills, and one of each SLO class that decodes."""


@click.command()
@experiment([policy.name for policy in POLICIES])
@click.option(
    "--every-split",
    is_flag=True,
    help="Use each policy's best number of prefill instances (of three) and best homes on this trace.",
)
def disaggregated(asked: Asked, every_split: bool) -> None:
    """Find the rate with 90 % and 99 % of the requests in time if some instances prefill and others decode, by policy, beside the fluid
    bound. PolyServe's SLO classes, no rejection, 100 s of warm-up and 80 s measured.

    Example: multislo simulate disaggregated --trace azure.csv --quick
    """
    if asked.instances < INSTANCES_MIN:
        raise click.UsageError(f"--instances: {asked.instances} must be at least {INSTANCES_MIN}")
    arena = Arena(asked.profile, asked.lengths, asked.instances, asked.seeds)
    if asked.quick:
        arena = replace(arena, window=SCOUT, step=SCOUT_STEP)
    parts: dict[Split, tuple[Any, ...]] = {}
    for name in asked.policies:
        usual = {"more_prefill": policy_named(name).chosen.get("more_prefill", 0)}
        for knobs in splits(name) if every_split else [usual]:
            parts[name, *knobs.values()] = (arena, name, knobs)
    scout = arena if asked.quick else replace(arena, window=SCOUT, seeds=arena.seeds[:1], step=SCOUT_STEP)
    scouted = run_each(stages_goodput, {split: (scout, *part[1:]) for split, part in parts.items()}, asked.jobs)
    found = scouted
    if not asked.quick:
        likely = [split for name in asked.policies for split in likely_splits(scouted, name)]
        found = run_each(stages_goodput, {split: (*parts[split], scouted[split].rates) for split in likely}, asked.jobs)
    report = {**asked.facts(), **disaggregated_report(arena, asked.policies, found)}
    show(asked, report, disaggregated_tables(report), lambda figure: goodput_figure(figure, report))


def splits(name: str) -> list[dict[str, Knob]]:
    """The ways in which a policy's instances may be shared out: how many prefill and, where it keeps tiers apart, whose the others are."""
    homes = policy_named(name).knobs.get("homes")
    if homes is None:
        return [{"more_prefill": more} for more in MORE_PREFILL]
    return [{"more_prefill": more, "homes": home} for more in MORE_PREFILL for home in homes]


def likely_splits(scouted: Mapping[Split, Goodput], name: str) -> list[Split]:
    """A policy's splits that came near its best at some level where the windows were short: these are worth long ones."""
    own = {split: of.rates for split, of in scouted.items() if split[0] == name}
    best = {level: max(rates[level] for rates in own.values()) for level in LEVELS}
    return [
        split
        for split, rates in own.items()
        if any(rates[level] >= (1.0 - SCOUT_NEAR) * best[level] for level in LEVELS)
    ]


def served(arena: Arena, seed: int) -> list[Request]:
    """The requests of a seed that a pair of idle instances can serve in time."""
    return attainable(classed(arena.lengths, arena.profile, seed)[0], arena.profile.latency)


def split_bounds(arena: Arena) -> dict[float, list[float]]:
    """The fluid bound at each of `LEVELS` with 1, 2, ... instances that prefill."""
    requests = served(arena, arena.seeds[0])
    law, kv_tokens_max = arena.profile.latency, arena.profile.kv_tokens_max
    return {
        level: stage_bounds(requests, law, kv_tokens_max, KV_TRANSFER_S, arena.instances, level) for level in LEVELS
    }


def prefill_fluid(bounds: Mapping[float, Sequence[float]]) -> int:
    """How many instances prefill where the bound is highest."""
    rates = bounds[LEVELS[0]]
    return rates.index(max(rates)) + 1


def stages_goodput(
    arena: Arena, policy: str, knobs: Mapping[str, Knob], starts: Mapping[float, float] | None = None
) -> Goodput:
    """`starts` are rates near which each level's goodput is believed to be."""
    bounds = split_bounds(arena)
    contender = policy_named(policy)
    prepared = {seed: served(arena, seed) for seed in arena.seeds}
    fluid = prefill_fluid(bounds)
    prefill = contender.stages(arena.profile, arena.seeds[0], arena.instances, fluid, knobs).prefill_instances

    def share(seed: int, rate: float, least: float) -> float:
        stages = contender.stages(arena.profile, seed, arena.instances, fluid, knobs)
        load = arriving(prepared[seed], rate, arena.window.total_s, seed)
        return play_stages(stages, arena.profile, load, arena.window, least).share

    return searched(arena, policy, {level: bounds[level][prefill - 1] for level in LEVELS}, share, LEVELS, starts)


def disaggregated_report(arena: Arena, policies: Sequence[str], found: Mapping[Split, Goodput]) -> dict[str, Any]:
    """The machine-readable answer, as `goodput_report`'s, of what was `found` by name and split: the first of a split is how many more
    prefill than in the fluid bound's. `prefill` is how many prefill at a policy's best."""
    bounds = split_bounds(arena)
    fluid = prefill_fluid(bounds)
    best: dict[str, dict[str, Any]] = {}
    for name in policies:
        rows = [(split[1], of) for split, of in found.items() if split[0] == name]
        best[name] = {}
        for level in LEVELS:
            more, of = max(rows, key=lambda row: row[1].rates[level])
            best[name][f"{KEYS[level]}_rps"] = round(of.rates[level], 3)
            best[name][f"{KEYS[level]}_prefill"] = fluid + int(more)
    report: dict[str, Any] = {
        "instances": arena.instances,
        "warmup_s": arena.window.warmup_s,
        "measured_s": arena.window.measured_s,
        "step": arena.step,
        "rejecting": False,
        "requests": len(served(arena, arena.seeds[0])),
        "requests_left_out": len(arena.lengths) - len(served(arena, arena.seeds[0])),
        "kv_bytes_per_token": KV_BYTES_PER_TOKEN,
        "kv_bytes_per_s": KV_BYTES_PER_S,
        "bound_rps": {KEYS[level]: round(max(bounds[level]), 3) for level in LEVELS},
        "bound_prefill": fluid,
        "policies": best,
    }
    for key, ours in (("", "multislo"), ("stock_", "multislo_stock")):
        if ours in best:
            report[f"{key}ratio"] = {level: _ratios(best, ours, f"{level}_rps") for level in KEYS.values()}
            report[f"{key}share_of_bound"] = {
                level: round(best[ours][f"{level}_rps"] / report["bound_rps"][level], 4) for level in KEYS.values()
            }
    return report


def _ratios(best: Mapping[str, Mapping[str, float]], ours: str, key: str) -> dict[str, float | None]:
    def to(groups: Sequence[str]) -> float | None:
        rates = [best[policy.name][key] for policy in POLICIES if policy.group in groups and policy.name in best]
        return round(best[ours][key] / max(rates), 4) if rates and max(rates) > 0.0 else None

    return {name: to(groups) for name, groups in AGAINST.items()}


def disaggregated_tables(report: Mapping[str, Any]) -> list[Table]:
    splits = [(name, of["p90_prefill"], of["p99_prefill"]) for name, of in report["policies"].items()]
    splits.append(("fluid bound", report["bound_prefill"], report["bound_prefill"]))
    title = f"instances that prefill, of {report['instances']}"
    return [*goodput_tables(report), table_of(title, ("policy", "90 %", "99 %"), splits)]
