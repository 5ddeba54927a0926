"""Fixtures of the scenarios on a real node: one cluster for the session, a scene for each test, as in the folder above; the operator by
its chart, for one test alone or for a whole file.

    async def test_(scene: Scene, node_cluster: NodeCluster): ...

`scene.apply` takes manifests with `node_cluster.image`; `node_cluster.open_service` leads to a Service from here.
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import helm_python as helm
import pytest
import pytest_asyncio

from cluster.api import Api
from cluster.binaries import NotHere
from cluster.containers import check_tools
from cluster.node import TOOLS, NodeCluster
from cluster.node import node_cluster as started
from cluster.node_network import Traces, nothing_left
from cluster.processes import Ended
from cluster.scene import Scene, existing_cluster, wait_for

CANNOT_RUN = 2
"""The exit code where this machine cannot run the suite: it never passes by skipping."""
CHARTS = Path(__file__).parents[2] / "charts"
ANY_USER = {"runAsUser": 1000660000, "runAsGroup": 0, "fsGroup": 1000660000}
"""As OpenShift's restricted-v2 gives it: a number that stands in no image, and group 0."""
RESTRICTED = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}


@pytest.fixture(scope="session")
def node_cluster() -> Iterator[NodeCluster]:
    """At the end of the session it fails with whatever the node left on this machine."""
    try:
        if existing_cluster() is None:
            check_tools(TOOLS)  # Before the machine is looked at with them.
        with nothing_left(Traces.seen()), started(existing_cluster()) as running:
            yield running
    except NotHere as error:
        pytest.exit(f"cannot run here: {error}", returncode=CANNOT_RUN)
    except (Ended, TimeoutError) as error:
        pytest.exit(f"the cluster did not come up, or did not go: {error}", returncode=CANNOT_RUN)


@pytest.fixture(scope="session")
def cluster(node_cluster: NodeCluster) -> NodeCluster:
    """What `api` and `scene` of the folder above stand on."""
    return node_cluster


@pytest.fixture(scope="session", autouse=True)
def _checkout_of_root() -> None:
    """git refuses a checkout of another user, as CI's may be."""
    os.environ.update(GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*")


@pytest_asyncio.fixture(loop_scope="session")
async def operated(scene: Scene, node_cluster: NodeCluster) -> AsyncIterator[Scene]:
    """A scene whose namespace, PodSecurity "restricted", has the operator of the chart, Ready, with rights in this namespace alone."""
    async with installed(node_cluster, scene.api, scene.namespace, namespaced=True):
        yield scene
        scene.kubectl("delete", "mslo", "--all", "--wait=false")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def operator(node_cluster: NodeCluster, api: Api) -> AsyncIterator[str]:
    """The namespace of an operator that looks after all namespaces, for the tests of one file."""
    name = f"e2e-{os.getpid() % 10000}-operator"
    await api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    async with installed(node_cluster, api, name, namespaced=False):
        yield name
    await api.delete(f"/api/v1/namespaces/{name}")


@asynccontextmanager
async def installed(node_cluster: NodeCluster, api: Api, namespace: str, *, namespaced: bool) -> AsyncIterator[None]:
    """Both charts, and the operator is Ready. Taken away at the end, resources and all."""
    await api.patch(f"/api/v1/namespaces/{namespace}", RESTRICTED)
    repository, _, tag = node_cluster.image.rpartition(":")
    values = {"image": {"repository": repository, "tag": tag}, "rbac": {"namespaced": namespaced}, "replicas": 1}
    if not namespaced:
        values["podSecurityContext"] = ANY_USER
    with (
        helm.Config(kubeconfig_path=node_cluster.kubeconfig, namespace="default") as kinds,
        helm.Config(kubeconfig_path=node_cluster.kubeconfig, namespace=namespace) as release,
    ):
        kinds.uninstall("multislo-crds", ignore_not_found=True)
        kinds.install(CHARTS / "multislo-crds", "multislo-crds", namespace="default")
        await wait_for("the kind is served", lambda: api.get("/apis/multislo.dev/v1alpha1/multisloservings"))
        release.install(CHARTS / "multislo", "multislo", values)

        async def ready() -> None:
            found = await api.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/multislo")
            assert found["status"].get("readyReplicas") == 1, found["status"]

        try:
            await wait_for("the operator is Ready", ready)
            yield
        finally:
            release.uninstall("multislo")
            kinds.uninstall("multislo-crds")
