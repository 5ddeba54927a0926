"""Room: would an instance, with one request more, still meet every deadline that the request touches? One test for stock engines, one
for engines that plan by deadlines, both in seconds of margin. Called by the placements for a handful of candidates a request.

Both are processor-demand tests (Baruah et al. 1990) with the iteration of a batching engine as the unit of work; the conditions on
the first two tokens and on the steady iteration are PolyServe's (arXiv 2507.17769, wait-time-aware scheduling), with the near-term and
the steady iteration estimated apart.
"""

from math import inf, sqrt

from multislo_router.core.events import SLO_AWARE
from multislo_router.core.instance import STALE_S, Instance
from multislo_router.core.load import PREFILL_WINDOW_S, head_progress, late_share_now, prefill_left_s, prefill_share_now
from multislo_router.core.request import Request
from multislo_router.core.stock_walk import walk

LOAD_MAX = 1.1
"""Sustained load that a stock engine may reach. At 1 its tightest TPOT is just kept while prefills come as they have of late; a tenth more
is what the moving mean of short prompts errs by (at 1.4 they fill engines beyond what these can serve, and a queue grows)."""
LOAD_DEVIATIONS = 1.5
"""So many standard deviations of the moving mean it may reach where these are more: a few long prompts make a mean that errs by .3, and
the room test, which follows the engine's queue, knows better."""
FOREIGN_LOAD_MAX = 0.85
"""Sustained load up to which an SLO-aware engine takes requests of other tiers than its home. What their own prefills would add is not
counted, or a long prompt would find no place in a fleet that is far from full."""
OWN_SHARE_MAX = 0.25
"""What one prompt adds to that at most: whether a very long one fits, the room test tells better than a moving mean."""
KV_SHARE = 0.97
"""Share of the KV cache that admissions may fill: blocks are not packed perfectly."""
BACKLOG_MAX_S = 0.7
"""Prefill work that may wait inside one engine; more is better held in the router, where it can still be placed elsewhere."""
LATE_LOAD_MAX = 1.0
"""Lost requests fill an instance up to this load only (of an SLO-aware engine, up to this demand): more would make the next ones late too,
and so on for ever."""
LATE_EARLY_LOAD_MAX = 0.8
"""The same of an SLO-aware engine while the lost have not waited for long: a burst passes, and those to come need the reserve."""
LATE_SHARE = 0.02
"""Of an instance's time, what lost requests get even where it is full: they are served late, but served."""
LATE_PATIENCE_S = 5.0
"""So long after its deadline nobody on a stock engine is harmed for a lost request: a long prompt would cost all who decode there."""
LATE_STOCK_SHARE = 0.004
"""As `LATE_SHARE`, after that."""
LATE_TPOT_S = 1.0
"""The pace that is still owed to a lost request."""
CHUNK_MAX = 4096
"""An SLO-aware engine's largest chunk, and the share of the least slack that its planner spends on an iteration."""
SLACK_SHARE = 0.85


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


def load_with(instance: Instance, request: Request, now: float) -> float:
    """The sustained load of an instance with the request on it: the share of the tightest TPOT that a decode iteration takes, and the
    share of time that prefills take. Cheap: the placements rank by it before they ask for room."""
    tightest = LATE_TPOT_S if request.lost else request.tpot_s
    if instance.tpot_tightest_s < tightest:
        tightest = instance.tpot_tightest_s
    if not instance.prefills and not instance.decodes:
        # Idle: nobody's share is taken, however long the prompt (one may be more than the window) and whatever went before.
        return instance.steady_s / tightest
    own = request.prefill_work_s / PREFILL_WINDOW_S
    if own > OWN_SHARE_MAX:
        own = OWN_SHARE_MAX
    fresh = now - instance.prefill_share_at <= STALE_S
    prefills = own + (instance.prefill_share if fresh else prefill_share_now(instance, now))
    return instance.steady_s / tightest + instance.calibration * prefills


def overloaded(instance: Instance, request: Request, load: float) -> bool:
    """Whether that load is more than an engine may reach. Of one that plans by deadlines the room test sees the work that is due, and its
    decodes live on slack: a cap on its moving mean keeps out what has room. But a full one keeps to its home tier."""
    if instance.scheduler is not SLO_AWARE:
        return load > LOAD_MAX and load > 1.0 + LOAD_DEVIATIONS * sqrt(instance.prefill_variance)
    return _foreign_to_full(instance, request)


def _foreign_to_full(instance: Instance, request: Request) -> bool:
    """Whether a request is of another tier than a full instance's home. One that is tighter would make every iteration shorter, for as
    long as it is there: mixed, all tiers pay the fixed cost of iterations as often as the tightest does, a tenth of the fleet. One that is
    looser would take a place that the home's own tier finds nowhere else. (A lost one asks for no pace.)"""
    home = instance.tier
    if home is None or home is request.tier or (request.lost and request.tier.index < home.index):
        return False
    return _demand_with(instance, request) > FOREIGN_LOAD_MAX


def _demand_with(instance: Instance, request: Request) -> float:
    """The share of time that an engine which leaves out who has slack needs for its decodes, the request among them, and for the prefills
    of late: a token once in its TPOT for each, and an iteration's fixed cost as often as the tightest asks for one."""
    latency = instance.latency
    each_s = latency.gemm_per_token_s + latency.per_decode_s
    own_tpot_s = LATE_TPOT_S if request.lost else request.tpot_s
    tightest_s = instance.tpot_tightest_s if instance.tpot_tightest_s < own_tpot_s else own_tpot_s
    share = (latency.fixed_s + latency.gemm_s) / tightest_s
    share += (each_s + latency.per_kv_token_s * request.prompt_tokens) / own_tpot_s
    if instance.decodes:
        each_s += latency.per_kv_token_s * instance.kv_decode_tokens / len(instance.decodes)
    counts = instance.tier_counts
    for index, tpot_s in enumerate(instance.tpots):
        share += counts[index] * each_s / tpot_s
    return instance.calibration * (share + instance.prefill_share)


def fits(instance: Instance, request: Request) -> bool:
    """Whether KV memory and the number of sequences allow the request at all, now."""
    limits = instance.limits
    requests = len(instance.prefills) + len(instance.decodes)
    if requests >= limits.seqs_max:
        return False
    held = instance.kv_reserved + instance.kv_foreign
    if held + request.prompt_tokens + request.output_tokens_expected <= limits.kv_tokens_max * KV_SHARE:
        return True
    return requests == 0 and instance.kv_foreign == 0


def room(instance: Instance, request: Request, now: float) -> Room | None:
    """The room for a request on an instance, or None where memory, sequences or the engine's backlog forbid it."""
    if instance is request.avoid or not fits(instance, request):
        return None
    if now - instance.refreshed_at > STALE_S:
        instance.refresh(now)
        instance.touched.append(instance)
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
    iteration: one such prompt at a time, after a while, keeps a full fleet from leaving anything."""
    by_demand = instance.scheduler is SLO_AWARE
    patient = now - request.due < LATE_PATIENCE_S
    filling = by_demand and not patient
    if instance.prefills and (not filling or any([other.lost for other in instance.prefills.values()])):
        return None
    found = room(instance, request, now)
    if found is None:
        return None
    load = _demand_with(instance, request) if filling else load_with(instance, request, now)
    if found.harm_s >= 0.0 and load <= (LATE_LOAD_MAX if filling or not by_demand else LATE_EARLY_LOAD_MAX):
        return found
    if not by_demand and patient:
        return None
    return found if late_share_now(instance, now) < (LATE_SHARE if by_demand else LATE_STOCK_SHARE) else None


def _room_in_stock_queue(instance: Instance, request: Request, now: float) -> Room | None:
    """Follow the engine's queue, iteration by iteration, with the request in it."""
    if instance.prefills and prefill_left_s(instance, now) > BACKLOG_MAX_S:
        return None
    own_at, second_at, harm = walk(instance, request, now)
    latency = instance.latency
    steady_s = instance.steady_s + instance.calibration * (
        latency.gemm_per_token_s + latency.per_decode_s + latency.per_kv_token_s * request.prompt_tokens
    )
    until = request.due - own_at
    second = request.due + request.tpot_s - second_at
    return Room(instance, second if second < until else until, harm, own_at, steady_s)


def _room_by_demand(instance: Instance, request: Request, now: float) -> Room:
    """For every deadline from the request's own on: the time until it holds the prefills due by it (earliest deadline first, the engine
    has those that are lost behind them) and the decode tokens due by it."""
    latency = instance.latency
    factor = instance.calibration
    decodes = len(instance.decodes)
    kv_tokens = instance.kv_decode_tokens
    decode_s = latency.gemm_per_token_s + latency.per_decode_s
    wait_s = 0.0
    if decodes:
        decode_s += latency.per_kv_token_s * kv_tokens / decodes
        wait_s = max(0.0, instance.boundary_at + instance.iteration_s - now)
    tightest = min(request.tpot_s, instance.tpot_tightest_s)
    # A prefill pays an iteration's fixed cost for every full chunk, or for every iteration that is as long as the slack allows, where
    # that is shorter: behind a long context attention fills it, and chunks are small.
    fixed_s = latency.fixed_s + latency.gemm_s
    slack_s = min(instance.due_least) - now
    usable_s = SLACK_SHARE * (slack_s if slack_s > tightest else tightest) / factor - fixed_s
    by_time = fixed_s / usable_s if usable_s > fixed_s else 1.0
    by_token = fixed_s / CHUNK_MAX
    head = next(iter(instance.prefills.values()), None)
    if head is not None:
        # The iteration under way carries a chunk, half of which is still to come on the mean.
        busy_s = latency.tokens_s(CHUNK_MAX) + head.attention_s * CHUNK_MAX / (head.prompt_tokens + CHUNK_MAX)
        busy_s *= 0.5 * factor
        if busy_s > wait_s:
            wait_s = busy_s

    steady_s = instance.steady_s + factor * (
        latency.gemm_per_token_s + latency.per_decode_s + latency.per_kv_token_s * request.prompt_tokens
    )
    own = harm = inf
    own_at = 0.0
    demand = 0.0
    undone = 1.0 - head_progress(instance, now)
    backlog = [other for other in instance.prefills.values() if not other.lost]
    backlog.append(request)
    if len(backlog) > 1:
        backlog.sort(key=_due)
    for other in backlog:
        overhead_s = max(by_time * other.prefill_work_s, by_token * other.prompt_tokens)
        work_s = other.prefill_work_s + overhead_s
        demand += undone * work_s if other is head else work_s
        if other is not request and own == inf:
            continue
        need = demand
        for index, due in enumerate(instance.due_least):
            left = other.due - due
            if left > 0.0:
                need += instance.tier_counts[index] * (left / instance.tpots[index] + 1.0) * decode_s
        until = other.due - now
        margin = until - wait_s - factor * need
        if other is request:
            # Alone it takes an iteration's fixed cost too, and the weights' reading where it is short.
            alone_s = wait_s + factor * (latency.tokens_s(min(request.prompt_tokens, CHUNK_MAX)) + request.attention_s)
            own = min(margin, until - alone_s)
            own_at = until - own
        elif margin < harm:
            harm = margin
    return Room(instance, own, harm, now + own_at, steady_s)


def _reserve_s(instance: Instance, request: Request, now: float) -> float:
    """What a prompt of a tier that refuses has to leave of its slack: its share of the time that it would have to spare on that instance,
    were it idle. So an idle one takes whomever it can serve in time, and a full one rather the many who need little than the few who need
    much: somebody will be refused, and one long prompt takes the time of several short ones."""
    latency = instance.latency
    chunks_s = request.prefill_work_s + (latency.fixed_s + latency.gemm_s) / CHUNK_MAX * request.prompt_tokens
    alone_s = latency.tokens_s(min(request.prompt_tokens, CHUNK_MAX)) + request.attention_s
    spare_s = request.due - now - instance.calibration * max(chunks_s, alone_s)
    return request.reserve_share * spare_s if spare_s > 0.0 else 0.0


def _room_to_decode(instance: Instance, request: Request, now: float) -> Room:
    """For a request that has nothing to prefill: whether iterations with it, for as long as it will probably stay, keep the pace of
    everybody who decodes there, or live on his slack. An engine that plans by deadlines leaves out who has slack: what it must do is each
    one's share of his TPOT, and an iteration's fixed cost as often as the tightest of them asks for one."""
    latency = instance.latency
    factor = instance.calibration
    decodes = len(instance.decodes)
    wait_s = max(0.0, instance.boundary_at + instance.iteration_s - now) if decodes else 0.0
    steady_s = instance.steady_s + factor * (
        latency.gemm_per_token_s + latency.per_decode_s + latency.per_kv_token_s * request.prompt_tokens
    )
    tokens = request.output_tokens_expected
    tightest_s = min(request.tpot_s, instance.tpot_tightest_s)
    own_at = wait_s + steady_s
    own = until = request.due - now - own_at
    harm = inf
    if steady_s <= tightest_s:
        return Room(instance, own, harm, now + own_at, steady_s)
    if instance.scheduler is SLO_AWARE:
        fixed_s = factor * (latency.fixed_s + latency.gemm_s)
        each_s = (steady_s - fixed_s) / (decodes + 1)
        need = fixed_s / tightest_s + each_s / request.tpot_s
        for index, count in enumerate(instance.tier_counts):
            need += each_s * count / instance.tpots[index]
        return Room(instance, own, (1.0 - need) * tightest_s * tokens, now + own_at, steady_s)
    for index, due in enumerate(instance.due_least):
        if due < inf and instance.tpots[index] < steady_s:
            harm = min(harm, due - now - own_at + tokens * (instance.tpots[index] - steady_s))
    if request.tpot_s < steady_s:
        own = until + tokens * (request.tpot_s - steady_s)
    return Room(instance, own, harm, now + own_at, steady_s)


def _due(request: Request) -> float:
    return request.due
