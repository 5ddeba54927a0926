"""The emulator over real sockets, asked by the real OpenAI client and by a bare one."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from multislo_engine.emulator.app import EmulatorApp
from multislo_engine.emulator.config import EmulatorConfig
from multislo_perf.latency import LatencyModel

LAW = LatencyModel(1.64e-3, 3.88e-3, 5.43e-6, 0.06e-3, 17.64e-6, 5.28e-6, 2.971e-8, 3.75e-7, 3.87e-10)
CONFIG = EmulatorConfig(latency=LAW, belief=LAW, model="llama", kv_tokens_max=160_000, max_model_len=8192)


class Server:
    """An emulator in this loop, and a client session to it."""

    def __init__(self, app: EmulatorApp, url: str, session: aiohttp.ClientSession) -> None:
        self.app = app
        self.url = url
        self.session = session

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json={"model": "llama", **body}) as response:
            return response.status, await response.json()

    async def events(self, path: str, **body: Any) -> list[Any]:
        """The events of a stream; `[DONE]` must be the last and is left out."""
        async with self.session.post(self.url + path, json={"model": "llama", "stream": True, **body}) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            lines = (await response.text()).split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]

    async def metrics(self) -> dict[str, float]:
        async with self.session.get(self.url + "/metrics") as response:
            page = await response.text()
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        return {sample.name: sample.value for sample in samples if not sample.name.endswith("_bucket")}


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Server]:
    app = EmulatorApp(replace(CONFIG, **settings))
    runner = web.AppRunner(app.application(), handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            yield Server(app, f"http://127.0.0.1:{runner.addresses[0][1]}", session)
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


async def test_a_completion_has_exactly_the_tokens_asked_for_and_says_so() -> None:
    async with serving() as server:
        status, body = await server.post("/v1/completions", prompt="tok " * 50, max_tokens=7)
    assert status == 200
    assert body["object"] == "text_completion"
    assert body["choices"][0]["finish_reason"] == "length"
    assert len(body["choices"][0]["text"].split()) == 7
    assert body["usage"] | {"prompt_tokens_details": None} == {
        "prompt_tokens": 50,
        "completion_tokens": 7,
        "total_tokens": 57,
        "prompt_tokens_details": None,
    }


async def test_a_completion_streams_one_token_an_event_and_closes_with_its_reason() -> None:
    async with serving() as server:
        events = await server.events("/v1/completions", prompt=[1] * 30, max_tokens=5)
    assert len(events) == 5
    assert [len(event["choices"][0]["text"].split()) for event in events] == [1] * 5
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * 4 + ["length"]
    assert len({event["id"] for event in events}) == 1
    assert events[0]["id"].startswith("cmpl-")


async def test_a_chat_opens_with_the_role_and_tells_its_usage_when_asked() -> None:
    async with serving() as server:
        events = await server.events(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": "tok tok tok"}],
            max_completion_tokens=3,
            stream_options={"include_usage": True},
        )
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [event["object"] for event in events] == ["chat.completion.chunk"] * 5
    assert events[3]["choices"][0]["finish_reason"] == "length"
    assert events[4]["choices"] == []
    assert events[4]["usage"]["prompt_tokens"] == 3 + 4 + 4  # the text, the message's frame, the chat's
    assert events[4]["usage"]["completion_tokens"] == 3
    assert "usage" not in events[1]


async def test_continuous_usage_counts_along() -> None:
    async with serving() as server:
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = await server.events("/v1/completions", prompt="tok", max_tokens=4, stream_options=options)
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 3, 4, 4]


async def test_the_openai_client_gets_chats_streams_models_and_errors() -> None:
    async with (
        serving() as server,
        openai.AsyncOpenAI(
            base_url=server.url + "/v1",
            api_key="none",
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        ) as client,
    ):
        whole = await client.chat.completions.create(
            model="llama", messages=[{"role": "user", "content": "hello"}], max_tokens=6
        )
        assert whole.choices[0].message.role == "assistant"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 6
        stream = await client.chat.completions.create(
            model="llama",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert (
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
        )
        assert chunks[-1].usage == whole.usage
        completion = await client.completions.create(model="llama", prompt="one two", max_tokens=2)
        assert completion.choices[0].finish_reason == "length"
        assert [model.id async for model in client.models.list()] == ["llama"]
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="other", prompt="x")
        with pytest.raises(openai.BadRequestError, match="8192"):
            await client.completions.create(model="llama", prompt="x", max_tokens=8192)


async def test_a_length_that_the_client_leaves_open_is_drawn_by_the_seed() -> None:
    lengths = []
    for seed in (1, 1, 2):
        async with serving(seed=seed, latency=LAW.slower(0.01)) as server:
            _, body = await server.post("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
        lengths.append(body["usage"]["completion_tokens"])
        assert body["choices"][0]["finish_reason"] == "stop"
    assert lengths[0] == lengths[1] != lengths[2]


async def test_a_completion_without_a_limit_has_sixteen_tokens_and_with_ignore_eos_all_there_is_room_for() -> None:
    async with serving(max_model_len=100, latency=LAW.slower(0.01)) as server:
        _, short = await server.post("/v1/completions", prompt="tok")
        _, long = await server.post("/v1/completions", prompt="tok", ignore_eos=True)
    assert short["usage"]["completion_tokens"] == 16
    assert long["usage"]["total_tokens"] == 100


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": "tok " * 9000}, 400, "8192"),
        ("/v1/completions", {"prompt": "x", "n": 0}, 400, "n: "),
        ("/v1/completions", {"prompt": ["x", ""], "max_tokens": 9000}, 400, "8192"),
        ("/v1/completions", {"prompt": [[1], []]}, 400, "prompt"),
        ("/v1/responses", {"input": []}, 400, "input"),
        ("/v1/responses", {"input": "x", "previous_response_id": "resp_1"}, 404, "resp_1"),
        ("/v1/completions", {"prompt": "x", "priority": 1}, 400, "priority"),
        ("/v1/completions", {"prompt": "x", "stream_options": {"include_usage": True}}, 400, "stream_options"),
        ("/v1/completions", {"prompt": "x", "vllm_xargs": {"slo_tpot_ms": "soon"}}, 400, "slo_tpot_ms"),
        ("/v1/completions", {}, 400, "prompt"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"model": "gpt", "messages": [{"role": "user", "content": "x"}]}, 404, "gpt"),
    ],
)
async def test_a_wrong_request_is_told_the_field(path: str, body: dict[str, Any], status: int, says: str) -> None:
    async with serving() as server:
        got, answer = await server.post(path, **body)
    assert got == status
    assert says in answer["error"]["message"]
    assert answer["error"]["code"] == status


async def test_a_body_that_is_no_json_is_a_bad_request() -> None:
    async with serving() as server, server.session.post(server.url + "/v1/completions", data=b"{nope") as response:
        assert response.status == 400
        assert "error" in await response.json()


async def test_priority_decides_who_waits_where_the_scheduler_honours_it() -> None:
    ended: list[str] = []

    async def ask(server: Server, name: str, priority: int) -> None:
        status, _ = await server.post("/v1/completions", prompt="tok", max_tokens=10, priority=priority)
        assert status == 200
        ended.append(name)

    async with serving(scheduler="priority", seqs_max=1, latency=LAW.slower(5)) as server:
        asks = [asyncio.create_task(ask(server, "first", 0))]
        await until(lambda: server.app.model.running == 1)
        asks.append(asyncio.create_task(ask(server, "patient", 5)))
        await until(lambda: server.app.model.waiting == 1)
        asks.append(asyncio.create_task(ask(server, "urgent", -5)))
        await asyncio.gather(*asks)
    assert ended == ["first", "urgent", "patient"]


async def test_an_slo_in_vllm_xargs_reaches_the_planner() -> None:
    ended: list[str] = []

    async def ask(server: Server, name: str, ttft_ms: float) -> None:
        slo = {"slo_ttft_ms": ttft_ms, "slo_tpot_ms": 50}
        await server.post("/v1/completions", prompt="tok", max_tokens=10, vllm_xargs=slo)
        ended.append(name)

    async with serving(scheduler="slo-aware", seqs_max=1, latency=LAW.slower(5)) as server:
        asks = [asyncio.create_task(ask(server, "first", 1000))]
        await until(lambda: server.app.model.running == 1)
        asks.append(asyncio.create_task(ask(server, "late", 9000)))
        await until(lambda: server.app.model.waiting == 1)
        asks.append(asyncio.create_task(ask(server, "soon", 2000)))
        await asyncio.gather(*asks)
    assert ended == ["first", "soon", "late"]


async def test_a_client_that_leaves_frees_its_memory() -> None:
    async with serving(latency=LAW.slower(5)) as server:
        body = {"model": "llama", "prompt": "tok " * 2000, "max_tokens": 5000, "stream": True}
        async with server.session.post(server.url + "/v1/completions", json=body) as response:
            await response.content.readany()
            assert server.app.model.kv_tokens >= 2000
            response.close()
        await until(lambda: server.app.engine.in_flight == 0)
        await until(lambda: server.app.model.kv_tokens == 0)
        assert (await server.metrics())["vllm:num_requests_running"] == 0


async def test_a_client_that_leaves_before_its_first_token_frees_its_place() -> None:
    async with serving(seqs_max=1, latency=LAW.slower(5)) as server:
        first = asyncio.create_task(server.post("/v1/completions", prompt="tok", max_tokens=100))
        await until(lambda: server.app.model.running == 1)
        second = asyncio.create_task(server.post("/v1/completions", prompt="tok", max_tokens=100))
        await until(lambda: server.app.model.waiting == 1)
        second.cancel()
        await until(lambda: server.app.model.waiting == 0)
        assert (await first)[0] == 200


async def test_a_full_queue_answers_503() -> None:
    async with serving(seqs_max=1, queue_max=1, latency=LAW.slower(5)) as server:
        asks = [asyncio.create_task(server.post("/v1/completions", prompt="tok", max_tokens=60))]
        await until(lambda: server.app.model.running == 1)
        asks.append(asyncio.create_task(server.post("/v1/completions", prompt="tok", max_tokens=1, stream=False)))
        await until(lambda: server.app.model.waiting == 1)
        status, body = await server.post("/v1/completions", prompt="tok", max_tokens=1)
        assert (status, body["error"]["code"]) == (503, 503)
        assert [answer[0] for answer in await asyncio.gather(*asks)] == [200, 200]


async def test_while_it_drains_a_new_request_is_aborted_and_the_old_one_finishes() -> None:
    async with serving(latency=LAW.slower(3)) as server:
        old = asyncio.create_task(server.post("/v1/completions", prompt="tok", max_tokens=30))
        await until(lambda: server.app.model.running == 1)
        server.app.draining = True
        events = await server.events("/v1/completions", prompt="tok", max_tokens=30)
        assert [event["choices"][0]["finish_reason"] for event in events] == ["abort"]
        async with server.session.get(server.url + "/health") as response:
            assert response.status == 200
        assert (await old)[1]["usage"]["completion_tokens"] == 30


async def test_a_client_that_does_not_read_holds_up_nobody_and_gets_everything_in_the_end() -> None:
    async with serving(latency=LAW.slower(0.02), max_model_len=60_000) as server:
        body = json.dumps(
            {"model": "llama", "prompt": "tok", "max_tokens": 50_000, "ignore_eos": True, "stream": True}
        ).encode()
        port = int(server.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        status, other = await server.post("/v1/completions", prompt="tok", max_tokens=500)
        assert (status, other["usage"]["completion_tokens"]) == (200, 500)
        await until(lambda: server.app.engine.in_flight == 0)  # made, though nobody has read
        data = bytearray()
        async with asyncio.timeout(30):
            while piece := await reader.read(1 << 20):
                data += piece
        writer.close()
        await writer.wait_closed()
    pieces = [line for line in bytes(data).split(b"\n") if line.startswith(b"data: {")]
    assert b"data: [DONE]" in data
    assert sum(len(json.loads(line[6:])["choices"][0]["text"].split()) for line in pieces) == 50_000
    assert len(pieces) < 50_000


async def test_the_metrics_have_vllms_names_and_labels_and_the_emulators_lag() -> None:
    async with serving() as server:
        await server.events("/v1/completions", prompt="tok " * 40, max_tokens=5)
        metrics = await server.metrics()
        async with server.session.get(server.url + "/metrics") as response:
            page = await response.text()
    assert metrics["vllm:num_requests_running"] == metrics["vllm:num_requests_waiting"] == 0
    assert metrics["vllm:kv_cache_usage_perc"] == 0
    assert metrics["vllm:prompt_tokens_total"] == 40
    assert metrics["vllm:generation_tokens_total"] == 5
    assert metrics["vllm:num_preemptions_total"] == 0
    assert metrics["vllm:time_to_first_token_seconds_count"] == 1
    assert metrics["vllm:inter_token_latency_seconds_count"] == 4
    assert metrics["vllm:request_time_per_output_token_seconds_count"] == 1
    assert metrics["vllm:e2e_request_latency_seconds_count"] == 1
    assert metrics["vllm:iteration_tokens_total_sum"] == 40 + 4
    assert metrics["multislo_emulator_lag_seconds_count"] == 5
    assert 0 <= metrics["multislo_emulator_lag_mean_seconds"] <= metrics["multislo_emulator_lag_max_seconds"]
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert families["vllm:num_requests_running"].samples[0].labels == {"model_name": "llama", "engine": "0"}
    finished = {s.labels["finished_reason"]: s.value for s in families["vllm:request_success"].samples}
    assert finished == {"stop": 0, "length": 1, "abort": 0}


async def test_tokens_come_when_the_engine_model_makes_them() -> None:
    async with serving(latency=LAW.slower(4)) as server:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        body = {"model": "llama", "prompt": "tok " * 4000, "max_tokens": 12, "stream": True}
        async with server.session.post(server.url + "/v1/completions", json=body) as response:
            lines = response.content
            times = [loop.time() - sent async for line in lines if line.startswith(b"data: {")]
    ttft_s = 4 * LAW.prefill_s(4000, 0, 2048, 0, 0)  # 0.34 s
    assert ttft_s - 0.01 <= times[0] <= ttft_s + 0.5
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert sum(gaps) >= 11 * 4 * LAW.iteration_s(0, 0, 1, 4001) - 0.05
    assert sum(gaps) <= 11 * 4 * LAW.iteration_s(0, 0, 1, 4001) + 0.5


async def test_a_request_keeps_its_id_and_gets_the_load_when_it_asks() -> None:
    async with serving() as server:
        headers = {"x-request-id": "abc", "endpoint-load-metrics-format": "JSON"}
        body = {"model": "llama", "prompt": "tok", "max_tokens": 1}
        async with server.session.post(server.url + "/v1/completions", json=body, headers=headers) as response:
            assert response.headers["x-request-id"] == "abc"
            assert (await response.json())["id"] == "cmpl-abc"
            kind, report = response.headers["endpoint-load-metrics"].split(" ", 1)
    assert kind == "JSON"
    assert json.loads(report)["named_metrics"] == {"kv_cache_usage_perc": 0.0, "num_requests_waiting": 0}


async def test_tokenize_and_detokenize_are_inverse_and_count_as_the_server_counts() -> None:
    text = "Grüße, tok tok!"
    async with serving() as server:
        _, tokens = await server.post("/tokenize", prompt=text)
        _, back = await server.post("/detokenize", tokens=tokens["tokens"])
        _, body = await server.post("/v1/completions", prompt=text, max_tokens=1)
        messages = [{"role": "user", "content": text}]
        _, chat_tokens = await server.post("/tokenize", messages=messages)
        _, chat = await server.post("/v1/chat/completions", messages=messages, max_tokens=1)
    assert back["prompt"] == text
    assert tokens["count"] == body["usage"]["prompt_tokens"] == len(tokens["tokens"])
    assert chat_tokens["count"] == chat["usage"]["prompt_tokens"]


async def test_an_answer_sent_back_as_a_prompt_counts_as_many_tokens() -> None:
    async with serving() as server:
        _, first = await server.post("/v1/completions", prompt="tok", max_tokens=200)
        _, second = await server.post("/v1/completions", prompt=first["choices"][0]["text"], max_tokens=1)
    assert second["usage"]["prompt_tokens"] == 200


async def test_it_answers_to_its_served_names_and_to_no_other() -> None:
    async with serving(served_names=("chat", "small")) as server:
        async with server.session.get(server.url + "/v1/models") as response:
            cards = (await response.json())["data"]
        statuses = [
            (await server.post("/v1/completions", model=name, prompt="tok", max_tokens=1))[0]
            for name in ("chat", "small", "llama")
        ]
    assert [(card["id"], card["root"], card["max_model_len"]) for card in cards] == [
        ("chat", "llama", 8192),
        ("small", "llama", 8192),
    ]
    assert statuses == [200, 200, 404]


async def test_an_adapter_is_a_model_of_its_own() -> None:
    async with serving(served_names=("chat",), adapters=(("sql", "/adapters/sql"),)) as server:
        async with server.session.get(server.url + "/v1/models") as response:
            cards = (await response.json())["data"]
        status, answer = await server.post("/v1/completions", model="sql", prompt="tok", max_tokens=1)
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("chat", "llama", None),
        ("sql", "/adapters/sql", "chat"),
    ]
    assert (status, answer["model"]) == (200, "sql")
