"""Two operators over one namespace, events of a fleet that comes again, and what kubectl says to who would scale a fleet itself."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from cluster.fleets import CHAT, Fleets, fleet, tier, uids
from cluster.processes import Process
from cluster.scene import KubectlFailed, Scene, wait_for

ROUTER = {"app.kubernetes.io/component": "router"}


@pytest_asyncio.fixture(loop_scope="session")
async def fleets(scene: Scene, tmp_path: Path) -> AsyncIterator[Fleets]:
    async with aiohttp.ClientSession() as session:
        yield Fleets.install(scene, session, tmp_path)


def installed(fleets: Fleets, home: str, key: Path) -> Process:
    """An operator whose Lease is in a namespace of its own."""
    own = fleets.scene.namespace
    return fleets.scene.start_operator(
        "--namespace", own, "--lease-namespace", home, "--key-file", str(key), "--metrics-port", "0"
    )  # fmt: skip


async def test_of_two_operators_the_first_goes_on_and_both_say_so(fleets: Fleets, tmp_path: Path) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    homes = [f"{fleets.scene.namespace}-{name}" for name in ("one", "two")]
    other_key = tmp_path / "other"
    other_key.write_text("a key of another installation")
    for home in homes:
        fleets.scene.kubectl("create", "namespace", home)
    try:
        first = installed(fleets, homes[0], fleets.key)
        fleets.scene.apply(fleet(tiers=[CHAT]))
        await fleets.runs(chat=1)
        await fleets.says("Ready", "Serving")
        await fleets.says("SoleOperator", "Alone")
        await fleets.rests(first)
        before = uids(await fleets.scene.pods(**ROUTER))

        second = installed(fleets, homes[1], other_key)
        message = await fleets.says("SoleOperator", "AnotherOperator")
        assert homes[1] in message
        notes = await fleets.events("AnotherOperator")
        assert any(f"{homes[1]}/multislo-operator" in note and "stands aside" in note for note in notes), notes
        await asyncio.sleep(30)
        assert uids(await fleets.scene.pods(**ROUTER)) == before, "nobody rolls a router"
        assert await fleets.writes(second) == await fleets.writes(second, "Event")
        assert (await fleets.told("Ready"))[0] == "True"
        fleets.scene.apply(fleet(tiers=[tier("chat", "50ms", 2)]))
        await fleets.runs(chat=2)

        assert first.stop() == 0
        fleets.scene.apply(fleet(tiers=[tier("chat", "50ms", 3)]))
        await fleets.runs(chat=3)
        await fleets.says("SoleOperator", "Alone")
    finally:
        for operator in fleets.scene.operators:
            operator.stop()
        for home in homes:
            fleets.scene.kubectl("delete", "namespace", home, "--wait=false")


async def test_the_first_event_of_a_fleet_that_comes_again_is_said(fleets: Fleets) -> None:
    await fleets.scene.add_nodes(1)
    fleets.scene.start_many_routers()
    fleets.operator()
    for _ in range(2):
        fleets.scene.apply(fleet(tiers=[CHAT]))
        await fleets.runs(chat=1)
        uid = (await fleets.resource())["metadata"]["uid"]
        await wait_for("its first instance is an event", lambda uid=uid: scaled_up(fleets, uid))  # type: ignore[misc]
        fleets.scene.kubectl("delete", "mslo/fleet")


async def scaled_up(fleets: Fleets, uid: str) -> None:
    events = await fleets.scene.api.items(fleets.path("/apis/events.k8s.io/v1", "events"))
    assert [event for event in events if event["regarding"].get("uid") == uid and event["reason"] == "ScaledUp"]


async def test_who_would_scale_a_fleet_itself_is_told_that_it_has_no_scale(fleets: Fleets) -> None:
    fleets.scene.apply(fleet(tiers=[CHAT]))
    with pytest.raises(KubectlFailed, match="could not find scale subresource"):
        fleets.scene.kubectl("autoscale", "mslo/fleet", "--min=1", "--max=3")
    with pytest.raises(KubectlFailed, match='"fleet" not found'):
        fleets.scene.kubectl("scale", "mslo/fleet", "--replicas=3")
