"""However the network cuts requests and answers into pieces, the result is the same. And what looks at bytes agrees with real parsers."""

import asyncio
import contextlib
import itertools
import json
from typing import Any

import httptools
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from multislo_router.shell.body_scan import scan_body, with_fields
from multislo_router.shell.errors import Fault
from multislo_router.shell.response_head import ChunkedBody, EngineSpokeNonsense
from multislo_router.shell.routes import Route
from multislo_router.shell.sse import EVENT_MAX_BYTES, EventCount, WholeAnswer


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


PLACES = st.lists(st.integers(0, 3000), max_size=12)


def usage_of(pieces: list[bytes]) -> tuple[int | None, int | None]:
    answer = WholeAnswer()
    for piece in pieces:
        answer.feed(piece)
    answer.end()
    return answer.usage.prompt_tokens, answer.usage.completion_tokens


# -- server-sent events ------------------------------------------------------------------------------------------------


def event(content: str, **fields: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": content} | fields}]}).encode() + b"\n\n"


TRICKY = [
    "data: [DONE]\n\n",
    '"choices":[]',
    "\ndata: x",
    "[DONE]",
    '{"error":',
    '"prompt_tokens":5',
    "ü\u2028",
    "\\",
    '"',
]
CONTENTS = st.lists(st.sampled_from(TRICKY) | st.text(max_size=8), max_size=8)
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2}}\n\n'


@given(CONTENTS, PLACES, st.booleans(), st.booleans(), st.booleans())
@example(["a"], [5, 6, 7, 11, 12, 13], True, True, True)
def test_tokens_are_counted_the_same_however_a_stream_is_cut(
    contents: list[str], places: list[int], role: bool, usage: bool, comments: bool
) -> None:
    stream = event("", role="assistant") if role else b""
    for content in contents:
        stream += (b": data: keepalive\n\n" if comments else b"") + event(content)
    stream += (USAGE if usage else b"") + b"data: [DONE]\n\n"
    count = EventCount()

    tokens = sum(count.feed(piece) for piece in cut(stream, places))

    assert tokens == len(contents)
    assert count.done
    assert not count.failed
    assert (count.usage.prompt_tokens, count.usage.completion_tokens) == ((7, 2) if usage else (None, None))


def test_events_with_crlf_and_without_a_space_count_too() -> None:
    count = EventCount()
    stream = b'data:{"choices":[{"text":"a"}]}\r\n\r\nevent: x\r\ndata: {"choices":[{"text":"b"}]}\r\n\r\ndata:[DONE]\r\n\r\n'
    assert sum(count.feed(stream[at : at + 1]) for at in range(len(stream))) == 2
    assert count.done


def test_an_endless_event_is_not_kept() -> None:
    count = EventCount()
    for _ in range(100):
        count.feed(b"data: " + b"x" * 100_000)
    assert len(count._held) <= EVENT_MAX_BYTES
    assert count.feed(b"\n\ndata: y\n\n") == 2


@given(PLACES, st.integers(0, 9000))
def test_usage_is_found_however_an_answer_is_cut(places: list[int], length: int) -> None:
    choice = {"message": {"content": '"completion_tokens": 99 ' * (length // 20)}}
    body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 12, "completion_tokens": 34}}).encode()
    assert usage_of(cut(body, places)) == (12, 34)


# -- chunks ------------------------------------------------------------------------------------------------------------


class Reference:
    def __init__(self) -> None:
        self.body = b""
        self.done = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done = True


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), PLACES, st.sampled_from([0, 20, 1000]), st.booleans())
def test_chunks_are_read_like_httptools_reads_them(
    chunks: list[bytes], places: list[int], hold: int, trailer: bool
) -> None:
    wire = b"".join(b"%x%b\r\n%b\r\n" % (len(c), b";x=1" if n % 3 == 1 else b"", c) for n, c in enumerate(chunks))
    wire += b"0\r\n" + (b"x-trailer: 1\r\n" if trailer else b"") + b"\r\n"
    reference = Reference()
    parser = httptools.HttpResponseParser(reference)
    parser.feed_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + wire)

    body = ChunkedBody(hold)
    relayed = content = b""
    for piece in cut(wire, places):
        assert not body.done
        relayed += body.feed(piece)
        content += b"".join(body.pieces)

    assert (body.done, content, relayed) == (reference.done, reference.body, wire)


@given(st.binary(max_size=60))
def test_broken_chunks_never_end_a_body_that_httptools_would_not_end(wire: bytes) -> None:
    reference = Reference()
    with contextlib.suppress(httptools.HttpParserError):
        httptools.HttpResponseParser(reference).feed_data(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + wire
        )
    body = ChunkedBody(1000)
    try:
        body.feed(wire)
    except EngineSpokeNonsense:
        return
    assert not body.done or reference.done


# -- bodies ------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FORGED = st.sampled_from(
    ['"stream":true', '"stream": true, "max_tokens": 5', '\\"stream\\":true', "}", '{"stream":true}', "\\", '\\"']
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.booleans() | st.none(),
        "max_tokens": st.integers(0, 10**6) | st.none(),
        "max_completion_tokens": st.integers(0, 10**6) | st.none(),
        "service_tier": st.text(max_size=8) | FORGED | st.none(),
        "model": st.text(max_size=8) | FORGED,
        "prompt": st.text() | FORGED | st.lists(st.integers(0, 10**5)),
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user"), "content": st.text() | FORGED}), max_size=3
        ),
        "priority": st.integers(),
        "vllm_xargs": st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    },
)


@given(
    BODIES, st.dictionaries(st.text(max_size=8), JSON | FORGED, max_size=4), st.booleans(), st.booleans(), st.randoms()
)
def test_a_body_is_read_as_json_reads_it(
    known: dict[str, Any], other: dict[str, Any], ascii_only: bool, spaced: bool, dice: Any
) -> None:
    items = list((other | known | {"x": {"stream": True, "max_tokens": 1}}).items())
    dice.shuffle(items)
    body = json.dumps(dict(items), ensure_ascii=ascii_only, indent=1 if spaced else None).encode(
        "utf-8", "surrogatepass"
    )
    truth = json.loads(body)

    scan = scan_body(body, Route.CHAT if "messages" in truth else Route.COMPLETIONS)

    limit = truth.get("max_completion_tokens")
    assert scan.streaming is (truth.get("stream") is True)
    assert scan.output_tokens_max == (truth.get("max_tokens") if limit is None else limit)
    assert (scan.service_tier, scan.model) == (truth.get("service_tier"), truth.get("model"))
    assert (scan.has_priority, scan.has_xargs) == ("priority" in truth, "vllm_xargs" in truth)
    if "messages" not in truth and isinstance(truth.get("prompt"), list) and truth["prompt"]:
        assert scan.prompt_tokens == len(truth["prompt"])
    spliced = json.loads(with_fields(body, b'"new":{"a":1}'))
    assert spliced == truth | {"new": {"a": 1}}


@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,\\truefalsn0123 \n', max_size=40).map(str.encode))
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    try:
        legal = isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        legal = False
    try:
        scan_body(body, Route.CHAT)
        accepted = True
    except Fault:
        accepted = False
    if not legal:
        assert not accepted


def test_a_long_prompt_is_read_like_a_short_one() -> None:
    body = json.dumps(
        {"model": "llama", "messages": [{"role": "user", "content": "word \n" * 40_000}], "stream": True}
    ).encode()
    scan = scan_body(body, Route.CHAT)
    assert scan.streaming
    assert scan.text_bytes > 220_000


def test_msgspec_still_says_what_was_expected_in_the_words_that_are_relayed() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"^Expected `bool \| null`, got `str` - at `\$\.stream`$"):
        msgspec.json.decode(b'{"stream": "x"}', type=msgspec.defstruct("S", [("stream", bool | None, None)]))


# -- over real sockets -------------------------------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLACES, PLACES, st.booleans())
def test_a_request_and_its_answer_survive_any_cut(
    tell: Any, asked: list[int], answered: list[int], stream: bool
) -> None:
    async def story(kit: Any) -> None:
        events = [kit.ROLE, *map(kit.token, "abc"), kit.USAGE, kit.DONE]
        content = b"".join(events) if stream else kit.COMPLETION
        wire = kit.SSE_HEAD + b"".join(map(kit.chunk, events)) + b"0\r\n\r\n" if stream else kit.sized(content)

        async def script(line: Any, request: Any) -> None:
            for piece in cut(wire, answered):
                await line.send(piece)
                await asyncio.sleep(0)

        stage = await kit.stage(script)
        client = await stage.client()
        request = kit.post(kit.CHAT | {"stream": stream}, headers="x-slo-tier: batch\r\n")
        for _ in range(2):
            for piece in cut(request, asked):
                await client.send(piece)
                await asyncio.sleep(0)
            answer = await client.answer()
            assert (answer.status, answer.body, answer.headers["x-multislo-tier"]) == (200, content, "batch")
        tier = stage.gateway.core.status(0.0).tiers[2]
        assert tier.tokens_met + tier.tokens_missed == 6

    tell(story)
