"""Streams whose clients wait: comments keep the proxies between from giving up, and cost nothing else."""

import asyncio
import json
import socket
from typing import Any

import httptools
import pytest

COMMENT = b": keep-alive\n"
QUICK = {"stream_keep_alive_s": 0.05}


class Stream:
    """A client's stream, read as it comes."""

    def __init__(self, kit: Any, client: Any) -> None:
        self._kit = kit
        self._client = client
        self.head = b""
        self.body = b""
        self.done = False
        self._parser = httptools.HttpResponseParser(self)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done = True

    async def until(self, text: bytes, times: int = 1) -> None:
        async with asyncio.timeout(self._kit.PATIENCE_S):
            while self.body.count(text) < times:
                await self._read()

    async def ended(self) -> bytes:
        """What it was without the comments, once its last chunk has come."""
        async with asyncio.timeout(self._kit.PATIENCE_S):
            while not self.done:
                await self._read()
        return self.body.replace(COMMENT, b"")

    async def _read(self) -> None:
        data = await self._client.reader.read(65536)
        assert data, self.body
        if not self._parser.get_status_code():
            self.head += data
        self._parser.feed_data(data)


async def waiting(kit: Any, client: Any, document: Any = None, headers: str = "") -> Stream:
    stream = Stream(kit, client)
    await client.send(kit.post(document or kit.STREAM, headers=headers))
    return stream


async def test_a_held_stream_gets_comments_and_then_its_answer(kit: Any) -> None:
    stage = await kit.stage(**QUICK)
    stage.set_fleet()
    client = await stage.client()
    stream = await waiting(kit, client, headers="x-slo-tier: batch\r\nx-request-id: mine\r\n")
    await stream.until(COMMENT, 3)
    stage.set_fleet(*stage.engines)
    answer = await stream.ended()

    for line in (
        b"HTTP/1.1 200 OK\r\n",
        b"content-type: text/event-stream",
        b"cache-control: no-cache\r\n",
        b"x-accel-buffering: no\r\n",
        b"x-request-id: mine\r\n",
        b"x-multislo-tier: batch\r\n",
    ):
        assert line in stream.head
    assert answer == b"".join([kit.ROLE, *map(kit.token, ("Hi", " there", "!")), kit.DONE])
    assert stage.outcomes() == {"completed": 1}
    assert (await client.ask(kit.CHAT)).status == 200  # the connection is as good as before


async def test_comments_end_no_right_to_a_second_attempt(kit: Any) -> None:
    async def dies(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD)
        await died.wait()
        line.reset()

    died = asyncio.Event()
    stage = await kit.stage(dies, kit.complete, **QUICK)
    stage.set_fleet(stage.engines[0])
    client = await stage.client()
    stream = await waiting(kit, client)
    await stream.until(COMMENT, 2)
    stage.set_fleet(*stage.engines)
    died.set()
    answer = await stream.ended()

    assert answer.count(kit.token("Hi")) == 1
    assert [len(engine.asked) for engine in stage.engines] == [1, 1]


async def test_comments_come_during_a_long_prefill_and_between_tokens_and_never_inside_an_event(kit: Any) -> None:
    steps = [asyncio.Event() for _ in range(4)]

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD)
        await steps[0].wait()
        await line.send(kit.chunk(kit.token("one")))
        await steps[1].wait()
        half = kit.token("two")
        await line.send(kit.chunk(half[:10]))  # an event in two chunks
        await steps[2].wait()
        await line.send(kit.chunk(half[10:]))
        await steps[3].wait()
        await line.send(kit.chunk(kit.DONE) + b"0\r\n\r\n")

    stage = await kit.stage(script, **QUICK)
    stream = await waiting(kit, await stage.client())
    await stream.until(COMMENT, 2)
    steps[0].set()
    await stream.until(kit.token("one") + COMMENT)
    steps[1].set()
    await stream.until(kit.token("two")[:10])
    await asyncio.sleep(0.2)
    steps[2].set()
    await stream.until(kit.token("two") + COMMENT)
    steps[3].set()

    assert await stream.ended() == kit.token("one") + kit.token("two") + kit.DONE
    assert stage.outcomes() == {"completed": 1}


async def test_no_client_can_take_a_comment_or_what_follows_for_an_event_without_data(kit: Any) -> None:
    """Some dispatch an event at every empty line, whatever was before it, and fail on what is no JSON."""
    released = asyncio.Event()

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD + kit.chunk(kit.token("one")))
        await released.wait()
        line.reset()

    stage = await kit.stage(script, **QUICK)
    client = await stage.client()
    stream = await waiting(kit, client)
    await stream.until(COMMENT, 2)
    released.set()
    await stream.until(b'{"error":')

    events = stream.body.split(b"\n\n")
    assert events.pop() == b""
    assert len(events) == 2
    assert all(b"data: {" in event for event in events)


@pytest.mark.parametrize("framing", ["sized", "unsized"])
async def test_an_answer_in_another_framing_goes_on_with_the_stream_that_is_open(kit: Any, framing: str) -> None:
    content = kit.token("one") + kit.DONE

    async def script(line: Any, asked: Any) -> None:
        await released.wait()
        length = f"content-length: {len(content)}\r\n" if framing == "sized" else ""
        await line.send(f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{length}\r\n".encode() + content)
        line.writer.close()

    released = asyncio.Event()
    stage = await kit.stage(script, **QUICK)
    client = await stage.client()
    stream = await waiting(kit, client)
    await stream.until(COMMENT)
    released.set()

    assert await stream.ended() == content


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        (b'{"error": {"message": "no such tool", "type": "x", "code": 400}}', '{"error": {"message": "no such tool"'),
        (b'{\n "error": {"message": "no such tool"}\n}', '{"error": {"message": "no such tool"}}'),
        (b"<html>oops</html>", "the engine answered 400: <html>oops</html>"),
        (b'{"detail": "bad"}', 'the engine answered 400: {\\"detail\\": \\"bad\\"}'),
        (b"", "the engine answered 400: "),
    ],
)
async def test_an_engines_own_error_behind_comments_is_an_error_event(kit: Any, answer: bytes, event: str) -> None:
    async def script(line: Any, asked: Any) -> None:
        await released.wait()
        await line.send(kit.sized(answer, "400 Bad Request"))

    released = asyncio.Event()
    stage = await kit.stage(script, **QUICK)
    client = await stage.client()
    stream = await waiting(kit, client)
    await stream.until(COMMENT)
    released.set()
    said = (await stream.ended()).decode()

    assert event in said
    (line,) = said.strip().splitlines()
    assert json.loads(line.removeprefix("data: "))["error"]
    assert (await client.ask(kit.CHAT)).status == 400


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable"])
async def test_an_engine_that_fails_behind_comments_is_replaced_or_told_of(kit: Any, status: str) -> None:
    async def script(line: Any, asked: Any) -> None:
        await released.wait()
        await line.send(kit.sized(b'{"error": {"message": "broken"}}', status))

    released = asyncio.Event()
    stage = await kit.stage(script, script, **QUICK)
    client = await stage.client()
    stream = await waiting(kit, client, headers="x-slo-tier: realtime\r\nx-slo-ttft-ms: 3000\r\n")
    await stream.until(COMMENT)
    released.set()

    assert b"broken" in await stream.ended()
    await stage.until(lambda: not stage.in_flight())


async def test_a_refusal_behind_comments_is_an_error_event(kit: Any) -> None:
    stage = await kit.stage(**QUICK)
    stage.set_fleet()
    client = await stage.client()
    stream = await waiting(kit, client, headers="x-slo-tier: realtime\r\nx-slo-ttft-ms: 500\r\n")
    await stream.until(COMMENT)

    document = json.loads((await stream.ended()).decode().strip().removeprefix("data: "))
    assert document["error"]["code"] == "no_instance"
    stage.set_fleet(*stage.engines)
    assert (await client.ask(kit.CHAT)).status == 200


async def test_an_engine_that_dies_behind_comments_and_tokens_ends_the_stream_as_ever(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        await released.wait()
        await line.send(kit.SSE_HEAD + kit.chunk(kit.token("one")))
        await asyncio.sleep(0.02)
        line.reset()

    released = asyncio.Event()
    stage = await kit.stage(script, **QUICK)
    client = await stage.client()
    stream = await waiting(kit, client)
    await stream.until(COMMENT)
    released.set()
    await stream.until(b"the engine failed during the answer")

    assert not stream.done
    assert await client.rest() == b""


async def test_a_client_of_http_1_0_gets_comments_without_chunks(kit: Any) -> None:
    stage = await kit.stage(**QUICK)
    stage.set_fleet()
    client = await stage.client()
    body = json.dumps(kit.STREAM).encode()
    await client.send(b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    async with asyncio.timeout(kit.PATIENCE_S):
        await client.reader.readuntil(COMMENT)
    stage.set_fleet(*stage.engines)
    rest = await client.rest()

    assert rest.replace(COMMENT, b"") == b"".join([kit.ROLE, *map(kit.token, ("Hi", " there", "!")), kit.DONE])


@pytest.mark.parametrize(("document", "keep_alive_s"), [("STREAM", 0.0), ("CHAT", 0.05)])
async def test_without_the_setting_or_a_stream_nothing_is_sent_ahead(
    kit: Any, document: str, keep_alive_s: float
) -> None:
    stage = await kit.stage(stream_keep_alive_s=keep_alive_s)
    stage.set_fleet()
    client = await stage.client()
    await client.send(kit.post(getattr(kit, document)))
    await asyncio.sleep(0.3)
    stage.set_fleet(*stage.engines)
    answer = await client.answer()

    assert answer.status == 200
    assert COMMENT not in answer.body
    assert "x-multislo-instance" in answer.headers


async def test_a_stream_of_events_is_marked_so_that_no_proxy_collects_it(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        own = "cache-control: no-store\r\nx-accel-buffering: yes\r\n" if asked.json.get("own") else ""
        await line.send(kit.sized(kit.DONE, extra=own, kind="text/event-stream"))

    stage = await kit.stage(script)
    client = await stage.client()
    plain = await client.ask(kit.STREAM)
    own = await client.ask(kit.STREAM | {"own": True})

    assert (plain.headers["x-accel-buffering"], plain.headers["cache-control"]) == ("no", "no-cache")
    assert (own.headers["x-accel-buffering"], own.headers["cache-control"]) == ("yes", "no-store")


async def test_clients_sockets_are_probed_by_tcp(kit: Any) -> None:
    stage = await kit.stage()
    await (await stage.client()).ask(kit.CHAT)
    (peer,) = stage.gateway.clients
    sock = peer.transport.get_extra_info("socket")

    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60
    assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000
