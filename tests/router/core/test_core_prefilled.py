"""Requests that come with the KV of their prompt, as behind prefill instances of their own."""

import pytest

from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.request import Stage


@pytest.mark.parametrize("scheduler", [e.Scheduler.FCFS, e.Scheduler.SLO_AWARE])
def test_a_prefilled_request_decodes_from_the_start(small_fleet, scheduler) -> None:
    fleet = small_fleet("tight", scheduler=scheduler)

    placed = fleet.arrive("tight", 2001, prefilled=True)
    fleet.wait(0.01)
    fleet.tokens(1)

    request = fleet.core.requests[1]
    assert isinstance(placed, d.Place)
    assert placed.ttft_predicted_s < 0.01
    assert request.stage is Stage.DECODE
    assert fleet.core.instances["a"].bookings.kv_decode_tokens == 2002
    fleet.end(1)
    assert fleet.core.status(fleet.now).tiers[0].tokens_met == 1


def test_a_prefilled_request_waits_where_the_pace_of_those_who_decode_could_not_be_kept(small_fleet) -> None:
    fleet = small_fleet("tight", kv_tokens_max=10_000_000)
    refused = 0
    for _ in range(64):
        refused += not isinstance(fleet.arrive("tight", 20_000, prefilled=True), d.Place)

    instance = fleet.core.instances["a"]
    assert refused > 0
    assert 0.018 < instance.pace.steady_s < 0.0225


def test_a_prefilled_request_whose_engine_fails_has_lost_its_kv(small_fleet) -> None:
    fleet = small_fleet("tight", "tight")
    placed = fleet.arrive("tight", 1001, prefilled=True)
    assert isinstance(placed, d.Place)

    (again,) = fleet.send(e.SendFailed(fleet.now, 1))

    assert isinstance(again, d.Place)
    assert again.instance != placed.instance
    assert fleet.core.requests[1].stage is Stage.PREFILL
    assert fleet.core.requests[1].prefill_work_s > 0.0
