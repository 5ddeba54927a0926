"""The forecast of a stock engine's queue, against an engine that computes it."""

from math import inf

import pytest
from h200_law import LAW
from hypothesis import given, settings
from hypothesis import strategies as st

from multislo_engine.model import EngineModel
from multislo_engine.planners import planner_named
from multislo_engine.terms import EngineConfig, EngineRequest
from multislo_router.core import events as e
from multislo_router.core.config import CoreConfig, EngineLimits, TierConfig
from multislo_router.core.decisions import Kind
from multislo_router.core.forecast import Forecast, forecast
from multislo_router.core.machine import RouterCore
from multislo_router.core.placement import Choice, Homes
from multislo_router.core.request import Request, Stage
from multislo_router.core.room import Room

PROMPTS = (1, 12, 90, 256, 300, 511, 512, 513, 700, 1024, 2500, 9000)
GAPS_S = (0.0, 0.0, 0.001, 0.004, 0.013, 0.04, 0.3)
TTFT_S, TPOT_S = 60.0, 0.2
OUTPUT_TOKENS = 400


class SeenEngine:
    """An engine model, and a core that sees each of its iterations as it ends and sends it whatever comes."""

    def __init__(self, scheduler: e.Scheduler, batch_tokens: int) -> None:
        limits = EngineLimits(10_000_000, 4096, scheduler)
        config = CoreConfig((TierConfig("patient", TTFT_S, TPOT_S),), "patient", LAW, limits)
        self.core = RouterCore(config, self._place)
        self.now = 1.0
        spec = e.InstanceSpec("a", "patient", e.InstanceState.READY, batch_tokens=batch_tokens)
        self.core.handle(e.FleetChanged(self.now, [spec]))
        self.instance = self.core.instances["a"]
        planner = planner_named("fcfs" if scheduler is e.Scheduler.FCFS else "priority", LAW)
        self.engine = EngineModel(LAW, EngineConfig(10_000_000, batch_tokens, 4096), planner)
        self.tokens_at: dict[int, list[float]] = {}
        self.arrivals = 0

    def _place(self, homes: Homes, request: Request, now: float) -> Choice | None:
        return Choice(Room(self.instance, 0.0, 0.0, now, self.instance.pace.iteration_s), Kind.OWN_TIER)

    def arrive(self, prompt_tokens: int) -> int:
        self.arrivals += 1
        (made,) = self.core.handle(e.RequestArrived(self.now, self.arrivals, prompt_tokens, OUTPUT_TOKENS))
        priority = made.priority or 0
        self.engine.submit(self.now, EngineRequest(self.arrivals, prompt_tokens, OUTPUT_TOKENS, priority))
        self.tokens_at[self.arrivals] = []
        return self.arrivals

    def until(self, at: float) -> None:
        while (ends_at := self.engine.next_at()) is not None and ends_at <= at:
            self.now = ends_at
            seen = self.engine.end_iteration()
            if seen.decoded:
                for id in [id for id, r in self.core.requests.items() if r.stage is Stage.DECODE]:
                    self._token(id)
            for id, *_ in seen.prefilled:
                self._token(id)
            for id, *_ in seen.ended:
                self.core.handle(e.RequestEnded(self.now, id, e.Outcome.COMPLETED))
        self.now = max(self.now, at)

    def _token(self, id: int) -> None:
        self.tokens_at[id].append(self.now)
        self.core.handle(e.TokensReceived(self.now, id))

    def asked(self, prompt_tokens: int) -> Forecast:
        tier = self.core.tiers[0]
        request = Request(-1, tier, self.now, TTFT_S, TPOT_S, prompt_tokens, None, True)
        request.measure_prefill(LAW)
        instance = self.instance
        return forecast(instance.queue, instance.bookings, instance.pace, request, self.now)


@settings(max_examples=200)
@given(
    st.sampled_from([e.Scheduler.FCFS, e.Scheduler.PRIORITY]),
    st.sampled_from([256, 512, 2048]),
    st.lists(st.tuples(st.sampled_from(PROMPTS), st.sampled_from(GAPS_S)), min_size=1, max_size=12),
)
def test_the_first_two_tokens_come_when_the_engine_yields_them(scheduler, batch_tokens, asks) -> None:
    seen = SeenEngine(scheduler, batch_tokens)
    for prompt_tokens, gap_s in asks[:-1]:
        seen.arrive(prompt_tokens)
        seen.until(seen.now + gap_s)

    answer = seen.asked(asks[-1][0])
    calibration = seen.instance.pace.calibration
    asked_at = seen.now
    last = seen.arrive(asks[-1][0])
    seen.until(seen.now + 30.0)

    first_at, second_at, *_ = seen.tokens_at[last]
    iteration_s = LAW.iteration_s(batch_tokens, 9000, 12, 20_000)
    # How far a prompt has come is known to an iteration, and the factor errs by a little where iterations were few.
    assert answer.first_token_at - asked_at == pytest.approx(
        (first_at - asked_at) * calibration, rel=0.02, abs=iteration_s
    )
    assert answer.second_token_at - asked_at == pytest.approx(
        (second_at - asked_at) * calibration, rel=0.02, abs=iteration_s
    )


def test_a_prompt_behind_a_long_row_waits_for_all_of_it() -> None:
    seen = SeenEngine(e.Scheduler.FCFS, 512)
    for _ in range(8):
        seen.arrive(900)

    answer = seen.asked(100)

    assert answer.first_token_at - seen.now > 8 * 900 * LAW.gemm_per_token_s
    assert seen.now < answer.first_token_at < answer.second_token_at
    assert answer.harm_s < inf


def test_asking_changes_nothing() -> None:
    seen = SeenEngine(e.Scheduler.FCFS, 512)
    for prompt_tokens in (900, 2500, 12):
        seen.arrive(prompt_tokens)
    seen.until(seen.now + 0.013)
    queue = seen.instance.queue
    before = (queue.computed, queue.began_at, [request.id for request in queue.row])

    first = seen.asked(700)
    second = seen.asked(700)

    assert (first.first_token_at, first.second_token_at, first.harm_s) == (
        second.first_token_at,
        second.second_token_at,
        second.harm_s,
    )
    assert before == (queue.computed, queue.began_at, [request.id for request in queue.row])
