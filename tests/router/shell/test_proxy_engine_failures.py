"""Engines that refuse, break, die, fall silent or talk nonsense."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest


async def dies(line: Any, asked: Any) -> None:
    line.reset()


async def test_an_engine_that_dies_before_its_first_byte_is_replaced_unseen(kit: Any) -> None:
    stage = await kit.stage(dies, dies, kit.complete)
    stage.set_fleet(stage.engines[0])
    client = await stage.client()
    first, healthy = stage.engines[0], stage.engines[2]
    await client.send(kit.post(kit.STREAM))
    first.script = dies
    await stage.until(lambda: bool(first.asked))
    stage.set_fleet(first, healthy)

    answer = await client.answer()

    assert answer.status == 200
    assert answer.headers["x-multislo-instance"] == "i2"
    assert answer.events[-1] == "[DONE]"


async def test_an_engine_that_dies_after_its_head_and_before_its_first_token_is_replaced_unseen(kit: Any) -> None:
    async def head_only(line: Any, asked: Any) -> None:
        if len(stage.engines[0].asked) + len(stage.engines[1].asked) > 1:
            await kit.complete(line, asked)
        else:
            await line.send(kit.SSE_HEAD)
            await asyncio.sleep(0.05)
            line.reset()

    stage = await kit.stage(head_only, head_only)
    client = await stage.client()

    answer = await client.ask(kit.STREAM)

    assert answer.status == 200
    assert answer.events[-1] == "[DONE]"
    assert sorted(len(engine.asked) for engine in stage.engines) == [1, 1]


async def test_a_request_that_fails_everywhere_gets_a_clear_502(kit: Any) -> None:
    stage = await kit.stage(dies, dies, dies)
    client = await stage.client()

    answer = await client.ask(kit.STREAM)

    assert answer.status == 502
    assert answer.headers["x-multislo-reason"] == "engine_failed"
    assert answer.error["code"] == "engine_failed"
    assert sum(len(engine.asked) for engine in stage.engines) == 2


async def test_an_engine_that_dies_during_a_stream_ends_it_with_an_error_event(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD + kit.chunk(kit.token("one")))
        await seen.wait()
        await line.send(kit.chunk(kit.token("two"))[:-9])
        await asyncio.sleep(0.05)
        line.reset()

    seen = asyncio.Event()
    stage = await kit.stage(script)
    client = await stage.client()
    await client.send(kit.post(kit.STREAM))
    async with asyncio.timeout(kit.PATIENCE_S):
        await client.reader.readuntil(kit.chunk(kit.token("one")))
    seen.set()

    rest = await client.rest()

    assert b"two" not in rest
    assert b'data: {"error": {"message": "the engine failed during the answer' in rest
    assert rest.endswith(b"\n\n\r\n")
    assert not rest.endswith(b"0\r\n\r\n")
    assert stage.outcomes() == {"engine_failed": 1}


async def test_an_engine_that_dies_during_an_answer_that_does_not_stream_cuts_it_off(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.sized(kit.COMPLETION)[:-20])
        await seen.wait()
        line.reset()

    seen = asyncio.Event()
    stage = await kit.stage(script)
    client = await stage.client()
    await client.send(kit.post(kit.CHAT))
    async with asyncio.timeout(kit.PATIENCE_S):
        await client.reader.readuntil(b"\r\n\r\n")
        seen.set()
        with pytest.raises(ConnectionResetError):
            await client.reader.read()

    assert stage.outcomes() == {"engine_failed": 1}


async def test_a_stream_that_ends_too_early_is_an_error_and_not_an_end(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD + kit.chunk(kit.token("one")))
        line.writer.close()

    stage = await kit.stage(script)
    client = await stage.client()
    await client.send(kit.post(kit.STREAM))

    rest = await client.rest()

    assert b'data: {"error"' in rest


@pytest.mark.parametrize(
    "nonsense",
    [
        b"HELLO\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nabc",
        b"HTTP/1.1 200 OK\ncontent-length: 2\n\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx: a\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx: a\r\n folded\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n: a\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 O\x01K\r\ncontent-length: 2\r\n\r\n{}",
    ],
)
async def test_an_engine_that_talks_nonsense_has_failed(kit: Any, nonsense: bytes) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.send(nonsense)

    stage = await kit.stage(script, script)
    client = await stage.client()

    answer = await client.ask(kit.CHAT)

    assert answer.status in (502, 503)
    assert answer.headers["x-multislo-reason"] in ("engine_failed", "no_instance")


async def test_fields_that_an_engine_means_for_its_neighbour_alone_end_at_the_router(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        named = "Connection: keep-alive, X-Hop ,x-late, Content-Length\r\nX-Hop: 1\r\nX-Hopper: 2\r\nX-LATE: 3\r\n"
        await line.send(kit.sized(kit.COMPLETION, extra=named + "Set-Cookie: a=1\r\nSet-Cookie: b=\xe9\r\n"))

    stage = await kit.stage(script)
    client = await stage.client()

    answers = [await client.ask(kit.CHAT) for _ in range(2)]

    for answer in answers:
        assert answer.body == kit.COMPLETION
        assert answer.headers["x-hopper"] == "2"
        assert not {"x-hop", "x-late", "connection"} & answer.headers.keys()
        assert answer.head.count(b"Set-Cookie") == 2
    assert stage.engines[0].connections == 1


async def test_bytes_that_nobody_asked_for_never_become_an_answer(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.sized(kit.COMPLETION))
        if len(stage.engines[0].asked) == 1:
            await asyncio.sleep(0.05)
            await line.send(kit.sized(b"poison"))
            closed.set()

    closed = asyncio.Event()
    stage = await kit.stage(script)
    client = await stage.client()
    await client.ask(kit.CHAT)
    await closed.wait()
    await asyncio.sleep(0.05)

    assert (await client.ask(kit.CHAT)).body == kit.COMPLETION
    assert stage.engines[0].connections == 2


async def test_a_kept_connection_that_dies_as_it_is_used_again_is_replaced_unseen(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        if len(stage.engines[0].asked) == 2:
            line.reset()
        else:
            await kit.complete(line, asked)

    stage = await kit.stage(script)
    client = await stage.client()

    answers = [await client.ask(kit.CHAT) for _ in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert stage.engines[0].connections == 2
    assert len(stage.engines[0].asked) == 4
    assert not stage.gateway.fleet.instances["i0"].failed.is_set()


async def test_connections_to_an_engine_are_kept_and_used_again(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    for document in (kit.CHAT, kit.STREAM, kit.CHAT):
        await client.ask(document)

    assert stage.engines[0].connections == 1


async def test_idle_connections_to_an_engine_are_bounded_in_number_and_time(kit: Any) -> None:
    stage = await kit.stage(engine_idle_max=2, engine_idle_timeout_s=0.1)
    clients = [await stage.client() for _ in range(5)]
    await asyncio.gather(*(client.ask(kit.CHAT) for client in clients))
    instance = stage.gateway.fleet.instances["i0"]
    assert len(instance._idle) <= 2

    await stage.until(lambda: not instance._idle)


async def test_an_instance_that_refuses_connections_is_probed_and_comes_back(kit: Any) -> None:
    stage = await kit.stage()
    engine = stage.engines[0]
    client = await stage.client()
    await engine.stop()

    await client.send(kit.post(kit.CHAT))
    await stage.until(lambda: stage.gateway.fleet.instances["i0"].failed.is_set())
    engine.healthy = False
    await engine.start()
    await asyncio.sleep(0.1)
    assert stage.gateway.fleet.instances["i0"].failed.is_set()
    engine.healthy = True
    await stage.until(lambda: not stage.gateway.fleet.instances["i0"].failed.is_set())

    client = await stage.client()
    assert (await client.ask(kit.CHAT)).status == 200


async def test_an_instance_that_restarts_under_its_id_is_met_with_new_connections(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    await client.ask(kit.CHAT)

    stage.set_fleet(stage.engines[0], epoch=1)

    assert (await client.ask(kit.CHAT)).status == 200
    assert stage.engines[0].connections == 2


async def test_an_instance_that_leaves_the_fleet_finishes_what_it_began(kit: Any) -> None:
    released = asyncio.Event()

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD + kit.chunk(kit.token("one")))
        await released.wait()
        await line.send(kit.chunk(kit.DONE) + b"0\r\n\r\n")

    stage = await kit.stage(script)
    client = await stage.client()
    await client.send(kit.post(kit.STREAM))
    await stage.until(lambda: bool(stage.engines[0].asked))
    stage.set_fleet()
    released.set()

    assert (await client.answer()).events[-1] == "[DONE]"


async def test_a_hung_engine_is_given_up(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.gone()

    stage = await kit.stage(script, engine_silence_timeout_s=0.1)
    client = await stage.client()

    answer = await client.ask(kit.CHAT)

    assert (answer.status, answer.headers["x-multislo-reason"]) == (504, "engine_silent")
    assert stage.outcomes() == {"engine_failed": 1}


async def test_an_error_event_of_the_engine_counts_as_its_failure(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        events = [kit.token("a"), kit.event({"error": {"message": "CUDA"}}), kit.DONE]
        await line.send(kit.SSE_HEAD + b"".join(map(kit.chunk, events)) + b"0\r\n\r\n")

    stage = await kit.stage(script)
    client = await stage.client()

    answer = await client.ask(kit.STREAM)

    assert answer.events[1] == '{"error": {"message": "CUDA"}}'
    assert stage.outcomes() == {"engine_failed": 1}


async def test_no_instance_is_a_503_with_a_reason(kit: Any) -> None:
    core = replace(kit.CORE, default_tier="realtime")
    stage = await kit.stage(core=core)
    stage.set_fleet()
    client = await stage.client()

    scheduled = await client.ask(kit.CHAT)
    passed = await client.ask({}, "/tokenize")

    for answer in (scheduled, passed):
        assert (answer.status, answer.headers["x-multislo-reason"]) == (503, "no_instance")
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_passed_through_request_whose_engine_dies_gets_a_502(kit: Any) -> None:
    stage = await kit.stage(dies)
    client = await stage.client()

    answer = await client.ask({}, "/tokenize")

    assert (answer.status, answer.headers["x-multislo-reason"]) == (502, "engine_failed")
