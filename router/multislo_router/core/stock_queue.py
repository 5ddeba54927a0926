"""What a stock engine computes now and will compute next: vLLM's scheduler followed from outside, by the tokens that come back. Kept by
`Instance`, read by the room test.

A stock engine gives every decode a token an iteration and fills what its token budget leaves with prompts, first come first served (or by
priority), so that what it does is known but for the time that it takes: the prompts are one row of tokens that is computed from its head.
"""

from math import inf
from typing import TYPE_CHECKING

from multislo_perf.latency import LatencyModel
from multislo_router.core.events import Scheduler
from multislo_router.core.request import Request

if TYPE_CHECKING:
    from multislo_router.core.instance import Instance

CHUNK_LEAST = 16
"""What an iteration is believed to compute of prompts at least, however many decode."""
SAME_S = 1e-4
"""First tokens and decode tokens this close come from one iteration."""
HARM_SAFETY = 0.03
"""An iteration that is yet to come is believed to be this much longer for all but the request that is placed."""


class StockQueue:
    """The iteration under way and how far the prompts have come."""

    __slots__ = ("began_at", "computed", "ends_at", "taken")

    def __init__(self, now: float) -> None:
        self.computed = 0
        """Tokens of the row of prompts, from its head, that are computed before the iteration under way."""
        self.taken = -1
        """Tokens that the iteration under way computes; -1: nobody has asked yet, nothing has come since it began."""
        self.began_at = now
        self.ends_at = now

    def boundary(self, instance: "Instance", now: float) -> None:
        """An iteration has been seen to end, and the next begins."""
        if now - self.began_at <= SAME_S:
            return
        if instance.prefills:
            self.catch_up(instance, now)
            self.computed += self.taken
        self.taken = -1
        self.began_at = now

    def before_admission(self, instance: "Instance", now: float) -> None:
        """A request is about to join: it has no part in the iteration under way, or an idle engine begins one with it."""
        if not instance.prefills and not instance.decodes:
            self.computed = 0
            self.taken = -1
            self.began_at = self.ends_at = now
        elif self.taken < 0:
            self.settle(instance)

    def left_head(self, prompt_tokens: int) -> None:
        """The first prompt has its first token, or is gone."""
        self.computed = self.computed - prompt_tokens if self.computed > prompt_tokens else 0

    def settle(self, instance: "Instance") -> None:
        """Fix what the iteration under way computes: what is in the row now."""
        latency = instance.latency
        decodes = len(instance.decodes)
        free = instance.batch_tokens - decodes
        if free < CHUNK_LEAST:
            free = CHUNK_LEAST
        skip = self.computed
        taken = 0
        attention_s = 0.0
        for other in instance.prefills.values():
            tokens = other.prompt_tokens
            if skip >= tokens:
                skip -= tokens
                continue
            take = tokens - skip
            if take > free:
                take = free
            attention_s += latency.attention_s(take, skip)
            skip = 0
            taken += take
            free -= take
            if not free:
                break
        self.taken = taken
        self.ends_at = self.began_at + instance.calibration * (
            latency.tokens_s(taken + decodes)
            + latency.per_decode_s * decodes
            + latency.per_kv_token_s * instance.kv_decode_tokens
            + attention_s
        )

    def catch_up(self, instance: "Instance", now: float) -> None:
        """Believe of an engine without decodes, which shows nothing before a prompt is through, that its iterations ended as predicted."""
        if self.taken < 0:
            self.settle(instance)
        if instance.decodes or not instance.prefills:
            return
        head = next(iter(instance.prefills.values())).prompt_tokens
        while self.ends_at <= now and self.computed + self.taken < head:
            self.computed += self.taken
            self.began_at = self.ends_at
            self.settle(instance)


def walk(instance: "Instance", request: Request, now: float) -> tuple[float, float, float]:
    """The engine's iterations from now until the request has its second token: when its first two come, and the least margin of all other
    deadlines on the instance from the iteration on that its prompt first makes longer."""
    dues = instance.due_least.copy()
    at, decodes, kv_tokens, row, context = _next_iteration(instance, now, dues)
    if not row and request.prompt_tokens <= instance.batch_tokens - decodes:
        return _walk_one(instance, request, now, at, decodes, kv_tokens, dues)
    latency, factor, tpots = instance.latency, instance.calibration, instance.tpots
    per_decode_s, per_kv_token_s = latency.per_decode_s, latency.per_kv_token_s
    place = len(row) if instance.scheduler is not Scheduler.PRIORITY else _place_by_due(row, request)
    row.insert(place, request)
    harm = own_at = second_at = inf
    number = 0
    most = len(row)
    while number < most:
        first = number
        chunk = instance.batch_tokens - decodes
        if chunk < CHUNK_LEAST:
            chunk = CHUNK_LEAST
        times, tokens, attention_s, number, context = _batch(row, first, context, chunk, latency)
        # Over several iterations the decodes' KV grows evenly: each costs as much as the middle one.
        each_s = latency.tokens_s(tokens + decodes) + per_decode_s * decodes
        each_s += per_kv_token_s * (kv_tokens + 0.5 * (times - 1) * decodes)
        took_s = factor * (times * each_s + attention_s)
        began_at, at = at, at + took_s
        touched = number > place or (number == place and context > 0)
        margin = _decode(dues, tpots, now, began_at, took_s, times)
        if touched and margin < harm:
            harm = margin
        if own_at < inf and second_at == inf:
            second_at = at - took_s * (times - 1) / times
        kv_tokens += times * decodes
        for done in row[first:number]:
            decodes += 1
            kv_tokens += done.prompt_tokens
            if done is request:
                own_at = at
            elif touched and not done.lost and done.due - at < harm:
                harm = done.due - at
            _owe_second(dues, done)
    # Where the row ends, one iteration of decodes alone tells of the last prompt's second token and of the others' next.
    at += factor * latency.iteration_s(0, 0, decodes, kv_tokens)
    margin = min(dues) - at
    if margin < harm:
        harm = margin
    return own_at, at if second_at == inf else second_at, harm


def _next_iteration(instance: "Instance", now: float, dues: list[float]) -> tuple[float, int, int, list[Request], int]:
    """When the next iteration begins, with how many decodes over how many tokens of KV, the prompts that it finds (in their order) and how
    much of the first is computed. `dues`, by tier, are moved on to who decodes then."""
    queue = instance.queue
    decodes = len(instance.decodes)
    kv_tokens = instance.kv_decode_tokens
    row: list[Request] = []
    if not decodes and not instance.prefills:
        return now, 0, kv_tokens, row, 0
    queue.catch_up(instance, now)
    at = queue.ends_at if queue.ends_at > now else now
    kv_tokens += decodes
    for index, tpot_s in enumerate(instance.tpots):
        dues[index] += tpot_s
    skip = queue.computed + queue.taken
    for other in instance.prefills.values():
        tokens = other.prompt_tokens
        if row or skip < tokens:
            row.append(other)
            continue
        skip -= tokens
        decodes += 1
        kv_tokens += tokens
        _owe_second(dues, other)
    return at, decodes, kv_tokens, row, skip if row else 0


def _place_by_due(row: list[Request], request: Request) -> int:
    """Where an engine that goes by priority puts it: before who is due later, but behind the first prompt, which has begun or begins."""
    place = len(row)
    while place > 1 and row[place - 1].due > request.due:
        place -= 1
    return place


def _batch(
    row: list[Request], number: int, context: int, chunk: int, latency: LatencyModel
) -> tuple[int, int, float, int, int]:
    """What the engine takes of the row into its next iteration, `chunk` tokens at most, from the prompt `number` on, of which `context`
    tokens are computed: the number of iterations, the tokens of each, the attention of all, and where the row is then."""
    pair_s, token_s = latency.per_attention_pair_s, latency.per_chunk_token_s
    left = row[number].prompt_tokens - context
    if left > chunk:
        # Iterations full of one prompt, at once: the last piece of it is left for an iteration that others may share.
        times = (left - 1) // chunk
        take = times * chunk
        return times, chunk, take * (token_s + pair_s * (take + 2 * context)), number, context + take
    free = chunk
    attention_s = 0.0
    most = len(row)
    while True:
        take = left if left < free else free
        attention_s += take * (token_s + pair_s * (take + 2 * context))
        free -= take
        if take < left:
            return 1, chunk, attention_s, number, context + take
        number += 1
        context = 0
        if number == most or not free:
            return 1, chunk - free, attention_s, number, 0
        left = row[number].prompt_tokens


def _decode(dues: list[float], tpots: list[float], now: float, began_at: float, took_s: float, times: int) -> float:
    """Move the deadlines of who decodes on by so many iterations, which take `took_s` together, and return the least margin. Attention
    grows within a prompt, so that of many iterations the first or the last is the worst."""
    due = min(dues)
    margin = due - began_at - took_s / times
    if times == 1:
        for index, tpot_s in enumerate(tpots):
            dues[index] += tpot_s
    else:
        before = times - 1
        last_due = inf
        for index, tpot_s in enumerate(tpots):
            due = dues[index]
            dues[index] = due + times * tpot_s
            due += before * tpot_s
            if due < last_due:
                last_due = due
        due = last_due
    ends_at = began_at + took_s
    last = due - (ends_at + HARM_SAFETY * (ends_at - now))
    return last if last < margin else margin


def _owe_second(dues: list[float], request: Request) -> None:
    """The request has its first token: from the next iteration on its tier's earliest deadline may be that of its second."""
    if not request.lost:
        due = request.due + request.tpot_s
        index = request.tier.index
        if due < dues[index]:
            dues[index] = due


def _walk_one(
    instance: "Instance",
    request: Request,
    now: float,
    at: float,
    decodes: int,
    kv_tokens: int,
    dues: list[float],
) -> tuple[float, float, float]:
    """`walk` where the whole prompt is computed in the next iteration, which begins `at` and is shared with nobody: the usual case."""
    latency = instance.latency
    factor = instance.calibration
    tokens = request.prompt_tokens
    own_at = at + factor * (
        latency.tokens_s(tokens + decodes)
        + latency.per_decode_s * decodes
        + latency.per_kv_token_s * kv_tokens
        + request.attention_s
    )
    second_at = own_at + factor * latency.iteration_s(0, 0, decodes + 1, kv_tokens + decodes + tokens)
    next_due = inf
    for index, tpot_s in enumerate(instance.tpots):
        due = dues[index] + tpot_s
        if due < next_due:
            next_due = due
    harm = next_due - second_at
    margin = min(dues) - (own_at + HARM_SAFETY * (own_at - now))
    return own_at, second_at, margin if margin < harm else harm
