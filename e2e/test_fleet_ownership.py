"""Whose things are: a fleet that is deleted, with its operator or without; names that others have; an operator of the next version. On a
real API server with fake nodes, whose pods are only said to run.
"""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio

from cluster.fleets import BATCH, CHAT, Fleets, figure, fleet, tier, uids
from cluster.processes import Process
from cluster.scene import Scene, wait_for

"""The garbage collector hears of a kind that has just been made known with its next look at the API, half a minute later at worst."""


@pytest_asyncio.fixture(loop_scope="session")
async def fleets(scene: Scene, tmp_path: Path) -> AsyncIterator[Fleets]:
    async with aiohttp.ClientSession() as session:
        yield Fleets.install(scene, session, tmp_path)


# -- deletion ----------------------------------------------------------------------------------------------------------------


async def test_what_is_deleted_while_the_operator_is_down_is_gone_for_good(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    operator = fleets.operator()
    fleets.scene.apply(fleet())
    await fleets.runs(chat=1, batch=1)
    assert operator.stop() == 0

    fleets.scene.kubectl("delete", "mslo/fleet")
    deleted_at = time.monotonic()
    await wait_for("all that was the fleet's is collected", lambda: nothing_left(fleets))
    figure("deleted without an operator", collected_s=round(time.monotonic() - deleted_at, 2))

    operator.start()
    await wait_for("it looks after nothing", lambda: looks_after(fleets, operator, 0))
    await fleets.is_quiet(operator, 5.0)
    assert await fleets.writes(operator) == 0
    await nothing_left(fleets)


async def test_a_deleted_fleet_is_collected_and_one_of_its_name_begins_anew(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    operator = fleets.operator()
    fleets.scene.apply(fleet())
    await fleets.runs(chat=1, batch=1)
    earlier = uids(await fleets.engines("chat"))

    fleets.scene.kubectl("delete", "mslo/fleet")
    await wait_for("all that was the fleet's is collected", lambda: nothing_left(fleets))
    await wait_for("it looks after nothing", lambda: looks_after(fleets, operator, 0))
    await fleets.is_quiet(operator)

    fleets.scene.apply(fleet())
    await fleets.runs(chat=1, batch=1)
    # And at once, while the garbage collector is still at work on the earlier one's.
    fleets.scene.kubectl("delete", "mslo/fleet", "--wait=false")
    await wait_for("the resource is gone", lambda: gone(fleets))
    fleets.scene.apply(fleet())
    await fleets.runs(chat=1, batch=1)
    await fleets.rests(operator)
    assert not uids(await fleets.engines("chat")) & earlier
    problems = [line for line in operator.text().splitlines() if " ERROR " in line or "Traceback" in line]
    assert not problems, problems


# -- names -------------------------------------------------------------------------------------------------------------------


async def test_a_name_that_another_fleet_has_is_left_to_it(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    operator = fleets.operator()
    fleets.scene.apply(fleet("a-b", tiers=[tier("c", "50ms", 2)]))
    await fleets.runs("a-b", c=2)
    await fleets.rests(operator)
    theirs = await fleets.deployment("a-b-c")

    fleets.scene.apply(fleet("a", tiers=[CHAT, tier("b-c", "100ms")]))

    message = await fleets.says("WorkloadsReady", "NameTaken", "a")
    assert "Deployment a-b-c belongs to MultiSLOServing a-b" in message
    assert any("Deployment a-b-c" in note for note in await fleets.events("NameTaken"))
    await fleets.runs("a", chat=1)
    await fleets.rests(operator)
    kept = await fleets.deployment("a-b-c")
    assert (kept["metadata"]["uid"], kept["metadata"]["generation"]) == (
        theirs["metadata"]["uid"],
        theirs["metadata"]["generation"],
    )
    assert kept["metadata"]["labels"] == theirs["metadata"]["labels"]
    await fleets.runs("a-b", c=2)

    fleets.scene.kubectl("delete", "mslo/a-b")
    await fleets.runs("a", chat=1, **{"b-c": 1})
    await fleets.rests(operator)
    assert (await fleets.told("WorkloadsReady", "a"))[1] != "NameTaken"


async def test_a_copy_of_a_tiers_deployment_under_another_name_is_not_the_fleets(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    operator = fleets.operator()
    fleets.scene.apply(fleet())
    await fleets.runs(chat=1, batch=1)
    chat = await fleets.deployment("fleet-chat")
    labels = chat["metadata"]["labels"]
    copied = {"metadata": {"name": "fleet-a-copy", "labels": labels}, "spec": {**chat["spec"], "replicas": 0}}
    made = await fleets.scene.api.create(fleets.path("/apis/apps/v1", "deployments"), copied)

    fleets.scene.apply(fleet(tiers=[tier("chat", "50ms", 2), BATCH]))
    await fleets.runs(chat=2, batch=1)
    await fleets.rests(operator)

    kept = await fleets.deployment("fleet-a-copy")
    assert kept["metadata"]["generation"] == made["metadata"]["generation"]
    assert (await fleets.deployment("fleet-chat"))["spec"]["replicas"] == 2


async def test_a_service_and_a_deployment_of_somebody_else_are_not_taken_over(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    operator = fleets.operator()
    fleets.scene.kubectl("create", "service", "clusterip", "fleet", "--tcp=80:80")
    fleets.scene.kubectl("create", "deployment", "fleet-chat", "--image=web:1", "--replicas=0")
    before = (fleets.scene.get("service", "fleet")["spec"], fleets.scene.get("deployment", "fleet-chat")["spec"])

    fleets.scene.apply(fleet())

    message = await fleets.says("WorkloadsReady", "NameTaken")
    assert "Service fleet belongs to" in message
    assert "Deployment fleet-chat belongs to" in message
    await fleets.runs(batch=1)
    await fleets.rests(operator)
    assert (
        fleets.scene.get("service", "fleet")["spec"],
        fleets.scene.get("deployment", "fleet-chat")["spec"],
    ) == before

    fleets.scene.kubectl("delete", "service/fleet", "deployment/fleet-chat")
    await fleets.runs(chat=1, batch=1)
    assert fleets.scene.get("service", "fleet")["spec"]["ports"][0]["port"] == 8000


# -- another operator ----------------------------------------------------------------------------------------------------------


async def test_an_operator_of_the_next_version_restarts_no_engine(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    operator = fleets.operator(image="multislo:0.1.0")
    fleets.scene.apply(fleet(tiers=[tier("chat", "50ms", 2), BATCH]))
    await fleets.runs(chat=2, batch=1)
    await fleets.rests(operator)
    engines = uids([*await fleets.engines("chat"), *await fleets.engines("batch")])
    generation = (await fleets.deployment("fleet-chat"))["metadata"]["generation"]

    assert operator.stop() == 0
    following = fleets.operator(image="multislo:0.1.1")

    async def routers_roll() -> None:
        routers = await fleets.scene.pods(**{"app.kubernetes.io/component": "router"})
        images = {pod["spec"]["containers"][0]["image"] for pod in routers}
        assert images == {"multislo:0.1.1"}, images

    await wait_for("the routers are of the new version", routers_roll)
    await fleets.says("Ready", "Serving")
    await fleets.rests(following)
    assert uids([*await fleets.engines("chat"), *await fleets.engines("batch")]) == engines
    assert (await fleets.deployment("fleet-chat"))["metadata"]["generation"] == generation


# -- what they look at ---------------------------------------------------------------------------------------------------------


async def nothing_left(fleets: Fleets) -> None:
    left = await fleets.children()
    assert not left, left


async def looks_after(fleets: Fleets, operator: Process, number: int) -> None:
    found = await fleets.metrics(operator)
    assert found["multislo_operator_fleets"] == number, found["multislo_operator_fleets"]


async def gone(fleets: Fleets) -> None:
    path = fleets.path("/apis/multislo.dev/v1alpha1", "multisloservings", "fleet")
    assert await fleets.scene.api.find(path) is None
