"""Copies the core's state out into a `CoreStatus`. Called by `RouterCore.status`; changes nothing."""

from collections.abc import Iterable, Sequence

from multislo_router.core.instance import Instance
from multislo_router.core.pending import Pending
from multislo_router.core.request import Request
from multislo_router.core.status import CoreStatus, InstanceStatus, TierStatus
from multislo_router.core.tier import Tier


def status_of(
    tiers: Sequence[Tier], instances: Iterable[Instance], pending: Pending, fleet_generation: int, now: float
) -> CoreStatus:
    """The instances must have been refreshed at `now`."""
    held = {tier.name: _Held(now) for tier in tiers}
    for request in pending:
        held[request.tier.name].count(request)
    return CoreStatus(
        tiers=[_tier_status(tier, held[tier.name], now) for tier in tiers],
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
        if not request.lost:
            self.in_time += 1
            self.in_time_oldest_s = max(self.in_time_oldest_s, age_s)


def _instance_status(instance: Instance, now: float) -> InstanceStatus:
    return InstanceStatus(
        id=instance.id,
        tier=instance.spec.tier,
        state="failed" if instance.failed else instance.spec.state.value,
        load=instance.load,
        load_mean=instance.load_mean,
        requests=instance.requests,
        prefills=len(instance.prefills),
        decodes=len(instance.decodes),
        kv_tokens=instance.kv_decode_tokens + sum(r.prompt_tokens for r in instance.prefills.values()),
        kv_tokens_reported=instance.kv_reported,
        kv_tokens_max=instance.limits.kv_tokens_max,
        iteration_predicted_s=instance.iteration_s,
        calibration=instance.calibration,
        empty_s=0.0 if instance.empty_since is None else now - instance.empty_since,
    )


def _tier_status(tier: Tier, held: _Held, now: float) -> TierStatus:
    arrival_rate, work_rate, trend = tier.rates(now)
    return TierStatus(
        name=tier.name,
        ttft_s=tier.ttft_s,
        tpot_s=tier.tpot_s,
        pending=tier.pending,
        pending_oldest_s=held.oldest_s,
        pending_in_time=held.in_time,
        pending_in_time_oldest_s=held.in_time_oldest_s,
        in_flight=tier.in_flight,
        arrival_rate=arrival_rate,
        work_rate=work_rate,
        work_rate_trend=trend,
        requests_met=tier.requests_met,
        requests_missed=tier.requests_missed,
        tokens_met=tier.tokens_met,
        tokens_missed=tier.tokens_missed,
        arrived=tier.arrived,
        held=tier.held,
        given_up=tier.given_up,
        out_of_reach=tier.out_of_reach,
        outcomes=dict(tier.outcomes),
        placements=dict(tier.placements),
        refusals=dict(tier.refusals),
        ttft=tier.ttft,
        tpot=tier.tpot,
        queue=tier.queue,
        ttft_error=tier.ttft_error,
        tpot_error=tier.tpot_error,
        recent=tier.recent(now),
    )
