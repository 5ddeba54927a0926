"""What the objects of a resource need beside its manifest, and what they have in common: owner, labels, hashes. Pure."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multislo_api.manifest import API_VERSION, KIND, MultiSLOServing
from multislo_api.tolerant import VARIABLE
from multislo_operator.kubernetes import names

VERSION_LABEL = "app.kubernetes.io/version"
CONFIG_HASH = "multislo.dev/config-hash"
"""Of a pod template whose configuration is read once, at the start: a change of it makes a roll-out."""


@dataclass(frozen=True, slots=True)
class Context:
    uid: str
    """Of the MultiSLOServing."""
    image: str
    """Of the router and of emulated engines."""
    token_secret: str
    """Name of the Secret with the routers' token (`names.token_secret`)."""
    monitors: bool
    """The cluster has PodMonitors."""
    profile_text: str
    """The profile as YAML."""
    operator_namespace: str
    version: str
    """The operator's own. Not in pod templates: an upgrade of the operator alone restarts no engine."""
    image_pull_policy: str = "IfNotPresent"
    users_assigned: bool = False
    """The cluster gives pods their user and group (OpenShift), and refuses pods that name one."""
    monitor_labels: tuple[tuple[str, str], ...] = ()
    """Of the PodMonitors: a Prometheus looks at those with its own label."""
    monitoring_namespace: str | None = None
    """Where Prometheus runs; None: the NetworkPolicies let it in from nowhere."""


class Unbuildable(Exception):
    """The manifest cannot be carried out in a cluster. `problems` names every mistake: its path, the value, what is legal."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def instance_labels(name: str, component: str) -> dict[str, str]:
    """What selectors go by: immutable, so as few as tell the pods from all others in the namespace."""
    return {names.INSTANCE: name, names.COMPONENT: component}


def pod_labels(name: str, component: str) -> dict[str, str]:
    return {
        **instance_labels(name, component),
        names.NAME: names.APP,
        names.PART_OF: names.APP,
        names.MANAGED_BY: names.FIELD_MANAGER,
    }


def made(
    manifest: MultiSLOServing, context: Context, api_version: str, kind: str, name: str, component: str, **body: Any
) -> dict[str, Any]:
    """An object that goes when its resource goes. `blockOwnerDeletion` stays false: true needs a right to the owner's finalizers, and would
    only make a foreground deletion wait."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": manifest.metadata.name,
        "uid": context.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    metadata = {
        "name": name,
        "namespace": manifest.metadata.namespace,
        "labels": {**pod_labels(manifest.metadata.name, component), VERSION_LABEL: _label_value(context.version)},
        "ownerReferences": [owner],
    }
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


def _label_value(text: str) -> str:
    """A version such as 0.2.0+dirty may have characters that a label may not."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:63].strip("._-")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def selector(labels: Mapping[str, str]) -> dict[str, Any]:
    return {"matchLabels": dict(labels)}


READS_OUR_FILES = {"name": VARIABLE, "value": "ignore"}
"""Environment of whatever reads a file that this operator wrote: a pod may be of an older image, and the file is changed under it."""
CONTAINER_SECURITY: dict[str, Any] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
POD_SECURITY: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
"""Together what PodSecurity calls restricted."""
