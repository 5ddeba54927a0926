"""Start, shutdown, the watch over instances, and what the gateway shows of itself."""

import asyncio
import time
from typing import Any

import pytest

from multislo_api.fleet import InstanceEntry, InstanceList
from multislo_router.shell.watch import EngineSaid, read_metrics

METRICS = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="llama"} 3.0
vllm:num_requests_waiting{engine="0",model_name="llama"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="llama",reason="x"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="llama"} 0.25
"""


async def test_shutdown_finishes_streams_and_refuses_new_connections(kit: Any) -> None:
    released = asyncio.Event()

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD + kit.chunk(kit.token("one")))
        await released.wait()
        await line.send(kit.chunk(kit.DONE) + b"0\r\n\r\n")

    stage = await kit.stage(script)
    idle, busy = await stage.client(), await stage.client()
    await busy.send(kit.post(kit.STREAM))
    await stage.until(lambda: bool(stage.engines[0].asked))
    stopping = asyncio.create_task(stage.gateway.shutdown(kit.PATIENCE_S))
    idle_end = await idle.rest()
    with pytest.raises(OSError, match="Connect"):
        await stage.client()
    closing = stage.gateway.closing
    released.set()
    answer = await busy.answer()

    assert idle_end == b""
    assert closing
    assert answer.events[-1] == "[DONE]"
    assert await busy.rest() == b""
    await stopping


async def test_a_router_that_shuts_down_says_so_to_a_balancer_that_still_has_a_connection(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    await client.send(b"GET /health HTTP/1.1\r\nhost: r\r\n")
    await stage.until(lambda: any(not connection.idle for connection in stage.gateway.clients))

    stopping = asyncio.create_task(stage.gateway.shutdown(kit.PATIENCE_S))
    await stage.until(lambda: stage.gateway.closing)
    await client.send(b"\r\n")
    answer = await client.answer()

    assert (answer.status, answer.headers["x-multislo-reason"]) == (503, "shutting_down")
    assert answer.headers["connection"] == "close"
    await stopping


async def test_a_router_that_leaves_serves_on_and_sends_its_clients_and_balancers_elsewhere(kit: Any) -> None:
    released = asyncio.Event()

    async def script(line: Any, asked: Any) -> None:
        if asked.json.get("stream"):
            await line.send(kit.SSE_HEAD + kit.chunk(kit.token("one")))
            await released.wait()
            await line.send(kit.chunk(kit.DONE) + b"0\r\n\r\n")
        else:
            await kit.complete(line, asked)

    stage = await kit.stage(script)
    busy, kept, idle = await stage.client(), await stage.client(), await stage.client()
    await busy.send(kit.post(kit.STREAM))
    await stage.until(lambda: bool(stage.engines[0].asked))
    before = await kept.ask(kit.CHAT)

    stage.gateway.leave()
    balancer = await stage.client()
    await balancer.send(b"GET /health HTTP/1.1\r\nhost: r\r\n\r\n")
    health = await balancer.answer()
    on_kept = await kept.ask(kit.CHAT)
    on_new = await (await stage.client()).ask(kit.CHAT)
    stopping = asyncio.create_task(stage.gateway.shutdown(kit.PATIENCE_S))
    assert await idle.rest() == b""
    with pytest.raises(OSError, match="Connect"):
        await stage.client()
    released.set()
    streamed = await busy.answer()

    assert (before.status, before.headers.get("connection")) == (200, None)
    assert (health.status, health.headers["x-multislo-reason"]) == (503, "shutting_down")
    assert [(answer.status, answer.headers["connection"]) for answer in (on_kept, on_new)] == [(200, "close")] * 2
    assert await kept.rest() == b""
    assert streamed.events[-1] == "[DONE]"
    await stopping


async def test_a_router_whose_clients_have_all_gone_while_it_leaves_still_serves_those_that_come(kit: Any) -> None:
    released = asyncio.Event()

    async def script(line: Any, asked: Any) -> None:
        await released.wait()
        await kit.complete(line, asked)

    stage = await kit.stage(script)
    early = await stage.client()
    await stage.until(lambda: len(stage.gateway.clients) == 1)
    stage.gateway.leave()
    early.close()
    await stage.until(lambda: not stage.gateway.clients)
    late = await stage.client()
    await late.send(kit.post(kit.CHAT))
    await stage.until(lambda: bool(stage.engines[0].asked))
    stopping = asyncio.create_task(stage.gateway.shutdown(kit.PATIENCE_S))
    await asyncio.sleep(0)
    released.set()

    assert (await late.answer()).status == 200
    await stopping


async def test_shutdown_cuts_off_what_does_not_finish_in_time(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD + kit.chunk(kit.token("one")))
        await line.gone()

    stage = await kit.stage(script)
    client = await stage.client()
    await client.send(kit.post(kit.STREAM))
    await stage.until(lambda: bool(stage.engines[0].asked))

    began = time.monotonic()
    await stage.gateway.shutdown(0.1)

    assert time.monotonic() - began < 5
    assert not (await client.rest()).endswith(b"0\r\n\r\n")


async def test_an_engine_s_own_metrics_reach_the_core(kit: Any) -> None:
    stage = await kit.stage(poll_interval_s=0.03)
    stage.engines[0].metrics = METRICS

    def reported() -> int | None:
        kv: int | None = stage.gateway.core.status(time.monotonic()).instances[0].kv_tokens_reported
        return kv

    await stage.until(lambda: reported() is not None)

    assert reported() == 100_000


async def test_an_idle_instance_that_died_is_noticed(kit: Any) -> None:
    stage = await kit.stage(poll_interval_s=0.03)
    await stage.engines[0].stop()

    await stage.until(lambda: stage.gateway.core.status(time.monotonic()).instances[0].state == "failed")
    await stage.engines[0].start()
    await stage.until(lambda: stage.gateway.core.status(time.monotonic()).instances[0].state == "ready")


def test_metrics_of_several_engines_in_one_server_are_put_together() -> None:
    two = METRICS + METRICS.replace(b'engine="0"', b'engine="1"').replace(b"0.25", b"0.75")
    assert read_metrics(two) == EngineSaid(6, 4, 0.5, kv_tokens_max=None, tokens_total=None)


def test_an_engine_says_what_it_can_hold_and_how_much_it_has_computed() -> None:
    more = b"""vllm:prompt_tokens_total{engine="0",model_name="llama"} 1200.0
vllm:generation_tokens_total{engine="0",model_name="llama"} 34.0
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="0",num_cpu_blocks="None",num_gpu_blocks="256"} 1.0
"""
    said = read_metrics(METRICS + more)
    assert said is not None
    assert (said.kv_tokens_max, said.tokens_total) == (8192, 1234)
    unknown = read_metrics(METRICS + more.replace(b'"256"', b'"None"'))
    assert unknown is not None
    assert unknown.kv_tokens_max is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"vllm:num_requests_running 1\n",
        METRICS.replace(b"0.25", b"nan"),
        METRICS.replace(b"0.25", b"1e999"),
        METRICS.replace(b"0.25", b"1e300"),
    ],
)
def test_absent_metrics_are_unknown_and_not_zero(text: bytes) -> None:
    assert read_metrics(text) is None


async def test_decisions_are_kept_with_their_time(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    for _ in range(3):
        await client.ask(kit.CHAT)

    times, decisions = zip(*stage.gateway.recent_decisions, strict=True)

    assert [decision.instance for decision in decisions] == ["i0"] * 3
    assert all(abs(at - time.time()) < 60 for at in times)
    assert sum(stage.gateway.decision_seconds.counts) == 3
    assert stage.gateway.instance_url("i0") == stage.engines[0].url
    assert stage.gateway.instance_url("nobody") is None


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([("a", "gold")], r"instances\[0\].tier: 'gold' must be null or one of: batch, interactive, realtime"),
        ([("a", "batch"), ("a", None)], r"instances\[1\].id: 'a' is given twice"),
    ],
)
async def test_a_bad_fleet_is_refused_whole(kit: Any, entries: list[tuple[str, str | None]], problem: str) -> None:
    stage = await kit.stage()

    with pytest.raises(ValueError, match=problem):
        stage.gateway.set_fleet(
            InstanceList(instances=[InstanceEntry(id=id, url="http://127.0.0.1:1", tier=tier) for id, tier in entries])
        )

    assert list(stage.gateway.fleet.instances) == ["i0"]


async def test_a_bug_costs_one_request_a_500_and_nothing_else(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    stage = await kit.stage()
    client = await stage.client()
    handle = stage.gateway.core.handle
    stage.gateway.core.handle = None  # type: ignore[method-assign]
    failed = await client.ask(kit.CHAT, headers="x-request-id: unlucky\r\n")
    stage.gateway.core.handle = handle

    assert (failed.status, failed.headers["x-multislo-reason"]) == (500, "internal")
    assert "unlucky" in caplog.text
    assert (await client.ask(kit.CHAT)).status == 200
