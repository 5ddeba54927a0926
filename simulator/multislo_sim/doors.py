"""The front door of the setting with rejection: who has no admission of its own refuses at once a request whose first token it predicts
late on the instance that it has chosen. Called by `trial`; multislo and PolyServe refuse by the tiers' own `Overload.REJECT`."""

from collections.abc import Callable

from multislo_router.core import decisions as d
from multislo_router.core.config import CoreConfig
from multislo_router.core.instance import Instance
from multislo_router.core.machine import RouterCore
from multislo_router.core.placement import OfferBy, PlaceBy
from multislo_router.core.request import Request
from multislo_sim.rivals import predicted_ttft_tpot

Door = Callable[[Instance, Request, float], bool]


def in_queue_order(instance: Instance, request: Request, now: float) -> bool:
    """For engines that prefill in the order of arrival: the queue before it and itself, at the engine's token budget beside its decodes."""
    return now + predicted_ttft_tpot(instance, request, now)[0] <= request.due


def by_deadline(instance: Instance, request: Request, now: float) -> bool:
    """For engines that prefill by urgency: only what is due before it is in its way, in iterations as full as the engine makes them."""
    work_s, tokens = request.prefill_work_s, request.prompt_tokens
    for queued in instance.prefills.values():
        if queued.due <= request.due:
            work_s += queued.prefill_work_s
            tokens += queued.prompt_tokens
    law = instance.latency
    decode_s = law.per_decode_s * len(instance.decodes) + law.per_kv_token_s * instance.kv_decode_tokens
    iterations = max(1.0, tokens / instance.batch_tokens)
    return now + instance.calibration * (work_s + iterations * (law.fixed_s + law.gemm_s + decode_s)) <= request.due


class RefusingCore(RouterCore):
    """The production core with a door between the choice of an instance and the booking."""

    def __init__(self, config: CoreConfig, place_by: PlaceBy, offer_by: OfferBy, door: Door) -> None:
        super().__init__(config, place_by, offer_by)
        self._rival = place_by
        self._door = door

    def _place_or_hold(self, request: Request, now: float) -> d.Decision:
        choice = self._rival(self.homes, request, now)
        if choice is None:
            return self._hold(request, now)
        if not self._door(choice.room.instance, request, now):
            return self._refuse(request, d.Cause.DEADLINE, now, "predicted late where it would be placed")
        return self._place(request, choice, now)
