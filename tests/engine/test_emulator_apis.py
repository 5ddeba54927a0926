"""The emulator's other APIs, and requests with several sequences, as vLLM answers them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import openai
from aiohttp import web

from multislo_engine.emulator.app import EmulatorApp
from multislo_engine.emulator.config import EmulatorConfig
from multislo_perf.latency import LatencyModel

LAW = LatencyModel(1.64e-3, 3.88e-3, 5.43e-6, 0.06e-3, 17.64e-6, 5.28e-6, 2.971e-8, 3.75e-7, 3.87e-10)
CONFIG = EmulatorConfig(latency=LAW, belief=LAW, model="llama", kv_tokens_max=160_000, max_model_len=8192)


@asynccontextmanager
async def serving(config: EmulatorConfig = CONFIG) -> AsyncIterator[tuple[EmulatorApp, str, aiohttp.ClientSession]]:
    app = EmulatorApp(config)
    runner = web.AppRunner(app.application(), handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            yield app, f"http://127.0.0.1:{runner.addresses[0][1]}", session
    finally:
        await runner.cleanup()


async def post(path: str, **body: Any) -> tuple[int, Any]:
    async with serving() as (_, url, session), session.post(url + path, json={"model": "llama", **body}) as response:
        return response.status, await response.json()


async def events(path: str, **body: Any) -> list[tuple[str, Any]]:
    """Name and document of each event of a stream; `[DONE]` as it is."""
    document = {"model": "llama", "stream": True, **body}
    async with serving() as (_, url, session), session.post(url + path, json=document) as response:
        assert response.status == 200, await response.text()
        blocks = (await response.text()).split("\n\n")
    found = []
    for block in blocks[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = fields["data"]
        found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


# -- several sequences -------------------------------------------------------------------------------------------------


async def test_every_prompt_has_n_answers_in_the_order_of_their_indices() -> None:
    status, body = await post("/v1/completions", prompt=["tok " * 5, "tok " * 3], n=2, max_tokens=4)
    assert status == 200
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [len(choice["text"].split()) for choice in body["choices"]] == [4] * 4
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (8, 16)


async def test_a_stream_of_several_sequences_names_each_tokens_own() -> None:
    usage = {"include_usage": True}
    found = await events("/v1/chat/completions", messages=[{"content": "x"}], n=3, max_tokens=5, stream_options=usage)
    assert found[-1][1] == "[DONE]"
    assert (found[-2][1]["choices"], found[-2][1]["usage"]["completion_tokens"]) == ([], 15)
    by_index: dict[int, list[Any]] = {}
    for _, event in found[:-2]:
        (choice,) = event["choices"]
        by_index.setdefault(choice["index"], []).append(choice)
    assert sorted(by_index) == [0, 1, 2]
    for choices in by_index.values():
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["length"]


async def test_answers_without_a_limit_end_each_at_its_own_time() -> None:
    _, body = await post("/v1/chat/completions", messages=[{"content": "x"}], n=4)
    lengths = {len(choice["message"]["content"].split()) for choice in body["choices"]}
    assert len(lengths) > 1
    assert (
        sum(len(choice["message"]["content"].split()) for choice in body["choices"])
        == body["usage"]["completion_tokens"]
    )


async def test_no_token_comes_before_the_headers_however_quick_the_engine_is() -> None:
    # While its second prompt is taken in, tokens of the first are due already, as on a machine that is slow.
    quick = replace(CONFIG, latency=LAW.slower(1e-9))
    document = {"model": "llama", "prompt": ["a", "b"], "n": 3, "max_tokens": 5, "stream": True}
    async with serving(quick) as (_, url, session):
        for _ in range(20):
            async with session.post(url + "/v1/completions", json=document) as response:
                assert response.status == 200
                text = await response.text()
            assert text.endswith("data: [DONE]\n\n")
            words = [choice["text"].split() for choice in choices_of(text)]
            assert sum(map(len, words)) == 6 * 5


def choices_of(text: str) -> list[Any]:
    documents = [json.loads(block.removeprefix("data: ")) for block in text.split("\n\n")[:-2]]
    return [choice for document in documents for choice in document["choices"]]


async def test_a_client_that_leaves_frees_all_of_its_sequences() -> None:
    async with serving() as (app, url, session):
        document = {"model": "llama", "prompt": ["a", "b"], "n": 3, "max_tokens": 5000, "stream": True}
        async with session.post(url + "/v1/completions", json=document) as response:
            await response.content.readuntil(b"data: ")
            assert app.engine.in_flight == 6
        async with asyncio.timeout(20):
            while app.model.running or app.engine.in_flight:  # noqa: ASYNC110  the server's state
                await asyncio.sleep(0.005)
        assert app.model.kv_tokens == 0


# -- responses ---------------------------------------------------------------------------------------------------------


async def test_a_response_streams_the_events_that_vllm_streams_numbered_in_order() -> None:
    found = await events("/v1/responses", input="tok tok", max_output_tokens=3)
    assert [name for name, _ in found] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for _, event in found] == list(range(11))
    assert all(event["type"] == name for name, event in found)
    last = found[-1][1]["response"]
    assert (last["usage"]["input_tokens"], last["usage"]["output_tokens"]) == (2 + 8, 3)
    assert (last["status"], last["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


async def test_the_openai_client_reads_responses() -> None:
    async with (
        serving() as (_, url, _),
        openai.AsyncOpenAI(
            base_url=url + "/v1",
            api_key="none",
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        ) as client,
    ):
        items: Any = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
        whole = await client.responses.create(model="llama", input=items, instructions="be brief", max_output_tokens=6)
        assert len(whole.output_text.split()) == 6
        assert whole.usage is not None
        assert (whole.usage.input_tokens, whole.usage.output_tokens) == (4 + 4 + 2 + 4 + 2, 6)
        async with client.responses.stream(model="llama", input="hello", max_output_tokens=6) as stream:
            text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
            final = await stream.get_final_response()
        assert final.output_text == text == whole.output_text


async def test_what_a_response_cannot_be_made_of_is_refused_by_its_field() -> None:
    for body, field in (
        ({"input": [{"content": 5}]}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "service_tier": "gold"}, "service_tier"),
        ({"input": "x", "background": True}, "background"),
    ):
        status, answer = await post("/v1/responses", **body)
        assert (status, answer["error"]["param"].split(".")[0]) == (400, field)


async def test_an_n_of_these_apis_means_nothing() -> None:
    messages = [{"role": "user", "content": "tok"}]
    assert (await post("/v1/responses", input="tok", max_output_tokens=2, n=4))[0] == 200
    assert (await post("/v1/messages", messages=messages, max_tokens=2, n=4))[0] == 200


# -- messages ----------------------------------------------------------------------------------------------------------


async def test_a_message_streams_the_events_that_vllm_streams() -> None:
    found = await events("/v1/messages", messages=[{"role": "user", "content": "tok"}], system="tok", max_tokens=3)
    assert [name for name, _ in found] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert found[0][1]["message"]["usage"] == {"input_tokens": 4 + 5 + 5, "output_tokens": 0}
    assert found[-2][1]["usage"]["output_tokens"] == 3
    assert found[-2][1]["delta"]["stop_reason"] == "max_tokens"


async def test_a_whole_message_and_the_count_of_its_tokens() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "tok tok"}]}]
    status, body = await post("/v1/messages", messages=messages, max_tokens=5)
    _, count = await post("/v1/messages/count_tokens", messages=messages)
    assert status == 200
    assert (body["type"], body["role"], body["stop_reason"]) == ("message", "assistant", "max_tokens")
    assert len(body["content"][0]["text"].split()) == 5
    assert body["usage"] == {"input_tokens": count["input_tokens"], "output_tokens": 5}


async def test_an_error_of_messages_has_its_apis_form() -> None:
    for body, status in (
        ({"messages": []}, 400),
        ({"messages": [{"content": "x"}], "max_tokens": 1, "model": "gpt"}, 404),
    ):
        got, answer = await post("/v1/messages", **body)
        assert (got, answer["type"], set(answer["error"])) == (status, "error", {"type", "message"})
