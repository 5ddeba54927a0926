"""Engines and the speed that router and planners believe them to have."""

from dataclasses import replace

import pytest

from multislo_perf.profile import load_profile
from multislo_sim.contenders import contender_named
from multislo_sim.fleet import SimulatedFleet
from multislo_sim.trial import Played, Window, arriving, classed, homes_of, play, scenario_of
from multislo_sim.workloads.shapes import shape_named, shaped_lengths

PROFILE = load_profile("llama-3.1-8b-h200-tp1")
REQUESTS = classed(shaped_lengths(shape_named("azure-like"), 1000, 1), PROFILE, 1)[0]
WINDOW = Window(6.0, 6.0, 1.0)


def played(rate: float, slow: float = 1.0) -> Played:
    """Four SLO-aware engines, one of them so many times slower."""
    setup = contender_named("multislo").setup(PROFILE, 1)
    scenario = replace(scenario_of(setup, PROFILE, homes_of(4)), truths={2: PROFILE.latency.slower(slow)})
    return play(SimulatedFleet(scenario, arriving(REQUESTS, rate, WINDOW.total_s, 1)), WINDOW)


def test_engines_as_fast_as_their_profile_are_taken_for_no_slower_even_when_they_are_full() -> None:
    instances = played(112.0).fleet.core.instances.values()
    assert [instance.pace.calibration for instance in instances] == [pytest.approx(1.0, abs=0.02)] * 4


def test_with_an_instance_twice_as_slow_hardly_anybody_is_late_at_a_load_that_the_fleet_can_bear() -> None:
    outcome = played(80.0, slow=2.0)
    calibrations = {id: instance.pace.calibration for id, instance in outcome.fleet.core.instances.items()}
    assert calibrations.pop("i2") == pytest.approx(2.0, rel=0.05)
    assert list(calibrations.values()) == [pytest.approx(1.0, abs=0.02)] * 3
    assert outcome.share > 0.99
