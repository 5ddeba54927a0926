"""A fleet under its users: it comes up and answers, grows with the load and shrinks again, loses a router, an engine, its operator or a
node; and in all of it a stream that has begun comes to its end, unless the very process that carried it is gone."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest_asyncio

from cluster.scene import Scene
from fleet_story import LONG, MODEL, NAME, Fleet, Life, a_fleet, figures, scaling, spec, tier, until
from traffic import End, Flow, Stream, Traffic


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(scene: Scene, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with a_fleet(scene, tmp_path) as made:
        yield made
        made.no_errors()


async def test_an_applied_fleet_becomes_ready_and_answers_an_openai_client_in_every_tier(fleet: Fleet) -> None:
    operator = fleet.start_operator()
    await until("the operator leads", lambda: "leads" in operator.text())

    await fleet.apply(spec(tiers=[tier("chat", "500ms", "40ms", 1, 3), tier("batch", "2s", "100ms", 1, 3)]))
    ready_at = await fleet.becomes("Ready", "True")

    door = (await fleet.scene.behind(NAME))[0]
    async with openai.AsyncOpenAI(base_url=f"http://{door}/v1", api_key="none", max_retries=0) as client:
        for name in ("chat", "batch"):
            stream = await client.chat.completions.create(
                model=MODEL, service_tier=name, stream=True, max_tokens=16,  # type: ignore[call-overload]
                messages=[{"role": "user", "content": "Hello"}],
            )  # fmt: skip
            words = [
                part.choices[0].delta.content async for part in stream if part.choices and part.choices[0].delta.content
            ]
            assert len(words) == 16, words
            assert stream.response.headers["x-multislo-tier"] == name
            assert stream.response.headers["x-multislo-instance"] in {life.name for life in fleet.answering(name)}
    engines = [life.answers_at - life.let_go_at for life in fleet.answering() if life.answers_at and life.let_go_at]
    whole = ready_at - fleet.applied_at
    figures(
        "apply to Ready",
        whole_s=round(whole, 2),
        engine_start_s=round(max(engines), 2),
        net_s=round(whole - max(engines), 2),
    )


async def test_the_first_request_that_finds_no_instance_brings_one(fleet: Fleet) -> None:
    await fleet.ready(spec(tiers=[tier("chat", "500ms", "40ms", 0, 3)], scaling=scaling(4, stabilization="1s")), chat=0)
    reactions: list[float] = []
    async with fleet.traffic() as traffic:
        for _ in range(3):
            asked_at = time.monotonic()
            streams = await traffic.burst("chat", 1)
            raised_at = next(at for at, count in fleet.changes_of("chat", asked_at) if count > 0)
            reactions.append(raised_at - asked_at)
            assert [stream.end for stream in streams] == [End.WHOLE], streams
            await fleet.counts(chat=0)
            await until("the instance is gone", lambda: not fleet.engines())
    figures("scale-up reaction from nothing", p50_s=round(statistics.median(reactions), 2), all_s=rounded(reactions))
    assert statistics.median(reactions) < 20.0


async def test_the_load_that_comes_brings_instances_soon_after_the_first_request_waits(fleet: Fleet) -> None:
    await fleet.ready(spec(scaling=scaling(4, stabilization="1s")), chat=1, batch=0)
    reactions: list[float] = []
    async with fleet.traffic() as traffic:
        for _ in range(3):
            begun = time.monotonic()
            traffic.flow("chat", Flow(16.0, LONG, 8))
            pending = first_pending(fleet)
            await until("an instance was asked for", lambda: any(n > 1 for _, n in fleet.changes_of("chat", begun)))  # noqa: B023
            raised_at = next(at for at, count in fleet.changes_of("chat", begun) if count > 1)
            # Asked for ahead of any wait: that is no reaction, but better.
            reactions.append(raised_at - pending.result() if pending.done() else 0.0)
            pending.cancel()
            traffic.flow("chat", Flow(0.0))
            await fleet.counts(chat=1)
            await fleet.has(chat=1)
        await traffic.all_ended()
        traffic.nobody_was_dropped()
    figures("scale-up reaction under load", p50_s=round(statistics.median(reactions), 2), all_s=rounded(reactions))
    assert statistics.median(reactions) < 30.0


async def test_no_stream_is_dropped_while_the_fleet_grows_and_shrinks_under_it(fleet: Fleet) -> None:
    tiers = [tier("chat", "500ms", "40ms", 1, 3), tier("batch", "2s", "100ms", 0, 3)]
    await fleet.ready(spec(tiers=tiers, scaling=scaling(4, stabilization="1s")), chat=1, batch=0)
    async with fleet.traffic() as traffic:
        begun = time.monotonic()
        traffic.flow("batch", Flow(8.0, 64, 32))
        while time.monotonic() < begun + 150.0 and not (len(traffic.streams) > 2000 and len(drained(fleet)) >= 3):
            for chat, seconds in ((Flow(22.0, LONG, 16), 7.0), (Flow(12.0, 64, 24), 10.0)):
                traffic.flow("chat", chat)
                await asyncio.sleep(seconds)
        await traffic.all_ended()
    counts = traffic.counts()
    figures(
        "scale-down under traffic",
        streams=len(traffic.streams),
        by_tier={name: dict(of) for name, of in counts.items()},
        seconds=round(time.monotonic() - begun),
        started=len(started(fleet)),
        drained_and_stopped=len(drained(fleet)),
        dropped=sum(stream.lost for stream in traffic.streams),
    )
    traffic.nobody_was_dropped()
    assert len(traffic.streams) > 2000
    assert len(drained(fleet)) >= 3
    assert {"chat", "batch"} <= {name for name, of in counts.items() if of["whole"] > 200}
    assert all(life.drains for life in stopped(fleet)), "an instance went without a drain"
    await fleet.holds_nothing()


async def test_a_router_that_is_killed_takes_only_its_own_streams_with_it(fleet: Fleet) -> None:
    wanted = spec(
        tiers=[tier("chat", "500ms", "40ms", 1, 3), tier("batch", "2s", "100ms", 1, 3)], router={"replicas": 2}
    )
    await fleet.ready(wanted, chat=1, batch=1)
    async with fleet.traffic() as traffic:
        await until("both routers are behind the Service", lambda: len(traffic.doors) == 2)
        for name in ("chat", "batch"):
            traffic.flow(name, Flow(6.0, 64, 400))
        await asyncio.sleep(6.0)
        victim = fleet.routers()[0]
        door = await fleet.door_of(victim.name)
        held = [stream for stream in traffic.under_way if stream.door == door]
        os.kill(fleet.scene.pod_pid(victim.name, "router"), signal.SIGKILL)
        killed_at = time.monotonic()
        await until("it was started again", lambda: victim.restarts == 1)
        await until(
            "it is behind the Service again",
            lambda: door in traffic.doors and bool(served_by(traffic, door, killed_at)),
        )
        back_at = time.monotonic()
        await asyncio.sleep(3.0)
        await traffic.all_ended()
    lost = [stream for stream in traffic.streams if stream.lost]
    figures(
        "router killed",
        streams=len(traffic.streams),
        held_by_it=len(held),
        lost=len(lost),
        back_after_s=round(back_at - killed_at, 2),
        refused_at_the_door=len([s for s in lost if s.end is End.FAILED]),
    )
    assert held
    assert {stream.door for stream in lost} == {door}
    assert all(stream.lost for stream in held)
    assert not [stream for stream in traffic.streams if stream.end is End.REFUSED]
    await fleet.holds_nothing()
    assert await fleet.running_in_engines() == 0
    assert not stopped(fleet), "no instance may go because of a router"
    assert sum(life.restarts for life in fleet.engines()) == 0


async def test_an_engine_pod_that_is_killed_ends_its_own_streams_with_one_error_and_is_replaced(fleet: Fleet) -> None:
    await fleet.ready(spec(tiers=[tier("chat", "500ms", "40ms", 2, 3)], placement="Spread"), chat=2)
    victim = fleet.answering("chat")[0]
    async with fleet.traffic() as traffic:
        traffic.flow("chat", Flow(8.0, 64, 400))
        await until("both instances serve", lambda: len({s.instance for s in traffic.under_way}) == 2)
        await asyncio.sleep(2.0)
        held = [stream for stream in traffic.under_way if stream.instance == victim.name]
        killed_at = time.monotonic()
        pod = f"/api/v1/namespaces/{fleet.scene.namespace}/pods/{victim.name}"
        await fleet.scene.api.delete(pod, gracePeriodSeconds=0)
        await until("it is gone", lambda: victim.gone_at is not None)
        await fleet.has(chat=2)
        replaced_at = time.monotonic()
        await asyncio.sleep(3.0)
        await traffic.all_ended()
    lost = [stream for stream in traffic.streams if stream.lost]
    figures(
        "engine killed",
        streams=len(traffic.streams),
        held_by_it=len(held),
        lost=len(lost),
        error_events=sum(s.error_events for s in lost),
        replaced_after_s=round(replaced_at - killed_at, 2),
    )
    assert held
    assert {stream.instance for stream in lost} == {victim.name}, [(s.instance, s.cause) for s in lost]
    assert [stream.error_events for stream in lost] == [1] * len(lost)
    await fleet.holds_nothing()


async def test_a_fleet_serves_on_without_its_operator_and_is_scaled_again_by_the_next(fleet: Fleet) -> None:
    await fleet.ready(spec(), chat=1, batch=0)
    async with fleet.traffic() as traffic:
        traffic.flow("chat", Flow(5.0, 64, 24))
        traffic.flow("batch", Flow(3.0, 64, 48))
        await asyncio.sleep(3.0)
        fleet.operators[0].kill()
        killed_at = time.monotonic()
        traffic.flow("chat", Flow(14.0, LONG, 16))
        await asyncio.sleep(31.0)
        assert not fleet.changes_of("chat", killed_at)
        absent = traffic.counts(killed_at)
        fleet.start_operator()
        started_at = time.monotonic()
        await until("one more is asked for", lambda: bool(fleet.changes_of("chat", started_at)))
        resumed_at = time.monotonic()
        await until("it serves", lambda: len(fleet.answering()) >= 2)
        await asyncio.sleep(8.0)
        await traffic.all_ended()
    counted = {name: await fleet.wanted(name) for name in ("chat", "batch")}
    let_go = {name: len(fleet.engines(name)) for name in counted}
    figures(
        "operator killed and absent for 31 s",
        streams=len(traffic.streams),
        while_absent={n: dict(of) for n, of in absent.items()},
        dropped=sum(s.lost for s in traffic.streams),
        scaled_after_s=round(resumed_at - started_at, 2),
        instances=let_go,
    )
    traffic.nobody_was_dropped()
    assert let_go == counted
    assert not stopped(fleet)
    assert sum(life.restarts for life in fleet.engines()) == 0
    climbs = [count for _, count in fleet.changes_of("chat", killed_at)]
    assert climbs == sorted(climbs), climbs


def first_pending(fleet: Fleet) -> "asyncio.Task[float]":
    """When the first request of the wait that lasts was seen to wait in the router."""

    async def look() -> float:
        while True:
            seen = await fleet.snapshot()
            oldest: float = max(t["pending_oldest_s"] for t in seen["tiers"])
            if any(t["pending"] for t in seen["tiers"]) and oldest > 0.05:
                return time.monotonic() - oldest
            await asyncio.sleep(0.03)

    return asyncio.create_task(look())


def started(fleet: Fleet) -> list[Life]:
    return [life for life in fleet.lives.values() if life.component == "engine" and life.let_go_at]


def stopped(fleet: Fleet) -> list[Life]:
    return [life for life in started(fleet) if life.told_to_stop_at]


def drained(fleet: Fleet) -> list[Life]:
    return [life for life in stopped(fleet) if life.drains]


def served_by(traffic: Traffic, door: str, since: float) -> list[Stream]:
    return [s for s in traffic.streams if s.door == door and s.began_at > since and s.tokens]


def rounded(times: list[float]) -> list[float]:
    return [round(one, 2) for one in times]
