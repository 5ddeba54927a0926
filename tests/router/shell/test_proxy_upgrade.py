"""Clients that offer another protocol: they are answered in HTTP/1.1, bodies and all (RFC 9110, 7.8)."""

import asyncio
import itertools
import shutil
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OFFERS = {
    "curl": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "jdk": b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n",
    "websocket": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n",
    "tls": b"connection: upgrade\r\nupgrade: TLS/1.3, HTTP/1.1\r\n",
}


def request(kit: Any, offer: bytes, body: bytes, *, chunked: bool, path: bytes = b"/v1/chat/completions") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: r\r\n%b" % (path, offer)
    if not chunked:
        return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    half = len(body) // 2
    pieces = [piece for piece in (body[:half], body[half:]) if piece]
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(map(kit.chunk, pieces)) + b"0\r\n\r\n"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("offer", OFFERS.values(), ids=list(OFFERS))
async def test_a_body_behind_an_offer_to_upgrade_is_served_and_the_connection_goes_on(
    kit: Any, offer: bytes, chunked: bool
) -> None:
    stage = await kit.stage()
    client = await stage.client()
    body = b'{"model": "llama", "prompt": "hello"}'

    await client.send(request(kit, offer, body, chunked=chunked) + kit.post(kit.CHAT))
    first, second = await client.answer(), await client.answer()

    assert (first.status, first.body, second.status) == (200, kit.COMPLETION, 200)
    assert "connection" not in first.headers
    asked = stage.engines[0].asked
    assert asked[0].body == body
    assert asked[1].json == kit.CHAT
    for name in ("upgrade", "connection", "http2-settings"):
        assert name not in asked[0].headers


@pytest.mark.parametrize("offer", OFFERS.values(), ids=list(OFFERS))
@pytest.mark.parametrize("framing", [b"", b"Content-Length: 0\r\n"])
async def test_a_request_without_a_body_that_offers_to_upgrade_is_served(
    kit: Any, offer: bytes, framing: bytes
) -> None:
    stage = await kit.stage()
    client = await stage.client()
    models = b"GET /v1/models HTTP/1.1\r\nHost: r\r\n%b%b\r\n" % (framing, offer)

    await client.send(models * 3)
    answers = [await client.answer() for _ in range(3)]

    assert [answer.status for answer in answers] == [200] * 3
    assert all("connection" not in answer.headers for answer in answers)


@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_to_upgrade_may_be_cut_at_every_byte(tell: Any, chunked: bool) -> None:
    async def story(kit: Any) -> None:
        stage = await kit.stage()
        body = b'{"model": "llama", "prompt": "\xc3\xa9"}'
        whole = request(kit, OFFERS["curl"], body, chunked=chunked)
        tail = b"GET /v1/models HTTP/1.1\r\nhost: r\r\n\r\n"
        for at in range(1, len(whole + tail)):
            client = await stage.client()
            wire = whole + tail
            await client.send(wire[:at])
            await asyncio.sleep(0)
            await client.send(wire[at:])
            answers = [await client.answer(), await client.answer()]
            assert [answer.status for answer in answers] == [200, 200], at
            assert stage.engines[0].asked[-1].body == body
            client.close()

    tell(story)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 400), max_size=8), st.sampled_from(sorted(OFFERS)), st.booleans(), st.integers(0, 9000))
def test_requests_that_offer_to_upgrade_survive_any_cut(
    tell: Any, places: list[int], offer: str, chunked: bool, padding: int
) -> None:
    async def story(kit: Any) -> None:
        stage = await kit.stage()
        client = await stage.client()
        body = b'{"model": "llama", "prompt": "%b"}' % (b"x" * padding)
        wire = request(kit, OFFERS[offer], body, chunked=chunked) * 2
        edges = sorted({min(place * 40, len(wire)) for place in places} | {0, len(wire)})
        for start, end in itertools.pairwise(edges):
            await client.send(wire[start:end])
            await asyncio.sleep(0)
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
        assert [asked.body for asked in stage.engines[0].asked] == [body, body]

    tell(story)


async def test_a_body_behind_an_offer_to_upgrade_is_read_as_strictly_as_any(kit: Any) -> None:
    stage = await kit.stage(body_max_bytes=1000)
    for sent, status in (
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}x", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n" + kit.chunk(b"x" * 600) * 2, 413),
        (b"Content-Length: 1001\r\n\r\n", 413),
    ):
        client = await stage.client()
        await client.send(b"POST /v1/completions HTTP/1.1\r\nHost: r\r\n" + OFFERS["jdk"] + sent)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert not stage.engines[0].asked


async def test_a_client_that_waits_for_100_continue_and_offers_to_upgrade_gets_it(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    body = b'{"prompt": "x"}'

    await client.send(
        b"POST /v1/completions HTTP/1.1\r\nHost: r\r\n%bExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        % (OFFERS["curl"], len(body))
    )
    interim = await client.answer()
    await client.send(body)

    assert interim.status == 100
    assert (await client.answer()).status == 200


async def test_http_2_with_prior_knowledge_gets_an_answer_that_says_what_is_spoken(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    answer = await client.answer()

    assert (answer.status, answer.headers["x-multislo-reason"]) == (400, "malformed")
    assert "HTTP/2 is not spoken here" in answer.error["message"]
    assert await client.rest() == b""


async def test_nothing_behind_a_refused_connect_is_read_as_a_request(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.send(b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n" + kit.post(kit.CHAT))
    answer = await client.answer()

    assert (answer.status, answer.headers["connection"]) == (405, "close")
    assert await client.rest() == b""
    assert not stage.engines[0].asked


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("size", [10, 300_000])
async def test_curl_that_offers_http_2_is_served(kit: Any, tmp_path: Any, size: int) -> None:
    stage = await kit.stage()
    path = tmp_path / "body.json"
    path.write_bytes(b'{"model": "llama", "prompt": "%b"}' % (b"x" * size))
    url = f"http://127.0.0.1:{stage.gateway.port}/v1/completions"

    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "--max-time", "30", "--http2", "--data-binary", f"@{path}", url, url),
        stdout=asyncio.subprocess.PIPE,
    )
    answers, _ = await curl.communicate()

    assert (curl.returncode, answers) == (0, kit.COMPLETION * 2)
