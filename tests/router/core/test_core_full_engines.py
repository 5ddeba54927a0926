"""An engine that says it is full: what the core sends there from then on."""

from collections.abc import Callable

from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.fullness import GROWTH_S


def full(fleet, request: int, retry_after_s: float | None = None) -> list[d.Decision]:
    return fleet.send(e.EngineFull(fleet.now, request, retry_after_s))


def test_a_request_whose_engine_is_full_goes_to_another_that_has_room(small_fleet: Callable) -> None:
    fleet = small_fleet("middle", "middle")
    first = fleet.arrive()

    (made,) = full(fleet, 1)

    assert isinstance(made, d.Place)
    assert made.instance != first.instance


def test_a_full_engine_is_asked_once_more_after_the_time_that_it_named(small_fleet: Callable) -> None:
    fleet = small_fleet("loose")
    fleet.arrive("loose")

    (held,) = full(fleet, 1, 0.5)
    assert isinstance(held, d.Hold)
    assert fleet.wait(0.45) == []
    (placed,) = fleet.wait(0.15)

    assert isinstance(placed, d.Place)


def test_a_request_that_two_engines_were_too_full_for_is_refused(small_fleet: Callable) -> None:
    fleet = small_fleet("middle", "middle")
    fleet.arrive()
    full(fleet, 1)

    (refused,) = full(fleet, 1)

    assert isinstance(refused, d.Refuse)
    assert refused.cause is d.Cause.ENGINE_FULL


def test_an_engine_that_refused_a_third_gets_two_at_a_time(small_fleet: Callable) -> None:
    fleet = small_fleet("loose")
    for _ in range(3):
        assert isinstance(fleet.arrive("loose"), d.Place)
    full(fleet, 3)
    assert fleet.wait(GROWTH_S / 2) == []
    assert isinstance(fleet.arrive("loose"), d.Hold)

    placed = fleet.end(1)

    assert [made.request for made in placed] == [4]  # the one in time goes before the one that is late by now
    assert fleet.instance("a").requests == 2


def test_a_full_engine_gets_one_more_now_and_then_since_others_may_have_filled_it(small_fleet: Callable) -> None:
    fleet = small_fleet("loose")
    for _ in range(2):
        fleet.arrive("loose")
    full(fleet, 2)
    fleet.tokens(1)
    assert fleet.wait(0.9 * GROWTH_S) == []
    fleet.wait(GROWTH_S)

    assert fleet.instance("a").requests == 2


def test_an_engine_that_restarts_is_no_longer_believed_to_be_full(small_fleet: Callable) -> None:
    fleet = small_fleet("loose")
    fleet.arrive("loose")
    full(fleet, 1, 60.0)

    made = fleet.change("a", "loose", e.InstanceState.READY, epoch=1)

    assert [type(decision) for decision in made] == [d.Place]
