"""The walk of a stock engine's queue keeps and shortens what it can; what it answers is, to the last bit, what a plain walk answers that
goes from the iteration under way to the end of the row."""

from math import inf

from h200_law import LAW
from hypothesis import given, settings
from hypothesis import strategies as st

from multislo_router.core import events as e
from multislo_router.core.config import CoreConfig, EngineLimits, TierConfig
from multislo_router.core.decisions import Kind
from multislo_router.core.instance import Instance
from multislo_router.core.machine import RouterCore
from multislo_router.core.placement import Choice, Homes
from multislo_router.core.request import Request, Stage
from multislo_router.core.room import Room
from multislo_router.core.stock_queue import CHUNK_LEAST
from multislo_router.core.stock_walk import HARM_SAFETY, walk

TIERS = (("tight", 0.15, 0.02), ("middle", 0.3, 0.05), ("loose", 1.0, 0.1))
PROMPTS = (1, 12, 90, 256, 300, 511, 512, 513, 700, 1024, 2500, 9000)
GAPS_S = (0.0, 0.0, 0.00005, 0.004, 0.013, 0.04, 0.3)
STEPS = (*["arrive"] * 3, *["iterate"] * 2, "first token", "end", "seen", "measured", *["report"] * 2)


class OneEngine:
    """A core with one stock engine that gets whatever comes."""

    def __init__(self, scheduler: e.Scheduler, batch_tokens: int) -> None:
        tiers = tuple(TierConfig(name, ttft_s, tpot_s) for name, ttft_s, tpot_s in TIERS)
        config = CoreConfig(tiers, "middle", LAW, EngineLimits(10_000_000, 4096, scheduler))
        self.core = RouterCore(config, self._place)
        self.now = 1.0
        spec = e.InstanceSpec("a", "middle", e.InstanceState.READY, batch_tokens=batch_tokens)
        self.core.handle(e.FleetChanged(self.now, [spec]))
        self.instance = self.core.instances["a"]
        self.arrivals = 0

    def _place(self, homes: Homes, request: Request, now: float) -> Choice | None:
        return Choice(Room(self.instance, 0.0, 0.0, now, self.instance.iteration_s), Kind.OWN_TIER)

    def arrive(self, prompt_tokens: int, tier: str) -> None:
        self.arrivals += 1
        self.core.handle(e.RequestArrived(self.now, self.arrivals, prompt_tokens, tier=tier))

    def step(self, what: str, number: int) -> None:
        """One thing that happens to the engine; `number` picks whom it happens to."""
        instance, now = self.instance, self.now
        here = [*instance.prefills.values(), *instance.decodes.values()]
        if what == "arrive":
            self.arrive(PROMPTS[number % len(PROMPTS)], TIERS[number % 3][0])
        elif what == "iterate":
            for request in [*instance.decodes]:
                self.core.handle(e.TokensReceived(now, request))
        elif what == "first token" and instance.prefills:
            self.core.handle(e.TokensReceived(now, next(iter(instance.prefills))))
        elif what == "end" and here:
            self.core.handle(e.RequestEnded(now, here[number % len(here)].id, e.Outcome.COMPLETED))
        elif what == "seen":
            self.core.handle(e.IterationSeen(now, "a", [r.id for r in here[:1] if r.stage is Stage.PREFILL]))
        elif what == "measured" and here:
            request = here[number % len(here)]
            self.core.handle(e.PromptMeasured(now, request.id, request.prompt_tokens + number % 7))
        elif what == "report":
            self.core.handle(e.InstanceReported(now, "a", len(instance.decodes), len(instance.prefills), 0))

    def asking(self, prompt_tokens: int, tier: int, lost: bool = False) -> Request:
        request = Request(-1, self.core.tiers[tier], self.now, *TIERS[tier][1:], prompt_tokens, None, True)
        request.measure_prefill(LAW)
        request.lost = lost
        return request


def plain_walk(instance: Instance, request: Request, now: float) -> tuple[float, float, float]:
    """The row from the next iteration on, one batch after another, whoever asks; nothing is kept."""
    queue, factor = instance.queue, instance.calibration
    decodes, kv_tokens, dues = len(instance.decodes), instance.kv_decode_tokens, list(instance.due_least)
    row: list[Request] = []
    at, context = now, 0
    if decodes or instance.prefills:
        queue.catch_up(instance, now)
        at = max(queue.ends_at, now)
        kv_tokens += decodes
        dues = [due + tpot_s for due, tpot_s in zip(dues, instance.tpots, strict=True)]
        skip = queue.computed + queue.taken
        for other in instance.prefills.values():
            if row or skip < other.prompt_tokens:
                row.append(other)
                continue
            skip -= other.prompt_tokens
            decodes, kv_tokens = decodes + 1, kv_tokens + other.prompt_tokens
            owe(dues, other)
        context = skip if row else 0
    alone = not row and request.prompt_tokens <= instance.batch_tokens - decodes
    place = len(row)
    while instance.scheduler is e.Scheduler.PRIORITY and place > 1 and row[place - 1].due > request.due:
        place -= 1
    row.insert(place, request)
    margins: list[float] = []
    firsts: list[float] = []
    seconds: list[float] = []
    while row:
        room = max(instance.batch_tokens - decodes, CHUNK_LEAST)
        times = max(1, (row[0].prompt_tokens - context - 1) // room)
        taken, attention_s, done = 0, 0.0, 0
        before = context
        for other in row:
            take = min(other.prompt_tokens - context, times * room - taken)
            attention_s += LAW.attention_s(take, context)
            taken += take
            if context + take < other.prompt_tokens:
                context += take
                break
            done, context = done + 1, 0
            if taken == times * room or times > 1:
                break
        touched = request in row[:done] or (row[done:] and row[done] is request and context > 0) or bool(firsts)
        each_s = LAW.tokens_s(taken // times + decodes) + LAW.per_decode_s * decodes
        each_s += LAW.per_kv_token_s * (kv_tokens + 0.5 * (times - 1) * decodes)
        took_s = factor * (times * each_s + attention_s)
        ends_at = at + took_s
        if touched:
            last_due = min(due + (times - 1) * tpot_s for due, tpot_s in zip(dues, instance.tpots, strict=True))
            margins.append(min(dues) - at - took_s / times)
            margins.append(last_due - (ends_at + HARM_SAFETY * (ends_at - now)))
        if firsts and not seconds:
            seconds.append(ends_at - took_s * (times - 1) / times)
        at = ends_at
        kv_tokens += times * decodes
        dues = [due + times * tpot_s for due, tpot_s in zip(dues, instance.tpots, strict=True)]
        assert done or context > before
        for other in row[:done]:
            decodes, kv_tokens = decodes + 1, kv_tokens + other.prompt_tokens
            if other is request:
                firsts.append(at)
            elif touched and not other.lost:
                margins.append(other.due - at)
            if other is not request or not alone:
                owe(dues, other)
        del row[:done]
    at += factor * LAW.iteration_s(0, 0, decodes, kv_tokens)
    margins.append(min(dues) - at)
    return firsts[0], seconds[0] if seconds else at, min(margins)


def owe(dues: list[float], request: Request) -> None:
    if not request.lost:
        dues[request.tier.index] = min(dues[request.tier.index], request.due + request.tpot_s)


@settings(max_examples=250)
@given(
    scheduler=st.sampled_from([e.Scheduler.FCFS, e.Scheduler.FCFS, e.Scheduler.PRIORITY]),
    batch_tokens=st.sampled_from([20, 256, 512, 2048]),
    begun=st.integers(0, 6),
    life=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 99), st.sampled_from(GAPS_S)), min_size=5, max_size=60
    ),
)
def test_the_walk_answers_what_a_plain_walk_answers(
    scheduler: e.Scheduler, batch_tokens: int, begun: int, life: list[tuple[str, int, float]]
) -> None:
    engine = OneEngine(scheduler, batch_tokens)
    for number in range(begun):
        engine.arrive(300 + 100 * number, TIERS[number % 3][0])
        if number < 3:
            engine.step("first token", 0)
    for what, number, gap_s in life:
        engine.now += gap_s
        engine.step(what, number)
        for prompt_tokens in (PROMPTS[number % len(PROMPTS)], 40):
            asking = engine.asking(prompt_tokens, number % 3, number % 11 == 0)

            answer = walk(engine.instance, asking, engine.now)

            assert answer == plain_walk(engine.instance, asking, engine.now)


def test_a_prompt_behind_a_long_row_waits_for_all_of_it() -> None:
    engine = OneEngine(e.Scheduler.FCFS, 512)
    for _ in range(8):
        engine.arrive(900, "loose")
    asking = engine.asking(100, 2)

    own_at, second_at, harm_s = walk(engine.instance, asking, engine.now)

    assert own_at - engine.now > 8 * 900 * LAW.gemm_per_token_s
    assert engine.now < own_at < second_at
    assert harm_s < inf


def test_a_row_that_was_empty_when_somebody_asked_is_walked_anew_when_a_prompt_joins() -> None:
    engine = OneEngine(e.Scheduler.FCFS, 2048)
    for _ in range(5):
        engine.arrive(300, "loose")
    engine.step("first token", 0)
    engine.now += 0.02
    engine.step("iterate", 0)
    asking = engine.asking(40, 2)
    walk(engine.instance, asking, engine.now)
    engine.step("end", 3)  # the iteration under way has its tokens still
    walk(engine.instance, asking, engine.now)
    engine.arrive(90, "loose")

    answer = walk(engine.instance, asking, engine.now)

    assert answer == plain_walk(engine.instance, asking, engine.now)
