"""A kubelet of processes: it runs the containers of pods on the nodes process-* as processes of this machine, with real probes,
restarts, readiness gates and stops. `python -m cluster.pod_processes KUBECONFIG DIRECTORY NETWORK`, started by kwok.py.

Of each container DIRECTORY/NAMESPACE/POD/CONTAINER.log and CONTAINER.pid can be read while its pod lives; of a pod that has gone, the
log can, until a pod of that name comes again. Unlike a kubelet it looks into no image, and a container that ended twice comes back
after seconds, not minutes.
"""

import asyncio
import contextlib
import signal
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

from cluster.api import APPLY, STRATEGIC, Api, Object, Refused
from cluster.container_process import ContainerProcess

PREFIX = "process-"
FAKE = "e2e.multislo.dev/fake"
FAKE_NODE = "kwok.x-k8s.io/node"
LOST = "e2e.multislo.dev/lost"
"""Of a node: its power is cut. Nobody is told; its heartbeats end, and its processes."""
RETRY_S = 1.0
LEASE_S = 20
HEARTBEAT_S = LEASE_S / 4
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


class Pod:
    """One pod from its arrival on a node to its end. `seen` is the newest that the API server told."""

    def __init__(self, api: Api, seen: Object, ip: str, directory: Path) -> None:
        self.seen = seen
        self._api = api
        self._ip = ip
        self._directory = directory
        self._news = asyncio.Event()
        self._containers = [
            ContainerProcess(api, seen, spec, ip, directory, self._news) for spec in seen["spec"]["containers"]
        ]
        self._beginning = [
            ContainerProcess(api, seen, spec, ip, directory, self._news, once=True)
            for spec in seen["spec"].get("initContainers", [])
        ]
        self._started = _now()
        self._task: asyncio.Task[None] | None = None

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.seen['metadata']['namespace']}/pods/{self.seen['metadata']['name']}"

    def begin(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._live())
        return self._task

    def told(self, seen: Object) -> None:
        self.seen = seen
        self._news.set()

    async def gone(self) -> None:
        """It was removed by force, or its node is lost: no grace."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _live(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        running = asyncio.create_task(self._run())
        running.add_done_callback(_report)
        try:
            while "deletionTimestamp" not in self.seen["metadata"]:
                self._news.clear()
                await self._tell()
                await self._news.wait()
            await self._stop()
            running.cancel()
            uid = {"uid": self.seen["metadata"]["uid"]}
            await self._until_told(lambda: self._api.delete(self.path, gracePeriodSeconds=0, preconditions=uid))
        finally:
            running.cancel()
            for container in (*self._beginning, *self._containers):
                container.kill()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(self) -> None:
        for first in self._beginning:
            await first.live()
        async with asyncio.TaskGroup() as group:
            for container in self._containers:
                group.create_task(container.live())

    async def _stop(self) -> None:
        grace_s = self.seen["metadata"].get("deletionGracePeriodSeconds", 30)
        await asyncio.gather(*(container.stop(grace_s) for container in self._containers))

    async def _tell(self) -> None:
        """The pod's status, where it is not so already."""
        wanted = self._status()
        known = self.seen.get("status", {})
        conditions = {condition["type"]: condition for condition in known.get("conditions", [])}
        for condition in wanted["conditions"]:
            before = conditions.get(condition["type"], {})
            same = before.get("status") == condition["status"]
            condition["lastTransitionTime"] = before.get("lastTransitionTime", self._started) if same else _now()
        same_conditions = all(
            conditions.get(new["type"], {}).get("status") == new["status"]
            and conditions.get(new["type"], {}).get("reason") == new["reason"]
            for new in wanted["conditions"]
        )
        same_rest = all(known.get(name) == _told(wanted[name]) for name in ("phase", "podIP", "containerStatuses"))
        if same_conditions and same_rest:
            return
        try:
            mine = {"metadata": {"uid": self.seen["metadata"]["uid"]}, "status": wanted}
            self.told(await self._api.patch(f"{self.path}/status", mine, STRATEGIC))
        except Refused as no:
            if no.status not in (404, 409):
                _log(f"{self.path}: {no}")
            if no.status != 404:
                self._again()
        except OSError:
            self._again()

    def _again(self) -> None:
        asyncio.get_running_loop().call_later(RETRY_S, self._news.set)

    async def _until_told(self, act) -> None:  # type: ignore[no-untyped-def]
        while True:
            try:
                await act()
                return
            except Refused as no:
                if no.status in (404, 409):  # Another pod of this name by now.
                    return
                _log(f"{self.path}: {no}")
            except OSError:
                pass
            await asyncio.sleep(RETRY_S)

    def _status(self) -> Object:
        ready = all(container.ready for container in self._containers)
        true = {c["type"] for c in self.seen.get("status", {}).get("conditions", []) if c["status"] == "True"}
        closed = [
            gate["conditionType"]
            for gate in self.seen["spec"].get("readinessGates", [])
            if gate["conditionType"] not in true
        ]
        initialized = all(first.done for first in self._beginning)
        why = None if ready else "ContainersNotReady"
        return {
            "phase": self._phase(initialized),
            "startTime": self._started,
            "hostIP": "127.0.0.1",
            "podIP": self._ip,
            "podIPs": [{"ip": self._ip}],
            "conditions": [
                _condition("PodReadyToStartContainers", True, None),
                _condition("Initialized", initialized, None if initialized else "ContainersNotInitialized"),
                _condition("ContainersReady", ready, why),
                _condition("Ready", ready and not closed, why or ("ReadinessGatesNotReady" if closed else None)),
            ],
            "containerStatuses": [container.status() for container in self._containers],
        }

    def _phase(self, initialized: bool) -> str:
        if any(first.failed for first in self._beginning):
            return "Failed"
        if not initialized or any(container.waits_first for container in self._containers):
            return "Pending"
        if all(container.over for container in self._containers):
            return "Failed" if any(container.failed for container in self._containers) else "Succeeded"
        return "Running"


class Nodes:
    """The heartbeats of all fake nodes, and the pods of those called process-*."""

    def __init__(self, api: Api, directory: Path, network: str) -> None:
        self._api = api
        self._directory = directory
        self._network = network
        self._pods: dict[str, Pod] = {}
        self._live: dict[str, Object] = {}
        self._addresses = 1
        self._waiting: dict[str, Object] = {}

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_nodes())
                group.create_task(self._watch_pods())
                group.create_task(self._beat())
        finally:
            await asyncio.gather(*(pod.gone() for pod in self._pods.values()))

    async def _watch_nodes(self) -> None:
        async for event, node in self._api.watch("/api/v1/nodes"):
            name, annotations = node["metadata"]["name"], node["metadata"].get("annotations") or {}
            if event != "DELETED" and annotations.get(FAKE_NODE) == "fake" and LOST not in annotations:
                if name not in self._live:
                    await self._renew(name, node)
                self._live[name] = node
                for uid, pod in list(self._waiting.items()):
                    if pod["spec"]["nodeName"] == name:
                        del self._waiting[uid]
                        self._begin(pod)
            elif self._live.pop(name, None) is not None:
                lost = [uid for uid, pod in self._pods.items() if pod.seen["spec"]["nodeName"] == name]
                await asyncio.gather(*(self._pods.pop(uid).gone() for uid in lost))

    async def _beat(self) -> None:
        while True:
            await asyncio.gather(*(self._renew(name, node) for name, node in self._live.items()))
            await asyncio.sleep(HEARTBEAT_S)

    async def _renew(self, name: str, node: Object) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "ownerReferences": [owner]},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_S, "renewTime": now},
        }
        try:
            await self._api.patch(f"{LEASES}/{name}", lease, APPLY, fieldManager="pod-processes", force="true")
        except (Refused, OSError) as error:
            _log(f"heartbeat of {name}: {error}")

    async def _watch_pods(self) -> None:
        async for event, pod in self._api.watch("/api/v1/pods"):
            uid, name = pod["metadata"]["uid"], pod["spec"].get("nodeName") or ""
            if not name.startswith(PREFIX) or (pod["metadata"].get("annotations") or {}).get(FAKE) == "true":
                continue
            if event == "DELETED":
                self._waiting.pop(uid, None)
                if uid in self._pods:
                    await self._pods.pop(uid).gone()
            elif uid in self._pods:
                self._pods[uid].told(pod)
            elif name not in self._live:
                self._waiting[uid] = pod
            else:
                self._begin(pod)

    def _begin(self, seen: Object) -> None:
        ip = seen.get("status", {}).get("podIP") or self._address()
        directory = self._directory / seen["metadata"]["namespace"] / seen["metadata"]["name"]
        pod = self._pods[seen["metadata"]["uid"]] = Pod(self._api, seen, ip, directory)
        pod.begin().add_done_callback(_report)

    def _address(self) -> str:
        self._addresses += 1
        # The lower half is kwok's.
        return f"{self._network}.{128 + self._addresses // 250 % 127}.{self._addresses % 250 + 1}"


def _condition(kind: str, true: bool, reason: str | None) -> Object:
    return {"type": kind, "status": "True" if true else "False", "reason": reason}


def _told(value: object) -> object:
    """As the API server says it again: without what is none."""
    if isinstance(value, dict):
        return {key: _told(inner) for key, inner in value.items() if inner is not None}
    return [_told(inner) for inner in value] if isinstance(value, list) else value


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def main(kubeconfig: str, directory: str, network: str) -> None:
    loop, own = asyncio.get_running_loop(), asyncio.current_task()
    assert own is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, own.cancel)
    async with await Api.connect(kubeconfig) as api:
        with contextlib.suppress(asyncio.CancelledError):
            await Nodes(api, Path(directory), network).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
