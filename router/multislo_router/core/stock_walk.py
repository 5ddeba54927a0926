"""What a stock engine will compute next, iteration by iteration, with one more request in its queue: when its first tokens come, and by how
much the others keep their deadlines. Asked by the room test, several times for each request.

The router asks ten instances for a request, most of them again for the next one, and again after the prompt that they have got: so what the
queue does before a prompt at its end has a part in an iteration (`Lead`) is kept until tokens come, and moved on by who joins.
"""

from collections.abc import Iterable
from math import inf
from operator import add
from typing import TYPE_CHECKING

from multislo_perf.latency import LatencyModel
from multislo_router.core.events import PRIORITY
from multislo_router.core.request import Request
from multislo_router.core.stock_queue import CHUNK_LEAST
from multislo_router.core.stock_reckoning import owe_second, reckon

if TYPE_CHECKING:
    from multislo_router.core.instance import Instance

HARM_SAFETY = 0.03
"""An iteration that is yet to come is believed to be this much longer for all but the request that is placed."""
SHORT_ROW = 2
"""So many prompts are probably through in the next iteration."""

Spare = tuple[int, int, int, float, int, int, int, float, float, float]
"""An iteration that has tokens to spare, as it is before the request that is asked about joins: tokens to spare, prompts, their tokens and
attention, decodes and their KV; the KV of all once the prompts decode; and the earliest deadlines of its decodes, of its prompts' first
tokens, and of all tokens of the iteration after it."""


class Lead:
    """Where a row of prompts has led to when an iteration has tokens to spare, kept for whoever asks and moved on by whoever joins the end.
    A row that is through in the next iteration needs none."""

    __slots__ = (
        "context",
        "decodes",
        "due_least",
        "dues",
        "known",
        "kv_tokens",
        "rest",
        "seen",
        "spare",
        "tooks_s",
    )

    def __init__(self, instance: "Instance", now: float) -> None:
        self.seen = (instance.kv_decode_tokens, len(instance.decodes), instance.calibration)
        self.due_least = instance.due_least.copy()
        self.known = len(instance.prefills)
        """Prompts of the instance that the row has."""
        self.tooks_s: list[float] = []
        """The iterations until then, from the next on."""
        self.dues = instance.due_least.copy()
        _, self.decodes, self.kv_tokens, self.rest, self.context = _next_iteration(instance, now, self.dues)
        """Decodes, their KV, the prompts that are left, and how much is computed of the first: then, as the deadlines by tier are."""
        self.spare = self._advanced(instance)

    def holds(self, instance: "Instance") -> bool:
        """Whether nothing has changed that tokens and ends change. (Of what changes the row itself, but for its end, the queue is told.)"""
        return (
            self.seen == (instance.kv_decode_tokens, len(instance.decodes), instance.calibration)
            and self.due_least == instance.due_least
            # With no row, tokens that the iteration under way takes for nobody are believed to be of whoever joins.
            and (self.known == len(instance.prefills) or bool(self.rest or self.tooks_s))
        )

    def extend(self, instance: "Instance") -> None:
        """Prompts have joined the end of the row."""
        self.rest += list(instance.prefills.values())[self.known :]
        self.known = len(instance.prefills)
        self.spare = self._advanced(instance)

    def _advanced(self, instance: "Instance") -> Spare:
        latency, factor, tpots, dues = instance.latency, instance.calibration, instance.tpots, self.dues
        per_decode_s, per_kv_token_s = latency.per_decode_s, latency.per_kv_token_s
        decodes, kv_tokens, row, context = self.decodes, self.kv_tokens, self.rest, self.context
        number = 0
        most = len(row)
        while number < most:
            first = number
            chunk = instance.batch_tokens - decodes
            if chunk < CHUNK_LEAST:
                chunk = CHUNK_LEAST
            times, tokens, attention_s, number, after = _batch(row, first, context, chunk, latency)
            if number == most and tokens < chunk:
                number = first
                break
            context = after
            # Over several iterations the decodes' KV grows evenly: each costs as much as the middle one.
            each_s = latency.tokens_s(tokens + decodes) + per_decode_s * decodes
            each_s += per_kv_token_s * (kv_tokens + 0.5 * (times - 1) * decodes)
            self.tooks_s.append(factor * (times * each_s + attention_s))
            for index, tpot_s in enumerate(tpots):
                dues[index] += times * tpot_s
            kv_tokens += times * decodes
            for done in row[first:number]:
                decodes += 1
                kv_tokens += done.prompt_tokens
                owe_second(dues, done)
        self.decodes, self.kv_tokens, self.rest, self.context = decodes, kv_tokens, row[number:], context
        spare = _spare(instance, dues, decodes, kv_tokens, self.rest, context)
        assert spare is not None
        return spare


def walk(instance: "Instance", request: Request, now: float) -> tuple[float, float, float]:
    """The engine's iterations from now until the request has its second token: when its first two come, and the least margin of all other
    deadlines on the instance from the iteration on that its prompt first makes longer."""
    at, lead, spare = _until_spare(instance, now)
    if spare is None:
        return _walk_on(instance, request, now, at, None)
    free, prompts, row_tokens, attention_s, decodes, kv_tokens, kv_after, due, due_first, due_after = spare
    tokens = request.prompt_tokens
    if tokens > free:
        return _walk_on(instance, request, now, at, lead)
    # The usual case: the whole prompt is computed in that iteration, and one of decodes alone tells of the second token.
    latency = instance.latency
    factor = instance.calibration
    if prompts or lead is not None or tokens > instance.batch_tokens - decodes:
        attention_s += latency.attention_s(tokens, 0)
        if not request.lost and request.due + request.tpot_s < due_after:
            due_after = request.due + request.tpot_s
    else:
        attention_s = request.attention_s
    own_at = at + factor * (
        latency.tokens_s(row_tokens + tokens + decodes)
        + latency.per_decode_s * decodes
        + latency.per_kv_token_s * kv_tokens
        + attention_s
    )
    decodes += prompts + 1
    second_at = own_at + factor * (
        latency.tokens_s(decodes) + latency.per_decode_s * decodes + latency.per_kv_token_s * (kv_after + tokens)
    )
    harm = due_after - second_at
    margin = due - (own_at + HARM_SAFETY * (own_at - now))
    if margin < harm:
        harm = margin
    margin = due_first - own_at
    return own_at, second_at, margin if margin < harm else harm


def _until_spare(instance: "Instance", now: float) -> tuple[float, Lead | None, Spare | None]:
    """When the first iteration with tokens to spare begins, where the row has led to by then if that is not the next one, and what is in
    it. None where the engine goes by priority and has a row: who asks may pass some of it."""
    if instance.lag_s:
        return _until_spare_lagging(instance, now)
    queue = instance.queue
    prefills = instance.prefills
    decodes = len(instance.decodes)
    if not decodes and not prefills:
        return now, None, _spare(instance, instance.due_least, 0, instance.kv_decode_tokens, (), 0)
    if queue.taken < 0 or not decodes:
        queue.catch_up(instance, now)
    at = queue.ends_at if queue.ends_at > now else now
    lead = queue.lead
    if lead is None or not lead.holds(instance):
        by_due = instance.scheduler is PRIORITY
        queue.lead = None
        if len(prefills) <= SHORT_ROW or by_due:
            dues = list(map(add, instance.due_least, instance.tpots))
            kv_tokens = instance.kv_decode_tokens + decodes
            spare = _spare(instance, dues, decodes, kv_tokens, prefills.values(), queue.computed + queue.taken)
            if spare is not None and not (by_due and spare[1]):
                return at, None, spare
            if by_due:
                return at, None, None
        lead = queue.lead = Lead(instance, now)
    elif lead.known < len(prefills):
        lead.extend(instance)
    for took_s in lead.tooks_s:
        at += took_s
    return at, lead if lead.tooks_s else None, lead.spare


def _until_spare_lagging(instance: "Instance", now: float) -> tuple[float, Lead | None, Spare | None]:
    """The same of an engine whose tokens are seen late: where it is changes with time, so that nothing is kept."""
    by_due = instance.scheduler is PRIORITY
    reckoned = reckon(instance, now)
    spare = _spare(instance, reckoned.dues, reckoned.decodes, reckoned.kv_tokens, reckoned.row, reckoned.context)
    if spare is not None and not (by_due and spare[1]):
        return reckoned.at, None, spare
    if by_due:
        return reckoned.at, None, None
    lead = Lead(instance, now)
    at = reckoned.at
    for took_s in lead.tooks_s:
        at += took_s
    return at, lead if lead.tooks_s else None, lead.spare


def _spare(
    instance: "Instance", dues: list[float], decodes: int, kv_tokens: int, prompts: Iterable[Request], skip: int
) -> Spare | None:
    """An iteration with these decodes (their deadlines in it by tier) in which the prompts are through, or None where they are not, or
    leave no token. `skip` tokens of theirs, from the first on, are computed before it."""
    latency = instance.latency
    tpots = instance.tpots
    token_s, pair_s = latency.per_chunk_token_s, latency.per_attention_pair_s
    due = min(dues)
    due_first = inf
    due_after = min(map(add, dues, tpots))
    count = tokens = kv_prompts = 0
    attention_s = 0.0
    chunk = instance.batch_tokens - decodes
    if chunk < CHUNK_LEAST:
        chunk = CHUNK_LEAST
    for other in prompts:
        left = other.prompt_tokens
        second_due = inf if other.lost else other.due + other.tpot_s
        if not count and skip >= left:
            skip -= left
            decodes += 1
            kv_tokens += left
            chunk = instance.batch_tokens - decodes
            if chunk < CHUNK_LEAST:
                chunk = CHUNK_LEAST
            if second_due < due:
                due = second_due
            second_due += tpots[other.tier.index]
        else:
            count += 1
            kv_prompts += left
            left -= skip
            tokens += left
            if tokens >= chunk:
                return None
            attention_s += left * (token_s + pair_s * (left + 2 * skip))
            skip = 0
            if other.due < due_first and not other.lost:
                due_first = other.due
        if second_due < due_after:
            due_after = second_due
    kv_after = kv_tokens + decodes + kv_prompts
    return chunk - tokens, count, tokens, attention_s, decodes, kv_tokens, kv_after, due, due_first, due_after


def _walk_on(
    instance: "Instance", request: Request, now: float, at: float, lead: Lead | None
) -> tuple[float, float, float]:
    """`walk` by iterations, from the next on or from where the row has led to."""
    tpots = instance.tpots
    if lead is None:
        dues = instance.due_least.copy()
        at, decodes, kv_tokens, row, context = _next_iteration(instance, now, dues)
    else:
        dues, decodes, kv_tokens, row, context = (
            lead.dues.copy(),
            lead.decodes,
            lead.kv_tokens,
            lead.rest.copy(),
            lead.context,
        )
    latency, factor = instance.latency, instance.calibration
    per_decode_s, per_kv_token_s = latency.per_decode_s, latency.per_kv_token_s
    place = len(row) if instance.scheduler is not PRIORITY else _place_by_due(row, request)
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
            owe_second(dues, done)
    # Where the row ends, one iteration of decodes alone tells of the last prompt's second token and of the others' next.
    at += factor * latency.iteration_s(0, 0, decodes, kv_tokens)
    margin = min(dues) - at
    if margin < harm:
        harm = margin
    return own_at, at if second_at == inf else second_at, harm


def _next_iteration(instance: "Instance", now: float, dues: list[float]) -> tuple[float, int, int, list[Request], int]:
    """When the next iteration begins, with how many decodes over how many tokens of KV, the prompts that it finds (in their order) and how
    much of the first is computed. `dues`, by tier, are moved on to who decodes then."""
    if instance.lag_s:
        reckoned = reckon(instance, now)
        dues[:] = reckoned.dues
        return reckoned.at, reckoned.decodes, reckoned.kv_tokens, reckoned.row.copy(), reckoned.context
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
        owe_second(dues, other)
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
