"""The changes of one reconcile while they are being worked out, in the order in which they will be carried out, and the replicas that
they leave. Used by `reconcile` and its parts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.changes import Change, DeletePod, Note, PatchPod, Scale, SetServing
from multislo_operator.kubernetes.pods import EnginePod
from multislo_operator.kubernetes.workloads import Workload

DELETED_FIRST = "-100"
"""pod-deletion-cost of the pod that shall go."""


@dataclass(slots=True)
class Draft:
    workloads: Mapping[str, Workload]
    """By the tier's label."""
    at: datetime
    before: list[Change] = field(default_factory=list)
    """What comes before any replicas change."""
    moves: list[PatchPod] = field(default_factory=list)
    """Pods that change their Deployment."""
    moving: dict[str, str] = field(default_factory=dict)
    """Tiers by the pods that are on their way into them (`ledger`)."""
    after: list[Change] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    gains: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    """Instances that a tier gets and gives, by the tier's label."""

    def changes(self) -> list[Change]:
        scales = [(workload, self._scale(workload)) for workload in self.workloads.values()]
        up = [scale for workload, scale in scales if scale is not None and scale.replicas >= workload.replicas]
        down = [scale for workload, scale in scales if scale is not None and scale.replicas < workload.replicas]
        return [*self.before, *up, *self.moves, *down, *self.after]

    def target(self, workload: Workload) -> int:
        """Instances that it shall have. Counted from the pods where there are more than the replicas ask for: one of them is about to go
        because the count was lowered already, and must not make it be lowered once more."""
        count = workload.replicas - workload.owed
        gains, losses = self.gains[workload.tier], self.losses[workload.tier]
        awaits = any(pod.name in self.moving for pod in workload.instances)  # A raise for it may have failed.
        if gains or losses or awaits:
            count = max(count, len(workload.instances)) + gains - losses
        return max(0, count)

    def replicas(self, workload: Workload) -> int:
        """What it asks for from now on: raised at once, lowered no further than gated pods go by it."""
        target = self.target(workload)
        let_go = self.let_go()
        free = workload.droppable - sum(pod.name in let_go for pod in workload.gated)
        return max(target, workload.replicas - max(0, free))

    def _scale(self, workload: Workload) -> Scale | None:
        replicas = self.replicas(workload)
        if replicas == workload.replicas and not workload.never_scaled:
            return None
        return Scale(workload.name, replicas, workload.version)

    def let_go(self) -> set[str]:
        """Pods that lose their gate in this round."""
        return {change.name for change in self.before if isinstance(change, PatchPod) and change.ungate}

    def serving(self) -> set[str]:
        """Pods that are counted as ready from now on."""
        return {change.name for change in self.before if isinstance(change, SetServing)}

    def annotate(self, pod: EnginePod, **annotations: str | None) -> None:
        """Keywords are the constants' names in `names`."""
        self.before.append(
            PatchPod(pod.name, pod.uid, annotations={getattr(names, key): value for key, value in annotations.items()})
        )

    def ungate(self, pod: EnginePod) -> None:
        self.before.append(PatchPod(pod.name, pod.uid, annotations={names.STARTED_AT: self.time}, ungate=True))

    def drain(self, pod: EnginePod, reason: str) -> None:
        self.annotate(pod, DRAINING_SINCE=self.time, DRAIN_REASON=reason[:1000])

    def serve(self, pod: EnginePod) -> None:
        self.before.append(SetServing(pod.name, pod.uid, True, "InService"))

    def delete(self, pod: EnginePod, reason: str) -> None:
        self.before.append(DeletePod(pod.name, pod.uid, reason))

    def move(self, pod: EnginePod, to: Workload) -> None:
        """Into another tier without a restart: its labels become those of the other's ReplicaSet, which adopts it."""
        labels = {names.TIER: to.tier, names.TEMPLATE_HASH: to.template_hash}
        self.moves.append(PatchPod(pod.name, pod.uid, labels=labels, annotations={names.TIER_SINCE: self.time}))

    def note(self, reason: str, message: str, warning: bool = False) -> None:
        self.notes.append(Note(reason, message, warning))

    @property
    def time(self) -> str:
        return self.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
