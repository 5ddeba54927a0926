"""A fleet that does not come up says why, as the cluster's own parts say it: quota, LimitRange, PodSecurity, scheduler, registry, kubelet.
Pods here are only said to run, so what a kubelet would write stands in their status; the rest is real."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio

from cluster.api import Object
from cluster.fleets import CHAT, Fleets, figure, fleet
from cluster.scene import Scene, condition, wait_for


@pytest_asyncio.fixture(loop_scope="session")
async def fleets(scene: Scene, tmp_path: Path) -> AsyncIterator[Fleets]:
    async with aiohttp.ClientSession() as session:
        yield Fleets.install(scene, session, tmp_path)


async def create(fleets: Fleets, plural: str, document: Object) -> None:
    await fleets.scene.api.create(fleets.path("/api/v1", plural), document)


def wide(fleets: Fleets) -> str:
    return fleets.scene.kubectl("get", "mslo", "fleet", "-o", "wide")


async def row(fleets: Fleets, name: str = "chat") -> str:
    rows = {row["name"]: row for row in (await fleets.resource())["status"]["tiers"]}
    return str(rows[name].get("reason", ""))


async def said_once(fleets: Fleets, reason: str, words: str) -> None:
    """One event, not one a second."""
    await wait_for(f"an event {reason}", lambda: _event(fleets, reason, words))
    await asyncio.sleep(5.0)
    events = [event for event in await fleets.events(reason) if words in event]
    assert len(events) == 1, events


async def _event(fleets: Fleets, reason: str, words: str) -> None:
    events = await fleets.events(reason)
    assert any(words in event for event in events), events


async def test_a_memory_quota_that_stops_engines_is_named_everywhere_until_it_is_raised(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    quota = {"metadata": {"name": "small"}, "spec": {"hard": {"limits.memory": "3Gi"}}}
    await create(fleets, "resourcequotas", quota)
    fleets.operator()
    fleets.scene.apply(fleet(tiers=[CHAT]))

    # The router has a limit of its own, so the quota lets it in; an engine has none.
    message = await fleets.says("Ready", "QuotaExceeded")
    assert "chat 0 of 1" in message
    assert "must specify limits.memory for: engine" in message
    assert (await fleets.told("RouterReady"))[0] == "True"
    assert "must specify limits.memory" in await row(fleets)
    assert "must specify limits.memory" in wide(fleets)
    assert "QuotaExceeded" in wide(fleets)
    await said_once(fleets, "QuotaExceeded", "must specify limits.memory for: engine")

    fleets.scene.kubectl("delete", "resourcequota", "small")
    raised_at = time.monotonic()
    await fleets.says("Ready", "Serving")
    figure("a memory quota is raised", serves_after_s=round(time.monotonic() - raised_at, 1))


async def test_a_quota_that_stops_the_router_is_the_reason_of_router_ready(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    await create(fleets, "resourcequotas", {"metadata": {"name": "small"}, "spec": {"hard": {"limits.cpu": "1"}}})
    fleets.operator()
    fleets.scene.apply(fleet(tiers=[CHAT]))

    message = await fleets.says("RouterReady", "QuotaExceeded")

    assert "must specify limits.cpu for: router" in message
    assert (await fleets.told("Ready"))[:2] == ("False", "QuotaExceeded")
    assert "must specify limits.cpu for: router" in wide(fleets)


async def test_a_limit_range_and_pod_security_are_named(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    limits = {"limits": [{"type": "Container", "max": {"memory": "64Mi"}, "default": {"memory": "64Mi"}}]}
    await create(fleets, "limitranges", {"metadata": {"name": "tiny"}, "spec": limits})
    fleets.operator()
    fleets.scene.apply(fleet(tiers=[CHAT]))

    assert "maximum memory usage per Container is 64Mi" in await fleets.says("RouterReady", "LimitRangeViolated")
    fleets.scene.kubectl("delete", "limitrange", "tiny")
    await privileged_only(fleets)


async def privileged_only(fleets: Fleets) -> None:
    """Namespace with PodSecurity restricted, and a fleet whose engines want the host's network."""
    space = fleets.scene.namespace
    fleets.scene.kubectl("delete", "mslo", "fleet")
    fleets.scene.kubectl("label", "namespace", space, "pod-security.kubernetes.io/enforce=restricted")
    wanted = fleet("other", tiers=[CHAT])
    wanted["spec"]["engine"]["podTemplate"] = {"spec": {"hostNetwork": True}}
    fleets.scene.apply(wanted)
    message = await fleets.says("WorkloadsReady", "PodSecurityRefused", "other")
    assert "host namespaces (hostNetwork=true)" in message


async def test_a_taint_is_in_the_schedulers_words_and_goes_away_with_it(fleets: Fleets) -> None:
    (node,) = await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    fleets.operator()
    fleets.scene.kubectl("taint", "node", node, "team=others:NoSchedule")
    fleets.scene.apply(fleet(tiers=[CHAT]))

    assert "taint" in await fleets.says("Ready", "Unschedulable")
    assert "taint" in wide(fleets)
    await said_once(fleets, "Unschedulable", "fleet-router")

    fleets.scene.kubectl("taint", "node", node, "team-")
    await fleets.says("Ready", "Serving")


async def test_a_claim_that_nobody_made_is_a_volume_that_is_not_there(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    fleets.operator()
    wanted = fleet(tiers=[CHAT])
    wanted["spec"]["engine"]["cache"] = {"claim": "weights"}
    fleets.scene.apply(wanted)

    assert 'persistentvolumeclaim "weights" not found' in await fleets.says("Ready", "VolumePending")


async def test_an_extra_instance_without_a_place_leaves_the_fleet_ready(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1, gpus=2)
    fleets.scene.start_many_routers()
    fleets.operator()
    fleets.scene.apply(fleet(tiers=[CHAT], annotations={"multislo.dev/scaling": "External"}))
    await fleets.says("Ready", "Serving")

    await fleets.scale("fleet-chat", 3, "an-autoscaler")

    message = await fleets.says("ScalingReady", "CapacityShort")
    assert "Insufficient nvidia.com/gpu" in message
    assert "Insufficient nvidia.com/gpu" in wide(fleets)
    assert "Insufficient nvidia.com/gpu" in await row(fleets)
    assert (await fleets.told("Ready"))[:2] == ("True", "Serving")
    assert (await fleets.told("WorkloadsReady"))[0] == "True"
    await said_once(fleets, "Unschedulable", "fleet-chat")

    await fleets.scene.add_nodes(1, gpus=2)
    await fleets.says("ScalingReady", "External")
    await fleets.runs(chat=3)


STUCK: dict[str, tuple[Any, str, str]] = {
    "image": (
        {"waiting": {"reason": "ImagePullBackOff", "message": "manifest for a/b:c not found"}},
        "ImagePullFailed",
        "manifest for a/b:c not found",
    ),
    "secret of a variable": (
        {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}},
        "ConfigMissing",
        'secret "hf" not found',
    ),
    "crash": (
        {"terminated": {"exitCode": 3, "reason": "Error", "message": "loading\nunrecognized arguments: --x"}},
        "Crashing",
        "ended with exit code 3: unrecognized arguments: --x",
    ),
    "memory": ({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "OutOfMemory", "more memory than its limit"),
}


async def test_what_a_kubelet_writes_into_a_pod_is_said_of_engine_and_router(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    fleets.operator()
    # They would be ready after an hour.
    fleets.scene.apply(fleet(tiers=[CHAT], pods={"e2e.multislo.dev/startup": "1h"}))

    async def engine() -> Object:
        (pod,) = await fleets.engines("chat")
        assert pod.get("status", {}).get("containerStatuses"), pod.get("status")
        return pod

    pod = await wait_for("the engine runs", engine)
    for state, reason, words in STUCK.values():
        await write(fleets, pod, "containerStatuses", "engine", state)
        assert words in await fleets.says("Ready", reason)
        assert words in await row(fleets)
    await write(fleets, pod, "containerStatuses", "engine", {"waiting": {"reason": "PodInitializing"}})
    await write(fleets, pod, "initContainerStatuses", "fetch", STUCK["crash"][0])
    assert "init container fetch ended" in await fleets.says("Ready", "InitFailing")


async def write(fleets: Fleets, pod: Object, where: str, container: str, state: Object) -> None:
    status = {"name": container, "image": "a/b:c", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    path = fleets.path("/api/v1", "pods", pod["metadata"]["name"]) + "/status"
    await fleets.scene.api.patch(path, {"status": {where: [status]}}, "application/merge-patch+json")


async def test_a_missing_secret_of_a_volume_is_told_from_the_kubelets_event(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    fleets.operator()
    fleets.scene.apply(fleet(tiers=[CHAT], pods={"e2e.multislo.dev/startup": "1h"}))

    async def engine() -> Object:
        (pod,) = await fleets.engines("chat")
        assert condition(pod, "PodScheduled").get("status") == "True"
        assert pod["status"].get("containerStatuses"), pod["status"]
        return pod

    pod = await wait_for("the engine has a node", engine)
    await write(fleets, pod, "containerStatuses", "engine", {"waiting": {"reason": "ContainerCreating"}})
    metadata = pod["metadata"]
    words = 'MountVolume.SetUp failed for volume "keys" : secret "api-keys" not found'
    about = {"kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    event = {
        "metadata": {"name": f"{metadata['name']}.1"}, "involvedObject": about, "type": "Warning", "reason": "FailedMount",
        "message": words, "firstTimestamp": now, "lastTimestamp": now, "count": 1, "source": {"component": "kubelet"},
    }  # fmt: skip
    await create(fleets, "events", event)

    assert words in await fleets.says("Ready", "ConfigMissing")
    await said_once(fleets, "ConfigMissing", words)
