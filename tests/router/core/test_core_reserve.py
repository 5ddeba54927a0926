"""Where a tier refuses who cannot be in time, SLO-aware engines are kept for the many who need little: a long prompt has to leave a share
of its slack, and has an idle instance all the same."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.config import Overload, Placement

SLO_AWARE = e.Scheduler.SLO_AWARE
SOME = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])  # the fixture is a class


def served(small_fleet, overload: Overload, prompts: list[int], *homes: str):
    """A fleet that has served prompts of these lengths, one after the other, and is idle."""
    fleet = small_fleet(*homes, placement=Placement.SPREAD, scheduler=SLO_AWARE, overload=overload)
    for prompt_tokens in prompts:
        made = fleet.arrive("loose", prompt_tokens)
        assert isinstance(made, d.Place)
        fleet.wait(made.ttft_predicted_s)
        fleet.tokens(made.request)
        fleet.end(made.request)
        fleet.wait(5.0)
    return fleet


@pytest.mark.parametrize(("overload", "taken"), [(Overload.REJECT, False), (Overload.QUEUE, True)])
def test_a_long_prompt_finds_no_room_on_a_busy_instance_where_its_tier_refuses(small_fleet, overload, taken):
    fleet = served(small_fleet, overload, [500] * 20, "loose")
    for _ in range(4):
        fleet.arrive("loose", 2_500)

    long = fleet.arrive("loose", 12_000)
    short = fleet.arrive("loose", 500)

    assert isinstance(long, d.Place) == taken
    assert isinstance(short, d.Place)


def test_a_long_prompt_that_waits_gets_the_instance_that_has_done_its_work(small_fleet):
    fleet = served(small_fleet, Overload.REJECT, [500] * 20, "loose")
    busy = [fleet.arrive("loose", 2_500) for _ in range(4)]
    held = fleet.arrive("loose", 12_000)
    fleet.now += 0.3

    made = [decision for one in busy for decision in (*fleet.tokens(one.request), *fleet.end(one.request))]

    assert isinstance(held, d.Hold)
    assert [(decision.request, decision.instance) for decision in made] == [(held.request, "a")]


@SOME
@given(st.lists(st.integers(1, 4_000), min_size=1, max_size=12), st.integers(1, 40_000))
def test_an_idle_instance_takes_whomever_it_can_serve_in_time_whatever_came_before(small_fleet, before, prompt_tokens):
    made = {
        overload: served(small_fleet, overload, before, "loose").arrive("loose", prompt_tokens)
        for overload in (Overload.QUEUE, Overload.REJECT)
    }

    predicted = made[Overload.QUEUE]
    in_time = isinstance(predicted, d.Place) and predicted.room_s >= 0.0

    assert isinstance(made[Overload.REJECT], d.Place) == in_time


@SOME
@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=40), st.integers(1, 100_000), st.integers(1, 100_000))
def test_the_longer_the_prompt_the_larger_the_share_that_it_leaves(small_fleet, before, one, other):
    shares = {}
    for prompt_tokens in (one, other):
        fleet = small_fleet(overload=Overload.REJECT, scheduler=SLO_AWARE)
        for earlier in before:
            fleet.arrive("loose", earlier)
        made = fleet.arrive("loose", prompt_tokens)
        shares[prompt_tokens] = fleet.core.requests[made.request].reserve_share

    assert 0.0 < shares[min(one, other)] <= shares[max(one, other)] < 1.0


def test_who_is_never_refused_leaves_nothing(small_fleet):
    fleet = small_fleet("loose", scheduler=SLO_AWARE)
    fleet.arrive("loose", 100)

    made = fleet.arrive("loose", 20_000)

    assert fleet.core.requests[made.request].reserve_share == 0.0
