"""Engine and router pods as the operator understands them, read from what the API server holds. Pure; used by `reconcile` and its parts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from multislo_operator.decide.fleet import InstanceState
from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.changes import Object

ENGINE_PORT = 8000
ADMIN, ADMIN_PORT = "admin", 9090
"""Name of a router's port, and what it is where the pod does not say."""
NODE_LOST_S = 60.0
"""A node that has not been heard of for so long is lost: what was on it does not count any more, and is replaced. The node controller has
waited for it before (50 s by default). A node that comes back ends its pods, since they are deleted."""
RESTARTS_MAX = 3
"""An engine that has ended so often without having served does not come up (the kubelet still tries)."""
HOPELESS = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
"""Reasons of a waiting container that somebody has to mend."""


@dataclass(frozen=True, slots=True)
class EnginePod:
    """One engine pod; times are Unix seconds."""

    name: str
    uid: str
    tier: str
    """The label: a tier's name, or `names.WARM`. Empty: it, or its template's hash, was taken away, and the pod with it."""
    template_hash: str
    ip: str | None
    created_at: float
    gated: bool
    unschedulable: str | None
    """Why no node takes it."""
    terminating: bool
    over: bool
    """Its containers have ended for good."""
    containers_ready: bool
    containers_ready_at: float
    """When that last changed."""
    serving: bool
    served: bool
    """It has been in service, whether it is now or not."""
    restarts: int
    waiting: str | None
    """Reason of its waiting container, where it is one of `HOPELESS`."""
    waiting_message: str
    batch_tokens: int
    started_at: float | None
    draining_at: float | None
    tier_at: float | None
    replaced: bool
    deletion_cost: int
    node: str = ""
    silent_at: float | None = None
    """Since when its node has not been heard of; None: it has."""
    lost: bool = False
    """It went with its node, as of the time at which it is looked at (`as_of`)."""

    @property
    def alive(self) -> bool:
        """It is there to stay, as far as anybody has said."""
        return not self.terminating and not self.over and not self.lost

    @property
    def holds_place(self) -> bool:
        """It counts against the budget."""
        return not self.gated and not self.over and not self.lost

    @property
    def url(self) -> str | None:
        return None if self.ip is None else _url(self.ip, ENGINE_PORT)

    @property
    def state(self) -> InstanceState:
        if self.draining_at is not None:
            return InstanceState.DRAINING
        if self.silent_at is not None:
            return InstanceState.FAILED
        if self.containers_ready:
            return InstanceState.READY
        if self.served or self.hopeless:
            return InstanceState.FAILED
        return InstanceState.STARTING

    @property
    def hopeless(self) -> bool:
        return not self.containers_ready and (self.waiting is not None or self.restarts >= RESTARTS_MAX)

    @property
    def since(self) -> float:
        """Unix time at which it came into its state, and into its tier."""
        match self.state:
            case InstanceState.DRAINING:
                return self.draining_at or self.created_at
            case InstanceState.STARTING:
                return self.started_at or self.created_at
            case InstanceState.FAILED if self.silent_at is not None:
                return self.silent_at
            case _:
                return max(self.containers_ready_at, self.tier_at or 0.0)


@dataclass(frozen=True, slots=True)
class RouterPod:
    name: str
    ip: str | None
    ready: bool
    terminating: bool
    template_hash: str
    admin_port: int
    silent_at: float | None = None
    """As an engine's."""

    @property
    def admin_url(self) -> str | None:
        return None if self.ip is None else _url(self.ip, self.admin_port)


def engine_pods(pods: Iterable[Object]) -> list[EnginePod]:
    """The engines among a resource's pods, by name."""
    found = [_engine(pod) for pod in pods if _labels(pod).get(names.COMPONENT) == names.ENGINE]
    return sorted(found, key=lambda pod: pod.name)


def router_pods(pods: Iterable[Object]) -> list[RouterPod]:
    """The routers among a resource's pods, by name; those whose containers have ended are none."""
    found = [
        RouterPod(
            name=pod["metadata"]["name"],
            ip=pod.get("status", {}).get("podIP"),
            ready=condition_of(pod, "Ready").get("status") == "True",
            terminating="deletionTimestamp" in pod["metadata"],
            template_hash=_labels(pod).get(names.TEMPLATE_HASH, ""),
            admin_port=_admin_port(pod),
            silent_at=_silent_at(pod),
        )
        for pod in pods
        if _labels(pod).get(names.COMPONENT) == names.ROUTER and not is_over(pod)
    ]
    return sorted(found, key=lambda pod: pod.name)


def _engine(pod: Object) -> EnginePod:
    metadata, status = pod["metadata"], pod.get("status", {})
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    scheduled = condition_of(pod, "PodScheduled")
    ready = condition_of(pod, "ContainersReady")
    serving = condition_of(pod, names.SERVING)
    containers: list[Mapping[str, Any]] = status.get("containerStatuses") or []
    # One of its init containers may be what does not come up.
    all_containers = [*(status.get("initContainerStatuses") or ()), *containers]
    waiting = [container.get("state", {}).get("waiting") or {} for container in all_containers]
    stuck = next((state for state in waiting if state.get("reason") in HOPELESS), None)
    created_at = unix(metadata["creationTimestamp"])
    unschedulable = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    return EnginePod(
        name=metadata["name"],
        uid=metadata["uid"],
        tier=_labels(pod).get(names.TIER, "") if _labels(pod).get(names.TEMPLATE_HASH) else "",
        template_hash=_labels(pod).get(names.TEMPLATE_HASH, ""),
        ip=status.get("podIP"),
        created_at=created_at,
        gated=any(gate["name"] == names.START_GATE for gate in pod["spec"].get("schedulingGates") or ()),
        unschedulable=str(scheduled.get("message") or "no node takes it") if unschedulable else None,
        terminating="deletionTimestamp" in metadata,
        over=is_over(pod),
        containers_ready=ready.get("status") == "True",
        containers_ready_at=unix(ready["lastTransitionTime"]) if ready.get("lastTransitionTime") else created_at,
        serving=serving.get("status") == "True",
        served=bool(serving),
        restarts=sum(int(container.get("restartCount", 0)) for container in containers),
        waiting=None if stuck is None else str(stuck["reason"]),
        waiting_message="" if stuck is None else str(stuck.get("message") or ""),
        batch_tokens=_integer(annotations.get(names.BATCH_TOKENS)),
        started_at=time_of(annotations.get(names.STARTED_AT)),
        draining_at=time_of(annotations.get(names.DRAINING_SINCE)),
        tier_at=time_of(annotations.get(names.TIER_SINCE)),
        replaced=names.REPLACED in annotations,
        deletion_cost=_integer(annotations.get(names.DELETION_COST)),
        node=str(pod["spec"].get("nodeName") or ""),
        silent_at=_silent_at(pod),
    )


def as_of(pods: Iterable[EnginePod], at: datetime) -> list[EnginePod]:
    """The same, those marked that are lost by then."""
    return [replace(pod, lost=True) if is_lost(pod.silent_at, at) else pod for pod in pods]


def is_lost(silent_at: float | None, at: datetime) -> bool:
    return silent_at is not None and at.timestamp() - silent_at >= NODE_LOST_S


def _silent_at(pod: Object) -> float | None:
    """Since when nothing has been heard of the pod's node, as its own object tells; reading nodes would take a right on the cluster.

    The node controller makes Ready False where a node falls silent, and gives no reason; the kubelet always gives one, and has to have
    one: containers or gates that are not ready. And where a pod that is being deleted outlives its grace period, no kubelet carries it out.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    if not spec.get("nodeName") or is_over(pod):
        return None
    ready = condition_of(pod, "Ready")
    gates = [gate["conditionType"] for gate in spec.get("readinessGates") or ()]
    fine = all(condition_of(pod, type).get("status") == "True" for type in ("ContainersReady", *gates))
    if fine and ready.get("status") == "False" and not ready.get("reason"):
        return time_of(ready.get("lastTransitionTime"))
    return time_of(metadata.get("deletionTimestamp"))


def _admin_port(pod: Object) -> int:
    """The pod's own: a manifest that has just been changed has another."""
    ports = (port for container in pod["spec"]["containers"] for port in container.get("ports") or ())
    return next((int(port["containerPort"]) for port in ports if port.get("name") == ADMIN), ADMIN_PORT)


def _url(ip: str, port: int) -> str:
    return f"http://[{ip}]:{port}" if ":" in ip else f"http://{ip}:{port}"


def unix(text: str) -> float:
    """Unix seconds of an RFC 3339 time."""
    return datetime.fromisoformat(text).timestamp()


def time_of(text: str | None) -> float | None:
    """As `unix`; None for what is none (somebody may have written it by hand)."""
    try:
        return None if text is None else unix(text)
    except ValueError:
        return None


def _integer(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        return 0


def _labels(pod: Object) -> Mapping[str, str]:
    labels: Mapping[str, str] = pod["metadata"].get("labels") or {}
    return labels


def is_over(pod: Object) -> bool:
    """Its containers have ended for good."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def condition_of(pod: Object, type: str) -> Mapping[str, Any]:
    """Empty where there is none of the type."""
    conditions: list[Mapping[str, Any]] = pod.get("status", {}).get("conditions") or []
    return next((condition for condition in conditions if condition.get("type") == type), {})
