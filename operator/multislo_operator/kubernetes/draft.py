"""The changes of one reconcile while they are being worked out, in the order in which they will be carried out, and the replicas that
they leave. Used by `reconcile` and its parts."""

from collections import Counter
from collections.abc import Iterator, Mapping
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
    """Pods that change their Deployment: after the one that takes has room, before the one that gives has less."""
    after: list[Change] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    gains: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    """Instances that a tier gets and gives, by the tier's label."""

    def changes(self) -> list[Change]:
        return [*self.before, *self._scales_up(), *self.moves, *self._scales_down(), *self.after]

    def replicas(self) -> dict[str, int]:
        """What the Deployments' replicas will be, where they change."""
        changed = [change for change in self.changes() if isinstance(change, Scale)]
        return {change.deployment: change.replicas for change in changed}

    def serving(self) -> set[str]:
        """Pods that are counted as ready from now on."""
        return {change.name for change in self.before if isinstance(change, SetServing)}

    def _scales_up(self) -> Iterator[Scale]:
        for tier, workload in self.workloads.items():
            most = self._most(tier) if self.gains[tier] else workload.replicas
            if most > workload.replicas or workload.never_scaled:
                yield Scale(workload.name, most, workload.version)

    def _scales_down(self) -> Iterator[Scale]:
        for tier, losses in self.losses.items():
            workload = self.workloads[tier]
            raised = self.gains[tier] and self._most(tier) > workload.replicas
            replicas = max(0, self._most(tier) - losses)
            if replicas < (self._most(tier) if raised else workload.replicas):
                # Once scaled in this very round, its version is no longer the one that was seen.
                yield Scale(workload.name, replicas, "" if raised else workload.version)

    def _most(self, tier: str) -> int:
        """Between taking and giving. Counted from the pods where there are more than the replicas ask for: one of them is about to go
        because the count was lowered already, and must not make it be lowered once more."""
        workload = self.workloads[tier]
        return max(workload.replicas, len(workload.instances)) + self.gains[tier]

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
        gone = {names.DRAINING_SINCE: None, names.DRAIN_REASON: None, names.DELETION_COST: None}
        self.moves.append(PatchPod(pod.name, pod.uid, labels=labels, annotations={names.TIER_SINCE: self.time, **gone}))

    def note(self, reason: str, message: str, warning: bool = False) -> None:
        self.notes.append(Note(reason, message, warning))

    @property
    def time(self) -> str:
        return self.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
