"""How many instances each tier shall have: the needs of `need` with minima, maxima, what runs already, and the budget. Used by `scale`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multislo_operator.decide.draft import Draft, Seat
from multislo_operator.decide.fleet import FleetObserved, FleetSpec, InstanceState, TierSpec
from multislo_operator.decide.memory import Memory
from multislo_operator.decide.need import Bounds, Need, bounds, fill_target
from multislo_operator.decide.plan import Terms
from multislo_operator.decide.pressure import settle_s


@dataclass(frozen=True, slots=True)
class Goal:
    """A tier's desired count and why; `short` and `at_max` say where it is less than the load asks for."""

    desired: int
    urgent: int
    """Up to this count the load asks for instances; beyond it, tiers only share out what runs: nothing is started for that."""
    reason: str
    terms: Terms
    lacks: bool = False
    """One more than the figures ask for, because requests wait or are late."""
    short: str | None = None
    at_max: str | None = None


def goals(
    spec: FleetSpec,
    observed: FleetObserved,
    memory: Memory,
    found: Sequence[Need],
    lacking: Mapping[str, str],
    now: float,
    trouble: str | None,
) -> dict[str, Goal]:
    """Per tier; `lacking`: those of which requests wait or are late. In trouble (figures unknown): what runs, at least the minimum."""
    draft = Draft(spec, list(observed.instances))
    live = {tier.name: draft.live(tier.name) for tier in spec.tiers}
    raised_for: str | None = None
    if trouble:
        wanted = {tier.name: min(max(tier.least, live[tier.name]), tier.instances_max) for tier in spec.tiers}
        urgent = {tier.name: tier.least for tier in spec.tiers}
        reasons = {tier.name: "load unknown, minimum kept" for tier in spec.tiers}
        terms: dict[str, Terms] = {tier.name: {} for tier in spec.tiers}
    else:
        limits = bounds(spec, memory, now)
        wanted = _by_load(spec, limits, live)
        urgent = _urgent(spec, limits, wanted, live)
        raised_for = _one_more_where_it_lacks(draft, lacking, wanted, urgent, live)
        reasons, terms = _why(spec, limits, found, lacking, live, memory.weights)
    granted = within_budget(spec, wanted)
    asks = {} if trouble else {t.name: t.work_rate / fill_target(spec.attainment) for t in observed.tiers or ()}
    answer = {}
    for tier in spec.tiers:
        count = granted[tier.name]
        short = None
        if count < wanted[tier.name]:
            short = f"{tier.name} would have {wanted[tier.name]}, the budget of {spec.instances_max} instances leaves it {count}"
        at_max = None
        asked = asks.get(tier.name, 0.0)
        if count == tier.instances_max and asked > count:
            at_max = f"{tier.name} is at its maximum of {count}, its load asks for {asked:.1f}"
        answer[tier.name] = Goal(
            count,
            min(urgent[tier.name], count),
            reasons[tier.name],
            terms[tier.name],
            tier.name == raised_for,
            short,
            at_max,
        )
    return answer


def _by_load(spec: FleetSpec, limits: Bounds, live: Mapping[str, int]) -> dict[str, int]:
    """What runs already, raised to what the load needs now and lowered to what it has needed at most."""
    wanted: dict[str, int] = {}
    total = have = 0
    for index, tier in enumerate(spec.tightest_first):
        have += live[tier.name]
        high = have if limits.high is None else limits.high[index]
        count = max(limits.low[index], min(have, high)) - total
        wanted[tier.name] = min(max(count, tier.least), tier.instances_max)
        total += wanted[tier.name]
    return wanted


def _urgent(spec: FleetSpec, limits: Bounds, wanted: Mapping[str, int], live: Mapping[str, int]) -> dict[str, int]:
    """What each tier must have so that no prefix of tiers lacks what its load needs now."""
    urgent: dict[str, int] = {}
    have = more = 0
    for index, tier in enumerate(spec.tightest_first):
        have += live[tier.name]
        lacks = max(limits.low[index] - have - more, tier.least - live[tier.name], 0)
        lacks = min(lacks, max(wanted[tier.name] - live[tier.name], 0))
        more += lacks
        urgent[tier.name] = live[tier.name] + lacks if lacks else 0
    return urgent


def _one_more_where_it_lacks(
    draft: Draft,
    lacking: Mapping[str, str],
    wanted: dict[str, int],
    urgent: dict[str, int],
    live: Mapping[str, int],
) -> str | None:
    """One more than there are, in a tier whose requests wait or are late, unless more is coming that can serve it.

    What starts, or has only just become ready, counts as coming: a need starts one instance, not one a second, and not one a tier.
    Returns the tier, where the fleet grows by it.
    """
    total = have = stuck = 0
    for tier in draft.spec.tightest_first:
        total += wanted[tier.name]
        have += live[tier.name]
        # What does not come up keeps its own and looser tiers from starting another, which would not either.
        stuck += sum(1 for seat in draft.seats if seat.tier == tier.name and draft.is_stuck(seat))
        if stuck or any(_is_coming(draft, seat) for seat in draft.seats):
            continue
        if tier.name in lacking and total <= have:
            more = min(max(wanted[tier.name], live[tier.name]) + 1, tier.instances_max)
            total += more - wanted[tier.name]
            wanted[tier.name] = urgent[tier.name] = more
            if total > have:
                return tier.name
    return None


def _is_coming(draft: Draft, seat: Seat) -> bool:
    if seat.state is InstanceState.STARTING:
        return not draft.is_stuck(seat)
    return seat.state is InstanceState.READY and seat.since_s < settle_s(draft.spec)


def _why(
    spec: FleetSpec,
    limits: Bounds,
    found: Sequence[Need],
    lacking: Mapping[str, str],
    live: Mapping[str, int],
    weights: Mapping[str, float],
) -> tuple[dict[str, str], dict[str, Terms]]:
    reasons: dict[str, str] = {}
    terms: dict[str, Terms] = {}
    have = 0
    for index, (tier, need) in enumerate(zip(spec.tightest_first, found, strict=True)):
        have += live[tier.name]
        low = limits.low[index]
        high = have if limits.high is None else limits.high[index]
        reasons[tier.name] = _reason(spec, tier, need, lacking.get(tier.name), have, low, high, limits.span_s)
        terms[tier.name] = {
            "work": need.work,
            "weight": weights.get(tier.name, 1.0),
            "growth": need.growth,
            "backlog": need.backlog,
            "fill_target": fill_target(spec.attainment),
            "quota": need.quota,
            "need_now": float(low),
            "need_peak": float(high),
        }
    return reasons, terms


def raised(spec: FleetSpec, wanted: Mapping[str, Goal], lacking: Mapping[str, str]) -> list[float]:
    """Per prefix, what was wanted because a tier lacked something (0 where none did): kept like any other peak of the need."""
    answer = []
    total = 0
    reached = False
    for tier in spec.tightest_first:
        total += wanted[tier.name].desired
        reached = reached or tier.name in lacking
        answer.append(float(total) if reached else 0.0)
    return answer


def _reason(
    spec: FleetSpec, tier: TierSpec, need: Need, lacks: str | None, have: int, low: int, high: int, span_s: float
) -> str:
    scope = _scope(spec, tier)
    parts = [f"work {need.work:.2f}"]
    if need.growth > 0.0:
        parts.append(f"growth {need.growth:.2f}")
    if need.backlog > 0.0:
        parts.append(f"backlog {need.backlog:.2f}")
    law = f"{' + '.join(parts)} at fill {fill_target(spec.attainment):.2f} need {need.quota:.2f} instances ({scope})"
    if lacks:
        return f"{lacks}; {law}"
    if low > have:
        return law
    if high < have:
        return f"{law}, with its margin no more than {high} of {have} in the last {span_s:.0f} s"
    if low < have:
        return f"{law}; kept until that has lasted {span_s:.0f} s"
    return law


def _scope(spec: FleetSpec, tier: TierSpec) -> str:
    tiers = spec.tightest_first
    index = tiers.index(tier)
    if index == 0:
        return tier.name
    if index == len(tiers) - 1:
        return "all tiers"
    return f"{tier.name} and tighter"


def within_budget(spec: FleetSpec, wanted: Mapping[str, int]) -> dict[str, int]:
    """Minima first, then what else is wanted, both in the manifest's order of tiers."""
    left = spec.instances_max
    if left is None:
        return dict(wanted)
    granted = {}
    for tier in spec.tiers:
        granted[tier.name] = min(tier.least, wanted[tier.name], left)
        left -= granted[tier.name]
    for tier in spec.tiers:
        more = min(wanted[tier.name] - granted[tier.name], left)
        granted[tier.name] += more
        left -= more
    return granted
