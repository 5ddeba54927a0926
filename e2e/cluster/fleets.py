"""Fleets under an operator, as seen from outside: what a story asks again and again. Manifests come from here too, so that a story shows
only what it is about.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from cluster.api import Object
from cluster.processes import Process
from cluster.scene import WAIT_S, Scene, condition, wait_for

CRD = Path(__file__).parents[2] / "crds" / "multisloservings.yaml"
PROFILE = "llama-3.1-8b-h200-tp1"
TIER = "multislo.dev/tier"
INSTANCE = "app.kubernetes.io/instance"
FIGURES = "MULTISLO_E2E_FIGURES"
"""Environment: a file that gets a JSON line for each figure."""
CHILDREN = (
    ("/apis/apps/v1", "deployments"),
    ("/apis/apps/v1", "replicasets"),
    ("/api/v1", "pods"),
    ("/api/v1", "services"),
    ("/api/v1", "configmaps"),
    ("/api/v1", "secrets"),
    ("/api/v1", "serviceaccounts"),
    ("/apis/policy/v1", "poddisruptionbudgets"),
    ("/apis/networking.k8s.io/v1", "networkpolicies"),
)


def tier(name: str, tpot: str, least: int = 1, most: int = 4, ttft: str = "1s") -> Object:
    return {"name": name, "slo": {"ttft": ttft, "tpot": tpot}, "instances": {"min": least, "max": most}}


CHAT, BATCH = tier("chat", "50ms"), tier("batch", "100ms")


def fleet(
    name: str = "fleet",
    tiers: Sequence[Object] = (CHAT, BATCH),
    accelerators: int = 8,
    warm: int = 0,
    profile: str | Object = PROFILE,
    annotations: dict[str, str] | None = None,
    pods: dict[str, str] | None = None,
    routers: int = 1,
) -> Object:
    """A manifest. Its engines say that they are vLLM's, so that they ask for accelerators: on a fake node nobody starts them. `warm`: at
    most so many; `pods`: annotations of engine pods."""
    template: Object = {"metadata": {"annotations": pods}} if pods else {}
    return {
        "apiVersion": "multislo.dev/v1alpha1",
        "kind": "MultiSLOServing",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {
            "model": {"name": "meta-llama/Llama-3.1-8B-Instruct"},
            "profile": profile,
            "engine": {"type": "VLLM", "image": "vllm:none", "podTemplate": template},
            "router": {"replicas": routers},
            "tiers": list(tiers),
            "scaling": {
                "acceleratorsMax": accelerators,
                "warmPool": {"min": 0, "max": warm},
                "scaleDown": {"stabilization": "1s", "drainTimeout": "30s"},
            },
        },
    }


def emulated(manifest: Object) -> Object:
    """The same with engines that take no accelerators."""
    engine = {"type": "Emulated", "emulation": {"startup": "1s"}}
    return {**manifest, "spec": {**manifest["spec"], "engine": engine}}


@dataclass(slots=True)
class Fleets:
    """Those of one scene."""

    scene: Scene
    session: aiohttp.ClientSession
    key: Path
    """File with the operators' key."""

    @classmethod
    def install(cls, scene: Scene, session: aiohttp.ClientSession, folder: Path) -> "Fleets":
        """The kind is known to the API server when this returns."""
        scene.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
        scene.kubectl("wait", "--for=condition=Established", "crd/multisloservings.multislo.dev")
        key = folder / "key"
        key.write_text("a key of the operator that no one else has")
        return cls(scene, session, key)

    # -- the operator ------------------------------------------------------------------------------------------------------

    def operator(
        self, *arguments: str, image: str | None = None, kubeconfig: Path | None = None, election: bool = False
    ) -> Process:
        """One that looks after the scene's namespace; without an election it leads at once."""
        own = self.scene.namespace
        alone = () if election else ("--no-election",)
        return self.scene.start_operator(
            "--namespace", own, "--lease-namespace", own, *alone, "--key-file", str(self.key), "--metrics-port", "0",
            *arguments, kubeconfig=kubeconfig, environment={"MULTISLO_IMAGE": image} if image else None,
        )  # fmt: skip

    async def metrics(self, operator: Process) -> dict[str, float]:
        """Samples by name and labels, as printed."""
        operator.must_live()
        ports = re.findall(r"metrics at http://[^:]+:(\d+)/", operator.text())
        assert ports, operator.text()
        async with self.session.get(f"http://127.0.0.1:{ports[-1]}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    async def writes(self, operator: Process, kind: str = "", verb: str = "") -> int:
        """That the API server took, the Lease's left out; of one kind and verb if given."""
        found = await self.metrics(operator)
        return int(
            sum(
                value
                for name, value in found.items()
                if name.startswith("multislo_operator_api_writes_total")
                and 'kind="Lease"' not in name
                and (not kind or f'kind="{kind}"' in name)
                and (not verb or f'verb="{verb}"' in name)
            )
        )

    async def is_quiet(self, operator: Process, for_s: float = 2.5) -> None:
        """It has written nothing for so long."""
        before = await self.writes(operator)
        await asyncio.sleep(for_s)
        after = await self.writes(operator)
        assert after == before, f"{after - before} writes in {for_s:.1f} s"

    async def rests(self, operator: Process, timeout_s: float = WAIT_S) -> None:
        await wait_for("the operator has no more to write", lambda: self.is_quiet(operator), timeout_s)

    # -- a fleet -----------------------------------------------------------------------------------------------------------

    def path(self, root: str, plural: str, name: str = "") -> str:
        return f"{root}/namespaces/{self.scene.namespace}/{plural}" + (f"/{name}" if name else "")

    async def resource(self, name: str = "fleet") -> Object:
        return await self.scene.api.get(self.path("/apis/multislo.dev/v1alpha1", "multisloservings", name))

    async def deployment(self, name: str) -> Object:
        return await self.scene.api.get(self.path("/apis/apps/v1", "deployments", name))

    async def scale(self, name: str, replicas: int, manager: str = "somebody") -> None:
        """As an HPA does it."""
        path = self.path("/apis/apps/v1", "deployments", name) + "/scale"
        await self.scene.api.patch(path, {"spec": {"replicas": replicas}}, fieldManager=manager)

    async def engines(self, at: str, name: str = "fleet") -> list[Object]:
        """Pods of a tier (warm: of the warm pool) that are there to stay."""
        pods = await self.scene.pods(**{INSTANCE: name, TIER: at})
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    async def told(self, kind: str, name: str = "fleet") -> tuple[str, str, str]:
        """Status, reason and message of a condition."""
        found = condition(await self.resource(name), kind)
        assert found, f"{name} has no condition {kind} yet"
        return found["status"], found["reason"], found["message"]

    async def says(self, kind: str, reason: str, name: str = "fleet", timeout_s: float = WAIT_S) -> str:
        """Waits for a condition's reason; its message."""

        async def so() -> str:
            status, why, message = await self.told(kind, name)
            assert why == reason, (status, why, message)
            return message

        return await wait_for(f"{name} says {kind}: {reason}", so, timeout_s)

    async def runs(self, name: str = "fleet", timeout_s: float = WAIT_S, **tiers: int) -> None:
        """Waits until so many of each tier's pods are Ready, and no more are there."""

        async def so() -> None:
            for at, number in tiers.items():
                pods = await self.engines(at, name)
                ready = [pod for pod in pods if condition(pod, "Ready").get("status") == "True"]
                told = [(pod["metadata"]["name"], gated(pod), condition(pod, "Ready").get("reason")) for pod in pods]
                assert len(pods) == len(ready) == number, (at, told)

        await wait_for(f"{name} runs {tiers}", so, timeout_s)

    async def events(self, reason: str) -> list[str]:
        found = await self.scene.api.items(self.path("/apis/events.k8s.io/v1", "events"))
        return [event["note"] for event in found if event["reason"] == reason]

    async def children(self, name: str = "fleet") -> list[str]:
        """All that carries the fleet's label, "plural name"."""
        found = []
        for root, plural in CHILDREN:
            items = await self.scene.api.items(self.path(root, plural), labelSelector=f"{INSTANCE}={name}")
            found += [f"{plural} {item['metadata']['name']}" for item in items]
        return found


def gated(pod: Object) -> bool:
    return bool(pod["spec"].get("schedulingGates"))


def uids(pods: Sequence[Object]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def figure(story: str, **values: Any) -> None:
    """Says it, and writes it down where that is wished."""
    print(f"\n{story}: " + ", ".join(f"{name} {value}" for name, value in values.items()), flush=True)
    if path := os.environ.get(FIGURES):
        with Path(path).open("a") as file:
            file.write(json.dumps({"story": story, "at": time.time(), **values}) + "\n")
