"""Room: would an instance, with one request more, still meet every deadline that the request touches? One test for stock engines, one
for engines that plan by deadlines, both in seconds of margin. Called by the placements for a handful of candidates a request.

PolyServe's wait-time-aware conditions (arXiv 2507.17769) are in them:
    (a) the first token is in time: `Room.own_s`, both tests
    (b) the second token is in time, behind the near-term iteration: `Room.own_s`, stock engines (the others fit their batches to it)
    (c) the steady iteration keeps the tightest TPOT: `capacity.load_with`, with `capacity.overloaded` as the limit
The margins of all others on the instance are a processor-demand test (Baruah et al. 1990) with an engine's iteration as the unit of work.
"""

from math import inf
from typing import Final

from multislo_router.core.capacity import demand_with, fits, load_with
from multislo_router.core.events import SLO_AWARE
from multislo_router.core.forecast import forecast
from multislo_router.core.instance import Instance
from multislo_router.core.request import Request

BACKLOG_MAX_S: Final = 0.7
"""Prefill work that may wait inside one stock engine; more is better held in the router, where it can still be placed elsewhere."""
LATE_LOAD_MAX: Final = 1.0
"""Lost requests fill an instance up to this load (an SLO-aware engine, up to this demand): more would make the next ones late too."""
LATE_EARLY_LOAD_MAX: Final = 0.8
"""The same of an SLO-aware engine while the lost have not waited for long: a burst passes, and those to come need the reserve."""
LATE_SHARE: Final = 0.02
"""Of an SLO-aware instance's time, what lost requests get even where it is full: they are served late, but served."""
LATE_PATIENCE_S: Final = 5.0
"""For this long after its deadline a lost request harms no other on a stock engine: a long prompt would cost every decode there."""
LATE_STOCK_SHARE: Final = 0.004
"""As `LATE_SHARE`, of a stock engine, after that."""
CHUNK_MAX: Final = 4096
"""An SLO-aware engine's largest chunk."""
SLACK_SHARE: Final = 0.85
"""Of the least slack, what its planner spends on an iteration."""


class Room:
    """The margins of one candidate, seconds; negative: that much too late."""

    __slots__ = ("first_token_at", "harm_s", "instance", "iteration_s", "own_s")

    def __init__(
        self, instance: Instance, own_s: float, harm_s: float, first_token_at: float, iteration_s: float
    ) -> None:
        self.instance = instance
        self.own_s = own_s
        """Of the request's own first and second token."""
        self.harm_s = harm_s
        """The least over everything else on the instance."""
        self.first_token_at = first_token_at
        self.iteration_s = iteration_s
        """The steady decode iteration with the request in it."""

    @property
    def least_s(self) -> float:
        return self.own_s if self.own_s < self.harm_s else self.harm_s


def room(instance: Instance, request: Request, now: float) -> Room | None:
    """The room for a request on an instance, or None where memory, sequences or the engine's backlog forbid it."""
    if request.avoid == instance.id or not fits(instance, request):
        return None
    if instance.fullness.forbids(instance.bookings.requests, now):
        return None
    if request.prefilled:
        return _room_to_decode(instance, request, now)
    if instance.scheduler is SLO_AWARE:
        found = _room_by_demand(instance, request, now)
        if request.reserve_share > 0.0:
            found.own_s -= _reserve_s(instance, request, now)
        return found
    return _room_in_stock_queue(instance, request, now)


def room_for_late(instance: Instance, request: Request, now: float) -> Room | None:
    """The room for a request that is lost: while no prompt is there and beside what the others need, and after a while a small share of
    the instance in any case, or it would starve. An SLO-aware engine puts it behind all others, so that it fills what they leave of an
    iteration: after a while one such prompt at a time may join a full fleet."""
    by_demand = instance.scheduler is SLO_AWARE
    patient = now - request.due < LATE_PATIENCE_S
    filling = by_demand and not patient
    for other in instance.queue.row:
        if not filling or other.lost:
            return None
    found = room(instance, request, now)
    if found is None:
        return None
    load = demand_with(instance, request) if filling else load_with(instance, request)
    if found.harm_s >= 0.0 and load <= (LATE_LOAD_MAX if filling or not by_demand else LATE_EARLY_LOAD_MAX):
        return found
    if not by_demand and patient:
        return None
    share = LATE_SHARE if by_demand else LATE_STOCK_SHARE
    return found if instance.bookings.prefill_share.lost < share else None


def _room_in_stock_queue(instance: Instance, request: Request, now: float) -> Room | None:
    """Follow the engine's queue, iteration by iteration, with the request in it."""
    bookings, pace, queue = instance.bookings, instance.pace, instance.queue
    if queue.row and not request.lost and queue.work_left_s(bookings, pace, now) > BACKLOG_MAX_S:
        return None
    seen = forecast(queue, bookings, pace, request, now)
    own_s = min(request.due - seen.first_token_at, request.due + request.tpot_s - seen.second_token_at)
    return Room(
        instance,
        own_s,
        seen.harm_s,
        seen.first_token_at,
        pace.steady_with_s(request.sequences, request.context_tokens()),
    )


def _room_by_demand(instance: Instance, request: Request, now: float) -> Room:
    """For every deadline from the request's own on: the time until it holds the prefills due by it (earliest deadline first, lost ones
    behind them) and the decode tokens due by it."""
    bookings, pace, queue = instance.bookings, instance.pace, instance.queue
    latency, factor = pace.latency, pace.calibration
    decode_s = latency.gemm_per_token_s + latency.per_decode_s
    if bookings.decodes:
        decode_s += latency.per_kv_token_s * bookings.kv_decode_tokens / len(bookings.decodes)
    tightest = min(request.tpot_s, bookings.tpot_tightest_s)
    # A prefill pays an iteration's fixed cost for every full chunk, or for every iteration that is as long as the slack allows, where that
    # is shorter: behind a long context attention fills it, and chunks are small.
    fixed_s = latency.fixed_s + latency.gemm_s
    usable_s = SLACK_SHARE * max(min(bookings.due_least) - now, tightest) / factor - fixed_s
    by_time = fixed_s / usable_s if usable_s > fixed_s else 1.0
    by_token = fixed_s / CHUNK_MAX
    head = queue.row[0] if queue.row else None
    wait_s = _iteration_left_s(instance, now)
    if head is not None:
        # The iteration under way carries a chunk, half of which is still to come on the mean.
        busy_s = latency.tokens_s(CHUNK_MAX) + head.attention_s * CHUNK_MAX / (head.prompt_tokens + CHUNK_MAX)
        wait_s = max(wait_s, 0.5 * factor * busy_s)
    own = harm = inf
    own_at = demand = 0.0
    undone = 1.0 - queue.head_progress(bookings, pace, now)
    backlog = [other for other in queue.row if not other.lost]
    backlog.append(request)
    if len(backlog) > 1:
        backlog.sort(key=_due)
    for other in backlog:
        work_s = other.prefill_work_s + max(by_time * other.prefill_work_s, by_token * other.prompt_tokens)
        demand += undone * work_s if other is head else work_s
        if other is not request and own == inf:
            continue
        need = demand
        for index in range(len(bookings.tpots)):
            left = other.due - bookings.due_least[index]
            if left > 0.0:
                need += bookings.tier_counts[index] * (left / bookings.tpots[index] + 1.0) * decode_s
        until = other.due - now
        margin = until - wait_s - factor * need
        if other is request:
            own = min(margin, until - wait_s - factor * _alone_s(instance, request))
            own_at = until - own
        elif margin < harm:
            harm = margin
    return Room(instance, own, harm, now + own_at, pace.steady_with_s(request.sequences, request.context_tokens()))


def _room_to_decode(instance: Instance, request: Request, now: float) -> Room:
    """For a request that has nothing to prefill: whether iterations with it, for as long as it will probably stay, keep the pace of every
    decode there, or live on its slack. An engine that plans by deadlines leaves decodes with slack out of iterations: what it must do is a
    token in its TPOT for each, and an iteration's fixed cost as often as the tightest of them asks for one."""
    bookings, pace = instance.bookings, instance.pace
    latency, tpots = pace.latency, bookings.tpots
    steady_s = pace.steady_with_s(request.sequences, request.context_tokens())
    own_at = _iteration_left_s(instance, now) + steady_s
    own = until = request.due - now - own_at
    harm = inf
    tokens = request.output_tokens_expected
    tightest_s = min(request.tpot_s, bookings.tpot_tightest_s)
    if steady_s > tightest_s and instance.scheduler is SLO_AWARE:
        fixed_s = pace.calibration * (latency.fixed_s + latency.gemm_s)
        each_s = (steady_s - fixed_s) / (len(bookings.decodes) + 1)
        need = fixed_s / tightest_s + each_s / request.tpot_s
        for index in range(len(tpots)):
            need += each_s * bookings.tier_counts[index] / tpots[index]
        harm = (1.0 - need) * tightest_s * tokens
    elif steady_s > tightest_s:
        for index in range(len(tpots)):
            due = bookings.due_least[index]
            if due < inf and tpots[index] < steady_s:
                harm = min(harm, due - now - own_at + tokens * (tpots[index] - steady_s))
        if request.tpot_s < steady_s:
            own = until + tokens * (request.tpot_s - steady_s)
    return Room(instance, own, harm, now + own_at, steady_s)


def _reserve_s(instance: Instance, request: Request, now: float) -> float:
    """What a prompt of a tier that refuses must leave of its slack: its share of the time that it would have to spare on that instance,
    were it idle. So an idle one takes whatever it can serve in time, and a full one rather many short prompts than a few long ones."""
    latency = instance.pace.latency
    chunks_s = request.prefill_work_s + (latency.fixed_s + latency.gemm_s) / CHUNK_MAX * request.prompt_tokens
    spare_s = request.due - now - instance.pace.calibration * max(chunks_s, _alone_s(instance, request))
    return request.reserve_share * spare_s if spare_s > 0.0 else 0.0


def _alone_s(instance: Instance, request: Request) -> float:
    """Its prefill alone, by the profile: an iteration's fixed cost too, and the weights' reading where it is short."""
    return instance.pace.latency.tokens_s(min(request.prompt_tokens, CHUNK_MAX)) + request.attention_s


def _iteration_left_s(instance: Instance, now: float) -> float:
    """Until the iteration under way ends, where there are decodes."""
    if not instance.bookings.decodes:
        return 0.0
    return max(0.0, instance.pace.boundary_at + instance.pace.iteration_s - now)


def _due(request: Request) -> float:
    return request.due
