"""Whether an instance may take one more request at all, whatever the deadlines: memory, sequences, and how full it may be filled. Cheap
questions: placements ask them of many instances before they ask a few for room."""

from math import sqrt
from typing import Final

from multislo_router.core.bookings import PREFILL_WINDOW_S
from multislo_router.core.events import SLO_AWARE
from multislo_router.core.instance import Instance
from multislo_router.core.request import Request

KV_SHARE: Final = 0.97
"""Share of the KV cache that admissions may fill: blocks are not packed perfectly."""
LOAD_MAX: Final = 1.1
"""Load that a stock engine may reach. At 1 its tightest TPOT is just kept; a tenth more is what the mean of short prompts errs by (at 1.4
a queue grows)."""
LOAD_DEVIATIONS: Final = 1.5
"""So many standard deviations of the moving mean above 1 it may reach where that is more: the mean of a few long prompts errs by .3."""
FOREIGN_LOAD_MAX: Final = 0.85
"""Demand up to which an SLO-aware engine takes requests of other tiers than its home's."""
OWN_SHARE_MAX: Final = 0.25
"""What one prompt adds to the mean at most: whether a very long one fits, the room test tells better than a moving mean."""
LATE_TPOT_S: Final = 1.0
"""The pace that is still owed to a lost request."""


def fits(instance: Instance, request: Request) -> bool:
    """Whether KV memory and the number of sequences allow the request, now."""
    limits, bookings = instance.limits, instance.bookings
    sequences, kv_tokens = request.sequences, request.kv_tokens_expected()
    if sequences > 1:
        # More than half of an engine is taken for half: it queues the rest itself, and a busy fleet may never have an idle one.
        sequences = min(sequences, max(1, limits.seqs_max // 2))
        kv_tokens = min(kv_tokens, limits.kv_tokens_max // 2)
    if bookings.requests + sequences > limits.seqs_max:
        return False
    held = bookings.kv_reserved + bookings.kv_foreign
    if held + kv_tokens <= limits.kv_tokens_max * KV_SHARE:
        return True
    return bookings.requests == 0 and bookings.kv_foreign == 0


def load_with(instance: Instance, request: Request) -> float:
    """The sustained load with the request on it: the share of the tightest TPOT that a decode iteration takes (PolyServe's condition (c),
    which `overloaded` limits), and the share of time that prefills take."""
    bookings, pace = instance.bookings, instance.pace
    tightest = LATE_TPOT_S if request.lost else request.tpot_s
    if bookings.tpot_tightest_s < tightest:
        tightest = bookings.tpot_tightest_s
    if not bookings.requests:
        # Idle: no other request's share is taken, however long the prompt and whatever went before.
        return pace.steady_s / tightest
    own = request.prefill_work_s / PREFILL_WINDOW_S
    if own > OWN_SHARE_MAX:
        own = OWN_SHARE_MAX
    return pace.steady_s / tightest + pace.calibration * (own + bookings.prefill_share.mean)


def overloaded(instance: Instance, request: Request, load: float) -> bool:
    """Whether that load is more than the engine may reach.

    Of an engine that plans by deadlines the room test sees the work that is due, and its decodes live on slack: a cap on its load
    would keep out what has room. But a full one keeps to its home tier.
    """
    if instance.scheduler is not SLO_AWARE:
        return load > LOAD_MAX and load > 1.0 + LOAD_DEVIATIONS * sqrt(instance.bookings.prefill_share.variance)
    return _foreign_to_full(instance, request)


def _foreign_to_full(instance: Instance, request: Request) -> bool:
    """Whether a request is of another tier than a full instance's home.

    A tighter one would make every iteration shorter for as long as it is there: mixed, all tiers pay the fixed cost of iterations as often
    as the tightest does, a tenth of the fleet. A looser one would take a place that the home's own tier finds nowhere else. (A lost one
    asks for no pace.)
    """
    home = instance.tier
    if home is None or home is request.tier or (request.lost and request.tier.index < home.index):
        return False
    return demand_with(instance, request) > FOREIGN_LOAD_MAX


def demand_with(instance: Instance, request: Request) -> float:
    """The share of time that an engine which leaves decodes with slack out of iterations needs, the request among them: a token in its TPOT
    for each decode, an iteration's fixed cost as often as the tightest asks for one, and the prefills of late."""
    bookings, pace = instance.bookings, instance.pace
    latency = pace.latency
    each_s = latency.gemm_per_token_s + latency.per_decode_s
    own_tpot_s = LATE_TPOT_S if request.lost else request.tpot_s
    tightest_s = min(bookings.tpot_tightest_s, own_tpot_s)
    share = (latency.fixed_s + latency.gemm_s) / tightest_s
    share += (request.sequences * each_s + latency.per_kv_token_s * request.context_tokens()) / own_tpot_s
    if bookings.decodes:
        each_s += latency.per_kv_token_s * bookings.kv_decode_tokens / len(bookings.decodes)
    for index in range(len(bookings.tpots)):
        share += bookings.tier_counts[index] * each_s / bookings.tpots[index]
    return pace.calibration * (share + bookings.prefill_share.mean)
