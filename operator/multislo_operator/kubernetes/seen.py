"""What the operator has seen of one resource: its objects as the API server holds them, and its routers' answers. Filled by `watch` and
`reconciler`, read by `reconcile`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from multislo_api.fleet import FleetSnapshot
from multislo_operator.kubernetes.changes import Object


@dataclass(frozen=True, slots=True)
class Seen:
    """The objects of one resource; those of a kind by their names. `pods` holds its engines' and its routers'."""

    resource: Object
    deployments: Mapping[str, Object] = field(default_factory=dict)
    replica_sets: Mapping[str, Object] = field(default_factory=dict)
    pods: Mapping[str, Object] = field(default_factory=dict)
    warnings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Reason and message of the kubelet's last warning of a pod, by its uid, where its status does not say what it waits for."""
    profile_text: str | None = None
    """The profile in the ConfigMap that the resource names; None: it names none, or there is none of that name."""

    other_operator: str = ""
    """Another installation that would look after it too, and stands aside."""


@dataclass(frozen=True, slots=True)
class RouterSeen:
    """One router pod as it last answered. `at` by the operator's monotonic clock; -inf: never."""

    pod: str
    snapshot: FleetSnapshot | None = None
    at: float = float("-inf")
    trouble: str | None = None
    """Why the last call failed; None where it did not."""
