"""`decide`: from the fleet as it is wanted and as it is seen to a plan. Called once a second by an actuator, which carries the plan
out; level-triggered: it looks at what is, not at what it did, and on a fleet where the plan has been carried out it plans nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from multislo_operator.decide.draft import Draft, Seat, least_loaded
from multislo_operator.decide.fleet import FleetObserved, FleetSpec, InstanceState
from multislo_operator.decide.goal import Goal, goals, raised
from multislo_operator.decide.memory import Memory, recalled, with_lack, with_peak, with_regret
from multislo_operator.decide.need import Need, fill_target, needs, remember
from multislo_operator.decide.plan import CallOffDrain, Drain, HoldCause, Plan, Start, TierPlan
from multislo_operator.decide.pressure import is_calm, lingers, mean_load, pressed

FAILED_EXTRA_S = 30.0
"""A failed instance has one start-up time and this to come back; then its accelerators are given to another."""
DRAINS_SHARE = 0.1
"""At most this share of the fleet drains at once (one at least)."""
ROUNDS_MAX = 6
LAGGING_GROWTH = 0.1
"""Of the work, foreseen over the horizon: from there on the averages lag behind it."""
MISSES_OVER_GOAL = 3.0
"""Nothing goes down while a tier misses this many times what its goal allows and the instances are busy."""


def decide(spec: FleetSpec, observed: FleetObserved, memory: Memory, now: float) -> tuple[Plan, Memory]:
    """The plan for this moment, and what to remember for the next. `now` is any clock that does not jump."""
    trouble = observed.trouble(spec)
    memory = recalled(spec, memory, now)
    found = () if trouble else needs(spec, observed, memory.weights)
    memory = remember(spec, observed, memory, found, now)
    draft = Draft(spec, list(observed.instances))
    rows: tuple[TierPlan, ...] = ()
    lacked: set[str] = set()
    # One action may make room for another: look again, until a look at the fleet as it will be finds nothing to do.
    for _ in range(ROUNDS_MAX):
        done = len(draft.actions)
        draft.holds.clear()
        seen = replace(observed, instances=draft.seen())
        lacking = {} if trouble else pressed(spec, seen, memory, fill_target(spec.attainment), now)
        wanted = goals(spec, seen, memory, found, lacking, now, trouble)
        if trouble is None:
            memory = with_peak(memory, spec, now, raised(spec, wanted, lacking))
        rows = rows or _rows(spec, draft, wanted)
        _round(draft, wanted, seen, memory, lacking, trouble)
        lacked |= {name for name, goal in wanted.items() if goal.lacks}
        if len(draft.actions) == done:
            break
    _say_what_does_not_come_up(draft)
    grew = any(isinstance(action, (Start, CallOffDrain)) for action in draft.actions)
    shrank = any(isinstance(action, Drain) for action in draft.actions)
    plan = Plan(
        actions=tuple(draft.actions),
        holds=tuple(draft.holds),
        tiers=rows,
        warm_desired=spec.warm_min,
        instances_used=len(observed.instances),
        instances_max=spec.instances_max,
        known=trouble is None,
    )
    if grew and is_calm(observed) and not _grows(found):
        memory = with_lack(memory, sorted(lacked))
    return plan, with_regret(memory, found[-1].work if found else 0.0, now, grew, shrank)


def _grows(found: Sequence[Need]) -> bool:
    """Whether requests wait because the averages lag behind growing work: nothing is learnt from that."""
    return any(need.growth > LAGGING_GROWTH * need.work for need in found)


def _round(
    draft: Draft,
    wanted: Mapping[str, Goal],
    seen: FleetObserved,
    memory: Memory,
    lacking: Mapping[str, str],
    trouble: str | None,
) -> None:
    if trouble:
        draft.hold(HoldCause.DATA_UNKNOWN, f"load unknown: {trouble}; keeping what runs, and the minima")
    elif seen.router_is_young:
        why = f"the router started {seen.router_uptime_s:.0f} s ago and its averages are too low yet: growing only"
        draft.hold(HoldCause.DATA_UNKNOWN, why)
    _give_up_failed(draft)
    _fill(draft, wanted)
    _finish_drains(draft)
    _fill_warm_pool(draft)
    if not trouble:
        _shrink(draft, wanted, _why_not_shrink(draft.spec, seen, memory, lacking, draft))


def _rows(spec: FleetSpec, draft: Draft, wanted: Mapping[str, Goal]) -> tuple[TierPlan, ...]:
    return tuple(
        TierPlan(
            name=tier.name,
            desired=wanted[tier.name].desired,
            ready=len(draft.ready(tier.name)),
            starting=len(draft.of(tier.name, InstanceState.STARTING)),
            draining=len(draft.of(tier.name, InstanceState.DRAINING)),
            failed=len(draft.of(tier.name, InstanceState.FAILED)),
            reason=wanted[tier.name].reason,
            terms=wanted[tier.name].terms,
        )
        for tier in spec.tiers
    )


def _give_up_failed(draft: Draft) -> None:
    grace_s = draft.spec.startup_s + FAILED_EXTRA_S
    for seat in [seat for seat in draft.seats if seat.state is InstanceState.FAILED and seat.ever_ready]:
        if seat.since_s > grace_s:
            draft.stop(seat, f"has not answered for {seat.since_s:.0f} s", {"failed_s": seat.since_s})


# -- more ------------------------------------------------------------------------------------------------------------------


def _fill(draft: Draft, wanted: Mapping[str, Goal]) -> None:
    """Give each tier what it lacks: from drains under way, the warm pool, tiers with too many (also of what still starts there); then by
    starting."""
    promised: set[str] = set()
    for tier in draft.spec.tiers:
        goal = wanted[tier.name]
        for _ in range(goal.desired - draft.live(tier.name)):
            if not _fill_one(draft, tier.name, tier.batch_tokens, wanted, promised):
                break
        if goal.short:
            draft.hold(HoldCause.BUDGET_SHORT, goal.short, tier.name)
        if goal.at_max:
            draft.hold(HoldCause.TIER_AT_MAX, goal.at_max, tier.name)


def _fill_one(draft: Draft, tier: str, batch_tokens: int, wanted: Mapping[str, Goal], promised: set[str]) -> bool:
    goal = wanted[tier]
    why = f"{tier} wants {goal.desired}, has {draft.live(tier)}: {goal.reason}"
    donors = _donors(draft, wanted)

    def convert_spare() -> bool:
        """Rather one whose engine was started with no larger token budget than the tier's; but any serves it better than none."""
        if donors:
            seat = min(donors, key=lambda seat: (seat.batch_tokens > batch_tokens, least_loaded(seat)))
            draft.convert(seat, tier, f"spare in {seat.tier}: {why}", goal.terms)
        return bool(donors)

    if draft.live(tier) >= goal.urgent:
        return convert_spare()
    draining = sorted(
        draft.draining(), key=lambda seat: (seat.tier != tier, seat.tier is not None, seat.since_s, seat.id)
    )
    if draining:
        seat = draining[0]
        draft.call_off(seat, why, goal.terms)
        if seat.tier != tier:
            draft.convert(seat, tier, why, goal.terms)
        return True
    warm = draft.ready(None)
    if warm:
        draft.convert(min(warm, key=least_loaded), tier, f"warm: {why}", goal.terms)
        return True
    if convert_spare():
        return True
    coming = _spare_starting(draft, wanted, promised)
    if coming:
        promised.add(coming[0].id)
        draft.hold(HoldCause.STARTING, f"{why}; {coming[0].id} starts, and {coming[0].tier} can spare it then", tier)
        return True
    if draft.has_place():
        draft.start(tier, why, goal.terms)
        return True
    draft.hold(
        HoldCause.BUDGET_SHORT,
        f"{tier} wants {goal.desired}, has {draft.live(tier)}, but all {draft.spec.instances_max} places of the budget are taken",
        tier,
    )
    return False


def _donors(draft: Draft, wanted: Mapping[str, Goal]) -> list[Seat]:
    """Ready instances of the tier that has the most to spare."""
    spare = {name: draft.live(name) - goal.desired for name, goal in wanted.items() if draft.ready(name)}
    name = max(sorted(spare), key=lambda name: spare[name], default=None)
    return draft.ready(name) if name is not None and spare[name] > 0 else []


def _spare_starting(draft: Draft, wanted: Mapping[str, Goal], promised: set[str]) -> list[Seat]:
    """Instances that start in tiers with too many, and that nobody has been promised."""
    answer: list[Seat] = []
    for name, goal in wanted.items():
        coming = [seat for seat in draft.starting() if seat.tier == name]
        spare = draft.live(name) - goal.desired - sum(seat.id in promised for seat in coming)
        answer += [seat for seat in coming if seat.id not in promised][: max(spare, 0)]
    return answer


def _fill_warm_pool(draft: Draft) -> None:
    least = draft.spec.warm_min
    while draft.live(None) < least:
        why = f"the warm pool wants {least}, has {draft.live(None)}"
        if not draft.has_place():
            draft.hold(
                HoldCause.BUDGET_SHORT, f"{why}, but all {draft.spec.instances_max} places of the budget are taken"
            )
            return
        draft.start(None, why, {"warm_min": float(least)})


# -- less ------------------------------------------------------------------------------------------------------------------


def _finish_drains(draft: Draft) -> None:
    limit = draft.spec.drain_timeout_s
    for seat in draft.draining():
        if seat.requests == 0:
            draft.stop(seat, f"drained and empty after {seat.since_s:.0f} s", {"drained_s": seat.since_s})
        elif seat.since_s >= limit:
            left = "an unknown number of" if seat.requests is None else str(seat.requests)
            draft.stop(
                seat, f"drain timeout of {limit:.0f} s is over, {left} requests left", {"drained_s": seat.since_s}
            )


def _why_not_shrink(
    spec: FleetSpec, observed: FleetObserved, memory: Memory, lacking: Mapping[str, str], draft: Draft
) -> tuple[HoldCause, str] | None:
    assert observed.tiers is not None
    wanted = {tier.name: tier for tier in spec.tiers}
    waiting = [
        tier
        for tier in observed.tiers
        if tier.name in memory.pressed_since
        or (tier.name in wanted and lingers(wanted[tier.name], tier.pending_oldest_s))
    ]
    if waiting:
        names = ", ".join(f"{tier.name} ({tier.pending} for up to {tier.pending_oldest_s:.1f} s)" for tier in waiting)
        return HoldCause.PENDING, f"requests pend: {names}"
    if lacking:
        return HoldCause.ATTAINMENT_LOW, ", ".join(f"{name}: {what}" for name, what in lacking.items())
    starting = draft.starting()
    if starting:
        return HoldCause.STARTING, f"{len(starting)} starting"
    if mean_load(observed) > 0.5 * fill_target(spec.attainment):
        allowed = MISSES_OVER_GOAL * (1.0 - spec.attainment)
        for tier in observed.tiers:
            if tier.attainment is not None and 1.0 - tier.attainment > allowed:
                return HoldCause.ATTAINMENT_LOW, f"{tier.name} attained {tier.attainment:.1%} in the last minute"
    return None


def _shrink(draft: Draft, wanted: Mapping[str, Goal], why_not: tuple[HoldCause, str] | None) -> None:
    drains_max = max(1, int(DRAINS_SHARE * len(draft.seats)))
    _shrink_over_limits(draft, wanted)
    while True:
        victim = _next_victim(draft, wanted)
        if victim is None:
            return
        seat, why, terms = victim
        if why_not is not None:
            draft.hold(
                why_not[0], f"not taking {seat.id} out of {seat.tier or 'the warm pool'} yet: {why_not[1]}", seat.tier
            )
            return
        if seat.tier is not None and draft.live(None) < draft.spec.warm_max:
            draft.convert(seat, None, f"to the warm pool: {why}", terms)
            continue
        if len(draft.draining()) >= drains_max:
            names = ", ".join(seat.id for seat in draft.draining())
            draft.hold(HoldCause.DRAINING, f"not draining {seat.id} yet: {names} drains", seat.tier)
            return
        draft.drain(seat, why, terms)


def _next_victim(draft: Draft, wanted: Mapping[str, Goal]) -> tuple[Seat, str, Mapping[str, float]] | None:
    """The emptied tail: the least loaded instance of the tier that has the most to spare; then of the warm pool."""
    donors = _donors(draft, wanted)
    if donors:
        seat = min(donors, key=least_loaded)
        goal = wanted[seat.tier or ""]
        return seat, f"{seat.tier} wants {goal.desired}, has {draft.live(seat.tier)}: {goal.reason}", goal.terms
    idle = [seat for seat in draft.ready(None) if seat.since_s >= draft.spec.stabilization_s]
    if idle and draft.live(None) > draft.spec.warm_min:
        seat = min(idle, key=least_loaded)
        return seat, f"warm and not needed for {seat.since_s:.0f} s", {"since_s": seat.since_s}
    return None


def _shrink_over_limits(draft: Draft, wanted: Mapping[str, Goal]) -> None:
    """The manifest allows less than runs (it was changed): that does not wait."""
    spec = draft.spec
    if spec.instances_max is None:
        return
    while len(draft.seats) - len(draft.draining()) > spec.instances_max:
        unborn = [seat for seat in draft.seats if seat.state is InstanceState.STARTING]
        if unborn:
            draft.stop(
                unborn[-1],
                f"the budget is {spec.instances_max} instances",
                {"instances_max": float(spec.instances_max)},
            )
            continue
        donors = _donors(draft, wanted) or draft.ready(None)
        if not donors:
            return
        seat = min(donors, key=least_loaded)
        draft.drain(seat, f"the budget is {spec.instances_max} instances", {"instances_max": float(spec.instances_max)})


def _say_what_does_not_come_up(draft: Draft) -> None:
    stuck = [seat for seat in draft.seats if draft.is_stuck(seat)]
    if stuck:
        names = ", ".join(seat.id for seat in stuck)
        draft.hold(
            HoldCause.NOT_COMING_UP,
            f"{names}: not ready after {max(s.since_s for s in stuck):.0f} s; starting no more for them",
        )
