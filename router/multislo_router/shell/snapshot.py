"""From the core's plain numbers to `GET /fleet`: called by the admin listener, whose readers are the operator,
`multislo top` and the live page."""

from collections.abc import Callable

from multislo_api.fleet import FleetSnapshot, InstanceView, LatencyView, TierView
from multislo_router.core.status import CoreStatus, InstanceStatus, TierStatus


def fleet_snapshot(
    status: CoreStatus, *, url_of: Callable[[str], str | None], at: float, uptime_s: float, model: str, placement: str
) -> FleetSnapshot:
    """The document for `status`. `at` is Unix time; `url_of` gives an instance's base URL (the core knows none)."""
    return FleetSnapshot(
        at=at,
        uptime_s=uptime_s,
        model=model,
        placement=placement,
        tiers=[_tier(tier) for tier in status.tiers],
        instances=[_instance(instance, url_of(instance.id) or "") for instance in status.instances],
        generation=status.fleet_generation,
    )


def _tier(tier: TierStatus) -> TierView:
    recent = tier.recent
    return TierView(
        name=tier.name,
        ttft_s=tier.ttft_s,
        tpot_s=tier.tpot_s,
        pending=tier.pending,
        pending_oldest_s=tier.pending_oldest_s,
        pending_in_time=tier.pending_in_time,
        pending_in_time_oldest_s=tier.pending_in_time_oldest_s,
        in_flight=tier.in_flight,
        arrival_rate=tier.arrival_rate,
        work_rate=tier.work_rate,
        work_rate_trend=tier.work_rate_trend,
        requests_met=tier.requests_met,
        requests_missed=tier.requests_missed,
        tokens_met=tier.tokens_met,
        tokens_missed=tier.tokens_missed,
        given_up=tier.given_up,
        out_of_reach=tier.out_of_reach,
        refused=sum(tier.refusals.values()),
        attainment=recent.attainment,
        ttft=LatencyView(p50_s=recent.ttft_p50_s, p99_s=recent.ttft_p99_s),
        tpot=LatencyView(p50_s=recent.tpot_p50_s, p99_s=recent.tpot_p99_s),
    )


def _instance(instance: InstanceStatus, url: str) -> InstanceView:
    return InstanceView(
        id=instance.id,
        url=url,
        tier=instance.tier,
        state=instance.state,  # type: ignore[arg-type]  # pydantic checks the word
        load=instance.load,
        load_mean=instance.load_mean,
        requests=instance.requests,
        prefills=instance.prefills,
        decodes=instance.decodes,
        kv_tokens=instance.kv_tokens,
        kv_tokens_reported=instance.kv_tokens_reported,
        kv_tokens_max=instance.kv_tokens_max,
        iteration_predicted_s=instance.iteration_predicted_s,
        calibration=instance.calibration,
        empty_s=instance.empty_s,
    )
