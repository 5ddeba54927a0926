"""The router's Deployment, its configuration, and the Service in front of it. Pure; called by `children`."""

import math
from collections.abc import Mapping
from typing import Any

from multislo_api.document import write_document
from multislo_api.fleet import SHUTDOWN_DELAY_VARIABLE, TOKEN_VARIABLE
from multislo_api.manifest import MultiSLOServing
from multislo_operator import engine_flags
from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.objects.context import (
    CONFIG_HASH,
    CONTAINER_SECURITY,
    POD_SECURITY,
    READS_OUR_FILES,
    Context,
    Unbuildable,
    digest,
    instance_labels,
    made,
    pod_labels,
    selector,
)
from multislo_operator.kubernetes.objects.engine_pod import profile_config
from multislo_operator.kubernetes.objects.overlay import overlaid
from multislo_operator.kubernetes.objects.times import Stopping, probe, stopping

ROUTER = "router"
"""The router's container."""
CONFIG_FOLDER = "/etc/multislo"
KEYS_FOLDER = "/var/run/multislo/keys"
KEYS = "api-keys"
"""The key of the Secret under which the clients' keys are, one a line."""
TOKEN = "token"
"""The key of the Secret under which the operator's token is."""
PODS_ONLY = ("replicas", "podTemplate", "apiKeys", "shutdownDelay")
"""Fields of spec.router that are about the pods; all others are for the routers to read."""


def router_config(manifest: MultiSLOServing) -> str:
    """The manifest that the routers read, without what they do not look at: what is not in here does not roll them out. What has its
    default is left out too: a field that came with this version, and is not used, needs no router of this version."""
    whole = manifest.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    spec = whole["spec"]
    engine: dict[str, Any] = _these(spec.get("engine", {}), "scheduler", "adapters")
    seqs = engine_flags.flag_value(manifest.spec.engine.args, engine_flags.SEQS)
    if seqs is not None:
        engine["args"] = [engine_flags.SEQS, str(seqs)]
    # How many instances there may be is not the routers' to know; the least that is legal stands in its place.
    tiers = [{**tier, "instances": {"min": 0}} for tier in spec["tiers"]]
    return write_document(
        {
            "apiVersion": whole["apiVersion"],
            "kind": whole["kind"],
            "metadata": _these(whole["metadata"], "name", "namespace"),
            "spec": {
                "model": {key: value for key, value in spec["model"].items() if key != "tokenSecret"},
                "profile": {"configMap": profile_config(manifest.metadata.name)},
                "engine": engine,
                "tiers": tiers,
                "defaultTier": spec["defaultTier"],
                **_these(spec, "serviceTiers", "placement"),
                "scaling": {"acceleratorsMax": 1},
                "router": {key: value for key, value in spec.get("router", {}).items() if key not in PODS_ONLY},
            },
        }
    )


def _these(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: mapping[key] for key in keys if key in mapping}


def router_deployment(manifest: MultiSLOServing, context: Context) -> dict[str, Any]:
    """Raises `Unbuildable` for an impossible podTemplate."""
    name = manifest.metadata.name
    labels = instance_labels(name, names.ROUTER)
    template = {
        "metadata": {
            "labels": pod_labels(name, names.ROUTER),
            "annotations": {CONFIG_HASH: digest(router_config(manifest) + context.profile_text)},
        },
        "spec": {
            "serviceAccountName": names.router_of(name),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": _stop(manifest).grace_s,
            "securityContext": POD_SECURITY,
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": selector(labels),
                    "matchLabelKeys": [names.TEMPLATE_HASH],
                }
            ],
            "containers": [_container(manifest, context)],
            "volumes": _volumes(manifest),
        },
    }
    template, problems = overlaid(template, manifest.spec.router.pod_template, ROUTER)
    if problems:
        raise Unbuildable(problems)
    return made(
        manifest, context, "apps/v1", "Deployment", names.router_of(name), names.ROUTER,
        spec={
            "replicas": manifest.spec.router.replicas,
            "selector": selector(labels),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 2,
            "template": template,
        },
    )  # fmt: skip


def service(manifest: MultiSLOServing, context: Context) -> dict[str, Any]:
    """The one door. Ready routers only; one without instances is ready, and says 503 with a reason."""
    name = manifest.metadata.name
    return made(
        manifest, context, "v1", "Service", name, names.ROUTER,
        spec={
            "type": "ClusterIP",
            "selector": instance_labels(name, names.ROUTER),
            "ports": [{"name": "http", "port": manifest.spec.router.port, "targetPort": "http", "protocol": "TCP"}],
        },
    )  # fmt: skip


def _stop(manifest: MultiSLOServing) -> Stopping:
    # As long as an instance may drain: no answer takes longer, and a router that is empty goes at once.
    router = manifest.spec.router
    return stopping(manifest.spec.scaling.scale_down.drain_timeout_s, math.ceil(router.shutdown_delay_s))


def _container(manifest: MultiSLOServing, context: Context) -> dict[str, Any]:
    router = manifest.spec.router
    stop = _stop(manifest)
    args = [
        *("-f", f"{CONFIG_FOLDER}/manifest.yaml", "--profile", f"{CONFIG_FOLDER}/profile.yaml"),
        *("--host", "0.0.0.0", "--admin-host", "0.0.0.0", "--drain-timeout", str(stop.finish_s)),
    ]
    mounts = [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if router.api_keys is not None:
        args += ["--api-key-file", f"{KEYS_FOLDER}/{KEYS}"]
        mounts.append({"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True})
    token = {"secretKeyRef": {"name": context.token_secret, "key": TOKEN}}
    return {
        "name": ROUTER,
        "image": context.image,
        "imagePullPolicy": context.image_pull_policy,
        "command": ["multislo", "router"],
        "args": args,
        "env": [
            {"name": TOKEN_VARIABLE, "valueFrom": token},
            {"name": SHUTDOWN_DELAY_VARIABLE, "value": str(stop.routes_close_s)},
            READS_OUR_FILES,
        ],
        "ports": [
            {"name": "http", "containerPort": router.port, "protocol": "TCP"},
            {"name": "admin", "containerPort": router.admin_port, "protocol": "TCP"},
        ],
        "startupProbe": probe("/healthz", "admin", period_s=1, failures=60, timeout_s=5),
        # Ready once the operator has told it the fleet, whatever is in it.
        "readinessProbe": probe("/readyz?instances=0", "admin", period_s=1, failures=3, timeout_s=5),
        "livenessProbe": probe("/healthz", "admin", period_s=10, failures=6, timeout_s=10),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # A quota on limits.memory takes no pod without one; docs/production.md says what a router needs at most. No limit on CPU: waiting
        # for the next period would make tokens late.
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
        "volumeMounts": mounts,
        "securityContext": {**CONTAINER_SECURITY, "readOnlyRootFilesystem": True},
    }


def _volumes(manifest: MultiSLOServing) -> list[dict[str, Any]]:
    name, keys = manifest.metadata.name, manifest.spec.router.api_keys
    parts = [{"configMap": {"name": of}} for of in (names.router_of(name), profile_config(name))]
    volumes: list[dict[str, Any]] = [
        {"name": "config", "projected": {"sources": parts}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if keys is not None:
        items = [{"key": KEYS, "path": KEYS}]
        volumes.append({"name": "keys", "secret": {"secretName": keys.secret, "items": items}})
    return volumes
