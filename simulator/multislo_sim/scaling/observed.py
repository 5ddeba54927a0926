"""A simulated fleet as an operator would observe it. Called by `SimulatedFleet` each time it asks its scaler."""

from collections.abc import Iterable, Sequence

from multislo_engine.model import EngineModel
from multislo_operator.decide.fleet import FleetObserved, InstanceObserved, InstanceState, TierObserved
from multislo_router.core.events import Scheduler
from multislo_router.core.status import CoreStatus
from multislo_sim.lives import Life


def fleet_observed(
    lives: Iterable[Life], engines: Sequence[EngineModel], scheduler: Scheduler, status: CoreStatus, now: float
) -> FleetObserved:
    """As `multislo_operator.observe` makes it from the router's snapshot; the figures are of this moment."""
    views = {view.id: view for view in status.instances}
    seen = []
    for life, engine in zip(lives, engines, strict=True):
        if life.gone:
            continue
        view = views.get(life.name)
        known = view is not None and (life.state is not InstanceState.DRAINING or view.state == "draining")
        seen.append(
            InstanceObserved(
                id=life.name,
                tier=life.tier,
                state=life.state,
                load=view.load_mean if view else 0.0,
                load_now=view.load if view else 0.0,
                calibration=view.calibration if view else 1.0,
                requests=view.requests if view and known else None,
                since_s=now - life.since,
                ever_ready=life.state is not InstanceState.STARTING,
                batch_tokens=0 if scheduler is Scheduler.SLO_AWARE else engine.config.batch_tokens,
            )
        )
    tiers = [
        TierObserved(
            name=tier.name,
            pending=tier.pending,
            pending_oldest_s=tier.pending_oldest_s,
            pending_in_time=tier.pending_in_time,
            pending_in_time_oldest_s=tier.pending_in_time_oldest_s,
            arrival_rate=tier.arrival_rate,
            work_rate=tier.work_rate,
            work_rate_trend=tier.work_rate_trend,
            turned_away=sum(tier.refusals.values()) + tier.given_up - tier.out_of_reach,
            met=tier.requests_met,
            missed=tier.requests_missed - tier.out_of_reach,
            attainment=tier.recent.attainment,
        )
        for tier in status.tiers
    ]
    return FleetObserved(seen, tiers, router_uptime_s=now)
