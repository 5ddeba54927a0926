"""Whose an object is that has the name of a child of ours. Server-side apply by force would take it over, be it another resource's or the
user's own: a Service that carries traffic, say. Pure; used by `apply`."""

from collections.abc import Mapping
from typing import Any

from multislo_operator.kubernetes.applied import rival
from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.names import FIELD_MANAGER, INSTANCE, MANAGED_BY


def other_owner(live: Object, desired: Object) -> str | None:
    """In words; None: it is ours. What was ours and has lost its owner (a deletion with --cascade=orphan, a restored backup) is ours
    again."""
    (own,) = desired["metadata"]["ownerReferences"]
    metadata = live["metadata"]
    controller = next((owner for owner in metadata.get("ownerReferences") or () if owner.get("controller")), None)
    if controller is None:
        if _mark(live) == _mark(desired):
            return None
        manager = rival(live)
        return f'"{manager}"' if manager else "nobody that can be told"
    if controller["uid"] == own["uid"]:
        return None
    if (controller["kind"], controller["name"]) == (own["kind"], own["name"]):
        return "an earlier resource of this name, and is being collected"
    return f"{controller['kind']} {controller['name']}"


def _mark(thing: Object) -> tuple[object, object]:
    """What tells the operator's objects from all others."""
    labels: Mapping[str, Any] = thing["metadata"].get("labels") or {}
    return labels.get(MANAGED_BY) == FIELD_MANAGER, labels.get(INSTANCE)
