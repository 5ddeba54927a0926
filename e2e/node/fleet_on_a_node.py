"""A fleet on a real node: pods are containers, the operator is the chart's, and its Service and pods are reached by doors of the loopback.
Used by test_fleet_on_a_node.py."""

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

from cluster.api import MERGE, Object
from cluster.node import GPU, NODE, NodeCluster
from cluster.scene import Scene, condition, wait_for
from fleet_story import COMPONENT, MODEL, NAME, Fleet, Life
from traffic import End, Stream, Traffic


@dataclass(slots=True)
class ByService(Scene):
    """Its Services have addresses, and kube-proxy chooses the pod."""

    door: str = ""

    async def behind(self, service: str) -> list[str]:
        return [self.door]


@dataclass(slots=True)
class ByRouter(Scene):
    """Each router's own port, so that a stream tells which one carried it."""

    doors: dict[str, str] = field(default_factory=dict)

    async def behind(self, service: str) -> list[str]:
        pods = {pod["metadata"]["name"]: pod for pod in await self.pods(**{COMPONENT: "router"})}
        return [
            door
            for name, door in self.doors.items()
            if name in pods and condition(pods[name], "Ready").get("status") == "True"
        ]


@dataclass(slots=True)
class NodeFleet(Fleet):
    """The operator is the chart's; the node's own network is reached by doors of the loopback."""

    node_cluster: NodeCluster | None = None
    over: dict[str, float] = field(default_factory=dict)
    """When the containers of a pod had ended: it needs its accelerators no more, also where it is still listed."""

    async def comes_up(self, wanted: dict[str, Any], **instances: int) -> None:
        await self.apply(wanted)
        await self.becomes("Ready", "True")
        await self.has(**instances)

    def _saw(self, event: str, pod: Object, at: float) -> None:
        Fleet._saw(self, event, pod, at)
        if event == "DELETED" or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            self.over.setdefault(pod["metadata"]["name"], at)

    @property
    def node(self) -> NodeCluster:
        assert self.node_cluster is not None
        return self.node_cluster

    async def by_service(self) -> Traffic:
        """Traffic through the Service. A door is a process, so it is opened before."""
        door = await asyncio.to_thread(self.node.open_service, self.scene.namespace, NAME, 8000)
        place = ByService(self.scene.cluster, self.scene.api, self.scene.namespace, door=door)
        return Traffic(place, NAME, MODEL)

    async def by_router(self) -> tuple[Traffic, dict[str, str]]:
        """Traffic to each router; doors by pod."""
        doors = {life.name: await self.door(life.name, 8000) for life in self.routers()}
        return Traffic(
            ByRouter(self.scene.cluster, self.scene.api, self.scene.namespace, doors=doors), NAME, MODEL
        ), doors

    async def door(self, pod: str, port: int) -> str:
        return await asyncio.to_thread(self.node.open_pod, self.scene.namespace, pod, port)

    async def snapshot(self, router: str | None = None) -> dict[str, Any]:
        door = await self.door(router or self.routers()[0].name, 9090)
        async with self.session.get(f"http://{door}/fleet") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def kill(self, pod: str, container: str) -> None:
        await asyncio.to_thread(self.node.kill_container, self.scene.namespace, pod, container)

    async def containers(self) -> dict[str, tuple[str, str, int]]:
        """Of the engines that run: pod's uid, start of its container, restarts."""
        return {
            pod["metadata"]["name"]: container_of(pod)
            for pod in await self.scene.pods(**{COMPONENT: "engine"})
            if pod["status"].get("containerStatuses")
        }

    async def template(self, container: dict[str, Any]) -> None:
        """Change the engines' template."""
        container = {"name": "engine", **container}
        await self.change({"engine": {"podTemplate": {"spec": {"containers": [container]}}}})

    async def is_rolled(self, before: set[str], of: str, number: int) -> None:
        """None of the earlier pods is left."""

        async def so() -> None:
            left = [life.name for life in self.lives.values() if life.name in before and life.gone_at is None]
            assert not left, left
            assert len(self.answering(of)) == number, self.answering(of)

        await wait_for(f"the pods of {of} are new", so)

    def one_at_a_time(self, gone: list[Life]) -> None:
        """Each was drained before it was told to stop, and gone before the next was drained."""
        for life in gone:
            assert life.drained_at is not None, life
            assert life.told_to_stop_at is not None, life
            assert life.drained_at < life.told_to_stop_at, life
        gone = sorted(gone, key=lambda life: life.drained_at or 0.0)
        for one, next_one in itertools.pairwise(gone):
            assert (one.gone_at or 0.0) <= (next_one.drained_at or 0.0), (one, next_one)

    def operator_says(self, namespace: str) -> str:
        return self.node.kubectl("logs", f"--namespace={namespace}", "deployment/multislo", "--tail=400")


def container_of(pod: Object) -> tuple[str, str, int]:
    (status,) = pod["status"]["containerStatuses"]
    started = status["state"].get("running", {}).get("startedAt", "-")
    return pod["metadata"]["uid"], started, status["restartCount"]


def counted(traffic: Traffic) -> dict[str, dict[str, int]]:
    return {name: dict(count) for name, count in traffic.counts().items()}


async def has_accelerators(scene: Scene, number: int) -> None:
    """The node says so from now on."""
    await scene.api.patch(f"/api/v1/nodes/{NODE}/status", {"status": {"capacity": {GPU: str(number)}}}, MERGE)

    async def so() -> None:
        found = await scene.api.get(f"/api/v1/nodes/{NODE}")
        assert found["status"]["allocatable"][GPU] == str(number)

    await wait_for(f"the node has {number} accelerators", so)


def whole(traffic: Traffic) -> list[Stream]:
    return [stream for stream in traffic.streams if stream.end is End.WHOLE]
