"""How many instances each tier shall have: the needs of `need` with minima, maxima, what runs already, and the budget. Used by `scale`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multislo_operator.decide.draft import Draft
from multislo_operator.decide.fleet import FleetObserved, FleetSpec, InstanceObserved, InstanceState, TierSpec
from multislo_operator.decide.memory import Memory
from multislo_operator.decide.need import Bounds, Lost, Need, bounds, fill_target
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
    draft: Draft,
    observed: FleetObserved,
    memory: Memory,
    found: Sequence[Need],
    lacking: Mapping[str, str],
    now: float,
    trouble: str | None,
) -> dict[str, Goal]:
    """Per tier; `lacking`: those of which requests wait or are late. In trouble (figures unknown): what runs, at least the minimum."""
    spec = draft.spec
    supply = {tier.name: draft.supply(tier.name) for tier in spec.tiers}
    raised_for: str | None = None
    if trouble:
        wanted = {tier.name: min(max(tier.least, supply[tier.name]), tier.instances_max) for tier in spec.tiers}
        urgent = {tier.name: tier.least for tier in spec.tiers}
        reasons = {tier.name: "load unknown, minimum kept" for tier in spec.tiers}
        terms: dict[str, Terms] = {tier.name: {} for tier in spec.tiers}
    else:
        limits = bounds(spec, memory, now, draft.lost)
        wanted = _by_load(draft, limits, supply)
        urgent = _urgent(draft, limits, wanted, supply)
        raised_for = _one_more_where_it_lacks(draft, lacking, wanted, urgent, supply)
        reasons, terms = _why(spec, limits, found, lacking, supply, memory.weights)
    granted = within_budget(spec, wanted, draft.lost)
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


def _by_load(draft: Draft, limits: Bounds, supply: Mapping[str, int]) -> dict[str, int]:
    """What runs already, raised to what the load needs now and lowered to what it has needed at most."""
    wanted: dict[str, int] = {}
    total = have = 0
    for index, tier in enumerate(draft.spec.tightest_first):
        have += supply[tier.name]
        high = have if limits.high is None else limits.high[index]
        count = max(limits.low[index], min(have, high)) - total
        wanted[tier.name] = min(max(count, tier.least), tier.instances_max)
        total += wanted[tier.name] - draft.lost(tier.name, wanted[tier.name])
    return wanted


def _urgent(draft: Draft, limits: Bounds, wanted: Mapping[str, int], supply: Mapping[str, int]) -> dict[str, int]:
    """What each tier must have so that no prefix of tiers lacks what its load needs now."""
    urgent: dict[str, int] = {}
    have = more = 0
    for index, tier in enumerate(draft.spec.tightest_first):
        have += supply[tier.name]
        lacks = max(limits.low[index] - have - more, tier.least - supply[tier.name], 0)
        lacks = min(lacks, max(wanted[tier.name] - supply[tier.name], 0))
        urgent[tier.name] = supply[tier.name] + lacks if lacks else 0
        more += lacks - draft.lost(tier.name, urgent[tier.name])
    return urgent


def _one_more_where_it_lacks(
    draft: Draft,
    lacking: Mapping[str, str],
    wanted: dict[str, int],
    urgent: dict[str, int],
    supply: Mapping[str, int],
) -> str | None:
    """One more than there are, in a tier whose requests wait or are late, unless more is coming that can serve it.

    What starts, or has only just become ready, counts as coming: a need starts one instance, not one a second, and not one a tier.
    Returns the tier, where the fleet grows by it.
    """
    if any(_is_expected(draft.spec, seen) for seen in draft.instances):
        return None
    total = have = 0
    for tier in draft.spec.tightest_first:
        name = tier.name
        total += wanted[name] - draft.lost(name, wanted[name])
        have += supply[name]
        if name in lacking and total <= have:
            total -= wanted[name] - draft.lost(name, wanted[name])
            wanted[name] = urgent[name] = min(max(wanted[name], supply[name]) + 1, tier.instances_max)
            total += wanted[name] - draft.lost(name, wanted[name])
            if total > have:
                return name
    return None


def _is_expected(spec: FleetSpec, seen: InstanceObserved) -> bool:
    """It comes, or has come and not yet shown what it can do."""
    return seen.is_coming(spec) or (seen.state is InstanceState.READY and seen.since_s < settle_s(spec))


def _why(
    spec: FleetSpec,
    limits: Bounds,
    found: Sequence[Need],
    lacking: Mapping[str, str],
    supply: Mapping[str, int],
    weights: Mapping[str, float],
) -> tuple[dict[str, str], dict[str, Terms]]:
    reasons: dict[str, str] = {}
    terms: dict[str, Terms] = {}
    have = 0
    for index, (tier, need) in enumerate(zip(spec.tightest_first, found, strict=True)):
        have += supply[tier.name]
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


def within_budget(spec: FleetSpec, wanted: Mapping[str, int], lost: Lost) -> dict[str, int]:
    """Minima first, then what else is wanted, both in the manifest's order of tiers; last what is wanted and does not come up, which keeps
    no place from anybody."""
    left = spec.instances_max
    if left is None:
        return dict(wanted)
    granted = dict.fromkeys(wanted, 0)
    real = {name: count - lost(name, count) for name, count in wanted.items()}
    least = {tier.name: min(tier.least, real[tier.name]) for tier in spec.tiers}
    for share in (least, real, wanted):
        for tier in spec.tiers:
            more = min(share[tier.name] - granted[tier.name], left)
            granted[tier.name] += more
            left -= more
    return granted
