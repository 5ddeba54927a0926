"""One trial: a contender on a fixed simulated fleet under Poisson arrivals of a trace's lengths, with PolyServe's SLO classes. Called by
`multislo simulate` and by the experiments."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from multislo_perf.profile import Profile
from multislo_router.core.config import CoreConfig, EngineLimits, Overload, TierConfig
from multislo_router.core.events import Scheduler
from multislo_sim.contenders import Setup
from multislo_sim.fleet import Record, Scenario, SimulatedFleet
from multislo_sim.workloads.arrivals import stamps, steady
from multislo_sim.workloads.request import Request
from multislo_sim.workloads.tiers import POLYSERVE_TPOT_S, with_polyserve_classes

KV_SHARE_MAX = 0.9
"""Requests that need more than this share of an instance's KV cache are left out: no policy could serve them beside another."""
IDLE_BATCH_TOKENS = 2048
"""Token budget of the idle instance that must be able to meet an SLO that is assigned: the same for all policies, whatever theirs is."""
BACKLOG_MAX_S = 2.0
"""Prefill work for each instance at the end, in the tier that has most of it: more is a queue that grows, and nothing counts as served."""
HOPELESS_S = 4.0
"""More than this at any time, and the run is broken off."""


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds: of load before the requests that count arrive, while they arrive, and after it. There is no draining: load goes on to
    the end, and unfinished requests are judged by the deadlines that have passed."""

    warmup_s: float = 100.0
    measured_s: float = 80.0
    after_s: float = 20.0

    @property
    def total_s(self) -> float:
        return self.warmup_s + self.measured_s + self.after_s


@dataclass(frozen=True, slots=True)
class Played:
    """The result of a trial. `attained` by tier and over `all`;a run that was stopped early has its attainment so far as an upper
    limit."""

    attained: Mapping[str, float]
    requests: int
    backlog_s: float
    broken_off: bool
    latest: float
    """The longest wait for a first token, of an unserved request's so far, as a multiple of its TTFT. Refused ones do not count."""
    ttft_attained: float
    events: int
    records: Sequence[Record]
    fleet: SimulatedFleet

    @property
    def share(self) -> float:
        """Of the requests that count, those in time; 0 where a queue was growing."""
        return 0.0 if self.backlog_s > BACKLOG_MAX_S else self.attained["all"]


def classed(lengths: Sequence[Request], profile: Profile, seed: int) -> tuple[list[Request], int]:
    """The requests that some instance can serve, in an order drawn by the seed, each with its SLO; and how many are left out."""
    kv_tokens_max = KV_SHARE_MAX * profile.kv_tokens_max
    fitting = [request for request in lengths if request.prompt_tokens + request.output_tokens <= kv_tokens_max]
    Random(seed).shuffle(fitting)
    kept, unattainable = with_polyserve_classes(fitting, profile.latency, lambda _: IDLE_BATCH_TOKENS, seed)
    return kept, unattainable + len(lengths) - len(fitting)


def arriving(requests: Sequence[Request], rate: float, duration_s: float, seed: int) -> list[Request]:
    """As Poisson at `rate`, from the start again when they run out."""
    count = len(requests)
    made = []
    for index, at_s in enumerate(stamps(steady(rate, duration_s), seed)):
        of = requests[index % count]
        made.append(Request(at_s, of.prompt_tokens, of.output_tokens, of.tier, of.ttft_s, of.tpot_s))
    return made


def scenario_of(setup: Setup, profile: Profile, homes: Sequence[str | None], rejecting: bool = False) -> Scenario:
    """A contender's fleet. The profile is what all believe, and the truth."""
    overload = Overload.REJECT if rejecting else Overload.QUEUE
    tiers = tuple(
        TierConfig(tier_name(tpot_s), 0.5, tpot_s, overload, budget) for tpot_s, budget in setup.budgets.items()
    )
    limits = EngineLimits(profile.kv_tokens_max, scheduler=setup.scheduler)
    core = CoreConfig(tiers, tiers[-1].name, profile.latency, limits, setup.placement)
    own_budgets: dict[int, int] = {}
    schedulers: dict[int, Scheduler] = {}
    if setup.stock_half is not None:
        by_name = {tier_name(tpot_s): budget for tpot_s, budget in setup.stock_half.items()}
        for index in range(1, len(homes), 2):
            schedulers[index] = Scheduler.FCFS
            own_budgets[index] = by_name[homes[index] or tiers[-1].name]
    return Scenario(
        core,
        tuple(homes),
        profile.latency,
        setup.place_by,
        setup.offer_by,
        setup.planner,
        own_budgets,
        schedulers=schedulers,
    )


def fleet_of(
    setup: Setup, profile: Profile, homes: Sequence[str | None], requests: Sequence[Request], rejecting: bool = False
) -> SimulatedFleet:
    scenario = scenario_of(setup, profile, homes, rejecting)
    if rejecting and setup.place_by is not None:
        scenario = replace(scenario, door=setup.door)
    return SimulatedFleet(scenario, requests)


def play(fleet: SimulatedFleet, window: Window, floor: float = 0.0) -> Played:
    """Run a fleet; broken off as soon as it is certain that less than `floor` of the requests are in time."""
    start_s, end_s = window.warmup_s, window.warmup_s + window.measured_s
    numbers = range(len(fleet.records))
    counted = [n for n in numbers if start_s <= fleet.records[n].request.at_s < end_s]
    first, last = (counted[0], counted[-1]) if counted else (0, -1)
    missed_max = (1.0 - floor) * len(counted)
    broken_off = False

    def hopeless(fleet: SimulatedFleet) -> bool:
        nonlocal broken_off
        missed = sum([first <= n <= last for n in (*fleet.ended_late, *fleet.late_now())])
        missed += sum([fleet.records[n].refused is not None for n in counted])
        broken_off = missed > missed_max or fleet.backlog_s() > HOPELESS_S
        return broken_off

    enabled = gc.isenabled()
    gc.disable()  # what a run makes is kept to its end anyway
    try:
        outcome = fleet.run(window.total_s, hopeless if floor > 0.0 else None)
    finally:
        if enabled:
            gc.enable()
    backlog_s = fleet.backlog_s()
    late = fleet.late_now()
    seen: dict[str, list[bool]] = {"all": []}
    first_in_time = 0
    latest = 0.0
    for number in counted:
        record = outcome.records[number]
        ttft_s = record.request.ttft_s
        met = number not in late and record.missed == 0 and record.refused is None
        if broken_off and record.finished_at > fleet.now:
            met = False
        seen["all"].append(met)
        seen.setdefault(record.tier, []).append(met)
        first_in_time += ttft_s is not None and record.first_token_s <= ttft_s
        if ttft_s is not None and record.refused is None:
            latest = max(latest, min(record.first_token_s, fleet.now - record.request.at_s) / ttft_s)
    attained = {name: sum(met) / len(met) if met else 1.0 for name, met in seen.items()}
    share = first_in_time / max(1, len(counted))
    return Played(attained, len(counted), backlog_s, broken_off, latest, share, outcome.events, outcome.records, fleet)


def homes_of(instances: int, shares: Sequence[float] | None = None) -> tuple[str, ...]:
    """Home tiers in the shares of the classes, at least one each; the loosest takes what rounding leaves."""
    weights = shares or [share for _, share in POLYSERVE_TPOT_S]
    counts = [max(1, round(share * instances)) for share in weights]
    while sum(counts) > instances:
        counts[counts.index(max(counts))] -= 1
    counts[-1] += instances - sum(counts)
    return tuple(
        tier_name(tpot_s) for (tpot_s, _), count in zip(POLYSERVE_TPOT_S, counts, strict=True) for _ in range(count)
    )


def tier_name(tpot_s: float) -> str:
    return f"{tpot_s * 1000:.0f}ms"
