"""Objects as an API server shows them, as short as a story can be told with them."""

from datetime import UTC, datetime
from typing import Any

from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.pods import EnginePod, engine_pods
from multislo_operator.kubernetes.workloads import REVISION, Workload, workloads

Json = dict[str, Any]
AT = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)
NOON = "2026-11-01T12:00:00Z"


def pod(
    name: str = "p",
    tier: str = "batch",
    ready: bool = True,
    serving: bool = True,
    gated: bool = False,
    hash: str = "new",
    at: str = "2026-11-01T11:00:00Z",
    **more: Any,
) -> Json:
    """`more`: `annotations`, `status`, `metadata` on top."""
    conditions = [{"type": "ContainersReady", "status": str(ready), "lastTransitionTime": at}]
    if serving:
        conditions.append({"type": names.SERVING, "status": "True"})
    labels = {names.COMPONENT: names.ENGINE, names.TIER: tier, names.TEMPLATE_HASH: hash}
    ip = {} if gated else {"podIP": "10.0.0.1"}
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": at,
            "labels": labels,
            "annotations": more.get("annotations", {}),
            **more.get("metadata", {}),
        },
        "spec": {"schedulingGates": [{"name": names.START_GATE}] if gated else []},
        "status": {"phase": "Running", **ip, "conditions": conditions, **more.get("status", {})},
    }


def engine(name: str = "p", **more: Any) -> EnginePod:
    (found,) = engine_pods([pod(name, **more)])
    return found


def owned_by(manager: str, time: str = NOON) -> list[Json]:
    return [
        {"manager": manager, "operation": "Update", "time": time, "fieldsV1": {"f:spec": {"f:replicas": {}}}},
        {"manager": "kube-controller-manager", "subresource": "status", "time": NOON, "fieldsV1": {"f:status": {}}},
    ]


def deployment(tier: str = "batch", replicas: int = 2, managed: list[Json] | None = None, seen: int = 3) -> Json:
    return {
        "metadata": {
            "name": f"llama-{tier}",
            "uid": f"uid-{tier}",
            "resourceVersion": "77",
            "generation": 3,
            "labels": {names.COMPONENT: names.ENGINE, names.TIER: tier},
            "annotations": {REVISION: "2"},
            "managedFields": owned_by(names.FIELD_MANAGER) if managed is None else managed,
        },
        "spec": {"replicas": replicas},
        "status": {"observedGeneration": seen},
    }


def replica_set(
    tier: str = "batch", hash: str = "new", revision: str = "2", replicas: int = 2, acted: bool = True
) -> Json:
    return {
        "metadata": {
            "name": f"llama-{tier}-{hash}",
            "labels": {names.TEMPLATE_HASH: hash},
            "annotations": {REVISION: revision},
            "generation": 2,
            "ownerReferences": [{"uid": f"uid-{tier}"}],
        },
        "spec": {"replicas": replicas},
        "status": {"observedGeneration": 2 if acted else 1},
    }


def workload(*pods: Json, replicas: int = 2, places: int | None = None, tier: str = "batch", **more: Any) -> Workload:
    """One tier's, with a ReplicaSet of the template "new" that its controller has acted on."""
    own = deployment(tier, replicas, **more)
    sets = replica_set(tier, replicas=replicas if places is None else places)
    return workloads({own["metadata"]["name"]: own}, {"r": sets}, engine_pods(pods))[tier]
