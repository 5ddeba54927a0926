"""What is under way between two looks: pods that move into another tier, and replicas that are still to be lowered. Pure; used by
`reconcile`.

The controllers choose what goes by what they have seen, each on its own and late. So a running pod is moved only when the ReplicaSet that
adopts it has room and its controller knows it; and replicas are lowered only when the controller offers a gated pod for the one that has
left, which is what goes by it. Until then the view that is planned on has the fleet as it will be. Losing the ledger costs an instance
that is started and taken away again, nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from multislo_operator.kubernetes.draft import Draft
from multislo_operator.kubernetes.pods import EnginePod
from multislo_operator.kubernetes.workloads import Workload


@dataclass(frozen=True, slots=True)
class Count:
    """Instances that a tier shall have, while its replicas are one of these: before and after the last change of them."""

    target: int
    replicas: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ledger:
    moving: Mapping[str, str] = field(default_factory=dict)
    """Tiers by the pods that are on their way into them."""
    counts: Mapping[str, Count] = field(default_factory=dict)
    """By the tier's label."""


def as_planned(
    found: Mapping[str, Workload], ledger: Ledger, at: datetime
) -> tuple[dict[str, Workload], dict[str, str]]:
    """The workloads as they will be when all that is under way is done, and the moves that go on."""
    owing = {
        tier: replace(workload, owed=_owed(workload, ledger.counts.get(tier), at)) for tier, workload in found.items()
    }
    moved = {
        pod.name: _arrived(pod, found[ledger.moving[pod.name]], at)
        for workload in found.values()
        for pod in workload.running
        if pod.name in ledger.moving and _goes_on(pod, workload, found.get(ledger.moving[pod.name]))
    }
    if moved:
        pods = [moved.get(pod.name, pod) for workload in found.values() for pod in workload.pods]
        for tier, workload in owing.items():
            owing[tier] = replace(workload, pods=tuple(pod for pod in pods if pod.tier == tier))
    return owing, {name: pod.tier for name, pod in moved.items()}


def _goes_on(pod: EnginePod, home: Workload, to: Workload | None) -> bool:
    """Not where it has arrived, nor where a roll-out has come between. A controller that has not seen the count that was raised for
    it is no roll-out: the move waits."""
    return to is not None and to.tier != home.tier and not to.outdated and not home.outdated


def _arrived(pod: EnginePod, to: Workload, at: datetime) -> EnginePod:
    # Its time in the new tier has not begun: an old instance that comes into the warm pool was not needless there for as long.
    return replace(pod, tier=to.tier, template_hash=to.template_hash, tier_at=at.timestamp())


def _owed(workload: Workload, count: Count | None, at: datetime) -> int:
    if count is None or workload.outdated or workload.kept_outside(at) or workload.never_scaled:
        return 0
    return max(0, workload.replicas - count.target) if workload.replicas in count.replicas else 0


def move(draft: Draft, pods: Sequence[EnginePod]) -> None:
    """Give those that are on their way the labels of their new tier, as far as there is room. `pods` as they are."""
    let_go = draft.let_go()
    room = {
        tier: min(workload.room, draft.replicas(workload) - workload.held)
        - sum(pod.name in let_go for pod in workload.pods)
        for tier, workload in draft.workloads.items()
    }
    for pod in pods:
        to = draft.moving.get(pod.name)
        if to is not None and room[to] > 0 and draft.workloads[pod.tier].settled:
            draft.move(pod, draft.workloads[to])
            room[to] -= 1


def kept(draft: Draft) -> Ledger:
    """What is under way after this look."""
    counts = {
        tier: Count(draft.target(workload), (workload.replicas, draft.replicas(workload)))
        for tier, workload in draft.workloads.items()
    }
    return Ledger(dict(draft.moving), counts)
