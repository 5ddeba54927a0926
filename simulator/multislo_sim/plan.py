"""The cheapest counts of instances by tier for a rate and an attainment: the what-if inverted. Called by `multislo plan`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from multislo_sim.trial import arriving
from multislo_sim.whatif.case import Case, fitting
from multislo_sim.whatif.play import play_fixed, work_by_tier
from multislo_sim.whatif.search import Found, in_the_way, least_fleet, split, unlimited
from multislo_sim.whatif.traffic import Slice, assigned
from multislo_sim.workloads.request import Request, WorkloadInvalid

WARMUP_S, MEASURED_S, AFTER_S = 100.0, 80.0, 20.0
"""Shorter windows flatter: with a TPOT of 100 ms a fleet can put work off for a minute."""
COUNTED = 6000
"""At low rates as many seconds are measured as it takes to have so many requests, at most `MEASURED_MAX_S`."""
MEASURED_MAX_S = 1800.0
COARSE_REQUESTS = 12_000
"""Where the whole window holds twice as many, the search plays so many, and what it finds is then tried under the whole window."""
MORE_MAX = 5
"""Instances added where the whole window says that the coarse one was too hopeful."""
RATE_MAX = 100_000.0


@dataclass(frozen=True, slots=True)
class Wish:
    """The traffic to serve, and the goal."""

    lengths: Sequence[Request]
    """Prompt and output lengths of the traffic, in any order."""
    shares: Mapping[str, float] | None
    attainment: float
    seed: int


def planned(case: Case, wish: Wish, rate: float, told: Callable[[str], None] = lambda _: None) -> Found:
    """The least fleet with which every tier attains the wish at `rate` requests a second, arriving at random."""
    kept, _ = fitting(case, wish.lengths)
    if not kept:
        raise WorkloadInvalid(f"lengths: no request fits spec.model.maxLength ({case.manifest.spec.model.max_length})")
    measured_s = min(max(MEASURED_S, COUNTED / rate), MEASURED_MAX_S)
    window = Slice(WARMUP_S, measured_s, WARMUP_S, AFTER_S)
    requests = assigned(case, arriving(kept, rate, window.span_s, wish.seed), wish.shares, wish.seed)
    if not requests:
        raise WorkloadInvalid(f"rate: {rate:g} requests/s leave none in {window.span_s:g} s")
    if len(requests) <= 2 * COARSE_REQUESTS:
        return least_fleet(case, requests, window, wish.attainment, told)
    share = COARSE_REQUESTS / len(requests)
    coarse = Slice(
        0.4 * share * window.span_s,
        0.5 * share * window.span_s,
        0.4 * share * window.span_s,
        0.1 * share * window.span_s,
    )
    few = [request for request in requests if request.at_s < coarse.span_s]
    found = least_fleet(case, few, coarse, wish.attainment, told)
    return found if found.counts is None else _confirmed(case, requests, window, wish.attainment, found, told)


def _confirmed(
    case: Case, requests: Sequence[Request], window: Slice, goal: float, found: Found, told: Callable[[str], None]
) -> Found:
    """What a coarse search found, under the whole window, with instances added until it holds there."""
    assert found.counts is not None
    counts = found.counts
    tried = found.tried
    work = work_by_tier(case, requests)
    for _ in range(MORE_MAX + 1):
        played = play_fixed(case, requests, window, counts, goal)
        tried += 1
        told(
            f"{' + '.join(map(str, counts.values()))} instances, the whole window: {'attains' if played.holds(goal) else 'does not'}"
        )
        found = replace(found, counts=counts, played=played, tried=tried)
        if played.holds(goal):
            return replace(found, short=in_the_way(case, counts))
        counts = split(sum(counts.values()) + 1, work, unlimited(counts))
    return replace(found, counts=None)
