"""What of an object is kept in memory. An operator of a large cluster holds thousands, and an annotation may be 256 KB of somebody else's.
Pure; used by `cache`."""

from collections.abc import Mapping, Sequence
from typing import Any

from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.client import Kind

ANNOTATIONS = ("multislo.dev/", "deployment.kubernetes.io/", "controller.kubernetes.io/")
"""Beginnings of those that somebody here reads."""
CONTAINER_DROPPED = frozenset({"args", "command", "env", "envFrom", "volumeMounts"})
WRITERS_UNREAD = frozenset({"Pod", "ReplicaSet"})
"""Kinds of which nobody asks who wrote them; their managed fields are half of their size."""


def slim(kind: Kind, object: Object) -> Object:
    """The same object without what nobody reads."""
    kept = {**object, "metadata": _metadata(kind, object["metadata"])}
    spec = object.get("spec")
    if isinstance(spec, Mapping):
        if kind.name == "Pod":
            kept["spec"] = _pod(spec)
        elif kind.name == "ReplicaSet":
            kept["spec"] = {key: value for key, value in spec.items() if key != "template"}
    return kept


def _metadata(kind: Kind, metadata: Mapping[str, Any]) -> dict[str, Any]:
    kept = dict(metadata)
    annotations = kept.pop("annotations", None) or {}
    writers = kept.pop("managedFields", None) or ()
    read = {key: value for key, value in annotations.items() if key.startswith(ANNOTATIONS)}
    if read:
        kept["annotations"] = read
    if writers and kind.name not in WRITERS_UNREAD:
        kept["managedFields"] = _writers(writers)
    return kept


def _writers(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Who wrote last, and who the replicas. Which other fields are whose is not asked."""
    found = []
    for entry in entries:
        fields = (entry.get("fieldsV1") or {}).get("f:spec")
        replicas = isinstance(fields, Mapping) and "f:replicas" in fields
        kept = {key: value for key, value in entry.items() if key in ("manager", "operation", "subresource", "time")}
        found.append({**kept, "fieldsV1": {"f:spec": {"f:replicas": {}}}} if replicas else kept)
    return found


def _pod(spec: Mapping[str, Any]) -> dict[str, Any]:
    containers = [
        {key: value for key, value in container.items() if key not in CONTAINER_DROPPED}
        for container in spec.get("containers") or ()
    ]
    dropped = ("containers", "volumes", "initContainers")
    return {**{key: value for key, value in spec.items() if key not in dropped}, "containers": containers}
