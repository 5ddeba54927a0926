"""Whose an object is that has the name of a child: what is somebody else's is not taken over."""

from typing import Any

import pytest

from multislo_operator.kubernetes.owners import other_owner

LABELS = {"app.kubernetes.io/managed-by": "multislo-operator", "app.kubernetes.io/instance": "fleet"}


def owner(name: str = "fleet", uid: str = "u1", kind: str = "MultiSLOServing") -> dict[str, Any]:
    return {"apiVersion": "multislo.dev/v1alpha1", "kind": kind, "name": name, "uid": uid, "controller": True}


def service(labels: dict[str, str] | None = None, *owners: dict[str, Any], manager: str = "") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "fleet", "labels": labels or {}, "ownerReferences": list(owners)}
    if manager:
        metadata["managedFields"] = [{"manager": manager, "operation": "Update", "time": "2026-01-01T00:00:00Z"}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata}


WANTED = service(LABELS, owner())


@pytest.mark.parametrize(
    "live",
    [service(LABELS, owner()), service({}, owner()), service(LABELS)],
    ids=["ours", "ours, though its labels were removed", "ours before, orphaned"],
)
def test_what_is_ours_may_be_applied(live: dict[str, Any]) -> None:
    assert other_owner(live, WANTED) is None


@pytest.mark.parametrize(
    ("live", "whose"),
    [
        (service(LABELS, owner("other", "u2")), "MultiSLOServing other"),
        (service({}, owner("web", "u3", "Deployment")), "Deployment web"),
        (service(LABELS, owner(uid="u0")), "an earlier resource of this name, and is being collected"),
        (service({"app": "web"}, manager="helm"), '"helm"'),
        (service(), "nobody that can be told"),
        (service(LABELS | {"app.kubernetes.io/instance": "other"}), "nobody that can be told"),
    ],
)
def test_what_is_somebody_elses_is_named(live: dict[str, Any], whose: str) -> None:
    assert other_owner(live, WANTED) == whose
