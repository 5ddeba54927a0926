"""What becomes of a fleet when things are short, wrong or edited by others: stories on a real API server with fake nodes.
Their pods are only said to run; the routers' answers are real.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest_asyncio

from cluster.api import STRATEGIC, Object
from cluster.fleets import BATCH, CHAT, Fleets, emulated, figure, fleet, gated, tier, uids
from cluster.processes import Process
from cluster.scene import Scene, condition, wait_for

SHIPPED = Path(__file__).parent.parent / "profiles" / "multislo_perf" / "shipped" / "llama-3.1-8b-h200-tp1.yaml"
FLEETS = 50


@pytest_asyncio.fixture(loop_scope="session")
async def fleets(scene: Scene, tmp_path: Path) -> AsyncIterator[Fleets]:
    async with aiohttp.ClientSession() as session:
        yield Fleets.install(scene, session, tmp_path)


# -- accelerators ----------------------------------------------------------------------------------------------------------


async def test_where_the_nodes_have_too_few_accelerators_pods_wait_and_no_more_are_asked_for(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1, gpus=2)
    fleets.scene.start_many_routers()
    operator = fleets.operator()
    fleets.scene.apply(fleet(tiers=[tier("chat", "50ms", 2), tier("batch", "100ms", 2)]))

    async def two_wait() -> list[str]:
        pods = [*await fleets.engines("chat"), *await fleets.engines("batch")]
        waiting = [pod["metadata"]["name"] for pod in pods if not pod["spec"].get("nodeName")]
        assert len(pods) == 4, [pod["metadata"]["name"] for pod in pods]
        assert len(waiting) == 2, waiting
        return waiting

    message = await fleets.says("WorkloadsReady", "Unschedulable")
    waiting = await wait_for("two of four pods wait for a node", two_wait)
    assert any(name in message for name in waiting), message
    assert "nvidia.com/gpu" in message
    await fleets.says("ScalingReady", "InstancesNotComingUp")
    await fleets.rests(operator)
    before = await fleets.writes(operator)
    for _ in range(10):
        await asyncio.sleep(3.0)
        await two_wait()
    figure("gpu shortage", pending=2, writes_in_30_s=await fleets.writes(operator) - before)
    assert await fleets.writes(operator) == before

    came_at = time.monotonic()
    await fleets.scene.add_nodes(1, gpus=2)
    await fleets.runs(chat=2, batch=2)
    assert await fleets.says("WorkloadsReady", "InstancesReady") == "4 instances are ready"
    figure("gpu shortage", running_after_a_node_came_s=round(time.monotonic() - came_at, 2))


async def test_the_one_that_serves_is_kept_and_the_one_that_no_node_takes_goes(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1, gpus=1)
    fleets.scene.start_many_routers()
    operator = fleets.operator()
    fleets.scene.apply(chats(2))
    await fleets.says("WorkloadsReady", "Unschedulable")
    await one_of_two_serves_and_is_the_one_that_stays(fleets, operator, chats(1))


async def test_the_one_that_serves_is_kept_and_the_one_that_crashes_goes(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1, gpus=2)
    fleets.scene.start_many_routers()
    operator = fleets.operator()
    never = {"e2e.multislo.dev/startup": "3600s"}
    fleets.scene.apply(chats(2, never))

    async def both_run() -> list[Object]:
        pods = await fleets.engines("chat")
        assert [pod["status"]["phase"] for pod in pods] == ["Running", "Running"]
        return pods

    serves, crashes = await wait_for("both containers run", both_run)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    answers = {"type": "ContainersReady", "status": "True", "lastTransitionTime": now}
    await patch_status(fleets, serves, {"conditions": [answers]})
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"}}
    broken = {**crashes["status"]["containerStatuses"][0], "ready": False, "restartCount": 5, "state": waiting}
    await patch_status(fleets, crashes, {"containerStatuses": [broken]})
    await fleets.says("WorkloadsReady", "Crashing")
    await one_of_two_serves_and_is_the_one_that_stays(fleets, operator, chats(1, never))


async def patch_status(fleets: Fleets, pod: Object, status: Object) -> None:
    path = fleets.path("/api/v1", "pods", pod["metadata"]["name"]) + "/status"
    await fleets.scene.api.patch(path, {"status": status}, STRATEGIC)


def chats(least: int, pods: dict[str, str] | None = None) -> Object:
    return fleet(tiers=[tier("chat", "50ms", least)], pods=pods)


async def one_of_two_serves_and_is_the_one_that_stays(fleets: Fleets, operator: Process, wanted: Object) -> None:
    def is_ready(pod: Object) -> bool:
        return condition(pod, "Ready").get("status") == "True"

    async def one_serves() -> set[str]:
        pods = await fleets.engines("chat")
        ready = [pod for pod in pods if is_ready(pod)]
        assert (len(pods), len(ready)) == (2, 1)
        return uids(ready)

    serves = await wait_for("one of two serves", one_serves)
    fleets.scene.apply(wanted)
    begun = time.monotonic()

    async def only_that_one() -> None:
        pods = await fleets.engines("chat")
        assert uids(pods) == serves, [(pod["metadata"]["name"], is_ready(pod)) for pod in pods]

    await wait_for("the other one goes", only_that_one)
    figure("one serves, one does not", gone_after_s=round(time.monotonic() - begun, 1))
    await fleets.rests(operator)
    await asyncio.sleep(5.0)  # five times the stabilisation
    await only_that_one()
    assert await fleets.events("Draining") == []
    assert (await fleets.told("Ready"))[0] == "True"


async def test_pods_beyond_the_budget_stay_gated_and_the_first_tier_comes_first(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1, gpus=8)
    fleets.scene.start_many_routers()
    fleets.operator()
    slow = {"e2e.multislo.dev/stopping": "3s"}
    fleets.scene.apply(fleet(accelerators=2, pods=slow))
    await fleets.runs(chat=1, batch=1)
    for deployment in ("fleet-batch", "fleet-chat"):
        fleets.scene.kubectl("scale", f"deployment/{deployment}", "--replicas=3")

    async def beyond_are_gated(chat: int, batch: int) -> None:
        for at, running in (("chat", chat), ("batch", batch)):
            pods = await fleets.engines(at)
            assert len(pods) == 3, [pod["metadata"]["name"] for pod in pods]
            assert sum(not gated(pod) for pod in pods) == running, [(p["metadata"]["name"], gated(p)) for p in pods]

    await wait_for("four pods wait at the gate", lambda: beyond_are_gated(1, 1))
    await asyncio.sleep(5.0)
    await beyond_are_gated(1, 1)
    fleets.scene.apply(fleet(accelerators=4, pods=slow))
    await wait_for("the first tier gets both", lambda: beyond_are_gated(3, 1))

    held_most = 0
    (victim,) = [pod for pod in await fleets.engines("batch") if not gated(pod)]
    fleets.scene.kubectl("delete", "pod", victim["metadata"]["name"], "--wait=false")
    end = time.monotonic() + 8.0
    while time.monotonic() < end:
        pods = [*await fleets.scene.pods(**{"app.kubernetes.io/component": "engine"})]
        held_most = max(held_most, sum(not gated(pod) for pod in pods))
        await asyncio.sleep(0.05)
    await wait_for("the next of the tier takes its place", lambda: beyond_are_gated(3, 1))
    assert held_most == 4, "what is being deleted holds its accelerator until it is gone"


# -- other hands -----------------------------------------------------------------------------------------------------------


async def test_replicas_that_a_hand_has_set_are_kept_and_reported(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    operator = fleets.operator()
    fleets.scene.apply(fleet())
    await fleets.runs(chat=1, batch=1)
    await fleets.rests(operator)
    scaled = await fleets.writes(operator, "Deployment", "scale")

    fleets.scene.kubectl("scale", "deployment/fleet-chat", "--replicas=3")

    await fleets.runs(chat=3, batch=1)
    message = await fleets.says("ScalingReady", "ReplicasEditedOutside")
    assert "kubectl set the replicas of fleet-chat to 3" in message
    assert (await fleets.resource())["status"]["notes"] == ["kubectl holds the replicas of fleet-chat"]
    await fleets.rests(operator)
    await asyncio.sleep(10.0)
    await fleets.runs(chat=3, batch=1)
    assert await fleets.writes(operator, "Deployment", "scale") == scaled


async def test_a_writer_who_sets_replicas_again_and_again_finds_nobody_who_writes_against_it(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    operator = fleets.operator()
    fleets.scene.apply(fleet())
    await fleets.runs(chat=1, batch=1)
    await fleets.rests(operator)
    deployments = await fleets.writes(operator, "Deployment")
    before = await fleets.writes(operator)

    for number in range(8):
        await fleets.scale("fleet-chat", (3, 2)[number % 2], "an-autoscaler")
        await asyncio.sleep(2.5)

    assert "an-autoscaler" in await fleets.says("ScalingReady", "ReplicasEditedOutside")
    spent = await fleets.writes(operator) - before
    against = await fleets.writes(operator, "Deployment") - deployments
    figure("edits every 2.5 s", edits=8, seconds=20, writes_to_deployments=against, writes=spent)
    assert against == 0
    assert spent < 60, "of each pod that came its gate and its readiness, and the status"
    await fleets.runs(chat=2, batch=1)
    await fleets.rests(operator)


async def test_external_scaling_begins_with_the_minima_and_is_left_to_others_from_then_on(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    operator = fleets.operator()
    external = {"multislo.dev/scaling": "External"}
    fleets.scene.apply(fleet(annotations=external))
    await fleets.says("ScalingReady", "External")
    # An HPA does nothing for a Deployment of 0 replicas.
    await fleets.runs(chat=1, batch=1)
    await fleets.rests(operator)
    scaled = await fleets.writes(operator, "Deployment", "scale")

    await fleets.scale("fleet-chat", 3, "an-autoscaler")
    await fleets.runs(chat=3, batch=1)
    fleets.scene.apply(fleet(tiers=[CHAT, tier("batch", "100ms", 2)], annotations=external))
    await asyncio.sleep(5.0)
    await fleets.runs(chat=3, batch=1)
    await fleets.scale("fleet-chat", 1, "an-autoscaler")
    await fleets.runs(chat=1, batch=1)

    assert await fleets.writes(operator, "Deployment", "scale") == scaled
    fleets.scene.kubectl("annotate", "mslo/fleet", "multislo.dev/scaling-")
    fleets.scene.apply(fleet(tiers=[CHAT, tier("batch", "100ms", 2)]))
    await fleets.runs(batch=2)


# -- what cannot be used -----------------------------------------------------------------------------------------------------


async def test_an_slo_that_no_instance_can_meet_changes_nothing_that_runs(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    operator = fleets.operator()
    fleets.scene.apply(fleet())
    await fleets.runs(chat=1, batch=1)
    await fleets.says("Ready", "Serving")
    await fleets.rests(operator)
    before = await objects(fleets)

    fleets.scene.apply(fleet(tiers=[tier("chat", "1ms", 3), BATCH]))

    message = await fleets.says("ProfileReady", "SLOUnattainable")
    assert "tier chat: tpot 1 ms cannot be met" in message
    assert (await fleets.told("Ready"))[:2] == ("False", "SLOUnattainable")
    await fleets.rests(operator)
    await asyncio.sleep(3.0)
    assert await objects(fleets) == before

    fleets.scene.apply(fleet())
    await fleets.says("Ready", "Serving")
    await fleets.rests(operator)
    assert await objects(fleets) == before


async def test_while_its_profile_is_missing_or_broken_a_fleet_serves_on_and_what_it_loses_is_put_back(
    fleets: Fleets,
) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    operator = fleets.operator()
    fleets.scene.kubectl("create", "configmap", "measured", f"--from-file=profile.yaml={SHIPPED}")
    fleets.scene.apply(fleet(profile={"configMap": "measured"}))
    await fleets.runs(chat=1, batch=1)
    await fleets.rests(operator)
    before = await objects(fleets)
    measured = fleets.path("/api/v1", "configmaps", "measured")

    await fleets.scene.api.patch(measured, {"data": {"profile.yaml": "name: [half a"}})
    await fleets.says("ProfileReady", "ProfileInvalid")
    assert (await fleets.told("ScalingReady"))[1] == "ManifestUnusable"
    await fleets.rests(operator)
    assert await objects(fleets) == before

    fleets.scene.kubectl("delete", "configmap", "measured")
    assert '"measured"' in await fleets.says("ProfileReady", "ProfileMissing")
    (victim,) = await fleets.engines("chat")
    fleets.scene.kubectl("delete", "pod", victim["metadata"]["name"])
    await fleets.runs(chat=1, batch=1)

    fleets.scene.kubectl("create", "configmap", "measured", f"--from-file=profile.yaml={SHIPPED}")
    await fleets.says("Ready", "Serving")
    await fleets.rests(operator)
    after = await objects(fleets)
    assert {name for name in after if name.startswith("deployments")} <= {*before}
    assert len(set(before) - set(after)) == 1, "the pod that was deleted alone"


# -- the manifest changes ------------------------------------------------------------------------------------------------------


async def test_tiers_and_limits_can_be_changed_and_what_stays_is_not_restarted(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    operator = fleets.operator()
    fleets.scene.apply(fleet(tiers=[tier("chat", "50ms", 2), BATCH], warm=2))
    await fleets.runs(chat=2, batch=1, warm=0)
    chat = uids(await fleets.engines("chat"))

    fleets.scene.apply(fleet(tiers=[tier("chat", "50ms", 2), tier("voice", "20ms")], warm=2))
    await fleets.runs(chat=2, voice=1)
    await wait_for("the removed tier is gone", lambda: absent(fleets, "batch"))
    assert uids(await fleets.engines("chat")) == chat
    rows = [row["name"] for row in (await fleets.resource())["status"]["tiers"]]
    assert rows == ["chat", "voice"]

    fleets.scene.apply(fleet(tiers=[tier("chat", "50ms", 4), tier("voice", "20ms")], warm=2))
    await fleets.runs(chat=4, voice=1)
    assert chat <= uids(await fleets.engines("chat"))
    fleets.scene.apply(fleet(tiers=[tier("chat", "50ms", 1, 1), tier("voice", "20ms")], warm=2))
    await fleets.runs(chat=1, voice=1)

    fleets.scene.apply(fleet(tiers=[tier("chat", "50ms", 1, 1), tier("voice", "20ms")], warm=0))
    await wait_for("the warm pool is gone", lambda: absent(fleets, "warm"))
    await fleets.rests(operator)
    assert await fleets.says("WorkloadsReady", "InstancesReady") == "2 instances are ready"


# -- many --------------------------------------------------------------------------------------------------------------------


async def test_fifty_fleets_in_one_cluster_all_become_as_they_should(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(2)
    fleets.scene.start_many_routers()
    operator = fleets.operator()
    names = [f"fleet-{number}" for number in range(FLEETS)]
    # One of them is not like the others, and does not hold them up.
    wrong = emulated(fleet("wrong", tiers=[tier("chat", "1ms")]))
    began_at = time.monotonic()
    fleets.scene.apply([wrong, *(emulated(fleet(name)) for name in names)])
    applied_s = time.monotonic() - began_at

    async def all_serve() -> None:
        found = await fleets.scene.api.items(fleets.path("/apis/multislo.dev/v1alpha1", "multisloservings"))
        not_yet = {
            resource["metadata"]["name"]: condition(resource, "Ready").get("reason")
            for resource in found
            if condition(resource, "Ready").get("status") != "True"
        }
        assert not_yet == {"wrong": "SLOUnattainable"}, f"{len(not_yet)} not yet: {dict(list(not_yet.items())[:3])}"

    await wait_for("all of them serve", all_serve, 600, every_s=1.0)
    ready_s = time.monotonic() - began_at
    await fleets.rests(operator)
    pods = await fleets.scene.pods(**{"app.kubernetes.io/component": "engine"})
    figure(
        "fifty fleets", fleets=FLEETS, applied_s=round(applied_s, 1), all_serve_s=round(ready_s, 1), engines=len(pods)
    )
    assert len(pods) == 2 * FLEETS
    found = await fleets.metrics(operator)
    failed = {k: v for k, v in found.items() if k.startswith("multislo_operator_reconciles_total") and '"failed"' in k}
    assert sum(failed.values()) == 0, {k: v for k, v in failed.items() if v}


# -- what they look at ---------------------------------------------------------------------------------------------------------


async def objects(fleets: Fleets) -> dict[str, str]:
    """What a change of a fleet would show in: its children, by name and what changes with them."""
    found = {}
    for root, plural in (("/apis/apps/v1", "deployments"), ("/api/v1", "pods"), ("/api/v1", "configmaps")):
        selector = "app.kubernetes.io/instance=fleet"
        for item in await fleets.scene.api.items(fleets.path(root, plural), labelSelector=selector):
            metadata = item["metadata"]
            version = metadata["uid"] if plural == "pods" else f"{metadata['uid']} {metadata.get('generation')}"
            found[f"{plural} {metadata['name']}"] = version
    return found


async def absent(fleets: Fleets, at: str) -> None:
    """Neither Deployment nor pods of a tier."""
    assert await fleets.scene.api.find(fleets.path("/apis/apps/v1", "deployments", f"fleet-{at}")) is None
    assert not await fleets.engines(at)
