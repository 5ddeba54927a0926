"""How fast the router takes an instance to be: what tells it, and what does not."""

import pytest

from multislo_router.core import events as e


def second_prompt_takes(fleet, share: float) -> float:
    """A prompt of 3,000 tokens beside a decode, whose first token comes after so many times what was predicted: the calibration then."""
    fleet.arrive("loose")
    fleet.now = 0.02
    fleet.tokens(1)
    made = fleet.arrive("loose", 3000)
    fleet.now += share * made.ttft_predicted_s
    fleet.tokens(2)
    return fleet.instance("a").calibration


def test_a_stock_engine_that_takes_twice_as_long_for_a_prompt_is_believed_to_be_slower(small_fleet):
    assert second_prompt_takes(small_fleet("loose"), 2.0) > 1.02


def test_an_engine_that_chooses_its_chunks_may_take_long_for_a_prompt_beside_decodes_without_being_slow(small_fleet):
    fleet = small_fleet("loose", scheduler=e.Scheduler.SLO_AWARE)
    assert second_prompt_takes(fleet, 2.0) == pytest.approx(1.0)
