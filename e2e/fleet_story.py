"""One fleet on real routers and emulated engines with the real operator, and all that happens to its pods and replicas, by the clock.
Used by the stories of traffic, moves and roll-outs."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from cluster.api import APPLY, MERGE, Object
from cluster.processes import Process
from cluster.scene import WAIT_S, Scene, condition, wait_for
from traffic import Traffic

CRD = Path(__file__).parent.parent / "crds" / "multisloservings.yaml"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
NAME = "fleet"
TIER = "multislo.dev/tier"
COMPONENT = "app.kubernetes.io/component"
LONG = 4096
"""Prompt tokens of a request that fills a tenth of an instance for a second: much load from few requests."""


def spec(**changes: Any) -> dict[str, Any]:
    """A fleet of two tiers that reacts within seconds; each change replaces a field of spec."""
    return {
        "model": {"name": MODEL},
        "profile": "llama-3.1-8b-h200-tp1",
        "engine": {"type": "Emulated", "emulation": {"startup": "1s"}},
        "tiers": [tier("chat", "500ms", "40ms", 1, 3), tier("batch", "2s", "100ms", 0, 3)],
        "scaling": scaling(4),
        **changes,
    }


def tier(name: str, ttft: str, tpot: str, least: int, most: int) -> dict[str, Any]:
    return {"name": name, "slo": {"ttft": ttft, "tpot": tpot}, "instances": {"min": least, "max": most}}


def scaling(accelerators: int, stabilization: str = "10m", warm: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    return {
        "acceleratorsMax": accelerators,
        "warmPool": {"min": warm[0], "max": warm[1]},
        "scaleDown": {"stabilization": stabilization, "drainTimeout": "60s"},
    }


@dataclass(slots=True)
class Life:
    """What was seen of one pod. Times by the monotonic clock, when this process heard of it."""

    name: str
    component: str
    tier: str
    """The one that it is in now."""
    tiers: list[str]
    let_go_at: float | None = None
    answers_at: float | None = None
    drained_at: float | None = None
    """When its drain began, the last time."""
    drains: int = 0
    told_to_stop_at: float | None = None
    gone_at: float | None = None
    restarts: int = 0


@dataclass(slots=True)
class Fleet:
    scene: Scene
    session: aiohttp.ClientSession
    key: Path
    lives: dict[str, Life] = field(default_factory=dict)
    replicas: list[tuple[float, str, int]] = field(default_factory=list)
    """(when, tier, replicas wanted), one for each change."""
    applied_at: float = 0.0
    operators: list[Process] = field(default_factory=list)

    # -- the manifest --------------------------------------------------------------------------------------------------------

    async def apply(self, wanted: dict[str, Any]) -> None:
        document = {
            "apiVersion": "multislo.dev/v1alpha1", "kind": "MultiSLOServing",
            "metadata": {"name": NAME, "namespace": self.scene.namespace}, "spec": wanted,
        }  # fmt: skip
        self.applied_at = time.monotonic()
        await self.scene.api.patch(self._path, document, APPLY, fieldManager="e2e", force="true")

    async def change(self, wanted: dict[str, Any]) -> None:
        """A merge patch of spec."""
        await self.scene.api.patch(self._path, {"spec": wanted}, MERGE)

    async def resource(self) -> Object:
        return await self.scene.api.get(self._path)

    async def says(self, kind: str, status: str, reason: str | None = None) -> dict[str, Any]:
        found = condition(await self.resource(), kind)
        assert found.get("status") == status, found
        assert reason in (None, found.get("reason")), found
        return found

    async def becomes(self, kind: str, status: str, reason: str | None = None, timeout_s: float = WAIT_S) -> float:
        """When, by the monotonic clock."""
        await wait_for(f"{kind} is {status} {reason or ''}", lambda: self.says(kind, status, reason), timeout_s, 0.05)
        return time.monotonic()

    async def ready(self, wanted: dict[str, Any], **instances: int) -> None:
        """Applied, Ready, and so many instances answering in each tier."""
        self.start_operator()
        await self.apply(wanted)
        await self.becomes("Ready", "True")
        await self.has(**instances)

    @property
    def _path(self) -> str:
        return f"/apis/multislo.dev/v1alpha1/namespaces/{self.scene.namespace}/multisloservings/{NAME}"

    # -- what there is ---------------------------------------------------------------------------------------------------------

    def engines(self, of: str | None = None) -> list[Life]:
        """Those that have been let go and not been told to stop."""
        return [
            life
            for life in self.lives.values()
            if life.component == "engine"
            and life.let_go_at is not None
            and life.told_to_stop_at is None
            and life.gone_at is None
            and of in (None, life.tier)
        ]

    def answering(self, of: str | None = None) -> list[Life]:
        return [life for life in self.engines(of) if life.answers_at is not None]

    def routers(self) -> list[Life]:
        return [life for life in self.lives.values() if life.component == "router" and life.gone_at is None]

    async def has(self, timeout_s: float = WAIT_S, **instances: int) -> None:
        """So many answering instances in each tier (`warm` for the pool) that do not drain, and no other running ones."""

        async def so() -> None:
            found = {name: [life.name for life in self.answering(name) if not life.drained_at] for name in instances}
            assert {name: len(of) for name, of in found.items()} == instances, found
            running = [life.name for name in instances for life in self.engines(name)]
            assert len(running) == sum(instances.values()), running

        await wait_for(f"the fleet has {instances}", so, timeout_s)

    async def counts(self, timeout_s: float = WAIT_S, **replicas: int) -> None:
        """So many replicas are asked for in each tier."""

        async def so() -> None:
            found = {name: await self.wanted(name) for name in replicas}
            assert found == replicas, found

        await wait_for(f"replicas are {replicas}", so, timeout_s)

    async def wanted(self, of: str) -> int:
        path = f"/apis/apps/v1/namespaces/{self.scene.namespace}/deployments/{NAME}-{of}"
        return int((await self.scene.api.get(path))["spec"]["replicas"])

    async def snapshot(self, router: str | None = None) -> dict[str, Any]:
        """What a router says of the fleet."""
        pods = await self.scene.pods(**{COMPONENT: "router"})
        ip = next(pod["status"]["podIP"] for pod in pods if router in (None, pod["metadata"]["name"]))
        async with self.session.get(f"http://{ip}:9090/fleet") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def holds_nothing(self) -> None:
        """No router counts a request that has ended already."""

        async def so() -> None:
            for router in self.routers():
                seen = await self.snapshot(router.name)
                left = {i["id"]: i["requests"] for i in seen["instances"] if i["requests"]}
                held = {
                    t["name"]: (t["pending"], t["in_flight"]) for t in seen["tiers"] if t["pending"] or t["in_flight"]
                }
                assert not left, left
                assert not held, held

        await wait_for("the routers count no request any more", so)

    async def door_of(self, router: str) -> str:
        pod = await self.scene.api.get(f"/api/v1/namespaces/{self.scene.namespace}/pods/{router}")
        return f"{pod['status']['podIP']}:8000"

    async def running_in_engines(self) -> int:
        """Requests that engines still work on, as they say themselves."""
        running = 0.0
        for life in self.answering():
            async with self.session.get(f"http://{await self.door_of(life.name)}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            running += sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))
        return int(running)

    async def events(self, reason: str) -> list[str]:
        path = f"/apis/events.k8s.io/v1/namespaces/{self.scene.namespace}/events"
        return [event["note"] for event in await self.scene.api.items(path) if event["reason"] == reason]

    def changes_of(self, of: str, since: float = 0.0) -> list[tuple[float, int]]:
        return [(at, count) for at, name, count in self.replicas if name == of and at >= since]

    # -- the operator ----------------------------------------------------------------------------------------------------------

    def start_operator(self) -> Process:
        own = self.scene.namespace
        operator = self.scene.start_operator(
            "--namespace", own, "--lease-namespace", own, "--key-file", str(self.key), "--metrics-port", "0"
        )
        self.operators.append(operator)
        return operator

    def no_errors(self) -> None:
        """The operators' logs hold no traceback."""
        bad = [line for operator in self.operators for line in operator.text().splitlines() if "Traceback" in line]
        assert not bad, bad

    # -- watching --------------------------------------------------------------------------------------------------------------

    async def watch_pods(self) -> None:
        async for event, pod in self.scene.api.watch(f"/api/v1/namespaces/{self.scene.namespace}/pods"):
            self._saw(event, pod, time.monotonic())

    async def watch_replicas(self) -> None:
        known: dict[str, int] = {}
        path = f"/apis/apps/v1/namespaces/{self.scene.namespace}/deployments"
        async for event, deployment in self.scene.api.watch(path):
            labels = deployment["metadata"].get("labels") or {}
            if event == "DELETED" or labels.get(COMPONENT) != "engine":
                continue
            name, count = labels[TIER], int(deployment["spec"]["replicas"])
            if known.get(name) != count:
                known[name] = count
                self.replicas.append((time.monotonic(), name, count))

    def _saw(self, event: str, pod: Object, at: float) -> None:
        name, labels = pod["metadata"]["name"], pod["metadata"].get("labels") or {}
        where = labels.get(TIER, "")
        life = self.lives.get(name)
        if life is None:
            life = self.lives[name] = Life(name, labels.get(COMPONENT, ""), where, [where])
        if where != life.tier:
            life.tier = where
            life.tiers.append(where)
        if life.let_go_at is None and not pod["spec"].get("schedulingGates"):
            life.let_go_at = at
        if life.answers_at is None and condition(pod, "ContainersReady").get("status") == "True":
            life.answers_at = at
        draining = "multislo.dev/draining-since" in (pod["metadata"].get("annotations") or {})
        if draining and life.drained_at is None:
            life.drained_at = at
            life.drains += 1
        elif not draining:
            life.drained_at = None
        if life.told_to_stop_at is None and "deletionTimestamp" in pod["metadata"]:
            life.told_to_stop_at = at
        if event == "DELETED":
            life.gone_at = at
        statuses = pod.get("status", {}).get("containerStatuses") or []
        life.restarts = sum(status.get("restartCount", 0) for status in statuses)

    def traffic(self) -> Traffic:
        return Traffic(self.scene, NAME, MODEL)

    def timeline(self) -> str:
        """For somebody who looks at a failure."""
        start = self.applied_at

        def when(at: float | None) -> str:
            return "-" if at is None else f"{at - start:.1f}"

        lines = [
            f"{life.name} {'>'.join(life.tiers)} let go {when(life.let_go_at)} answers {when(life.answers_at)} "
            f"drains {life.drains} told to stop {when(life.told_to_stop_at)} gone {when(life.gone_at)} restarts {life.restarts}"
            for life in self.lives.values()
        ]
        return "\n".join(lines + [f"{at - start:.1f} {name} = {count}" for at, name, count in self.replicas])


@asynccontextmanager
async def a_fleet(scene: Scene, folder: Path, nodes: int = 1, gpus: int = 8) -> AsyncIterator[Fleet]:
    """A place where a fleet may be applied."""
    await asyncio.to_thread(scene.kubectl, "apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    await asyncio.to_thread(scene.kubectl, "wait", "--for=condition=Established", "crd/multisloservings.multislo.dev")
    await scene.add_nodes(nodes, gpus, processes=True)
    key = folder / "key"
    key.write_text("a key of the operator that no one else has")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        fleet = Fleet(scene, session, key)
        watches = [asyncio.create_task(fleet.watch_pods()), asyncio.create_task(fleet.watch_replicas())]
        try:
            yield fleet
        except BaseException:
            print(fleet.timeline())
            raise
        finally:
            for watch in watches:
                watch.cancel()


def figures(story: str, **values: object) -> None:
    """Printed, and added as a line of JSON to the file that MULTISLO_E2E_FIGURES names."""
    line = json.dumps({"story": story, **values}, default=str)
    print(f"\n{line}", flush=True)
    path = os.environ.get("MULTISLO_E2E_FIGURES")
    if path:
        with Path(path).open("a") as file:
            file.write(line + "\n")


async def until(what: str, so: Callable[[], bool], timeout_s: float = WAIT_S) -> float:
    """When it was so, by the monotonic clock."""

    async def check() -> None:
        assert so(), what

    await wait_for(what, check, timeout_s, 0.02)
    return time.monotonic()
