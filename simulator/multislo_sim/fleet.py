"""A fleet in simulated time: the production `RouterCore` before as many engine models as the scenario names. Jumps from event to event.
Belief and truth are two objects: the core has its own latency model and sees tokens when they arrive; output lengths and the true
latency are the engines' alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

from multislo_engine.model import EngineConfig, EngineModel, EngineRequest
from multislo_engine.planners import Planner, planner_named
from multislo_perf.latency import LatencyModel
from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.config import CoreConfig
from multislo_router.core.machine import RouterCore
from multislo_router.core.placement import OfferBy, PlaceBy, offered
from multislo_router.core.request import Stage
from multislo_sim.workloads.request import Request

_PLANNERS = {e.Scheduler.FCFS: "fcfs", e.Scheduler.PRIORITY: "priority", e.Scheduler.SLO_AWARE: "slo-aware"}


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated. `homes` names the home tier of each instance (None: warm pool)."""

    core: CoreConfig
    homes: tuple[str | None, ...]
    truth: LatencyModel
    place_by: PlaceBy | None = None
    offer_by: OfferBy = offered
    planner: Planner | None = None
    """Of every engine; None: the one that goes with the core's scheduler."""
    batch_tokens: Mapping[int, int] = field(default_factory=dict)
    """Token budgets of single instances, by number, where they are not their tier's."""
    check_every_event: bool = False


@dataclass(slots=True)
class Record:
    """What became of one request."""

    request: Request
    tier: str
    instance: int = -1
    tokens: int = 0
    missed: int = 0
    """Tokens that came after their deadline."""
    first_token_s: float = inf
    finished_at: float = inf
    refused: d.Cause | None = None
    kind: d.Kind | None = None

    @property
    def met(self) -> bool:
        return self.refused is None and self.missed == 0 and self.finished_at < inf


@dataclass(slots=True)
class Outcome:
    records: list[Record]
    core: RouterCore
    ended_at: float
    events: int = 0
    iterations: int = 0
    preemptions: int = 0
    busy: list[float] = field(default_factory=list)


Watch = Callable[["SimulatedFleet"], bool]
_WATCH = -2
_UNSERVED = (Stage.HELD, Stage.PREFILL)


class SimulatedFleet:
    """One run. `run()` once."""

    def __init__(self, scenario: Scenario, requests: Sequence[Request]) -> None:
        self.scenario = scenario
        config = scenario.core
        self.core = RouterCore(config, scenario.place_by, scenario.offer_by)
        tiers = {tier.name: tier for tier in config.tiers}
        self.names = [f"i{index}" for index in range(len(scenario.homes))]
        self.index = {name: index for index, name in enumerate(self.names)}
        limits = config.engine
        self.engines = [
            EngineModel(
                scenario.truth,
                EngineConfig(
                    kv_tokens_max=limits.kv_tokens_max,
                    batch_tokens=scenario.batch_tokens.get(index)
                    or (tiers[home].batch_tokens if home else limits.warm_batch_tokens),
                    seqs_max=limits.seqs_max,
                ),
                scenario.planner or planner_named(_PLANNERS[limits.scheduler], config.latency),
            )
            for index, home in enumerate(scenario.homes)
        ]
        self.records = [
            Record(request, request.tier or config.default_tier) for request in sorted(requests, key=lambda r: r.at_s)
        ]
        self.ended_late: list[int] = []
        """Numbers of the records that ended with a deadline missed."""
        self._heap: list[tuple[float, int, int]] = []
        """(time, order, what): what >= 0 an engine's iteration ends, else the core's own clock or `_WATCH`."""
        self._order = 0
        self.now = 0.0

    def run(self, until: float = inf, watch: Watch | None = None, watch_every_s: float = 5.0) -> Outcome:
        """Play all arrivals and whatever follows from them, at most until `until`, or until `watch`, asked now and then, says enough."""
        if watch is not None:
            self._push(watch_every_s, _WATCH)
        specs = [
            e.InstanceSpec(name, home, e.InstanceState.READY, self.scenario.batch_tokens.get(index))
            for index, (name, home) in enumerate(zip(self.names, self.scenario.homes, strict=True))
        ]
        self._carry_out(self.core.handle(e.FleetChanged(0.0, specs)))
        arrivals = 0
        heap = self._heap
        events = 0
        while True:
            at = self.records[arrivals].request.at_s if arrivals < len(self.records) else inf
            if heap and heap[0][0] <= at:
                self.now, _, what = heappop(heap)
                if self.now > until:
                    break
                if what >= 0:
                    self._iteration_ended(what)
                elif what == _WATCH:
                    if watch is not None and watch(self):
                        break
                    self._push(self.now + watch_every_s, _WATCH)
                    continue
                elif self.core.wake_at is not None and self.core.wake_at <= self.now:
                    self._carry_out(self.core.handle(e.Tick(self.now)))
            elif at < inf:
                self.now = at
                if at > until:
                    break
                self._arrive(arrivals)
                arrivals += 1
            else:
                break
            events += 1
            if self.scenario.check_every_event:
                self.core.check()
        return Outcome(
            self.records,
            self.core,
            self.now,
            events,
            sum(engine.iterations for engine in self.engines),
            sum(engine.preemptions for engine in self.engines),
        )

    def late_now(self) -> set[int]:
        """Numbers of the records that are not over and have missed a deadline by now."""
        now = self.now
        late = {id for engine in self.engines for id in engine.late(now)}
        late.update(r.id for r in self.core.pending if r.due < now)
        return late

    def backlog_s(self) -> float:
        """Seconds of prefill work for each instance that have not yielded a first token."""
        work_s = sum([r.prefill_work_s for r in self.core.requests.values() if r.stage in _UNSERVED])
        return work_s / len(self.engines)

    def _arrive(self, number: int) -> None:
        request = self.records[number].request
        event = e.RequestArrived(
            self.now, number, request.prompt_tokens, None, request.tier, request.ttft_s, request.tpot_s
        )
        self._carry_out(self.core.handle(event))

    def _carry_out(self, made: Sequence[d.Decision]) -> None:
        for decision in made:
            record = self.records[decision.request]
            if isinstance(decision, d.Place):
                index = self.index[decision.instance]
                record.instance = index
                record.kind = decision.kind
                request = record.request
                accepted = self.engines[index].submit(
                    self.now,
                    EngineRequest(
                        decision.request,
                        request.prompt_tokens,
                        request.output_tokens,
                        decision.priority or 0,
                        decision.ttft_due,
                        decision.tpot_s,
                    ),
                )
                if not accepted:
                    raise RuntimeError(f"engine {index} refused request {decision.request}")
                self._wake_engine(index)
            elif isinstance(decision, d.Refuse):
                record.refused = decision.cause
        wake_at = self.core.wake_at
        if wake_at is not None:
            self._push(wake_at if wake_at > self.now else self.now, -1)

    def _wake_engine(self, index: int) -> None:
        at = self.engines[index].next_at()
        if at is not None and at < inf:
            self._push(at, index)

    def _push(self, at: float, what: int) -> None:
        self._order += 1
        heappush(self._heap, (at, self._order, what))

    def _iteration_ended(self, index: int) -> None:
        engine = self.engines[index]
        due = engine.next_at()
        if due is None or due > self.now:
            return  # an entry that a later submission has made stale
        core = self.core
        now = self.now
        seen = engine.end_iteration()
        if seen.decoded:
            core.handle(e.IterationSeen(now, self.names[index], seen.left_out))
        for id, token, _, _ in seen.prefilled:
            if token == 0:
                record = self.records[id]
                record.first_token_s = now - record.request.at_s
            made = core.handle(e.TokensReceived(now, id, 1))
            if made:
                self._carry_out(made)
        for id, tokens, late in seen.ended:
            record = self.records[id]
            record.tokens = tokens
            record.missed = late
            record.finished_at = now
            if late:
                self.ended_late.append(id)
            made = core.handle(e.RequestEnded(now, id, e.Outcome.COMPLETED))
            if made:
                self._carry_out(made)
        wake_at = core.wake_at
        if wake_at is not None and (not self._heap or wake_at < self._heap[0][0]):
            self._push(wake_at if wake_at > now else now, -1)
        self._wake_engine(index)


def attainment(records: Sequence[Record], start_s: float, end_s: float) -> dict[str, float]:
    """Share of requests that arrived in [start_s, end_s) and met every deadline, per tier and over `all`. Unfinished ones missed."""
    met: dict[str, int] = {"all": 0}
    seen: dict[str, int] = {"all": 0}
    for record in records:
        if start_s <= record.request.at_s < end_s:
            for name in (record.tier, "all"):
                seen[name] = seen.get(name, 0) + 1
                met[name] = met.get(name, 0) + record.met
    return {name: met[name] / count for name, count in seen.items() if count}
