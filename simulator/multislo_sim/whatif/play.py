"""Simulates a case on a part of its traffic, with the production autoscaler or on a fleet of fixed size, and judges it like the
router. Called by the what-if, by the search for the smallest fleet and by `multislo plan`; runs in separate processes."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from multislo_operator.decide.fleet import FleetObserved, InstanceState
from multislo_operator.decide.need import fill_target
from multislo_operator.decide.plan import Action
from multislo_router.core.status import CoreStatus
from multislo_sim.bound import needs
from multislo_sim.fleet import SimulatedFleet
from multislo_sim.scaling import Scaler
from multislo_sim.scaling.ours import Decide
from multislo_sim.trial import BACKLOG_MAX_S, HOPELESS_S
from multislo_sim.whatif.case import Case, Counts
from multislo_sim.whatif.traffic import Slice
from multislo_sim.workloads.request import Request

STARTUP_SPREAD = 0.2
"""Instances take the profile's start-up time, so much more or less."""
SETTLED_S = 60.0
"""The router's averages begin at zero: a load that was there all along looks like one that rises, and would start instances."""


@dataclass(slots=True)
class Tally:
    """Requests of one tier that count."""

    counted: int = 0
    met: int = 0
    beyond: int = 0
    """Those that no instance could serve in time, not even an idle one."""

    @property
    def attainment(self) -> float | None:
        return self.met / self.counted if self.counted else None

    def holds(self, goal: float) -> bool:
        """Whether the goal is met by those that some fleet could serve in time."""
        return self.met >= goal * (self.counted - self.beyond)


@dataclass(frozen=True, slots=True)
class Moment:
    """The fleet at a time of the trace: instances that hold accelerators, by tier (starting and draining ones too)."""

    at_s: float
    instances: Mapping[str | None, int]
    ready: int


@dataclass(slots=True)
class Played:
    """The result of a part."""

    part: Slice
    tiers: dict[str, Tally]
    moments: list[Moment] = field(default_factory=list)
    """Only where the fleet scales; while the part counts."""
    backlog_s: float = 0.0
    """Prefill work for each instance at the end of the load."""
    broken_off: bool = False

    def holds(self, goal: float) -> bool:
        """Whether every tier met the goal, and no queue was growing."""
        if self.broken_off or self.backlog_s > BACKLOG_MAX_S:
            return False
        return all(tally.holds(goal) for tally in self.tiers.values())


class Recorded:
    """Wraps a scaler and records what it was shown. It is first asked at `SETTLED_S`."""

    def __init__(self, scaler: Scaler) -> None:
        self.scaler = scaler
        self.every_s = scaler.every_s
        self.seen: list[Moment] = []

    def actions(self, now: float, observed: FleetObserved, status: CoreStatus) -> Sequence[Action]:
        counts: dict[str | None, int] = {}
        for instance in observed.instances:
            counts[instance.tier] = counts.get(instance.tier, 0) + 1
        self.seen.append(Moment(now, counts, sum(i.state is InstanceState.READY for i in observed.instances)))
        return self.scaler.actions(now, observed, status) if now >= SETTLED_S else ()


def play_scaled(case: Case, requests: Sequence[Request], part: Slice, seed: int) -> Played:
    """The production autoscaler in the loop; at its beginning the fleet has what the first minute asks for."""
    spec = case.spec()
    recorded = Recorded(Decide(spec))
    scenario = replace(
        case.scenario(_first_counts(case, requests)),
        scaler=recorded,
        startup_s=((1.0 - STARTUP_SPREAD) * case.startup_s, (1.0 + STARTUP_SPREAD) * case.startup_s),
        seed=seed,
    )
    played = _run(case, SimulatedFleet(scenario, requests), part, None)
    zero_s = part.start_s - part.warmup_s
    played.moments = [
        Moment(moment.at_s + zero_s, moment.instances, moment.ready)
        for moment in recorded.seen
        if part.warmup_s <= moment.at_s < part.warmup_s + part.length_s
    ]
    return played


def play_fixed(
    case: Case, requests: Sequence[Request], part: Slice, counts: Counts, goal: float | None = None
) -> Played:
    """A fleet of these instances. With a `goal` the run is broken off as soon as some tier has certainly missed it."""
    return _run(case, SimulatedFleet(case.scenario(counts), requests), part, goal)


def _run(case: Case, fleet: SimulatedFleet, part: Slice, goal: float | None) -> Played:
    start_s, end_s = part.warmup_s, part.warmup_s + part.length_s
    tiers = {name: Tally() for name in case.tiers}
    counting: dict[int, Tally] = {}
    for number, record in enumerate(fleet.records):
        if start_s <= record.request.at_s < end_s:
            tally = counting[number] = tiers[record.tier]
            tally.counted += 1
            tally.beyond += case.beyond(record.request)
    played = Played(part, tiers)
    enabled = gc.isenabled()
    gc.disable()  # what a run makes is kept to its end anyway
    try:
        fleet.run(part.span_s, None if goal is None else _hopeless(played, counting, goal))
    finally:
        if enabled:
            gc.enable()
    played.backlog_s = fleet.backlog_s()
    late = fleet.late_now()
    for number, tally in counting.items():
        record = fleet.records[number]
        unknown = played.broken_off and record.finished_at > fleet.now
        tally.met += not unknown and number not in late and record.missed == 0 and record.refused is None
    return played


def _hopeless(played: Played, counting: Mapping[int, Tally], goal: float) -> Callable[[SimulatedFleet], bool]:
    seen = 0
    missed: dict[int, int] = {}
    allowed = {id(t): t.counted - goal * (t.counted - t.beyond) for t in played.tiers.values()}

    def hopeless(fleet: SimulatedFleet) -> bool:
        nonlocal seen
        for number in fleet.ended_late[seen:]:
            tally = counting.get(number)
            if tally is not None:
                missed[id(tally)] = missed.get(id(tally), 0) + 1
        seen = len(fleet.ended_late)
        played.broken_off = fleet.backlog_s() > HOPELESS_S or any(missed[key] > allowed[key] for key in missed)
        return played.broken_off

    return hopeless


def work_by_tier(case: Case, requests: Sequence[Request]) -> dict[str, float]:
    """Instance-seconds that each tier's requests take, in iterations as full as the tier's budget lets them be."""
    law = case.truth
    work = dict.fromkeys(case.tiers, 0.0)
    for request, took_s in zip(requests, needs(requests, law).work_s.tolist(), strict=True):
        work[request.tier or case.manifest.spec.default_tier] += took_s
    for name in case.tiers:
        budget = case.batch_tokens(name)
        work[name] *= max(1.0, law.tokens_s(budget) / budget / law.gemm_per_token_s)
    return work


def _first_counts(case: Case, requests: Sequence[Request]) -> dict[str, int]:
    """What the first minute's work asks for, filled as the autoscaler fills, within the manifest's limits; the tightest tiers first."""
    first = [request for request in requests if request.at_s < 60.0]
    span_s = max(1.0, first[-1].at_s) if first else 1.0
    work = work_by_tier(case, first)
    spec = case.spec()
    fill = fill_target(spec.attainment)
    left = spec.instances_max if spec.instances_max is not None else 1 << 30
    counts: dict[str, int] = {}
    total, need = 0, 0.0
    for tier in spec.tightest_first:
        need += work[tier.name] / span_s / fill
        # Over prefixes, as the autoscaler rounds: only the sum is rounded up.
        count = min(max(ceil(need - 0.02) - total, tier.least), tier.instances_max, left)
        counts[tier.name] = count
        total += count
        left -= count
    return counts
