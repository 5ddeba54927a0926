"""Dead reckoning: what a stock engine whose tokens are seen late has done since the last that were seen, and will have done when something
that is sent now reaches it. Asked by `stock_walk` and `load` where there is a lag to speak of.

Reckoned on the clock on which tokens are seen: there an engine is where its last tokens say and what is sent joins it a lag later, however
much of that lag is the way there and the way back.
"""

from math import ceil, sqrt
from typing import TYPE_CHECKING

from multislo_perf.latency import LatencyModel
from multislo_router.core.request import Request
from multislo_router.core.stock_queue import CHUNK_LEAST

if TYPE_CHECKING:
    from multislo_router.core.instance import Instance


class Reckoned:
    """The engine as the next iteration begins that something sent now may be part of."""

    __slots__ = ("at", "context", "decodes", "due_least", "dues", "kv_tokens", "row", "seen")

    def __init__(
        self, at: float, decodes: int, kv_tokens: int, dues: list[float], row: list[Request], context: int
    ) -> None:
        self.at = at
        """When that is, on the clock on which deadlines are judged."""
        self.decodes = decodes
        self.kv_tokens = kv_tokens
        self.dues = dues
        """The earliest deadlines of its decodes' tokens, by tier."""
        self.row = row
        """The prompts that are not through, in their order; what is asked about is not among them."""
        self.context = context
        """How much of the first is computed."""
        self.seen: tuple[float, float, int, int, int, float] | None = None
        """When it was reckoned, and from what."""
        self.due_least: list[float] = []


def reckon(instance: "Instance", now: float) -> Reckoned:
    """Believe that the engine goes on as predicted; an iteration that should have been seen to end ends now. Not to be changed."""
    queue = instance.queue
    seen = (
        now,
        instance.lag_s,
        instance.kv_decode_tokens,
        len(instance.decodes),
        len(instance.prefills),
        queue.began_at,
    )
    reckoned = queue.reckoned
    if reckoned is None or reckoned.seen != seen or reckoned.due_least != instance.due_least:
        reckoned = _reckon(instance, now)
        reckoned.seen = seen
        reckoned.due_least = instance.due_least.copy()
        queue.reckoned = reckoned
    return reckoned


def _reckon(instance: "Instance", now: float) -> Reckoned:
    queue = instance.queue
    joins_at = now + instance.lag_s
    decodes = len(instance.decodes)
    kv_tokens = instance.kv_decode_tokens
    dues = instance.due_least.copy()
    row: list[Request] = []
    if not decodes and not instance.prefills:
        return Reckoned(joins_at - instance.grace_s, 0, kv_tokens, dues, row, 0)
    queue.mend(instance, now)
    queue.catch_up(instance, now)
    at = queue.ends_at if queue.ends_at > now else now
    latency, factor, tpots = instance.latency, instance.calibration, instance.tpots
    row.extend(instance.prefills.values())
    context = 0
    number, context = _through(row, queue.computed + queue.taken)
    times = 1
    while True:
        # The iterations that end at `at` have given their tokens.
        kv_tokens += times * decodes
        for index, tpot_s in enumerate(tpots):
            dues[index] += times * tpot_s
        for other in row[:number]:
            decodes += 1
            kv_tokens += other.prompt_tokens
            owe_second(dues, other)
        if number:
            del row[:number]
        if not decodes:
            # Silent until something joins.
            begins_at = row[0].joins_at if row else joins_at
            if begins_at > at:
                at = begins_at
        if at >= joins_at:
            return Reckoned(at - instance.grace_s, decodes, kv_tokens, dues, row, context)
        decodes_s = latency.per_decode_s * decodes + latency.per_kv_token_s * kv_tokens
        if not row or row[0].joins_at > at:
            # Decodes alone until somebody joins: so many iterations, each longer than the one before by the KV of its tokens.
            until = row[0].joins_at if row and row[0].joins_at < joins_at else joins_at
            each_s = factor * (latency.tokens_s(decodes) + decodes_s)
            more_s = factor * latency.per_kv_token_s * decodes
            times = _times(each_s, more_s, until - at)
            at += times * (each_s + 0.5 * (times - 1) * more_s)
            number = 0
        else:
            times = 1
            taken, attention_s = _taken(row, context, at, max(instance.batch_tokens - decodes, CHUNK_LEAST), latency)
            number, context = _through(row, context + taken)
            at += factor * (latency.tokens_s(taken + decodes) + decodes_s + attention_s)


def _times(each_s: float, more_s: float, span_s: float) -> int:
    """How many iterations fill a span, the first of `each_s` and each one longer by `more_s` than the one before."""
    first_s = each_s - 0.5 * more_s
    return max(1, ceil(2.0 * span_s / (first_s + sqrt(first_s * first_s + 2.0 * more_s * span_s))))


def _taken(row: list[Request], context: int, at: float, free: int, latency: LatencyModel) -> tuple[int, float]:
    """What an iteration that begins then takes of the prompts that have joined by then: tokens, and their attention."""
    token_s, pair_s = latency.per_chunk_token_s, latency.per_attention_pair_s
    taken = 0
    attention_s = 0.0
    for other in row:
        if other.joins_at > at:
            break
        take = other.prompt_tokens - context
        if take > free:
            take = free
        attention_s += take * (token_s + pair_s * (take + 2 * context))
        context = 0
        taken += take
        free -= take
        if not free:
            break
    return taken, attention_s


def _through(row: list[Request], computed: int) -> tuple[int, int]:
    """How many prompts of the row are through once so many of its tokens are computed, and how much of the next one is."""
    number = 0
    for other in row:
        if computed < other.prompt_tokens:
            return number, computed
        computed -= other.prompt_tokens
        number += 1
    return number, 0


def work_left_s(instance: "Instance", now: float) -> float:
    """Seconds of prefill that will still be to do there when something sent now joins, by the profile."""
    reckoned = reckon(instance, now)
    work_s = 0.0
    undone = 1.0
    for other in reckoned.row:
        if reckoned.context and other is reckoned.row[0]:
            undone = 1.0 - reckoned.context / other.prompt_tokens
        work_s += undone * other.prefill_work_s
        undone = 1.0
    return work_s


def owe_second(dues: list[float], request: Request) -> None:
    """The request has its first token: from the next iteration on its tier's earliest deadline may be that of its second."""
    if not request.lost:
        due = request.due + request.tpot_s
        index = request.tier.index
        if due < dues[index]:
            dues[index] = due
