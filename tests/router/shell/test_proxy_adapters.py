"""LoRA adapters: models of their own for clients, one model for the fleet."""

from typing import Any

ADAPTERS = (("sql", "/adapters/sql"), ("team/chat", "org/chat-lora"))


async def test_adapters_are_listed_with_the_model_that_they_adapt(kit: Any) -> None:
    stage = await kit.stage(adapters=ADAPTERS)
    client = await stage.client()

    await client.send(
        b"GET /v1/models HTTP/1.1\r\nhost: r\r\n\r\nGET /v1/models/team%2Fchat HTTP/1.1\r\nhost: r\r\n\r\n"
    )
    listed, one = (await client.answer()).json["data"], (await client.answer()).json

    assert [(model["id"], model["root"], model["parent"]) for model in listed] == [
        ("llama", "llama", None),
        ("sql", "/adapters/sql", "llama"),
        ("team/chat", "org/chat-lora", "llama"),
    ]
    assert one == listed[2]


async def test_a_request_for_an_adapter_reaches_an_engine_as_it_is(kit: Any) -> None:
    stage = await kit.stage(adapters=ADAPTERS)
    client = await stage.client()

    answer = await client.ask(kit.CHAT | {"model": "team/chat"}, headers="x-slo-tier: batch\r\n")

    assert (answer.status, answer.headers["x-multislo-tier"]) == (200, "batch")
    assert stage.engines[0].asked[0].json["model"] == "team/chat"


async def test_an_adapter_that_there_is_not_is_a_404_that_names_those_that_there_are(kit: Any) -> None:
    stage = await kit.stage(adapters=ADAPTERS)
    client = await stage.client()

    answer = await client.ask(kit.CHAT | {"model": "sql2"})

    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert answer.error["message"] == "model: 'sql2' is not served here; served are: llama, sql, team/chat"


async def test_adapters_are_counted_apart(kit: Any) -> None:
    stage = await kit.stage(adapters=ADAPTERS)
    client = await stage.client()

    for body in (kit.CHAT, kit.CHAT | {"model": "sql"}, kit.STREAM | {"model": "sql"}, kit.CHAT | {"model": "other"}):
        await client.ask(body)
    unnamed = {name: value for name, value in kit.CHAT.items() if name != "model"}
    await client.ask(unnamed)

    assert stage.gateway.models.requests == {"llama": 2, "sql": 2, "team/chat": 0}
    assert stage.gateway.models.output_tokens == {"llama": 6, "sql": 6, "team/chat": 0}
