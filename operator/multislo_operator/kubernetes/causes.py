"""Why a pod does not serve, and why a Deployment gets no pods: each in a word for programs and in words for people, from what scheduler,
kubelet and admission have said. Pure; used by `reconcile` for its events and by `conditions`.

Most of it stands in the pod's status. That a volume cannot be mounted, and what a probe was answered, only the kubelet's events say: they
are asked for where `asks_for_events` says so.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.pods import condition_of, is_over, time_of, unix

Words = tuple[str, str]
"""Reason and message of an event."""
PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "ImageInspectError", "InvalidImageName"})
FAILED_STARTS = frozenset({"CrashLoopBackOff", "CreateContainerError", "RunContainerError", "StartError"})
PLACE = frozenset(
    {"Unschedulable", "VolumePending", "QuotaExceeded", "LimitRangeViolated", "PodSecurityRefused", "PodsRefused"}
)
"""Reasons for which a pod finds no place at all; with the others it has one and does not come up there."""
MOUNT_S = 5.0
"""A pod on a node whose containers have not begun after so long may wait for a volume."""
PROBE_S = 30.0
"""A container that has started and is not ready for so long does not pass its readiness probe."""
SHOWN_MAX = 300
"""Characters of somebody else's message, or of a container's last line."""
NAMED_MAX = 5
"""Pods named in a message; of more it says how many."""

REFUSALS = (
    ("QuotaExceeded", re.compile(r"exceeded quota|failed quota")),
    ("LimitRangeViolated", re.compile(r"(minimum|maximum) \S+ usage per (Container|Pod)|limit to request ratio")),
    ("PodSecurityRefused", re.compile(r"violates PodSecurity|security context constraint")),
)


@dataclass(frozen=True, slots=True)
class Cause:
    reason: str
    """CamelCase."""
    message: str


@dataclass(frozen=True, slots=True)
class Causes:
    """Of all pods and Deployments of a resource that have one, by their names."""

    pods: Mapping[str, Cause]
    deployments: Mapping[str, Cause]

    def why(self, pods: Iterable[str], deployment: str) -> Cause | None:
        """Why these pods of a Deployment are missing; pods with the same trouble are named together."""
        mine = {pod: self.pods[pod] for pod in pods if pod in self.pods}
        if not mine:
            return self.deployments.get(deployment)
        first = next(iter(mine.values()))
        alike = [pod for pod, cause in mine.items() if cause.reason == first.reason]
        return Cause(first.reason, f"{named(alike)}: {first.message}")


def causes(
    pods: Mapping[str, Object], deployments: Mapping[str, Object], events: Mapping[str, Words], at: datetime
) -> Causes:
    """`events`: the last warning of a pod, by its uid."""
    of_pods = {
        name: cause
        for name, pod in sorted(pods.items())
        if (cause := _of_pod(pod, events.get(pod["metadata"]["uid"]), at)) is not None
    }
    of_deployments = {
        name: cause for name, deployment in deployments.items() if (cause := _refused(deployment)) is not None
    }
    return Causes(of_pods, of_deployments)


def asks_for_events(pod: Object, at: datetime) -> bool:
    """Its status does not say what it waits for."""
    if not _is_missing(pod) or not pod["spec"].get("nodeName"):
        return False
    return _in_status(pod) is None and (_waits_for_containers(pod, at) or _unready(pod, at) is not None)


def _of_pod(pod: Object, event: Words | None, at: datetime) -> Cause | None:
    if not _is_missing(pod):
        return None
    told = _in_status(pod)
    if told is not None:
        return told
    if event is not None and _waits_for_containers(pod, at):
        return _not_prepared(*event)
    unready = _unready(pod, at)
    if unready is not None:
        said = f": {_short(event[1])}" if event is not None and event[0] == "Unhealthy" else ""
        return Cause("ProbeFailing", f"container {unready} runs and does not pass its readiness probe{said}")
    return None


def _is_missing(pod: Object) -> bool:
    """It ought to be ready, as far as anybody has said, and is not."""
    gated = any(gate["name"] == names.START_GATE for gate in pod["spec"].get("schedulingGates") or ())
    gone = "deletionTimestamp" in pod["metadata"] or is_over(pod)
    return not gated and not gone and condition_of(pod, "ContainersReady").get("status") != "True"


def _in_status(pod: Object) -> Cause | None:
    scheduled = condition_of(pod, "PodScheduled")
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        words = _short(str(scheduled.get("message") or "the scheduler does not say why"))
        if "persistentvolumeclaim" in words.lower():
            return Cause("VolumePending", f"its volume is not there: {words}")
        return Cause("Unschedulable", f"no node has room: {words}")
    status = pod.get("status") or {}
    for list_, is_init in (("initContainerStatuses", True), ("containerStatuses", False)):
        for container in status.get(list_) or ():
            cause = _of_container(container, is_init)
            if cause is not None:
                return cause
    return None


def _of_container(container: Mapping[str, Any], is_init: bool) -> Cause | None:
    if container.get("ready"):
        return None
    what = f"{'init container' if is_init else 'container'} {container.get('name', '')}".rstrip()
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason, said = str(waiting.get("reason") or ""), _short(str(waiting.get("message") or ""))
    if reason in PULL:
        return Cause(
            "ImagePullFailed", f"{what}: its image {container.get('image')} cannot be pulled: {said or reason}"
        )
    if reason == "CreateContainerConfigError":
        return Cause("ConfigMissing", f"{what}: {said or reason}")
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    if ended and ended.get("exitCode"):
        return _ended(what, ended, int(container.get("restartCount") or 0), is_init)
    if reason in FAILED_STARTS:
        return Cause("InitFailing" if is_init else "Crashing", f"{what}: {said or reason}")
    return None


def _ended(what: str, ended: Mapping[str, Any], restarts: int, is_init: bool) -> Cause:
    times = "" if restarts == 0 else " (1 restart)" if restarts == 1 else f" ({restarts} restarts)"
    if ended.get("reason") == "OOMKilled":
        return Cause("OutOfMemory", f"{what} was killed for using more memory than its limit{times}")
    # terminationMessagePolicy FallbackToLogsOnError: the end of its log.
    lines = [line for line in str(ended.get("message") or "").splitlines() if line.strip()]
    last = f": {_short(lines[-1].strip())}" if lines else ""
    return Cause(
        "InitFailing" if is_init else "Crashing", f"{what} ended with exit code {ended['exitCode']}{times}{last}"
    )


def _waits_for_containers(pod: Object, at: datetime) -> bool:
    if not pod["spec"].get("nodeName"):
        return False
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    begun = any(not (status.get("state") or {}).get("waiting") for status in statuses)
    scheduled_at = condition_of(pod, "PodScheduled").get("lastTransitionTime") or pod["metadata"]["creationTimestamp"]
    return not begun and at.timestamp() - unix(scheduled_at) >= MOUNT_S


def _not_prepared(reason: str, message: str) -> Cause:
    words = _short(message)
    if re.search(r"(secret|configmap)\S* \"[^\"]*\" not found|references non-existent", message):
        return Cause("ConfigMissing", words)
    if reason in ("FailedMount", "FailedAttachVolume", "FailedMapVolume"):
        return Cause("VolumeNotMounted", words)
    return Cause(reason if re.fullmatch(r"[A-Z][A-Za-z]+", reason) else "NotPrepared", words)


def _unready(pod: Object, at: datetime) -> str | None:
    """The container that has started and does not become ready."""
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        running = (container.get("state") or {}).get("running") or {}
        if container.get("started") and not container.get("ready") and running.get("startedAt"):
            since = max(unix(running["startedAt"]), _unready_since(pod))
            if at.timestamp() - since >= PROBE_S:
                return str(container.get("name", ""))
    return None


def _unready_since(pod: Object) -> float:
    changed = condition_of(pod, "ContainersReady").get("lastTransitionTime")
    return unix(changed) if changed else 0.0


def refused_at(deployment: Object) -> float:
    """When its pods were last refused, as far as its conditions say; 0.0 where they say nothing."""
    failure = _failure(deployment) or {}
    return time_of(failure.get("lastUpdateTime") or failure.get("lastTransitionTime")) or 0.0


def asked_again_at(deployment: Object) -> float:
    return time_of((deployment["metadata"].get("annotations") or {}).get(names.ASKED_AGAIN_AT)) or 0.0


def _failure(deployment: Object) -> Mapping[str, Any] | None:
    for condition in (deployment.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            found: Mapping[str, Any] = condition
            return found
    return None


def _refused(deployment: Object) -> Cause | None:
    """Its ReplicaSet may make no pods: the Deployment's controller repeats the ReplicaSet's words."""
    failure = _failure(deployment)
    if failure is None:
        return None
    words = str(failure.get("message") or failure.get("reason") or "no reason is given")
    reason = next((reason for reason, pattern in REFUSALS if pattern.search(words)), "PodsRefused")
    return Cause(reason, f"no pod of {deployment['metadata']['name']} can be made: {_short(words)}")


def named(pods: Sequence[str]) -> str:
    shown = ", ".join(pods[:NAMED_MAX])
    return shown if len(pods) <= NAMED_MAX else f"{shown} and {len(pods) - NAMED_MAX} more"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_MAX else f"{line[: SHOWN_MAX - 3]}..."
