"""`decide` in a closed loop: plans are carried out on a small fluid fleet, and on arbitrary ones."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import cos, exp, isfinite, pi
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multislo_operator.decide.fleet import (
    FleetObserved,
    FleetSpec,
    InstanceObserved,
    InstanceState,
    TierObserved,
    TierSpec,
)
from multislo_operator.decide.memory import Memory
from multislo_operator.decide.plan import CallOffDrain, Convert, Drain, Plan, Start, Stop
from multislo_operator.decide.scale import decide

READY, STARTING, DRAINING = InstanceState.READY, InstanceState.STARTING, InstanceState.DRAINING
NAMES = ("tight", "middle", "loose")


def carried_out(plan: Plan, seen: list[InstanceObserved], new_id: Callable[[], str]) -> list[InstanceObserved]:
    """The fleet a moment after an actuator has done all that the plan says."""
    fleet = {instance.id: instance for instance in seen}
    for action in plan.actions:
        match action:
            case Start():
                made = InstanceObserved(new_id(), action.tier, STARTING, requests=0, ever_ready=False)
                fleet[made.id] = made
            case Drain():
                fleet[action.instance] = replace(fleet[action.instance], state=DRAINING, since_s=0.0, requests=None)
            case CallOffDrain():
                fleet[action.instance] = replace(fleet[action.instance], state=READY, since_s=0.0)
            case Convert():
                fleet[action.instance] = replace(fleet[action.instance], tier=action.tier, since_s=0.0)
            case Stop():
                del fleet[action.instance]
    return list(fleet.values())


# -- any fleet -------------------------------------------------------------------------------------------------------------

some_instances = st.lists(
    st.builds(
        InstanceObserved,
        id=st.uuids().map(str),
        tier=st.sampled_from([*NAMES, None]),
        state=st.sampled_from(InstanceState),
        load=st.floats(0.0, 1.5),
        requests=st.one_of(st.none(), st.integers(0, 3)),
        since_s=st.sampled_from([0.0, 3.0, 60.0, 500.0, 1000.0]),
        ever_ready=st.booleans(),
        batch_tokens=st.sampled_from([0, 512, 2048]),
    ),
    max_size=12,
    unique_by=lambda instance: instance.id,
)
some_tiers = st.tuples(
    *(
        st.builds(
            TierObserved,
            name=st.just(name),
            pending=st.integers(0, 30),
            pending_oldest_s=st.floats(0.0, 20.0),
            pending_in_time=st.integers(0, 30),
            pending_in_time_oldest_s=st.floats(0.0, 20.0),
            arrival_rate=st.floats(0.0, 50.0),
            work_rate=st.floats(0.0, 6.0),
            work_rate_trend=st.floats(-1.0, 1.0),
            turned_away=st.integers(0, 5),
            met=st.integers(0, 500),
            missed=st.integers(0, 50),
            attainment=st.one_of(st.none(), st.floats(0.0, 1.0)),
        )
        for name in NAMES
    )
)


@st.composite
def some_specs(draw: st.DrawFn) -> FleetSpec:
    tiers = []
    for name, tpot_s in draw(st.permutations(list(zip(NAMES, (0.02, 0.05, 0.1), strict=True)))):
        least = draw(st.integers(0, 2))
        most = draw(st.integers(max(least, 1), 6))
        batch_tokens = draw(st.sampled_from([0, 512, 2048]))
        tiers.append(TierSpec(name, tpot_s, 0.5, least, most, draw(st.integers(0, 3)), batch_tokens))
    warm = draw(st.integers(0, 2))
    return FleetSpec(
        tiers=tuple(tiers),
        startup_s=30.0,
        accelerators_max=draw(st.one_of(st.none(), st.integers(0, 14))),
        warm_min=warm,
        warm_max=draw(st.integers(warm, 3)),
        stabilization_s=20.0,
    )


@settings(max_examples=150)
@given(some_specs(), some_instances, some_tiers, some_tiers, st.booleans())
def test_a_plan_that_is_carried_out_leaves_nothing_to_plan(
    spec: FleetSpec,
    seen: list[InstanceObserved],
    before: tuple[TierObserved, ...],
    figures: tuple[TierObserved, ...],
    known: bool,
) -> None:
    memory = Memory()
    for second in range(0, 25, 3):
        _, memory = decide(spec, FleetObserved(seen, before), memory, float(second))
    tiers = figures if known else None
    plan, memory = decide(spec, FleetObserved(seen, tiers), memory, 25.0)
    ids = iter(range(1000))
    after = carried_out(plan, seen, lambda: f"~new-{next(ids)}")
    again, _ = decide(spec, FleetObserved(after, tiers), memory, 25.0)
    assert again.actions == ()
    _check_limits(spec, seen, plan, after)
    _check_ready_ones_are_kept(spec, seen, plan, after)


def _check_limits(spec: FleetSpec, before: list[InstanceObserved], plan: Plan, after: list[InstanceObserved]) -> None:
    if spec.instances_max is not None:
        assert len(after) <= max(spec.instances_max, len(before))
    touched = Counter(a.instance for a in plan.actions if isinstance(a, (Drain, Stop)))
    assert all(count == 1 for count in touched.values())
    for row in plan.tiers:
        tier = next(tier for tier in spec.tiers if tier.name == row.name)
        assert row.desired <= tier.instances_max
    for action in plan.actions:
        assert action.reason
        assert all(isfinite(value) for value in action.terms.values())


def _ready(seen: list[InstanceObserved], *tiers: str | None) -> int:
    return sum(i.state is READY and i.tier in tiers for i in seen)


def _check_ready_ones_are_kept(
    spec: FleetSpec, before: list[InstanceObserved], plan: Plan, after: list[InstanceObserved]
) -> None:
    """A plan never lowers ready capacity below need, whatever else there is that is not ready."""
    left = spec.instances_max if spec.instances_max is not None else 1000
    for tier in spec.tiers:
        least = min(tier.least, left)
        left -= least
        assert _ready(after, tier.name) >= min(_ready(before, tier.name), least), f"{tier.name}: its minimum"
    # A conversion lowers nothing; a drain does.
    gone = {
        a.instance for a in plan.actions if isinstance(a, (Drain, Stop)) or (isinstance(a, Convert) and a.tier is None)
    }
    # One whose drain is called off takes requests again at once.
    back = {a.instance for a in plan.actions if isinstance(a, CallOffDrain)}
    kept = [replace(i, state=READY) if i.id in back else i for i in before if i.id not in gone]
    needs = {row.name: int(row.terms.get("need_now", 0)) for row in plan.tiers}
    if spec.instances_max is not None and max(*needs.values(), sum(t.least for t in spec.tiers)) > spec.instances_max:
        return
    prefix: list[str | None] = []
    for tier in spec.tightest_first:
        prefix.append(tier.name)
        assert _ready(kept, *prefix) >= min(_ready(before, *prefix), needs[tier.name]), (
            f"{prefix}: what their load needs"
        )


@settings(max_examples=150)
@given(some_specs(), some_instances, some_tiers, some_tiers, st.floats(0.0, 100.0))
def test_what_is_not_ready_costs_no_ready_one(
    spec: FleetSpec,
    seen: list[InstanceObserved],
    before: tuple[TierObserved, ...],
    figures: tuple[TierObserved, ...],
    until: float,
) -> None:
    """Beside the same fleet without what is not ready, no more ready ones go."""
    alone = [instance for instance in seen if instance.state in (READY, DRAINING)]
    gone = []
    for fleet in (seen, alone):
        memory = Memory()
        for tenth in range(10):
            _, memory = decide(spec, FleetObserved(fleet, before), memory, until * tenth / 10)
        plan, memory = decide(spec, FleetObserved(fleet, figures), memory, until)
        after = carried_out(plan, fleet, lambda: uuid4().hex)
        drained = {instance.id for instance in after if instance.state is DRAINING}
        gone.append(sum(instance.state is READY and instance.id in drained for instance in fleet))
        _check_ready_ones_are_kept(spec, fleet, plan, after)
    assert gone[0] <= gone[1]


# -- lives in which some instances never come up ------------------------------------------------------------------------------


class Fate(StrEnum):
    """What becomes of an instance that is started."""

    COMES = "comes"
    HANGS = "hangs"
    CRASHES = "crashes"
    DIES = "dies"
    """Comes up, and is gone after a while."""


STEP_S = 5.0


@dataclass
class Bad:
    """A fleet of which each tier's starts have their fates, one after the other; load is steady, but for a silence at the end."""

    spec: FleetSpec
    fates: dict[str | None, list[Fate]]
    works: dict[str, float]
    silent_from_s: float
    instances: list[InstanceObserved] = field(default_factory=list)
    memory: Memory = field(default_factory=Memory)
    now: float = 0.0
    starts: Counter[str | None] = field(default_factory=Counter)
    began: dict[str, Fate] = field(default_factory=dict)

    def step(self) -> None:
        self.now += STEP_S
        self.instances = [self._older(instance) for instance in self.instances]
        plan, self.memory = decide(self.spec, FleetObserved(self.instances, self._figures()), self.memory, self.now)
        tiers = iter([action.tier for action in plan.actions if isinstance(action, Start)])
        after = carried_out(plan, self.instances, lambda: self._begin(next(tiers)))
        _check_limits(self.spec, self.instances, plan, after)
        _check_ready_ones_are_kept(self.spec, self.instances, plan, after)
        self.instances = after

    def _begin(self, tier: str | None) -> str:
        fates = self.fates[tier]
        id = f"{tier or 'warm'}-{self.starts[tier]}"
        self.began[id] = fates[self.starts[tier] % len(fates)]
        self.starts[tier] += 1
        return id

    def _older(self, seen: InstanceObserved) -> InstanceObserved:
        fate = self.began[seen.id]
        age_s = seen.since_s + STEP_S
        if seen.state is STARTING and fate is Fate.CRASHES and age_s >= 15.0:
            return replace(seen, state=InstanceState.FAILED, since_s=0.0)
        if seen.state is STARTING and fate in (Fate.COMES, Fate.DIES) and age_s >= self.spec.startup_s:
            return replace(seen, state=READY, since_s=0.0, ever_ready=True)
        if seen.state is READY and fate is Fate.DIES and age_s >= 150.0:
            return replace(seen, state=InstanceState.FAILED, since_s=0.0)
        return replace(seen, since_s=age_s, requests=0, load=0.4)

    def _figures(self) -> list[TierObserved]:
        waits = not any(i.state is READY for i in self.instances)
        figures = []
        for name in NAMES:
            work = 0.0 if self.now >= self.silent_from_s else self.works[name]
            pending = 3 if waits and work else 0
            waited_s = 5.0 if pending else 0.0
            figures.append(TierObserved(name, pending, waited_s, pending, waited_s, 20.0 * work, work, 0.0))
        return figures

    def ready(self, *tiers: str) -> int:
        return _ready(self.instances, *tiers)


some_fates = st.lists(st.sampled_from(Fate), min_size=1, max_size=4)


@settings(max_examples=40)
@given(
    some_specs(),
    st.fixed_dictionaries({tier: some_fates for tier in (*NAMES, None)}),
    st.fixed_dictionaries({name: st.sampled_from([0.0, 0.02, 0.5, 1.3]) for name in NAMES}),
    st.sampled_from([0.0, 300.0, 2000.0]),
)
def test_in_no_life_do_ready_ones_go_for_what_does_not_come_up(
    spec: FleetSpec, fates: dict[str | None, list[Fate]], works: dict[str, float], silent_from_s: float
) -> None:
    life = Bad(spec, fates, works, silent_from_s)
    while life.now < 1500.0:
        life.step()
    for tier, began in life.starts.items():
        if set(fates[tier]) <= {Fate.HANGS, Fate.CRASHES}:
            places = 6 if tier is not None else spec.warm_max
            assert began <= 8 * places, f"{tier}: starts without an end"
    budget = spec.instances_max if spec.instances_max is not None else 1000
    least = sum(tier.least for tier in spec.tiers) + spec.warm_min
    for tier in spec.tiers:
        if fates[tier.name] == [Fate.COMES] and budget >= least:
            assert life.ready(tier.name) >= tier.least, f"{tier.name}: others keep it from its minimum"
    loosest = spec.tightest_first[-1]
    need = sum(works.values()) if silent_from_s > life.now else 0.0
    if fates[loosest.name] == [Fate.COMES] and budget > least + 2 * need and loosest.instances_max > 2 * need:
        assert life.ready(*NAMES) >= need, "the load is not served"


any_number = st.one_of(st.floats(), st.floats(0.0, 1e-300), st.sampled_from([0.0, 5e-324, 1.0, 1e15, 1e308]))
any_count = st.one_of(st.integers(), st.sampled_from([0, 1, 10**15, 10**400]))
any_tiers = st.tuples(
    *(
        st.builds(
            TierObserved,
            name=st.just(name),
            pending=any_count,
            pending_oldest_s=any_number,
            pending_in_time=any_count,
            pending_in_time_oldest_s=any_number,
            arrival_rate=any_number,
            work_rate=any_number,
            work_rate_trend=any_number,
            turned_away=any_count,
            met=any_count,
            missed=any_count,
            attainment=st.one_of(st.none(), any_number),
        )
        for name in NAMES
    )
)


@settings(max_examples=60)
@given(some_specs(), some_instances, any_tiers, some_tiers, st.lists(any_number, min_size=12, max_size=12))
def test_figures_that_are_no_numbers_never_stop_the_planning(
    spec: FleetSpec,
    seen: list[InstanceObserved],
    strange: tuple[TierObserved, ...],
    usual: tuple[TierObserved, ...],
    loads: list[float],
) -> None:
    loaded = [replace(i, load=load, load_now=load, calibration=load) for i, load in zip(seen, loads, strict=False)]
    memory = Memory()
    ids = iter(range(1000))
    for second, (instances, tiers) in enumerate([(seen, strange), (loaded, usual), (seen, usual), (loaded, strange)]):
        plan, memory = decide(spec, FleetObserved(instances, tiers), memory, float(second))
        _check_limits(spec, instances, plan, carried_out(plan, instances, lambda: f"~new-{next(ids)}"))
        for row in plan.tiers:
            assert all(isfinite(value) for value in row.terms.values())


# -- a fluid fleet -----------------------------------------------------------------------------------------------------------


@dataclass
class Fluid:
    """A fleet in which work is a fluid: what arrives beyond 95 % of the ready instances waits in the router.

    The router's averages are made as it makes them, from requests that arrive at random.
    """

    spec: FleetSpec
    work_of: Callable[[str, float], float]
    """Instances that a tier's traffic fills at a time."""
    request_work_s: float = 0.05
    seed: int = 1
    instances: list[InstanceObserved] = field(default_factory=list)
    now: float = 0.0
    memory: Memory = field(default_factory=Memory)
    counts: Counter[str] = field(default_factory=Counter)
    log: list[tuple[float, str]] = field(default_factory=list)
    waiting_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.0))
    """Work held in the router per tier."""
    used: list[int] = field(default_factory=list)
    instance_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.fast = dict.fromkeys(NAMES, 0.0)
        self.slow = dict.fromkeys(NAMES, 0.0)
        self.ids = iter(range(10_000))

    def run(self, until: float) -> None:
        while self.now < until:
            self.second()

    def second(self) -> None:
        self.now += 1.0
        arrived = {name: self._arrive(name) for name in NAMES}
        ready = [i for i in self.instances if i.state is READY]
        room = 0.95 * len(ready)
        for name in NAMES:
            self.waiting_s[name] += arrived[name]
            served = min(self.waiting_s[name], room)
            room -= served
            self.waiting_s[name] -= served
        self._age(sum(arrived.values()), ready)
        observed = FleetObserved(self.instances, [self._tier(name) for name in NAMES], router_uptime_s=self.now)
        plan, self.memory = decide(self.spec, observed, self.memory, self.now)
        for action in plan.actions:
            self.counts[type(action).__name__] += 1
            self.log.append((self.now, f"{type(action).__name__} {action.reason}"))
        self.instances = carried_out(plan, self.instances, lambda: f"i{next(self.ids):04}")
        self.used.append(len(self.instances))
        self.instance_seconds += len(self.instances)

    def _arrive(self, name: str) -> float:
        """Seconds of work of the requests that arrive in this second; exponential sizes."""
        rate = self.work_of(name, self.now) / self.request_work_s
        work = 0.0
        at = self.dice.expovariate(rate) if rate > 0.0 else 1.0
        while at < 1.0:
            work += self.dice.expovariate(1.0 / self.request_work_s)
            at += self.dice.expovariate(rate)
        self.fast[name] = self.fast[name] * exp(-0.1) + work / 10.0
        self.slow[name] = self.slow[name] * exp(-1 / 30) + work / 30.0
        return work

    def _tier(self, name: str) -> TierObserved:
        fast = self.fast[name]
        pending = round(self.waiting_s[name] / self.request_work_s)
        oldest_s = self.waiting_s[name] / max(fast, 0.01) if pending else 0.0
        return TierObserved(
            name,
            pending=pending,
            pending_oldest_s=oldest_s,
            pending_in_time=pending,
            pending_in_time_oldest_s=oldest_s,
            arrival_rate=fast / self.request_work_s,
            work_rate=fast,
            work_rate_trend=(fast - self.slow[name]) / 20.0,
            attainment=1.0,
        )

    def _age(self, work: float, ready: list[InstanceObserved]) -> None:
        """Fill the ready instances up in the order of their ids (packing), finish starts, empty the draining ones."""
        left = work
        loads: dict[str, float] = {}
        for instance in ready:
            loads[instance.id] = min(left, 0.85)
            left -= loads[instance.id]
        aged = []
        for instance in self.instances:
            since_s = instance.since_s + 1.0
            if instance.state is STARTING and since_s >= self.spec.startup_s:
                instance, since_s = replace(instance, state=READY, ever_ready=True), 0.0
            load = loads.get(instance.id, instance.load * 0.97 if instance.state is DRAINING else 0.0)
            aged.append(replace(instance, since_s=since_s, load=load, requests=int(load * 40)))
        self.instances = aged

    def ready(self) -> int:
        return sum(1 for i in self.instances if i.state is READY)

    def changes(self) -> int:
        """Of the fleet's size."""
        return sum(self.counts[kind] for kind in ("Start", "Drain", "CallOffDrain"))


def a_spec(**changes: object) -> FleetSpec:
    spec = FleetSpec(
        tiers=(
            TierSpec("tight", 0.02, 0.3, 1, 8),
            TierSpec("middle", 0.05, 0.5, 1, 12),
            TierSpec("loose", 0.1, 1.0, 0, 12),
        ),
        startup_s=60.0,
        accelerators_max=20,
        stabilization_s=120.0,
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def steady(total: float) -> Callable[[str, float], float]:
    shares = {"tight": 0.2, "middle": 0.3, "loose": 0.5}
    return lambda name, now: total * shares[name]


def test_a_step_is_answered_within_seconds_settles_and_is_given_back() -> None:
    fleet = Fluid(a_spec(), lambda name, now: steady(8.0 if 600 <= now < 1800 else 2.0)(name, now))
    fleet.run(600)
    before = fleet.counts.total()
    started_before = fleet.counts["Start"]
    assert fleet.ready() in (3, 4)
    fleet.run(604)
    assert fleet.counts["Start"] > started_before, "seconds after the step more is on the way"
    fleet.run(630)
    assert 10 <= len(fleet.instances) <= 15, "half a minute later all of it is"
    fleet.run(1000)
    settled = fleet.changes()
    fleet.run(1800)
    assert fleet.changes() - settled <= 2, "and then next to nothing moves"
    fleet.run(1915)
    assert fleet.ready() >= 10, "what the step took is kept until the time is over"
    fleet.run(3000)
    assert fleet.ready() in (3, 4)
    assert max(fleet.used) <= 20
    assert before <= 12


@pytest.mark.parametrize(
    ("total", "request_work_s", "changes_max"),
    [(2.0, 0.05, 4), (6.24, 0.05, 4), (1.56, 0.2, 10), (3.0, 0.3, 12), (7.0, 0.3, 12)],
)
def test_an_hour_of_steady_noisy_load_does_not_flap(total: float, request_work_s: float, changes_max: int) -> None:
    """Requests of 0.05 s of work are chat on a large GPU; of 0.3 s long prompts, three a second on each instance."""
    fleet = Fluid(a_spec(), steady(total), request_work_s)
    fleet.run(600)
    settled = fleet.changes()
    fleet.run(4200)
    assert fleet.changes() - settled <= changes_max


def test_a_day_in_an_hour_follows_the_curve_and_comes_back() -> None:
    def work(name: str, now: float) -> float:
        return steady(1.5 + 6.0 * (0.5 - 0.5 * cos(2 * pi * now / 3600)))(name, now)

    fleet = Fluid(a_spec(), work)
    fleet.run(7200)
    # Up by about eight, down by about eight, twice.
    assert fleet.counts["Start"] <= 26
    assert fleet.counts["Drain"] <= 26
    assert 9 <= max(fleet.used) <= 13
    assert fleet.ready() <= 5
    assert fleet.instance_seconds / 7200 < 8.5


def test_a_load_beyond_the_budget_never_exceeds_it() -> None:
    fleet = Fluid(a_spec(accelerators_max=5), steady(9.0))
    fleet.run(900)
    assert max(fleet.used) == 5
    assert fleet.counts["Drain"] == 0


def test_when_the_mix_turns_over_instances_change_their_tier() -> None:
    def work(name: str, now: float) -> float:
        tight, loose = (0.5, 4.0) if now < 900 else (4.0, 0.5)
        return {"tight": tight, "middle": 1.0, "loose": loose}[name]

    fleet = Fluid(a_spec(), work)
    fleet.run(900)
    started = fleet.counts["Start"]
    fleet.run(1500)
    assert fleet.counts["Convert"] >= 3
    assert fleet.counts["Start"] - started <= 2
    tight = [i for i in fleet.instances if i.tier == "tight"]
    assert len(tight) >= 5


def test_load_that_returns_calls_the_drain_off() -> None:
    fleet = Fluid(a_spec(), steady(4.0))
    fleet.run(300)
    fleet.work_of = steady(1.0)
    while not any(i.state is DRAINING for i in fleet.instances):
        fleet.second()
    fleet.instances = [replace(i, load=0.8) if i.state is DRAINING else i for i in fleet.instances]
    calm = len(fleet.log)
    fleet.work_of = steady(5.0)
    fleet.run(fleet.now + 40)
    assert fleet.counts["CallOffDrain"] == 1
    since = [line.split()[0] for _, line in fleet.log][calm:]
    assert since.index("CallOffDrain") < since.index("Start"), "before anything is started"


def test_scale_to_zero_and_back() -> None:
    spec = a_spec(tiers=tuple(replace(tier, instances_min=0) for tier in a_spec().tiers))
    fleet = Fluid(spec, lambda name, now: 0.0 if 100 <= now < 900 else 0.4)
    fleet.run(890)
    assert fleet.instances == []
    fleet.run(905)
    assert len(fleet.instances) >= 1
