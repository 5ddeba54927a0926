"""What a stock engine computes now and will compute next: vLLM's scheduler followed from outside, by the tokens that come back. Kept by
`Instance`, read by the room test.

A stock engine gives every decode a token an iteration and fills what its token budget leaves with prompts, first come first served (or by
priority), so that what it does is known but for the time that it takes: the prompts are one row of tokens that is computed from its head.
"""

from math import inf
from typing import TYPE_CHECKING

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
    tpots = instance.tpots
    dues = instance.due_least.copy()
    at, decodes, kv_tokens, row, skip = _next_iteration(instance, now, dues)
    if not row and request.prompt_tokens <= instance.batch_tokens - decodes:
        return _walk_one(instance, request, now, at, decodes, kv_tokens, dues)
    latency = instance.latency
    factor = instance.calibration
    place = len(row)
    if place > 1 and instance.scheduler is Scheduler.PRIORITY:
        while place > 1 and row[place - 1].due > request.due:
            place -= 1
    row.insert(place, request)

    pair_s, token_s = latency.per_attention_pair_s, latency.per_chunk_token_s
    harm = own_at = second_at = inf
    touched = False
    number = 0
    other = row[0]
    context = skip
    left = other.prompt_tokens - skip
    most = len(row)
    while number < most:
        chunk = instance.batch_tokens - decodes
        if chunk < CHUNK_LEAST:
            chunk = CHUNK_LEAST
        free = chunk
        attention_s = 0.0
        first = number
        if number == place:
            touched = True
        if left > chunk:
            # Iterations full of one prompt, at once: the last piece of it is left for an iteration that others may share.
            times = (left - 1) // chunk
            take = times * chunk
            attention_s = take * (token_s + pair_s * (take + 2 * context))
            free = 0
            left -= take
            context += take
        else:
            times = 1
            while True:
                take = left if left < free else free
                attention_s += take * (token_s + pair_s * (take + 2 * context))
                free -= take
                left -= take
                context += take
                if left:
                    break
                number += 1
                if number == most:
                    break
                other = row[number]
                left = other.prompt_tokens
                context = 0
                if not free:
                    break
                if number == place:
                    touched = True
        each_s = latency.tokens_s(chunk - free + decodes) + latency.per_decode_s * decodes
        each_s += latency.per_kv_token_s * (kv_tokens + 0.5 * (times - 1) * decodes)
        took_s = factor * (times * each_s + attention_s)
        if touched:
            # Attention grows within a prompt, so of many iterations the first or the last is the worst for who decodes.
            believed = at + took_s + HARM_SAFETY * (at + took_s - now)
            for index, due in enumerate(dues):
                if due < inf:
                    margin = due - at - took_s / times
                    last = due + (times - 1) * tpots[index] - believed
                    if last < margin:
                        margin = last
                    if margin < harm:
                        harm = margin
        at += took_s
        if own_at < inf and second_at == inf:
            second_at = at - took_s * (times - 1) / times
        kv_tokens += times * decodes
        for index, tpot_s in enumerate(tpots):
            dues[index] += times * tpot_s
        for index in range(first, number):
            done = row[index]
            decodes += 1
            kv_tokens += done.prompt_tokens
            if done is request:
                own_at = at
            elif touched and not done.lost and done.due - at < harm:
                harm = done.due - at
            if not done.lost:
                due = done.due + done.tpot_s
                if due < dues[done.tier.index]:
                    dues[done.tier.index] = due
    at += factor * latency.iteration_s(0, 0, decodes, kv_tokens)
    for due in dues:
        if due - at < harm:
            harm = due - at
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
        if not other.lost:
            due = other.due + other.tpot_s
            index = other.tier.index
            if due < dues[index]:
                dues[index] = due
    return at, decodes, kv_tokens, row, skip if row else 0


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
    believed = own_at + HARM_SAFETY * (own_at - now)
    harm = inf
    for due, tpot_s in zip(dues, instance.tpots, strict=True):
        if due < inf:
            margin = due + tpot_s - second_at
            if due - believed < margin:
                margin = due - believed
            if margin < harm:
                harm = margin
    return own_at, second_at, harm
