"""The plug-in's learning: each part of the law has a factor of its own; noise and outliers do not lead it astray."""

import random
from dataclasses import replace

import pytest

from multislo_engine.model import EngineModel
from multislo_engine.planners import EngineView, Fcfs, Plan, Planner, SloAware
from multislo_engine.planners.learning import FACTOR_MAX, FACTOR_MIN, Batch, LawLearner, batch_of
from multislo_engine.planners.view import Job
from multislo_engine.terms import EngineConfig, EngineRequest
from multislo_engine.vllm.scheduler import WORK_LEAST
from multislo_perf.latency import LatencyModel
from multislo_perf.profile import load_profile

LAW = load_profile("llama-3.1-8b-h200-tp1").latency
BATCH_TOKENS = 2048
PLANNER = SloAware(LAW, chunk_tokens_max=BATCH_TOKENS, chunk_tokens_tight=BATCH_TOKENS, work_least=WORK_LEAST)


class Learning:
    """A planner that learns as the plug-in does: from the time between two plans of a busy engine."""

    name = "learning"

    def __init__(self) -> None:
        self.learner = LawLearner(PLANNER)
        self.order = PLANNER.order
        self._planned_at = 0.0
        self._batch: Batch | None = None

    def plan(self, now: float, view: EngineView) -> Plan:
        if self._batch is not None and now > self._planned_at:
            self.learner.observe(now - self._planned_at, self._batch)
        plan = self.learner.planner.plan(now, view)
        self._planned_at, self._batch = now, batch_of(self.learner.first, view, plan)
        return plan

    def victim(self, view: EngineView) -> Job:
        return PLANNER.victim(view)

    def idle(self) -> None:
        self._batch = None


def in_time(planner: Planner, truth: LatencyModel, rate: float, noise: float) -> float:
    """The share of requests without a late token."""
    dice, jitter = random.Random(7), random.Random(1)
    model = EngineModel(truth, EngineConfig(600_000, BATCH_TOKENS), planner, lambda: max(0.3, jitter.gauss(1.0, noise)))
    late = ended = 0
    at = 0.0
    for number in range(int(30 * rate)):
        at += dice.expovariate(rate)
        while (ends_at := model.next_at()) is not None and ends_at <= at:
            for end in model.end_iteration().ended:
                ended, late = ended + 1, late + (end.late > 0)
        if model.next_at() is None and isinstance(planner, Learning):
            planner.idle()
        tpot_s = dice.choice([0.03, 0.05, 0.1])
        model.submit(at, EngineRequest(number, dice.randint(100, 2000), dice.randint(20, 300), 0, at + 0.5, tpot_s))
    while model.next_at() is not None:
        for end in model.end_iteration().ended:
            ended, late = ended + 1, late + (end.late > 0)
    return 1.0 - late / ended


TRUTHS = {
    "as believed": LAW,
    "twice as slow": LAW.slower(2.0),
    "a large fixed part": replace(LAW, fixed_s=0.012),
    "slow at prompts": replace(LAW, gemm_per_token_s=60e-6),
}


@pytest.mark.parametrize("truth", TRUTHS.values(), ids=TRUTHS)
def test_the_law_that_is_learned_predicts_this_engine(truth: LatencyModel) -> None:
    planner = Learning()
    in_time(planner, truth, 10.0, 0.0)
    learned = planner.learner.law
    for chunk, decodes, kv_tokens in ((0, 20, 20_000), (500, 20, 20_000), (2000, 10, 10_000)):
        told = learned.iteration_s(chunk, 0, decodes, kv_tokens)
        assert told == pytest.approx(truth.iteration_s(chunk, 0, decodes, kv_tokens), rel=0.1)


@pytest.mark.parametrize(
    ("kind", "rate", "noise", "loss"),
    [
        ("as believed", 33.0, 0.1, 0.01),
        ("as believed", 33.0, 0.2, 0.01),
        ("twice as slow", 14.0, 0.1, 0.01),
        ("twice as slow", 14.0, 0.2, 0.01),
        ("slow at prompts", 11.0, 0.1, 0.01),
        ("slow at prompts", 11.0, 0.2, 0.01),
        ("a large fixed part", 17.0, 0.1, 0.01),
        # Just beyond its capacity, an engine whose fixed part is more than half of the tightest TPOT does a little worse in noise: docs.
        ("a large fixed part", 18.0, 0.2, 0.05),
    ],
)
def test_noise_does_not_make_it_worse_than_stock(kind: str, rate: float, noise: float, loss: float) -> None:
    """Near the capacity of each engine, with the same budget of tokens."""
    truth = TRUTHS[kind]
    stock = in_time(Fcfs(), truth, rate, noise)
    assert in_time(Learning(), truth, rate, noise) >= stock - loss


def test_an_iteration_that_stalls_moves_the_law_by_a_few_per_cent() -> None:
    planner = Learning()
    in_time(planner, LAW, 10.0, 0.1)
    learner = planner.learner
    view = EngineView(BATCH_TOKENS, 64, 16, 1000)
    batch = batch_of(LAW, view, Plan([]))
    batch.tokens = batch.decodes = 10
    before = learner.law.iteration_s(0, 0, 10, 0)
    learner.observe(30.0, batch)
    for _ in range(8):
        learner.observe(before, batch)
    assert learner.law.iteration_s(0, 0, 10, 0) == pytest.approx(before, rel=0.05)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_factors_are_bounded(scale: float) -> None:
    learner = LawLearner(PLANNER)
    batch = batch_of(LAW, EngineView(BATCH_TOKENS, 64, 16, 1000), Plan([]))
    batch.tokens, batch.decodes, batch.kv_tokens = 500, 50, 50_000
    for _ in range(2000):
        learner.observe(LAW.iteration_s(450, 0, 50, 50_000) * scale, batch)
    assert all(FACTOR_MIN <= factor <= FACTOR_MAX for factor in learner.factors)
    assert learner.planner.name == "slo-aware"
