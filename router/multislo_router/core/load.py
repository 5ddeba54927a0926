"""The load of an instance: the share of its time that its admitted work needs to stay on its deadlines. Placements rank instances by it; a
tier's load gradient is the loads of its instances in falling order."""

from typing import Final

from multislo_router.core.bookings import Bookings
from multislo_router.core.engine_queue import EngineQueue
from multislo_router.core.events import SLO_AWARE
from multislo_router.core.pace import Pace

LEAST_WINDOW_S: Final = 0.02
"""A deadline nearer than this counts as this near: a share of no time says nothing."""


def load_of(bookings: Bookings, pace: Pace, queue: EngineQueue, now: float) -> float:
    """The share that decodes need of the tightest TPOT, and the share of time that prefills need: the steepest demand of those that
    wait, or what prefills have needed of late if that is more."""
    if not bookings.requests:
        return 0.0
    prefills = max(bookings.prefill_share.mean, _steepest_demand(bookings, pace, queue, now))
    return pace.steady_s / bookings.tpot_tightest_s + pace.calibration * prefills


def _steepest_demand(bookings: Bookings, pace: Pace, queue: EngineQueue, now: float) -> float:
    """The largest, over the deadlines of waiting prompts, of the work due by a deadline over the time until it."""
    steepest = demand_s = 0.0
    undone = 1.0 - queue.head_progress(bookings, pace, now)
    for request in queue.row:
        if request.lost and queue.scheduler is SLO_AWARE:
            continue  # it takes what the others leave
        demand_s += request.prefill_work_s * undone
        undone = 1.0
        left_s = request.due - now
        steep = demand_s / (left_s if left_s > LEAST_WINDOW_S else LEAST_WINDOW_S)
        if steep > steepest:
            steepest = steep
    return steepest
