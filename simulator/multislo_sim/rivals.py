"""Rival router policies on the production core's state: each is made by a function here and is then a function like `placement.pack`.

All but PolyServe choose at once and never hold a request. All get the same profile and the same check of KV memory; if no instance has
enough, all are candidates. Comments say what a paper leaves open; what can be tuned is an argument.
"""

from collections.abc import Callable
from itertools import chain
from math import inf
from random import Random

from multislo_router.core.capacity import fits
from multislo_router.core.instance import Instance
from multislo_router.core.placement import Choice, Homes, OfferBy, PlaceBy, kind_on
from multislo_router.core.request import Request
from multislo_router.core.room import Room

Score = Callable[[Instance, Request, float], float]


def at_random(seed: int) -> PlaceBy:
    """Any instance."""
    dice = Random(seed)

    def place(homes: Homes, request: Request, now: float) -> Choice | None:
        instances = _candidates(homes, request)
        return _choice(dice.choice(instances), request, now) if instances else None

    return place


def round_robin() -> PlaceBy:
    """Each instance in its turn, in the order of their names."""
    turn = 0

    def place(homes: Homes, request: Request, now: float) -> Choice | None:
        nonlocal turn
        instances = sorted(_candidates(homes, request), key=_name)
        if not instances:
            return None
        turn += 1
        return _choice(instances[turn % len(instances)], request, now)

    return place


def least(score: Score) -> PlaceBy:
    """The instance of the least score; ties by name."""

    def place(homes: Homes, request: Request, now: float) -> Choice | None:
        instances = _candidates(homes, request)
        if not instances:
            return None
        best = min([(score(instance, request, now), instance.id, instance) for instance in instances])[2]
        return _choice(best, request, now)

    return place


def power_of_two(score: Score, seed: int) -> PlaceBy:
    """The better of two drawn at random."""
    dice = Random(seed)

    def place(homes: Homes, request: Request, now: float) -> Choice | None:
        instances = _candidates(homes, request)
        if not instances:
            return None
        pair = dice.sample(instances, min(2, len(instances)))
        return _choice(min(pair, key=lambda instance: (score(instance, request, now), instance.id)), request, now)

    return place


def within_own_tier(score: Score) -> PlaceBy:
    """The static partition: only the request's home tier, the least score within."""

    def place(homes: Homes, request: Request, now: float) -> Choice | None:
        instances = [*homes.tiers[request.tier.index]]
        instances = [instance for instance in instances if fits(instance, request)] or instances
        if not instances:
            return None
        best = min([(score(instance, request, now), instance.id, instance) for instance in instances])[2]
        return _choice(best, request, now)

    return place


# -- scores ------------------------------------------------------------------------------------------------------------


def requests_in_flight(instance: Instance, request: Request, now: float) -> float:
    return float(instance.bookings.requests)


def predicted_time(instance: Instance, request: Request, now: float) -> float:
    """Seconds of the queued prefills and of a decode iteration (PolyServe's "Minimal")."""
    return _backlog_s(instance, now) + instance.pace.iteration_s


def lmetric(instance: Instance, request: Request, now: float) -> float:
    """LMetric (OSDI'26): prefill tokens, queued and its own, times the batch size with it."""
    undone = 1.0 - _head_progress(instance, now)
    tokens = float(request.prompt_tokens)
    for queued in instance.queue.row:
        tokens += undone * queued.prompt_tokens
        undone = 1.0
    return tokens * (instance.bookings.requests + 1)


def headroom(ttft_weight: float = 0.8, most: bool = False) -> Score:
    """llm-d's predicted-latency scheduling: predicted TTFT and TPOT against the request's SLO; the least weighted headroom among the
    instances that meet both, else the smallest deficit. `most` prefers the most headroom instead (its other strategy). Chosen: headroom
    is a share of the SLO, so that seconds of TTFT and of TPOT add up."""

    def score(instance: Instance, request: Request, now: float) -> float:
        ttft_s, tpot_s = predicted_ttft_tpot(instance, request, now)
        ttft_room = (request.due - now - ttft_s) / max(request.due - request.arrived, 1e-3)
        tpot_room = (request.tpot_s - tpot_s) / request.tpot_s
        room = ttft_weight * ttft_room + (1.0 - ttft_weight) * tpot_room
        if ttft_room >= 0.0 and tpot_room >= 0.0:
            return -room if most else room
        return 1e6 - min(ttft_room, 0.0) * ttft_weight - min(tpot_room, 0.0) * (1.0 - ttft_weight)

    return score


def predicted_ttft_tpot(instance: Instance, request: Request, now: float) -> tuple[float, float]:
    """Seconds to the first token behind the queue at the engine's token budget, and of an iteration with the request in it."""
    latency = instance.pace.latency
    decodes = len(instance.bookings.decodes)
    chunk = max(16, instance.batch_tokens - decodes)
    decoding_s = latency.per_decode_s * decodes + latency.per_kv_token_s * instance.bookings.kv_decode_tokens
    full_s = latency.tokens_s(chunk + decodes) + decoding_s
    undone = 1.0 - _head_progress(instance, now)
    tokens, attention_s = float(request.prompt_tokens), request.attention_s
    for queued in instance.queue.row:
        tokens += undone * queued.prompt_tokens
        attention_s += undone * queued.attention_s
        undone = 1.0
    ttft_s = instance.pace.calibration * (max(1.0, tokens / chunk) * full_s + attention_s)
    return ttft_s, instance.pace.calibration * latency.iteration_s(
        0, 0, decodes + 1, instance.bookings.kv_decode_tokens + request.prompt_tokens
    )


# -- PolyServe ---------------------------------------------------------------------------------------------------------


def polyserve(final_attention: float = 1.0, dynamic: bool = True) -> tuple[PlaceBy, OfferBy]:
    """PolyServe as published (arXiv 2507.17769): the most loaded instance of the own tier that stays attainable, else (lazily) one of a
    tighter tier, nearest first, by that tier's TPOT, else an idle one; else it waits in the router. Chosen: load is the steady iteration
    over the tier's TPOT; the chunk that must be kept up for the whole prefill is predicted with this share of the final attention."""

    def offer(instance: Instance, request: Request, now: float) -> Choice | None:
        if instance.tier is not None and instance.tier.index > request.tier.index:
            return None
        found = _attainable(instance, request, now, final_attention, dynamic)
        return Choice(found, kind_on(instance, request)) if found is not None else None

    def place(homes: Homes, request: Request, now: float) -> Choice | None:
        for index in range(request.tier.index, -1, -1):
            ladder = sorted(homes.tiers[index], key=_steady, reverse=True)
            for instance in ladder:
                choice = offer(instance, request, now)
                if choice is not None:
                    return choice
        for instance in homes.warm:
            choice = offer(instance, request, now)
            if choice is not None:
                return choice
        return None

    return place, offer


def _attainable(instance: Instance, request: Request, now: float, final_attention: float, dynamic: bool) -> Room | None:
    """The paper's three conditions; `dynamic` engines cut chunks to the host tier's TPOT, the others to their token budget."""
    if not fits(instance, request):
        return None
    latency = instance.pace.latency
    tpot_s = min(request.tpot_s, instance.tier.tpot_s if instance.tier is not None else inf)
    decodes = len(instance.bookings.decodes)
    kv_tokens = instance.bookings.kv_decode_tokens
    requests = instance.bookings.requests + 1
    steady_s = latency.iteration_s(
        0, 0, requests, instance.bookings.kv_reserved + request.prompt_tokens + request.output_tokens_expected
    )
    if steady_s > tpot_s:
        return None
    budget = max(1, instance.batch_tokens - decodes)
    ahead_s = max(0.0, instance.pace.boundary_at + instance.pace.iteration_s - now) if decodes else 0.0
    undone = 1.0 - _head_progress(instance, now)
    iteration_near_s = steady_s
    for queued in (*instance.queue.row, request):
        chunk = budget
        if dynamic and requests > 1:
            context = int(final_attention * queued.prompt_tokens)
            chunk = min(chunk, latency.chunk_max(tpot_s, context, decodes, kv_tokens))
            if chunk < 1:
                return None
        chunk = min(chunk, queued.prompt_tokens)
        iteration_near_s = latency.iteration_s(chunk, queued.prompt_tokens // 2, decodes, kv_tokens)
        ahead_s += undone * iteration_near_s * max(1.0, queued.prompt_tokens / chunk)
        undone = 1.0
    ttft_s = instance.pace.calibration * ahead_s
    until = request.due - now - ttft_s
    if until < 0.0 or until + request.tpot_s < iteration_near_s:
        return None
    return Room(instance, until, 0.0, now + ttft_s, steady_s)


# --------------------------------------------------------------------------------------------------------------------


def _head_progress(instance: Instance, now: float) -> float:
    return instance.queue.head_progress(instance.bookings, instance.pace, now)


def _backlog_s(instance: Instance, now: float) -> float:
    backlog = 0.0
    undone = 1.0 - _head_progress(instance, now)
    for queued in instance.queue.row:
        backlog += undone * queued.prefill_work_s
        undone = 1.0
    return backlog


def _candidates(homes: Homes, request: Request) -> list[Instance]:
    instances = list(chain.from_iterable((*homes.tiers, homes.warm)))
    return [instance for instance in instances if fits(instance, request)] or instances


def _steady(instance: Instance) -> tuple[float, str]:
    return instance.pace.steady_s, instance.id


def _name(instance: Instance) -> tuple[int, str]:
    return len(instance.id), instance.id


def _choice(instance: Instance, request: Request, now: float) -> Choice:
    return Choice(Room(instance, 0.0, 0.0, now, instance.pace.iteration_s), kind_on(instance, request))


RIVALS: dict[str, Callable[[], PlaceBy]] = {
    "random": lambda: at_random(1),
    "round_robin": round_robin,
    "least_requests": lambda: least(requests_in_flight),
    "least_predicted_time": lambda: least(predicted_time),
    "power_of_two": lambda: power_of_two(predicted_time, 1),
    "lmetric": lambda: least(lmetric),
    "least_headroom": lambda: least(headroom()),
    "static_partition": lambda: within_own_tier(predicted_time),
}
"""Those that choose at once, with their published settings: what `multislo simulate` offers by name."""
