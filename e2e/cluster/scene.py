"""What a scenario has in its hands: a cluster to apply manifests to, nodes, waiting with a reason, and an operator under test."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import yaml

from cluster.api import Api, Object, Refused
from cluster.kwok import KwokCluster, node
from cluster.pod_container import port_of, token_kubeconfig
from cluster.pod_processes import LOST
from cluster.processes import Process

T = TypeVar("T")
IMAGE = "multislo:e2e"
"""What stands in manifests; no such image is ever looked for."""
WAIT_S = 240.0
"""The patience of every story, in which nothing is promised to be fast: a loaded machine takes minutes for what takes seconds alone."""
Manifest = str | Object | Iterable[Object]


class KubectlFailed(Exception):
    """kubectl's own words, as a user would read them."""


async def wait_for(what: str, check: Callable[[], Awaitable[T]], timeout_s: float = WAIT_S, every_s: float = 0.1) -> T:
    """Until `check` passes: it asserts, and what it returns is returned. At the end it fails with `what` and the last assertion."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            return await check()
        except (AssertionError, LookupError, ValueError, Refused, aiohttp.ClientError, OSError) as error:
            if time.monotonic() > end:
                words = str(error) or repr(error)
                raise AssertionError(f"{what}: not so after {timeout_s:.0f} s. Last seen: {words}") from error
        await asyncio.sleep(every_s)


@dataclass(slots=True)
class Scene:
    """One test's place: a namespace of its own, the nodes that it added, the operators that it started."""

    cluster: KwokCluster
    api: Api
    namespace: str
    nodes: list[str] = field(default_factory=list)
    operators: list[Process] = field(default_factory=list)

    @property
    def kubeconfig(self) -> Path:
        return self.cluster.kubeconfig

    # -- manifests ---------------------------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, given: str | None = None, kubeconfig: Path | None = None) -> str:
        """In the test's namespace; its output. It blocks for 0.1 s: beside traffic call it, and `apply`, by `asyncio.to_thread`.

        Raises KubectlFailed.
        """
        done = subprocess.run(
            [self.cluster.binaries["kubectl"], f"--kubeconfig={kubeconfig or self.kubeconfig}", f"--namespace={self.namespace}",
             *arguments],
            input=given, text=True, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise KubectlFailed(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def apply(self, manifest: Manifest, *, field_manager: str = "e2e", force: bool = False) -> None:
        """YAML text, an object or several, by server-side apply. Raises KubectlFailed with the API server's refusal."""
        if not isinstance(manifest, str):
            objects = [manifest] if isinstance(manifest, dict) else list(manifest)
            manifest = yaml.safe_dump_all(objects)
        conflicts = ["--force-conflicts"] if force else []
        self.kubectl(
            "apply", "--server-side", f"--field-manager={field_manager}", *conflicts, "-f", "-", given=manifest
        )

    def get(self, kind: str, name: str) -> Object:
        found: Object = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def account_kubeconfig(self, account: str, namespace: str | None = None) -> Path:
        """To act as a service account: exactly its rights."""
        space = namespace or self.namespace
        token = self.kubectl("create", "token", account, f"--namespace={space}", "--duration=24h").strip()
        folder = self.cluster.directory / "accounts" / space
        folder.mkdir(parents=True, exist_ok=True)
        authority = folder / "ca.crt"
        root = self.kubectl("get", "configmap", "kube-root-ca.crt", f"--namespace={space}", "-o", "json")
        authority.write_text(json.loads(root)["data"]["ca.crt"])
        return token_kubeconfig(folder / f"{account}.kubeconfig", self.api.url, authority, token, space)

    # -- pods --------------------------------------------------------------------------------------------------------------

    async def pods(self, **labels: str) -> list[Object]:
        """Those of the namespace that have the labels; dashes and such by `**{"multislo.dev/tier": "chat"}`."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        return await self.api.items(f"/api/v1/namespaces/{self.namespace}/pods", labelSelector=selector)

    async def behind(self, service: str) -> list[str]:
        """host:port of each ready pod behind the first port of a Service: there is no kube-proxy here that would choose one."""
        found = await self.api.get(f"/api/v1/namespaces/{self.namespace}/services/{service}")
        target = found["spec"]["ports"][0]["targetPort"]
        ready = [
            pod
            for pod in await self.pods(**found["spec"]["selector"])
            if condition(pod, "Ready").get("status") == "True"
        ]
        return [
            f"{pod['status']['podIP']}:{port_of(pod['spec']['containers'][0], target)}"
            for pod in ready
            if "deletionTimestamp" not in pod["metadata"]
        ]

    def pod_folder(self, pod: str) -> Path:
        """Of a pod on a process node: CONTAINER.log, CONTAINER.pid."""
        return self.cluster.directory / "pods" / self.namespace / pod

    def pod_log(self, pod: str, container: str) -> str:
        return (self.pod_folder(pod) / f"{container}.log").read_text(errors="replace")

    def pod_pid(self, pod: str, container: str) -> int:
        """To kill it by. Raises FileNotFoundError where it does not run."""
        return int((self.pod_folder(pod) / f"{container}.pid").read_text())

    def told(self, lines: int = 40) -> str:
        """For somebody who looks at a failure: what is there, what happened, and the last words of operators and of pods."""
        parts: list[str] = []
        for arguments in (["get", "pods,deployments", "-o", "wide"], ["get", "events", "--sort-by=.lastTimestamp"]):
            try:
                parts.append("\n".join(self.kubectl(*arguments).splitlines()[-lines:]))
            except (KubectlFailed, subprocess.TimeoutExpired) as error:
                parts.append(str(error))
        parts += [f"-- {operator.name}\n{operator.tail(lines)}" for operator in self.operators]
        for log in sorted((self.cluster.directory / "pods" / self.namespace).rglob("*.log")):
            parts.append(
                f"-- {log.parent.name}, {log.stem}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            )
        return "\n\n".join(parts)

    # -- nodes -------------------------------------------------------------------------------------------------------------

    async def add_nodes(self, number: int, gpus: int = 8, *, processes: bool = False) -> list[str]:
        """Fake nodes, Ready when this returns. `processes`: their pods are run as processes; else they are said to run."""
        kind = "process" if processes else "kwok"
        names = [f"{kind}-{self.namespace}-{len(self.nodes) + index}" for index in range(number)]
        for name in names:
            await self.api.create("/api/v1/nodes", node(name, gpus))
        self.nodes += names
        for name in names:
            await wait_for(f"node {name} is Ready", lambda name=name: self._node_ready(name))  # type: ignore[misc]
        return names

    async def lose_node(self, name: str) -> None:
        """Its power is cut: no heartbeat any more, its processes gone. The API server hears of it only by silence."""
        await self.api.patch(f"/api/v1/nodes/{name}", {"metadata": {"annotations": {LOST: "true"}}})

    async def find_node(self, name: str) -> None:
        """It is back."""
        await self.api.patch(f"/api/v1/nodes/{name}", {"metadata": {"annotations": {LOST: None}}})

    async def _node_ready(self, name: str) -> None:
        found = await self.api.get(f"/api/v1/nodes/{name}")
        conditions = {c["type"]: c["status"] for c in found["status"].get("conditions", [])}
        taints = [taint["key"] for taint in found["spec"].get("taints", [])]
        assert conditions.get("Ready") == "True", conditions
        assert not taints, taints

    # -- the operator ------------------------------------------------------------------------------------------------------

    def start_operator(
        self, *arguments: str, kubeconfig: Path | None = None, environment: dict[str, str] | None = None
    ) -> Process:
        """`multislo operator ARGUMENTS` as a process: stop, kill, pause and start it again as the story wants. It ends with the test."""
        name = f"operator-{self.namespace}-{len(self.operators)}"
        process = self.cluster.processes.start(
            name, [multislo(), "operator", *arguments],
            {"KUBECONFIG": str(kubeconfig or self.kubeconfig), "MULTISLO_IMAGE": IMAGE, **(environment or {})},
        )  # fmt: skip
        self.operators.append(process)
        return process

    def start_many_routers(self) -> Process:
        """One process that is the routers and engines of every resource on kwok nodes. It ends with the test."""
        process = self.cluster.processes.start(
            f"many-routers-{self.namespace}",
            [sys.executable, "-m", "cluster.many_routers", str(self.kubeconfig), str(self.cluster.directory / "many")],
            {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        self.operators.append(process)
        return process

    # -- the end -----------------------------------------------------------------------------------------------------------

    async def clear(self) -> None:
        """Operators, namespace and nodes away; returns when the last pod is gone, so that the next test has the machine."""
        for operator in self.operators:
            operator.stop()
        await self.api.delete(f"/api/v1/namespaces/{self.namespace}")
        # The namespace itself takes its time, and is in nobody's way.
        await wait_for(f"the pods of namespace {self.namespace} are gone", self._pods_are_gone)
        for name in self.nodes:
            await self.api.delete(f"/api/v1/nodes/{name}")

    async def _pods_are_gone(self) -> None:
        await self.api.request("DELETE", f"/api/v1/namespaces/{self.namespace}/pods", {"gracePeriodSeconds": 0})
        assert not (left := [pod["metadata"]["name"] for pod in await self.pods()]), left


def multislo() -> str:
    """The command of this very environment."""
    beside = Path(sys.executable).with_name("multislo")
    return str(beside) if beside.exists() else "multislo"


def condition(thing: Object, kind: str) -> dict[str, Any]:
    """One condition of a status, empty where there is none."""
    found: dict[str, Any] = next((c for c in thing.get("status", {}).get("conditions", []) if c["type"] == kind), {})
    return found


def existing_cluster() -> str | None:
    return os.environ.get("MULTISLO_E2E_KUBECONFIG") or None
