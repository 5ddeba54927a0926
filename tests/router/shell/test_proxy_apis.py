"""/v1/responses and /v1/messages: scheduled like chats, counted by their own events, and answered in their own forms."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from multislo_router.core import events as e
from multislo_router.shell.keys import keys_in

RESPONSE = {"model": "llama", "input": "Hello?", "max_output_tokens": 3}
MESSAGE = {"model": "llama", "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 3}
COMMENT = b": keep-alive\n"
BOTH = [("/v1/responses", RESPONSE), ("/v1/messages", MESSAGE)]


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


STREAMS = {
    "/v1/responses": [
        event("response.created", response={"status": "in_progress", "error": None, "usage": None}),
        event("response.in_progress", response={"status": "in_progress", "error": None, "usage": None}),
        event("response.output_item.added", item={"type": "reasoning"}),
        event("response.reasoning_text.delta", delta="hm"),
        event("response.output_text.delta", delta="Hi"),
        event("response.output_text.delta", delta=" there"),
        event("response.function_call_arguments.delta", delta='{"a'),
        event("response.output_text.done", text="Hi there"),
        event("response.completed", response={"error": None, "usage": {"input_tokens": 11, "output_tokens": 4}}),
    ],
    "/v1/messages": [
        event("message_start", message={"content": [], "usage": {"input_tokens": 11, "output_tokens": 0}}),
        event("ping"),
        event("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
        event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"}),
        event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "x"}),
        event("content_block_delta", index=1, delta={"type": "text_delta", "text": "Hi"}),
        event("content_block_delta", index=1, delta={"type": "text_delta", "text": " there"}),
        event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"a'}),
        event("content_block_stop", index=2),
        event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 4}),
        event("message_stop"),
    ],
}
WHOLE = json.dumps({"id": "x", "usage": {"input_tokens": 11, "output_tokens": 4}}).encode()


def told(stage: Any, kind: type) -> list[Any]:
    """What the core will be told of this kind."""
    seen: list[Any] = []
    handle = stage.gateway.core.handle

    def watching(happened: Any) -> Any:
        if isinstance(happened, kind):
            seen.append(happened)
        return handle(happened)

    stage.gateway.core.handle = watching
    return seen


def speaking(kit: Any) -> Any:
    """An engine that answers both APIs."""

    async def script(line: Any, asked: Any) -> None:
        if not asked.json.get("stream"):
            await line.send(kit.sized(WHOLE))
            return
        path = asked.line.split()[1].partition("?")[0]
        await line.send(kit.SSE_HEAD + b"".join(map(kit.chunk, STREAMS[path])) + b"0\r\n\r\n")

    return script


def tier_of(stage: Any, index: int = 1) -> Any:
    return stage.gateway.core.status(0.0).tiers[index]


@pytest.mark.parametrize(("path", "body"), BOTH)
async def test_it_is_placed_by_its_tier_and_relayed_byte_for_byte(kit: Any, path: str, body: Any) -> None:
    stage = await kit.stage(speaking(kit))
    client = await stage.client()
    arrivals = told(stage, e.RequestArrived)

    whole = await client.ask(body, path, "x-slo-tier: batch\r\nanthropic-version: 2023-06-01\r\n")
    stream = await client.ask(body | {"stream": True}, path + "?beta=true", "x-slo-tier: batch\r\n")

    assert (whole.status, whole.body, whole.headers["x-multislo-tier"]) == (200, WHOLE, "batch")
    assert (stream.status, stream.body) == (200, b"".join(STREAMS[path]))
    assert [(a.tier, a.output_tokens_max, a.streaming) for a in arrivals] == [("batch", 3, False), ("batch", 3, True)]
    assert [asked.json for asked in stage.engines[0].asked] == [body, body | {"stream": True}]
    assert stage.engines[0].asked[1].line.split()[1] == path + "?beta=true"
    assert stage.outcomes() == {"completed": 2}
    batch = tier_of(stage, 2)
    assert batch.tokens_met + batch.tokens_missed == 4 + 4


@pytest.mark.parametrize(("path", "body"), BOTH)
async def test_its_tokens_are_counted_in_its_own_events(kit: Any, path: str, body: Any) -> None:
    stage = await kit.stage(speaking(kit))
    client = await stage.client()
    tokens, measured = told(stage, e.TokensReceived), told(stage, e.PromptMeasured)
    await client.ask(body | {"stream": True}, path)
    assert sum(event.tokens for event in tokens) == 4
    assert measured[0].prompt_tokens == 11


@pytest.mark.parametrize(("path", "body"), BOTH)
async def test_it_is_held_while_there_is_no_instance_and_sent_when_one_comes(kit: Any, path: str, body: Any) -> None:
    stage = await kit.stage(speaking(kit))
    stage.set_fleet()
    client = await stage.client()
    await client.send(kit.post(body, path))
    await stage.until(lambda: tier_of(stage).pending == 1)
    stage.set_fleet(*stage.engines)
    assert (await client.answer()).body == WHOLE


@pytest.mark.parametrize(("path", "body"), BOTH)
async def test_its_service_tier_is_a_tier_and_the_engine_gets_no_value_that_it_does_not_know(
    kit: Any, path: str, body: Any
) -> None:
    settings = replace(kit.SETTINGS, service_tiers={"priority": "realtime", "default": "interactive"})
    stage = await kit.stage(speaking(kit), settings=settings)
    client = await stage.client()
    answers = [await client.ask(body | {"service_tier": name}, path) for name in ("batch", "priority", "default")]
    wrong = await client.ask(body | {"service_tier": "gold"}, path)

    assert [answer.headers["x-multislo-tier"] for answer in answers] == ["batch", "realtime", "interactive"]
    asked = [asked.json["service_tier"] for asked in stage.engines[0].asked]
    # vLLM refuses what it does not know in responses, and reads no such field in messages
    assert asked == (["auto", "priority", "default"] if path == "/v1/responses" else ["batch", "priority", "default"])
    assert (wrong.status, wrong.headers["x-multislo-reason"]) == (400, "unknown_tier")


async def test_a_response_says_which_tier_served_it(kit: Any) -> None:
    created = event("response.created", response={"service_tier": "auto", "usage": None})

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD + kit.chunk(created) + b"0\r\n\r\n")

    stage = await kit.stage(script)
    answer = await (await stage.client()).ask(RESPONSE | {"stream": True, "service_tier": "batch"}, "/v1/responses")
    assert answer.body == created.replace(b'"service_tier": "auto"', b'"service_tier":"batch"')


@pytest.mark.parametrize(
    ("path", "body", "least"),
    [
        ("/v1/responses", RESPONSE | {"input": "x" * 8000}, 2000),
        ("/v1/responses", RESPONSE | {"instructions": "x" * 8000}, 2000),
        ("/v1/responses", RESPONSE | {"input": [{"role": "user", "content": [{"text": "x" * 8000}]}]}, 2000),
        ("/v1/responses", RESPONSE | {"tools": [{"description": "x" * 8000}]}, 2000),
        ("/v1/responses", RESPONSE | {"prompt": {"id": "p" * 8000}}, 0),
        ("/v1/messages", MESSAGE | {"system": "x" * 8000}, 2000),
        ("/v1/messages", MESSAGE | {"system": [{"type": "text", "text": "x" * 8000}]}, 2000),
        ("/v1/messages", MESSAGE | {"messages": [{"role": "user", "content": "x" * 8000}]}, 2000),
    ],
)
async def test_how_long_its_prompt_is(kit: Any, path: str, body: Any, least: int) -> None:
    stage = await kit.stage(speaking(kit))
    client = await stage.client()
    arrivals = told(stage, e.RequestArrived)
    await client.ask(body, path)
    assert least <= arrivals[0].prompt_tokens <= least + 100


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/messages",
            MESSAGE | {"messages": [{"content": [{"source": {"type": "base64", "data": "iVBOR" * 9999}}]}]},
        ),
        (
            "/v1/responses",
            RESPONSE | {"input": [{"content": [{"image_url": "data:image/png;base64," + "iVBOR" * 9999}]}]},
        ),
    ],
)
async def test_an_inline_image_of_it_is_not_taken_for_text(kit: Any, path: str, body: Any) -> None:
    stage = await kit.stage(speaking(kit))
    client = await stage.client()
    arrivals = told(stage, e.RequestArrived)
    await client.ask(body, path)
    assert 1000 < arrivals[0].prompt_tokens < 1200


async def test_a_tokenizer_counts_its_texts(kit: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    words.save(str(tmp_path / "tokenizer.json"))
    stage = await kit.stage(speaking(kit), tokenizer=tmp_path / "tokenizer.json")
    client = await stage.client()
    arrivals = told(stage, e.RequestArrived)

    await client.ask(RESPONSE | {"instructions": "hello hello", "input": "hello"}, "/v1/responses")
    await client.ask(RESPONSE | {"input": [{"type": "function_call_output", "output": "hello hello"}]}, "/v1/responses")
    await client.ask(MESSAGE | {"system": "hello"}, "/v1/messages")

    assert [event.prompt_tokens for event in arrivals] == [3 + 8, 2 + 4, 1 + 1 + 8]


# -- errors ------------------------------------------------------------------------------------------------------------


async def test_an_unknown_model_is_a_404_in_the_form_of_the_api(kit: Any) -> None:
    stage = await kit.stage(speaking(kit))
    client = await stage.client()

    openai = await client.ask(RESPONSE | {"model": "gpt"}, "/v1/responses")
    anthropic = await client.ask(MESSAGE | {"model": "claude"}, "/v1/messages", "x-request-id: mine\r\n")

    assert (openai.status, openai.error["code"]) == (404, "model_not_found")
    assert anthropic.status == 404
    assert anthropic.json["type"] == "error"
    assert anthropic.json["error"]["type"] == "not_found_error"
    assert "claude" in anthropic.json["error"]["message"]
    assert (anthropic.json["request_id"], anthropic.headers["request-id"]) == ("mine", "mine")
    assert anthropic.headers["x-multislo-reason"] == "unknown_model"


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"{", 400, "invalid_request_error"),
        (MESSAGE | {"stream": "yes"}, 400, "invalid_request_error"),
        (MESSAGE | {"max_tokens": 1.5}, 400, "invalid_request_error"),
        (MESSAGE | {"max_tokens": 500_000}, 400, "invalid_request_error"),
    ],
)
async def test_a_wrong_message_is_told_in_anthropics_form(kit: Any, body: Any, status: int, kind: str) -> None:
    stage = await kit.stage(speaking(kit))
    client = await stage.client()
    answer = await client.ask(body, "/v1/messages")
    assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (status, "error", kind)


async def test_no_instance_and_a_missing_key_are_told_in_anthropics_form(kit: Any) -> None:
    core = replace(kit.CORE, default_tier="realtime")
    stage = await kit.stage(speaking(kit), core=core)
    stage.set_fleet()
    answer = await (await stage.client()).ask(MESSAGE, "/v1/messages")
    assert (answer.status, answer.json["error"]["type"]) == (503, "overloaded_error")
    assert int(answer.headers["retry-after"]) >= 1

    stage = await kit.stage(speaking(kit), api_keys=keys_in(b"secret"))
    refused = await (await stage.client()).ask(MESSAGE, "/v1/messages", "x-api-key: wrong\r\n")
    served = await (await stage.client()).ask(MESSAGE, "/v1/messages", "x-api-key: secret\r\n")
    assert (refused.status, refused.json["error"]["type"]) == (401, "authentication_error")
    assert served.status == 200
    assert "x-api-key" not in stage.engines[0].asked[0].headers


async def test_an_engines_own_error_of_these_apis_is_relayed(kit: Any) -> None:
    error = b'{"type": "error", "error": {"type": "BadRequestError", "message": "no"}}'

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.sized(error, "400 Bad Request"))

    stage = await kit.stage(script)
    answer = await (await stage.client()).ask(MESSAGE | {"stream": True}, "/v1/messages")
    assert (answer.status, answer.body) == (400, error)


@pytest.mark.parametrize(("path", "body"), BOTH)
async def test_an_engine_that_dies_during_its_stream_ends_it_with_its_own_error_event(
    kit: Any, path: str, body: Any
) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD + kit.chunk(STREAMS[path][0]))
        await seen.wait()
        line.reset()

    seen = asyncio.Event()
    stage = await kit.stage(script)
    client = await stage.client()
    await client.send(kit.post(body | {"stream": True}, path))
    async with asyncio.timeout(kit.PATIENCE_S):
        await client.reader.readuntil(STREAMS[path][0])
    seen.set()

    rest = await client.rest()

    name, data = rest[rest.index(b"event: ") :].split(b"\n")[:2]
    document = json.loads(data.removeprefix(b"data: "))
    assert (name, document["type"]) == (b"event: error", "error")
    if path == "/v1/messages":
        assert document["error"]["type"] == "api_error"
        assert document["request_id"]
    else:
        assert (document["code"], document["sequence_number"]) == ("engine_failed", 0)
        assert "failed during the answer" in document["message"]
    assert stage.outcomes() == {"engine_failed": 1}


@pytest.mark.parametrize(("path", "body"), BOTH)
async def test_comments_keep_its_stream_alive_while_it_waits(kit: Any, path: str, body: Any) -> None:
    stage = await kit.stage(speaking(kit), stream_keep_alive_s=0.05)
    stage.set_fleet()
    client = await stage.client()
    await client.send(kit.post(body | {"stream": True}, path, "x-request-id: mine\r\n"))
    async with asyncio.timeout(kit.PATIENCE_S):
        head = await client.reader.readuntil(COMMENT)
        stage.set_fleet(*stage.engines)
        rest = await client.reader.readuntil(b"\r\n0\r\n\r\n")

    assert (b"\r\nrequest-id: mine\r\n" in head) == (path == "/v1/messages")
    assert [event for event in STREAMS[path] if event not in rest] == []
    assert stage.outcomes() == {"completed": 1}


@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.parametrize("failure", ["refused", "400", "nonsense"])
async def test_what_fails_behind_comments_is_an_error_event_of_its_api(
    kit: Any, path: str, body: Any, failure: str
) -> None:
    said = {
        "400": b'{"error": {"type": "BadRequestError", "message": "no such tool", "code": 400}}',
        "nonsense": b"<html>",
    }

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.sized(said[failure], "400 Bad Request"))

    stage = await kit.stage(script, stream_keep_alive_s=0.05)
    stage.set_fleet()
    client = await stage.client()
    headers = "x-slo-tier: realtime\r\nx-slo-ttft-ms: 500\r\n" if failure == "refused" else ""
    await client.send(kit.post(body | {"stream": True}, path, headers))
    async with asyncio.timeout(kit.PATIENCE_S):
        await client.reader.readuntil(COMMENT)
        if failure != "refused":
            stage.set_fleet(*stage.engines)
        rest = await client.reader.readuntil(b"\r\n0\r\n\r\n")

    name, data = rest[rest.index(b"event: ") :].split(b"\n")[:2]
    document = json.loads(data.removeprefix(b"data: "))
    message = {"refused": "no instance", "400": "no such tool", "nonsense": "the engine answered 400: <html>"}[failure]
    assert name == b"event: error"
    assert message in document["error"]["message"]
    if path == "/v1/responses":
        assert (document["type"], document["message"]) == ("error", document["error"]["message"])


async def test_a_response_that_failed_counts_as_the_engines_failure(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        failed = event("response.failed", response={"status": "failed", "error": {"code": "server_error"}})
        await line.send(kit.SSE_HEAD + kit.chunk(failed) + b"0\r\n\r\n")

    stage = await kit.stage(script)
    await (await stage.client()).ask(RESPONSE | {"stream": True}, "/v1/responses")
    assert stage.outcomes() == {"engine_failed": 1}


# -- what is stored ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"), [("previous_response_id", "resp_1"), ("background", True), ("conversation", {"id": "c"})]
)
async def test_what_needs_a_stored_response_is_refused_with_what_to_do(kit: Any, name: str, value: Any) -> None:
    stage = await kit.stage(speaking(kit))
    answer = await (await stage.client()).ask(RESPONSE | {name: value}, "/v1/responses")
    assert (answer.status, answer.error["param"]) == (400, name)
    assert "not stored" in answer.error["message"]
    assert not stage.engines[0].asked


async def test_absent_state_and_store_are_no_error(kit: Any) -> None:
    stage = await kit.stage(speaking(kit))
    nothing = {"previous_response_id": None, "background": False, "conversation": None, "store": True}
    assert (await (await stage.client()).ask(RESPONSE | nothing, "/v1/responses")).status == 200


@pytest.mark.parametrize(
    "line", ["GET /v1/responses/resp_1", "DELETE /v1/responses/resp_1", "POST /v1/responses/resp_1/cancel"]
)
async def test_a_stored_response_is_not_there(kit: Any, line: str) -> None:
    stage = await kit.stage(speaking(kit))
    client = await stage.client()
    await client.send(f"{line} HTTP/1.1\r\nhost: r\r\ncontent-length: 0\r\n\r\n".encode())
    answer = await client.answer()
    assert (answer.status, answer.headers["x-multislo-reason"]) == (404, "not_found")
    assert "not stored" in answer.error["message"]
    assert not stage.engines[0].asked


async def test_a_path_below_responses_that_stores_nothing_is_only_not_there(kit: Any) -> None:
    stage = await kit.stage()
    answer = await (await stage.client()).ask(RESPONSE, "/v1/responses/compact")
    assert (answer.status, answer.error["message"]) == (404, "POST /v1/responses/compact: there is no such path")


async def test_counting_tokens_passes_through_to_an_engine(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.sized(b'{"input_tokens": 9}'))

    stage = await kit.stage(script)
    answer = await (await stage.client()).ask(MESSAGE, "/v1/messages/count_tokens?beta=true")
    assert (answer.status, answer.json) == (200, {"input_tokens": 9})
    assert stage.outcomes() == {}
