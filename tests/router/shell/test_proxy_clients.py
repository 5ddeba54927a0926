"""Clients that leave, do not read, or ask for more than one thing at a time."""

import asyncio
from typing import Any

import pytest


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_request_that_dies_before_its_first_token_frees_its_place(kit: Any, how: str) -> None:
    closed = asyncio.Event()

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD)
        await line.gone()
        closed.set()

    stage = await kit.stage(script)
    client = await stage.client()
    await client.send(kit.post(kit.STREAM))
    await stage.until(lambda: bool(stage.engines[0].asked))
    getattr(client, how)()

    async with asyncio.timeout(kit.PATIENCE_S):
        await closed.wait()
    await stage.until(lambda: not stage.in_flight())
    assert stage.outcomes() == {"client_gone": 1}


async def test_a_client_that_leaves_during_a_stream_ends_it_at_the_engine(kit: Any) -> None:
    closed = asyncio.Event()

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD + kit.chunk(kit.token("one")))
        await line.gone()
        closed.set()

    stage = await kit.stage(script)
    client = await stage.client()
    await client.send(kit.post(kit.STREAM))
    async with asyncio.timeout(kit.PATIENCE_S):
        await client.reader.readuntil(kit.chunk(kit.token("one")))
        client.close()
        await closed.wait()
    await stage.until(lambda: not stage.in_flight())
    assert stage.outcomes() == {"client_gone": 1}


async def test_a_client_that_leaves_while_it_is_held_leaves_the_queue(kit: Any) -> None:
    stage = await kit.stage()
    stage.set_fleet()
    client = await stage.client()
    await client.send(kit.post(kit.CHAT))
    await stage.until(lambda: stage.in_flight() == 1)
    client.close()

    await stage.until(lambda: not stage.in_flight())
    assert not stage.engines[0].asked


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_is_noticed_though_its_socket_is_not_read(kit: Any, how: str) -> None:
    stage = await kit.stage()
    stage.set_fleet()
    client = await stage.client()
    await client.send(kit.post(kit.CHAT))
    await stage.until(lambda: stage.in_flight() == 1)
    await client.send(b"GET /v1/models HTTP/1.1\r\nhost: r\r\n\r\n" * 3000)
    await stage.until(lambda: next(iter(stage.gateway.clients))._paused)
    getattr(client, how)()

    await stage.until(lambda: not stage.in_flight())
    assert stage.outcomes() == {"client_gone": 1}


async def test_a_held_request_is_sent_as_soon_as_there_is_an_instance(kit: Any) -> None:
    stage = await kit.stage()
    stage.set_fleet()
    client = await stage.client()
    await client.send(kit.post(kit.CHAT))
    await stage.until(lambda: stage.in_flight() == 1)
    stage.set_fleet(*stage.engines)

    assert (await client.answer()).status == 200


async def test_a_slow_reader_slows_its_engine_down_and_costs_bounded_memory(kit: Any) -> None:
    sent = 0
    total = 400
    big = kit.chunk(kit.token("x" * 50_000))

    async def script(line: Any, asked: Any) -> None:
        nonlocal sent
        await line.send(kit.SSE_HEAD)
        for sent in range(1, total + 1):  # noqa: B007
            await line.send(big)
        await line.send(kit.chunk(kit.DONE) + b"0\r\n\r\n")

    stage = await kit.stage(script, write_buffer_max_bytes=64 * 1024)
    client = await stage.client()
    client.writer.transport.pause_reading()
    await client.send(kit.post(kit.STREAM))
    await stage.until(lambda: sent > 0)
    stalled = -1
    while stalled != sent:
        stalled = sent
        await asyncio.sleep(0.2)
    held = max(peer.transport.get_write_buffer_size() for peer in stage.gateway.clients)
    client.writer.transport.resume_reading()
    answer = await client.answer()

    assert stalled < total
    assert held < 1024 * 1024
    assert len(answer.events) == total + 1


async def test_a_client_that_stops_reading_for_good_is_given_up(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD)
        while True:
            await line.send(kit.chunk(kit.token("x" * 50_000)))

    stage = await kit.stage(script, write_buffer_max_bytes=64 * 1024, reader_stall_timeout_s=0.1)
    client = await stage.client()
    client.writer.transport.pause_reading()
    await client.send(kit.post(kit.STREAM))

    await stage.until(lambda: stage.outcomes() == {"client_gone": 1})


async def test_pipelined_requests_are_answered_in_order(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await asyncio.sleep(0.03 if asked.json["number"] % 2 else 0)
        await line.send(kit.sized(b"%d" % asked.json["number"]))

    stage = await kit.stage(script)
    client = await stage.client()
    models = b"GET /v1/models HTTP/1.1\r\nhost: r\r\n\r\n"
    requests = [kit.post(kit.CHAT | {"number": n}) for n in range(6)]

    await client.send(b"".join(requests[:3]) + models + requests[3])
    await asyncio.sleep(0.01)
    await client.send(requests[4][:50])
    await asyncio.sleep(0.01)
    await client.send(requests[4][50:] + requests[5])
    answers = [await client.answer() for _ in range(7)]

    assert [answer.body for answer in answers if b"object" not in answer.body] == [b"%d" % n for n in range(6)]
    assert answers[3].json["object"] == "list"


async def test_many_pipelined_requests_are_all_answered(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.send(b"GET /v1/models HTTP/1.1\r\nhost: r\r\n\r\n" * 3000)
    answers = [await client.answer() for _ in range(3000)]

    assert {answer.status for answer in answers} == {200}


async def test_what_a_client_pipelines_behind_a_request_is_bounded(kit: Any) -> None:
    released = asyncio.Event()

    async def script(line: Any, asked: Any) -> None:
        await released.wait()
        await kit.complete(line, asked)

    stage = await kit.stage(script)
    client = await stage.client()
    await client.send(kit.post(kit.CHAT))
    await stage.until(lambda: bool(stage.engines[0].asked))
    flood = b"GET /v1/models HTTP/1.1\r\nhost: r\r\n\r\n" * 200_000
    sending = asyncio.create_task(client.send(flood))
    await asyncio.sleep(0.3)
    (peer,) = stage.gateway.clients
    held = peer._backlog_bytes
    stuck = not sending.done()
    sending.cancel()
    client.reset()
    released.set()
    await stage.until(lambda: not stage.gateway.clients)

    assert stuck
    assert 0 < held < 1024 * 1024


async def test_a_connection_is_kept_or_closed_as_the_client_wishes(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    kept = await client.ask(kit.CHAT)
    closed = await client.ask(kit.CHAT, headers="connection: close\r\n")

    assert "connection" not in kept.headers
    assert closed.headers["connection"] == "close"
    assert await client.rest() == b""


async def test_idle_connections_are_closed(kit: Any) -> None:
    stage = await kit.stage(idle_timeout_s=0.1)
    client = await stage.client()
    await client.ask(kit.CHAT)

    assert await client.rest() == b""


async def test_connections_beyond_the_limit_are_turned_away(kit: Any) -> None:
    stage = await kit.stage(connections_max=2)
    stage.set_fleet()
    kept = [await stage.client() for _ in range(2)]
    for client in kept:
        await client.send(kit.post(kit.CHAT))
    await stage.until(lambda: stage.in_flight() == 2)
    late = await stage.client()

    answer = await late.answer()
    stage.set_fleet(*stage.engines)

    assert (answer.status, answer.headers["x-multislo-reason"]) == (503, "connections_full")
    assert [(await client.answer()).status for client in kept] == [200, 200]


async def test_the_connection_that_has_been_idle_longest_makes_room_for_a_new_one(kit: Any) -> None:
    stage = await kit.stage(connections_max=2)
    oldest, newer = await stage.client(), await stage.client()
    for client in (oldest, newer):
        await client.ask(kit.CHAT)
    late = await stage.client()

    assert (await late.ask(kit.CHAT)).status == 200
    assert await oldest.rest() == b""
    assert (await newer.ask(kit.CHAT)).status == 200
