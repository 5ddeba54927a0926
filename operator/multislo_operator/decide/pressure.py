"""Which tiers lack an instance by what happens to their requests, whatever the figures say: they wait, they are turned away, or they are
late though all should fit. Used by `need`, `goal` and `scale`."""

from dataclasses import replace
from math import sqrt

from multislo_operator.decide.fleet import (
    FleetObserved,
    FleetSpec,
    InstanceObserved,
    InstanceState,
    TierObserved,
    TierSpec,
)
from multislo_operator.decide.memory import Memory

PENDING_MOMENT_S = 0.25
"""Requests may wait in the router this long, or for half of their TTFT, without being a reason to grow."""
PRESSED_S = 0.75
"""Pending for longer than a moment must last this long (or one request must have waited twice as long) before the tier counts as
pressed. With no instance at all, the first request that waits is reason enough. At 0.5 s a steady load begins to flap."""
PRESSED_IDLE_S = 10.0
"""The same where the instances are less than half full: then it is rarely capacity that lacks."""
SETTLE_MIN_S, SETTLE_SHARE, SETTLE_MAX_S = 5.0, 0.2, 20.0
"""An instance that has just become ready (or changed its tier) needs this share of a start-up before still-pending requests ask for
another: what had piled up meanwhile comes first."""
TURNED_AWAY_AVERAGE_S = 10.0
FULL = 0.9
"""Of the target fill. Before it stock engines lose long prompts now and then whatever their number."""
TURNED_AWAY_FULL, TURNED_AWAY_BURST = 0.05, 0.3
"""A second, beside what the goal allows. One that is turned away (it adds a tenth to the mean) tells something where the instances have
been full for a while; where they have just become so, only more than three do."""
CALM_S, CALM_MAX_S = 30.0, 120.0
"""Late requests say something about the size of a fleet once it has had what it wanted for so long: who ends sooner was placed before.
They are counted over at most the second, then anew."""
LATE_NOISES, LATE_LEAST = 2.0, 3.0
"""A tier has more late ones than its goal allows where it is so many standard deviations of their number more, and so many."""


def waiting(observed: FleetObserved, tier: TierObserved) -> tuple[int, float]:
    """Requests that wait for an instance, and the oldest one's age. Those that are late already get what the others leave: what is
    started for them comes when they have gone. With no instance at all they wait for the first."""
    if _serves(observed):
        return tier.pending_in_time, tier.pending_in_time_oldest_s
    return tier.pending, tier.pending_oldest_s


def lingers(tier: TierSpec, oldest_s: float) -> bool:
    return oldest_s > max(PENDING_MOMENT_S, 0.5 * tier.ttft_s)


def with_pressure(spec: FleetSpec, observed: FleetObserved, memory: Memory, fill: float, now: float) -> Memory:
    """The memory with what happened to the requests since."""
    tiers = observed.tiers or ()
    passed_s = now - memory.known_at if memory.known_at is not None else 0.0
    rates = {tier.name: _turned_away_rate(memory, tier, passed_s) for tier in tiers}
    busy = is_half_full(observed, fill)
    least = TURNED_AWAY_FULL if mean_load(observed) >= FULL * fill else TURNED_AWAY_BURST
    wanted = {tier.name: tier for tier in spec.tiers}
    since = {}
    for tier in tiers:
        if tier.name not in wanted:
            continue
        # A goal of 99 % allows a hundredth to be turned away; twice that is want of capacity, if the instances are busy at all.
        allowed = 2.0 * (1.0 - spec.attainment) * tier.arrival_rate + least
        if lingers(wanted[tier.name], waiting(observed, tier)[1]) or (busy and rates[tier.name] > allowed):
            since[tier.name] = memory.pressed_since.get(tier.name, now)
    calm_since = memory.calm_since
    if since or not is_calm(spec, observed):
        calm_since = None
    elif calm_since is None or now - calm_since > CALM_MAX_S:
        calm_since = now
    counts = memory.calm_counts
    if calm_since != memory.calm_since:
        counts = {tier.name: (tier.met, tier.missed) for tier in tiers}
    return replace(
        memory,
        pressed_since=since,
        turned_away={tier.name: tier.turned_away for tier in tiers},
        turned_away_rate=rates,
        calm_since=calm_since,
        calm_counts=counts,
    )


def without_pressure(memory: Memory) -> Memory:
    """The memory after a moment without figures."""
    return replace(memory, pressed_since={}, turned_away={}, turned_away_rate={}, calm_since=None)


def pressed(spec: FleetSpec, observed: FleetObserved, memory: Memory, fill: float, now: float) -> dict[str, str]:
    """The tiers that lack an instance: what happens to their requests, in words."""
    busy = is_half_full(observed, fill)
    patience_s = (PRESSED_S if busy else PRESSED_IDLE_S) if _serves(observed) else 0.0
    answer = {}
    for tier in observed.tiers or ():
        since = memory.pressed_since.get(tier.name)
        if since is not None:
            waited_s = waiting(observed, tier)[1]
            if now - since >= patience_s or (busy and waited_s >= 2.0 * PRESSED_S):
                answer[tier.name] = "requests wait"
        elif busy and _is_late(spec, memory, tier):
            answer[tier.name] = "requests are late"
    return answer


def settle_s(spec: FleetSpec) -> float:
    return min(max(SETTLE_SHARE * spec.startup_s, SETTLE_MIN_S), SETTLE_MAX_S)


def mean_load(observed: FleetObserved) -> float:
    """Of all instances that hold work; 1 where there is none, since then nothing has room."""
    loads = [i.load for i in observed.instances if _holds_work(i)]
    return sum(loads) / len(loads) if loads else 1.0


def is_half_full(observed: FleetObserved, fill: float) -> bool:
    """Of its target, by the average or at this moment."""
    loads = [i.load_now for i in observed.instances if _holds_work(i)]
    now = sum(loads) / len(loads) if loads else 1.0
    return max(now, mean_load(observed)) >= 0.5 * fill


def _turned_away_rate(memory: Memory, tier: TierObserved, passed_s: float) -> float:
    rate = memory.turned_away_rate.get(tier.name, 0.0)
    if passed_s <= 0.0:
        return rate
    more = max(0, tier.turned_away - memory.turned_away.get(tier.name, tier.turned_away))
    share = min(1.0, passed_s / TURNED_AWAY_AVERAGE_S)
    return (1.0 - share) * rate + share * more / passed_s


def is_calm(spec: FleetSpec, observed: FleetObserved) -> bool:
    """Whether nothing comes and nothing has changed of late. What has failed to start changes nothing."""
    return all(
        seen.has_failed_to_start(spec) or (seen.state is InstanceState.READY and seen.since_s >= CALM_S)
        for seen in observed.instances
    )


def _is_late(spec: FleetSpec, memory: Memory, tier: TierObserved) -> bool:
    """Whether more of a calm fleet's requests were late than the goal allows."""
    if memory.calm_since is None or tier.name not in memory.calm_counts:
        return False
    met_before, missed_before = memory.calm_counts[tier.name]
    met, missed = tier.met - met_before, max(0, tier.missed - missed_before)
    if met < 0:
        return False  # another router counts from 0
    allowed = (1.0 - spec.attainment) * (met + missed)
    return missed > allowed + LATE_NOISES * sqrt(allowed) + LATE_LEAST


def _serves(observed: FleetObserved) -> bool:
    return any(_holds_work(seen) for seen in observed.instances)


def _holds_work(seen: InstanceObserved) -> bool:
    return seen.state in (InstanceState.READY, InstanceState.DRAINING)
