"""What changes while users are served: instances that move between tiers, new templates of engines and routers, a template that is broken,
a node that is lost. No stream that has begun is dropped, but for those on the lost node."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cluster.scene import Scene
from fleet_story import Fleet, Life, a_fleet, figures, scaling, spec, tier, until
from traffic import Flow, Traffic

HOST = "kubernetes.io/hostname"


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(scene: Scene, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with a_fleet(scene, tmp_path) as made:
        yield made
        made.no_errors()


def tiers(chat: int, batch: int) -> list[dict[str, Any]]:
    return [tier("chat", "500ms", "40ms", chat, 3), tier("batch", "2s", "100ms", batch, 3)]


def users_of_every_tier(traffic: Traffic) -> None:
    """Some with short answers, and of some the answer takes seconds."""
    traffic.flow("chat", Flow(6.0, 64, 200))
    traffic.flow("batch", Flow(4.0, 64, 300))


def engines(fleet: Fleet) -> list[Life]:
    """All that were ever let go."""
    return [life for life in fleet.lives.values() if life.component == "engine" and life.let_go_at is not None]


async def test_a_warm_pod_moves_between_tiers_under_traffic_without_a_restart(fleet: Fleet) -> None:
    few = scaling(4, stabilization="8s", warm=(0, 1))
    await fleet.ready(spec(tiers=tiers(2, 0), scaling=few), chat=2, batch=0)
    before = {life.name for life in engines(fleet)}
    async with fleet.traffic() as traffic:
        users_of_every_tier(traffic)
        await asyncio.sleep(3.0)

        await fleet.change({"tiers": tiers(1, 0)})
        await fleet.has(chat=1, batch=0, warm=1)
        moved = fleet.engines("warm")[0]
        asked_at = time.monotonic()
        await fleet.change({"tiers": tiers(1, 1)})
        moved_at = await until("the warm pod is in tier batch", lambda: moved.tier == "batch")
        await fleet.has(chat=1, batch=1, warm=0)
        await fleet.counts(chat=1, batch=1, warm=0)
        await until(
            "it serves the tier's users",
            lambda: any(s.instance == moved.name for s in traffic.streams if s.began_at > moved_at),
        )
        await asyncio.sleep(6.0)
        await traffic.all_ended()
    after = engines(fleet)
    figures(
        "a warm pod moves",
        streams=len(traffic.streams),
        dropped=sum(s.lost for s in traffic.streams),
        tiers=moved.tiers,
        from_the_change_s=round(moved_at - asked_at, 2),
        let_go=len(after),
        restarts=sum(life.restarts for life in after),
    )
    traffic.nobody_was_dropped()
    assert {life.name for life in after} == before, "no third pod may start"
    assert not [life.name for life in after if life.told_to_stop_at or life.restarts]
    assert moved.tiers == ["chat", "warm", "batch"]
    await fleet.holds_nothing()


@pytest.mark.parametrize("accelerators", [4, 3], ids=["with a spare accelerator", "without one"])
async def test_a_new_template_rolls_one_instance_at_a_time_each_drained_first(fleet: Fleet, accelerators: int) -> None:
    await fleet.ready(spec(tiers=tiers(2, 1), scaling=scaling(accelerators)), chat=2, batch=1)
    old = list(engines(fleet))
    async with fleet.traffic() as traffic:
        users_of_every_tier(traffic)
        await asyncio.sleep(3.0)
        begun = time.monotonic()
        await fleet.change({"engine": {"podTemplate": {"metadata": {"annotations": {"e2e": "the next"}}}}})
        await until("all old ones have gone", lambda: all(life.gone_at for life in old))
        await fleet.has(chat=2, batch=1)
        rolled_at = time.monotonic()
        await fleet.becomes("WorkloadsReady", "True", "InstancesReady")
        await asyncio.sleep(2.0)
        await traffic.all_ended()
    new = [life for life in engines(fleet) if life not in old]
    drains = sorted((life.drained_at or 0.0, life.told_to_stop_at or 0.0) for life in old)
    figures(
        f"roll-out of 3 engines, {accelerators} accelerators",
        seconds=round(rolled_at - begun, 1),
        streams=len(traffic.streams),
        dropped=sum(s.lost for s in traffic.streams),
        started=len(new),
        most_at_once=most_at_once(fleet),
        drain_s=[round(stop - drain, 1) for drain, stop in drains],
    )
    traffic.nobody_was_dropped()
    assert len(new) == 3, [life.name for life in new]
    assert all(life.drains for life in old)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(drains)), drains
    assert most_at_once(fleet) <= accelerators
    assert not [life.name for life in engines(fleet) if life.restarts]
    await fleet.holds_nothing()


def most_at_once(fleet: Fleet) -> int:
    """Engines that held a place, those included that were on their way out."""
    changes = [(life.let_go_at or 0.0, 1) for life in engines(fleet)]
    changes += [(life.gone_at, -1) for life in engines(fleet) if life.gone_at is not None]
    most = now = 0
    for _, step in sorted(changes):
        now += step
        most = max(most, now)
    return most


async def test_a_broken_template_stops_the_roll_out_while_the_old_ones_serve_and_a_mended_one_ends_it(
    fleet: Fleet,
) -> None:
    await fleet.ready(spec(tiers=tiers(2, 1), scaling=scaling(4)), chat=2, batch=1)
    old = list(engines(fleet))
    async with fleet.traffic() as traffic:
        users_of_every_tier(traffic)
        begun = time.monotonic()
        broken = {"containers": [{"name": "engine", "command": ["/no/such/program"]}]}
        await fleet.change({"engine": {"podTemplate": {"spec": broken}}})
        stuck_at = await fleet.becomes("WorkloadsReady", "False", "RolloutStuck")
        await asyncio.sleep(8.0)
        told = await fleet.says("WorkloadsReady", "False", "RolloutStuck")
        assert "/no/such/program" in told["message"], told
        assert not [life.name for life in old if life.told_to_stop_at or life.drained_at]
        assert len([life for life in engines(fleet) if life not in old]) == 1, "one is tried, not more"

        mended_at = time.monotonic()
        await fleet.change({"engine": {"podTemplate": None}})
        await fleet.becomes("WorkloadsReady", "True", "InstancesReady")
        recovered_at = time.monotonic()
        await fleet.has(chat=2, batch=1)
        await asyncio.sleep(2.0)
        await traffic.all_ended()
    figures(
        "broken template",
        streams=len(traffic.streams),
        dropped=sum(s.lost for s in traffic.streams),
        stuck_after_s=round(stuck_at - begun, 1),
        recovered_after_s=round(recovered_at - mended_at, 1),
        old_ones_left=len([life for life in old if not life.told_to_stop_at]),
    )
    traffic.nobody_was_dropped()
    assert not [life.name for life in old if life.restarts]


async def test_a_router_roll_out_drops_no_stream(fleet: Fleet) -> None:
    await fleet.ready(spec(tiers=tiers(1, 1)), chat=1, batch=1)
    old = fleet.routers()
    async with fleet.traffic() as traffic:
        users_of_every_tier(traffic)
        traffic.flow("batch", Flow(2.0, 64, 1000))  # Longer than a Service takes to forget a pod.
        await asyncio.sleep(5.0)
        begun = time.monotonic()
        stricter = tiers(1, 1)
        stricter[0]["slo"]["ttft"] = "400ms"
        await fleet.change({"tiers": stricter})
        await until("the old router has gone", lambda: all(life.gone_at for life in old))
        rolled_at = time.monotonic()
        door = await fleet.door_of(fleet.routers()[0].name)
        await until("the new one serves", lambda: any(s.door == door and s.tokens for s in traffic.streams))
        await asyncio.sleep(4.0)
        await traffic.all_ended()
    across = [s for s in traffic.streams if s.began_at < begun < s.ended_at]
    figures(
        "router roll-out",
        streams=len(traffic.streams),
        dropped=sum(s.lost for s in traffic.streams),
        under_way_at_its_begin=len(across),
        old_gone_after_s=round(rolled_at - begun, 1),
        longest_s=round(max(s.ended_at - s.began_at for s in traffic.streams), 1),
    )
    traffic.nobody_was_dropped()
    assert across
    assert not [life.name for life in engines(fleet) if life.told_to_stop_at or life.restarts or life.drains]
    await fleet.holds_nothing()


async def test_instances_of_a_lost_node_are_replaced_elsewhere(fleet: Fleet) -> None:
    doors, *others = [*fleet.scene.nodes, *await fleet.scene.add_nodes(2, 8, processes=True)]
    elsewhere = {"matchExpressions": [{"key": HOST, "operator": "In", "values": others}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [elsewhere]}}}
    wanted = spec(
        tiers=tiers(2, 0), placement="Spread", router={"podTemplate": {"spec": {"nodeSelector": {HOST: doors}}}}
    )
    wanted["engine"]["podTemplate"] = {"spec": {"affinity": affinity}}
    await fleet.ready(wanted, chat=2, batch=0)
    places = {
        pod["metadata"]["name"]: pod["spec"]["nodeName"]
        for pod in await fleet.scene.pods(**{"multislo.dev/tier": "chat"})
    }
    lost_node = places[fleet.answering()[0].name]
    gone = {name for name, node in places.items() if node == lost_node}
    async with fleet.traffic() as traffic:
        traffic.flow("chat", Flow(6.0, 64, 200))
        await asyncio.sleep(4.0)
        begun = time.monotonic()
        await fleet.scene.lose_node(lost_node)

        def answering() -> set[str]:
            return {life.name for life in fleet.answering("chat")}

        replaced_at = await until("two answer on the other node", lambda: len(answering() - gone) >= 2)
        # The load may have brought the second one before anybody knew that the node is lost.
        await until("the lost ones are given up", lambda: not answering() & gone)
        await fleet.becomes("Ready", "True")
        steady_at = time.monotonic()
        await asyncio.sleep(5.0)
        await traffic.all_ended()
    lost = [s for s in traffic.streams if s.lost]
    figures(
        "node lost",
        streams=len(traffic.streams),
        instances_lost=len(gone),
        lost=len(lost),
        replaced_after_s=round(replaced_at - begun, 1),
        refused=sum(s.end == "refused" for s in traffic.streams),
    )
    assert {s.instance for s in lost} <= gone, [(s.instance, s.cause) for s in lost]
    assert not [s for s in lost if s.began_at > steady_at]
    now = {
        pod["metadata"]["name"]: pod["spec"].get("nodeName")
        for pod in await fleet.scene.pods(**{"multislo.dev/tier": "chat"})
    }
    assert {now[life.name] for life in fleet.answering("chat")} == set(others) - {lost_node}
    await fleet.holds_nothing()
