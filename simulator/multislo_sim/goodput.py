"""Goodput: the highest rate at which a share of the requests is in time, for each contender on one workload. Called by
`multislo simulate goodput`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor, log, log1p
from statistics import mean

from multislo_perf.profile import Profile
from multislo_sim.bound import bound
from multislo_sim.contenders import Contender, Knob, contender_named
from multislo_sim.trial import Played, Window, arriving, classed, fleet_of, homes_of, play
from multislo_sim.workloads.request import Request

LEVELS = (0.90, 0.99)
STRIDE = 0.06
"""The search strides by so much until it has the rate between two."""
SCOUT = Window(30.0, 20.0, 5.0)
SCOUT_STEP = 0.02
"""Where the window is long, a search with a short one and one seed goes before, and tells where to begin."""
SCOUT_FLATTERS = 0.02
"""It is believed less so much."""
SCOUTED_STRIDE = 0.02
LATEST = 3.0
"""Times the TTFT: a policy whose tail is bounded lets nobody wait for longer."""
LEAST_OF_BOUND = 0.04
"""Of the bound: below it a goodput is given as 0."""


@dataclass(frozen=True, slots=True)
class Arena:
    """The workload, and the precision of the measurement."""

    profile: Profile
    lengths: tuple[Request, ...]
    instances: int = 20
    seeds: tuple[int, ...] = (1,)
    window: Window = field(default_factory=Window)
    step: float = 0.01
    """Rates are tried on a grid of this relative spacing."""
    rejecting: bool = False
    """Whether requests may be refused; a refused one is a missed one."""


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests a second at each of `LEVELS`, and every rate that was tried with its attainment. `bounded`: at the highest level, with a
    bounded tail (`bounded_rate`); None where it was not looked for."""

    policy: str
    rates: Mapping[float, float]
    tried: Mapping[float, float]
    bounded: float | None = None


def bounds(arena: Arena) -> dict[float, float]:
    """The fluid bound at each of `LEVELS`: all served, or with rejection."""
    requests = classed(arena.lengths, arena.profile, arena.seeds[0])[0]
    law, kv_tokens_max = arena.profile.latency, arena.profile.kv_tokens_max
    return {level: bound(requests, law, kv_tokens_max, arena.instances, level, arena.rejecting) for level in LEVELS}


def goodput(
    arena: Arena, policy: str | Contender, knobs: Mapping[str, Knob] | None = None, levels: Sequence[float] = LEVELS
) -> Goodput:
    """Search one contender's goodput."""
    contender = contender_named(policy) if isinstance(policy, str) else policy
    prepared = {seed: classed(arena.lengths, arena.profile, seed)[0] for seed in arena.seeds}

    def share(seed: int, rate: float, least: float) -> float:
        return played_at(arena, contender, knobs, seed, prepared[seed], rate, least).share

    starts = None
    if arena.window.total_s > 2.0 * SCOUT.total_s:
        scout = replace(arena, window=SCOUT, seeds=arena.seeds[:1], step=max(arena.step, SCOUT_STEP))
        starts = goodput(scout, contender, knobs, levels).rates
    return searched(arena, contender.name, bounds(arena), share, levels, starts)


def searched(
    arena: Arena,
    policy: str,
    ceilings: Mapping[float, float],
    share: Callable[[int, float, float], float],
    levels: Sequence[float] = LEVELS,
    starts: Mapping[float, float] | None = None,
) -> Goodput:
    """The search itself: `share(seed, rate, least)` is that of `played_at`; `starts` are rates near which a level's goodput is believed
    to be. The attainment at a rate is the mean over the seeds."""
    ceiling = ceilings[LEVELS[0]]
    tried: dict[int, float] = {}

    def attained(step: int, level: float) -> float:
        if step not in tried:
            rate = ceiling * (1.0 + arena.step) ** step
            shares: list[float] = []
            for seed in arena.seeds:
                # Broken off where the other seeds, all in time, could not make it good; or hardly.
                rest = len(arena.seeds) - len(shares) - 1
                least = max(level - 0.02, len(arena.seeds) * level - sum(shares) - rest)
                shares.append(share(seed, rate, least))
                if shares[-1] == 0.0 or sum(shares) + rest < len(arena.seeds) * level:
                    break
            tried[step] = mean(shares)
        return tried[step]

    rates: dict[float, float] = {}
    start = round(-STRIDE / arena.step)
    stride = max(1, round((SCOUTED_STRIDE if starts else STRIDE) / arena.step))
    least_step = lowest(arena.step)
    for level in sorted(levels):
        # No policy exceeds the bound: what a short window would show above it is not tried.
        top = floor(log(ceilings[level] / ceiling) / log1p(arena.step) + 1e-9)

        def holds(step: int, level: float = level, top: int = top) -> bool:
            return step <= top and attained(step, level) >= level

        if starts:
            near = starts[level] * (1.0 - SCOUT_FLATTERS) / ceiling
            near_step = max(least_step, floor(log(near) / log1p(arena.step))) if near > 0.0 else least_step
            start = near_step if level == min(levels) else min(start, near_step)
        best = highest(holds, start, least_step, stride)
        rates[level] = 0.0 if best is None else ceiling * (1.0 + arena.step) ** best
        if best is None:
            rates.update(dict.fromkeys((other for other in levels if other > level), 0.0))
            break
        start = best
    return Goodput(
        policy, rates, {ceiling * (1.0 + arena.step) ** step: share for step, share in sorted(tried.items())}
    )


def bounded_rate(arena: Arena, policy: str, knobs: Mapping[str, Knob] | None, found: float) -> float:
    """The highest rate, up to the `found` one of the highest of `LEVELS`, at which that share is in time and no request of any seed waits
    for more than `LATEST` times its TTFT."""
    contender = contender_named(policy)
    prepared = {seed: classed(arena.lengths, arena.profile, seed)[0] for seed in arena.seeds}

    def holds(step: int) -> bool:
        if step > 0:
            return False
        shares: list[float] = []
        for seed, requests in prepared.items():
            played = played_at(arena, contender, knobs, seed, requests, found * (1.0 + arena.step) ** step)
            if played.share == 0.0 or played.latest > LATEST:
                return False
            shares.append(played.share)
        return mean(shares) >= max(LEVELS)

    if found <= 0.0:
        return 0.0
    best = highest(holds, 0, lowest(arena.step), max(1, round(SCOUTED_STRIDE / arena.step)))
    return 0.0 if best is None else found * (1.0 + arena.step) ** best


def played_at(
    arena: Arena,
    contender: Contender,
    knobs: Mapping[str, Knob] | None,
    seed: int,
    requests: Sequence[Request],
    rate: float,
    least: float = 0.0,
) -> Played:
    """A contender at a rate; with less than `least` of the requests in time it is only known that it is less."""
    setup = contender.setup(arena.profile, seed, knobs)
    load = arriving(requests, rate, arena.window.total_s, seed)
    fleet = fleet_of(setup, arena.profile, homes_of(arena.instances, setup.home_shares), load, arena.rejecting)
    return play(fleet, arena.window, least)


def lowest(step: float) -> int:
    """The number of `LEAST_OF_BOUND` on the grid of rates."""
    number, share = 0, 1.0
    while share > LEAST_OF_BOUND:
        share /= 1.0 + step
        number -= 1
    return number


def highest(holds: Callable[[int], bool], start: int, lowest: int, stride: int) -> int | None:
    """The highest number for which something holds that holds below some number and not above; None: not even for `lowest`."""
    if holds(start):
        good = start
        while holds(good + stride):
            good += stride
            stride *= 2
        bad = good + stride
    else:
        bad = start
        while True:
            good = max(lowest, bad - stride)
            if holds(good):
                break
            if good == lowest:
                return None
            bad = good
            stride *= 2
    while bad - good > 1:
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good
