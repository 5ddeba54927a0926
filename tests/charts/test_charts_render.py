"""The charts without a cluster: lint, the objects that they make, what their schemas refuse. Installing them is in e2e/test_charts.py."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from multislo_api.crd import crd

ROOT = Path(__file__).parents[2]
CHARTS = ROOT / "charts"
OPERATOR, CRDS = CHARTS / "multislo", CHARTS / "multislo-crds"
KUBERNETES = "1.36.0"
FOREIGN = {"monitoring.coreos.com/v1"}
"""Of these APIs there is no schema here."""
Object = dict[str, Any]

VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "replicas": 3,
        "image": {"repository": "registry/multislo", "digest": f"sha256:{'a' * 64}", "pullSecrets": ["pull"]},
        "watchNamespaces": ["serving", "batch"],
        "serviceAccount": {"annotations": {"a": "b"}},
        "key": {"keep": True},
        "observability": {
            "namespace": "monitoring",
            "podMonitors": {"enabled": True},
            "dashboards": {"enabled": True},
            "rules": {"enabled": True},
        },
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "priorityClassName": "high",
        "podLabels": {"team": "a"},
        "podAnnotations": {"note": "b"},
        "extraArgs": ["--no-election"],
        "env": [{"name": "A", "value": "b"}],
    },
    "bare": {
        "replicas": 1,
        "rbac": {"create": False},
        "serviceAccount": {"create": False, "name": "somebody"},
        "key": {"existingSecret": "mine"},
        "metrics": {"service": False, "port": 9000},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "resources": {},
    },
    **{path.stem: yaml.safe_load(path.read_text()) for path in sorted((OPERATOR / "examples").glob("*.yaml"))},
}


def rendered(values: dict[str, Any] | None = None, chart: Path = OPERATOR, name: str = "multislo") -> list[Object]:
    with helm.Chart.load(chart) as loaded:
        files = loaded.render(values or {}, name=name, namespace="multislo-system")
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def only(objects: list[Object], kind: str) -> Object:
    [found] = [each for each in objects if each["kind"] == kind]
    return found


def pod_of(objects: list[Object]) -> Object:
    pod: Object = only(objects, "Deployment")["spec"]["template"]["spec"]
    return pod


def rules_of(objects: list[Object], *kinds: str) -> Iterator[tuple[str, str, str]]:
    """(group, resource, verb) of all roles of a kind."""
    for each in objects:
        for rule in each.get("rules", []) if each["kind"] in kinds else []:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    yield from ((group, resource, verb) for verb in rule["verbs"])


@pytest.mark.parametrize("chart", [OPERATOR, CRDS], ids=lambda chart: chart.name)
def test_strict_lint_finds_nothing(chart: Path) -> None:
    report = helm.lint(chart, strict=True)

    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_every_object_is_one_that_kubernetes_knows_field_by_field(values: dict[str, Any]) -> None:
    objects = rendered(values) + rendered(chart=CRDS)

    for each in objects:
        if each["apiVersion"] not in FOREIGN:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))
    assert all(each["metadata"]["labels"]["app.kubernetes.io/name"].startswith("multislo") for each in objects)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"replicas": 0}, "at '/replicas': minimum: got 0, want 1"),
    ({"replica": 2}, "additional properties 'replica' not allowed"),
    ({"image": {"tag": 1.0}}, "at '/image/tag': got number, want string"),
    ({"image": {"digest": "abc"}}, "at '/image/digest': 'abc' does not match pattern"),
    (
        {"image": {"pullPolicy": "Sometimes"}},
        "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'",
    ),
    ({"watchNamespaces": "serving"}, "at '/watchNamespaces': got string, want array"),
    ({"watchNamespaces": ["Serving"]}, "at '/watchNamespaces/0': 'Serving' does not match pattern"),
    ({"metrics": {"port": 80}}, "at '/metrics/port': minimum: got 80, want 1,024"),
    ({"observability": {"podMonitor": {}}}, "at '/observability': additional properties 'podMonitor' not allowed"),
    ({"nodeSelector": {"gpu": True}}, "at '/nodeSelector/gpu': got boolean, want string"),
]


@pytest.mark.parametrize(("values", "problem"), WRONG, ids=[repr(values) for values, _ in WRONG])
def test_a_wrong_value_is_refused_with_its_place_and_what_is_legal(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(helm.HelmValuesError) as refused:
        rendered(values)

    assert problem in str(refused.value)


def test_a_service_account_of_the_users_must_be_named() -> None:
    with pytest.raises(helm.HelmError, match=r"serviceAccount\.name must name a ServiceAccount"):
        rendered({"serviceAccount": {"create": False}})


def leaves(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    for name, inner in schema["properties"].items():
        if "properties" in inner:
            assert inner["additionalProperties"] is False, f"{path}{name} takes anything"
            yield from leaves(inner, f"{path}{name}.")
        elif name != "global":
            yield f"{path}{name}", inner


@pytest.mark.parametrize("chart", [OPERATOR, CRDS], ids=lambda chart: chart.name)
def test_schema_and_values_speak_of_the_same_fields_and_the_defaults_are_legal(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())
    values = yaml.safe_load((chart / "values.yaml").read_text())
    described = dict(leaves(schema))

    for path, leaf in described.items():
        value: Any = values
        for part in path.split("."):
            value = value[part]
        assert "Default: " in leaf["description"], path
    assert schema["additionalProperties"] is False
    rendered(values, chart)


@pytest.mark.parametrize("chart", [OPERATOR, CRDS], ids=lambda chart: chart.name)
def test_the_readme_has_a_row_for_each_value(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", (chart / "README.md").read_text(), re.MULTILINE)

    assert rows == [(path, leaf["description"]) for path, leaf in leaves(schema)]


def test_the_operator_is_started_by_its_command_line() -> None:
    values = {
        "watchNamespaces": ["serving", "batch"],
        "image": {"tag": "1.2", "pullPolicy": "Always"},
        "observability": {"podMonitors": {"labels": {"release": "prometheus"}}},
    }
    [container] = pod_of(rendered(values))["containers"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}

    assert container["command"] == ["multislo", "operator"]
    assert container["args"] == [
        "--key-secret=multislo-key",
        "--own-deployment=multislo",
        "--host=0.0.0.0",
        "--metrics-port=8080",
        "--log-format=text",
        "--image-pull-policy=Always",
        "--pod-monitor-label=release=prometheus",
        "--namespace=serving",
        "--namespace=batch",
    ]
    assert environment.keys() == {"POD_NAME", "POD_NAMESPACE", "MULTISLO_IMAGE"}
    assert environment["MULTISLO_IMAGE"] == container["image"] == "multislo:1.2"


def test_a_digest_wins_over_a_tag() -> None:
    digest = f"sha256:{'0' * 64}"
    [container] = pod_of(rendered({"image": {"repository": "host:5000/multislo", "tag": "1.2", "digest": digest}}))[
        "containers"
    ]

    assert container["image"] == f"host:5000/multislo@{digest}"


def test_the_pod_keeps_the_standard_restricted_and_can_write_only_to_tmp() -> None:
    pod = pod_of(rendered())
    [container] = pod["containers"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & (pod["securityContext"].keys() | container["securityContext"])
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")] == ["/tmp"]


def test_any_user_can_read_the_key_and_a_policy_that_wants_a_user_gets_one() -> None:
    plain = pod_of(rendered({"key": {"existingSecret": "mine"}}))
    (key,) = [volume["secret"] for volume in plain["volumes"] if volume["name"] == "key"]
    own = pod_of(rendered({"podSecurityContext": {"runAsUser": 65532, "seccompProfile": None}, "podUsers": "fixed"}))

    assert key["defaultMode"] == 0o444
    assert not [word for word in plain["containers"][0]["args"] if "--pod-users" in word]
    assert own["securityContext"] == {"runAsNonRoot": True, "runAsUser": 65532}
    assert "--pod-users=fixed" in own["containers"][0]["args"]


def test_secrets_may_be_created_and_its_own_key_read() -> None:
    objects = rendered()
    rules = set(rules_of(objects, "Role", "ClusterRole"))

    assert {verb for group, resource, verb in rules if resource == "secrets"} == {"create", "get"}
    reads = [
        rule
        for each in objects
        for rule in each.get("rules", [])
        if rule["resources"] == ["secrets"] and "get" in rule["verbs"]
    ]
    assert [rule["resourceNames"] for rule in reads] == [["multislo-key"]]
    theirs = rendered({"key": {"existingSecret": "mine"}})
    assert {verb for group, resource, verb in rules_of(theirs, "Role", "ClusterRole") if resource == "secrets"} == {
        "create"
    }
    assert not {rule for rule in rules if "*" in rule}
    assert not {rule for rule in rules if rule[0] == "rbac.authorization.k8s.io"}


def test_with_namespaces_of_its_own_the_operator_has_no_right_in_the_cluster_as_a_whole() -> None:
    everywhere = rendered()
    here = rendered({"rbac": {"namespaced": True}})
    there = rendered({"watchNamespaces": ["serving", "batch"], "rbac": {"namespaced": True}})

    cluster_wide = set(rules_of(everywhere, "ClusterRole"))
    for objects, namespaces in ((here, {"multislo-system"}), (there, {"serving", "batch"})):
        assert not [each for each in objects if each["kind"].startswith("Cluster")]
        roles = [each for each in objects if each["kind"] == "Role" and not each["metadata"]["name"].endswith("-lease")]
        assert {each["metadata"]["namespace"] for each in roles} == namespaces
        assert all(set(rules_of([role], "Role")) == cluster_wide for role in roles)


def test_the_lease_of_the_leader_is_at_home_and_the_claims_are_where_the_fleets_are() -> None:
    objects = rendered({"watchNamespaces": ["serving"]})
    named = {
        (each["metadata"]["namespace"], *rule["resourceNames"])
        for each in objects
        for rule in each.get("rules", [])
        if rule["resources"] == ["leases"] and "resourceNames" in rule
    }

    assert named == {("multislo-system", "multislo-operator"), ("serving", "multislo-fleets")}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_two_renderings_are_the_same_and_hold_nothing_that_the_operator_writes(values: dict[str, Any]) -> None:
    """So that Argo CD and Flux find no difference after a sync."""
    objects = rendered(values)

    assert objects == rendered(values)
    assert not {each["kind"] for each in objects} & {"Lease", "Secret"}


def test_a_key_of_the_users_is_mounted_and_none_is_made() -> None:
    objects = rendered({"key": {"existingSecret": "mine"}})

    assert not [each for each in objects if each["kind"] == "Secret"]
    assert pod_of(objects)["volumes"][0]["secret"]["secretName"] == "mine"


def test_prometheus_alone_is_let_in_where_its_namespace_is_known() -> None:
    [rule] = only(rendered({"observability": {"namespace": "monitoring"}}), "NetworkPolicy")["spec"]["ingress"]

    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert [port["port"] for port in rule["ports"]] == ["metrics"]


@pytest.mark.parametrize(
    ("release", "name"), [("multislo", "multislo"), ("slo", "slo-multislo"), ("my-multislo", "my-multislo")]
)
def test_everything_is_named_after_the_release(release: str, name: str) -> None:
    objects = rendered(name=release)

    assert only(objects, "Deployment")["metadata"]["name"] == name
    assert all(each["metadata"]["name"].startswith(name) for each in objects)


def test_the_fleets_network_policies_know_the_operator_by_its_labels() -> None:
    labels = only(rendered(), "Deployment")["spec"]["template"]["metadata"]["labels"]

    assert labels["app.kubernetes.io/name"] == "multislo"
    assert labels["app.kubernetes.io/component"] == "operator"


def test_the_chart_of_the_kind_makes_the_committed_crd_and_keeps_it() -> None:
    kept = only(rendered(chart=CRDS), "CustomResourceDefinition")
    let_go = only(rendered({"keep": False, "aggregateRoles": False}, chart=CRDS), "CustomResourceDefinition")

    assert kept["spec"] == crd()["spec"]
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in let_go["metadata"]


def test_who_may_edit_in_a_namespace_may_edit_its_fleets_and_who_may_view_may_not() -> None:
    roles = {each["metadata"]["name"]: each for each in rendered(chart=CRDS) if each["kind"] == "ClusterRole"}

    assert roles["multislo-edit"]["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert set(roles["multislo-view"]["rules"][0]["verbs"]) == {"get", "list", "watch"}
    assert not [
        rule for role in roles.values() for rule in role["rules"] if "multisloservings/status" in rule["resources"]
    ]
