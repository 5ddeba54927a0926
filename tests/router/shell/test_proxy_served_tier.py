"""`service_tier` in an answer's body: only for who asked with it, and without touching anything else."""

import json
from typing import Any

import pytest

TIERS = {"flex": "batch"}
ASKED = {"service_tier": "flex"}


async def test_an_answer_says_in_its_body_which_tier_served_it(kit: Any) -> None:
    stage = await kit.stage(service_tiers=TIERS)
    client = await stage.client()

    answer = await client.ask(kit.CHAT | ASKED)

    assert (answer.json["service_tier"], answer.headers["x-multislo-tier"]) == ("batch", "batch")
    assert answer.body == kit.COMPLETION.replace(b"{", b'{"service_tier":"batch",', 1)
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert (await client.ask(kit.CHAT)).body == kit.COMPLETION
    assert stage.outcomes() == {"completed": 2}


async def test_what_the_engine_says_of_its_own_tier_is_replaced(kit: Any) -> None:
    own = kit.COMPLETION.replace(b'"usage"', b'"service_tier": null, "usage"')

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.sized(own))

    stage = await kit.stage(script, service_tiers=TIERS)
    client = await stage.client()

    answer = await client.ask(kit.CHAT | ASKED)

    assert answer.body == own.replace(b'"service_tier": null', b'"service_tier":"batch"')
    assert (await client.ask(kit.CHAT)).body == own


async def test_every_event_of_a_stream_says_which_tier_serves_it(kit: Any) -> None:
    stage = await kit.stage(service_tiers=TIERS)
    client = await stage.client()

    answer = await client.ask(kit.STREAM | ASKED)
    plain = await client.ask(kit.STREAM)

    *events, done = answer.events
    assert [json.loads(event)["service_tier"] for event in events] == ["batch"] * 4
    assert done == "[DONE]"
    assert answer.body.replace(b'"service_tier":"batch",', b"") == plain.body


@pytest.mark.parametrize("size", [1, 2, 7, 40, 1000])
async def test_a_text_that_looks_like_an_event_or_a_field_is_not_touched(kit: Any, size: int) -> None:
    texts = ['data: {"a": 1}', '\\ndata: {"a": 1}', '"service_tier":null', '{"service_tier":"x"}', "\n\ndata: {"]
    stream = kit.ROLE + b"".join(map(kit.token, texts)) + kit.DONE

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD)
        for at in range(0, len(stream), size):
            await line.send(kit.chunk(stream[at : at + size]))
        await line.send(b"0\r\n\r\n")

    stage = await kit.stage(script, service_tiers=TIERS)
    client = await stage.client()

    answer = await client.ask(kit.STREAM | ASKED)

    assert answer.body.replace(b'"service_tier":"batch",', b"") == stream
    said = [json.loads(event)["choices"][0]["delta"].get("content") for event in answer.events[1:-1]]
    assert said == texts
    assert stage.outcomes() == {"completed": 1}


async def test_an_old_client_gets_the_tier_without_chunks(kit: Any) -> None:
    stage = await kit.stage(service_tiers=TIERS)
    client = await stage.client()
    request = kit.post(kit.STREAM | ASKED).replace(b"HTTP/1.1", b"HTTP/1.0")

    await client.send(request)
    answer = await client.answer()

    assert "transfer-encoding" not in answer.headers
    assert json.loads(answer.events[0])["service_tier"] == "batch"


async def test_an_error_of_the_engine_is_relayed_as_it_is(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.sized(b'{"error": {"message": "temperature"}}', "422 Unprocessable"))

    stage = await kit.stage(script, service_tiers=TIERS)
    client = await stage.client()

    assert (await client.ask(kit.CHAT | ASKED)).json == {"error": {"message": "temperature"}}


async def test_an_engine_that_dies_within_a_held_answer_is_replaced(kit: Any) -> None:
    async def dies(line: Any, asked: Any) -> None:
        await line.send(kit.sized(kit.COMPLETION)[:-5])
        line.reset()

    async def script(line: Any, asked: Any) -> None:
        await (dies if len(stage.engines[0].asked) + len(stage.engines[1].asked) == 1 else kit.complete)(line, asked)

    stage = await kit.stage(script, script, service_tiers=TIERS)
    client = await stage.client()

    assert (await client.ask(kit.CHAT | ASKED)).json["service_tier"] == "batch"
