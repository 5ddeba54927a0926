"""The Deployment of a tier's engines, or of the warm pool's: vLLM, or the emulator with the same probes and the same manners. Pure; called
by `children`."""

import zlib
from typing import Any

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
from multislo_operator.kubernetes.objects.overlay import overlaid
from multislo_operator.kubernetes.objects.times import Stopping, pre_stop, probe, startup_most_s, stopping
from multislo_perf.profile import Profile

ENGINE = "engine"
"""The engine's container."""
PORT = 8000
PROFILE_FOLDER = "/etc/multislo"
CACHE = "/cache"
"""HOME of vLLM: whatever it, PyTorch, Triton and the hub's client keep between two starts lands below."""
WEIGHTS = f"{CACHE}/huggingface"
"""Where the hub's client keeps what it downloads: in the user's claim, if there is one. Compiled kernels stay in the pod: many engines that
write them into one shared folder are nobody's tested case."""
HF_TOKEN_KEY = "token"
"""The key of the user's Secret under which the token is."""
VLLM_USER, VLLM_GROUP = 2000, 0
"""The user `vllm` of vLLM's images, which start as root otherwise. Its group owns what it must write."""
SHM_GI_PER_ACCELERATOR = 2
"""Tensor-parallel workers hand tensors over in shared memory; a container's default of 64 MB ends them."""
PROGRESS_EXTRA_S = 600


def profile_config(name: str) -> str:
    """The ConfigMap with the profile, of its own so that the router's changes do not touch engines."""
    return f"{name}-profile"


def engine_service_account(name: str) -> str:
    return f"{name}-engine"


def selected(manifest: MultiSLOServing, tier: str | None) -> dict[str, str]:
    return {**instance_labels(manifest.metadata.name, names.ENGINE), names.TIER: names.tier_label(tier)}


def engine_deployment(
    manifest: MultiSLOServing, profile: Profile, context: Context, tier: str | None
) -> dict[str, Any]:
    """Without replicas: they are scaling's, in a patch of their own. Raises `Unbuildable` for an impossible podTemplate."""
    template, problems = overlaid(engine_template(manifest, profile, context, tier), manifest.spec.engine.pod_template)
    if problems:
        raise Unbuildable(problems)
    startup_s = startup_most_s(engine_flags.startup_s(manifest, profile))
    stop = stopping(manifest.spec.scaling.scale_down.drain_timeout_s)
    name = names.engines_of(manifest.metadata.name, tier)
    deployment = made(
        manifest, context, "apps/v1", "Deployment", name, names.ENGINE,
        spec={
            "selector": selector(selected(manifest, tier)),
            # The operator lets the surge take an accelerator only where one is free, and otherwise makes room first.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "minReadySeconds": 0,
            "revisionHistoryLimit": 2,
            # Drains are slow and no failure; what is one, the operator tells in the resource's conditions.
            "progressDeadlineSeconds": startup_s + stop.grace_s + PROGRESS_EXTRA_S,
            "template": template,
        },
    )  # fmt: skip
    deployment["metadata"]["labels"][names.TIER] = names.tier_label(tier)
    return deployment


def engine_template(manifest: MultiSLOServing, profile: Profile, context: Context, tier: str | None) -> dict[str, Any]:
    """Before the user's overrides. Nothing of it depends on how many instances there are, nor on the router."""
    stop = stopping(manifest.spec.scaling.scale_down.drain_timeout_s)
    emulated = manifest.spec.engine.type == "Emulated"
    container = _common(manifest, profile, stop)
    container |= _emulated(manifest, profile, context, tier) if emulated else _vllm(manifest, profile, tier)
    annotations = {
        names.BATCH_TOKENS: str(engine_flags.batch_tokens_of(manifest, profile, tier)),
        "kubectl.kubernetes.io/default-container": ENGINE,
    }
    if emulated:
        annotations[CONFIG_HASH] = digest(context.profile_text)
    return {
        "metadata": {
            "labels": pod_labels(manifest.metadata.name, names.ENGINE) | {names.TIER: names.tier_label(tier)},
            "annotations": annotations,
        },
        "spec": {
            "schedulingGates": [{"name": names.START_GATE}],
            "readinessGates": [{"conditionType": names.SERVING}],
            "serviceAccountName": engine_service_account(manifest.metadata.name),
            "automountServiceAccountToken": False,
            # A Service called "vllm" would give VLLM_PORT to the engine, which takes it for its own.
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": stop.grace_s,
            "securityContext": POD_SECURITY if emulated or context.users_assigned else _vllm_security(),
            "containers": [container],
            "volumes": _emulated_volumes(manifest) if emulated else _vllm_volumes(manifest),
        },
    }


def listening(manifest: MultiSLOServing) -> dict[str, str]:
    """The flags by which an engine is reached and stopped."""
    stop = stopping(manifest.spec.scaling.scale_down.drain_timeout_s)
    return {"--port": str(PORT), "--host": "0.0.0.0", "--shutdown-timeout": str(stop.finish_s)}


def _common(manifest: MultiSLOServing, profile: Profile, stop: Stopping) -> dict[str, Any]:
    startup_s = startup_most_s(engine_flags.startup_s(manifest, profile))
    return {
        "name": ENGINE,
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        # /v1/models answers when the model is loaded. Once a second: a tier may be waiting for this very instance.
        "startupProbe": probe("/v1/models", "http", period_s=1, failures=startup_s, timeout_s=5),
        "readinessProbe": probe("/v1/models", "http", period_s=2, failures=3, timeout_s=5),
        # A minute of silence: an engine that is only busy must not be killed with everything in it.
        "livenessProbe": probe("/health", "http", period_s=10, failures=6, timeout_s=10),
        "lifecycle": pre_stop(stop),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _vllm(manifest: MultiSLOServing, profile: Profile, tier: str | None) -> dict[str, Any]:
    spec = manifest.spec
    accelerator = spec.engine.accelerator
    env: list[dict[str, Any]] = [
        {"name": "HOME", "value": CACHE},
        # PyTorch asks for the user's name, which fails for a number that the image does not know.
        {"name": "USER", "value": "vllm"},
        {"name": "HF_HOME", "value": WEIGHTS},
    ]
    if spec.model.token_secret is not None:
        token = {"secretKeyRef": {"name": spec.model.token_secret, "key": HF_TOKEN_KEY}}
        env.append({"name": "HF_TOKEN", "valueFrom": token})
    mounts = [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "cache", "mountPath": CACHE},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if spec.engine.cache.claim is not None:
        mounts.append({"name": "weights", "mountPath": WEIGHTS})
    return {
        "image": spec.engine.image,
        "command": ["vllm", "serve"],
        "args": [spec.model.name, *engine_flags.vllm_args(manifest, profile, tier, listening(manifest))],
        "env": env,
        "resources": {
            "limits": {accelerator.resource: str(accelerator.per_instance)},
            # A floor, so that engines are not the first to be evicted. What a model needs only its user knows.
            "requests": {"cpu": "1", "memory": "4Gi"},
        },
        "volumeMounts": mounts,
        "securityContext": CONTAINER_SECURITY,
    }


def _vllm_security() -> dict[str, Any]:
    own = {"runAsUser": VLLM_USER, "runAsGroup": VLLM_GROUP, "fsGroup": VLLM_GROUP}
    return {**POD_SECURITY, **own, "fsGroupChangePolicy": "OnRootMismatch"}


def _vllm_volumes(manifest: MultiSLOServing) -> list[dict[str, Any]]:
    engine = manifest.spec.engine
    shm = f"{SHM_GI_PER_ACCELERATOR * engine.accelerator.per_instance}Gi"
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm}},
        {"name": "cache", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if engine.cache.claim is not None:
        volumes.append({"name": "weights", "persistentVolumeClaim": {"claimName": engine.cache.claim}})
    return volumes


def _emulated(manifest: MultiSLOServing, profile: Profile, context: Context, tier: str | None) -> dict[str, Any]:
    # Pods of a template cannot have seeds of their own; tiers can.
    seed = zlib.crc32(names.tier_label(tier).encode()) % 10_000
    at = f"{PROFILE_FOLDER}/profile.yaml"
    flags = engine_flags.emulate_args(manifest, profile, tier, seed, at, listening(manifest))
    return {
        "image": context.image,
        "imagePullPolicy": context.image_pull_policy,
        "command": ["multislo", "emulate"],
        "args": list(flags),
        "env": [READS_OUR_FILES],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "volumeMounts": [
            {"name": "profile", "mountPath": PROFILE_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        "securityContext": {**CONTAINER_SECURITY, "readOnlyRootFilesystem": True},
    }


def _emulated_volumes(manifest: MultiSLOServing) -> list[dict[str, Any]]:
    return [
        {"name": "profile", "configMap": {"name": profile_config(manifest.metadata.name)}},
        {"name": "tmp", "emptyDir": {}},
    ]
