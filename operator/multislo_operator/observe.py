"""From the outside's documents to what `decide` is told: the manifest to a FleetSpec, the router's snapshot and the instances' states
to a FleetObserved. Called once a second by whoever carries plans out: `local` with processes, `kubernetes` with pods."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Protocol

from multislo_api.fleet import FleetSnapshot, InstanceView
from multislo_api.manifest import MultiSLOServing
from multislo_api.schedule import floors
from multislo_operator.decide.fleet import (
    FleetObserved,
    FleetSpec,
    InstanceObserved,
    InstanceState,
    TierObserved,
    TierSpec,
)
from multislo_operator.engine_flags import BATCH_TOKENS, flag_value, startup_s
from multislo_perf.profile import Profile
from multislo_perf.sizing import batch_tokens

ROUTER_FAILED_GRACE_S = 10.0
"""The router's own probe revives an instance within 5 s if there was only a hiccup; until then it counts as there."""


class Instance(Protocol):
    """What an actuator knows of an instance; times by its own monotonic clock."""

    @property
    def id(self) -> str: ...
    @property
    def tier(self) -> str | None: ...
    @property
    def state(self) -> InstanceState: ...
    @property
    def since(self) -> float: ...
    @property
    def ever_ready(self) -> bool: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def unplaced(self) -> bool: ...


def fleet_spec(
    manifest: MultiSLOServing, profile: Profile, at: datetime, pinned: Mapping[str, int] | None = None
) -> FleetSpec:
    """The spec at a time (floors come and go). `pinned` fixes the count of every tier, and leaves the warm pool empty."""
    spec = manifest.spec
    scaling = spec.scaling
    floor = floors(scaling.schedule, at)
    # An engine that plans by deadlines shapes its batches for any tier.
    shapes_itself = spec.engine.scheduler == "SLOAware"
    own = flag_value(spec.engine.args, BATCH_TOKENS)
    tiers = tuple(
        TierSpec(
            name=tier.name,
            tpot_s=tier.slo.tpot_s,
            ttft_s=tier.slo.ttft_s,
            instances_min=tier.instances.min if pinned is None else pinned[tier.name],
            instances_max=tier.instances.max if pinned is None else pinned[tier.name],
            floor=floor.get(tier.name, 0) if pinned is None else 0,
            batch_tokens=0 if shapes_itself else own or batch_tokens(profile.latency, tier.slo.tpot_s),
        )
        for tier in spec.tiers
    )
    return FleetSpec(
        tiers=tiers,
        startup_s=startup_s(manifest, profile),
        attainment=scaling.attainment,
        accelerators_max=scaling.accelerators_max,
        accelerators_per_instance=spec.engine.accelerator.per_instance,
        warm_min=scaling.warm_pool.min if pinned is None else 0,
        warm_max=scaling.warm_pool.max if pinned is None else 0,
        stabilization_s=scaling.scale_down.stabilization_s,
        drain_timeout_s=scaling.scale_down.drain_timeout_s,
    )


def fleet_observed(
    instances: Iterable[Instance],
    snapshot: FleetSnapshot | None,
    data_age_s: float,
    now: float,
    failed_since: dict[str, float],
    shapes_itself: bool,
) -> FleetObserved:
    """What is seen at `now`. `failed_since` is kept by the caller: since when the router calls an instance failed."""
    views = {view.id: view for view in snapshot.instances} if snapshot else {}
    for gone in [id for id in failed_since if id not in views or views[id].state != "failed"]:
        del failed_since[gone]
    for view in views.values():
        if view.state == "failed":
            failed_since.setdefault(view.id, now)
    seen = [_instance(i, views.get(i.id), now, failed_since.get(i.id), shapes_itself) for i in instances]
    if snapshot is None:
        return FleetObserved(seen, None, data_age_s)
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
            turned_away=tier.refused + tier.given_up - tier.out_of_reach,
            met=tier.requests_met,
            missed=tier.requests_missed - tier.out_of_reach,
            attainment=tier.attainment,
        )
        for tier in snapshot.tiers
    ]
    return FleetObserved(seen, tiers, data_age_s, snapshot.uptime_s)


def _instance(
    instance: Instance, view: InstanceView | None, now: float, failed_since: float | None, shapes_itself: bool
) -> InstanceObserved:
    state, since = instance.state, instance.since
    if state is InstanceState.READY and failed_since is not None and now - failed_since > ROUTER_FAILED_GRACE_S:
        state, since = InstanceState.FAILED, failed_since
    requests = None
    if view is not None and (state is not InstanceState.DRAINING or view.state == "draining"):
        # Before the router has heard of the drain, "no request" may be over the next moment.
        requests = view.requests
    return InstanceObserved(
        id=instance.id,
        tier=instance.tier,
        state=state,
        load=view.load_mean if view else 0.0,
        load_now=view.load if view else 0.0,
        calibration=view.calibration if view else 1.0,
        requests=requests,
        since_s=now - since,
        ever_ready=instance.ever_ready,
        batch_tokens=0 if shapes_itself else instance.batch_tokens,
        unplaced=instance.unplaced,
    )
