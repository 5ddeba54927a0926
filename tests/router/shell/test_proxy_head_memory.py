"""A head that was read before is not read again: the result is the same, and what was never accepted is never remembered."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multislo_router.shell.head_memory import HEADS_MAX, HeadMemory
from multislo_router.shell.request_head import RequestHead
from multislo_router.shell.routes import Routes


def head(length: int, **fields: Any) -> RequestHead:
    target = Routes().find(b"POST", b"/v1/completions")
    return RequestHead(b"POST", target, False, True, content_length=length, has_body=True, **fields)


def request(length: int, *, name: bytes = b"Content-Length", before: bytes = b"", after: bytes = b"") -> bytes:
    start = b"POST /v1/completions HTTP/1.1\r\nhost: r\r\n" + before
    return start + name + b": %d\r\n" % length + after + b"\r\n" + b"x" * length


async def test_requests_that_differ_only_in_their_bodies_are_all_served_right(kit: Any) -> None:
    stage = await kit.stage()
    clients = [await stage.client() for _ in range(3)]

    for turn in range(12):
        content = "hello " * (turn * 7 % 5)
        tier = ("batch", "interactive")[turn % 2]
        answer = await clients[turn % 3].ask(
            kit.CHAT | {"user": content}, headers=f"X-Length: 5\r\nx-slo-tier: {tier}\r\nx-mine: {turn % 4}\r\n"
        )
        seen = stage.engines[0].asked[-1]
        assert (answer.status, answer.headers["x-multislo-tier"]) == (200, tier)
        assert seen.json == kit.CHAT | {"user": content}
        assert (seen.headers["x-mine"], seen.headers["x-length"]) == (str(turn % 4), "5")


async def test_a_key_is_checked_on_every_head(kit: Any) -> None:
    stage = await kit.stage(api_keys=(b"right",))
    good = await stage.client()

    for _ in range(3):
        assert (await good.ask(kit.CHAT, headers="authorization: Bearer right\r\n")).status == 200
        bad = await stage.client()
        assert (await bad.ask(kit.CHAT, headers="authorization: Bearer wrong\r\n")).status == 401


async def test_a_long_body_behind_a_known_head_is_still_refused(kit: Any) -> None:
    stage = await kit.stage(body_max_bytes=300)
    client = await stage.client()
    await client.ask(kit.CHAT)
    await client.ask(kit.CHAT)

    assert (await client.ask(kit.CHAT | {"user": "x" * 400})).status == 413


def test_a_known_head_is_found_whatever_the_length() -> None:
    memory = HeadMemory(1 << 20)
    known = head(3)
    memory.remember(request(3), known)

    assert memory.find(request(12345)) == (known, len(request(12345)) - 12345)


@pytest.mark.parametrize(
    "data",
    [
        request(4)[:-1],
        request(4) + b"x",
        request(4) + request(4),
        request(4).replace(b": 4\r", b":  4\r"),
        request(4).replace(b": 4\r", b": 4 \r"),
        request(4).replace(b": 4\r", b": +4\r"),
        request(4).replace(b": 4\r", b": 0x4\r"),
        request(4).replace(b": 4\r", b": \xb2\r"),
        request(4).replace(b"/v1", b"/v2"),
        request(4, before=b"a: b\r\n"),
        request(4, after=b"content-length: 9\r\n"),
        request(4, after=b"transfer-encoding: chunked\r\n"),
        b"\r\n" + request(4),
        b"",
    ],
)
def test_anything_else_than_a_whole_known_request_is_left_to_the_parser(data: bytes) -> None:
    memory = HeadMemory(1 << 20)
    memory.remember(request(4), head(4))

    assert memory.find(data) is None


@pytest.mark.parametrize(
    ("data", "known"),
    [
        (request(4), head(4, request_id=b"mine")),
        (request(4), head(4, expect=b"100-continue")),
        (request(4), head(5)),
        (request(4, name=b"X-Length"), head(4)),
        (request(4, name=b"Not-Content-Length"), head(4)),
        (request(4, before=b"X-Length: 4\r\n"), head(4)),
        (request(4, before=b"x: " + b"y" * 5000 + b"\r\n"), head(4)),
    ],
)
def test_what_is_not_the_same_for_every_request_is_not_remembered(data: bytes, known: RequestHead) -> None:
    memory = HeadMemory(1 << 20)
    memory.remember(data, known)

    assert memory.find(data) is None


def test_the_memory_is_bounded() -> None:
    memory = HeadMemory(1 << 20)
    for number in range(3 * HEADS_MAX):
        memory.remember(request(4, before=b"x: %d\r\n" % number), head(4))
    assert len(memory._heads) <= HEADS_MAX


@given(st.binary(max_size=80))
def test_no_bytes_make_it_stumble(data: bytes) -> None:
    memory = HeadMemory(1 << 20)
    memory.remember(data, head(4))
    memory.find(request(4) + data)
    memory.find(data)
