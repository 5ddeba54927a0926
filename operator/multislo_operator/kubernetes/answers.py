"""One picture of the load from the answers of all routers of a resource, each of which sees only its own share of the traffic.
Pure; used by `reconcile`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multislo_api.fleet import FleetSnapshot, InstanceView, LatencyView, TierView
from multislo_operator.kubernetes.pods import RouterPod
from multislo_operator.kubernetes.seen import RouterSeen

FRESH_S = 3.0
"""An answer older than this says nothing of an instance being empty now."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the routers say together. `snapshot` None: not every router that takes requests has answered yet."""

    snapshot: FleetSnapshot | None
    age_s: float
    """Of the oldest answer in it."""
    complete: bool
    """Every router that may hold a stream has answered just now: "no request" means none anywhere."""
    silent: tuple[str, ...]
    """Routers that ought to answer and do not."""


def together(pods: Sequence[RouterPod], routers: Mapping[str, RouterSeen], now: float) -> Answers:
    """The sum over routers that are ready; one that is stopping counts too as long as it answers, for its streams."""
    serving = [pod for pod in pods if pod.ready and not pod.terminating]
    heard = [routers[pod.name] for pod in serving if pod.name in routers and routers[pod.name].snapshot is not None]
    leaving = [
        routers[pod.name]
        for pod in pods
        if (pod.terminating or not pod.ready)
        and pod.name in routers
        and routers[pod.name].snapshot is not None
        and now - routers[pod.name].at <= FRESH_S
    ]
    silent = tuple(pod.name for pod in serving if now - _at(routers, pod.name) > FRESH_S)
    # A router that is not ready any more, or is being stopped, may still relay streams, whether it answers or not.
    complete = all(now - _at(routers, pod.name) <= FRESH_S for pod in pods if pod.ip is not None)
    if not serving or len(heard) < len(serving):
        return Answers(None, float("inf"), complete and bool(pods), silent)
    snapshots = [router.snapshot for router in (*heard, *leaving) if router.snapshot is not None]
    age_s = max(now - router.at for router in heard)
    young = min(router.snapshot.uptime_s for router in heard if router.snapshot is not None)
    return Answers(_sum(snapshots, young), age_s, complete, silent)


def _at(routers: Mapping[str, RouterSeen], pod: str) -> float:
    return routers[pod].at if pod in routers else float("-inf")


def _sum(snapshots: Sequence[FleetSnapshot], uptime_s: float) -> FleetSnapshot:
    if len(snapshots) == 1:
        return snapshots[0]
    first = snapshots[0]
    tiers: dict[str, list[TierView]] = {}
    instances: dict[str, list[InstanceView]] = {}
    for snapshot in snapshots:
        for tier in snapshot.tiers:
            tiers.setdefault(tier.name, []).append(tier)
        for instance in snapshot.instances:
            instances.setdefault(instance.id, []).append(instance)
    return FleetSnapshot(
        at=min(snapshot.at for snapshot in snapshots),
        uptime_s=uptime_s,
        model=first.model,
        placement=first.placement,
        # A router of an earlier manifest may not know a tier; one that does speaks for it.
        tiers=[_tier(views) for views in tiers.values()],
        instances=[_instance(views) for views in instances.values()],
        generation=min(snapshot.generation for snapshot in snapshots),
    )


def _tier(views: Sequence[TierView]) -> TierView:
    first = views[0]
    rates = sum(view.arrival_rate for view in views if view.attainment is not None)
    weighted = sum((view.attainment or 0.0) * view.arrival_rate for view in views if view.attainment is not None)
    known = [view.attainment for view in views if view.attainment is not None]
    return TierView(
        name=first.name,
        ttft_s=first.ttft_s,
        tpot_s=first.tpot_s,
        pending=sum(view.pending for view in views),
        pending_oldest_s=max(view.pending_oldest_s for view in views),
        pending_in_time=sum(view.pending_in_time for view in views),
        pending_in_time_oldest_s=max(view.pending_in_time_oldest_s for view in views),
        in_flight=sum(view.in_flight for view in views),
        arrival_rate=sum(view.arrival_rate for view in views),
        work_rate=sum(view.work_rate for view in views),
        work_rate_trend=sum(view.work_rate_trend for view in views),
        requests_met=sum(view.requests_met for view in views),
        requests_missed=sum(view.requests_missed for view in views),
        tokens_met=sum(view.tokens_met for view in views),
        tokens_missed=sum(view.tokens_missed for view in views),
        given_up=sum(view.given_up for view in views),
        out_of_reach=sum(view.out_of_reach for view in views),
        refused=sum(view.refused for view in views),
        attainment=weighted / rates if rates > 0.0 else min(known, default=None),
        # Quantiles of two populations cannot be added; the worse one is what a user feels.
        ttft=_worse([view.ttft for view in views]),
        tpot=_worse([view.tpot for view in views]),
    )


def _worse(views: Sequence[LatencyView]) -> LatencyView:
    return LatencyView(
        p50_s=max((view.p50_s for view in views if view.p50_s is not None), default=None),
        p99_s=max((view.p99_s for view in views if view.p99_s is not None), default=None),
    )


def _instance(views: Sequence[InstanceView]) -> InstanceView:
    first = views[0]
    states = {view.state for view in views}
    reported = [view.kv_tokens_reported for view in views if view.kv_tokens_reported is not None]
    return first.model_copy(
        update={
            # It is what the least informed router thinks: draining only where all know it, failed only where all see it.
            "state": first.state if len(states) == 1 else next(s for s in ("ready", "starting", "failed", "draining") if s in states),
            "load": sum(view.load for view in views),
            "load_mean": sum(view.load_mean for view in views),
            "requests": sum(view.requests for view in views),
            "prefills": sum(view.prefills for view in views),
            "decodes": sum(view.decodes for view in views),
            "kv_tokens": sum(view.kv_tokens for view in views),
            "kv_tokens_reported": max(reported, default=None),
            "iteration_predicted_s": max(view.iteration_predicted_s for view in views),
            "calibration": sum(view.calibration for view in views) / len(views),
            "empty_s": min(view.empty_s for view in views),
        }
    )  # fmt: skip
