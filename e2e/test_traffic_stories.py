"""A fleet under its users: it comes up and answers, grows with the load and shrinks again, loses a router, an engine, its operator or a
node; and in all of it a stream that has begun comes to its end, unless the very process that carried it is gone."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest_asyncio

from cluster.scene import Scene
from fleet_story import LONG, MODEL, NAME, Fleet, a_fleet, figures, scaling, spec, tier, until
from traffic import Flow


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


async def test_the_load_that_comes_brings_instances_within_a_second_of_the_first_request_that_waits(
    fleet: Fleet,
) -> None:
    await fleet.ready(spec(scaling=scaling(4, stabilization="1s")), chat=1, batch=0)
    reactions: list[float] = []
    waits: list[float] = []
    async with fleet.traffic() as traffic:
        for _ in range(5):
            begun = time.monotonic()
            traffic.flow("chat", Flow(16.0, LONG, 8))
            pending = await first_pending(fleet)
            await until("an instance was asked for", lambda: any(n > 1 for _, n in fleet.changes_of("chat", begun)))  # noqa: B023
            raised_at = next(at for at, count in fleet.changes_of("chat", begun) if count > 1)
            waiting_at = pending.result() if pending.done() else raised_at
            pending.cancel()
            reactions.append(raised_at - waiting_at)
            waits.append(raised_at - begun)
            traffic.flow("chat", Flow(0.0))
            await fleet.counts(chat=1)
            await fleet.has(chat=1)
        await traffic.all_ended()
        traffic.nobody_was_dropped()
    figures(
        "scale-up reaction", runs=len(reactions), p50_s=round(statistics.median(reactions), 2),
        all_s=[round(r, 2) for r in reactions], from_the_burst_s=[round(w, 2) for w in waits],
    )  # fmt: skip
    assert statistics.median(reactions) < 3.0


async def first_pending(fleet: Fleet) -> "asyncio.Task[float]":
    """When the first request of the wait that lasts was seen to wait in the router."""

    async def look() -> float:
        while True:
            seen = await fleet.snapshot()
            oldest = max(t["pending_oldest_s"] for t in seen["tiers"])
            if any(t["pending"] for t in seen["tiers"]) and oldest > 0.05:
                return time.monotonic() - oldest
            await asyncio.sleep(0.03)

    return asyncio.create_task(look())
