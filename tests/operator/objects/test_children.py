"""What is made for a resource: that an API server takes it, and what changes when the manifest does."""

import base64
import json
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
import yaml

from multislo_api.manifest import manifest_from, parse_manifest
from multislo_operator.kubernetes.objects.children import Context, Unbuildable, fighting_flags, fleet_secret
from multislo_perf.profile import load_profile, parse_document
from multislo_router.from_manifest import core_config, shell_settings

KUBERNETES = "1.36"
PROFILE = load_profile("llama-3.1-8b-h200-tp1")


def nulls(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in nulls(inner, f"{path}.{key}")]
    if isinstance(value, list):
        return [found for index, inner in enumerate(value) for found in nulls(inner, f"{path}[{index}]")]
    return [path] if value is None else []


def with_everything(cluster: Any) -> None:
    cluster.spec["router"] = {"replicas": 3, "apiKeys": {"secret": "keys"}}
    cluster.spec["engine"]["podTemplate"] = {
        "metadata": {"labels": {"team": "voice"}},
        "spec": {
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "models"}}],
            "containers": [{"name": "engine", "env": [{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}]}],
        },
    }
    cluster.context["monitoring_namespace"] = "monitoring"


@pytest.mark.parametrize("engine", ["VLLM", "Emulated"])
@pytest.mark.parametrize("change", [lambda cluster: None, with_everything], ids=["plain", "everything"])
def test_an_api_server_would_take_every_object(cluster: Any, engine: str, change: Callable[[Any], None]) -> None:
    cluster.spec["engine"]["type"] = engine
    change(cluster)
    made = cluster.made()
    for kind, name in made:
        if kind != "PodMonitor":
            kubernetes_validate.validate(made[kind, name], KUBERNETES, strict=True)
        assert nulls(made[kind, name]) == []
        assert "status" not in made[kind, name]


def test_a_resource_has_its_objects_and_no_others(cluster: Any) -> None:
    of_kind: dict[str, list[str]] = {}
    for kind, name in cluster.made():
        of_kind.setdefault(kind, []).append(name)
    assert of_kind == {
        "ServiceAccount": ["llama-router", "llama-engine"],
        "ConfigMap": ["llama-router", "llama-profile"],
        "NetworkPolicy": ["llama-router", "llama-engine"],
        "PodDisruptionBudget": ["llama-router", "llama-realtime", "llama-batch", "llama-warm"],
        "Deployment": ["llama-realtime", "llama-batch", "llama-warm", "llama-router"],
        "Service": ["llama"],
        "PodMonitor": ["llama-router", "llama-engine"],
    }


def test_without_a_warm_pool_and_without_prometheus_there_is_less(cluster: Any) -> None:
    cluster.spec["scaling"]["warmPool"] = {"max": 0}
    cluster.context["monitors"] = False
    made = cluster.made()
    assert ("Deployment", "llama-warm") not in made
    assert not any(kind == "PodMonitor" for kind, _ in made)


def test_a_version_with_a_plus_is_a_label_still(cluster: Any) -> None:
    cluster.context["version"] = "0.2.0.dev1+g1234"
    assert cluster.made()["Service", "llama"]["metadata"]["labels"]["app.kubernetes.io/version"] == "0.2.0.dev1_g1234"


def test_a_prometheus_finds_its_monitors_by_its_label(cluster: Any) -> None:
    cluster.context["monitor_labels"] = (("release", "prometheus"),)
    assert cluster.made()["PodMonitor", "llama-engine"]["metadata"]["labels"]["release"] == "prometheus"


def test_every_object_goes_with_its_resource(cluster: Any) -> None:
    for made in cluster.made().values():
        (owner,) = made["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("MultiSLOServing", "llama", True)
        assert made["metadata"]["namespace"] == "serving"
        assert made["metadata"]["labels"]["app.kubernetes.io/version"] == "0.2.0"


def test_replicas_of_engines_are_scalings_and_those_of_routers_the_manifests(cluster: Any) -> None:
    cluster.spec["router"] = {"replicas": 2}
    made = cluster.made()
    assert "replicas" not in made["Deployment", "llama-batch"]["spec"]
    assert made["Deployment", "llama-router"]["spec"]["replicas"] == 2


# -- drift -----------------------------------------------------------------------------------------------------------------


def changed(cluster: Any, change: Callable[[Any], object]) -> set[str]:
    before = cluster.templates()
    after = cluster.templates(change)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


ENGINES = {"llama-realtime", "llama-batch", "llama-warm"}
DRIFT: dict[str, tuple[Callable[[Any], object], set[str]]] = {
    "a tier's maximum": (lambda c: c.spec["tiers"][0]["instances"].update(max=9), set()),
    "a tier's minimum": (lambda c: c.spec["tiers"][1]["instances"].update(min=2), set()),
    "accelerators": (lambda c: c.spec["scaling"].update(acceleratorsMax=40), set()),
    "attainment": (lambda c: c.spec["scaling"].update(attainment=0.9), set()),
    "the warm pool's size": (lambda c: c.spec["scaling"].update(warmPool={"max": 5}), set()),
    "stabilization": (lambda c: c.spec["scaling"].update(scaleDown={"stabilization": "5m"}), set()),
    "a schedule": (
        lambda c: c.spec["scaling"].update(schedule=[{"cron": "0 8 * * *", "duration": "1h", "tier": "batch", "min": 2}]),
        set(),
    ),
    "the operator's version": (lambda c: c.context.update(version="0.3.0"), set()),
    "routers": (lambda c: c.spec.update(router={"replicas": 4}), set()),
    "labels of the resource": (lambda c: c.document["metadata"].update(labels={"a": "b"}), set()),
    "a tier's overload": (lambda c: c.spec["tiers"][0].update(overload="Reject"), {"llama-router"}),
    "a tier's ttft": (lambda c: c.spec["tiers"][0]["slo"].update(ttft="400ms"), {"llama-router"}),
    "the placement": (lambda c: c.spec.update(placement="Spread"), {"llama-router"}),
    "the default tier": (lambda c: c.spec.update(defaultTier="realtime"), {"llama-router"}),
    "the operator's token": (lambda c: c.context.update(token_secret="llama-fleet-89abcdef"), {"llama-router"}),
    "our image": (lambda c: c.context.update(image="multislo:new"), {"llama-router"}),
    "the longest request": (lambda c: c.spec["model"].update(maxLength=8192), ENGINES | {"llama-router"}),
    "served names": (lambda c: c.spec["model"].update(servedNames=["other"]), ENGINES | {"llama-router"}),
    "accelerators of an engine": (lambda c: c.spec["engine"].update(accelerator={"perInstance": 2}), ENGINES),
    "a port": (lambda c: c.spec.update(router={"adminPort": 9999}), {"llama-router"}),
    "the keys' Secret": (lambda c: c.spec.update(router={"apiKeys": {"secret": "keys"}}), {"llama-router"}),
    "the engine's image": (lambda c: c.spec["engine"].update(image="vllm/vllm-openai:v0.34.0"), ENGINES),
    "the hub's token": (lambda c: c.spec["model"].update(tokenSecret="hub"), ENGINES),
    "the claim": (lambda c: c.spec["engine"].update(cache={"claim": "models"}), ENGINES),
    "a flag": (lambda c: c.spec["engine"].update(args=["--enforce-eager"]), ENGINES),
    "the pod template": (lambda c: c.spec["engine"].update(podTemplate={"spec": {"priorityClassName": "high"}}), ENGINES),
    "a tier's tpot": (lambda c: c.spec["tiers"][0]["slo"].update(tpot="12ms"), {"llama-realtime", "llama-router"}),
    "the drain's patience": (
        lambda c: c.spec["scaling"].update(scaleDown={"drainTimeout": "5m"}),
        ENGINES | {"llama-router"},
    ),
    "a new tier": (
        lambda c: c.spec["tiers"].append({"name": "free", "slo": {"ttft": "2s", "tpot": "200ms"}}),
        {"llama-free", "llama-router"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DRIFT)
def test_a_change_touches_only_the_templates_that_it_is_about(cluster: Any, what: str) -> None:
    change, touched = DRIFT[what]
    assert changed(cluster, change) == touched


def test_a_change_of_our_image_replaces_emulated_engines(emulated: Any) -> None:
    assert changed(emulated, lambda c: c.context.update(image="multislo:new")) == ENGINES | {"llama-router"}


def test_a_change_of_the_profiles_text_replaces_who_has_read_it(cluster: Any) -> None:
    grown = cluster.context["profile_text"] + "\n# measured again\n"
    assert changed(cluster, lambda c: c.context.update(profile_text=grown)) == {"llama-router"}
    cluster.spec["engine"] = {"type": "Emulated"}
    assert changed(cluster, lambda c: c.context.update(profile_text="version: 1")) == ENGINES | {"llama-router"}


def test_selectors_never_change(cluster: Any) -> None:
    def selectors() -> dict[str, Any]:
        return {name: o["spec"]["selector"] for (kind, name), o in cluster.made().items() if kind == "Deployment"}

    before = selectors()
    for change, _ in DRIFT.values():
        change(cluster)
    after = selectors()
    assert before.items() <= after.items()
    assert len({json.dumps(selector) for selector in after.values()}) == len(after)


# -- configuration ---------------------------------------------------------------------------------------------------------


def test_the_routers_believe_what_a_router_with_the_whole_manifest_would(cluster: Any) -> None:
    cluster.spec["engine"] |= {"scheduler": "Priority", "args": ["--max-num-seqs=128", "--enforce-eager"]}
    cluster.spec["tiers"][0]["overload"] = "BestEffort"
    cluster.spec["engine"]["adapters"] = [{"name": "sql", "path": "/adapters/sql"}]
    cluster.spec["serviceTiers"] = {"flex": cluster.spec["tiers"][0]["name"]}
    door = {
        "bodyMaxMib": 100,
        "cors": {"origins": ["https://app"]},
        "paths": [{"path": "/version", "methods": ["GET"]}],
    }
    cluster.spec.update(placement="Spread", router={"port": 8080, **door})
    made = cluster.made()
    read = parse_manifest(made["ConfigMap", "llama-router"]["data"]["manifest.yaml"])
    profile = parse_document(made["ConfigMap", "llama-profile"]["data"]["profile.yaml"], "profile").profile()
    whole = manifest_from(cluster.document)
    assert core_config(read, profile) == core_config(whole, PROFILE)
    assert shell_settings(read) == shell_settings(whole)
    assert (read.spec.router.port, read.spec.router.admin_port) == (8080, 9090)
    assert read.metadata.name == "llama"


def test_the_token_is_in_its_secret_and_nowhere_else(cluster: Any) -> None:
    secret = fleet_secret(manifest_from(cluster.document), Context(**cluster.context), "the-token")
    kubernetes_validate.validate(dict(secret), KUBERNETES, strict=True)
    assert secret["stringData"] == {"token": "the-token"}
    assert secret["metadata"]["name"] == "llama-fleet-01234567"
    text = json.dumps(list(cluster.made().values()))
    assert "the-token" not in text
    assert base64.b64encode(b"the-token").decode() not in text
    env = {variable["name"]: variable for variable in cluster.pod("llama-router")["containers"][0]["env"]}
    assert env["MULTISLO_FLEET_TOKEN"]["valueFrom"] == {
        "secretKeyRef": {"name": "llama-fleet-01234567", "key": "token"}
    }


def test_clients_keys_are_a_file_in_the_routers_pod(cluster: Any) -> None:
    cluster.spec["router"] = {"apiKeys": {"secret": "keys"}}
    pod = cluster.pod("llama-router")
    (container,) = pod["containers"]
    path = container["args"][container["args"].index("--api-key-file") + 1]
    (mount,) = [mount for mount in container["volumeMounts"] if path.startswith(mount["mountPath"] + "/")]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
    assert volume["secret"]["secretName"] == "keys"


def test_only_the_routers_the_operator_and_prometheus_reach_an_engine(cluster: Any) -> None:
    cluster.context["monitoring_namespace"] = "monitoring"
    (rule,) = cluster.made()["NetworkPolicy", "llama-engine"]["spec"]["ingress"]
    routers, operator, prometheus = rule["from"]
    labels = cluster.made()["Deployment", "llama-router"]["spec"]["template"]["metadata"]["labels"]
    assert routers["podSelector"]["matchLabels"].items() <= labels.items()
    assert operator["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "multislo-system"}}
    assert prometheus["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}


def test_the_api_is_open_and_the_admin_listener_is_not(cluster: Any) -> None:
    api, admin = cluster.made()["NetworkPolicy", "llama-router"]["spec"]["ingress"]
    assert "from" not in api
    assert [port["port"] for port in api["ports"]] == ["http"]
    assert [port["port"] for port in admin["ports"]] == ["admin"]
    assert len(admin["from"]) == 1


# -- what cannot be --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.spec["router"].update(apiKeys={"env": "KEYS"}), "spec.router.apiKeys"),
        (lambda c: c.spec["model"].update(tokenizer="tokenizer.json"), "spec.model.tokenizer"),
        (lambda c: c.spec["engine"].update(args=["--api-key", "sesame"]), "--api-key would shut"),
        (
            lambda c: c.spec["engine"].update(args=["--max-num-seqs=1024", "--max-num-batched-tokens=512"]),
            "at most 512",
        ),
        (lambda c: c.document["metadata"].update(name="8b"), 'metadata.name: "8b"'),
        (lambda c: c.spec["engine"].update(podTemplate={"spec": {"schedulingGates": None}}), "multislo.dev/start"),
    ],
)
def test_what_cannot_be_had_in_a_cluster_is_told(cluster: Any, change: Callable[[Any], object], told: str) -> None:
    cluster.spec["router"] = {}
    change(cluster)
    with pytest.raises(Unbuildable) as error:
        cluster.made()
    assert all(told in problem for problem in error.value.problems)
    assert "sesame" not in str(error.value)


def test_flags_of_the_user_that_win_over_a_tiers_are_reported(cluster: Any) -> None:
    cluster.spec["engine"]["args"] = ["--max-num-batched-tokens", "2k", "--max_model_len=16384", "--port=9000"]
    told = fighting_flags(manifest_from(cluster.document), PROFILE)
    wanted = cluster.made()["Deployment", "llama-realtime"]["spec"]["template"]["spec"]["containers"][0]["args"]
    own = wanted[wanted.index("--max-num-batched-tokens") + 1]
    assert any(f"--max-num-batched-tokens: tier realtime would have {own}, runs with 2k" in line for line in told)
    assert any("the warm pool would have 1024" in line for line in told)
    assert any("--port: every engine should have 8000, runs with 9000" in line for line in told)
    assert not any("--max-model-len" in line for line in told)


def test_the_manifest_of_the_routers_is_readable(cluster: Any) -> None:
    text = cluster.made()["ConfigMap", "llama-router"]["data"]["manifest.yaml"]
    assert yaml.safe_load(text)["spec"]["profile"] == {"configMap": "llama-profile"}
    assert len(text.splitlines()) < 60
