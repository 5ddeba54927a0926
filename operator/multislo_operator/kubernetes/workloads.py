"""The engines' Deployments as the operator understands them, each with its pods and its current template. Pure; used by `reconcile` and
its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.pods import EnginePod, unix

REVISION = "deployment.kubernetes.io/revision"
OUTSIDE_KEPT_S = 600.0
"""How long replicas that somebody else has set are kept, from the time of that edit. Each edit begins it anew, so an HPA keeps its count
as long as it writes, and the operator writes against it once in this time at most."""


@dataclass(frozen=True, slots=True)
class Outside:
    """Somebody else who has set the replicas."""

    manager: str
    at: float
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One tier's Deployment (or the warm pool's) with its pods."""

    name: str
    tier: str
    """The label: a tier's name, or `names.WARM`."""
    replicas: int
    version: str
    """resourceVersion, that a change of the replicas rests on."""
    settled: bool
    """The Deployment controller has seen its present template, and `template_hash` is that one's."""
    template_hash: str
    never_scaled: bool
    """Nobody has set its replicas yet: they are the API server's default of 1, and mean nothing."""
    outside: Outside | None
    pods: tuple[EnginePod, ...]
    places: int | None = None
    """Replicas of its present ReplicaSet; None while that one's controller has not acted on them."""
    held: int = 0
    """Pods with its labels that hold a place on a node or are on their way to one: those that its ReplicaSet counts first."""
    ages: Mapping[str, str] = field(default_factory=dict)
    """When the ReplicaSet of each pod-template-hash was made: the Deployment controller takes from the oldest first."""
    refused: str = ""
    """Why the API server refuses pods of its present template, in its words; empty: it does not."""
    owed: int = 0
    """By how much the replicas are still to be lowered (`ledger`)."""

    @property
    def running(self) -> list[EnginePod]:
        """Those that hold a place on a node, or are on their way to one, and are not being deleted."""
        return [pod for pod in self.pods if pod.alive and not pod.gated]

    @property
    def gated(self) -> list[EnginePod]:
        """Those that have not been let go, of the present template first."""
        waiting = [pod for pod in self.pods if pod.alive and pod.gated]
        return sorted(waiting, key=lambda pod: (not self.is_current(pod), pod.created_at, pod.name))

    @property
    def instances(self) -> list[EnginePod]:
        """Running ones without those that a roll-out is about to replace: their successors are counted in their place. One whose template
        is the present one again is not replaced, whatever its mark still says."""
        return [pod for pod in self.running if not pod.replaced or self.is_current(pod)]

    @property
    def to_come(self) -> int:
        """Instances that the replicas ask for and that have not been let go yet."""
        return max(0, self.replicas - self.owed - len(self.instances))

    @property
    def room(self) -> int:
        """Pods that its ReplicaSet can adopt without one of those that run having to go. None before its first count is written: the
        ReplicaSet has a place by the API server's default, and would lose it to a first count of 0."""
        return 0 if self.places is None or self.never_scaled or not self.settled else self.places - self.held

    @property
    def droppable(self) -> int:
        """By how much the replicas can be lowered with nothing but gated pods going by it: the controllers take those first. They offer one
        for each pod that was deleted by name or moved away, which shows that they know of it."""
        if not self.held:
            return self.replicas
        if self.rolling or self.places is None:
            return 0
        surplus = max(0, self.held + len(self.gated) - min(self.replicas, self.places))
        return max(0, len(self.gated) - surplus)

    @property
    def outdated(self) -> list[EnginePod]:
        """Running ones of an earlier template."""
        return [pod for pod in self.running if not self.is_current(pod)] if self.settled else []

    @property
    def rolling(self) -> bool:
        return not self.settled or bool(self.outdated)

    def kept_outside(self, at: datetime) -> bool:
        """Somebody else has set the replicas, not long ago."""
        return self.outside is not None and at.timestamp() - self.outside.at < OUTSIDE_KEPT_S

    def is_set_outside(self, external: bool, at: datetime) -> bool:
        """Its replicas are somebody else's. With `external` from the second count on: the first is the minimum, since an HPA does nothing
        for a Deployment of none."""
        return (external and not self.never_scaled) or self.kept_outside(at)

    def is_current(self, pod: EnginePod) -> bool:
        return pod.template_hash == self.template_hash


def workloads(
    deployments: Mapping[str, Object], replica_sets: Mapping[str, Object], pods: Sequence[EnginePod]
) -> dict[str, Workload]:
    """By the tier's label."""
    found = {}
    for name, deployment in deployments.items():
        labels = deployment["metadata"].get("labels") or {}
        if labels.get(names.COMPONENT) != names.ENGINE:
            continue
        tier = labels.get(names.TIER, names.WARM)
        mine = tuple(pod for pod in pods if pod.tier == tier)
        found[tier] = _workload(name, tier, deployment, replica_sets, mine)
    return found


def _workload(
    name: str, tier: str, deployment: Object, replica_sets: Mapping[str, Object], pods: tuple[EnginePod, ...]
) -> Workload:
    metadata = deployment["metadata"]
    seen = deployment.get("status", {}).get("observedGeneration", 0)
    current = _current(deployment, replica_sets)
    manager, at = replicas_owner(metadata.get("managedFields") or ())
    return Workload(
        name=name,
        tier=tier,
        replicas=0 if manager is None else int(deployment["spec"].get("replicas", 1)),
        version=metadata["resourceVersion"],
        settled=seen >= metadata.get("generation", 1) and current is not None,
        template_hash="" if current is None else (current["metadata"].get("labels") or {}).get(names.TEMPLATE_HASH, ""),
        never_scaled=manager is None,
        outside=Outside(manager, at) if manager not in (None, names.FIELD_MANAGER) else None,
        pods=pods,
        places=_places(current),
        refused=_refused(deployment),
        held=sum(pod.alive and not pod.gated for pod in pods),
        ages={
            (own["metadata"].get("labels") or {}).get(names.TEMPLATE_HASH, ""): str(
                own["metadata"].get("creationTimestamp", "")
            )
            for own in replica_sets.values()
            if any(owner["uid"] == metadata["uid"] for owner in own["metadata"].get("ownerReferences") or ())
        },
    )


def _current(deployment: Object, replica_sets: Mapping[str, Object]) -> Object | None:
    """The ReplicaSet of the Deployment's present revision."""
    metadata = deployment["metadata"]
    revision = (metadata.get("annotations") or {}).get(REVISION)
    for replica_set in replica_sets.values():
        own = replica_set["metadata"]
        if (own.get("annotations") or {}).get(REVISION) == revision and any(
            owner["uid"] == metadata["uid"] for owner in own.get("ownerReferences") or ()
        ):
            return replica_set
    return None


def _refused(deployment: Object) -> str:
    for condition in deployment.get("status", {}).get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return str(condition.get("message") or condition.get("reason") or "no reason given")
    return ""


def _places(replica_set: Object | None) -> int | None:
    if replica_set is None:
        return None
    acted = replica_set.get("status", {}).get("observedGeneration", 0) >= replica_set["metadata"].get("generation", 1)
    return int(replica_set["spec"].get("replicas", 1)) if acted else None


def replicas_owner(managed: Sequence[Mapping[str, Any]]) -> tuple[str | None, float]:
    """Who set `spec.replicas` last, and when (Unix seconds), from metadata.managedFields; None where nobody did."""
    owners = [entry for entry in managed if "f:replicas" in (entry.get("fieldsV1") or {}).get("f:spec", {})]
    if not owners:
        return None, 0.0
    newest = max(owners, key=lambda entry: datetime.fromisoformat(entry["time"]))
    return newest["manager"], unix(newest["time"])
