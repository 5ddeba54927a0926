"""Room: would an instance, with one request more, still meet every deadline that the request touches? One test for stock engines, one
for engines that plan by deadlines, both in seconds of margin. Called by the placements for a handful of candidates a request.

Both are processor-demand tests (Baruah et al. 1990) with the iteration of a batching engine as the unit of work; the conditions on
the first two tokens and on the steady iteration are PolyServe's (arXiv 2507.17769, wait-time-aware scheduling), with the near-term and
the steady iteration estimated apart.
"""

from math import ceil, inf

from multislo_router.core.events import Scheduler
from multislo_router.core.instance import PREFILL_WINDOW_S, STALE_S, Instance
from multislo_router.core.request import Request

LOAD_MAX = 1.0
STEADY_SHARE = 0.97
"""A decode-only iteration may take this share of the tightest TPOT in the batch."""
DRAIN_SAFETY = 1.1
"""The time until the prefills are through is believed to be this much longer, for those that decode meanwhile."""
KV_SHARE = 0.97
"""Share of the KV cache that admissions may fill: blocks are not packed perfectly."""
BACKLOG_MAX_S = 0.2
"""Prefill work that may wait inside one engine; more is better held in the router, where it can still be placed elsewhere (40 to 300 ms
made no difference)."""
LATE_LOAD_MAX = 0.8
"""Lost requests fill an instance up to this load only: filled to the brim it would make the next ones late too, and so on for ever."""
LATE_SHARE = 0.05
"""Of an instance's time, what lost requests get even where it is full: they are served late, but served."""
LATE_TPOT_S = 1.0
"""The pace that is still owed to a lost request."""
CHUNK_MAX = 2048
SLACK_SHARE = 0.85
"""The share of the least slack that an SLO-aware engine's planner spends on an iteration."""


class Room:
    """The margins of one candidate, seconds; negative: that much too late."""

    __slots__ = ("first_token_at", "harm_s", "instance", "iteration_s", "load", "own_s")

    def __init__(
        self, instance: Instance, own_s: float, harm_s: float, first_token_at: float, iteration_s: float, load: float
    ) -> None:
        self.instance = instance
        self.own_s = own_s
        """Of the request's own first and second token."""
        self.harm_s = harm_s
        """The least over everything else on the instance."""
        self.first_token_at = first_token_at
        self.iteration_s = iteration_s
        """The steady decode iteration with the request in it."""
        self.load = load
        """The instance's sustained load with the request in it."""

    @property
    def least_s(self) -> float:
        return self.own_s if self.own_s < self.harm_s else self.harm_s


def fits(instance: Instance, request: Request) -> bool:
    """Whether KV memory and the number of sequences allow the request at all, now."""
    limits = instance.limits
    requests = len(instance.prefills) + len(instance.decodes)
    if requests >= limits.seqs_max:
        return False
    need = request.prompt_tokens + request.tier.output_tokens_expected(request)
    held = instance.kv_reserved + instance.kv_foreign
    return held + need <= limits.kv_tokens_max * KV_SHARE or (requests == 0 and instance.kv_foreign == 0)


def room(instance: Instance, request: Request, now: float) -> Room | None:
    """The room for a request on an instance, or None where memory, sequences or the engine's backlog forbid it."""
    if instance is request.avoid:
        return None
    if now - instance.refreshed_at > STALE_S:
        instance.refresh(now)
        instance.touched.append(instance)
    if not fits(instance, request):
        return None
    if instance.limits.scheduler is Scheduler.SLO_AWARE:
        return _room_by_demand(instance, request, now)
    return _room_in_stock_queue(instance, request, now)


def room_for_late(instance: Instance, request: Request, now: float) -> Room | None:
    """The room for a request that is lost: beside what the others need and a reserve for those to come, and a small share of the
    instance in any case, or it would starve."""
    found = room(instance, request, now)
    if found is None or instance.prefills:
        return None
    if found.harm_s >= 0.0 and found.load <= LATE_LOAD_MAX:
        return found
    return found if instance.late_share_now(now) < LATE_SHARE else None


def _room_in_stock_queue(instance: Instance, request: Request, now: float) -> Room | None:
    """Walk the engine's queue, iteration by iteration at its token budget, with the request in it."""
    latency = instance.latency
    factor = instance.calibration
    decodes = len(instance.decodes)
    queued = instance.prefills
    chunk = instance.batch_tokens - decodes
    if chunk < 16:
        chunk = 16
    decoding_s = latency.per_decode_s * decodes + latency.per_kv_token_s * instance.kv_decode_tokens
    full_s = factor * (latency.tokens_s(chunk + decodes) + decoding_s)

    harm = inf
    if queued:
        # Prompts share iterations: the walk counts tokens and attention, and rounds up by half an iteration on the average.
        undone = 1.0 - instance.head_progress(now)
        per_token_s = full_s / chunk
        elapsed = 0.5 * full_s if instance.limits.scheduler is Scheduler.FCFS else 0.0
        ahead_s = elapsed
        placed = False
        by_due = instance.limits.scheduler is Scheduler.PRIORITY
        own_at = 0.0
        for index, other in enumerate(queued.values()):
            if by_due and not placed and index and request.due < other.due:
                placed = True
                elapsed += request.prompt_tokens * per_token_s + factor * latency.attention_s(request.prompt_tokens, 0)
                own_at = elapsed
            elapsed += undone * (
                other.prompt_tokens * per_token_s + factor * latency.attention_s(other.prompt_tokens, 0)
            )
            undone = 1.0
            if placed and other.due > now:
                margin = other.due - now - elapsed
                if margin < harm:
                    harm = margin
        if elapsed - ahead_s > BACKLOG_MAX_S:
            return None
        if not placed:
            elapsed += request.prompt_tokens * per_token_s + factor * latency.attention_s(request.prompt_tokens, 0)
            own_at = elapsed
    else:
        iterations = ceil(request.prompt_tokens / chunk)
        last = request.prompt_tokens - (iterations - 1) * chunk
        wait_s = 0.0
        if decodes:
            wait_s = instance.boundary_at + instance.iteration_s - now
            if wait_s < 0.0:
                wait_s = 0.0
        elapsed = own_at = (
            wait_s
            + (iterations - 1) * full_s
            + factor * (latency.tokens_s(last + decodes) + decoding_s + latency.attention_s(request.prompt_tokens, 0))
        )

    steady_s = factor * latency.iteration_s(
        0, 0, decodes + len(queued) + 1, instance.kv_decode_tokens + request.prompt_tokens
    )
    drained_s = elapsed * DRAIN_SAFETY
    rounds = elapsed / full_s if elapsed > full_s else 1.0
    tightest = LATE_TPOT_S if request.lost else request.tpot_s
    for index, due in enumerate(instance.due_least):
        if now < due < inf:
            tpot = instance.tpots[index]
            # A decode gets a token an iteration: it keeps up where iterations are shorter than its TPOT and lives on slack else.
            margin = due - now + (rounds - 1.0) * tpot - drained_s if tpot < full_s * DRAIN_SAFETY else due - now
            if margin < harm and (margin < 0.0 or tpot < full_s * DRAIN_SAFETY):
                harm = margin
    if instance.tpot_tightest_s < tightest:
        tightest = instance.tpot_tightest_s
    load = steady_s / tightest + factor * (instance.prefill_share_now(now) + request.prefill_work_s / PREFILL_WINDOW_S)
    steady_margin = (LOAD_MAX - load) * tightest
    if steady_margin < harm:
        harm = steady_margin
    own = request.due - now - own_at
    second = request.due + request.tpot_s - now - own_at - steady_s
    return Room(instance, second if second < own else own, harm, now + own_at, steady_s, load)


def _room_by_demand(instance: Instance, request: Request, now: float) -> Room | None:
    """For every deadline from the request's own on: the time until it holds the prefills due by it (earliest deadline first) and
    the decode tokens due by it."""
    latency = instance.latency
    factor = instance.calibration
    decodes = len(instance.decodes)
    kv = instance.kv_decode_tokens
    decode_s = (
        latency.gemm_per_token_s + latency.per_decode_s + (latency.per_kv_token_s * kv / decodes if decodes else 0.0)
    )
    tightest = LATE_TPOT_S if request.lost else request.tpot_s
    if instance.tpot_tightest_s < tightest:
        tightest = instance.tpot_tightest_s
    steady_s = factor * latency.iteration_s(0, 0, decodes + len(instance.prefills) + 1, kv + request.prompt_tokens)
    wait_s = instance.boundary_at + instance.iteration_s - now if decodes else 0.0
    if wait_s < 0.0:
        wait_s = 0.0
    # An iteration's fixed cost is paid once a longest iteration: as long as the tightest slack allows, or a full chunk takes.
    longest = min(SLACK_SHARE * tightest, latency.tokens_s(CHUNK_MAX))
    overhead = 1.0 + (latency.fixed_s + latency.gemm_s) / longest

    demand = 0.0
    own_at = 0.0
    load = steady_s / tightest + factor * (instance.prefill_share_now(now) + request.prefill_work_s / PREFILL_WINDOW_S)
    harm = STEADY_SHARE * tightest - steady_s
    placed = False
    undone = 1.0 - instance.head_progress(now)
    counts = instance.tier_counts
    backlog = [*instance.prefills.values(), request]
    backlog.sort(key=_due)
    for other in backlog:
        share = 1.0
        if other is request:
            placed = True
        elif undone < 1.0:
            share, undone = undone, 1.0
        tokens = other.prompt_tokens
        demand += share * (tokens * latency.gemm_per_token_s + latency.attention_s(tokens, 0)) * overhead
        until = other.due - now
        need = demand
        for index, due in enumerate(instance.due_least):
            left = other.due - due
            if left > 0.0 and counts[index]:
                need += counts[index] * (left / instance.tpots[index] + 1.0) * decode_s
        margin = until - wait_s - factor * need
        if other is request:
            own_at = until - margin
            own = margin
        elif placed and until > 0.0 and margin < harm:
            harm = margin
    return Room(instance, own, harm, now + own_at, steady_s, load)


def _due(request: Request) -> float:
    return request.due
