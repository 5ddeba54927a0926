"""The fleet as each router is told it: every engine pod that has an address, in the state that holds from this moment on. Pure; used by
`reconcile`."""

from collections.abc import Mapping, Sequence
from typing import Literal

from multislo_api.fleet import InstanceEntry, InstanceList
from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.changes import DeletePod, PatchPod
from multislo_operator.kubernetes.draft import Draft
from multislo_operator.kubernetes.pods import EnginePod, RouterPod
from multislo_operator.kubernetes.seen import RouterSeen

State = Literal["starting", "ready", "draining"]


def instance_lists(
    engines: Sequence[EnginePod], draft: Draft, routers: Mapping[str, RouterSeen], doors: Sequence[RouterPod]
) -> dict[str, InstanceList]:
    """By router pod. A router is told nothing before it has answered: only then is it known which tiers it has."""
    tiers, states = _changed(draft)
    members = {pod.name for workload in draft.workloads.values() for pod in workload.pods}
    busy = {view.id for seen in routers.values() if seen.snapshot for view in seen.snapshot.instances if view.requests}
    entries = [
        # One that somebody took out of the fleet ends the requests that it has.
        (
            pod,
            tiers.get(pod.name, pod.tier),
            (states.get(pod.name) or _state(pod)) if pod.name in members else "draining",
        )
        for pod in engines
        if pod.url is not None and not pod.over and (pod.name in members or pod.name in busy)
    ]
    answer = {}
    for door in doors:
        router = routers.get(door.name)
        if router is not None and router.snapshot is not None:
            known = {tier.name for tier in router.snapshot.tiers}
            answer[door.name] = InstanceList(instances=[_entry(*entry, known) for entry in entries])
    return answer


def _state(pod: EnginePod) -> State:
    if pod.terminating or pod.lost or pod.draining_at is not None:
        return "draining"
    return "ready" if pod.containers_ready else "starting"


def _changed(draft: Draft) -> tuple[dict[str, str], dict[str, State]]:
    """What this very round makes of pods: told to the routers without waiting for the watches to show it."""
    tiers: dict[str, str] = {}
    states: dict[str, State] = {}
    ready = {pod.name for workload in draft.workloads.values() for pod in workload.pods if pod.containers_ready}
    tiers.update(draft.moving)
    for change in draft.before:
        if isinstance(change, DeletePod):
            states[change.name] = "draining"
        if not isinstance(change, PatchPod):
            continue
        if names.DRAINING_SINCE in change.annotations:
            called_off = change.annotations[names.DRAINING_SINCE] is None
            states[change.name] = "draining" if not called_off else "ready" if change.name in ready else "starting"
    return tiers, states


def _entry(pod: EnginePod, tier: str, state: State, known: set[str]) -> InstanceEntry:
    """A router of another template may not know the tier: of a new tier it gets a warm instance, and what was a removed tier's drains."""
    assert pod.url is not None
    home = names.tier_of(tier)
    return InstanceEntry(
        id=pod.name,
        url=pod.url,
        tier=home if home in known else None,
        state=state,
        batch_tokens=pod.batch_tokens or None,
        epoch=pod.restarts,
    )
