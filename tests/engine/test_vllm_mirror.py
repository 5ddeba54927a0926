"""The plug-in's mirror of a vLLM engine and what it orders, on requests that hold what vLLM's hold. No vLLM is needed."""

import random
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import pytest

from multislo_engine.planners import Plan, SloAware
from multislo_engine.planners.view import Job
from multislo_engine.vllm.mirror import SKIPS_MAX, Mirror
from multislo_engine.vllm.settings import PROFILE, Settings, settings_from, slo_of
from multislo_perf.profile import load_profile

LAW = load_profile(PROFILE).latency
PLANNER = SloAware(LAW)


@dataclass(eq=False)
class Request:
    """One of vLLM's requests: its counters, and how they grow."""

    request_id: str
    num_prompt_tokens: int
    num_output_tokens: int = 0
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0
    is_prefill_chunk: bool = False
    spec_token_ids: list[int] = field(default_factory=list)
    next_decode_eligible_step: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens

    def scheduled(self, tokens: int) -> None:
        self.num_computed_tokens += tokens
        self.is_prefill_chunk = self.num_computed_tokens < self.num_tokens

    def updated(self) -> None:
        """The iteration has ended: a token, if its prefill was complete."""
        if self.num_computed_tokens and not self.is_prefill_chunk:
            self.num_output_tokens += 1


def mirror(batch_tokens: int = 1000, cap_least: int = 2) -> Mirror:
    return Mirror(batch_tokens, 64, 16, PLANNER, cap_least)


def come(engine: Mirror, name: str, prompt: int, ttft_s: float = 1.0, tpot_s: float = 0.05) -> Request:
    request = Request(name, prompt)
    engine.come(request, 0.0, (ttft_s, tpot_s, -inf))
    return request


def decoding(engine: Mirror, name: str, prompt: int = 10, tokens: int = 1) -> Request:
    request = come(engine, name, prompt)
    engine.admitted([name])
    request.scheduled(prompt)
    for _ in range(tokens):
        request.updated()
        request.num_computed_tokens = request.num_tokens - 1
    return request


def prefilling(engine: Mirror, name: str, prompt: int, done: int, ttft_s: float = 1.0) -> Request:
    request = come(engine, name, prompt, ttft_s)
    engine.admitted([name])
    request.scheduled(done)
    return request


def given(orders: Any, waiting: list[Request]) -> dict[str, int]:
    """What vLLM gives under these orders: the running in turn, then the waiting, each up to the budget."""
    left, found = orders.tokens, {}
    for request in (*[one for one in orders.running if one not in orders.skipped], *waiting):
        tokens = request.num_tokens + len(request.spec_token_ids) - request.num_computed_tokens
        if orders.chunk_tokens:
            tokens = min(tokens, orders.chunk_tokens)
        tokens = min(tokens, left)
        if tokens:
            found[request.request_id] = tokens
            left -= tokens
    return found


def test_a_request_is_mirrored_from_its_arrival_to_its_end() -> None:
    engine = mirror()
    request = come(engine, "a", 100)
    assert [job.prefill_tokens for job in engine.read(50).waiting] == [100]
    engine.admitted(["a"])
    request.scheduled(60)
    view = engine.read(46)
    assert [(job.context, job.blocks, job.prefill_tokens) for job in view.prefills] == [(60, 4, 40)]
    request.scheduled(40)
    request.updated()
    view = engine.read(43)
    assert not view.prefills
    assert view.decodes.tokens.tolist() == [101]
    assert view.decodes.due_s.tolist() == pytest.approx([1.05])
    for _ in range(3):
        request.scheduled(1)
        request.updated()
    view = engine.read(43)
    assert view.decode_kv_tokens == 104
    assert view.decodes.due_s.tolist() == pytest.approx([1.2])
    engine.gone("a")
    assert engine.running == 0
    assert not engine.jobs


def test_a_preempted_request_waits_with_its_output_to_be_computed_again() -> None:
    engine = mirror()
    request = decoding(engine, "a", 10, tokens=5)
    engine.read(50)
    request.num_computed_tokens = 0
    engine.preempted(request)
    view = engine.read(50)
    assert [(job.prefill_tokens, job.due_s) for job in view.waiting] == [(15, pytest.approx(1.25))]
    assert engine.running == 0


def test_a_request_that_drafts_may_advance_by_several_tokens() -> None:
    engine = mirror()
    request = decoding(engine, "a", 10, tokens=1)
    engine.read(50)
    request.num_output_tokens, request.num_computed_tokens = 4, 13
    assert engine.read(50).decodes.produced.tolist() == [4]


def test_decodes_come_first_then_prompts_by_plan_and_who_is_left_out_is_skipped() -> None:
    engine = mirror()
    prompt = prefilling(engine, "p", 500, 100)
    one, two, three = [decoding(engine, name) for name in "abc"]
    waits = come(engine, "w", 30)
    view = engine.read(50)
    plan = Plan([(engine.jobs["p"], 200)], np.array([0, 2]))
    orders = engine.orders(plan, [prompt, one, two, three], speculating=False)
    assert orders.running == [one, three, prompt, two]
    assert orders.skipped == [two]
    assert (orders.tokens, orders.left_out, orders.decodes) == (202, 1, 2)
    assert given(orders, [waits]) == {"a": 1, "c": 1, "p": 200}
    assert orders.kv_tokens == view.decodes.kv_tokens(np.array([0, 2]))


def test_drafts_of_those_that_take_part_are_added_to_the_budget() -> None:
    engine = mirror()
    one, two = [decoding(engine, name) for name in "ab"]
    one.spec_token_ids, two.spec_token_ids = [5, 6, 7], [8]
    engine.read(50)
    assert engine.orders(Plan([], np.array([0])), [one, two], speculating=True).tokens == 4
    assert engine.orders(Plan([]), [one, two], speculating=True).tokens == 6


def test_a_waiting_request_that_overtakes_a_prompt_under_way_gets_its_tokens() -> None:
    engine = mirror()
    long = prefilling(engine, "long", 900, 100, ttft_s=9.0)
    short = come(engine, "short", 60)
    engine.read(500)
    orders = engine.orders(Plan([(engine.jobs["short"], 60)]), [long], speculating=False)
    assert orders.first == [short]
    assert orders.skipped == [long]
    assert given(orders, [short]) == {"short": 60}


def test_a_chunk_that_is_cut_before_another_is_made_with_a_cap() -> None:
    """The first of the lost gets a few tokens behind a chunk that the slack cuts."""
    engine = mirror()
    first, lost = prefilling(engine, "first", 900, 100), prefilling(engine, "lost", 900, 100)
    engine.read(500)
    orders = engine.orders(Plan([(engine.jobs["first"], 300), (engine.jobs["lost"], 16)]), [lost, first], False)
    assert given(orders, []) == {"first": 300, "lost": 16}
    uncapped = mirror(cap_least=0)
    first, lost = prefilling(uncapped, "first", 900, 100), prefilling(uncapped, "lost", 900, 100)
    uncapped.read(500)
    plan = Plan([(uncapped.jobs["first"], 300), (uncapped.jobs["lost"], 16)])
    assert sum(given(uncapped.orders(plan, [lost, first], False), []).values()) == 316


def test_a_prompt_under_way_is_not_passed_over_for_ever() -> None:
    engine = mirror()
    long = prefilling(engine, "long", 900, 100, ttft_s=9.0)
    passed = 0
    for number in range(SKIPS_MAX + 5):
        come(engine, f"short{number}", 60)
        engine.read(500)
        orders = engine.orders(Plan([(engine.jobs[f"short{number}"], 60)]), [long], speculating=False)
        engine.gone(f"short{number}")
        if orders.skipped != [long]:
            break
        passed += 1
    assert passed == SKIPS_MAX
    assert given(orders, []) == {"long": 60}


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_planned_stays_within_the_budget_and_something_is_done(seed: int) -> None:
    """A whole life of an engine: arrivals, plans, preemptions, aborts. What vLLM would do under the orders is compared with the plan."""
    dice = random.Random(seed)
    engine = mirror(batch_tokens=dice.choice([64, 300, 2000]))
    running: list[Request] = []
    waiting: list[Request] = []
    now = 0.0
    for number in range(400):
        if dice.random() < 0.3:
            waiting.append(
                come(
                    engine, f"r{number}", dice.randint(1, 700), now + dice.uniform(0.05, 2.0), dice.choice([0.01, 0.1])
                )
            )
        if running and dice.random() < 0.05:
            gone = running.pop(dice.randrange(len(running)))
            engine.gone(gone.request_id)
        if running and dice.random() < 0.03:
            victim = running.pop()
            victim.num_computed_tokens, victim.is_prefill_chunk = 0, False
            engine.preempted(victim)
            waiting.insert(0, victim)
        view = engine.read(4000)
        assert engine.running == len(running)
        assert len(view.waiting) == len(waiting)
        assert [job.order for job in view.waiting] == sorted(job.order for job in view.waiting)
        if not running and not waiting:
            continue
        plan = PLANNER.plan(now, view)
        orders = engine.orders(plan, running, speculating=False)
        assert sorted(map(id, orders.running)) == sorted(map(id, running))
        assert 0 < orders.tokens <= view.batch_tokens
        waiting = [*orders.first, *[request for request in waiting if request not in orders.first]]
        tokens = given(orders, waiting)
        assert tokens
        running = list(orders.running)
        for request in [*running, *waiting]:
            if request.request_id in tokens:
                if request in waiting:
                    waiting.remove(request)
                    running.append(request)
                    engine.admitted([request.request_id])
                request.scheduled(tokens[request.request_id])
        for request in running:
            if request.request_id in tokens:
                request.updated()
        now += LAW.tokens_s(sum(tokens.values()))


def test_an_slo_is_the_requests_own_else_the_default() -> None:
    settings = settings_from({"multislo": {"ttft_ms": 500, "tpot_ms": 40}})
    assert slo_of({"slo_ttft_ms": -20, "slo_tpot_ms": "25", "slo_late_ttft_ms": 900}, settings) == (-0.02, 0.025, 0.9)
    assert slo_of(None, settings) == (0.5, 0.04, -inf)
    assert slo_of({"slo_ttft_ms": "soon", "slo_tpot_ms": 0}, settings) == (0.5, 0.04, -inf)
    assert slo_of({}, Settings(LAW)) == (inf, inf, -inf)


def test_settings_name_the_field_that_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"multislo\.tpot_ms: -1 must be a number of milliseconds above 0"):
        settings_from({"multislo": {"tpot_ms": -1}})
    with pytest.raises(ValueError, match="ttft: no such field"):
        settings_from({"multislo": {"ttft": 1}})
    assert settings_from({}).latency == LAW
    assert settings_from({"another": 1}).tpot_s == inf


def test_jobs_have_no_end_that_the_planner_could_see() -> None:
    engine = mirror()
    come(engine, "a", 10)
    job: Job = engine.jobs["a"]
    assert job.output_tokens > 10**9
