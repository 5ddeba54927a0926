"""The replay against servers whose every delay is known."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from multislo_bench.record import Outcome
from multislo_bench.replay import Limits, Replayed, ReplayImpossible, Target, replay, served_model
from multislo_bench.report import Window, report
from multislo_sim.workloads.request import Request

Answer = Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Asked:
    """One request as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Scripted:
    """`answer` writes the whole response; what was asked is kept."""

    answer: Answer
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                asked = Asked(first.split()[1], headers, json.loads(body or b"{}"))
                self.asked.append(asked)
                await self.answer(asked, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def token_event(index: int) -> bytes:
    text = {"id": "c", "choices": [{"index": 0, "text": f" w{index}", "finish_reason": None}]}
    return b"data: " + json.dumps(text).encode() + b"\n\n"


def usage_event(tokens: int) -> bytes:
    return b'data: {"id":"c","choices":[],"usage":{"completion_tokens":%d}}\n\n' % tokens


def paced(first_s: float, each_s: float) -> Answer:
    """The first token after `first_s`, each other one `each_s` after the one before."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        tokens = int(asked.body["max_tokens"])
        started = asyncio.get_running_loop().time()
        for index in range(tokens):
            due = started + first_s + index * each_s
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            writer.write(chunk(token_event(index)))
        writer.write(chunk(usage_event(tokens)) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    return answer


def status(code: int, error_code: str) -> Answer:
    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"error": {"message": "no", "code": error_code}}).encode()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (code, len(body)) + body)

    return answer


@pytest.fixture
async def scripted() -> AsyncIterator[Callable[[Answer], Awaitable[Scripted]]]:
    servers: list[asyncio.Server] = []

    async def start(answer: Answer) -> Scripted:
        script = Scripted(answer)
        server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
        servers.append(server)
        script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return script

    yield start
    for server in servers:
        server.close()


Start = Callable[[Answer], Awaitable[Scripted]]


def requests(count: int, every_s: float = 0.01, tokens: int = 4, tpot_s: float = 0.5) -> list[Request]:
    return [Request(index * every_s, 7, tokens, "gold", 1.0, tpot_s) for index in range(count)]


async def replayed(server: Scripted, wanted: list[Request], limits: Limits | None = None, **how: bool) -> Replayed:
    return await replay(wanted, Target(server.url, "m", **how), limits or Limits())


async def test_a_server_that_is_in_time_attains_everything(scripted: Start) -> None:
    server = await scripted(paced(first_s=0.05, each_s=0.02))

    done = await replayed(server, requests(20))

    result = report(done.records, done.timing, Window(0.0, 0.2))
    gold = result.tiers["gold"]
    assert gold.attainment == gold.token_attainment == gold.ttft_attainment == 1.0
    assert gold.outcomes["completed"] == gold.requests == 20
    assert 0.05 <= (gold.ttft_s.p50 or 0) < 0.5
    assert 0.015 <= (gold.tpot_s.p50 or 0) < 0.2
    assert result.client.tokens == 80
    assert len(done.timing.sent_late_s) == 20


def test_the_replay_runs_on_uvloop_as_the_command_does() -> None:
    async def run() -> Replayed:
        script = Scripted(paced(0.0, 0.0))
        server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
        script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            return await replayed(script, requests(5))
        finally:
            server.close()

    done = uvloop.run(run())

    assert [record.outcome for record in done.records] == [Outcome.COMPLETED] * 5


async def test_a_server_that_is_too_slow_for_each_token_attains_none(scripted: Start) -> None:
    server = await scripted(paced(first_s=0.0, each_s=0.3))

    wanted = [Request(0.0, 7, 4, "gold", 0.25, 0.1)] * 5
    done = await replayed(server, wanted)

    gold = report(done.records, done.timing, Window(0.0, 1.0)).tiers["gold"]
    assert gold.attainment == 0.0
    assert gold.ttft_attainment == 1.0
    assert gold.token_attainment is not None
    # Tokens at 0, 300, 600 and 900 ms against 250, 350, 450 and 550: the first two are in time.
    assert gold.token_attainment == pytest.approx(0.5)
    assert gold.late_s.p50 == pytest.approx(0.35, abs=0.1)


async def test_arrivals_never_wait_for_answers(scripted: Start) -> None:
    server = await scripted(paced(first_s=1.0, each_s=0.0))

    done = await replayed(server, requests(50, every_s=0.002))

    assert server.connections == 50
    assert max(done.timing.sent_late_s) < 0.5
    assert all(record.outcome is Outcome.COMPLETED for record in done.records)


async def test_an_answered_connection_is_used_again(scripted: Start) -> None:
    server = await scripted(paced(first_s=0.0, each_s=0.0))

    done = await replayed(server, requests(10, every_s=0.1))

    assert all(record.outcome is Outcome.COMPLETED for record in done.records)
    assert server.connections < 10


async def test_refusals_are_missed_and_counted_by_their_code(scripted: Start) -> None:
    server = await scripted(status(429, "deadline"))

    done = await replayed(server, requests(3))

    gold = report(done.records, done.timing, Window(0.0, 1.0)).tiers["gold"]
    assert gold.attainment == 0.0
    assert gold.outcomes["refused"] == 3
    assert gold.causes == {"429 deadline": 3}


async def test_a_stream_that_breaks_is_failed_with_what_came(scripted: Start) -> None:
    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(token_event(0)) + chunk(token_event(1)))
        await writer.drain()
        writer.close()

    server = await scripted(answer)

    (record,) = (await replayed(server, requests(1))).records

    assert (record.outcome, record.tokens) == (Outcome.FAILED, 2)
    assert record.cause == "connection closed after 2 tokens"


async def test_an_error_event_in_a_stream_fails_the_request(scripted: Start) -> None:
    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(token_event(0)) + chunk(b'data: {"error": {"code": "engine_failed"}}\n\n'))
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    server = await scripted(answer)

    (record,) = (await replayed(server, requests(1))).records

    assert record.outcome is Outcome.FAILED
    assert record.cause == "error event: engine_failed"


async def test_a_short_answer_is_truncated_and_missed(scripted: Start) -> None:
    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(token_event(0)) + chunk(usage_event(1)) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    server = await scripted(answer)

    (record,) = (await replayed(server, requests(1))).records

    assert record.outcome is Outcome.TRUNCATED
    assert record.met is False


async def test_events_cut_anywhere_by_the_network_are_counted_right(scripted: Start) -> None:
    stream = b"".join(token_event(index) for index in range(4)) + usage_event(4) + b"data: [DONE]\n\n"

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for start in range(0, len(stream), 7):
            writer.write(chunk(stream[start : start + 7]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    server = await scripted(answer)

    (record,) = (await replayed(server, requests(1))).records

    assert (record.outcome, record.tokens) == (Outcome.COMPLETED, 4)


async def test_a_chat_stream_counts_neither_its_opening_nor_its_closing_event(scripted: Start) -> None:
    events = [
        b'{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}',
        b'{"choices":[{"delta":{"content":" a"},"finish_reason":null}]}',
        b'{"choices":[{"delta":{"content":" b"},"finish_reason":null}]}',
        b'{"choices":[{"delta":{},"finish_reason":"length"}]}',
        b'{"choices":[],"usage":{"completion_tokens":2}}',
        b"[DONE]",
    ]

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for event in events:
            writer.write(chunk(b"data: " + event + b"\r\n\r\n"))
        writer.write(b"0\r\n\r\n")

    server = await scripted(answer)

    (record,) = (await replayed(server, requests(1, tokens=2), chat=True)).records

    assert (record.outcome, record.tokens) == (Outcome.COMPLETED, 2)
    assert server.asked[0].path == "/v1/chat/completions"
    assert len(server.asked[0].body["messages"][0]["content"].split()) == 7


async def test_the_body_asks_for_the_exact_lengths_and_names_the_tier(scripted: Start) -> None:
    server = await scripted(paced(0.0, 0.0))

    await replayed(server, requests(1, tokens=3))
    await replayed(server, requests(1, tokens=3), as_ids=True, own_slo=True)

    words, ids = server.asked
    assert len(words.body["prompt"].split()) == len(ids.body["prompt"]) == 7
    assert words.body["max_tokens"] == 3
    assert words.body["ignore_eos"] is True
    assert words.headers["x-slo-tier"] == "gold"
    assert (ids.headers["x-slo-ttft-ms"], ids.headers["x-slo-tpot-ms"]) == ("1000", "500")
    assert "x-slo-tier" not in ids.headers


async def test_one_seed_asks_for_one_set_of_prompts(scripted: Start) -> None:
    server = await scripted(paced(0.0, 0.0))

    for seed in (1, 1, 2):
        await replay(requests(1), Target(server.url, "m"), Limits(), seed)

    first, again, other = (asked.body["prompt"] for asked in server.asked)
    assert first == again != other


async def test_what_is_unfinished_at_the_end_is_missed_and_said(scripted: Start) -> None:
    server = await scripted(paced(first_s=60.0, each_s=0.0))

    done = await replayed(server, requests(2), Limits(drain_s=0.1))

    result = report(done.records, done.timing, Window(0.0, 1.0))
    assert result.tiers["gold"].outcomes["unfinished"] == 2
    assert result.tiers["gold"].attainment == 0.0
    assert any("2 requests were unfinished" in note for note in result.notes)


async def test_a_request_that_takes_too_long_is_given_up(scripted: Start) -> None:
    server = await scripted(paced(first_s=60.0, each_s=0.0))

    (record,) = (await replayed(server, requests(1), Limits(timeout_s=0.2))).records

    assert record.outcome is Outcome.TIMED_OUT


async def test_more_requests_than_the_client_may_hold_are_not_sent(scripted: Start) -> None:
    server = await scripted(paced(first_s=0.5, each_s=0.0))

    done = await replayed(server, requests(5, every_s=0.0), Limits(in_flight_max=2))

    outcomes = [record.outcome for record in done.records]
    assert outcomes == [Outcome.COMPLETED] * 2 + [Outcome.NOT_SENT] * 3
    assert done.records[-1].cause == "2 requests in flight"


async def test_a_server_that_is_not_there_fails_each_request(unused_tcp_port: int) -> None:
    target = Target(f"http://127.0.0.1:{unused_tcp_port}", "m")

    (record,) = (await replay(requests(1), target, Limits())).records

    assert record.outcome is Outcome.FAILED
    assert (record.cause or "").startswith("connect: ")
    with pytest.raises(ReplayImpossible, match="cannot be asked"):
        await served_model(target.url, None)


async def test_a_stopped_replay_sends_no_more_and_says_so(scripted: Start) -> None:
    server = await scripted(paced(0.0, 0.0))
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, stop.set)

    done = await replay(requests(1000, every_s=0.05), Target(server.url, "m"), Limits(), stop=stop)

    sent = sum(record.outcome is Outcome.COMPLETED for record in done.records)
    assert 1 <= sent < 100
    assert all(record.outcome is Outcome.NOT_SENT for record in done.records[sent:])
