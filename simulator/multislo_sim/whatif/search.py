"""The smallest fleet of fixed size that attains a goal in every tier: counts of instances by tier, searched with the simulator. Called
by the what-if and by `multislo plan`.

The total is searched first, from the fluid bound upwards, split over the tiers by their work; then instances are removed from each
tier one by one, as long as the goal still holds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from multislo_sim.bound import bound
from multislo_sim.goodput import highest
from multislo_sim.whatif.case import Case, Counts
from multislo_sim.whatif.play import Played, play_fixed, work_by_tier
from multislo_sim.whatif.traffic import Slice
from multislo_sim.workloads.request import Request

OVER_BOUND_MAX = 6
"""More than this many times the fluid bound, and a few, is not tried: then it is no lack of instances."""
FEW = 8
UNLIMITED = 1 << 20
ATTAINMENT_MAX = 0.9999
"""Asked of the bound, which knows no certainty."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Fewest and most instances of each tier, and of all."""

    least: Counts
    most: Counts
    total: int


@dataclass(frozen=True, slots=True)
class Found:
    """The result of the search."""

    counts: dict[str, int] | None
    """None: no fleet that was tried attains the goal."""
    played: Played
    """With these counts, or with the most that were tried."""
    tried: int
    """Simulations."""
    total_bound: float
    """Instances by the fluid bound: no fleet of fewer attains it, whatever its policy."""
    short: str | None = None
    """Which limit of the manifest is in the way; None where none is."""


def manifest_limits(case: Case) -> Limits:
    """A tier that may have no instance of its own may get none; the others have one at least."""
    tiers = case.manifest.spec.tiers
    return Limits(
        {tier.name: min(1, tier.instances.min) for tier in tiers},
        {tier.name: tier.instances.max for tier in tiers},
        case.manifest.spec.scaling.accelerators_max // case.per_instance - case.manifest.spec.scaling.warm_pool.min,
    )


def least_fleet(
    case: Case, requests: Sequence[Request], part: Slice, goal: float, told: Callable[[str], None] = lambda _: None
) -> Found:
    """The least counts with which every tier attains `goal` of what it can, on this part of the traffic (`requests` are those in it)."""
    limits = manifest_limits(case)
    free = unlimited(limits.least)
    work = work_by_tier(case, requests)
    ceiling = bound(requests, case.truth, case.profile.kv_tokens_max, 1, min(goal, ATTAINMENT_MAX))
    total_bound = len(requests) / part.span_s / ceiling
    plays: dict[tuple[int, ...], Played] = {}

    def play(counts: Counts) -> Played:
        key = tuple(counts[name] for name in case.tiers)
        if key not in plays:
            plays[key] = play_fixed(case, requests, part, counts, goal)
            verdict = "attains" if plays[key].holds(goal) else "does not"
            told(f"{case.name}: {' + '.join(map(str, key))} instances: {verdict}")
        return plays[key]

    def search(within: Limits) -> dict[str, int] | None:
        # `highest` looks for the highest number that holds: here of instances left out of the most.
        lowest = max(sum(within.least.values()), 1, ceil(total_bound - 1e-9))
        most = min(within.total, sum(within.most.values()), OVER_BOUND_MAX * lowest + FEW)
        if most < lowest:
            return None
        left_out = highest(
            lambda spare: spare <= most - lowest and play(split(most - spare, work, within)).holds(goal),
            most - lowest,
            0,
            1,
        )
        if left_out is None:
            return None
        return _thinned(split(most - left_out, work, within), within, lambda counts: play(counts).holds(goal))

    counts = search(free)
    short = None
    if counts is not None and in_the_way(case, counts):
        needed = counts
        counts = search(limits) if sum(needed.values()) <= limits.total else None
        if counts is None:
            short = in_the_way(case, needed)
            counts = needed
    if counts is None:
        return Found(None, max(plays.values(), key=_worst), len(plays), total_bound)
    return Found(counts, play(counts), len(plays), total_bound, short)


def unlimited(least: Counts) -> Limits:
    return Limits(least, dict.fromkeys(least, UNLIMITED), UNLIMITED)


def split(total: int, work: Mapping[str, float], limits: Limits) -> dict[str, int]:
    """`total` instances over the tiers by their work, within the limits: each goes where the most work for each instance is."""
    counts = dict(limits.least)
    for _ in range(total - sum(counts.values())):
        open_tiers = [name for name in counts if counts[name] < limits.most[name]]
        if not open_tiers:
            break
        counts[max(open_tiers, key=lambda name: work[name] / (counts[name] + 1))] += 1
    return counts


def _thinned(counts: dict[str, int], limits: Limits, holds: Callable[[Counts], bool]) -> dict[str, int]:
    """One taken away, again and again, wherever what is left still holds."""
    while True:
        for name in sorted(counts, key=lambda name: -counts[name]):
            fewer = {**counts, name: counts[name] - 1}
            if fewer[name] >= limits.least[name] and sum(fewer.values()) > 0 and holds(fewer):
                counts = fewer
                break
        else:
            return counts


def _worst(played: Played) -> float:
    return min((tally.attainment or 0.0 for tally in played.tiers.values() if tally.counted), default=0.0)


def in_the_way(case: Case, counts: Counts) -> str | None:
    """Which of the manifest's limits does not let the fleet have so many; None where all do."""
    limits = manifest_limits(case)
    total = sum(counts.values())
    if total > limits.total:
        scaling = case.manifest.spec.scaling
        warm = (
            f", {scaling.warm_pool.min * case.per_instance} of them for the warm pool" if scaling.warm_pool.min else ""
        )
        return f"scaling.acceleratorsMax is {scaling.accelerators_max}{warm}; {total * case.per_instance} are needed"
    over = [name for name in counts if counts[name] > limits.most[name]]
    return "; ".join(f"{name} needs {counts[name]}, its instances.max is {limits.most[name]}" for name in over) or None
