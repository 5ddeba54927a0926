"""A stock engine whose tokens are seen late: what the router believes that it has done meanwhile, against an engine model that does it."""

from collections import deque
from collections.abc import Sequence
from random import Random
from statistics import median

import pytest
from h200_law import LAW

from multislo_engine.model import EngineModel
from multislo_engine.planners import planner_named
from multislo_engine.terms import EngineConfig, EngineRequest, Iteration
from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.config import CoreConfig, EngineLimits, TierConfig
from multislo_router.core.machine import RouterCore
from multislo_router.core.request import Stage

PROMPTS = (12, 90, 256, 300, 511, 700, 1024, 2500, 5000)
BATCH_TOKENS = 1024


class LateEngine:
    """A core before one engine, of which it hears `delay_s` late."""

    def __init__(self, delay_s: float, scheduler: e.Scheduler = e.Scheduler.FCFS) -> None:
        self.delay_s = delay_s
        config = CoreConfig(
            (TierConfig("only", 5.0, 0.1),),
            "only",
            LAW,
            EngineLimits(2_000_000, 4096, scheduler),
        )
        self.core = RouterCore(config)
        spec = e.InstanceSpec("a", "only", e.InstanceState.READY, batch_tokens=BATCH_TOKENS)
        self.core.handle(e.FleetChanged(0.0, [spec]))
        self.instance = self.core.instances["a"]
        self.engine = EngineModel(LAW, EngineConfig(2_000_000, BATCH_TOKENS, 4096), planner_named("fcfs", LAW))
        self.reports: deque[Iteration] = deque()
        self.asked: dict[int, EngineRequest] = {}
        self.predicted: dict[int, float] = {}
        self.first_tokens: dict[int, float] = {}
        self.arrivals = 0

    def arrive(self, now: float, prompt_tokens: int, output_tokens: int) -> None:
        self.until(now)
        self.arrivals += 1
        self.asked[self.arrivals] = EngineRequest(self.arrivals, prompt_tokens, output_tokens)
        self._carry_out(now, self.core.handle(e.RequestArrived(now, self.arrivals, prompt_tokens)))
        self.core.check()

    def _carry_out(self, now: float, made: Sequence[d.Decision]) -> None:
        for decision in made:
            if isinstance(decision, d.Place):
                self.predicted[decision.request] = self.core.requests[decision.request].ttft_predicted_at
                self.engine.submit(now, self.asked[decision.request])

    def until(self, now: float) -> None:
        """Play what the engine does and what the core sees of it."""
        while True:
            ends_at = self.engine.next_at()
            seen_at = self.reports[0].at + self.delay_s if self.reports else None
            if ends_at is not None and ends_at <= now and (seen_at is None or ends_at <= seen_at):
                made = self.engine.end_iteration()
                self.reports.append(made)
                self.first_tokens.update({id: made.at + self.delay_s for id, *_ in made.prefilled})
            elif seen_at is not None and seen_at <= now:
                self._see(self.reports.popleft(), seen_at)
            else:
                return

    def _see(self, seen: Iteration, now: float) -> None:
        if seen.decoded:
            left_out = {*seen.left_out}
            for id in [id for id, r in self.core.requests.items() if r.stage is Stage.DECODE and id not in left_out]:
                self.core.handle(e.TokensReceived(now, id))
        for id, *_ in seen.prefilled:
            self._carry_out(now, self.core.handle(e.TokensReceived(now, id)))
        for id, *_ in seen.ended:
            self._carry_out(now, self.core.handle(e.RequestEnded(now, id, e.Outcome.COMPLETED)))

    def busy_for(self, seconds: float, seed: int, output_tokens: int = 2000) -> None:
        dice = Random(seed)
        now = 0.0
        while now < seconds:
            now += dice.expovariate(8.0)
            self.arrive(now, dice.choice(PROMPTS), output_tokens)

    def errors_s(self, since: int) -> list[float]:
        """Of the first tokens that were seen: by how much they had been predicted wrongly, those of the first requests left out."""
        return [abs(at - self.predicted[id]) for id, at in self.first_tokens.items() if id > since]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("delay_s", [0.004, 0.02, 0.1, 0.6])
def test_first_tokens_are_predicted_as_well_of_an_engine_that_is_seen_late(delay_s: float, seed: int) -> None:
    late = LateEngine(delay_s)

    late.busy_for(10.0, seed)

    assert late.instance.queue.lag_s == pytest.approx(delay_s, abs=0.005)
    errors_s = sorted(late.errors_s(20))
    assert median(errors_s) < 0.012  # an iteration, where one more joins or just does not
    assert errors_s[int(0.9 * len(errors_s))] < 0.024


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_engine_that_is_seen_at_once_is_believed_to_have_no_lag_at_all(seed: int) -> None:
    engine = LateEngine(0.0)

    engine.busy_for(10.0, seed, output_tokens=60)

    assert engine.instance.queue.lag_s == 0.0


def test_a_lag_that_was_long_is_forgotten_when_tokens_are_seen_at_once_again() -> None:
    engine = LateEngine(0.2)
    engine.busy_for(6.0, 1, output_tokens=40)
    before_s = engine.instance.queue.lag_s
    engine.until(20.0)
    engine.delay_s = 0.001

    dice = Random(2)
    now = 20.0
    while now < 30.0:
        now += dice.expovariate(8.0)
        engine.arrive(now, dice.choice(PROMPTS), 40)

    assert before_s > 0.15
    assert engine.instance.queue.lag_s < 0.015


def test_reports_late_by_times_of_their_own_are_believed_to_be_as_late_as_they_are_on_the_mean() -> None:
    engine = LateEngine(0.02)
    dice = Random(3)
    now = 0.0

    while now < 15.0:
        now += dice.expovariate(8.0)
        engine.delay_s = dice.uniform(0.01, 0.03)
        engine.arrive(now, dice.choice(PROMPTS), 2000)

    assert engine.instance.queue.lag_s == pytest.approx(0.02, abs=0.01)


def test_an_engine_that_chooses_its_chunks_tells_nothing_of_a_lag() -> None:
    engine = LateEngine(0.1, scheduler=e.Scheduler.SLO_AWARE)

    engine.busy_for(3.0, 1)

    assert engine.instance.queue.lag_s == 0.0
