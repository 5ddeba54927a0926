"""A simulated fleet that changes while it runs, and one whose truth is not what the router believes; invariants after every event."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

import pytest

from multislo_operator.decide.fleet import FleetObserved, InstanceState
from multislo_operator.decide.plan import Action, CallOffDrain, Convert, Drain, Start, Stop
from multislo_perf.latency import LatencyModel
from multislo_router.core.config import CoreConfig, EngineLimits, Placement, TierConfig
from multislo_router.core.events import Scheduler
from multislo_router.core.status import CoreStatus
from multislo_sim.fleet import Outcome, Scenario, SimulatedFleet, attainment
from multislo_sim.lives import instance_seconds
from multislo_sim.workloads.build import built_in
from multislo_sim.workloads.request import Request
from multislo_sim.workloads.tiers import TierShare, with_tiers

# Round figures near an 8B model's on an H100.
LAW = LatencyModel(1.7e-3, 5.2e-3, 3.8e-6, 2e-4, 1.75e-5, 4.4e-6, 4.2e-8, 4e-7, 3.8e-10)
TIERS = (TierConfig("realtime", 0.5, 0.03, batch_tokens=512), TierConfig("batch", 2.0, 0.1))


def requests(seconds: float, rate: float = 3.0) -> list[Request]:
    made = built_in("azure-like", seconds, seed=3, rate_factor=rate)
    shares = [TierShare("realtime", 3.0, 0.5, 0.03), TierShare("batch", 7.0)]
    return with_tiers([replace(r, output_tokens=min(r.output_tokens, 60)) for r in made], shares, seed=3)


def run(seconds: float, homes: Sequence[str | None] = ("realtime", "batch"), **more) -> Outcome:
    scheduler = more.pop("scheduler", Scheduler.SLO_AWARE)
    core = CoreConfig(TIERS, "batch", LAW, EngineLimits(400_000, scheduler=scheduler), Placement.SPREAD)
    scenario = Scenario(core, tuple(homes), **{"truth": LAW, "check_every_event": True, **more})
    return SimulatedFleet(scenario, requests(seconds)).run(until=seconds + 300.0)


@dataclass
class Script:
    """Does what it is told at the given times, and remembers what it saw."""

    at: dict[float, list[Action]]
    every_s: float = 1.0
    seen: list[tuple[float, FleetObserved]] = field(default_factory=list)

    def actions(self, now: float, observed: FleetObserved, status: CoreStatus) -> Sequence[Action]:
        self.seen.append((now, observed))
        return self.at.get(now, [])


def test_a_started_instance_serves_after_its_startup_time_and_costs_from_its_start():
    script = Script({2.0: [Start("batch", "")]})
    outcome = run(30.0, scaler=script, startup_s=(10.0, 10.0))

    new = outcome.lives[2]
    assert (new.started_at, new.ready_at, new.state) == (2.0, 12.0, InstanceState.READY)
    placed = [record for record in outcome.records if record.instance == 2]
    assert placed
    assert min(record.request.at_s for record in placed) > 11.0
    assert instance_seconds(outcome.lives, 0.0, 20.0) == pytest.approx(20.0 + 20.0 + 18.0)
    states = {now: [i.state for i in observed.instances] for now, observed in script.seen}
    assert states[5.0][2] is InstanceState.STARTING
    assert states[13.0][2] is InstanceState.READY


def test_a_drained_instance_ends_what_it_holds_and_gets_nothing_more():
    script = Script({5.0: [Drain("i1", "")]})
    outcome = run(15.0, scaler=script)

    assert all(record.finished_at < inf for record in outcome.records)
    assert not [record for record in outcome.records if record.instance == 1 and record.request.at_s > 5.0]
    assert script.seen[-1][1].instances[1].requests == 0


def test_a_drain_called_off_and_a_move_to_another_tier_bring_an_instance_back():
    script = Script({2.0: [Drain("i1", "")], 6.0: [CallOffDrain("i1", ""), Convert("i1", "realtime", "")]})
    outcome = run(15.0, scaler=script)

    assert outcome.lives[1].tier == "realtime"
    assert [record for record in outcome.records if record.instance == 1 and record.request.at_s > 6.0]


def test_what_runs_on_a_stopped_instance_fails_and_nothing_else():
    outcome = run(10.0, scaler=Script({5.0: [Stop("i1", "")]}))

    failed = [record for record in outcome.records if record.finished_at == inf]
    assert failed
    assert {record.instance for record in failed} == {1}
    assert instance_seconds(outcome.lives, 0.0, 10.0) == pytest.approx(15.0)


def test_an_instance_stopped_while_it_starts_never_serves():
    outcome = run(20.0, scaler=Script({1.0: [Start("batch", "")], 3.0: [Stop("i2", "")]}), startup_s=(10.0, 10.0))

    assert outcome.lives[2].stopped_at == 3.0
    assert not [record for record in outcome.records if record.instance == 2]


def test_the_router_learns_that_an_instance_is_slow():
    outcome = run(20.0, truths={1: LAW.slower(2.0)})

    assert outcome.core.instances["i1"].pace.calibration > 1.3
    assert outcome.core.instances["i0"].pace.calibration == pytest.approx(1.0, abs=0.15)


def test_late_reports_lose_nothing_and_are_late_for_clients_too():
    prompt, late = run(20.0), run(20.0, report_delay_s=0.3)

    assert all(record.finished_at < inf for record in late.records)
    assert late.core.requests == {}
    assert attainment(late.records, 0.0, 20.0)["all"] > 0.5
    assert late.records[0].first_token_s == pytest.approx(prompt.records[0].first_token_s + 0.3)


def test_half_of_the_engines_may_be_stock():
    outcome = run(20.0, schedulers={1: Scheduler.FCFS}, batch_tokens={1: 1024})

    assert outcome.core.instances["i1"].scheduler is Scheduler.FCFS
    assert outcome.core.instances["i0"].scheduler is Scheduler.SLO_AWARE
    assert {record.instance for record in outcome.records} == {0, 1}
    assert all(record.finished_at < inf for record in outcome.records)
