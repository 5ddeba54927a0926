"""The operator, installed by its chart from the product's image, with real engines, routers and traffic through the Service."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import helm_python as helm
import openai
import pytest_asyncio

from cluster.api import Object
from cluster.node import NodeCluster
from cluster.scene import Scene, condition, wait_for

CHARTS = Path(__file__).parents[2] / "charts"
RESTRICTED = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
FLEET: Object = {
    "apiVersion": "multislo.dev/v1alpha1",
    "kind": "MultiSLOServing",
    "metadata": {"name": "llama"},
    "spec": {
        "model": {"name": "meta-llama/Llama-3.1-8B-Instruct", "servedNames": ["llama"]},
        "profile": "llama-3.1-8b-h200-tp1",
        "engine": {"type": "Emulated", "emulation": {"startup": "1s"}},
        "tiers": [
            {"name": "interactive", "slo": {"ttft": "500ms", "tpot": "50ms"}, "instances": {"min": 1, "max": 2}},
            {"name": "batch", "slo": {"ttft": "1s", "tpot": "100ms"}, "instances": {"min": 1, "max": 2}},
        ],
        "scaling": {"acceleratorsMax": 4, "scaleDown": {"drainTimeout": "30s"}},
    },
}


@pytest_asyncio.fixture(loop_scope="session")
async def operated(scene: Scene, node_cluster: NodeCluster) -> AsyncIterator[Scene]:
    """A scene whose namespace, PodSecurity "restricted", has the operator of the chart, Ready."""
    await scene.api.patch(f"/api/v1/namespaces/{scene.namespace}", RESTRICTED)
    repository, _, tag = node_cluster.image.rpartition(":")
    values = {"image": {"repository": repository, "tag": tag}, "rbac": {"namespaced": True}, "replicas": 1}
    with (
        helm.Config(kubeconfig_path=node_cluster.kubeconfig, namespace="default") as kinds,
        helm.Config(kubeconfig_path=node_cluster.kubeconfig, namespace=scene.namespace) as release,
    ):
        kinds.uninstall("multislo-crds", ignore_not_found=True)
        kinds.install(CHARTS / "multislo-crds", "multislo-crds", namespace="default")
        await wait_for("the kind is served", lambda: scene.api.get("/apis/multislo.dev/v1alpha1/multisloservings"))
        release.install(CHARTS / "multislo", "multislo", values)

        async def ready() -> None:
            assert scene.get("deployment", "multislo")["status"].get("readyReplicas") == 1

        await wait_for("the operator is Ready", ready, 90)
        yield scene
        scene.kubectl("delete", "mslo", "--all", "--wait=false")
        release.uninstall("multislo")
        kinds.uninstall("multislo-crds")


async def test_an_applied_manifest_serves_a_chat_through_its_service(
    operated: Scene, node_cluster: NodeCluster
) -> None:
    began = time.monotonic()
    operated.apply(FLEET)

    async def ready() -> dict[str, Any]:
        found = operated.get("mslo", "llama")
        assert condition(found, "Ready").get("status") == "True", found.get("status")
        return found

    await wait_for("the fleet is Ready", ready, 120)
    print(f"{time.monotonic() - began:.1f} s from apply to Ready")
    base = f"http://{node_cluster.open_service(operated.namespace, 'llama', 8000)}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0, timeout=60) as client:
        for tier in ("interactive", "batch"):
            answer = await client.chat.completions.create(
                model="llama", messages=[{"role": "user", "content": "Hello"}], max_tokens=9,
                extra_headers={"x-slo-tier": tier},
            )  # fmt: skip
            assert answer.usage is not None
            assert answer.usage.completion_tokens > 0
