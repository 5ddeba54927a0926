"""`decide`: from the fleet as it is wanted and as it is seen to a plan. Called once a second by an actuator, which carries the plan
out; level-triggered: it looks at what is, not at what it did, and on a fleet where the plan has been carried out it plans nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from multislo_operator.decide.draft import Draft, least_loaded
from multislo_operator.decide.fleet import (
    FAILED_EXTRA_S,
    FleetObserved,
    FleetSpec,
    InstanceObserved,
    InstanceState,
)
from multislo_operator.decide.goal import Goal, goals, raised
from multislo_operator.decide.memory import Memory, recalled, with_lack, with_peak, with_regret
from multislo_operator.decide.need import Need, fill_target, needs, remember
from multislo_operator.decide.plan import CallOffDrain, Drain, HoldCause, Plan, Start, Terms, TierPlan
from multislo_operator.decide.pressure import is_calm, lingers, mean_load, pressed

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
    draft = Draft(spec, observed.instances, memory.tries, now)
    rows: tuple[TierPlan, ...] = ()
    lacked: set[str] = set()
    # One action may make room for another: look again, until a look at the fleet as it will be finds nothing to do.
    for _ in range(ROUNDS_MAX):
        done = draft.steps
        draft.holds.clear()
        seen = replace(observed, instances=draft.instances)
        lacking = {} if trouble else pressed(spec, seen, memory, fill_target(spec.attainment), now)
        wanted = goals(draft, seen, memory, found, lacking, now, trouble)
        if trouble is None:
            memory = with_peak(memory, spec, now, raised(spec, wanted, lacking))
        rows = rows or _rows(spec, draft, wanted)
        _round(draft, wanted, seen, memory, lacking, trouble)
        lacked |= {name for name, goal in wanted.items() if goal.lacks}
        if draft.steps == done:
            break
    _say_what_does_not_come_up(draft)
    more = [action for action in draft.actions if isinstance(action, (Start, CallOffDrain))]
    grew = len(more) > draft.tried_again
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
    memory = replace(memory, tries=draft.tries)
    if grew and is_calm(spec, observed) and not _grows(found):
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
    known = not trouble and not seen.router_is_young
    _stop_failed(draft, wanted, known)
    promised = _fill(draft, wanted)
    _finish_drains(draft)
    _fill_warm_pool(draft, wanted)
    if not trouble:
        _shrink(draft, wanted, promised, _why_not_shrink(draft.spec, seen, memory, lacking, draft))


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


def _stop_failed(draft: Draft, wanted: Mapping[str, Goal], known: bool) -> None:
    """What does not answer any more has its time to come back. What has never come up goes at once where nothing asks for it."""
    grace_s = draft.spec.startup_s + FAILED_EXTRA_S
    for seen in draft.instances:
        if seen.state is InstanceState.FAILED and seen.ever_ready and seen.since_s > grace_s:
            draft.stop(seen, f"has not answered for {seen.since_s:.0f} s", {"failed_s": seen.since_s})
    if known:
        for seen in _not_asked_for(draft, wanted):
            draft.give_up(seen, f"has not come up in {seen.since_s:.0f} s, and nothing asks for it")


def _not_asked_for(draft: Draft, wanted: Mapping[str, Goal]) -> list[InstanceObserved]:
    """Failed starts beyond what their tiers lack."""
    found: list[InstanceObserved] = []
    for tier in (*wanted, None):
        lacks = max(0, _desired(draft, wanted, tier) - draft.supply(tier))
        found += draft.failed_starts(tier)[lacks:]
    return found


def _desired(draft: Draft, wanted: Mapping[str, Goal], tier: str | None) -> int:
    return draft.spec.warm_min if tier is None else wanted[tier].desired


# -- more ------------------------------------------------------------------------------------------------------------------


def _fill(draft: Draft, wanted: Mapping[str, Goal]) -> set[str]:
    """Give each tier what it lacks: from drains under way, the warm pool, tiers with too many (also of what still starts there); then by
    starting. Returns the instances that start in one tier and that another waits for."""
    promised: set[str] = set()
    for tier in draft.spec.tiers:
        goal = wanted[tier.name]
        for _ in range(goal.desired - draft.supply(tier.name)):
            if not _fill_one(draft, tier.name, tier.batch_tokens, wanted, promised):
                break
        if goal.short:
            draft.hold(HoldCause.BUDGET_SHORT, goal.short, tier.name)
        if goal.at_max:
            draft.hold(HoldCause.TIER_AT_MAX, goal.at_max, tier.name)
    return promised


def _fill_one(draft: Draft, tier: str, batch_tokens: int, wanted: Mapping[str, Goal], promised: set[str]) -> bool:
    goal = wanted[tier]
    why = f"{tier} wants {goal.desired}, has {draft.supply(tier)}: {goal.reason}"
    donors = _donors(draft, wanted)

    def convert_spare() -> bool:
        """Rather one whose engine was started with no larger token budget than the tier's; but any serves it better than none."""
        if donors:
            seen = min(donors, key=lambda donor: (donor.batch_tokens > batch_tokens, least_loaded(donor)))
            draft.convert(seen, tier, f"spare in {seen.tier}: {why}", goal.terms)
        return bool(donors)

    if draft.supply(tier) >= goal.urgent:
        return convert_spare()
    draining = sorted(
        (seen for seen in draft.draining() if seen.ever_ready),
        key=lambda seen: (seen.tier != tier, seen.tier is not None, seen.since_s, seen.id),
    )
    if draining:
        seen = draining[0]
        draft.call_off(seen, why, goal.terms)
        if seen.tier != tier:
            draft.convert(seen, tier, why, goal.terms)
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
    return _start(draft, tier, goal.desired, why, goal.terms, wanted)


def _start(draft: Draft, tier: str | None, desired: int, why: str, terms: Terms, wanted: Mapping[str, Goal]) -> bool:
    """Start one, unless as many as are lacking have failed to start and it is not time to try again, or there is no place."""
    if draft.held_back(tier) >= desired - draft.supply(tier) and not draft.try_again(tier):
        return False
    if not draft.has_place():
        # Nothing that does not come up keeps a place from others.
        idle = _not_asked_for(draft, wanted)
        if not idle:
            places = f"all {draft.spec.instances_max} places of the budget are taken"
            draft.hold(HoldCause.BUDGET_SHORT, f"{why}; {places}", tier)
            return False
        draft.give_up(idle[0], f"has not come up in {idle[0].since_s:.0f} s, and its place is needed")
    draft.start(tier, why, terms)
    return True


def _spare_ready(draft: Draft, wanted: Mapping[str, Goal], tier: str | None) -> int:
    """Ready instances that the tier can do without. Those that only start, or do not come up, are no reason to let a ready one go."""
    return len(draft.ready(tier)) - _desired(draft, wanted, tier)


def _donors(draft: Draft, wanted: Mapping[str, Goal]) -> list[InstanceObserved]:
    """Ready instances of the tier that has the most to spare."""
    name = max(sorted(wanted), key=lambda name: _spare_ready(draft, wanted, name), default=None)
    return draft.ready(name) if name is not None and _spare_ready(draft, wanted, name) > 0 else []


def _spare_starting(draft: Draft, wanted: Mapping[str, Goal], promised: set[str]) -> list[InstanceObserved]:
    """Instances that start in tiers with too many, and that nobody has been promised."""
    answer: list[InstanceObserved] = []
    for name, goal in wanted.items():
        coming = draft.coming(name)
        spare = draft.supply(name) - goal.desired - sum(seen.id in promised for seen in coming)
        answer += [seen for seen in coming if seen.id not in promised][: max(spare, 0)]
    return answer


def _fill_warm_pool(draft: Draft, wanted: Mapping[str, Goal]) -> None:
    least = draft.spec.warm_min
    while draft.supply(None) < least:
        why = f"the warm pool wants {least}, has {draft.supply(None)}"
        if not _start(draft, None, least, why, {"warm_min": float(least)}, wanted):
            return


# -- less ------------------------------------------------------------------------------------------------------------------


def _finish_drains(draft: Draft) -> None:
    limit = draft.spec.drain_timeout_s
    for seen in draft.draining():
        if seen.requests == 0:
            draft.stop(seen, f"drained and empty after {seen.since_s:.0f} s", {"drained_s": seen.since_s})
        elif seen.since_s >= limit:
            left = "an unknown number of" if seen.requests is None else str(seen.requests)
            draft.stop(
                seen, f"drain timeout of {limit:.0f} s is over, {left} requests left", {"drained_s": seen.since_s}
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


def _shrink(
    draft: Draft, wanted: Mapping[str, Goal], promised: set[str], why_not: tuple[HoldCause, str] | None
) -> None:
    drains_max = max(1, int(DRAINS_SHARE * draft.used()))
    _shrink_over_limits(draft, wanted)
    while True:
        victim = _next_victim(draft, wanted, promised)
        if victim is None:
            return
        seen, why, terms = victim
        comes = seen.is_coming(draft.spec)
        if why_not is not None and not (comes and why_not[0] is HoldCause.STARTING):
            draft.hold(
                why_not[0], f"not taking {seen.id} out of {seen.tier or 'the warm pool'} yet: {why_not[1]}", seen.tier
            )
            return
        if comes:
            draft.stop(seen, f"not needed before it is ready: {why}", terms)
            continue
        if seen.tier is not None and draft.supply(None) < draft.spec.warm_max:
            draft.convert(seen, None, f"to the warm pool: {why}", terms)
            continue
        if len(draft.draining()) >= drains_max:
            names = ", ".join(draining.id for draining in draft.draining())
            draft.hold(HoldCause.DRAINING, f"not draining {seen.id} yet: {names} drains", seen.tier)
            return
        draft.drain(seen, why, terms)


def _next_victim(
    draft: Draft, wanted: Mapping[str, Goal], promised: set[str]
) -> tuple[InstanceObserved, str, Terms] | None:
    """What comes and is not needed; then the emptied tail: the least loaded instance of the tier that has the most to spare; then of the
    warm pool."""
    for tier in (*wanted, None):
        coming = [seen for seen in draft.coming(tier) if seen.id not in promised]
        if coming and len(draft.ready(tier)) + len(coming) > _desired(draft, wanted, tier):
            return coming[0], *_too_many(draft, wanted, tier)
    donors = _donors(draft, wanted)
    if donors:
        return min(donors, key=least_loaded), *_too_many(draft, wanted, donors[0].tier)
    idle = [seen for seen in draft.ready(None) if seen.since_s >= draft.spec.stabilization_s]
    if idle and _spare_ready(draft, wanted, None) > 0:
        seen = min(idle, key=least_loaded)
        return seen, f"warm and not needed for {seen.since_s:.0f} s", {"since_s": seen.since_s}
    return None


def _too_many(draft: Draft, wanted: Mapping[str, Goal], tier: str | None) -> tuple[str, Terms]:
    if tier is None:
        least = draft.spec.warm_min
        return f"the warm pool wants {least}, has {draft.supply(None)}", {"warm_min": float(least)}
    goal = wanted[tier]
    return f"{tier} wants {goal.desired}, has {draft.supply(tier)}: {goal.reason}", goal.terms


def _shrink_over_limits(draft: Draft, wanted: Mapping[str, Goal]) -> None:
    """The manifest allows less than runs (it was changed): that does not wait. What is not ready goes first."""
    spec = draft.spec
    if spec.instances_max is None:
        return
    why, terms = f"the budget is {spec.instances_max} instances", {"instances_max": float(spec.instances_max)}
    while draft.used() - len(draft.draining()) > spec.instances_max:
        not_ready = sorted(
            (i for i in draft.instances if i.state in (InstanceState.FAILED, InstanceState.STARTING)),
            key=lambda seen: (seen.is_coming(spec), seen.since_s),
        )
        if not_ready:
            draft.stop(not_ready[0], why, terms)
            continue
        donors = _donors(draft, wanted) or draft.ready(None)
        if not donors:
            return
        draft.drain(min(donors, key=least_loaded), why, terms)


def _say_what_does_not_come_up(draft: Draft) -> None:
    for tier in (*(tier.name for tier in draft.spec.tiers), None):
        if not draft.held_back(tier):
            continue
        failed, where = draft.failed_starts(tier), tier or "the warm pool"
        names = ", ".join(seen.id for seen in failed) or "what was started last"
        if failed and all(seen.unplaced for seen in failed):
            why = f"{where} waits for a place for {names}"
        else:
            why = f"{names} did not come up; {where} starts no other in its place before it is time to try again"
        draft.hold(HoldCause.NOT_COMING_UP, why, tier)
