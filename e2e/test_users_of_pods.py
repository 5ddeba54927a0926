"""Which user the pods run as: vLLM's have one of ours, since its image starts as root; on OpenShift no pod names one."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio

from cluster.api import Object
from cluster.fleets import CHAT, Fleets, fleet
from cluster.scene import Scene, wait_for

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CONSTRAINTS: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "securitycontextconstraints.security.openshift.io",
        # The API server lets only those who say so define kinds of this group.
        "annotations": {"api-approved.kubernetes.io": "unapproved, of a test"},
    },
    "spec": {
        "group": "security.openshift.io",
        "scope": "Cluster",
        "names": {
            "kind": "SecurityContextConstraints",
            "listKind": "SecurityContextConstraintsList",
            "plural": "securitycontextconstraints",
            "singular": "securitycontextconstraint",
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
OF_A_USER = {"runAsUser", "runAsGroup", "fsGroup"}


@pytest_asyncio.fixture(loop_scope="session")
async def fleets(scene: Scene, tmp_path: Path) -> AsyncIterator[Fleets]:
    async with aiohttp.ClientSession() as session:
        yield Fleets.install(scene, session, tmp_path)


@pytest_asyncio.fixture(loop_scope="session")
async def openshift(scene: Scene) -> AsyncIterator[None]:
    """As far as an operator can see."""
    await scene.api.create(CRDS, CONSTRAINTS)
    await wait_for("the kind is served", lambda: scene.api.get("/apis/security.openshift.io/v1"))
    yield
    await scene.api.delete(f"{CRDS}/{CONSTRAINTS['metadata']['name']}")

    async def gone() -> None:
        assert await scene.api.find("/apis/security.openshift.io/v1") is None

    await wait_for("the kind is gone", gone)


async def users(fleets: Fleets) -> dict[str, Object]:
    """What the pods' templates say of it."""
    await fleets.says("Ready", "Serving")
    found = {}
    for name in ("fleet-chat", "fleet-router"):
        template = (await fleets.deployment(name))["spec"]["template"]["spec"]
        securities = [template["securityContext"], *(c["securityContext"] for c in template["containers"])]
        assert template["securityContext"]["runAsNonRoot"] is True
        found[name] = {key: value for each in securities for key, value in each.items() if key in OF_A_USER}
    return found


async def test_on_a_plain_cluster_vllm_has_a_user_that_is_not_root(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    fleets.operator()
    fleets.scene.apply(fleet(tiers=[CHAT]))
    assert await users(fleets) == {
        "fleet-chat": {"runAsUser": 2000, "runAsGroup": 0, "fsGroup": 0},
        "fleet-router": {},
    }


async def test_on_openshift_no_pod_names_a_user(fleets: Fleets, openshift: None) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    operator = fleets.operator()
    fleets.scene.apply(fleet(tiers=[CHAT]))
    assert await users(fleets) == {"fleet-chat": {}, "fleet-router": {}}
    assert "the cluster gives pods their user and group" in operator.text()
