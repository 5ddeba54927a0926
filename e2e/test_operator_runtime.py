"""The operator's shell against a real API server: who leads, what is written, and what happens when somebody else writes too, or nobody
answers. The fleets' own behaviour is told elsewhere; here their pods are only said to run.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio

from cluster.processes import Process
from cluster.scene import Scene, wait_for

CRD = Path(__file__).parent.parent / "crds" / "multisloservings.yaml"
MANIFEST = """
apiVersion: multislo.dev/v1alpha1
kind: MultiSLOServing
metadata: {name: NAME}
spec:
  model: {name: meta-llama/Llama-3.1-8B-Instruct}
  profile: llama-3.1-8b-h200-tp1
  engine: {type: Emulated, emulation: {startup: 1s}}
  tiers:
    - {name: chat, slo: {ttft: 500ms, tpot: 50ms}, instances: {min: MIN, max: 4}}
    - {name: batch, slo: {ttft: 2s, tpot: 100ms}, instances: {min: 0, max: 4}}
  scaling: {acceleratorsMax: 8}
"""
TAKEOVER_S = 15.0 + 2.0
"""The lease's duration and one retry."""


def manifest(name: str = "fleet", instances_min: int = 1) -> str:
    return MANIFEST.replace("NAME", name).replace("MIN", str(instances_min))


class Runtime:
    """Operators in one namespace, and what can be seen of them from outside."""

    def __init__(self, scene: Scene, key: Path, session: aiohttp.ClientSession) -> None:
        self.scene = scene
        self._key = key
        self._session = session

    def operator(self, *arguments: str) -> Process:
        own = self.scene.namespace
        return self.scene.start_operator(
            "--namespace", own, "--lease-namespace", own, "--key-file", str(self._key), "--metrics-port", "0", *arguments
        )  # fmt: skip

    async def metrics(self, operator: Process) -> dict[str, float]:
        """Samples by name and labels, as printed."""
        text = await self._get(operator, "metrics")
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        }

    async def writes(self, operator: Process) -> float:
        """To everything but the Lease."""
        found = await self.metrics(operator)
        return sum(
            value
            for name, value in found.items()
            if name.startswith("multislo_operator_api_writes_total") and 'kind="Lease"' not in name
        )

    async def leads(self, operator: Process) -> bool:
        return "leads" in await self._get(operator, "readyz")

    async def _get(self, operator: Process, path: str) -> str:
        operator.must_live()
        port = re.findall(r"metrics at http://[^:]+:(\d+)/", operator.text())
        assert port, operator.text()
        async with self._session.get(f"http://127.0.0.1:{port[-1]}/{path}") as answer:
            return await answer.text()

    async def deployments(self) -> dict[str, Any]:
        path = f"/apis/apps/v1/namespaces/{self.scene.namespace}/deployments"
        return {found["metadata"]["name"]: found for found in await self.scene.api.items(path)}

    async def replicas(self, name: str, wanted: int) -> None:
        found = (await self.deployments())[name]
        assert found["spec"]["replicas"] == wanted, found["spec"]["replicas"]

    async def let_go(self, tier: str, number: int, name: str = "fleet") -> None:
        """So many of the tier's pods have been let go to a node."""
        pods = await self.scene.pods(**{"app.kubernetes.io/instance": name, "multislo.dev/tier": tier})
        running = [pod for pod in pods if not pod["spec"].get("schedulingGates")]
        assert len(running) == number, [pod["metadata"]["name"] for pod in pods]

    async def events(self, reason: str) -> list[str]:
        path = f"/apis/events.k8s.io/v1/namespaces/{self.scene.namespace}/events"
        return [event["note"] for event in await self.scene.api.items(path) if event["reason"] == reason]

    async def is_quiet(self, operator: Process, for_s: float = 3.0) -> None:
        """It has written nothing for so long."""
        before = await self.writes(operator)
        await asyncio.sleep(for_s)
        after = await self.writes(operator)
        assert after == before, f"{after - before:.0f} writes in {for_s:.0f} s"


@pytest_asyncio.fixture(loop_scope="session")
async def runtime(scene: Scene, tmp_path: Path) -> AsyncIterator[Runtime]:
    scene.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    scene.kubectl("wait", "--for=condition=Established", "crd/multisloservings.multislo.dev")
    await scene.add_nodes(1)
    key = tmp_path / "key"
    key.write_text("a key of the operator that no one else has")
    async with aiohttp.ClientSession() as session:
        yield Runtime(scene, key, session)


async def settled(runtime: Runtime, operator: Process, instances: int = 1, name: str = "fleet") -> None:
    await wait_for("the tier's pods are let go", lambda: runtime.let_go("chat", instances, name))
    await wait_for("the operator has no more to write", lambda: runtime.is_quiet(operator))


async def leader(runtime: Runtime, *operators: Process) -> Process:
    async def one() -> Process:
        leading = [operator for operator in operators if await runtime.leads(operator)]
        assert len(leading) == 1, leading
        return leading[0]

    return await wait_for("one of them leads", one)


async def test_nothing_is_written_while_nothing_changes(runtime: Runtime) -> None:
    operator = runtime.operator()
    runtime.scene.apply(manifest())
    await settled(runtime, operator)
    await runtime.is_quiet(operator, 15.0)


async def test_kopf_leaves_nothing_on_any_object(runtime: Runtime) -> None:
    """No progress, no last configuration, no finalizer, no field: a reconcile needs none, and a deletion waits for nobody."""
    operator = runtime.operator()
    runtime.scene.apply(manifest())
    await settled(runtime, operator)
    runtime.scene.kubectl("annotate", "mslo/fleet", "example.com/note=changed")
    runtime.scene.apply(manifest(instances_min=2))
    await settled(runtime, operator, 2)

    ours = f"/apis/multislo.dev/v1alpha1/namespaces/{runtime.scene.namespace}/multisloservings"
    apps = f"/apis/apps/v1/namespaces/{runtime.scene.namespace}"
    objects = [*await runtime.scene.pods()]
    for path in (ours, f"{apps}/deployments", f"{apps}/replicasets"):
        objects += await runtime.scene.api.items(path)
    assert len(objects) > 8
    for found in objects:
        metadata = found["metadata"]
        assert not metadata.get("finalizers"), metadata
        assert not [key for key in metadata.get("annotations") or {} if "kopf" in key or "last-handled" in key], (
            metadata
        )
        assert not [entry for entry in metadata["managedFields"] if "kopf" in entry["manager"]], metadata
    assert "kopf" not in str(runtime.scene.get("mslo", "fleet").get("status"))

    operator.kill()  # Nobody is left who could take a finalizer away.
    runtime.scene.kubectl("delete", "mslo/fleet", "--wait=false")

    async def gone() -> None:
        assert not await runtime.scene.api.items(ours)

    await wait_for("the resource is gone", gone)


async def test_a_killed_leader_is_followed_and_nothing_is_done_twice(runtime: Runtime) -> None:
    first = runtime.operator()
    leading = await leader(runtime, first)
    stand_in = runtime.operator()
    runtime.scene.apply(manifest())
    await settled(runtime, leading)
    before = {name: found["metadata"]["resourceVersion"] for name, found in (await runtime.deployments()).items()}
    assert await runtime.writes(stand_in) == 0

    leading.kill()
    killed_at = time.monotonic()
    assert await leader(runtime, stand_in) is stand_in
    assert time.monotonic() - killed_at < 4 * TAKEOVER_S
    await settled(runtime, stand_in)

    after = {name: found["metadata"]["resourceVersion"] for name, found in (await runtime.deployments()).items()}
    assert after == before
    runtime.scene.apply(manifest(instances_min=2))
    await wait_for("the new leader scales", lambda: runtime.let_go("chat", 2))


async def test_a_leader_that_is_stopped_hands_over_at_once(runtime: Runtime) -> None:
    first = runtime.operator()
    await leader(runtime, first)
    second = runtime.operator()
    runtime.scene.apply(manifest())
    await settled(runtime, first)

    stopped_at = time.monotonic()
    assert first.stop() == 0
    await leader(runtime, second)
    assert time.monotonic() - stopped_at < TAKEOVER_S, "it did not wait for the Lease to run out"


async def test_a_leader_that_was_frozen_writes_nothing_more(runtime: Runtime) -> None:
    first = runtime.operator()
    await leader(runtime, first)
    second = runtime.operator()
    runtime.scene.apply(manifest())
    await settled(runtime, first)
    frozen = await runtime.writes(first)

    first.pause()
    await leader(runtime, second)
    runtime.scene.apply(manifest(instances_min=3))
    await settled(runtime, second, 3)
    first.resume()
    await asyncio.sleep(3.0)

    assert await runtime.writes(first) == frozen
    assert not await runtime.leads(first)
    await runtime.let_go("chat", 3)


async def test_it_scales_although_somebody_else_writes_the_deployment_all_the_time(runtime: Runtime) -> None:
    operator = runtime.operator()
    runtime.scene.apply(manifest())
    await settled(runtime, operator)
    path = f"/apis/apps/v1/namespaces/{runtime.scene.namespace}/deployments/fleet-chat"

    async def scribble(number: int) -> None:
        await runtime.scene.api.patch(path, {"metadata": {"annotations": {"example.com/note": str(number)}}})

    async with repeatedly(scribble, 0.02):
        runtime.scene.apply(manifest(instances_min=3))
        await wait_for("three are let go", lambda: runtime.let_go("chat", 3))
    await wait_for("and it rests", lambda: runtime.is_quiet(operator))
    await runtime.replicas("fleet-chat", 3)


async def test_an_edit_war_is_reported_and_not_fought_in_a_loop(runtime: Runtime) -> None:
    operator = runtime.operator()
    runtime.scene.apply(manifest())
    await settled(runtime, operator)
    path = f"/apis/apps/v1/namespaces/{runtime.scene.namespace}/deployments/fleet-router"
    before = await runtime.writes(operator)

    async def rewrite(number: int) -> None:
        template = {"spec": {"terminationGracePeriodSeconds": 77}}
        await runtime.scene.api.patch(path, {"spec": {"template": template}}, fieldManager="somebody-else")

    async def reported() -> list[str]:
        found = await runtime.events("EditWar")
        assert found
        return found

    async with repeatedly(rewrite, 0.1):
        (told,) = await wait_for("the war is reported", reported)
        await asyncio.sleep(10.0)
    assert "somebody-else" in told
    assert "fleet-router" in told
    spent = await runtime.writes(operator) - before
    assert spent < 60, f"{spent:.0f} writes"  # The router's roll-outs and their status; not a hundred applies.
    runtime.scene.apply(manifest(instances_min=2))
    await wait_for("the rest of the fleet is looked after", lambda: runtime.let_go("chat", 2))


async def test_what_a_hand_removes_is_put_back(runtime: Runtime) -> None:
    operator = runtime.operator()
    runtime.scene.apply(manifest())
    await settled(runtime, operator)

    runtime.scene.kubectl("delete", "service/fleet", "pdb/fleet-router", "deployment/fleet-batch")

    async def there() -> None:
        for thing in ("service/fleet", "pdb/fleet-router", "deployment/fleet-batch"):
            assert "deletionTimestamp" not in runtime.scene.get(*thing.split("/"))["metadata"]  # type: ignore[arg-type]

    await wait_for("all are there again", lambda: retried(there))
    await settled(runtime, operator)


async def test_an_api_server_that_hangs_for_30_s_costs_the_lease_and_nothing_else(runtime: Runtime) -> None:
    operator = runtime.operator()
    runtime.scene.apply(manifest())
    await settled(runtime, operator)
    plane = api_server(runtime)

    plane.pause()
    await asyncio.sleep(30.0)
    assert not await runtime.leads(operator)
    plane.resume()

    await leader(runtime, operator)
    runtime.scene.apply(manifest(instances_min=2))
    await wait_for("it scales again", lambda: runtime.let_go("chat", 2))
    await settled(runtime, operator, 2)


async def test_what_vanished_while_it_did_not_look_is_noticed(runtime: Runtime) -> None:
    """Its watches are cut, and their versions are too old when it comes back: the API server has restarted, as in an upgrade."""
    operator = runtime.operator()
    for name in ("fleet", "other"):
        runtime.scene.apply(manifest(name))
        await settled(runtime, operator, name=name)

    operator.pause()
    plane = api_server(runtime)
    plane.kill()
    plane.start()
    await wait_for("the API server is back", lambda: runtime.deployments())
    runtime.scene.kubectl("delete", "mslo/other", "deployment/fleet-batch")
    path = f"/api/v1/namespaces/{runtime.scene.namespace}/configmaps"
    for number in range(150):  # More than the server's watch cache begins with.
        await runtime.scene.api.create(path, {"metadata": {"name": f"filler-{number}"}})
    operator.resume()

    async def back() -> None:
        found = await runtime.deployments()
        assert "fleet-batch" in found
        assert not [name for name in found if name.startswith("other-")], list(found)
        metrics = await runtime.metrics(operator)
        assert metrics["multislo_operator_fleets"] == 1

    await wait_for("one Deployment is there again, the other fleet stays away", back)
    await wait_for("and it rests", lambda: runtime.is_quiet(operator))


async def test_a_profile_in_a_configmap_is_read_and_followed(runtime: Runtime) -> None:
    operator = runtime.operator()
    named = manifest().replace("profile: llama-3.1-8b-h200-tp1", "profile: {configMap: measured}")
    runtime.scene.apply(named)

    async def reason() -> str:
        found = runtime.scene.get("mslo", "fleet")
        conditions = {c["type"]: c for c in found.get("status", {}).get("conditions", [])}
        return str(conditions["ProfileReady"]["reason"])

    async def missing() -> None:
        assert await reason() == "ProfileMissing"

    await wait_for("the profile is missed", lambda: retried(missing))
    shipped = Path(__file__).parent.parent / "profiles" / "multislo_perf" / "shipped" / "llama-3.1-8b-h200-tp1.yaml"
    runtime.scene.kubectl("create", "configmap", "measured", f"--from-file=profile.yaml={shipped}")
    await settled(runtime, operator)


def api_server(runtime: Runtime) -> Process:
    """A cluster of somebody else's cannot be paused: MULTISLO_E2E_KUBECONFIG does not run what needs it."""
    return runtime.scene.cluster.processes.all["kube-apiserver"]


async def retried(check: Callable[[], Any]) -> None:
    """A kubectl that fails has not shown yet what is waited for."""
    from cluster.scene import KubectlFailed

    try:
        await check()
    except KubectlFailed as error:
        raise AssertionError(str(error)) from None


@contextlib.asynccontextmanager
async def repeatedly(act: Callable[[int], Any], every_s: float) -> AsyncIterator[None]:
    """Somebody else, at work in the background."""

    async def go_on() -> None:
        number = 0
        while True:
            await act(number)
            number += 1
            await asyncio.sleep(every_s)

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# -- what is large -----------------------------------------------------------------------------------------------------------


async def test_an_object_of_megabytes_that_keeps_changing_costs_the_operator_nothing(runtime: Runtime) -> None:
    """JSON makes six bytes of each of its characters, so that one event of the watch is a line of six megabytes."""
    operator = runtime.operator()
    runtime.scene.apply(manifest())
    await settled(runtime, operator)

    labels = {"app.kubernetes.io/managed-by": "multislo-operator", "app.kubernetes.io/instance": "fleet"}
    container = {"name": "c", "image": "none", "env": [{"name": "TEXT", "value": "<" * 750_000}]}
    large = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "large", "labels": labels, "annotations": {"theirs": "<" * 240_000}},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}},
        },
    }
    path = f"/apis/apps/v1/namespaces/{runtime.scene.namespace}/deployments"
    await runtime.scene.api.create(path, large)  # kubectl would send the escapes, and the server takes 3 MB.
    for number in range(5):
        await runtime.scene.api.patch(f"{path}/large", {"metadata": {"annotations": {"number": str(number)}}})

    runtime.scene.apply(manifest(instances_min=2))
    await settled(runtime, operator, instances=2)
    operator.must_live()
    failed = {name for name in await runtime.metrics(operator) if "watch_failures_total{" in name}
    assert not failed
    assert "Traceback" not in operator.text()
