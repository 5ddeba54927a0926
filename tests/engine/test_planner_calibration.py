"""A planner that believes a wrong latency model learns from what its iterations take; one that is right stays as it is."""

import random
from collections.abc import Callable

import pytest

from multislo_engine.model import EngineModel
from multislo_engine.planners import DynamicChunk, Planner, QoServe, SloAware
from multislo_engine.planners.calibration import Calibration
from multislo_engine.planners.planner import Believing
from multislo_engine.terms import EngineConfig, EngineRequest, Iteration
from multislo_perf.latency import LatencyModel

LAW = LatencyModel(1.64e-3, 3.88e-3, 5.43e-6, 0.06e-3, 17.64e-6, 5.28e-6, 2.971e-8, 3.75e-7, 3.87e-10)


def engine(planner: Planner, truth: LatencyModel = LAW, jitter: Callable[[], float] | None = None) -> EngineModel:
    return EngineModel(truth, EngineConfig(600_000, 8192), planner, jitter)


def served(model: EngineModel, rate: float, seconds: float = 20.0) -> list[Iteration]:
    """All iterations of a steady stream of requests, the same for every engine."""
    dice = random.Random(7)
    made: list[Iteration] = []
    at, id = 0.0, 0
    while at < seconds:
        at += dice.expovariate(rate)
        while (ends_at := model.next_at()) is not None and ends_at <= at:
            made.append(model.end_iteration())
        id += 1
        tpot_s = dice.choice([0.03, 0.05, 0.1])
        model.submit(at, EngineRequest(id, dice.randint(100, 2000), dice.randint(20, 300), 0, at + 0.5, tpot_s))
    while model.next_at() is not None:
        made.append(model.end_iteration())
    return made


def late(model: EngineModel) -> int:
    """Requests with a late token, of a stream that keeps an engine twice as slow just busy."""
    return sum(end.late > 0 for iteration in served(model, 13.0) for end in iteration.ended)


class Stubborn:
    """Our planner, but without what makes it learn."""

    name = "stubborn"

    def __init__(self, planner: SloAware) -> None:
        self.order, self.plan, self.victim = planner.order, planner.plan, planner.victim


def test_where_the_belief_is_the_truth_a_run_that_is_measured_is_the_run_that_is_not() -> None:
    assert served(engine(SloAware(LAW), jitter=lambda: 1.0), 20.0) == served(engine(SloAware(LAW)), 20.0)


@pytest.mark.parametrize("planner", [SloAware(LAW), QoServe(LAW), DynamicChunk(LAW)])
def test_on_an_engine_twice_as_slow_a_planner_soon_plans_for_an_engine_twice_as_slow(planner: Planner) -> None:
    model = engine(planner, LAW.slower(2.0))
    served(model, 4.0)
    assert believed(model).gemm_per_token_s == pytest.approx(2.0 * LAW.gemm_per_token_s, rel=0.02)


def test_an_engine_faster_than_believed_is_found_out_too() -> None:
    model = engine(SloAware(LAW.slower(1.3)))
    served(model, 4.0)
    assert believed(model).gemm_per_token_s == pytest.approx(LAW.gemm_per_token_s, rel=0.02)


def test_on_a_slow_engine_a_planner_that_learns_keeps_deadlines_that_one_that_does_not_misses() -> None:
    slow = LAW.slower(2.0)
    learning, stubborn = late(engine(SloAware(LAW), slow)), late(engine(Stubborn(SloAware(LAW)), slow))
    assert (learning, stubborn > 5) == (0, True)


def test_what_is_spent_of_the_slack_follows_the_error_of_what_was_predicted() -> None:
    dice = random.Random(3)
    calm, wild = Calibration(SloAware(LAW)), Calibration(SloAware(LAW))
    for _ in range(1000):
        calm.observe(0.02 * dice.lognormvariate(0.0, 0.02), 0.02)
        wild.observe(0.02 * dice.lognormvariate(0.0, 0.25), 0.02)
    assert [fraction(calm), fraction(wild)] == [0.85, pytest.approx(1.0 / (1.0 + 6.0 * 0.2), rel=0.1)]


def test_one_iteration_that_stalls_for_seconds_is_no_slow_engine() -> None:
    calibration = Calibration(SloAware(LAW))
    for _ in range(100):
        calibration.observe(0.02, 0.02)
    calibration.observe(5.0, 0.02)
    assert calibration.factor < 1.1


def believed(model: EngineModel) -> LatencyModel:
    assert isinstance(model.planner, Believing)
    return model.planner.latency


def fraction(calibration: Calibration) -> float:
    assert isinstance(calibration.planner, SloAware)
    return calibration.planner.slack_fraction
