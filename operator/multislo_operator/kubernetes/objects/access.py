"""Who may reach a resource's pods, who may evict them, who scrapes them. Pure; called by `children`."""

from typing import Any

from multislo_api.manifest import MultiSLOServing
from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.objects.context import Context, instance_labels, made, selector
from multislo_operator.kubernetes.objects.engine_pod import engine_service_account


def budget(
    manifest: MultiSLOServing, context: Context, name: str, selected: dict[str, str], component: str
) -> dict[str, Any]:
    """One at a time by eviction, also where there is only one: a node must be drainable, and what is evicted finishes its requests. A pod
    that is not ready (it starts, or drains) protects nothing and may always go."""
    spec = {"maxUnavailable": 1, "selector": selector(selected), "unhealthyPodEvictionPolicy": "AlwaysAllow"}
    return made(manifest, context, "policy/v1", "PodDisruptionBudget", name, component, spec=spec)


def engine_policy(manifest: MultiSLOServing, context: Context) -> dict[str, Any]:
    """An engine's paths beside /v1 know no key: only this resource's routers, the operator and Prometheus come in. kubelet's probes come
    from the pod's own node, which a NetworkPolicy does not keep out."""
    name = manifest.metadata.name
    routers = {"podSelector": selector(instance_labels(name, names.ROUTER))}
    peers = [routers, _operator(context), *_monitoring(context)]
    rules = [{"from": peers, "ports": [{"port": "http", "protocol": "TCP"}]}]
    return _policy(manifest, context, engine_service_account(name), names.ENGINE, rules)


def router_policy(manifest: MultiSLOServing, context: Context) -> dict[str, Any]:
    """The API is open; the admin listener (who may read all of the fleet there) is the operator's and Prometheus's."""
    peers = [_operator(context), *_monitoring(context)]
    rules = [
        {"ports": [{"port": "http", "protocol": "TCP"}]},
        {"from": peers, "ports": [{"port": "admin", "protocol": "TCP"}]},
    ]
    return _policy(manifest, context, names.router_of(manifest.metadata.name), names.ROUTER, rules)


def _policy(
    manifest: MultiSLOServing, context: Context, name: str, component: str, rules: list[dict[str, Any]]
) -> dict[str, Any]:
    labels = instance_labels(manifest.metadata.name, component)
    spec = {"podSelector": selector(labels), "policyTypes": ["Ingress"], "ingress": rules}
    return made(manifest, context, "networking.k8s.io/v1", "NetworkPolicy", name, component, spec=spec)


def _operator(context: Context) -> dict[str, Any]:
    return {
        "namespaceSelector": selector({"kubernetes.io/metadata.name": context.operator_namespace}),
        "podSelector": selector({names.NAME: names.APP, names.COMPONENT: "operator"}),
    }


def _monitoring(context: Context) -> list[dict[str, Any]]:
    if context.monitoring_namespace is None:
        return []
    return [{"namespaceSelector": selector({"kubernetes.io/metadata.name": context.monitoring_namespace})}]


def monitor(manifest: MultiSLOServing, context: Context, component: str, port: str) -> dict[str, Any]:
    """For a Prometheus operator. `fleet` tells the resources of a namespace apart, `tier` an engine's home."""
    name = manifest.metadata.name
    named = names.router_of(name) if component == names.ROUTER else engine_service_account(name)
    relabelings: list[dict[str, Any]] = [
        {"sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_instance"], "targetLabel": "fleet"}
    ]
    if component == names.ENGINE:
        relabelings.append({"sourceLabels": ["__meta_kubernetes_pod_label_multislo_dev_tier"], "targetLabel": "tier"})
        # As routers and operator call it.
        relabelings.append(
            {"sourceLabels": ["tier"], "regex": names.WARM, "targetLabel": "tier", "replacement": "warm_pool"}
        )
    endpoint = {"port": port, "path": "/metrics", "interval": "15s", "relabelings": relabelings}
    spec = {"selector": selector(instance_labels(name, component)), "podMetricsEndpoints": [endpoint]}
    made_monitor = made(manifest, context, "monitoring.coreos.com/v1", "PodMonitor", named, component, spec=spec)
    made_monitor["metadata"]["labels"] |= dict(context.monitor_labels)
    return made_monitor
