"""Rolling changes, one instance at a time, each drained before it goes: a step of it in each reconcile. Pure.

The Deployment controller offers one new pod beside the old ones (maxSurge 1, maxUnavailable 0); it stays gated. The operator chooses the
old pod that goes (`names.REPLACED`); from then on its successor is counted in its place, and let go like any instance that is to come.
With an accelerator to spare, the old one drains when the new one answers; without, the old one drains and is deleted first. The new
pod counts as ready (`names.SERVING`) only when the old one is empty: then the Deployment controller takes the old one, whose deletion
cost is least, and offers the next. A new pod that does not come up stops all this where it is, and the old ones serve on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from multislo_operator.kubernetes.draft import DELETED_FIRST, Draft
from multislo_operator.kubernetes.pods import EnginePod
from multislo_operator.kubernetes.workloads import Workload

NO_ROOM = "no accelerator is free for its successor of the new template"


@dataclass(frozen=True, slots=True)
class Rollout:
    """What there is to say of it. `stuck`: why it does not go on."""

    tiers: tuple[str, ...] = ()
    left: int = 0
    stuck: str | None = None


def step(
    draft: Draft, loads: Mapping[str, float], empty: Mapping[str, bool], spare: int, drain_timeout_s: float
) -> Rollout:
    """`loads` and `empty` by pod: what the routers say. `spare`: instances that the budget has room for."""
    rolling = [workload for workload in draft.workloads.values() if workload.outdated or _victims(workload)]
    left = sum(len(workload.outdated) for workload in rolling)
    under_way = [workload for workload in rolling if _victims(workload)]
    stuck = (
        _go_on(draft, under_way[0], empty, spare, drain_timeout_s)
        if under_way
        else _begin(draft, rolling, loads, spare)
    )
    return Rollout(tuple(workload.tier for workload in rolling), left, stuck)


def _victims(workload: Workload) -> list[EnginePod]:
    return [pod for pod in workload.pods if pod.replaced and not pod.terminating]


def _successors(workload: Workload) -> list[EnginePod]:
    """Those of the new template that do not count as ready yet."""
    return [pod for pod in workload.pods if pod.alive and workload.is_current(pod) and not pod.serving]


def _waits_for_room(pod: EnginePod) -> bool:
    """For the budget's, or for a node's where there is no budget."""
    return pod.gated or pod.unschedulable is not None


def _go_on(
    draft: Draft, workload: Workload, empty: Mapping[str, bool], spare: int, drain_timeout_s: float
) -> str | None:
    victim = _victims(workload)[0]
    successors = _successors(workload)
    ready = [pod for pod in successors if pod.containers_ready]
    if not workload.settled:
        return None
    if workload.is_current(victim) and not victim.over:
        # The template is again the one that it has.
        draft.annotate(victim, REPLACED=None, DRAINING_SINCE=None, DRAIN_REASON=None, DELETION_COST=None)
        return None
    if victim.draining_at is None:
        started = [pod for pod in successors if not _waits_for_room(pod)]
        if ready:
            draft.drain(victim, f"replaced by {ready[0].name}, of the new template")
            draft.note("Replacing", f"draining {victim.name}: {ready[0].name} of the new template has taken its place")
        elif not started and (spare <= 0 or any(pod.unschedulable for pod in successors)):
            draft.drain(victim, NO_ROOM)
        return _broken(successors)
    drained_s = draft.at.timestamp() - victim.draining_at
    if not empty.get(victim.name, False) and drained_s < drain_timeout_s and not victim.over:
        return None
    if ready and victim.deletion_cost != int(DELETED_FIRST):
        # What is seen of it: the Deployment controller takes one as soon as the new one counts, and must know which.
        draft.annotate(victim, DELETION_COST=DELETED_FIRST)
    elif ready:
        draft.serve(ready[0])
        draft.note("Replaced", f"{ready[0].name} serves in place of {victim.name}, drained in {drained_s:.0f} s")
    elif all(_waits_for_room(pod) for pod in successors):
        draft.delete(victim, "drained; its accelerator is for its successor")
        draft.note(
            "Replacing", f"{victim.name} is drained ({drained_s:.0f} s) and goes, so that its successor has a place"
        )
    return _broken(successors)


def _begin(draft: Draft, rolling: list[Workload], loads: Mapping[str, float], spare: int) -> str | None:
    for workload in rolling:
        broken = _broken([pod for pod in _successors(workload) if not pod.gated])
        if broken:
            return broken
        if workload.refused and workload.outdated and not _successors(workload):
            return f"pods of the new template of {workload.name} are refused: {workload.refused}"
    if _is_under_way(draft, spare):
        return None
    for workload in rolling:
        offered = [pod for pod in _successors(workload) if pod.gated or pod.containers_ready]
        ages = workload.ages
        old = sorted(
            workload.outdated,
            key=lambda pod: (
                pod.containers_ready,
                ages.get(pod.template_hash, ""),
                loads.get(pod.name, 0.0),
                pod.name,
            ),
        )
        if not workload.settled or not old or not offered:
            continue
        victim = old[0]
        draft.annotate(victim, REPLACED="true")
        if not victim.containers_ready:
            draft.drain(victim, "it does not serve, and is of an earlier template")
        elif spare <= 0:
            draft.drain(victim, NO_ROOM)
        draft.note("RollingOut", f"{offered[0].name} of the new template is to take the place of {victim.name}")
        return None
    return None


def _is_under_way(draft: Draft, spare: int) -> bool:
    """One at a time: while one that was replaced is still going, or a new one is to start or starts, in whichever tier, nothing old is
    touched."""
    for workload in draft.workloads.values():
        going = any(pod.replaced and pod.terminating for pod in workload.pods)
        starting = any(
            not (_waits_for_room(pod) or pod.containers_ready or pod.hopeless) for pod in _successors(workload)
        )
        if going or starting or (workload.to_come and spare > 0):
            return True
    return False


def _broken(successors: list[EnginePod]) -> str | None:
    for pod in successors:
        if pod.hopeless:
            why = pod.waiting or f"{pod.restarts} restarts"
            return f"{pod.name} of the new template does not come up: {why} {pod.waiting_message}".rstrip()
    return None


def holds_back(workload: Workload, pod: EnginePod) -> bool:
    """Whether a new pod that answers must wait with being counted as ready: until the one that it replaces is empty, and before that one is
    chosen. The Deployment controller takes an old one as soon as more are ready than the replicas ask for."""
    if not workload.is_current(pod):
        return False
    serving = sum(other.alive and other.serving for other in workload.pods)
    return bool(_victims(workload)) or (bool(workload.outdated) and serving >= workload.replicas)
