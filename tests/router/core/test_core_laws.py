"""The laws of the core's parts: the ladder is a sorted list, the queue is in deadline order, an SLO finds its tier, and what is
predicted on prefills alone is what the engine model does."""

from math import inf

import pytest
from h200_law import LAW
from hypothesis import example, given, settings
from hypothesis import strategies as st

from multislo_engine.model import EngineModel
from multislo_engine.planners import planner_named
from multislo_engine.terms import EngineConfig, EngineRequest
from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.capacity import overloaded
from multislo_router.core.config import CoreConfig, EngineLimits, Overload, Placement, TierConfig
from multislo_router.core.instance import Instance
from multislo_router.core.ladder import Ladder, bucket_of
from multislo_router.core.machine import RouterCore
from multislo_router.core.pending import Pending
from multislo_router.core.request import Request, Stage
from multislo_router.core.tier import Tier

LIMITS = EngineLimits(kv_tokens_max=400_000)


def instance_of(name: str, load: float) -> Instance:
    spec = e.InstanceSpec(name, None, e.InstanceState.READY)
    instance = Instance(spec, None, [0.05], LAW, LIMITS, 0.0)
    instance.load = load
    return instance


LOADS = st.floats(0.0, 3.0)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(["add", "move", "remove"]), st.integers(0, 9), LOADS), max_size=40), LOADS)
def test_a_ladder_is_a_list_sorted_by_load(steps, load_max):
    ladder = Ladder()
    listed: dict[int, Instance] = {}
    for what, number, load in steps:
        if what == "add" and number not in listed:
            listed[number] = instance_of(str(number), load)
            ladder.add(listed[number])
        elif what == "move" and number in listed:
            listed[number].load = load
            ladder.move(listed[number])
        elif what == "remove" and number in listed:
            ladder.remove(listed[number])
            assert listed.pop(number).bucket == -1

    ranks = sorted(bucket_of(instance.load) for instance in listed.values())
    rising = ladder.emptiest(100)
    falling = ladder.fullest(load_max, 100)
    assert [bucket_of(instance.load) for instance in rising] == ranks
    assert {i.id for i in rising} == {i.id for i in listed.values()}
    assert [bucket_of(i.load) for i in falling] == [r for r in reversed(ranks) if r <= bucket_of(load_max)]
    assert ladder.emptiest(3) == rising[:3]
    assert ladder.fullest(load_max, 3) == falling[:3]
    assert set(ladder) == set(listed.values())
    assert len(ladder) == len(listed)
    assert bool(ladder) == bool(listed)


def held_request(id: int, ttft_s: float, overload: Overload) -> Request:
    tier = Tier(TierConfig("chat", ttft_s, 0.05, overload), 0, LAW, 100_000)
    return Request(id, tier, 0.0, ttft_s, 0.05, 100, None, True)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from(["stays", "leaves", "lost", "lost too"])), max_size=30),
    st.integers(1, 8),
)
def test_held_requests_come_in_deadline_order_and_the_lost_ones_behind(asks, most):
    pending = Pending()
    overloads = {"lost too": Overload.BEST_EFFORT}
    requests = [held_request(id, float(due), overloads.get(f, Overload.QUEUE)) for id, (due, f) in enumerate(asks)]
    for request in requests:
        pending.hold(request, request.due - 0.5)
    for request, (_, fate) in zip(requests, asks, strict=True):
        if fate == "leaves":
            request.stage = Stage.OVER
            pending.leave()
        elif fate.startswith("lost"):
            request.late = request.lost = True
            pending.leave()
            pending.hold(request, inf)

    def in_order(*fates: str) -> list[int]:
        chosen = [(due, id) for id, (due, fate) in enumerate(asks) if fate in fates]
        return [id for _, id in sorted(chosen)]

    staying = in_order("stays")
    lost = in_order("lost") + in_order("lost too")
    assert [request.id for request in pending.first_in_time(most)] == staying[:most]
    assert pending.count == len(staying) + len(lost)
    assert sorted(request.id for request in pending) == sorted(staying + lost)
    first_lost = pending.first_lost()
    assert (first_lost.id if first_lost else None) == (lost[0] if lost else None)
    assert pending.last_call_at() == (asks[staying[0]][0] - 0.5 if staying else None)
    assert [request.id for request in pending.last_calls(1_000.0)] == staying
    assert pending.last_call_at() is None


@settings(max_examples=300)
@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=6, unique=True),
    st.one_of(st.none(), st.integers(1, 300)),
)
def test_an_slo_finds_the_loosest_tier_that_is_not_looser(tpots_ms, asked_ms):
    tiers = [TierConfig(f"{ms} ms", 1.0, ms / 1000.0) for ms in tpots_ms]
    core = RouterCore(CoreConfig(tuple(tiers), tiers[0].name, LAW, LIMITS))

    made = core.handle(
        e.RequestArrived(0.0, 1, 100, ttft_s=0.7, tpot_s=None if asked_ms is None else asked_ms / 1000.0)
    )

    not_looser = [ms for ms in tpots_ms if asked_ms is not None and ms <= asked_ms]
    expected = tpots_ms[0] if asked_ms is None else max(not_looser, default=min(tpots_ms))
    assert [decision.tier for decision in made] == [f"{expected} ms"]
    request = core.requests[1]
    assert request.due == 0.7
    assert request.tpot_s == (asked_ms or tpots_ms[0]) / 1000.0


def one_engine(scheduler: e.Scheduler, placement: Placement, batch_tokens: int) -> tuple[RouterCore, EngineModel]:
    """A core that knows one instance, and that instance's engine."""
    limits = EngineLimits(kv_tokens_max=400_000, scheduler=scheduler)
    tier = TierConfig("patient", 30.0, 0.2, batch_tokens=batch_tokens)
    core = RouterCore(CoreConfig((tier,), "patient", LAW, limits, placement))
    core.handle(e.FleetChanged(0.0, [e.InstanceSpec("one", "patient", e.InstanceState.READY)]))
    planner = planner_named("fcfs" if scheduler is e.Scheduler.FCFS else "priority", LAW)
    return core, EngineModel(LAW, EngineConfig(400_000, batch_tokens), planner)


OVERDUE_BY_MICROSECONDS = [
    (0.0, 529),
    (0.055883496031483654, 1909),
    (0.0, 863),
    (0.002286053600742686, 22),
    (0.0361984959806732, 485),
    (0.029644283838202175, 291),
    (0.015625, 1),
]
STOCK = st.sampled_from([e.Scheduler.FCFS, e.Scheduler.PRIORITY])
BATCH_TOKENS = st.sampled_from([256, 512, 1024, 2048])


@settings(max_examples=300)
@given(STOCK, st.sampled_from(list(Placement)), BATCH_TOKENS, st.integers(1, 100_000))
def test_on_an_idle_instance_the_predicted_first_token_is_the_engines(
    scheduler, placement, batch_tokens, prompt_tokens
):
    core, engine = one_engine(scheduler, placement, batch_tokens)

    (made,) = core.handle(e.RequestArrived(5.0, 1, prompt_tokens))

    assert isinstance(made, d.Place)
    engine.submit(5.0, EngineRequest(1, prompt_tokens, 1, made.priority or 0))
    (token,) = engine.advance(1_000.0)
    assert made.ttft_predicted_s == pytest.approx(token.at - 5.0, rel=0.01)


@settings(max_examples=300)
@given(
    st.sampled_from(list(Placement)),
    BATCH_TOKENS,
    st.lists(st.tuples(st.floats(0.0, 0.06), st.integers(1, 2_500)), min_size=2, max_size=12),
)
@example(Placement.PACK, 512, OVERDUE_BY_MICROSECONDS)
def test_behind_other_prompts_the_predicted_first_token_is_within_an_iteration_of_the_engines(
    placement, batch_tokens, asks
):
    # The prompts before it decode on while it is computed, and the engine's iterations are seen. What the prediction cannot know is who
    # comes later and shares the iteration of its last chunk; and, just before an iteration ends, whether a token that is due by then
    # comes with it or with the next one.

    core, engine = one_engine(e.Scheduler.FCFS, placement, batch_tokens)
    predicted: dict[int, float] = {}
    seen: dict[int, float] = {}
    now = 0.0

    def carry_out(decisions) -> None:
        for made in decisions:
            if isinstance(made, d.Place):
                predicted[made.request] = core.requests[made.request].ttft_predicted_at
                engine.submit(now, EngineRequest(made.request, asks[made.request][1], 1_000))

    def advance_to(until: float) -> None:
        nonlocal now
        while (ends := engine.next_at()) is not None and ends <= until:
            now = ends
            iteration = engine.end_iteration()
            if iteration.decoded:
                for id in [id for id, request in core.requests.items() if request.stage is Stage.DECODE]:
                    core.handle(e.TokensReceived(now, id))
            for token in iteration.prefilled:
                seen[token.id] = token.at
                carry_out(core.handle(e.TokensReceived(now, token.id)))
        now = max(now, until)

    for id, (gap_s, prompt_tokens) in enumerate(asks):
        advance_to(now + gap_s)
        carry_out(core.handle(e.RequestArrived(now, id, prompt_tokens)))
    advance_to(now + 10.0)

    iteration_s = LAW.iteration_s(batch_tokens, 0, 0, 0)
    errors = {id: seen[id] - at for id, at in predicted.items()}
    assert all(-iteration_s <= error <= iteration_s for error in errors.values()), errors


@pytest.mark.parametrize(("prompt_tokens", "full"), [(500, True), (20_000, False)])
def test_the_prefills_of_late_may_fill_a_stock_engine_further_where_they_are_few_and_long(prompt_tokens, full):
    instance = instance_of("a", 0.0)
    tier = Tier(TierConfig("middle", 0.3, 0.05), 0, LAW, 400_000)
    request = Request(0, tier, 0.0, 5.0, 0.05, prompt_tokens, None, True)
    request.measure_prefill(LAW)
    number = 0
    while instance.bookings.prefill_share.mean < 1.0:
        number += 1
        sent = Request(number, tier, 0.0, 5.0, 0.05, prompt_tokens, None, True)
        sent.measure_prefill(LAW)
        instance.admit(sent, 0.0)

    assert overloaded(instance, request, 1.3) is full
    assert overloaded(instance, request, 2.0)
