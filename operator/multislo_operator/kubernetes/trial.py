"""A dry run of a Deployment's new template before anything that runs is touched: would the API server take it, and would it take a pod of
it? A quota, PodSecurity or a policy speaks up only at the pods. Used by `apply`."""

from collections.abc import Iterable
from typing import Any

from multislo_operator.kubernetes.changes import Object
from multislo_operator.kubernetes.client import AlreadyExists, Api, Refused


async def try_template(api: Api, wanted: Object, live: Object, replica_sets: Iterable[Object]) -> None:
    """Nothing is kept of it. Raises what the API server would answer, Refused with its words, where a template that differs from the live
    one is not taken."""
    would = await api.apply(wanted, dry_run=True)
    template = would["spec"]["template"]
    if template == live["spec"]["template"]:
        return
    try:
        await api.create(_pod(wanted["metadata"], template, _owner(live, replica_sets)), dry_run=True)
    except AlreadyExists:
        pass
    except Refused as error:
        if not _is_untried(error):
            raise Refused(
                error.status, error.reason, f"a pod of its new template is refused: {error.message}"
            ) from None


def _pod(metadata: Object, template: Object, owner: Object | None) -> dict[str, Any]:
    """As its ReplicaSet would make it: policies refuse pods that nobody owns. Its name is always the same, since the answer names it."""
    own = template.get("metadata") or {}
    named: dict[str, Any] = {"name": f"{metadata['name']}-dry-run", "namespace": metadata["namespace"]}
    kept = {key: own[key] for key in ("labels", "annotations") if own.get(key)}
    owners = {"ownerReferences": [owner]} if owner else {}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {**named, **kept, **owners}, "spec": template["spec"]}


def _owner(live: Object, replica_sets: Iterable[Object]) -> dict[str, Any] | None:
    """A reference to one of its ReplicaSets."""
    uid = live["metadata"]["uid"]
    for replica_set in replica_sets:
        own = replica_set["metadata"]
        if any(owner["uid"] == uid for owner in own.get("ownerReferences") or ()):
            named = {"kind": "ReplicaSet", "name": own["name"], "uid": own["uid"]}
            return {"apiVersion": "apps/v1", **named, "controller": True, "blockOwnerDeletion": False}
    return None


def _is_untried(error: Refused) -> bool:
    """It says nothing of the pod: we have no right to make one, or a webhook takes no dry runs."""
    no_right = error.status == 403 and 'cannot create resource "pods"' in error.message
    return no_right or (error.status == 400 and "dry run" in error.message)
