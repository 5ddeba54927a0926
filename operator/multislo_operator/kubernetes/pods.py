"""Engine and router pods as the operator understands them, read from what the API server holds. Pure; used by `reconcile` and its parts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from multislo_operator.decide.fleet import InstanceState
from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.changes import Object

ENGINE_PORT = 8000
ADMIN, ADMIN_PORT = "admin", 9090
"""Name of a router's port, and what it is where the pod does not say."""
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
    """The label: a tier's name, or `names.WARM`."""
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

    @property
    def alive(self) -> bool:
        """It is there to stay, as far as anybody has said."""
        return not self.terminating and not self.over

    @property
    def url(self) -> str | None:
        return None if self.ip is None else _url(self.ip, ENGINE_PORT)

    @property
    def state(self) -> InstanceState:
        if self.draining_at is not None:
            return InstanceState.DRAINING
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
        tier=_labels(pod).get(names.TIER, names.WARM),
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
        started_at=_time(annotations.get(names.STARTED_AT)),
        draining_at=_time(annotations.get(names.DRAINING_SINCE)),
        tier_at=_time(annotations.get(names.TIER_SINCE)),
        replaced=names.REPLACED in annotations,
        deletion_cost=_integer(annotations.get(names.DELETION_COST)),
    )


def _admin_port(pod: Object) -> int:
    """The pod's own: a manifest that has just been changed has another."""
    ports = (port for container in pod["spec"]["containers"] for port in container.get("ports") or ())
    return next((int(port["containerPort"]) for port in ports if port.get("name") == ADMIN), ADMIN_PORT)


def _url(ip: str, port: int) -> str:
    return f"http://[{ip}]:{port}" if ":" in ip else f"http://{ip}:{port}"


def unix(text: str) -> float:
    """Unix seconds of an RFC 3339 time."""
    return datetime.fromisoformat(text).timestamp()


def _time(text: str | None) -> float | None:
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
