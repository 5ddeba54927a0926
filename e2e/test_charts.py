"""The charts on a real API server, by Helm: installed, upgraded, uninstalled; and what the operator may do under the rights that the chart
gives it, asked of the server itself."""

import base64
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import pytest_asyncio
import yaml

from cluster.api import Api, Object, Refused
from cluster.kwok import KwokCluster
from cluster.scene import KubectlFailed, Scene, condition, wait_for

ROOT = Path(__file__).parents[1]
OPERATOR, CRDS = ROOT / "charts" / "multislo", ROOT / "charts" / "multislo-crds"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/multisloservings.multislo.dev"
EVERYTHING = (
    "deployments,replicasets,pods,services,configmaps,serviceaccounts,secrets,poddisruptionbudgets,networkpolicies,roles,rolebindings,"
    "leases"
)


def config(cluster: KwokCluster, namespace: str) -> helm.Config:
    return helm.Config(kubeconfig_path=cluster.kubeconfig, namespace=namespace)


@pytest_asyncio.fixture(scope="module", autouse=True, loop_scope="session")
async def kind(cluster: KwokCluster, api: Api) -> AsyncIterator[None]:
    """The kind by its chart; where the cluster has it, Helm is told that it is its own."""
    metadata = {
        "annotations": {"meta.helm.sh/release-name": "multislo-crds", "meta.helm.sh/release-namespace": "default"},
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
    }
    if await api.find(CRD) is not None:
        await api.patch(CRD, {"metadata": metadata})
    with config(cluster, "default") as release:
        release.uninstall("multislo-crds", ignore_not_found=True)
        release.install(CRDS, "multislo-crds", namespace="default")
        await wait_for("the kind is served", lambda: api.get("/apis/multislo.dev/v1alpha1/multisloservings"))
        yield
        release.uninstall("multislo-crds")


async def objects(scene: Scene) -> set[str]:
    """kind/name of all in the namespace but what every namespace has."""
    names = scene.kubectl("get", EVERYTHING, "--output=name").split()
    return {name for name in names if name not in ("configmap/kube-root-ca.crt", "serviceaccount/default")}


async def test_an_uninstall_leaves_nothing_but_what_the_user_owns(scene: Scene, legal: Object) -> None:
    before = await objects(scene)
    with config(scene.cluster, scene.namespace) as release:
        release.install(OPERATOR, "multislo", {"watchNamespaces": [scene.namespace]})
        installed = await objects(scene)
        scene.apply(legal)
        release.uninstall("multislo")

    assert {"deployment.apps/multislo", "role.rbac.authorization.k8s.io/multislo"} <= installed

    async def gone() -> None:
        assert await objects(scene) == before

    await wait_for("all of the release is gone", gone)
    assert scene.get("mslo", "llama")["spec"]["model"]["name"] == legal["spec"]["model"]["name"]
    assert (await scene.api.get(CRD))["metadata"]["name"] == "multisloservings.multislo.dev"


def rendered(release: str, namespace: str, values: dict[str, Any]) -> str:
    """As Argo CD and Flux render it: without a cluster."""
    with helm.Chart.load(OPERATOR) as chart:
        files = chart.render(values, name=release, namespace=namespace)
    objects = [each for path, text in files.items() if path.endswith(".yaml") for each in yaml.safe_load_all(text)]
    return yaml.safe_dump_all([each for each in objects if each])


@pytest.mark.parametrize("how", [[], ["--server-side"]], ids=["by the client", "by the server"])
async def test_after_a_sync_nothing_of_chart_and_fleet_differs(scene: Scene, how: list[str]) -> None:
    await scene.add_nodes(1, gpus=8, processes=True)
    fleet = yaml.safe_load((ROOT / "examples" / "kubernetes" / "emulated.yaml").read_text())
    fleet["metadata"] = {"name": "llama", "namespace": scene.namespace}
    values = {"watchNamespaces": [scene.namespace], "image": {"tag": "e2e"}, "replicas": 1}
    synced = f"{rendered('multislo', scene.namespace, values)}\n---\n{yaml.safe_dump(fleet)}"
    scene.kubectl("apply", *how, "-f", "-", given=synced)

    async def fleet_is_ready() -> None:
        ready = condition(scene.get("mslo", "llama"), "Ready")
        assert ready.get("status") == "True", ready

    await wait_for("the fleet is ready", fleet_is_ready)
    again = f"{rendered('multislo', scene.namespace, values)}\n---\n{yaml.safe_dump(fleet)}"
    scene.kubectl("diff", *how, "-f", "-", given=again)  # It exits with 1 where something differs.


async def test_a_cluster_wide_install_leaves_nothing_in_the_cluster_either(scene: Scene) -> None:
    name = f"op-{scene.namespace}"
    with config(scene.cluster, scene.namespace) as release:
        release.install(OPERATOR, name, {"fullnameOverride": name})
        there = scene.kubectl("get", "clusterroles,clusterrolebindings", "--output=name")
        release.uninstall(name)
    left = scene.kubectl("get", "clusterroles,clusterrolebindings", "--output=name")

    assert there.count(name) == 2
    assert left.count(name) == 0


async def test_an_upgrade_to_the_next_version_rolls_the_operator(scene: Scene, tmp_path: Path) -> None:
    values = {"watchNamespaces": [scene.namespace]}
    following = tmp_path / "multislo"
    shutil.copytree(OPERATOR, following)
    meta = yaml.safe_load((following / "Chart.yaml").read_text())
    (following / "Chart.yaml").write_text(yaml.safe_dump(meta | {"version": "0.1.1", "appVersion": "0.1.1"}))
    with config(scene.cluster, scene.namespace) as release:
        release.install(OPERATOR, "multislo", values)
        release.upgrade(following, "multislo", values | {"replicas": 3})
        upgraded = scene.get("deployment", "multislo")
        release.rollback("multislo")
        rolled_back = scene.get("deployment", "multislo")
        release.uninstall("multislo")

    assert upgraded["spec"]["replicas"] == 3
    assert upgraded["spec"]["template"]["spec"]["containers"][0]["image"] == "multislo:0.1.1"
    assert upgraded["metadata"]["generation"] == 2
    assert rolled_back["spec"]["template"]["spec"]["containers"][0]["image"] == f"multislo:{meta['appVersion']}"


async def test_the_operator_makes_its_key_once_and_a_kept_one_is_found_by_the_next_install(scene: Scene) -> None:
    await scene.add_nodes(1, processes=True)
    values = {"watchNamespaces": [scene.namespace], "key": {"keep": True}, "image": {"tag": "e2e"}, "replicas": 1}

    async def made() -> Object:
        return await scene.api.get(f"/api/v1/namespaces/{scene.namespace}/secrets/multislo-key")

    async def leads() -> None:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{scene.namespace}/leases/multislo-operator"
        assert (await scene.api.get(path))["spec"]["holderIdentity"].startswith("multislo-")

    with config(scene.cluster, scene.namespace) as release:
        release.install(OPERATOR, "multislo", values)
        key = await wait_for("the operator has made its key", made)
        release.uninstall("multislo")
        release.install(OPERATOR, "multislo", values)
        await wait_for("the next install leads", leads)
        again = await made()
        release.uninstall("multislo")

    assert again["metadata"]["uid"] == key["metadata"]["uid"]
    assert len(base64.b64decode(key["data"]["key"])) == 32


async def test_pod_security_restricted_lets_the_operator_in(scene: Scene) -> None:
    enforce = {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/enforce-version": "latest",
    }
    await scene.api.patch(f"/api/v1/namespaces/{scene.namespace}", {"metadata": {"labels": enforce}})
    with config(scene.cluster, scene.namespace) as release:
        release.install(OPERATOR, "multislo", {"watchNamespaces": [scene.namespace]})

        async def pods() -> None:
            assert len(await scene.pods(**{"app.kubernetes.io/component": "operator"})) == 2

        await wait_for("both pods are admitted", pods)
        release.uninstall("multislo")


async def test_the_installed_operator_brings_a_fleet_up_under_the_rights_of_the_chart(scene: Scene) -> None:
    await scene.add_nodes(1, gpus=8, processes=True)
    values = {"watchNamespaces": [scene.namespace], "image": {"tag": "e2e"}}
    fleet = yaml.safe_load((ROOT / "examples" / "kubernetes" / "emulated.yaml").read_text())
    with config(scene.cluster, scene.namespace) as release:
        release.install(OPERATOR, "multislo", values)
        scene.apply(fleet | {"metadata": {"name": "llama", "namespace": scene.namespace}})

        async def both_run() -> None:
            deployment = scene.get("deployment", "multislo")
            assert deployment["status"].get("readyReplicas") == 2, deployment["status"]

        async def one_leads() -> None:
            lease = scene.get("lease", "multislo-operator")
            assert lease["spec"]["holderIdentity"].startswith("multislo-"), lease

        async def fleet_is_ready() -> None:
            ready = condition(scene.get("mslo", "llama"), "Ready")
            assert ready.get("status") == "True", ready

        await wait_for("both replicas are ready", both_run)
        await wait_for("one of them leads", one_leads)
        await wait_for("the fleet is ready", fleet_is_ready)
        operators = await scene.pods(**{"app.kubernetes.io/component": "operator"})
        logs = [scene.pod_log(pod["metadata"]["name"], "operator") for pod in operators]
        release.upgrade(OPERATOR, "multislo", values | {"podAnnotations": {"changed": "yes"}})
        holder = scene.get("lease", "multislo-operator")["spec"].get("holderIdentity")
        release.uninstall("multislo")

    async def the_fleet_alone_is_left() -> None:
        left = {name.partition("/")[2] for name in await objects(scene)}
        assert all(name.startswith("llama-") or name == "llama" for name in left), left

    await wait_for("all of the release is gone, the lease too, and the fleet is there", the_fleet_alone_is_left)
    assert condition(scene.get("deployment", "llama-router"), "Available")["status"] == "True", (
        "a fleet serves on without its operator"
    )
    assert holder, "an upgrade must not take the lease from its holder"
    assert not [line for log in logs for line in log.splitlines() if "orbidden" in line]


# -- rights ------------------------------------------------------------------------------------------------------------------

HERE, ELSEWHERE = "here", "default"
ALLOWED: list[tuple[str, str, str]] = [
    # (verbs, resource, where)
    ("get list watch", "multisloservings.multislo.dev", HERE),
    ("patch", "multisloservings.multislo.dev/status", HERE),
    ("get list watch create patch delete", "deployments.apps", HERE),
    ("patch", "deployments.apps/scale", HERE),
    ("get list watch", "replicasets.apps", HERE),
    ("get list watch create patch delete", "pods", HERE),
    ("patch", "pods/status", HERE),
    ("get list watch create patch delete", "services", HERE),
    ("get list watch create patch delete", "configmaps", HERE),
    ("get list watch create patch delete", "serviceaccounts", HERE),
    ("get list watch create patch delete", "poddisruptionbudgets.policy", HERE),
    ("get list watch create patch delete", "networkpolicies.networking.k8s.io", HERE),
    ("get create patch delete", "podmonitors.monitoring.coreos.com", HERE),
    ("create", "secrets", HERE),
    ("create", "events.events.k8s.io", HERE),
    ("create", "leases.coordination.k8s.io", HERE),
    ("get update", "leases.coordination.k8s.io:multislo-operator", HERE),
]
FORBIDDEN: list[tuple[str, str, str]] = [
    ("create update patch delete deletecollection", "multisloservings.multislo.dev", HERE),
    ("get update", "multisloservings.multislo.dev/status", HERE),
    ("get list watch update patch delete deletecollection", "secrets", HERE),
    ("update deletecollection", "pods", HERE),
    ("create get", "pods/exec", HERE),
    ("create get", "pods/portforward", HERE),
    ("get", "pods/log", HERE),
    ("create", "pods/eviction", HERE),
    ("create", "pods/binding", HERE),
    ("patch update", "pods/ephemeralcontainers", HERE),
    ("update deletecollection", "deployments.apps", HERE),
    ("get update", "deployments.apps/scale", HERE),
    ("get list watch update patch delete", "events.events.k8s.io", HERE),
    ("create update patch delete", "replicasets.apps", HERE),
    ("create update patch delete", "daemonsets.apps", HERE),
    ("create", "jobs.batch", HERE),
    ("create", "serviceaccounts/token", HERE),
    ("impersonate", "serviceaccounts", HERE),
    ("get list create bind escalate", "roles.rbac.authorization.k8s.io", HERE),
    ("get list create", "rolebindings.rbac.authorization.k8s.io", HERE),
    ("get list watch update patch delete", "leases.coordination.k8s.io", HERE),
    ("get update", "leases.coordination.k8s.io:somebody-elses", HERE),
    ("get list watch", "horizontalpodautoscalers.autoscaling", HERE),
    ("get list watch", "nodes", ""),
    ("get list watch", "namespaces", ""),
    ("get list watch create patch delete", "customresourcedefinitions.apiextensions.k8s.io", ""),
    ("get list create bind escalate", "clusterroles.rbac.authorization.k8s.io", ""),
    ("get list watch", "multisloservings.multislo.dev", ELSEWHERE),
    ("get list watch create patch delete", "deployments.apps", ELSEWHERE),
    ("get list watch patch delete", "pods", ELSEWHERE),
    ("create", "secrets", ELSEWHERE),
    ("create get update", "leases.coordination.k8s.io", ELSEWHERE),
    ("get list watch", "multisloservings.multislo.dev", ""),
]


async def may(api: Api, user: str, verb: str, resource: str, namespace: str) -> bool:
    """What `kubectl auth can-i VERB RESOURCE --as USER` asks. `resource` as in `deployments.apps/scale` or `leases.GROUP:NAME`."""
    resource, _, name = resource.partition(":")
    resource, _, subresource = resource.partition("/")
    plural, _, group = resource.partition(".")
    attributes = {
        "verb": verb,
        "group": group,
        "resource": plural,
        "subresource": subresource,
        "name": name,
        "namespace": namespace,
    }
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{user.split(':')[2]}", "system:authenticated"]
    review: dict[str, Any] = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": groups, "resourceAttributes": {k: v for k, v in attributes.items() if v}},
    }
    answer = await api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


async def test_the_operator_may_do_what_it_needs_in_its_namespaces_and_nothing_else(scene: Scene) -> None:
    user = f"system:serviceaccount:{scene.namespace}:multislo"
    with config(scene.cluster, scene.namespace) as release:
        release.install(OPERATOR, "multislo", {"watchNamespaces": [scene.namespace]})
        asked = [
            (verb, resource, scene.namespace if where == HERE else where, expected)
            for table, expected in ((ALLOWED, True), (FORBIDDEN, False))
            for verbs, resource, where in table
            for verb in verbs.split()
        ]
        wrong = [question for question in asked if await may(scene.api, user, *question[:3]) is not question[3]]
        by_kubectl = scene.kubectl("auth", "can-i", "patch", "pods", "--subresource=status", f"--as={user}").strip()
        with pytest.raises(KubectlFailed):  # It exits with 1 where the answer is no.
            scene.kubectl("auth", "can-i", "get", "secrets", f"--as={user}")
        release.uninstall("multislo")

    assert wrong == []
    assert by_kubectl == "yes"


async def test_cluster_wide_the_rights_are_the_same_in_every_namespace_and_the_lease_stays_at_home(
    scene: Scene,
) -> None:
    name = f"op-{scene.namespace}"
    user = f"system:serviceaccount:{scene.namespace}:{name}"
    with config(scene.cluster, scene.namespace) as release:
        release.install(OPERATOR, name, {"fullnameOverride": name})
        everywhere = [
            await may(scene.api, user, verb, resource, ELSEWHERE)
            for verbs, resource, _ in ALLOWED
            if not resource.startswith("leases")
            for verb in verbs.split()
        ]
        lease = await may(scene.api, user, "get", "leases.coordination.k8s.io:multislo-operator", ELSEWHERE)
        secrets = [await may(scene.api, user, verb, "secrets", ELSEWHERE) for verb in ("get", "list", "watch", "patch")]
        nodes = await may(scene.api, user, "list", "nodes", "")
        release.uninstall(name)

    assert all(everywhere)
    assert not lease
    assert not any(secrets)
    assert not nodes


async def test_who_may_edit_in_a_namespace_may_make_a_fleet_there(scene: Scene, legal: Object) -> None:
    scene.kubectl("create", "serviceaccount", "editor")
    scene.kubectl("create", "rolebinding", "editor", "--clusterrole=edit", f"--serviceaccount={scene.namespace}:editor")
    user = f"system:serviceaccount:{scene.namespace}:editor"

    async def aggregated() -> None:
        assert await may(scene.api, user, "create", "multisloservings.multislo.dev", scene.namespace)

    await wait_for("the role edit knows the kind", aggregated)
    assert not await may(scene.api, user, "patch", "multisloservings.multislo.dev/status", scene.namespace)


@pytest.fixture
def legal(scene: Scene) -> Object:
    document: Object = yaml.safe_load((ROOT / "examples" / "minimal.yaml").read_text())
    document["metadata"]["namespace"] = scene.namespace
    return document


async def test_wrong_values_are_refused_before_anything_is_made(scene: Scene) -> None:
    before = await objects(scene)
    with config(scene.cluster, scene.namespace) as release, pytest.raises(helm.HelmError) as refused:
        release.install(OPERATOR, "multislo", {"replicas": "two"})

    assert "at '/replicas': got string, want integer" in str(refused.value)
    assert await objects(scene) == before
    with pytest.raises(Refused):
        await scene.api.get(f"/apis/apps/v1/namespaces/{scene.namespace}/deployments/multislo")
