"""The operator, installed by its chart from the product's image, with real engines, routers and traffic through the Service."""

import time
from typing import Any

import openai

from cluster.api import Object
from cluster.node import NodeCluster
from cluster.scene import Scene, condition, wait_for

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
