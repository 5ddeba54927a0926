"""How many instances the load asks for: the law of scaling.up and scaling.down, without any action. `decide` turns it into actions.

Instances serve each other's tiers, and every placement lets a looser tier's work onto a tighter tier's instances. So the law
counts over *prefixes*: the tightest tier, the two tightest, ..., all. The need of a prefix is the work of its tiers over the
target fill; only that sum is rounded up. The fleet as a whole rounds once, not once a tier, and no tier ever depends on looser
instances than its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, log10, sqrt

from multislo_operator.decide.fleet import FleetObserved, FleetSpec, InstanceState, TierObserved
from multislo_operator.decide.memory import PEAK_BUCKETS, Memory, with_peak
from multislo_operator.decide.pressure import lingers, waiting, with_pressure, without_pressure

EXTRA_MAX = 0.25
"""Growth foreseen over one start-up, and work piled up, add at most this share of the work together: trends are noisy and extrapolating
them gains little, and what is piled up is mostly late by the time that an instance has started."""
NOISE_WINDOW_S = 10.0
"""Time constant of the router's averages: what arrives in it at random makes their noise."""
GROWTH_DEAD = 2.5
"""Growth below this many standard deviations of the trend's own noise is taken for noise."""
AVERAGES_APART_S = 20.0
"""The router's trend is the difference of a mean over 10 s and one over 30 s, over the time between their middles."""
AVERAGE_LAG_S = 10.0
"""A mean over 10 s shows a ramp so late; what is started now must fit the work after this and the start-up time."""
LABEL_SPARE = 1
"""A tier keeps this many instances more than it and the tighter ones need while the fleet keeps its size: changing homes to and fro
serves nobody, since a spare instance serves looser tiers anyway."""
GROWTH_HORIZON_MAX_S = 30.0
"""Extrapolation reaches no further ahead than the averages look back."""
BACKLOG_SPAN_MIN_S = 10.0
"""The backlog is to be worked off within one start-up time, but no sooner than this."""
SLOWER_MAX = 2.0
"""Engines that are measured slower than the profile raise the need by at most this factor: beyond it the profile is wrong."""
NOISE_DEAD = 2.0
"""The mean over 10 s is taken for the work only where it is more than this many standard deviations of its own noise above the mean over
30 s. Within them it is chance, which the room is there for: to start an instance for a peak of it, or keep one, is to pay for it twice."""
SHRINK_MARGIN, SHRINK_NOISES = 0.05, 0.5
"""Shrinking goes by the mean over 30 s with this share and so many standard deviations of the mean over 10 s more: the gap between going
up and coming down. The mean over 30 s scatters by 0.6 of them."""
CONFIRM_S = 2.5
"""A need that comes from averages must last this long."""
CHANCE_SHARE = 0.4
"""Of the room that the fill target leaves, this is there for what arrives at random. It grows with that noise, so with the root of the
traffic: few long requests need more of it than many short ones. The rest is there for bursts, in proportion to the work."""
NOISE_USUAL = 0.08
"""Of the work: where the noise is this, the fleet is planned just as full as the target says."""
CHANCE_MIN, CHANCE_MAX = 0.5, 2.0
"""Times the work at the usual noise: real traffic scatters more than at random where it is dense, and a handful of requests tells little
of how it does."""
ROUNDING = 0.02
"""Hundredths of an instance are no reason for a whole one."""
GAP_MAX_S = 10.0
"""After a longer time without figures the stabilisation time begins anew."""


def fill_target(attainment: float) -> float:
    """How full the fleet may be planned: 0.86 of it to defend 90 %, 0.74 for 99 %, 0.62 for 99.9 %.

    A well placed fleet of twenty holds 0.95 in steady state, a handful of instances less; the rest is for bursts within one start-up time,
    and each nine costs as much. So chosen that a day with bursts attains about what was asked (docs/experiments.md, 8).
    """
    nines = -log10(max(1.0 - attainment, 1e-4))
    return max(0.62, 0.98 - 0.12 * nines)


@dataclass(frozen=True, slots=True)
class Need:
    """What the tiers up to and including `tier` (tightest first) ask for; all in instances."""

    tier: str
    work: float
    """As far as it is not chance."""
    growth: float
    backlog: float
    noise: float
    """Standard deviation of the work's mean over 10 s, had its requests arrived at random."""
    quota: float
    """Sum of work, growth and backlog with the room that the target fill leaves, as far as their noise asks for it."""
    quota_calm: float
    """The quota of the work's mean over 30 s with the margin for shrinking."""


def needs(spec: FleetSpec, observed: FleetObserved, weights: Mapping[str, float]) -> tuple[Need, ...]:
    """The need of each prefix of tiers, tightest first; `weights` as in `Memory`."""
    assert observed.tiers is not None
    seen = {tier.name: tier for tier in observed.tiers}
    fill = fill_target(spec.attainment)
    slower = _slower(observed)
    horizon_s = min(spec.startup_s + AVERAGE_LAG_S + CONFIRM_S, GROWTH_HORIZON_MAX_S)
    dead = GROWTH_DEAD * horizon_s / AVERAGES_APART_S
    answer = []
    fast = slow = trend = backlog = arrivals = 0.0
    for tier in spec.tightest_first:
        now = seen[tier.name]
        weight = slower * weights.get(tier.name, 1.0)
        # A tier's traffic can ask for no more than its own maximum, though others may serve it.
        fast += min(now.work_rate * weight, tier.instances_max * fill)
        slow += min(_work_slow(now) * weight, tier.instances_max * fill)
        trend += now.work_rate_trend * weight
        arrivals += now.arrival_rate
        count, oldest_s = waiting(observed, now)
        if lingers(tier, oldest_s):
            piled_up = weight * now.work_rate * count / max(spec.startup_s, BACKLOG_SPAN_MIN_S)
            backlog += ratio(piled_up, now.arrival_rate, most=tier.instances_max)
        noise = fast / sqrt(arrivals * NOISE_WINDOW_S) if arrivals > 0.0 else 0.0
        work = fast if fast - slow > NOISE_DEAD * noise else slow
        backlog = min(backlog, EXTRA_MAX * work)
        growth = min(max(trend * horizon_s - dead * noise, 0.0), EXTRA_MAX * work - backlog)
        extra = growth + backlog
        quota = _quota(work + extra, noise, fill)
        calm = _quota((1.0 + SHRINK_MARGIN) * slow + SHRINK_NOISES * noise + extra, noise, fill)
        answer.append(Need(tier.name, work, growth, backlog, noise, quota, calm))
    return tuple(answer)


def ratio(part: float, whole: float, most: float) -> float:
    """`part / whole`, at most `most`, of two numbers from 0 on. Never infinite, whatever is next to nothing; 0 of nothing is 0."""
    if part < most * whole:
        return part / whole
    return most if part > 0.0 else 0.0


def _work_slow(now: TierObserved) -> float:
    """The router's mean over 30 s, from its mean over 10 s and its trend."""
    return max(now.work_rate - AVERAGES_APART_S * now.work_rate_trend, 0.0)


def _quota(needed: float, noise: float, fill: float) -> float:
    """With room: a share of the need itself where the noise is the usual."""
    chance = min(max(noise / NOISE_USUAL, CHANCE_MIN * needed), CHANCE_MAX * needed)
    spare = (1.0 - CHANCE_SHARE) * needed + CHANCE_SHARE * chance
    return needed + (1.0 / fill - 1.0) * spare


def _slower(observed: FleetObserved) -> float:
    """How much longer the engines take than their profile says; the work rate is in the profile's seconds."""
    measured = [i.calibration for i in observed.instances if i.state is InstanceState.READY]
    return min(max(sum(measured) / len(measured), 1.0), SLOWER_MAX) if measured else 1.0


def remember(spec: FleetSpec, observed: FleetObserved, memory: Memory, found: Sequence[Need], now: float) -> Memory:
    """The memory with this observation in it; without figures (`found` empty) only what must be forgotten is."""
    if not found or observed.tiers is None:
        return without_pressure(replace(memory, recent=()))
    fresh = observed.router_is_young or memory.known_at is None or now - memory.known_at > GAP_MAX_S
    since = None if observed.router_is_young else now if fresh or memory.known_since is None else memory.known_since
    quotas = tuple(need.quota for need in found)
    recent = (*((at, q) for at, q in memory.recent if now - CONFIRM_S <= at < now), (now, quotas))
    kept = replace(
        with_pressure(spec, observed, memory, fill_target(spec.attainment), now),
        recent=recent,
        peaks=() if fresh else memory.peaks,
        known_since=since,
        known_at=now,
    )
    confirmed = [min(column) for column in zip(*(quotas for _, quotas in recent), strict=True)]
    return with_peak(kept, spec, now, [max(c, need.quota_calm) for c, need in zip(confirmed, found, strict=True)])


Lost = Callable[[str, int], int]
"""Of so many instances that a tier shall have: those that it has not, and that are not started since starts have failed."""


def _none_lost(tier: str, count: int) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Per prefix of tiers: at least `low` instances now, and no use for more than `high` (None: not known long enough)."""

    low: tuple[int, ...]
    high: tuple[int, ...] | None
    span_s: float
    """The stabilisation time as it is now."""


def bounds(spec: FleetSpec, memory: Memory, now: float, lost: Lost) -> Bounds:
    confirmed = [min(column) for column in zip(*(quotas for _, quotas in memory.recent), strict=True)]
    low = whole(spec, confirmed, lost)
    span_s = memory.patience * spec.stabilization_s
    if memory.known_since is None or now - memory.known_since < span_s:
        return Bounds(low, None, span_s)
    width = span_s / PEAK_BUCKETS
    recent = [peak for at, peak in memory.peaks if now - at <= span_s + width]
    peaks = [max(column) for column in zip(*recent, strict=True)]
    return Bounds(low, _with_spare(spec, whole(spec, peaks)), span_s)


def _with_spare(spec: FleetSpec, high: tuple[int, ...]) -> tuple[int, ...]:
    """A spare one for each prefix but the last, as far as the whole fleet's number and the looser tiers' minima leave one."""
    room = high[-1]
    answer = [room]
    for tier, count in zip(reversed(spec.tightest_first[1:]), reversed(high[:-1]), strict=True):
        room -= tier.least
        answer.append(max(count, min(count + LABEL_SPARE, room)))
    return tuple(reversed(answer))


def whole(spec: FleetSpec, quotas: Sequence[float], lost: Lost = _none_lost) -> tuple[int, ...]:
    """Whole instances per prefix, with each tier's minimum and maximum kept. Those of tighter tiers that do not come up serve nobody."""
    total = 0
    answer = []
    for tier, quota in zip(spec.tightest_first, quotas, strict=True):
        own = min(max(ceil(quota - ROUNDING) - total, tier.least), tier.instances_max)
        answer.append(total + own)
        total += own - lost(tier.name, own)
    return tuple(answer)
