"""The suite's own ground: a real node runs the product's image as a cluster would, and goes without a trace."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from cluster.api import Object
from cluster.node import GPU, GPUS, NodeCluster
from cluster.node_network import nothing_left
from cluster.processes import until
from cluster.scene import Scene, condition, wait_for

HERE = Path(__file__).parent
TOKEN = "a-token-of-the-fleet-a-token-of-the-fleet"
LONG = 1200
"""Tokens of an answer that outlives what is done to it meanwhile: 7 ms each."""
ENFORCE = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}


class Fleet:
    """One router and one engine of the product's image, in a namespace that refuses what PodSecurity does not call restricted."""

    def __init__(self, scene: Scene, node_cluster: NodeCluster) -> None:
        self.scene, self.node_cluster = scene, node_cluster

    async def up(self) -> str:
        """The base URL of the Service, once it has answered."""
        await self.scene.api.patch(f"/api/v1/namespaces/{self.scene.namespace}", ENFORCE)
        manifest = (HERE / "router_and_engine.yaml").read_text()
        self.scene.apply(manifest.replace("IMAGE", self.node_cluster.image))
        engine, _ = await self.ready("engine"), await self.ready("router")
        await self.tell([engine])
        return f"http://{self.node_cluster.open_service(self.scene.namespace, 'llama', 8000)}/v1"

    async def ready(self, app: str) -> dict[str, Any]:
        async def check() -> dict[str, Any]:
            (found,) = await self.scene.pods(app=app)
            assert condition(found, "Ready").get("status") == "True", found["status"]
            return found

        return await wait_for(f"the {app} is Ready", check)

    async def tell(self, engines: list[dict[str, Any]], state: str = "ready") -> None:
        """As the operator does: the whole fleet, to the router's admin listener."""
        (router,) = await self.scene.pods(app="router")
        admin = self.node_cluster.open_pod(self.scene.namespace, router["metadata"]["name"], 9090)
        instances = [
            {
                "id": pod["metadata"]["name"],
                "url": f"http://{pod['status']['podIP']}:8000",
                "tier": "interactive",
                "state": state,
            }
            for pod in engines
        ]
        headers = {"x-multislo-fleet-token": TOKEN}
        async with (
            aiohttp.ClientSession() as session,
            session.put(f"http://{admin}/instances", json={"instances": instances}, headers=headers) as answer,
        ):
            assert answer.status == 200, await answer.text()


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(scene: Scene, node_cluster: NodeCluster) -> AsyncIterator[Fleet]:
    yield Fleet(scene, node_cluster)


async def stream(base: str, tokens: int, begun: asyncio.Event | None = None) -> int:
    """A chat answer's length in tokens, as its usage says at the end."""
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0, timeout=60) as client:
        counted = 0
        async for chunk in await client.chat.completions.create(
            model="llama",
            messages=[{"role": "user", "content": "Tell me a story."}],
            max_tokens=tokens,
            extra_body={"ignore_eos": True},
            stream=True,
            stream_options={"include_usage": True},
        ):
            if begun is not None and chunk.choices:
                begun.set()
            if chunk.usage is not None:
                counted = chunk.usage.completion_tokens
        return counted


async def test_accelerators_are_counted_and_a_pod_that_finds_none_waits(
    scene: Scene, node_cluster: NodeCluster
) -> None:
    container = {
        "name": "main",
        "image": node_cluster.image,
        "command": ["sleep", "1000"],
        "resources": {"limits": {GPU: str(GPUS // 2)}},
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    scene.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{index}"}, "spec": spec} for index in range(3)
    )

    async def two_run() -> None:
        pods = await scene.pods()
        running = [p for p in pods if condition(p, "Ready").get("status") == "True"]
        refused = [p for p in pods if f"Insufficient {GPU}" in condition(p, "PodScheduled").get("message", "")]
        assert (len(running), len(refused)) == (2, 1), [p["status"] for p in pods]

    await wait_for("two pods run and one waits", two_run)


async def test_a_service_answers_a_streaming_chat_from_pods_that_may_nothing(
    fleet: Fleet, node_cluster: NodeCluster
) -> None:
    began = time.monotonic()
    base = await fleet.up()
    assert await stream(base, 50) == 50
    print(f"{time.monotonic() - began:.1f} s from apply to the answer")

    (engine,) = await fleet.scene.pods(app="engine")
    look = "import os; print(os.getuid(), os.getgid(), os.access('/', os.W_OK), os.statvfs('/').f_flag & os.ST_RDONLY)"
    name, namespace = engine["metadata"]["name"], fleet.scene.namespace
    said = node_cluster.kubectl("exec", f"--namespace={namespace}", name, "--", "python", "-c", look)
    assert said.split() == ["65532", "0", "False", "1"]
    assert "Traceback" not in node_cluster.kubectl("logs", f"--namespace={namespace}", name)


@pytest.mark.parametrize("app", ["engine", "router"])
async def test_an_answer_under_way_outlives_the_deletion_of_the_pod_that_gives_it(fleet: Fleet, app: str) -> None:
    base = await fleet.up()
    (pod,) = await fleet.scene.pods(app=app)
    begun = asyncio.Event()
    answer = asyncio.create_task(stream(base, LONG, begun))
    await asyncio.wait([answer, asyncio.create_task(begun.wait())], return_when=asyncio.FIRST_COMPLETED)
    fleet.scene.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
    assert await answer == LONG

    async def gone() -> None:
        assert pod["metadata"]["name"] not in [p["metadata"]["name"] for p in await fleet.scene.pods(app=app)]

    await wait_for(f"the {app} is gone, and not by force", gone)


async def test_a_killed_container_is_started_again_and_its_pod_keeps_its_name_and_address(
    fleet: Fleet, node_cluster: NodeCluster
) -> None:
    if node_cluster.own is None:
        pytest.skip("of a node of our own")
    base = await fleet.up()
    (before,) = await fleet.scene.pods(app="engine")
    node_cluster.kill_container(fleet.scene.namespace, before["metadata"]["name"], "engine")

    async def again() -> Object:
        (found,) = await fleet.scene.pods(app="engine")
        (status,) = found["status"]["containerStatuses"]
        assert (status["restartCount"], status["ready"]) == (1, True), status
        assert status["lastState"]["terminated"]["exitCode"] == 128 + signal.SIGKILL
        return found

    after = await wait_for("the engine is started again", again)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["podIP"] == before["status"]["podIP"]

    async def serves() -> None:
        try:
            assert await stream(base, 5) == 5
        except openai.APIError as error:  # The router looks at a failed engine again after a while.
            raise AssertionError(error) from error

    await wait_for("it serves", serves)


async def test_pods_serve_on_while_their_kubelet_is_dead_and_are_not_restarted_when_it_is_back(
    fleet: Fleet, node_cluster: NodeCluster
) -> None:
    if node_cluster.own is None:
        pytest.skip("of a node of our own")
    base = await fleet.up()
    kubelet = node_cluster.own.kubelet
    kubelet.kill()
    assert await stream(base, 200) == 200
    kubelet.start()
    fleet.scene.kubectl("scale", "deployment/llama-interactive", "--replicas=2")

    async def two() -> list[int]:
        pods = await fleet.scene.pods(app="engine")
        assert [condition(p, "Ready").get("status") for p in pods] == ["True", "True"]
        return [p["status"]["containerStatuses"][0]["restartCount"] for p in pods]

    assert await wait_for("the kubelet starts pods again", two, 90) == [0, 0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_a_node_and_leaves_nothing(
    node_cluster: NodeCluster, tmp_path: Path, number: signal.Signals
) -> None:
    if node_cluster.own is None:
        pytest.skip("of a node of our own")
    printed = tmp_path / "printed"
    with nothing_left():
        with printed.open("wb") as out:
            up = subprocess.Popen(
                [sys.executable, "-m", "cluster.node"], cwd=HERE.parent, stdout=out, stderr=out, start_new_session=True
            )
        try:
            until(lambda: "KUBECONFIG=" in printed.read_text() or up.poll() is not None, "it is up", timeout_s=180)
            folder = Path(printed.read_text().split("KUBECONFIG=")[1].split()[0]).parent
            os.kill(up.pid, number)
            up.wait(60)
        finally:
            up.kill()
        until(lambda: not folder.exists(), "its folder is gone", timeout_s=30)
