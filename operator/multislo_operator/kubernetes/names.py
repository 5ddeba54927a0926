"""What the operator's objects are called: labels, annotations, gates, and the names of a resource's children. Used by everything here;
users see these words in `kubectl get` and in selectors, so they do not change lightly."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

GROUP = "multislo.dev"
VERSION = "v1alpha1"
PLURAL = "multisloservings"
KIND = "MultiSLOServing"
FIELD_MANAGER = "multislo-operator"
LEASE = "multislo-operator"
CLAIM = "multislo-fleets"
"""The Lease of a namespace with fleets: which installation of the operator looks after them."""

# -- labels ----------------------------------------------------------------------------------------------------------------

NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
PART_OF = "app.kubernetes.io/part-of"
MANAGED_BY = "app.kubernetes.io/managed-by"
APP = "multislo"
ENGINE, ROUTER = "engine", "router"
"""Values of the component label."""
TIER = "multislo.dev/tier"
"""The tier whose home an engine pod is in; `WARM` for the warm pool."""
TEMPLATE_HASH = "pod-template-hash"
"""Set by the Deployment controller; part of its ReplicaSets' selectors."""
WARM = "warm"

# -- annotations -----------------------------------------------------------------------------------------------------------

BATCH_TOKENS = "multislo.dev/batch-tokens"
"""Of an engine pod: the token budget of an iteration that its engine was started with."""
DRAINING_SINCE = "multislo.dev/draining-since"
"""Of an engine pod: when its drain began (RFC 3339). Nothing more is placed on it."""
DRAIN_REASON = "multislo.dev/drain-reason"
TIER_SINCE = "multislo.dev/tier-since"
"""Of an engine pod: when it came into its tier without a restart."""
REPLACED = "multislo.dev/replaced"
"""Of an engine pod: a roll-out drains it, to put one of the new template in its place."""
STARTED_AT = "multislo.dev/started-at"
"""Of an engine pod: when it was let go to a node."""
ASKED_AGAIN_AT = "multislo.dev/asked-again-at"
"""Of a Deployment: when its pods, which were refused, were last asked for again (`changes.AskAgain`)."""
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
SCALING = "multislo.dev/scaling"
"""Of a MultiSLOServing: `External` leaves the replicas of every tier to another actor (an HPA, KEDA)."""

STANDS_ASIDE = "multislo.dev/stands-aside"
"""Of that Lease: another installation that would look after them too, and when it said so."""

# -- gates -----------------------------------------------------------------------------------------------------------------

START_GATE = "multislo.dev/start"
"""Scheduling gate of every engine pod: it takes no accelerator before the operator has counted it."""
SERVING = "multislo.dev/serving"
"""Readiness gate of every engine pod: it counts as ready to the Deployment controller when the operator says so."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Which MultiSLOServing. A type and not a string, so that nobody mixes up its two halves."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def engines_of(name: str, tier: str | None) -> str:
    """The Deployment of a tier's engines; None: of the warm pool."""
    return f"{name}-{tier or WARM}"


def deployment_of(name: str, labels: Mapping[str, str]) -> str:
    """What the Deployment of the resource `name` that has these labels is called."""
    return router_of(name) if labels.get(COMPONENT) == ROUTER else engines_of(name, tier_of(labels.get(TIER, WARM)))


def router_of(name: str) -> str:
    """The router's Deployment, ConfigMap, ServiceAccount and PodDisruptionBudget."""
    return f"{name}-router"


def tier_label(tier: str | None) -> str:
    return tier or WARM


def tier_of(label: str) -> str | None:
    return None if label == WARM else label


def fleet_token(operator_key: bytes, key: Key, uid: str) -> str:
    """What the operator shows to this resource's routers: derived, so that it need never be read back from the cluster."""
    return hmac.new(operator_key, f"{key.namespace}/{key.name}/{uid}".encode(), hashlib.sha256).hexdigest()


def token_secret(name: str, token: str) -> str:
    """The Secret that carries the token to the routers. Its name tells one token from another without showing it."""
    return f"{name}-fleet-{hashlib.sha256(token.encode()).hexdigest()[:8]}"
