"""From the actions of a plan to changes of pods and replicas: starting, draining, moving between tiers, stopping. Pure; used by
`reconcile`."""

from collections import Counter

from multislo_api.manifest import MultiSLOServing
from multislo_operator.decide.fleet import FleetObserved
from multislo_operator.decide.plan import Action, CallOffDrain, Convert, Drain, Plan, Start, Stop
from multislo_operator.kubernetes import names, rollout
from multislo_operator.kubernetes.changes import Delete
from multislo_operator.kubernetes.draft import Draft
from multislo_operator.kubernetes.pods import EnginePod
from multislo_operator.kubernetes.wanted import Wanted
from multislo_operator.kubernetes.workloads import Workload


def carry_out(draft: Draft, plan: Plan, wanted: Wanted) -> None:
    """What cannot be done on a cluster as it is now (a roll-out is under way, a Deployment is not there yet) is left: the next look plans
    it again, if it is still wanted then."""
    pods = {pod.name: pod for workload in draft.workloads.values() for pod in workload.running}
    homes = {pod.name: workload for workload in draft.workloads.values() for pod in workload.pods}
    kept: Counter[str] = Counter()
    """By tier: instances that the plan would stop and that are left, since a roll-out is under way there."""
    for action in plan.actions:
        if isinstance(action, Start):
            label = names.tier_label(action.tier)
            if kept[label] > 0:
                kept[label] -= 1  # it was to take the place of one that stays
            else:
                _start(draft, action, wanted)
            continue
        home = homes.get(action.instance)
        pod = pods.get(action.instance)
        if home is None or pod is None:
            _stop_unborn(draft, action, wanted)
        elif isinstance(action, CallOffDrain):
            draft.annotate(pod, DRAINING_SINCE=None, DRAIN_REASON=None, DELETION_COST=None)
            _note(draft, "DrainCalledOff", f"{pod.name} serves on", action)
        elif home.rolling or _is_set_outside(draft, home, wanted):
            kept[home.tier] += isinstance(action, Stop)
        elif isinstance(action, Drain):
            draft.drain(pod, action.reason)
            _note(draft, "Draining", f"{pod.name} of {_title(home)} takes no more requests", action)
        elif isinstance(action, Convert):
            _convert(draft, pod, home, action)
        elif isinstance(action, Stop):
            _stop(draft, home, pod)
            _note(draft, "ScaledDown", f"{pod.name} of {_title(home)} goes", action)


def give_up_lost(draft: Draft) -> None:
    """What went with its node is deleted, so that it is replaced; and so that it ends when the node is back."""
    for workload in draft.workloads.values():
        for pod in workload.pods:
            if pod.lost and not pod.terminating:
                draft.delete(pod, f"its node {pod.node} is lost")
                draft.note(
                    "NodeLost",
                    f"{pod.name} of {_title(workload)} is given up: its node {pod.node} is lost",
                    warning=True,
                )


def remove_unwanted(draft: Draft, wanted: Wanted, observed: FleetObserved, drain_timeout_s: float) -> None:
    """Deployments of tiers that the manifest no longer has: drained, then deleted."""
    spec = wanted.manifest.spec
    kept = {tier.name for tier in spec.tiers} | ({names.WARM} if spec.scaling.warm_pool.max > 0 else set())
    requests = {instance.id: instance.requests for instance in observed.instances}
    for workload in draft.workloads.values():
        if workload.tier in kept:
            continue
        for pod in workload.running:
            if pod.draining_at is None:
                draft.drain(pod, f"{_title(workload)} is no longer in the manifest")
            elif not pod.served or requests.get(pod.name) == 0 or _age(draft, pod.draining_at) >= drain_timeout_s:
                draft.delete(pod, f"{_title(workload)} is no longer in the manifest")
                draft.losses[workload.tier] += 1
        gone = workload.to_come
        if gone:
            draft.losses[workload.tier] += gone
        if not workload.replicas and not workload.never_scaled and not workload.running:
            draft.after.append(Delete("apps/v1", "Deployment", workload.name))
            draft.after.append(Delete("policy/v1", "PodDisruptionBudget", workload.name))


def let_go(draft: Draft, manifest: MultiSLOServing, spare: int, rolled: rollout.Rollout) -> None:
    """Remove the gates of as many pods as the replicas ask for and the budget has room for, in the manifest's order of tiers."""
    order = [*(tier.name for tier in manifest.spec.tiers), names.WARM]
    for tier in order:
        workload = draft.workloads.get(tier)
        if workload is None or not workload.settled:
            continue
        # While a new template does not come up, what is lost of the old one is put back.
        offered = [pod for pod in workload.gated if workload.is_current(pod) or rolled.stuck is not None]
        for pod in offered[: workload.to_come]:
            if spare <= 0:
                return
            draft.ungate(pod)
            spare -= 1


def serve(draft: Draft) -> None:
    """Those that answer count as ready, unless they must wait for the one that they replace."""
    served = draft.serving()
    for workload in draft.workloads.values():
        for pod in workload.running:
            answers = pod.containers_ready and not pod.serving and pod.name not in served
            if answers and not rollout.holds_back(workload, pod):
                draft.serve(pod)


def _start(draft: Draft, action: Start, wanted: Wanted) -> None:
    workload = draft.workloads.get(names.tier_label(action.tier))
    if workload is None or _is_set_outside(draft, workload, wanted):
        return
    draft.gains[workload.tier] += 1
    _note(draft, "ScaledUp", f"one more instance for {_title(workload)}", action)


def _stop_unborn(draft: Draft, action: Action, wanted: Wanted) -> None:
    """An instance that has not been let go to a node: one replica less, and the Deployment controller takes the gated pod."""
    if isinstance(action, Stop):
        for workload in draft.workloads.values():
            if _is_set_outside(draft, workload, wanted):
                continue
            if action.instance.startswith(f"{workload.name} (") or action.instance in {p.name for p in workload.gated}:
                draft.losses[workload.tier] += 1
                _note(draft, "ScaledDown", f"one instance less for {_title(workload)}, not started yet", action)


def _convert(draft: Draft, pod: EnginePod, home: Workload, action: Convert) -> None:
    to = draft.workloads.get(names.tier_label(action.tier))
    if to is None or not to.settled or to.rolling or not home.is_current(pod) or pod.terminating:
        return
    if to.kept_outside(draft.at):
        return
    draft.gains[to.tier] += 1
    draft.losses[home.tier] += 1
    draft.moving[pod.name] = to.tier
    _note(draft, "Converted", f"{pod.name} moves from {_title(home)} to {_title(to)} without a restart", action)


def _stop(draft: Draft, home: Workload, pod: EnginePod) -> None:
    """That very pod goes, by its name, and the gated one that comes in its place goes with the replica: which pod a lower count takes is
    the ReplicaSet controller's choice, from what it has seen by then."""
    draft.delete(pod, "drained" if pod.draining_at is not None else "given up")
    draft.losses[home.tier] += 1


def _is_set_outside(draft: Draft, workload: Workload, wanted: Wanted) -> bool:
    return workload.is_set_outside(wanted.external, draft.at)


def _age(draft: Draft, since: float) -> float:
    return draft.at.timestamp() - since


def _note(draft: Draft, reason: str, what: str, action: Action) -> None:
    draft.note(reason, f"{what}: {action.reason}")


def _title(workload: Workload) -> str:
    return "the warm pool" if workload.tier == names.WARM else f"tier {workload.tier}"
