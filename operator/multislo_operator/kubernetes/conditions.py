"""What is said of a resource: its conditions, a row for each tier, its accelerators and notes. Pure; used by `reconcile`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from multislo_api.status import (
    AcceleratorsStatus,
    Condition,
    ConditionType,
    Status,
    TierStatus,
    WarmStatus,
    condition,
    cut,
    status_document,
    status_from,
)
from multislo_api.tolerant import warning
from multislo_operator.decide.fleet import InstanceState
from multislo_operator.decide.plan import Hold, HoldCause, Plan, TierPlan
from multislo_operator.kubernetes import names, places
from multislo_operator.kubernetes.answers import Answers
from multislo_operator.kubernetes.causes import PLACE, Cause, Causes, named
from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.objects.children import fighting_flags
from multislo_operator.kubernetes.obstacles import Obstacles, in_words
from multislo_operator.kubernetes.pods import EnginePod, RouterPod
from multislo_operator.kubernetes.rollout import Rollout
from multislo_operator.kubernetes.wanted import EXTERNAL, Unusable, Wanted
from multislo_operator.kubernetes.workloads import OUTSIDE_KEPT_S, Workload
from multislo_perf.profile import is_another_size

Judgement = tuple[bool | None, str, str]
"""Whether a condition holds (None: unknown), its reason, its message."""
BLOCKING = (HoldCause.DATA_UNKNOWN, HoldCause.BUDGET_SHORT, HoldCause.TIER_AT_MAX, HoldCause.NOT_COMING_UP)
"""Holds that keep a tier from what its load asks for. The others are only patience."""

OF_THE_MANIFEST = ("url", "tiers", "accelerators")
"""Parts of a status that stay as they are while the manifest cannot be used."""


@dataclass(frozen=True, slots=True)
class Picture:
    """All that a reconcile has seen and worked out."""

    resource: Object
    wanted: Wanted | Unusable | None
    workloads: Mapping[str, Workload]
    engines: Sequence[EnginePod]
    doors: Sequence[RouterPod]
    answers: Answers
    plan: Plan | None
    rolled: Rollout
    at: datetime
    obstacles: Obstacles = field(default_factory=Obstacles)
    troubles: Mapping[str, Cause] = field(default_factory=dict)
    """What keeps pods of a Deployment from serving, by the Deployment's name (`troubles_of`)."""
    other_operator: str = ""
    """Another installation that stands aside."""


def troubles_of(
    found: Causes, workloads: Mapping[str, Workload], doors: Sequence[RouterPod], resource: str
) -> dict[str, Cause]:
    """The causes by Deployment; those without one are left out."""
    router = names.router_of(resource)
    pods = {router: [door.name for door in doors]}
    pods |= {workload.name: [pod.name for pod in workload.running] for workload in workloads.values()}
    troubles = {name: cause for name, of in pods.items() if (cause := found.why(of, name)) is not None}
    for workload in workloads.values():
        silent = places.silent(workload.pods if workload.to_come else workload.running)
        if silent:
            troubles[workload.name] = Cause("NodeLost", "; ".join(silent))
    return troubles


def status(picture: Picture) -> dict[str, Any]:
    """The whole `.status`."""
    metadata = picture.resource["metadata"]
    before = status_from(picture.resource)
    judged = _judged(picture)
    conditions = [_condition(type, judged[type], before, metadata, picture.at) for type in judged]
    alive = [pod for pod in picture.engines if pod.alive and not pod.gated]
    ready = sum(pod.state is InstanceState.READY for pod in alive)
    wanted = picture.wanted if isinstance(picture.wanted, Wanted) else None
    document = status_document(
        Status(
            observed_generation=metadata.get("generation", 0),
            url=f"http://{metadata['name']}.{metadata['namespace']}.svc:{wanted.manifest.spec.router.port}"
            if wanted
            else None,
            instances=f"{ready}/{len(alive) + sum(workload.to_come for workload in picture.workloads.values())}",
            conditions=conditions,
            tiers=_rows(picture, before) if wanted else [],
            warm=_warm(picture) if wanted and wanted.manifest.spec.scaling.warm_pool.max > 0 else None,
            accelerators=_accelerators(picture, wanted) if wanted else None,
            notes=[cut(note) for note in _notes(picture)[:16]],
        )
    )
    if wanted is None:
        # As they stand, in whatever version of the CRD.
        live = picture.resource.get("status") or {}
        document |= {part: live[part] for part in OF_THE_MANIFEST if part in live}
    return document


def _condition(
    type: ConditionType, judgement: Judgement, before: Status | None, metadata: Mapping[str, Any], at: datetime
) -> Condition:
    holds, reason, message = judgement
    return condition(
        type, holds, reason, message, before=before, generation=metadata.get("generation", 0), now=at
    )  # fmt: skip


def _judged(picture: Picture) -> dict[ConditionType, Judgement]:
    profile = _profile(picture)
    router = _router(picture)
    workloads = _workloads(picture)
    scaling = _scaling(picture)
    ready: Judgement = (True, "Serving", "the router answers and every tier has its instances")
    for part in (profile, _children(picture), router, workloads):
        if part is not None and part[0] is not True:
            ready = part
            break
    if isinstance(picture.wanted, Unusable) and not picture.wanted.of_profile:
        ready = (False, picture.wanted.reason, picture.wanted.message)
    return {
        "Ready": ready,
        "RouterReady": router,
        "WorkloadsReady": workloads,
        "ScalingReady": scaling,
        "ProfileReady": profile,
        "ChangeRefused": _refused(picture),
        "SoleOperator": _alone(picture),
    }


def _alone(picture: Picture) -> Judgement:
    if picture.other_operator:
        return False, "AnotherOperator", another_operator(picture.other_operator)
    return True, "Alone", "no other operator looks after this namespace"


def another_operator(other: str) -> str:
    return f"the operator {other} would look after this namespace too, and stands aside: uninstall one of the two, or give each its own"


def _children(picture: Picture) -> Judgement | None:
    """What keeps the manifest's objects from being as it asks for; None: nothing."""
    refused = [refusal for refusal in picture.obstacles.refused if refusal.of_child and not refusal.optional]
    return (False, "ChangeRefused", f"{in_words(refused)}. What runs is left as it is") if refused else None


def _refused(picture: Picture) -> Judgement:
    if picture.obstacles.refused:
        return True, "ChangeRefused", in_words(picture.obstacles.refused)
    if picture.obstacles.held:
        wars = [f"{what}: {whom or 'somebody'} keeps changing it back" for what, whom in picture.obstacles.held.items()]
        return True, "EditWar", "; ".join(wars)
    return False, "NothingRefused", "the API server takes every change"


def _profile(picture: Picture) -> Judgement:
    wanted = picture.wanted
    if isinstance(wanted, Wanted):
        snapshot, believed = picture.answers.snapshot, wanted.profile.kv_tokens_max
        for instance in () if snapshot is None else snapshot.instances:
            if is_another_size(instance.kv_tokens_max, believed):
                return (
                    True,
                    "ProfileDisagrees",
                    (
                        f"profile {wanted.profile.name} says that a KV cache holds {believed} tokens; that of {instance.id} holds "
                        f"{instance.kv_tokens_max}: is it the profile of this model and accelerator?"
                    ),
                )
        return True, "ProfileLoaded", f"profile {wanted.profile.name}"
    if wanted is not None and wanted.of_profile:
        return False, wanted.reason, f"{wanted.message}. What runs is left as it is"
    return None, "ManifestUnusable", "not looked at: the manifest cannot be used"


def _router(picture: Picture) -> Judgement:
    ready = [door for door in picture.doors if door.ready and not door.terminating]
    cause = picture.troubles.get(names.router_of(picture.resource["metadata"]["name"]))
    if not ready:
        if cause is not None:
            return False, cause.reason, f"no router pod is ready. {cause.message}"
        there = f"{len(picture.doors)} pods" if picture.doors else "no pod yet"
        return False, "RouterNotReady", f"no router pod is ready ({there})"
    if picture.answers.silent:
        return False, "RouterSilent", f"{named(picture.answers.silent)} does not answer the operator"
    more = "" if cause is None else f". {cause.message}"
    return True, "RouterServing", f"{_counted(len(ready), 'router pod')} ready{more}"


def _workloads(picture: Picture) -> Judgement:
    rolled = picture.rolled
    if picture.obstacles.taken:
        others = "; ".join(f"{what} belongs to {whose}" for what, whose in picture.obstacles.taken.items())
        return False, "NameTaken", f"not made, since its name is taken: {others}"
    if rolled.stuck is not None:
        causes = [cause for tier in rolled.tiers if (cause := _trouble(picture, tier)) is not None]
        words = "; ".join([rolled.stuck, *(cause.message for cause in causes[:1])])
        return False, "RolloutStuck", f"{words}; {rolled.left} instances of the earlier template serve on"
    short = _short_of_minimum(picture)
    if short:
        counts = ", ".join(f"{tier} {ready} of {least}" for tier, (ready, least) in short.items())
        causes = [cause for tier in short if (cause := _trouble(picture, tier) or _unmade(picture, tier)) is not None]
        if causes:
            return False, causes[0].reason, f"not ready: {counts}. {'; '.join(cause.message for cause in causes)}"
        holders = places.holders(picture.engines, _members(picture)) if _waits_for_a_place(picture, short) else []
        if holders:
            return False, "BudgetHeld", f"not ready: {counts}. {'; '.join(holders)}"
        return False, "InstancesStarting", f"not ready yet: {counts}"
    if rolled.tiers:
        tiers = ", ".join(_title(tier) for tier in rolled.tiers)
        return True, "RollingOut", f"{rolled.left} instances of an earlier template are left in {tiers}"
    ready = sum(pod.alive and pod.state is InstanceState.READY for pod in picture.engines)
    return True, "InstancesReady", f"{_counted(ready, 'instance')} ready"


def _short_of_minimum(picture: Picture) -> dict[str, tuple[int, int]]:
    """By tier: how many are ready, and how many have to be. Where nothing serves at all, a tier that cannot start what its load asks for
    is short too, whatever its minimum."""
    if not isinstance(picture.wanted, Wanted):
        return {}
    short = {}
    serves = any(pod.alive and pod.state is InstanceState.READY for pod in picture.engines)
    for tier in picture.wanted.manifest.spec.tiers:
        workload = picture.workloads.get(tier.name)
        ready = sum(pod.state is InstanceState.READY for pod in workload.running) if workload else 0
        least = tier.instances.min
        if workload is not None and (picture.wanted.external or workload.kept_outside(picture.at)):
            least = min(least, workload.replicas)
        if workload is not None and not serves and workload.replicas > 0 and _trouble(picture, tier.name) is not None:
            least = max(least, 1)
        if ready < least:
            short[tier.name] = (ready, least)
    return short


def _waits_for_a_place(picture: Picture, tiers: Iterable[str]) -> bool:
    return any(workload.to_come > 0 for tier in tiers if (workload := picture.workloads.get(tier)) is not None)


def _members(picture: Picture) -> set[str]:
    """The fleet's pods; the others are out of it by their labels."""
    return {pod.name for workload in picture.workloads.values() for pod in workload.pods}


def _trouble(picture: Picture, tier: str) -> Cause | None:
    workload = picture.workloads.get(tier)
    return None if workload is None else picture.troubles.get(workload.name)


def _unmade(picture: Picture, tier: str) -> Cause | None:
    """The refusal of the tier's own Deployment."""
    mine = f"Deployment {names.engines_of(picture.resource['metadata']['name'], names.tier_of(tier))}"
    refused = [refusal for refusal in picture.obstacles.refused if refusal.of_child and refusal.what == mine]
    return Cause("ChangeRefused", in_words(refused)) if refused else None


def _beyond_minimum(picture: Picture) -> list[Cause]:
    """What keeps instances from serving in tiers that have their minimum, and in the warm pool."""
    short = _short_of_minimum(picture)
    found = [_trouble(picture, tier) for tier in picture.workloads if tier not in short]
    return [cause for cause in found if cause is not None]


def _scaling(picture: Picture) -> Judgement:
    if not isinstance(picture.wanted, Wanted):
        return False, "ManifestUnusable", "nothing is scaled while the manifest or its profile cannot be used"
    extra = _beyond_minimum(picture)
    if extra:
        short_of = "CapacityShort" if extra[0].reason in PLACE else "InstancesNotComingUp"
        return False, short_of, "; ".join(f"{cause.reason}: {cause.message}" for cause in extra)
    if picture.wanted.external:
        return False, "External", f"the annotation {names.SCALING}: {EXTERNAL} leaves replicas to another actor"
    refused = [refusal for refusal in picture.obstacles.refused if not refusal.of_child]
    if refused:
        return False, "ChangeRefused", in_words(refused)
    outside = [workload for workload in picture.workloads.values() if workload.kept_outside(picture.at)]
    if outside:
        first = outside[0]
        assert first.outside is not None
        left = OUTSIDE_KEPT_S - (picture.at.timestamp() - first.outside.at)
        return (
            False,
            "ReplicasEditedOutside",
            f"{first.outside.manager} set the replicas of {first.name} to {first.replicas}; that is kept until nobody has edited them "
            f"for {OUTSIDE_KEPT_S / 60:.0f} minutes ({left / 60:.0f} left)",
        )
    if picture.plan is None:
        return None, "Settling", "a change of the fleet has not shown yet"
    holds = [hold for hold in picture.plan.holds if hold.cause in BLOCKING]
    if holds:
        return _held(holds)
    return True, "ScalingByLoad", "scaling follows the load"


def _held(holds: Sequence[Hold]) -> Judgement:
    first = min(holds, key=lambda hold: BLOCKING.index(hold.cause))
    same = [hold.reason for hold in holds if hold.cause is first.cause]
    return None if first.cause is HoldCause.DATA_UNKNOWN else False, first.cause.value, "; ".join(same)


def _rows(picture: Picture, before: Status | None) -> list[TierStatus]:
    assert isinstance(picture.wanted, Wanted)
    plans = {row.name: row for row in picture.plan.tiers} if picture.plan else {}
    old = {row.name: row for row in before.tiers} if before else {}
    views = {view.name: view for view in picture.answers.snapshot.tiers} if picture.answers.snapshot else {}
    rows = []
    for tier in picture.wanted.manifest.spec.tiers:
        counts = _counts(picture.workloads.get(tier.name))
        plan = plans.get(tier.name)
        view = views.get(tier.name)
        last = old.get(tier.name)
        attainment = view.attainment if view else None
        rows.append(
            TierStatus(
                name=tier.name,
                **counts,
                desired=plan.desired if plan else last.desired if last else counts["instances"],
                load=_load(picture, tier.name),
                attainment=None if attainment is None else round(attainment, 3),
                reason=_why(picture, plan, tier.name) if plan else last.reason if last else "",
            )
        )
    return rows


def _why(picture: Picture, plan: TierPlan, tier: str) -> str:
    """Why it has as many as it has, what keeps some from serving, and who holds the places that it waits for."""
    cause, workload = _trouble(picture, tier) or _unmade(picture, tier), picture.workloads.get(tier)
    waits = workload is not None and workload.to_come > 0
    parts = [
        plan.reason,
        "" if cause is None else cause.message,
        *(places.holders(picture.engines, _members(picture)) if waits else ()),
    ]
    return cut("; ".join(part for part in parts if part))


def _counts(workload: Workload | None) -> dict[str, int]:
    pods = workload.running if workload else []
    states = [pod.state for pod in pods]
    coming = workload.to_come if workload else 0
    return {
        "instances": len(states) + coming,
        "ready": states.count(InstanceState.READY),
        "starting": states.count(InstanceState.STARTING) + coming,
        "draining": states.count(InstanceState.DRAINING),
        "failed": states.count(InstanceState.FAILED),
    }


def _load(picture: Picture, tier: str) -> float | None:
    if picture.answers.snapshot is None:
        return None
    loads = [
        view.load_mean for view in picture.answers.snapshot.instances if view.tier == tier and view.state == "ready"
    ]
    return round(max(0.0, sum(loads) / len(loads)), 2) if loads else None


def _warm(picture: Picture) -> WarmStatus:
    return WarmStatus(
        **_counts(picture.workloads.get(names.WARM)), desired=picture.plan.warm_desired if picture.plan else 0
    )


def _accelerators(picture: Picture, wanted: Wanted) -> AcceleratorsStatus:
    used = sum(pod.holds_place for pod in picture.engines)
    spec = wanted.manifest.spec
    return AcceleratorsStatus(
        used=used * spec.engine.accelerator.per_instance, max=spec.scaling.accelerators_max
    )  # fmt: skip


def _notes(picture: Picture) -> list[str]:
    notes: list[str] = []
    if isinstance(picture.wanted, Wanted):
        notes += fighting_flags(picture.wanted.manifest, picture.wanted.profile)
        if picture.wanted.ignored:
            notes.append(unknown_fields(picture.wanted))
    for workload in picture.workloads.values():
        if workload.kept_outside(picture.at) and workload.outside is not None:
            notes.append(f"{workload.outside.manager} holds the replicas of {workload.name}")
    notes += places.left(picture.engines, _members(picture))
    return notes


def unknown_fields(wanted: Wanted) -> str:
    """The warning of what a newer CRD or profile has and this operator does not carry out."""
    return warning("the manifest", wanted.ignored)


def _title(tier: str) -> str:
    return "the warm pool" if tier == names.WARM else tier


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing} is" if number == 1 else f"{number} {thing}s are"
