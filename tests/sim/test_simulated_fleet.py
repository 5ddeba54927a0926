"""The simulated fleet: the real core before engine models, with every invariant checked after every event."""

from dataclasses import replace
from math import inf

import pytest

from multislo_perf.latency import LatencyModel
from multislo_router.core.config import CoreConfig, EngineLimits, Overload, Placement, TierConfig
from multislo_router.core.decisions import Cause
from multislo_router.core.events import Scheduler
from multislo_sim.fleet import Outcome, Scenario, SimulatedFleet, attainment
from multislo_sim.rivals import RIVALS
from multislo_sim.workloads.build import built_in
from multislo_sim.workloads.request import Request
from multislo_sim.workloads.tiers import TierShare, with_tiers

# Round figures near an 8B model's on an H100.
LATENCY = LatencyModel(1.7e-3, 5.2e-3, 3.8e-6, 2e-4, 1.75e-5, 4.4e-6, 4.2e-8, 4e-7, 3.8e-10)
SHARES = [TierShare("realtime", 1.0, 0.3, 0.02), TierShare("interactive", 3.0, 0.5, 0.05), TierShare("batch", 6.0)]
HOMES = ("realtime", "interactive", "batch", None)


def scenario(
    placement: Placement = Placement.PACK,
    scheduler: Scheduler = Scheduler.FCFS,
    homes: tuple[str | None, ...] = HOMES,
    overload: Overload = Overload.QUEUE,
    kv_tokens_max: int = 400_000,
    **more,
) -> Scenario:
    tiers = (
        TierConfig("realtime", 0.3, 0.02, overload, 512),
        TierConfig("interactive", 0.5, 0.05, overload, 1024),
        TierConfig("batch", 2.0, 0.1, overload, 2048),
    )
    engine = EngineLimits(kv_tokens_max, scheduler=scheduler)
    core = CoreConfig(tiers, "interactive", LATENCY, engine, placement)
    return Scenario(core, homes, **{"truth": LATENCY, "check_every_event": True, **more})


def workload(seconds: float, rate: float = 4.0) -> list[Request]:
    """The built-in workload at `rate` times its own rate, with answers cut short."""
    requests = built_in("azure-like", seconds, seed=5, rate_factor=rate)
    return with_tiers([replace(r, output_tokens=min(r.output_tokens, 80)) for r in requests], SHARES, seed=5)


def assert_all_over(outcome: Outcome) -> None:
    core = outcome.core
    assert core.requests == {}
    assert core.pending.count == 0
    for bookings in [instance.bookings for instance in core.instances.values()]:
        assert (bookings.requests, bookings.kv_reserved, bookings.kv_decode_tokens) == (0, 0, 0)
    for record in outcome.records:
        assert record.refused is not None or record.tokens == record.request.output_tokens


@pytest.mark.parametrize("scheduler", list(Scheduler))
@pytest.mark.parametrize("placement", list(Placement))
def test_every_request_of_a_small_run_is_answered_in_full(placement, scheduler):
    requests = workload(4.0)

    outcome = SimulatedFleet(scenario(placement, scheduler), requests).run()

    assert len(outcome.records) == len(requests) > 20
    assert_all_over(outcome)
    assert all(record.refused is None for record in outcome.records)
    assert attainment(outcome.records, 0.0, inf)["all"] > 0.9


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("overload", list(Overload))
def test_an_overloaded_fleet_answers_or_refuses_everybody(placement, overload):
    outcome = SimulatedFleet(
        scenario(placement, homes=("interactive",), overload=overload, kv_tokens_max=20_000), workload(4.0, rate=12.0)
    ).run()

    assert_all_over(outcome)
    refused = [record.refused for record in outcome.records if record.refused is not None]
    assert set(refused) <= {Cause.DEADLINE, Cause.TOO_LONG}
    assert (Cause.DEADLINE in refused) == (overload is Overload.REJECT)


@pytest.mark.parametrize("placement", list(Placement))
def test_one_seed_makes_one_run(placement):
    runs = [SimulatedFleet(scenario(placement, check_every_event=False), workload(4.0)).run() for _ in range(2)]

    assert runs[0].records == runs[1].records
    assert runs[0].events == runs[1].events


@pytest.mark.parametrize("rival", list(RIVALS))
def test_a_rival_serves_everybody_from_the_same_state(rival):
    outcome = SimulatedFleet(scenario(place_by=RIVALS[rival]()), workload(4.0)).run()

    assert_all_over(outcome)
    assert len({record.instance for record in outcome.records}) > 1


def test_at_low_load_packing_leaves_an_emptied_tail_where_spreading_does_not():
    used = {}
    for placement in Placement:
        fleet = scenario(placement, homes=("interactive",) * 4, check_every_event=False)
        requests = [Request(0.1 * number, 300, 60, "interactive") for number in range(60)]
        outcome = SimulatedFleet(fleet, requests).run()
        assert attainment(outcome.records, 0.0, inf)["all"] == 1.0
        used[placement] = {record.instance for record in outcome.records}

    assert len(used[Placement.PACK]) < 4
    assert len(used[Placement.SPREAD]) == 4


def test_a_fleet_that_is_slower_than_its_profile_is_found_out():
    slow = scenario(homes=("batch",), truth=LATENCY.slower(1.6), check_every_event=False)
    requests = [Request(0.5 * number, 200, 200, "batch") for number in range(30)]

    outcome = SimulatedFleet(slow, requests).run()

    (instance,) = outcome.core.status(outcome.ended_at).instances
    assert instance.calibration == pytest.approx(1.6, rel=0.15)
