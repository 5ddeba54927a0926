"""A fleet in simulated time: the production `RouterCore` with as many engine models as the scenario names or its scaler keeps. Jumps
from event to event. Belief and truth are two objects: the core has its own latency model and sees tokens when they arrive; output
lengths and the true latency are the engines' alone."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from random import Random

from multislo_engine.model import EngineModel
from multislo_engine.planners import Planner, planner_named
from multislo_engine.terms import EngineConfig, EngineRequest, Iteration
from multislo_operator.decide import plan as p
from multislo_operator.decide.fleet import InstanceState
from multislo_perf.latency import LatencyModel
from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.config import CoreConfig
from multislo_router.core.placement import OfferBy, PlaceBy, offered
from multislo_router.core.request import Stage
from multislo_sim.lives import Life, instance_seconds
from multislo_sim.lockstep import Door, IterationSeen, LockstepCore
from multislo_sim.scaling import Scaler
from multislo_sim.scaling.observed import fleet_observed
from multislo_sim.workloads.request import Request

_PLANNERS = {e.Scheduler.FCFS: "fcfs", e.Scheduler.PRIORITY: "priority", e.Scheduler.SLO_AWARE: "slo-aware"}


@dataclass(frozen=True, slots=True)
class Scenario:
    """The scenario of a run. `homes` names the home tier of each instance (None: warm pool)."""

    core: CoreConfig
    homes: tuple[str | None, ...]
    truth: LatencyModel
    place_by: PlaceBy | None = None
    offer_by: OfferBy = offered
    planner: Planner | None = None
    """Of every engine; None: the one that goes with the core's scheduler."""
    batch_tokens: Mapping[int, int] = field(default_factory=dict)
    """Token budgets of single instances, by number, where they are not their tier's."""
    truths: Mapping[int, LatencyModel] = field(default_factory=dict)
    """Of instances that are slower or faster than the others, by number."""
    schedulers: Mapping[int, e.Scheduler] = field(default_factory=dict)
    """Of instances whose engines schedule otherwise than the core's configuration says, by number."""
    report_delay_s: float = 0.0
    """What an engine yields reaches the router, and its client through it, so much later."""
    scaler: Scaler | None = None
    startup_s: tuple[float, float] = (60.0, 150.0)
    """An instance that the scaler starts serves after a time between these."""
    seed: int = 1
    """Of the start-up times."""
    door: Door | None = None
    """What may refuse a request where `place_by` would put it; None: nothing does."""
    check_every_event: bool = False


@dataclass(slots=True)
class Record:
    """The result of one request."""

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
    core: LockstepCore
    ended_at: float
    events: int = 0
    iterations: int = 0
    preemptions: int = 0
    lives: list[Life] = field(default_factory=list)


Watch = Callable[["SimulatedFleet"], bool]
_CORE, _WATCH, _REPORT, _SCALE, _READY = -1, -2, -3, -4, -5
"""What a heap entry is where it is no engine's iteration; `_READY` less its number: an instance serves from now on."""
_UNSERVED = (Stage.HELD, Stage.PREFILL)


class SimulatedFleet:
    """One run. `run()` once."""

    def __init__(self, scenario: Scenario, requests: Sequence[Request]) -> None:
        self.scenario = scenario
        config = scenario.core
        self.core = LockstepCore(config, scenario.place_by, scenario.offer_by, scenario.door)
        self._batch_tokens = {tier.name: tier.batch_tokens for tier in config.tiers}
        self._dice = Random(scenario.seed)
        self.lives: list[Life] = []
        self.index: dict[str, int] = {}
        """An instance's number by its name; engines and lives are in the order of their numbers, and stay when they are over."""
        self.engines: list[EngineModel] = []
        for home in scenario.homes:
            self._begin_life(home, 0.0, 0.0)
        self.records = [
            Record(request, request.tier or config.default_tier) for request in sorted(requests, key=lambda r: r.at_s)
        ]
        self._shares = _shares(self.records)
        self.ended_late: list[int] = []
        """Numbers of the records that ended with a deadline missed."""
        self._heap: list[tuple[float, int, int]] = []
        """(time, order, what): what >= 0 an engine's iteration ends, else one of the names above."""
        self._reports: deque[tuple[int, Iteration]] = deque()
        """What engines have yielded and the router has not heard of; all are late by the same time, so the first is the next."""
        self._order = 0
        self.now = 0.0

    def run(self, until: float = inf, watch: Watch | None = None, watch_every_s: float = 5.0) -> Outcome:
        """Play all arrivals and whatever follows from them, at most until `until`, or until `watch`, asked now and then, says enough."""
        if watch is not None:
            self._push(watch_every_s, _WATCH)
        if self.scenario.scaler is not None:
            self._push(0.0, _SCALE)
        self._tell_fleet()
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
                elif what == _REPORT:
                    self._told(*self._reports.popleft())
                elif what == _SCALE:
                    if arrivals == len(self.records) and not self.core.requests:
                        break
                    self._scale()
                elif what <= _READY:
                    self._serves(_READY - what)
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
            self.lives,
        )

    def late_now(self) -> set[int]:
        """Numbers of the records that are not over and have missed a deadline by now."""
        now = self.now
        late = {id for engine in self.engines for id in engine.late(now)}
        late.update(r.id for r in self.core.pending if r.slo_due < now)
        return late

    def backlog_s(self) -> float:
        """Seconds of prefill work for each instance that have not yielded a first token: those of the tier that has the most for its share
        of the work, since a queue that grows in one tier alone grows, too."""
        waiting: dict[str, float] = {}
        for request in self.core.requests.values():
            if request.stage in _UNSERVED:
                name = request.tier.name
                waiting[name] = waiting.get(name, 0.0) + request.prefill_work_s
        serving = sum([life.state is not InstanceState.STARTING and not life.gone for life in self.lives])
        return max([work_s / max(1.0, self._shares[name] * serving) for name, work_s in waiting.items()], default=0.0)

    def instance_seconds(self, from_s: float, to_s: float) -> float:
        """Seconds of accelerators held between two instants."""
        return instance_seconds(self.lives, from_s, to_s)

    def _arrive(self, number: int) -> None:
        request = self.records[number].request
        event = e.RequestArrived(
            self.now, number, request.prompt_tokens, None, request.tier, request.ttft_s, request.tpot_s
        )
        event.prefilled = request.prefilled
        self._carry_out(self.core.handle(event))

    def _carry_out(self, made: Sequence[d.Decision]) -> None:
        for decision in made:
            if isinstance(decision, d.Suspect):
                raise RuntimeError(f"{decision.instance} is suspect: {decision.reason}")  # nobody reports here
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
                        # What it yields by then is with its client in time.
                        decision.ttft_due - self.scenario.report_delay_s,
                        decision.tpot_s,
                        second_due_s=decision.second_due,
                        prefilled=request.prefilled,
                    ),
                )
                if not accepted:
                    raise RuntimeError(f"engine {index} refused request {decision.request}")
                self._wake_engine(index)
            elif isinstance(decision, d.Refuse):
                record.refused = decision.cause
        wake_at = self.core.wake_at
        if wake_at is not None:
            self._push(wake_at if wake_at > self.now else self.now, _CORE)

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
        now = self.now
        delay_s = self.scenario.report_delay_s
        seen = engine.end_iteration()
        for id, token, _, _ in seen.prefilled:
            if token == 0:
                record = self.records[id]
                record.first_token_s = now + delay_s - record.request.at_s
        for id, tokens, late in seen.ended:
            record = self.records[id]
            record.tokens = tokens
            record.missed = late
            record.finished_at = now + delay_s
            if late:
                self.ended_late.append(id)
        if delay_s > 0.0:
            self._reports.append((index, seen))
            self._push(now + delay_s, _REPORT)
        else:
            self._told(index, seen)
        self._wake_engine(index)

    def _told(self, index: int, seen: Iteration) -> None:
        """The router hears of an iteration."""
        core = self.core
        now = self.now
        if seen.decoded:
            core.iteration_seen(IterationSeen(now, self.lives[index].name, seen.left_out))
        for id, _, _, _ in seen.prefilled:
            made = core.handle(e.TokensReceived(now, id, 1))
            if made:
                self._carry_out(made)
        for id, _, _ in seen.ended:
            made = core.handle(e.RequestEnded(now, id, e.Outcome.COMPLETED))
            if made:
                self._carry_out(made)
        wake_at = core.wake_at
        if wake_at is not None and (not self._heap or wake_at < self._heap[0][0]):
            self._push(wake_at if wake_at > now else now, _CORE)

    # -- a fleet that changes ------------------------------------------------------------------------------------------

    def _begin_life(self, tier: str | None, started_at: float, ready_at: float) -> int:
        scenario = self.scenario
        limits = scenario.core.engine
        index = len(self.lives)
        own = self._batch_tokens[tier] if tier else limits.warm_batch_tokens
        config = EngineConfig(limits.kv_tokens_max, scenario.batch_tokens.get(index) or own, limits.seqs_max)
        planner = scenario.planner
        if planner is None or index in scenario.schedulers:
            scheduler = scenario.schedulers.get(index, limits.scheduler)
            planner = planner_named(_PLANNERS[scheduler], scenario.core.latency)
        state = InstanceState.READY if ready_at <= started_at else InstanceState.STARTING
        self.engines.append(EngineModel(scenario.truths.get(index, scenario.truth), config, planner))
        self.lives.append(Life(f"i{index}", tier, started_at, ready_at, state=state, since=started_at))
        self.index[f"i{index}"] = index
        return index

    def _tell_fleet(self) -> None:
        specs = [
            e.InstanceSpec(
                life.name,
                life.tier,
                e.InstanceState(life.state.value),
                self.engines[index].config.batch_tokens,
                scheduler=self.scenario.schedulers.get(index),
            )
            for index, life in enumerate(self.lives)
            if not life.gone
        ]
        self._carry_out(self.core.handle(e.FleetChanged(self.now, specs)))

    def _serves(self, index: int) -> None:
        """Its start-up is over, unless it was stopped before."""
        life = self.lives[index]
        if life.state is InstanceState.STARTING and not life.gone:
            life.state = InstanceState.READY
            life.since = self.now
            self._tell_fleet()

    def _scale(self) -> None:
        scaler = self.scenario.scaler
        assert scaler is not None
        status = self.core.status(self.now)
        observed = fleet_observed(self.lives, self.engines, self.core.config.engine.scheduler, status, self.now)
        actions = scaler.actions(self.now, observed, status)
        for action in actions:
            self._do(action)
        if actions:
            self._tell_fleet()
        self._push(self.now + scaler.every_s, _SCALE)

    def _do(self, action: p.Action) -> None:
        now = self.now
        if isinstance(action, p.Start):
            ready_at = now + self._dice.uniform(*self.scenario.startup_s)
            self._push(ready_at, _READY - self._begin_life(action.tier, now, ready_at))
            return
        index = self.index[action.instance]
        life = self.lives[index]
        life.since = now
        if isinstance(action, p.Drain):
            life.state = InstanceState.DRAINING
        elif isinstance(action, p.CallOffDrain):
            life.state = InstanceState.READY
        elif isinstance(action, p.Convert):
            life.tier = action.tier
        else:
            life.stopped_at = now
            self._kill(index)

    def _kill(self, index: int) -> None:
        """What still runs on a stopped instance fails."""
        engine = self.engines[index]
        for id in [id for id, instance in self.core.places.items() if instance.id == f"i{index}"]:
            engine.abort(self.now, id)
            self._carry_out(self.core.handle(e.RequestEnded(self.now, id, e.Outcome.ENGINE_FAILED)))


def _shares(records: Sequence[Record]) -> dict[str, float]:
    """Each tier's share of the prompts' tokens."""
    tokens: dict[str, int] = {}
    for record in records:
        tokens[record.tier] = tokens.get(record.tier, 0) + record.request.prompt_tokens
    return {name: count / sum(tokens.values()) for name, count in tokens.items()}


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
