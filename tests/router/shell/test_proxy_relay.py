"""Requests and answers that go well: what is relayed, what is added, what is kept back."""

import asyncio
import json
from typing import Any


async def test_a_completion_is_relayed_byte_for_byte(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    body = b'{ "messages" : [{"role":"user","content":"x"}],\n "odd" : {"a":[1,2.50,null]}, "model":"llama" , "seed":07e0 }'
    body = body.replace(b"07e0", b"7")

    answer = await client.ask(body)

    assert answer.status == 200
    assert answer.body == kit.COMPLETION
    assert stage.engines[0].asked[0].body == body


async def test_a_stream_is_relayed_byte_for_byte(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    answer = await client.ask(kit.STREAM)

    assert answer.body == kit.ROLE + b"".join(map(kit.token, ("Hi", " there", "!"))) + kit.DONE
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["date"] == "now"


async def test_a_stream_is_relayed_as_it_comes(kit: Any) -> None:
    released = asyncio.Event()

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD + kit.chunk(kit.token("one")))
        await released.wait()
        await line.send(kit.chunk(kit.DONE) + b"0\r\n\r\n")

    stage = await kit.stage(script)
    client = await stage.client()
    await client.send(kit.post(kit.STREAM))
    async with asyncio.timeout(kit.PATIENCE_S):
        await client.reader.readuntil(kit.chunk(kit.token("one")))
    released.set()
    async with asyncio.timeout(kit.PATIENCE_S):
        assert await client.reader.readuntil(b"0\r\n\r\n") == kit.chunk(kit.DONE) + b"0\r\n\r\n"


async def test_an_answer_names_its_instance_tier_and_request(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    answer = await client.ask(kit.CHAT, headers="x-slo-tier: batch\r\nx-request-id: abc\r\n")

    assert answer.headers["x-multislo-instance"] == "i0"
    assert answer.headers["x-multislo-tier"] == "batch"
    assert answer.headers["x-request-id"] == "abc"
    assert stage.engines[0].asked[0].headers["x-request-id"] == "abc"


async def test_a_request_without_an_id_gets_one(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    first = await client.ask(kit.CHAT)
    second = await client.ask(kit.CHAT)

    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert [asked.headers["x-request-id"] for asked in stage.engines[0].asked] == [
        first.headers["x-request-id"],
        second.headers["x-request-id"],
    ]


async def test_headers_of_the_connection_and_of_the_slo_end_at_the_router(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    internal = (
        "x-slo-ttft-ms: 900\r\nx-llm-d-slo-tpot-ms: 60\r\nx-slo-tier: batch\r\nX-MultiSLO-Tier: x\r\n"
        "connection: keep-alive, X-Mine\r\nx-mine: 1\r\nkeep-alive: 5\r\nte: trailers\r\naccept-encoding: gzip\r\n"
    )

    await client.ask(kit.CHAT, headers=internal + "X-Yours: 2\r\nuser-agent: me\r\nauthorization: Bearer k\r\n")

    seen = stage.engines[0].asked[0].headers
    assert set(seen) == {
        *("host", "content-type", "content-length", "x-request-id"),
        *("x-yours", "user-agent", "authorization"),
    }
    assert seen["x-yours"] == "2"
    assert seen["host"] == f"127.0.0.1:{stage.engines[0].port}"


async def test_hop_by_hop_headers_of_an_engine_end_at_the_router(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        extra = "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nX-Request-Id: engine\r\nserver: uvicorn\r\n"
        await line.send(kit.sized(b"{}", extra=extra))

    stage = await kit.stage(script)
    client = await stage.client()

    answer = await client.ask(kit.CHAT, headers="x-request-id: mine\r\n")

    assert "connection" not in answer.headers
    assert "keep-alive" not in answer.headers
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["server"] == "uvicorn"


async def test_the_models_are_answered_by_the_router(kit: Any) -> None:
    stage = await kit.stage(served_names=("meta/Llama-3", "llama"))
    client = await stage.client()

    await client.send(b"GET /v1/models HTTP/1.1\r\nhost: r\r\n\r\n")
    listed = await client.answer()
    await client.send(b"GET /v1/models/meta/Llama-3 HTTP/1.1\r\nhost: r\r\n\r\n")
    one = await client.answer()
    await client.send(b"GET /v1/models/gpt HTTP/1.1\r\nhost: r\r\n\r\n")
    none = await client.answer()

    assert [model["id"] for model in listed.json["data"]] == ["meta/Llama-3", "llama"]
    assert one.json["id"] == "meta/Llama-3"
    assert one.json["max_model_len"] == 131_072
    assert (none.status, none.error["code"]) == (404, "model_not_found")
    assert not stage.engines[0].asked


async def test_a_path_that_is_not_scheduled_is_passed_to_an_instance_and_a_drain_waits_for_it(kit: Any) -> None:
    released = asyncio.Event()

    async def script(line: Any, asked: Any) -> None:
        await released.wait()
        await line.send(kit.sized(b'{"count": 2}'))

    stage = await kit.stage(script)
    client = await stage.client()
    await client.send(kit.post({"prompt": "a b"}, "/tokenize?x=1"))
    await stage.until(lambda: bool(stage.engines[0].asked))
    busy = stage.gateway.status(asyncio.get_running_loop().time()).instances[0].requests
    released.set()
    answer = await client.answer()

    assert busy == 1
    assert answer.json == {"count": 2}
    assert stage.engines[0].asked[0].line == "POST /tokenize?x=1 HTTP/1.1"
    assert stage.gateway.status(asyncio.get_running_loop().time()).instances[0].requests == 0


async def test_an_engine_s_4xx_is_relayed_as_it_is(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.sized(b'{"error": {"message": "temperature"}}', "422 Unprocessable", "x-why: t\r\n"))

    stage = await kit.stage(script)
    client = await stage.client()

    answer = await client.ask(kit.STREAM)

    assert (answer.status, answer.headers["x-why"]) == (422, "t")
    assert answer.json == {"error": {"message": "temperature"}}
    assert len(stage.engines[0].asked) == 1


async def test_priority_and_slo_are_handed_to_engines_that_know_them(kit: Any) -> None:
    from dataclasses import replace

    from multislo_router.core.events import Scheduler

    for scheduler in (Scheduler.PRIORITY, Scheduler.SLO_AWARE):
        core = replace(kit.CORE, engine=replace(kit.CORE.engine, scheduler=scheduler))
        stage = await kit.stage(core=core)
        client = await stage.client()
        await client.ask(kit.CHAT, headers="x-slo-tpot-ms: 60\r\n")
        await client.ask(kit.CHAT | {"priority": 5, "vllm_xargs": {"mine": 1}})
        ours, theirs = (asked.json for asked in stage.engines[0].asked)

        assert theirs == kit.CHAT | {"priority": 5, "vllm_xargs": {"mine": 1}}
        if scheduler is Scheduler.PRIORITY:
            assert isinstance(ours["priority"], int)
            assert "vllm_xargs" not in ours
        else:
            assert ours["vllm_xargs"]["slo_tpot_ms"] == 60
            assert 0 < ours["vllm_xargs"]["slo_ttft_ms"] <= 5000 < ours["vllm_xargs"]["slo_late_ttft_ms"] <= 12_500


async def test_an_engine_is_told_that_a_first_token_is_overdue(kit: Any) -> None:
    from dataclasses import replace

    from multislo_router.core.events import Scheduler

    core = replace(kit.CORE, engine=replace(kit.CORE.engine, scheduler=Scheduler.SLO_AWARE))
    stage = await kit.stage(core=core)
    client = await stage.client()

    await client.ask(kit.CHAT, headers="x-slo-ttft-ms: 1\r\n")

    (asked,) = stage.engines[0].asked
    assert asked.json["vllm_xargs"]["slo_ttft_ms"] < 1


async def test_tokens_that_share_an_event_are_counted_by_the_usage(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        events = [kit.ROLE, kit.token("several words"), kit.USAGE, kit.DONE]
        await line.send(kit.SSE_HEAD + b"".join(map(kit.chunk, events)) + b"0\r\n\r\n")

    stage = await kit.stage(script)
    client = await stage.client()

    await client.ask(kit.STREAM)

    tier = stage.gateway.core.status(0.0).tiers[1]
    assert tier.tokens_met + tier.tokens_missed == 3
    assert stage.outcomes() == {"completed": 1}


async def test_tokens_and_usage_reach_the_core(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        events = [kit.ROLE, *map(kit.token, "abc"), kit.USAGE, kit.DONE]
        await line.send(kit.SSE_HEAD + b"".join(map(kit.chunk, events)) + b"0\r\n\r\n")

    stage = await kit.stage(script)
    client = await stage.client()

    await client.ask(kit.STREAM)

    tier = stage.gateway.core.status(0.0).tiers[1]
    assert tier.tokens_met + tier.tokens_missed == 3
    assert stage.outcomes() == {"completed": 1}


async def test_the_usage_of_an_answer_that_does_not_stream_reaches_the_core(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.ask(kit.CHAT)

    tier = stage.gateway.core.status(0.0).tiers[1]
    assert tier.tokens_met + tier.tokens_missed == 3


async def test_an_http_1_0_client_gets_a_stream_without_chunks(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    body = json.dumps(kit.STREAM).encode()

    await client.send(b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    head, _, content = (await client.rest()).partition(b"\r\n\r\n")

    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head
    assert content == kit.ROLE + b"".join(map(kit.token, ("Hi", " there", "!"))) + kit.DONE


async def test_an_answer_that_ends_with_its_connection_is_relayed_whole(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nall of it")
        line.writer.close()

    stage = await kit.stage(script)
    client = await stage.client()
    await client.send(kit.post(kit.CHAT))

    head, _, content = (await client.rest()).partition(b"\r\n\r\n")

    assert content == b"all of it"
    assert b"connection: close" in head
    assert stage.outcomes() == {"completed": 1}
