"""What a stock engine will do with one request more in its queue. Asked by `room`, for a handful of candidates a request."""

from math import inf, nextafter
from typing import Final

from multislo_router.core.bookings import Bookings
from multislo_router.core.engine_queue import EngineQueue
from multislo_router.core.iteration import chunks_of
from multislo_router.core.pace import Pace
from multislo_router.core.request import Request

HARM_SAFETY: Final = 0.03
"""For all but the request that is asked about, the time until an iteration ends counts as this much longer."""


class Forecast:
    """What a stock engine would do with one request more. Times are on the core's clock."""

    __slots__ = ("first_token_at", "harm_s", "second_token_at")

    def __init__(self, first_token_at: float, second_token_at: float, harm_s: float) -> None:
        self.first_token_at = first_token_at
        self.second_token_at = second_token_at
        self.harm_s = harm_s
        """The least margin of all other deadlines, from the iteration on that the request first makes longer."""


def forecast(queue: EngineQueue, bookings: Bookings, pace: Pace, request: Request, now: float) -> Forecast:
    """Follow a stock engine from the iteration under way until the request, sent there now, has its second token and every prompt its
    first. This is PolyServe's continuous chunked-prefill prediction, with the engine's own batches as the chunks."""
    row = queue.row.copy()
    first = place = queue.place_of(request)
    if request.parts:
        row[first:first] = request.parts
        place += len(request.parts) - 1  # its last prompt's token is the one that is asked for
    else:
        row.insert(place, request)
    joins_at = now + queue.lag_s
    tpots = bookings.tpots
    dues = bookings.due_least.copy()
    decodes = len(bookings.decodes)
    kv_tokens = bookings.kv_decode_tokens
    computed = queue.computed_by(now)
    at = queue.began_at
    head = 0
    while head < first and computed >= row[head].prompt_tokens:
        # It is through with the iterations that have ended; its token is on its way.
        computed -= row[head].prompt_tokens
        kv_tokens += row[head].sequences * row[head].prompt_tokens
        decodes += row[head].sequences
        _owe(dues, row[head])
        head += 1
    first_at = second_at = harm = inf
    most = len(row)
    while True:
        if not decodes:
            joins = joins_at if first <= head <= place else row[head].joins_at
            if joins >= at:
                at = nextafter(joins, inf)  # idle until it joins
        row_is_through = head == most
        chunks = chunks_of(row, head, computed, queue.free(decodes), at, pace.latency, place, joins_at)
        ends_at = at + pace.batch_s(chunks.tokens, chunks.attention_s, decodes, kv_tokens)
        after = head + chunks.done
        computed = chunks.computed
        if ends_at < now and (decodes or chunks.done):
            ends_at = now  # its tokens have not been seen
        if second_at == inf and first_at < inf:
            second_at = ends_at
        touched = after > first or (after == first and computed > 0)
        margin = min(dues) - ends_at - HARM_SAFETY * (ends_at - now)
        if touched and margin < harm:
            harm = margin
        for index in range(len(dues)):
            dues[index] += tpots[index]
        kv_tokens += decodes
        for index in range(head, after):
            other = row[index]
            decodes += other.sequences
            kv_tokens += other.sequences * other.prompt_tokens
            own = first <= index <= place
            if index == place:
                first_at = ends_at
            elif touched and not own and not other.lost and other.due - ends_at < harm:
                harm = other.due - ends_at
            if not own or not request.lost:
                _owe(dues, other)
        if row_is_through:
            return Forecast(first_at, second_at, harm)
        head = after
        at = ends_at


def _owe(dues: list[float], request: Request) -> None:
    """The request has its first token: its second may be the earliest that is due in its tier."""
    if not request.lost:
        due = request.due + request.tpot_s
        index = request.tier.index
        if due < dues[index]:
            dues[index] = due
