"""What a reconcile asks the API server to do, in order: written by `reconcile`, carried out by `apply`. Carrying the same list out
twice changes nothing the second time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]
"""A Kubernetes object as JSON values, with apiVersion, kind and metadata."""


@dataclass(frozen=True, slots=True)
class CreateSecret:
    """Create it if it is not there. It is never read, and never changed: its name tells its content."""

    object: Object


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply, as the one field manager, of a child. Skipped where nothing has changed since the last one. `optional`: an
    API that this cluster may not have (PodMonitor)."""

    object: Object
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a child that is no longer wanted."""

    api_version: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class PatchPod:
    """Labels and annotations of one very pod (None removes one); `ungate` lets it go to a node."""

    name: str
    uid: str
    labels: Mapping[str, str | None] = field(default_factory=dict)
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    ungate: bool = False


@dataclass(frozen=True, slots=True)
class SetServing:
    """The readiness gate of a pod."""

    name: str
    uid: str
    serving: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Replicas of a Deployment, apart from all else of it. `seen_version`: the resourceVersion that the count rests on; where the
    Deployment has moved on, the change is refused (409) and planned again."""

    deployment: str
    replicas: int
    seen_version: str


@dataclass(frozen=True, slots=True)
class AskAgain:
    """Have a Deployment's refused pods asked for again now: its ReplicaSet's controller waits for up to a quarter of an hour. `at` becomes
    an annotation, which the Deployment's controller hands on."""

    deployment: str
    at: str


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Delete one very pod, gracefully."""

    name: str
    uid: str
    reason: str


Change = CreateSecret | Apply | Delete | PatchPod | SetServing | Scale | AskAgain | DeletePod


@dataclass(frozen=True, slots=True)
class Note:
    """A Kubernetes event on the MultiSLOServing."""

    reason: str
    """CamelCase."""
    message: str
    warning: bool = False
