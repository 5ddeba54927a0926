"""A fleet on a real kubelet while its users talk to it through its Service: it grows and shrinks, is given a warm pod, is rolled over,
loses containers, waits for accelerators. A stream that has begun comes to its end, unless the container that carried it was killed."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from cluster.node import GPU, GPUS, NodeCluster
from cluster.scene import Scene, condition
from fleet_story import LONG, NAME, figures, scaling, spec, tier, until
from node.fleet_on_a_node import NodeFleet, counted, has_accelerators, whole
from traffic import End, Flow

RESTRICTED = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
BUSY = Flow(16.0, LONG, 8)
"""More than one instance takes."""
QUIET = Flow(4.0, 64, 60)
"""Half a second each."""


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(scene: Scene, operator: str, node_cluster: NodeCluster, tmp_path: Path) -> AsyncIterator[NodeFleet]:
    """A namespace, PodSecurity "restricted", in which a fleet may be applied."""
    await scene.api.patch(f"/api/v1/namespaces/{scene.namespace}", RESTRICTED)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        made = NodeFleet(scene, session, tmp_path / "none", node_cluster=node_cluster)
        watches = [asyncio.create_task(made.watch_pods()), asyncio.create_task(made.watch_replicas())]
        try:
            yield made
            assert "Traceback" not in made.operator_says(operator)
        finally:
            print(made.timeline())
            for watch in watches:
                watch.cancel()
            await scene.api.delete(f"/apis/multislo.dev/v1alpha1/namespaces/{scene.namespace}/multisloservings/{NAME}")


async def test_load_brings_an_instance_and_without_it_the_drained_one_goes(fleet: NodeFleet) -> None:
    await fleet.comes_up(spec(scaling=scaling(3, stabilization="3s")), chat=1, batch=0)
    (first,) = fleet.answering("chat")
    async with await fleet.by_service() as traffic:
        traffic.flow("batch", Flow(2.0, 64, 24))
        traffic.flow("chat", BUSY)
        begun = time.monotonic()
        await until("an instance was asked for", lambda: any(n > 1 for _, n in fleet.changes_of("chat", begun)))
        raised_at = next(at for at, n in fleet.changes_of("chat", begun) if n > 1)
        await until("it answers", lambda: len(fleet.answering("chat")) > 1)
        answered_at = time.monotonic()
        await until("it has given an answer", lambda: any(s.instance not in ("", first.name) for s in whole(traffic)))
        await asyncio.sleep(8.0)
        traffic.flow("chat", QUIET)
        await fleet.counts(chat=1)
        await fleet.has(chat=1)
        started = [life for life in fleet.lives.values() if life.component == "engine" and life.let_go_at]
        await until("all but one are gone", lambda: sum(life.gone_at is None for life in started) == 1)
        await traffic.all_ended()
    traffic.nobody_was_dropped()
    assert len(whole(traffic)) >= 200
    left = [life for life in started if life.gone_at is not None]
    assert left
    for life in left:
        assert life.drained_at is not None, life
        assert life.told_to_stop_at is not None
        assert life.drained_at < life.told_to_stop_at, life
        assert life.restarts == 0, life
    figures(
        "node: up and down", streams=counted(traffic), asked_for_after_s=round(raised_at - begun, 1),
        answers_after_s=round(answered_at - begun, 1),
        drained_s=[round(life.told_to_stop_at - life.drained_at, 1) for life in left if life.told_to_stop_at and life.drained_at],
    )  # fmt: skip


async def test_a_warm_pod_comes_into_a_tier_in_the_container_that_it_has(fleet: NodeFleet) -> None:
    await fleet.comes_up(spec(scaling=scaling(2, warm=(1, 1))), chat=1, batch=0, warm=1)
    (warm,) = fleet.answering("warm")
    before = await fleet.containers()
    assert len(before) == 2
    async with await fleet.by_service() as traffic:
        begun = time.monotonic()
        traffic.flow("chat", BUSY)
        asked_at = await until(
            "an instance is asked for", lambda: any(n > 1 for _, n in fleet.changes_of("chat", begun))
        )
        moved_at = await until("the warm pod is in the tier", lambda: warm.tier == "chat")
        await until(
            "it answers in the tier",
            lambda: any(s.instance == warm.name and s.began_at > moved_at for s in whole(traffic)),
        )
        await fleet.has(chat=2, warm=0)
        await fleet.counts(chat=2, warm=0)
        await asyncio.sleep(5.0)
        await traffic.all_ended()
    traffic.nobody_was_dropped()
    assert await fleet.containers() == before, "no container of an engine has started or ended"
    assert [life.name for life in fleet.lives.values() if life.component == "engine" and life.let_go_at] == list(before)
    figures(
        "node: warm pod", streams=counted(traffic), asked_for_after_s=round(asked_at - begun, 2),
        moved_after_s=round(moved_at - asked_at, 2),
        by_it_in_the_pool=sum(s.instance == warm.name and s.began_at < moved_at for s in traffic.streams),
        by_it_in_the_tier=sum(s.instance == warm.name and s.began_at >= moved_at for s in traffic.streams),
    )  # fmt: skip


async def test_engines_are_rolled_over_one_at_a_time_and_a_broken_image_stops_that_until_it_is_mended(
    fleet: NodeFleet,
) -> None:
    tiers = [tier("chat", "500ms", "40ms", 2, 2), tier("batch", "2s", "100ms", 0, 1)]
    await fleet.comes_up(spec(tiers=tiers, scaling=scaling(3)), chat=2, batch=0)
    async with await fleet.by_service() as traffic:
        traffic.flow("chat", QUIET)
        traffic.flow("batch", Flow(2.0, 64, 60))
        old = fleet.answering("chat")
        began = time.monotonic()
        await fleet.template({"env": [{"name": "ROUND", "value": "2"}]})
        await fleet.is_rolled({life.name for life in old}, "chat", 2)
        rolled_s = time.monotonic() - began
        fleet.one_at_a_time(old)

        second = fleet.answering("chat")
        began = time.monotonic()
        await fleet.template({"image": "localhost/no-such-image:1", "imagePullPolicy": "IfNotPresent"})
        stuck_s = await fleet.becomes("WorkloadsReady", "False", "RolloutStuck") - began
        told = condition(await fleet.resource(), "WorkloadsReady")["message"]
        at = time.monotonic()
        await asyncio.sleep(10.0)
        assert all(life.drained_at is None and life.told_to_stop_at is None for life in second), "the old ones serve on"
        served = {s.instance for s in whole(traffic) if s.began_at > at}
        assert served == {life.name for life in second}

        began = time.monotonic()
        await fleet.template({"env": [{"name": "ROUND", "value": "3"}]})
        await fleet.is_rolled({life.name for life in second}, "chat", 2)
        await fleet.becomes("WorkloadsReady", "True", "InstancesReady")
        mended_s = time.monotonic() - began
        fleet.one_at_a_time(second)
        await traffic.all_ended()
    traffic.nobody_was_dropped()
    figures(
        "node: roll-out", streams=counted(traffic), rolled_s=round(rolled_s, 1), stuck_after_s=round(stuck_s, 1),
        told=told, mended_s=round(mended_s, 1),
    )  # fmt: skip


async def test_where_no_accelerator_is_free_an_engine_is_drained_and_goes_before_its_successor_starts(
    fleet: NodeFleet,
) -> None:
    tiers = [tier("chat", "500ms", "40ms", 2, 2), tier("batch", "2s", "100ms", 0, 1)]
    await fleet.comes_up(spec(tiers=tiers, scaling=scaling(2)), chat=2, batch=0)
    async with await fleet.by_service() as traffic:
        traffic.flow("chat", QUIET)
        await until("streams are under way", lambda: len(traffic.under_way) > 1)
        old = fleet.answering("chat")
        began = time.monotonic()
        await fleet.template({"env": [{"name": "ROUND", "value": "2"}]})
        await fleet.is_rolled({life.name for life in old}, "chat", 2)
        rolled_s = time.monotonic() - began
        await traffic.all_ended()
    traffic.nobody_was_dropped()
    fleet.one_at_a_time(old)
    gone = sorted(fleet.over[life.name] for life in old)
    came = sorted(life.let_go_at for life in fleet.answering("chat") if life.let_go_at)
    assert all(left <= let_go for left, let_go in zip(gone, came, strict=True)), (gone, came)
    figures("node: roll-out without a free accelerator", streams=counted(traffic), rolled_s=round(rolled_s, 1))


async def test_what_a_hand_deletes_finishes_its_streams_and_is_replaced(fleet: NodeFleet) -> None:
    tiers = [tier("chat", "500ms", "40ms", 2, 2), tier("batch", "2s", "100ms", 0, 1)]
    await fleet.comes_up(spec(tiers=tiers, scaling=scaling(3), router={"replicas": 2}), chat=2, batch=0)
    await until("two routers", lambda: sum(r.answers_at is not None for r in fleet.routers()) == 2)
    async with await fleet.by_service() as traffic:
        traffic.flow("chat", Flow(6.0, 64, 200))
        await until("streams are under way", lambda: len(traffic.under_way) > 5)
        engine = fleet.lives[Counter(s.instance for s in traffic.under_way).most_common(1)[0][0]]
        for life in (engine, fleet.routers()[0]):
            carried = len(traffic.under_way)
            await fleet.scene.api.delete(f"/api/v1/namespaces/{fleet.scene.namespace}/pods/{life.name}")
            await until(f"{life.name} is gone", lambda: life.gone_at is not None)  # noqa: B023
            await fleet.has(chat=2)
            await until("two routers", lambda: sum(r.answers_at is not None for r in fleet.routers()) == 2)
            assert carried
        await asyncio.sleep(3.0)
        await traffic.all_ended()
    traffic.nobody_was_dropped()
    after = [
        s
        for s in whole(traffic)
        if engine.told_to_stop_at and s.instance == engine.name and s.began_at > engine.told_to_stop_at + 2
    ]
    assert not after, "nothing new is placed on an instance that is told to stop"
    figures("node: deleted by a hand", streams=counted(traffic))


async def test_a_killed_router_takes_its_own_streams_with_it_and_comes_back_to_the_fleet(fleet: NodeFleet) -> None:
    if fleet.node.own is None:
        pytest.skip("of a node of our own")
    await fleet.comes_up(spec(router={"replicas": 2}), chat=1, batch=0)
    await until("two routers", lambda: sum(r.answers_at is not None for r in fleet.routers()) == 2)
    engines = await fleet.containers()
    traffic, doors = await fleet.by_router()
    async with traffic:
        victim, other = sorted(doors)
        traffic.flow("chat", Flow(6.0, 64, 200))
        await until("both carry streams", lambda: {doors[victim], doors[other]} <= {s.door for s in traffic.under_way})
        await asyncio.sleep(3.0)
        carried = [s for s in traffic.under_way if s.door == doors[victim]]
        await fleet.kill(victim, "router")
        killed_at = time.monotonic()
        await until("it was started again", lambda: fleet.lives[victim].restarts == 1)
        await until("its streams have ended", lambda: all(s.end is not End.UNDER_WAY for s in carried), 10)
        back_at = await until(
            "it gives answers again", lambda: any(s.door == doors[victim] and s.began_at > killed_at + 0.5 for s in whole(traffic))
        )  # fmt: skip
        back_at = min(s.began_at for s in whole(traffic) if s.door == doors[victim] and s.began_at > killed_at + 0.5)
        await asyncio.sleep(5.0)
        await traffic.all_ended()
    lost = [s for s in traffic.streams if s.lost]
    assert any(s.end is End.BROKEN for s in carried), carried
    traffic.nobody_was_dropped(but=[s for s in traffic.streams if s.door == doors[victim] and s.began_at < back_at])
    await fleet.holds_nothing()
    seen = [{i["id"]: i["state"] for i in (await fleet.snapshot(name))["instances"]} for name in doors]
    assert seen[0] == seen[1] != {}, seen
    assert await fleet.containers() == engines
    figures(
        "node: router killed", streams=counted(traffic), carried=len(carried), lost=len(lost),
        serves_after_s=round(back_at - killed_at, 1),
    )  # fmt: skip


async def test_a_killed_engine_takes_its_own_streams_with_it_and_comes_back_to_its_tier(fleet: NodeFleet) -> None:
    if fleet.node.own is None:
        pytest.skip("of a node of our own")
    tiers = [tier("chat", "500ms", "40ms", 2, 2), tier("batch", "2s", "100ms", 0, 1)]
    await fleet.comes_up(spec(tiers=tiers, scaling=scaling(2)), chat=2, batch=0)
    async with await fleet.by_service() as traffic:
        traffic.flow("chat", Flow(6.0, 512, 200))
        await until("streams are under way", lambda: len(traffic.under_way) > 5)
        # Requests that one instance can take are all placed on one.
        victim = fleet.lives[Counter(s.instance for s in traffic.under_way).most_common(1)[0][0]]
        carried = [s for s in traffic.under_way if s.instance == victim.name]
        await fleet.kill(victim.name, "engine")
        killed_at = time.monotonic()
        await until("it was started again", lambda: fleet.lives[victim.name].restarts == 1)
        await fleet.has(chat=2)
        traffic.flow("chat", BUSY)

        def again() -> list[float]:
            return [s.ended_at for s in whole(traffic) if s.instance == victim.name and s.began_at > killed_at + 0.5]

        await until("it gives answers again", lambda: bool(again()))
        back_at = min(again())
        await asyncio.sleep(3.0)
        await traffic.all_ended()
    lost = [s for s in traffic.streams if s.lost]
    assert any(s.end is End.BROKEN for s in carried), carried
    traffic.nobody_was_dropped(but=[s for s in lost if s.instance == victim.name and s.began_at <= killed_at])
    await fleet.holds_nothing()
    figures(
        "node: engine killed", streams=counted(traffic), carried=len(carried), lost=len(lost),
        serves_after_s=round(back_at - killed_at, 1),
    )  # fmt: skip


async def test_routers_are_rolled_over_without_a_dropped_stream(fleet: NodeFleet) -> None:
    await fleet.comes_up(spec(), chat=1, batch=0)
    engines = await fleet.containers()
    old = {life.name for life in fleet.routers()}
    async with await fleet.by_service() as traffic:
        traffic.flow("chat", Flow(6.0, 64, 100))
        traffic.flow("batch", Flow(2.0, 64, 200))
        await asyncio.sleep(3.0)
        began = time.monotonic()
        await fleet.change({"tiers": [tier("chat", "400ms", "40ms", 1, 3), tier("batch", "2s", "100ms", 0, 3)]})
        await until("a new router", lambda: any(r.name not in old and r.answers_at for r in fleet.routers()))
        await until("the old ones are gone", lambda: not old & {r.name for r in fleet.routers()})
        rolled_s = time.monotonic() - began
        await asyncio.sleep(3.0)
        await traffic.all_ended()
    traffic.nobody_was_dropped()
    assert await fleet.containers() == engines, "a tier's TTFT restarts no engine"
    figures("node: routers rolled over", streams=counted(traffic), rolled_s=round(rolled_s, 1))


async def test_pods_wait_for_accelerators_that_the_node_does_not_have_and_run_when_it_has_them(
    fleet: NodeFleet, node_cluster: NodeCluster
) -> None:
    if node_cluster.own is None:
        pytest.skip("of a node of our own")
    asking = {"containers": [{"name": "engine", "resources": {"limits": {GPU: "1"}}}]}
    engine = {"type": "Emulated", "emulation": {"startup": "1s"}, "podTemplate": {"spec": asking}}
    tiers = [tier("chat", "500ms", "40ms", 2, 3), tier("batch", "2s", "100ms", 1, 3)]
    await has_accelerators(fleet.scene, 1)
    try:
        await fleet.apply(spec(tiers=tiers, engine=engine, scaling=scaling(6)))
        await fleet.becomes("WorkloadsReady", "False", "Unschedulable")
        await until("one runs", lambda: len(fleet.answering()) == 1)
        await asyncio.sleep(8.0)
        message = (await fleet.says("WorkloadsReady", "False", "Unschedulable"))["message"]
        assert f"Insufficient {GPU}" in message
        assert len(fleet.engines()) == 3, "no more are asked for"
        came_at = time.monotonic()
        await has_accelerators(fleet.scene, 4)
        await fleet.has(chat=2, batch=1)
        await fleet.becomes("Ready", "True")
        figures("node: accelerators", told=message, run_after_s=round(time.monotonic() - came_at, 1))
    finally:
        await has_accelerators(fleet.scene, GPUS)
