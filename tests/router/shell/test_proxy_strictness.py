"""Requests that are malformed, too large, too slow or not allowed."""

import asyncio
from typing import Any

import pytest

GOOD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"HELLO\r\n\r\n",
        b"GET /v1/models HTTP/3.7\r\nhost: r\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nbad header: 1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx: 1\r\n  folded\r\n\r\n",
        b"GET /v1/ models HTTP/1.1\r\nhost: a\r\n\r\n",
        GOOD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        GOOD + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
        GOOD + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        GOOD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
        GOOD + b"content-length: x\r\n\r\n{}",
        GOOD + b"content-length: -2\r\n\r\n{}",
        GOOD + b"content-length: +2\r\n\r\n{}",
        GOOD + b"content-length: 99999999999999999999999\r\n\r\n{}",
        GOOD + b"transfer-encoding: gzip\r\n\r\n{}",
        GOOD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        GOOD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}x\r\n0\r\n\r\n",
        b"GET /v1/models\r\n\r\n",
        b"GET /v1/models HTTP/0.9\r\n\r\n",
        b"GET /v1/models HTTP/2.0\r\nhost: a\r\n\r\n",
        b"GET /v1/models HTTP/1.2\r\nhost: a\r\n\r\n",
        b"GET /v1/models RTSP/1.0\r\nhost: a\r\n\r\n",
        b"GET /v1/models RTSP/1.1\r\nhost: a\r\n\r\n",
        b"\r\n\r\nGET /v1/models RTSP/1.1\r\nhost: a\r\n\r\n",
        b"SOURCE /v1/models ICE/1.0\r\nhost: a\r\n\r\n",
        b"POST /v1/completions RTSP/1.0\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}",
        b"GET /v1/models HTTP/1.1\nhost: a\n\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a@b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a/b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a:b\r\n\r\n",
        b"GET /v1/models HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST /v1/completions HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        GOOD + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        GOOD + b"transfer-encoding: chunked\r\ntransfer-encoding: gzip\r\n\r\n0\r\n\r\n",
        GOOD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\ncontent-length: 5\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_a_malformed_request_gets_a_400_and_the_connection_is_closed(kit: Any, request_bytes: bytes) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.send(request_bytes)
    answer = await client.answer()

    assert (answer.status, answer.headers["x-multislo-reason"]) == (400, "malformed")
    assert answer.headers["connection"] == "close"
    assert answer.error["type"] == "invalid_request_error"
    assert await client.rest() == b""
    assert not stage.engines[0].asked


@pytest.mark.parametrize(
    "good",
    [
        b"GET /v1/models HTTP/1.1\r\nhost: r\r\n\r\n",
        b"\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: r\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: r\r\ncontent-length: 12\r\n\r\nx\r\n\r\nRTSP/1.",
        b"GET /v1/models HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n9\r\n\r\n\r\nGET /\r\n0\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\na: b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: r\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    ],
)
async def test_the_protocol_of_each_pipelined_request_is_its_own_wherever_the_bytes_are_cut(
    kit: Any, good: bytes
) -> None:
    stage = await kit.stage()
    sent = good + good + b"GET /v1/models RTSP/1.0\r\nhost: r\r\n\r\n"
    for cut in range(1, len(sent)):
        client = await stage.client()
        await client.send(sent[:cut])
        await asyncio.sleep(0)
        await client.send(sent[cut:])

        answers = [await client.answer() for _ in range(3)]

        assert [answer.status for answer in answers] == [200, 200, 400], cut
        assert "'RTSP/1.0'" in answers[2].error["message"]


async def test_a_body_in_a_content_coding_is_a_415_that_says_so(kit: Any) -> None:
    stage = await kit.stage()
    for coding in ("gzip", "zstd", "identity, gzip", "br\r\ncontent-encoding: identity"):
        client = await stage.client()

        answer = await client.ask(b"\x1f\x8b", headers=f"content-encoding: {coding}\r\n")

        assert (answer.status, answer.headers["x-multislo-reason"]) == (415, "unsupported_encoding")
        assert answer.headers["accept-encoding"] == "identity"
        assert answer.error["param"] == "content-encoding"
    assert (await (await stage.client()).ask(kit.CHAT, headers="content-encoding: Identity\r\n")).status == 200
    assert len(stage.engines[0].asked) == 1


@pytest.mark.parametrize(
    "coding",
    [
        b"gzip, chunked",
        b"GZIP,chunked",
        b"identity, chunked",
        b", chunked",
        b"gzip\r\ntransfer-encoding: chunked",
        b"deflate;q=1, chunked",
    ],
)
async def test_a_body_in_a_coding_besides_chunked_is_refused(kit: Any, coding: bytes) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.send(GOOD + b"transfer-encoding: " + coding + b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    answer = await client.answer()

    assert (answer.status, answer.headers["x-multislo-reason"]) == (501, "not_implemented")
    assert "must be chunked" in answer.error["message"]
    assert await client.rest() == b""


@pytest.mark.parametrize("host", ["", "r", "r:8000", "127.0.0.1:1", "[::1]:8000", "a-b.c_d.example", "R:"])
async def test_every_host_that_is_one_is_taken(kit: Any, host: str) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.send(f"GET /v1/models HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())

    assert (await client.answer()).status == 200


async def test_a_malformed_request_behind_good_ones_is_answered_after_them(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.send(kit.post(kit.CHAT) + b"NONSENSE\r\n\r\n")

    assert [(await client.answer()).status for _ in range(2)] == [200, 400]


@pytest.mark.parametrize(
    ("body", "reason", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"[1]", "invalid_json", None),
        (b'{"messages": [}', "invalid_json", None),
        (b'{"stream": "yes"}', "invalid_field", "stream"),
        (b'{"max_tokens": -1}', "invalid_field", "max_tokens"),
        (b'{"max_tokens": 1.5}', "invalid_field", "max_tokens"),
        (b'{"max_completion_tokens": 1e99}', "invalid_field", "max_completion_tokens"),
        (b'{"service_tier": 3}', "invalid_field", "service_tier"),
        (b"[" * 100_000, "invalid_json", None),
        (b'{"a":' * 100_000, "invalid_json", None),
    ],
)
async def test_a_bad_body_gets_a_400_that_names_the_field(
    kit: Any, body: bytes, reason: str, param: str | None
) -> None:
    stage = await kit.stage()
    client = await stage.client()

    answer = await client.ask(body)

    assert (answer.status, answer.headers["x-multislo-reason"], answer.error["param"]) == (400, reason, param)
    assert (await client.ask(kit.CHAT)).status == 200  # the connection is as good as before


async def test_a_model_that_is_not_served_is_a_404(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    answer = await client.ask(kit.CHAT | {"model": "gpt-5"})

    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert "llama" in answer.error["message"]


async def test_a_prompt_that_can_never_fit_is_a_400(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    answer = await client.ask(
        {"model": "llama", "prompt": list(range(100_000)), "max_tokens": 40_000}, "/v1/completions"
    )

    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert "140000" in answer.error["message"]


async def test_a_body_that_announces_too_much_is_refused_before_it_comes(kit: Any) -> None:
    stage = await kit.stage(body_max_bytes=1000)
    client = await stage.client()

    await client.send(GOOD + b"expect: 100-continue\r\ncontent-length: 1001\r\n\r\n")
    answer = await client.answer()

    assert (answer.status, answer.headers["x-multislo-reason"]) == (413, "body_too_large")


async def test_an_image_of_20_mib_is_taken(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    url = "data:image/png;base64," + "A" * (20 * 2**20 * 4 // 3)
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]

    answer = await client.ask(kit.CHAT | {"messages": [{"role": "user", "content": content}]})

    assert answer.status == 200
    assert len(stage.engines[0].asked[0].body) > 26 * 2**20


async def test_a_client_that_sends_too_much_still_reads_why(kit: Any) -> None:
    stage = await kit.stage(body_max_bytes=1000)
    client = await stage.client()

    client.writer.write(GOOD + b"transfer-encoding: chunked\r\n\r\n" + kit.chunk(b"x" * 900) * 2000)
    answer = await client.answer()

    assert answer.status == 413


@pytest.mark.parametrize("many", [True, False])
async def test_an_oversize_head_is_a_431(kit: Any, many: bool) -> None:
    stage = await kit.stage(header_max_bytes=8000)
    client = await stage.client()

    filler = b"".join(b"x-%d: y\r\n" % n for n in range(2000)) if many else b"x: " + b"y" * 9000 + b"\r\n"
    await client.send(GOOD + filler + b"content-length: 2\r\n\r\n{}")
    answer = await client.answer()

    assert (answer.status, answer.headers["x-multislo-reason"]) == (431, "head_too_large")


async def test_an_endless_head_is_a_431(kit: Any) -> None:
    stage = await kit.stage(header_max_bytes=8000)
    client = await stage.client()

    await client.send(GOOD + b"x: ")
    for _ in range(10):
        await client.send(b"y" * 1000)
        await asyncio.sleep(0.005)
    answer = await client.answer()

    assert answer.status == 431


async def test_endless_trailers_are_refused(kit: Any) -> None:
    stage = await kit.stage(header_max_bytes=8000)
    client = await stage.client()

    await client.send(GOOD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: ")
    for _ in range(10):
        await client.send(b"y" * 1000)
        await asyncio.sleep(0.005)

    assert (await client.answer()).status == 431


@pytest.mark.parametrize("sent", [b"POST /v1/chat", GOOD, GOOD + b"content-length: 99\r\n\r\n{", b"P", b"\r\n"])
async def test_a_request_that_never_completes_times_out(kit: Any, sent: bytes) -> None:
    stage = await kit.stage(head_timeout_s=0.1, body_gap_timeout_s=0.1)
    client = await stage.client()

    await client.send(sent)
    answer = await client.answer()

    assert (answer.status, answer.headers["x-multislo-reason"]) == (408, "timeout")


async def test_a_head_that_trickles_in_times_out(kit: Any) -> None:
    stage = await kit.stage(head_timeout_s=0.2)
    client = await stage.client()

    async def trickle() -> None:
        for byte in GOOD * 100:
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0.01)

    trickling = asyncio.create_task(trickle())
    answer = await client.answer()
    trickling.cancel()

    assert answer.status == 408


async def test_a_body_that_trickles_in_times_out(kit: Any) -> None:
    stage = await kit.stage(body_gap_timeout_s=5, body_timeout_s=0.2)
    client = await stage.client()
    await client.send(GOOD + b"content-length: 9999\r\n\r\n")

    async def trickle() -> None:
        while True:
            client.writer.write(b" ")
            await asyncio.sleep(0.01)

    trickling = asyncio.create_task(trickle())
    answer = await client.answer()
    trickling.cancel()

    assert answer.status == 408


async def test_a_client_that_expects_100_continue_gets_it(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    request = kit.post(kit.CHAT, headers="Expect: 100-continue\r\n")
    head, _, body = request.partition(b"\r\n\r\n")

    await client.send(head + b"\r\n\r\n")
    interim = await client.answer()
    await client.send(body)
    answer = await client.answer()

    assert (interim.status, answer.status) == (100, 200)
    assert "expect" not in stage.engines[0].asked[0].headers


async def test_a_client_that_does_not_wait_for_100_continue_is_not_sent_one(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    answer = await client.ask(kit.CHAT, headers="expect: 100-continue\r\n")

    assert answer.status == 200


async def test_100_continue_waits_for_the_answer_before_it(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    request = kit.post(kit.CHAT, headers="expect: 100-continue\r\n")
    head, _, body = request.partition(b"\r\n\r\n")

    await client.send(kit.post(kit.CHAT) + head + b"\r\n\r\n")
    first, interim = await client.answer(), await client.answer()
    await client.send(body)

    assert [first.status, interim.status, (await client.answer()).status] == [200, 100, 200]


async def test_other_expectations_are_a_417(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    assert (await client.ask(kit.CHAT, headers="expect: cake\r\n")).status == 417


async def test_a_chunked_body_reaches_the_engine_whole(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    body = b'{"messages": [{"role": "user", "content": "Hello"}], "model": "llama"}'
    chunks = b"".join(kit.chunk(body[at : at + 7]) for at in range(0, len(body), 7))

    await client.send(GOOD + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\nx-trailer: 1\r\n\r\n")
    answer = await client.answer()

    assert answer.status == 200
    assert stage.engines[0].asked[0].body == body
    assert "x-trailer" not in stage.engines[0].asked[0].headers


async def test_connect_is_refused(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.send(b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\n")

    assert (await client.answer()).status == 405


async def test_a_key_is_asked_for_and_ends_at_the_router(kit: Any) -> None:
    stage = await kit.stage(api_keys=(b"first-key", b"second-key"))
    client = await stage.client()

    good = [
        await client.ask(kit.CHAT, headers=f"authorization: Bearer {key}\r\n") for key in ("first-key", "second-key")
    ]
    bad = []
    for headers in (
        "",
        "authorization: Bearer first\r\n",
        "authorization: Basic first-key\r\n",
        "authorization: Bearer \r\n",
    ):
        other = await stage.client()
        bad.append(await other.ask(kit.CHAT, headers=headers))

    assert [answer.status for answer in good] == [200, 200]
    for answer in bad:
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "key" not in answer.error["message"].lower().replace("bearer key", "").replace("a key of", "")
    assert all("authorization" not in asked.headers for asked in stage.engines[0].asked)


MESSAGE = {"model": "llama", "max_tokens": 3, "messages": [{"role": "user", "content": "Hello?"}]}


@pytest.mark.parametrize("order", [("sesame", "nobody"), ("nobody", "sesame"), ("sesame", "sesame")])
async def test_a_request_with_two_keys_shows_none(kit: Any, order: tuple[str, str]) -> None:
    stage = await kit.stage(api_keys=(b"sesame",))
    bearers = "".join(f"authorization: Bearer {key}\r\n" for key in order)
    shown = "".join(f"x-api-key: {key}\r\n" for key in order)

    assert (await (await stage.client()).ask(kit.CHAT, headers=bearers)).status == 401
    assert (await (await stage.client()).ask(kit.CHAT, "/v1/messages", headers=shown)).status == 401
    assert not stage.engines[0].asked


async def test_x_api_key_opens_the_messages_api_and_nothing_else(kit: Any) -> None:
    stage = await kit.stage(api_keys=(b"key",))
    statuses = []

    for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions", "/v1/messagesx"):
        for headers in ("x-api-key: key\r\n", "x-api-key: yek\r\n", "x-api-key: yek\r\nauthorization: Bearer key\r\n"):
            client = await stage.client()
            statuses.append((await client.ask(MESSAGE, path, headers)).status)

    assert statuses == [200, 401, 200, 200, 401, 200, 401, 401, 200, 401, 401, 404]
    assert all("x-api-key" not in asked.headers for asked in stage.engines[0].asked)


async def test_without_keys_an_x_api_key_is_relayed(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()

    await client.ask(MESSAGE, "/v1/messages", "x-api-key: the-engine-s\r\n")

    assert stage.engines[0].asked[0].headers["x-api-key"] == "the-engine-s"
