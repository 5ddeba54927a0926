"""The planner that spends slack: what it leaves out, how large it cuts chunks, and that nobody starves."""

import random
from math import inf

import pytest

from multislo_engine.model import EngineModel
from multislo_engine.planners import Decodes, EngineView, Job, Plan, Planner, SloAware, planner_named
from multislo_engine.terms import EngineConfig, EngineRequest
from multislo_perf.latency import LatencyModel

LAW = LatencyModel(1.64e-3, 3.88e-3, 5.43e-6, 0.06e-3, 17.64e-6, 5.28e-6, 2.971e-8, 3.75e-7, 3.87e-10)
PLANNER = SloAware(LAW)


def decode(id: int, slack_s: float, tpot_s: float = 0.05, prompt: int = 200, produced: int = 10) -> Job:
    """A decode whose next token is due `slack_s` after time 0."""
    return Job(
        id=id,
        prompt_tokens=prompt,
        output_tokens=500,
        priority=0,
        arrived_s=0.0,
        sequence=id,
        ttft_due_s=slack_s - produced * tpot_s,
        tpot_s=tpot_s,
        produced=produced,
        admitted=id,
        blocks=-(-(prompt + produced) // 16),
    )


def prompt(id: int, tokens: int, due_s: float, context: int = 0, second_due_s: float = -inf) -> Job:
    return Job(
        id=id,
        prompt_tokens=tokens,
        output_tokens=100,
        priority=0,
        arrived_s=0.0,
        sequence=id,
        ttft_due_s=due_s,
        tpot_s=0.05,
        context=context,
        admitted=id if context else -1,
        blocks=-(-context // 16),
        second_due_s=second_due_s,
    )


def view(decodes: list[Job], waiting: list[Job], prefills: tuple[Job, ...] = (), **more: int) -> EngineView:
    made = EngineView(**{"batch_tokens": 8192, "seqs_max": 256, "block_tokens": 16, "blocks_free": 10_000, **more})
    made.decodes = Decodes(made.block_tokens, decodes)
    made.prefills = list(prefills)
    made.waiting = sorted(waiting, key=PLANNER.order)
    made.decode_kv_tokens = sum(job.tokens for job in decodes)
    return made


def decoding(plan: Plan, seen: EngineView) -> list[int]:
    """Ids of the decodes that a plan takes."""
    jobs = seen.decodes.jobs
    return [job.id for job in jobs] if plan.decodes is None else [jobs[slot].id for slot in plan.decodes]


def seconds(seen: EngineView) -> float:
    plan = PLANNER.plan(0.0, seen)
    pairs = [(tokens, job.context) for job, tokens in plan.chunks]
    return LAW.batch_s(pairs, len(decoding(plan, seen)), seen.decodes.kv_tokens(plan.decodes))


def test_an_iteration_takes_at_most_its_fraction_of_the_least_slack() -> None:
    seen = view([decode(i, slack_s=0.030) for i in range(20)], [prompt(99, 5000, due_s=9.0)])
    assert 0.85 * 0.030 - 0.0002 < seconds(seen) <= 0.85 * 0.030
    assert len(decoding(PLANNER.plan(0.0, seen), seen)) == 20


def test_without_decodes_the_chunk_is_the_cap() -> None:
    plan = PLANNER.plan(0.0, view([], [prompt(1, 9000, due_s=9.0)]))
    assert [tokens for _, tokens in plan.chunks] == [4096]


def test_a_prompt_that_would_be_late_for_the_fixed_cost_of_iterations_gets_chunks_beyond_the_cap() -> None:
    whole_s = LAW.tokens_s(9000) + LAW.attention_s(9000, 0)
    tight = PLANNER.plan(0.0, view([], [prompt(1, 9000, due_s=1.02 * whole_s)]))
    assert [tokens for _, tokens in tight.chunks] == [8192]
    loose = PLANNER.plan(0.0, view([], [prompt(1, 9000, due_s=2.0 * whole_s)]))
    assert [tokens for _, tokens in loose.chunks] == [4096]


def test_prompts_are_served_by_deadline_and_one_under_way_is_overtaken() -> None:
    under_way = prompt(1, 9000, due_s=9.0, context=4096)
    seen = view([], [prompt(2, 500, due_s=0.5), prompt(3, 300, due_s=3.0)], (under_way,))
    plan = PLANNER.plan(0.0, seen)
    assert [(job.id, tokens) for job, tokens in plan.chunks] == [(2, 500), (3, 300), (1, 3296)]


def test_a_pressed_prompt_has_decodes_with_slack_left_out() -> None:
    loose = [decode(i, slack_s=0.9, tpot_s=0.1) for i in range(100)]
    tight = [decode(200, slack_s=0.030, tpot_s=0.02)]
    seen = view([*loose, *tight], [prompt(999, 4000, due_s=0.105)])
    assert decoding(PLANNER.plan(0.0, seen), seen) == [200]


def test_while_no_prompt_is_pressed_every_decode_banks_its_token() -> None:
    decodes = [decode(i, slack_s=0.9, tpot_s=0.1) for i in range(50)]
    for waiting in ([prompt(99, 1000, due_s=5.0)], []):
        seen = view(decodes, waiting)
        assert len(decoding(PLANNER.plan(0.0, seen), seen)) == 50


def test_a_prompt_that_is_lost_presses_nobody() -> None:
    decodes = [decode(i, slack_s=0.9, tpot_s=0.1) for i in range(50)]
    seen = view(decodes, [prompt(99, 4000, due_s=0.01)])
    assert len(decoding(PLANNER.plan(0.0, seen), seen)) == 50


def test_a_decode_that_is_lost_does_not_hold_back_the_others() -> None:
    lost = decode(1, slack_s=-0.5, tpot_s=0.02)
    seen = view([lost, decode(2, slack_s=0.2, tpot_s=0.1)], [prompt(99, 9000, due_s=9.0)])
    plan = PLANNER.plan(0.0, seen)
    assert sum(tokens for _, tokens in plan.chunks) > 2000
    assert lost.id in decoding(plan, seen)


def test_tight_decodes_leave_a_prompt_its_few_tokens() -> None:
    decodes = [decode(i, slack_s=0.008, tpot_s=0.02) for i in range(100)]
    plan = PLANNER.plan(0.0, view(decodes, [prompt(999, 4000, due_s=9.0)]))
    assert [tokens for _, tokens in plan.chunks] == [16]


def test_a_prompt_that_does_not_fit_in_the_cache_is_not_passed() -> None:
    seen = view([decode(1, slack_s=0.5)], [prompt(2, 1600, due_s=0.1), prompt(3, 16, due_s=0.2)], blocks_free=99)
    assert PLANNER.plan(0.0, seen).chunks == []


def test_a_request_without_an_slo_is_served_behind_the_others_but_served() -> None:
    model = EngineModel(LAW, EngineConfig(100_000, 2048), PLANNER)
    model.submit(0.0, EngineRequest(0, prompt_tokens=4000, output_tokens=20))
    for id in range(1, 400):  # a queue that never empties
        model.submit(0.0, EngineRequest(id, 4000, 20, ttft_due_s=0.5 + 0.2 * id, tpot_s=0.05))
    tokens = model.advance(1e9)
    ended = {token.id: token.at for token in tokens if token.finished}
    assert len(ended) == 400
    order = sorted(ended, key=lambda id: ended[id])
    assert 100 < order.index(0) < 300  # its place is about that of a deadline 30 s after its arrival


def attainment(planner: Planner, rate: float, batch_tokens: int) -> float:
    """Of a mixed load on one engine: the fraction of requests with every token in time."""
    dice = random.Random(7)
    model = EngineModel(LAW, EngineConfig(600_000, batch_tokens), planner)
    due: dict[int, tuple[float, float]] = {}
    late: set[int] = set()

    def look(now: float) -> None:
        for token in model.advance(now):
            first_s, tpot_s = due[token.id]
            if token.at > first_s + token.index * tpot_s:
                late.add(token.id)

    now = 0.0
    for id in range(1200):
        now += dice.expovariate(rate)
        prompt_tokens = int(dice.lognormvariate(6.5, 1.0)) + 1
        output_tokens = int(dice.lognormvariate(5.0, 0.8)) + 1
        tpot_s = dice.choices([0.02, 0.03, 0.05, 0.1], [10, 20, 30, 40])[0]
        ttft_s = max(dice.choice([0.3, 0.5, 1.0]), 1.3 * LAW.prefill_s(prompt_tokens, 0, 2048, 0, 0))
        due[id] = (now + ttft_s, tpot_s)
        look(now)
        model.submit(now, EngineRequest(id, prompt_tokens, output_tokens, 0, now + ttft_s, tpot_s))
    look(inf)
    return 1.0 - len(late) / len(due)


@pytest.mark.parametrize(("rate", "at_least"), [(20.0, 0.99), (26.0, 0.95)])
def test_it_attains_more_than_the_stock_scheduler_at_its_best_budget(rate: float, at_least: float) -> None:
    ours = attainment(PLANNER, rate, 4096)
    stock = max(attainment(planner_named("fcfs", LAW), rate, batch) for batch in (512, 1024, 2048, 4096))
    assert ours >= at_least
    assert ours > stock


def test_overload_does_not_tip_it_into_iterations_that_are_all_fixed_cost() -> None:
    model = EngineModel(LAW, EngineConfig(600_000, 4096), PLANNER)
    dice = random.Random(3)
    work = []
    for id in range(300):  # ten seconds' worth at once
        request = EngineRequest(
            id, dice.randrange(200, 3000), dice.randrange(20, 300), 0, 0.5, dice.choice([0.02, 0.1])
        )
        model.submit(0.0, request)
        work.append(request)
    ends = max(token.at for token in model.advance(1e9))
    stock = EngineModel(LAW, EngineConfig(600_000, 2048), planner_named("fcfs", LAW))
    for request in work:
        stock.submit(0.0, request)
    assert ends < 1.25 * max(token.at for token in stock.advance(1e9))


def test_in_overload_those_who_can_be_in_time_go_before_the_lost() -> None:
    seen = view([], [prompt(1, 3000, due_s=-1.0), prompt(2, 3000, due_s=0.03), prompt(3, 1500, due_s=0.5)])
    plan = PLANNER.plan(0.0, seen)
    assert [(job.id, tokens) for job, tokens in plan.chunks] == [(3, 1500), (1, 2596)]


def test_one_whose_first_deadline_is_out_of_reach_is_served_by_its_second() -> None:
    late = prompt(1, 3000, due_s=0.01, second_due_s=0.6)
    plan = PLANNER.plan(0.0, view([], [prompt(2, 3000, due_s=0.5), late, prompt(3, 3000, due_s=0.7)]))
    assert [job.id for job, _ in plan.chunks] == [2, 1]


def test_the_lost_get_a_few_tokens_beside_any_number_of_others() -> None:
    seen = view([], [prompt(1, 3000, due_s=-1.0), *(prompt(id, 6000, due_s=1.0 + id) for id in range(2, 40))])
    plan = PLANNER.plan(0.0, seen)
    assert [(job.id, tokens) for job, tokens in plan.chunks] == [(2, 4080), (1, 16)]


def test_an_engine_with_more_than_it_can_do_still_serves_most_in_time() -> None:
    assert attainment(PLANNER, 34.0, 4096) > 0.75
