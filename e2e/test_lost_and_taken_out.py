"""Instances that hold a place without serving: on a lost node, or taken out of the fleet by hand. Real routers and emulated engines as
processes on fake nodes."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from cluster.api import Object
from cluster.scene import Scene, wait_for
from fleet_story import Fleet, a_fleet, figures, scaling, spec, tier

HOST = "kubernetes.io/hostname"


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(scene: Scene, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with a_fleet(scene, tmp_path) as made:
        yield made
        made.no_errors()


async def chats(fleet: Fleet) -> dict[str, Object]:
    """The tier's pods that have been let go, by name."""
    pods = await fleet.scene.pods(**{"multislo.dev/tier": "chat"})
    return {pod["metadata"]["name"]: pod for pod in pods if not pod["spec"].get("schedulingGates")}


async def test_a_lost_nodes_pod_gives_its_place_in_the_budget_back(fleet: Fleet) -> None:
    doors, *others = [*fleet.scene.nodes, *await fleet.scene.add_nodes(2, 1, processes=True)]
    at_the_door: dict[str, Any] = {"podTemplate": {"spec": {"nodeSelector": {HOST: doors}}}}
    gpu = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    elsewhere = {"matchExpressions": [{"key": HOST, "operator": "In", "values": others}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [elsewhere]}}}
    wanted = spec(tiers=[tier("chat", "500ms", "40ms", 1, 1)], scaling=scaling(1), router=at_the_door)
    wanted["engine"]["podTemplate"] = {"spec": {"affinity": affinity, "containers": [{"name": "engine", **gpu}]}}
    await fleet.ready(wanted, chat=1)
    (lost,) = await chats(fleet)
    node = (await chats(fleet))[lost]["spec"]["nodeName"]

    began = time.monotonic()
    await fleet.scene.lose_node(node)
    said = await wait_for("it says who holds the place", lambda: fleet.says("WorkloadsReady", "False", "NodeLost"))
    assert lost in said["message"]
    assert node in said["message"]
    row = (await fleet.resource())["status"]["tiers"][0]
    assert lost in row["reason"]

    await fleet.becomes("Ready", "True")
    replaced_s = round(time.monotonic() - began, 1)
    figures("budget of one, node lost", replaced_s=replaced_s)
    there = await chats(fleet)
    assert "deletionTimestamp" in there[lost]["metadata"]
    (new,) = set(there) - {lost}
    assert there[new]["spec"]["nodeName"] in set(others) - {node}
    status = (await fleet.resource())["status"]
    assert status["accelerators"] == {"used": 1, "max": 1}
    assert any(lost in note for note in status["notes"]), status["notes"]

    await fleet.scene.find_node(node)

    async def ended() -> None:
        assert set(await chats(fleet)) == {new}

    await wait_for("the old pod ends when its node is back", ended)
    assert (await fleet.resource())["status"]["accelerators"]["used"] == 1


async def test_a_pod_whose_tier_label_is_removed_is_out_of_the_fleet_at_once(fleet: Fleet) -> None:
    await fleet.ready(spec(tiers=[tier("chat", "500ms", "40ms", 2, 3)], scaling=scaling(2)), chat=2)
    out = fleet.answering("chat")[0].name
    fleet.scene.kubectl("label", "pod", out, "multislo.dev/tier-")

    async def gone() -> None:
        listed = {i["id"]: i["state"] for i in (await fleet.snapshot())["instances"]}
        assert listed.get(out, "draining") == "draining", listed

    await wait_for("the router sends it nothing new", gone)

    async def told() -> None:
        notes = (await fleet.resource())["status"].get("notes", [])
        assert any(out in note for note in notes), notes

    await wait_for("the status names it", told)
    assert len(await chats(fleet)) == 1, "the budget has no place for a third"

    await fleet.change({"scaling": {"acceleratorsMax": 3}})

    async def replaced() -> None:
        answering = {life.name for life in fleet.answering("chat")} - {out}
        assert len(answering) == 2, answering

    await wait_for("another one takes its place", replaced)
    pod = await fleet.scene.api.get(f"/api/v1/namespaces/{fleet.scene.namespace}/pods/{out}")
    assert "deletionTimestamp" not in pod["metadata"]
    assert not pod["metadata"].get("ownerReferences")
