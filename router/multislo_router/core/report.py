"""Copies the core's state out into a `CoreStatus`. Called by `RouterCore.status`; changes nothing."""

from collections.abc import Iterable, Sequence

from multislo_router.core.admissions import Admissions
from multislo_router.core.counts import TierCounts
from multislo_router.core.instance import Instance
from multislo_router.core.request import Request
from multislo_router.core.status import CoreStatus, InstanceStatus, TierStatus
from multislo_router.core.tier import Tier


def status_of(
    tiers: Sequence[Tier], books: Admissions, instances: Iterable[Instance], fleet_generation: int, now: float
) -> CoreStatus:
    """The instances must have been refreshed at `now`."""
    held = [_Held(now) for _ in tiers]
    for request in books.pending:
        held[request.tier.index].count(request)
    return CoreStatus(
        tiers=[_tier_status(tier, books.counts[tier.index], held[tier.index], now) for tier in tiers],
        instances=[_instance_status(instance, now) for instance in instances],
        fleet_generation=fleet_generation,
    )


class _Held:
    """A tier's requests in the router's queue."""

    def __init__(self, now: float) -> None:
        self._now = now
        self.in_time = 0
        self.oldest_s = self.in_time_oldest_s = 0.0

    def count(self, request: Request) -> None:
        age_s = self._now - request.arrived
        self.oldest_s = max(self.oldest_s, age_s)
        if not request.late:
            self.in_time += 1
            self.in_time_oldest_s = max(self.in_time_oldest_s, age_s)


def _instance_status(instance: Instance, now: float) -> InstanceStatus:
    bookings, pace = instance.bookings, instance.pace
    return InstanceStatus(
        id=instance.id,
        tier=instance.spec.tier,
        state="failed" if instance.failed else instance.spec.state.value,
        load=instance.load,
        load_mean=instance.load_mean,
        requests=bookings.requests,
        prefills=bookings.prefills,
        decodes=len(bookings.decodes),
        kv_tokens=bookings.kv_decode_tokens + sum([request.prompt_tokens for request in instance.queue.row]),
        kv_tokens_reported=bookings.kv_reported,
        kv_tokens_max=instance.limits.kv_tokens_max,
        iteration_predicted_s=pace.iteration_s,
        calibration=pace.calibration,
        empty_s=0.0 if bookings.empty_since is None else now - bookings.empty_since,
    )


def _tier_status(tier: Tier, counts: TierCounts, held: _Held, now: float) -> TierStatus:
    arrival_rate, work_rate, trend = counts.rates(now)
    return TierStatus(
        name=tier.name,
        ttft_s=tier.ttft_s,
        tpot_s=tier.tpot_s,
        pending=counts.pending,
        pending_oldest_s=held.oldest_s,
        pending_in_time=held.in_time,
        pending_in_time_oldest_s=held.in_time_oldest_s,
        in_flight=counts.in_flight,
        arrival_rate=arrival_rate,
        work_rate=work_rate,
        work_rate_trend=trend,
        requests_met=counts.requests_met,
        requests_missed=counts.requests_missed,
        tokens_met=counts.tokens_met,
        tokens_missed=counts.tokens_missed,
        arrived=counts.arrived,
        held=counts.held,
        given_up=counts.given_up,
        out_of_reach=counts.out_of_reach,
        outcomes=dict(counts.outcomes),
        placements=dict(counts.placements),
        refusals=dict(counts.refusals),
        ttft=counts.ttft,
        tpot=counts.tpot,
        queue=counts.queue,
        ttft_ratio=counts.ttft_ratio,
        late_most=counts.late_most,
        ttft_error=counts.ttft_error,
        tpot_error=counts.tpot_error,
        recent=counts.recent(now),
    )
