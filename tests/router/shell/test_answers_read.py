"""What the router reads in an engine's answer: tokens, errors and usage, in every spelling that the standards allow."""

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multislo_router.shell.sse import WHOLE_MAX_BYTES, EventCount, WholeAnswer


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({min(place, len(data)) for place in places}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def read(*pieces: bytes) -> EventCount:
    count = EventCount()
    for piece in pieces:
        count.feed(piece)
    return count


def usage_of(*pieces: bytes) -> tuple[int | None, int | None]:
    answer = WholeAnswer()
    for piece in pieces:
        answer.feed(piece)
    answer.end()
    return answer.usage.prompt_tokens, answer.usage.completion_tokens


# -- errors in a stream ------------------------------------------------------------------------------------------------

CHAT_TOKEN = {"id": "c", "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]}


@pytest.mark.parametrize(
    "error",
    [
        b'data: {"error": {"message": "CUDA"}}\n\n',
        b'data: {"error":{"message":"CUDA"}}\n\n',
        b'data:{"error": {"message": "CUDA"}}\n\n',
        b'data:   {  "error" : {"message": "CUDA"}}\n\n',
        b'data: {"object": "error", "message": "CUDA", "code": 400}\n\n',
        b'data: {"status": 500, "error": {"message": "CUDA"}}\n\n',
        b'data: {"error": "CUDA"}\r\n\r\n',
        b'data: {"error": "CUDA"}\r\r',
        b'data: {\ndata:  "error": "CUDA"\ndata: }\n\n',
        b'event: error\ndata: {"message": "CUDA"}\n\n',
        b"event: error\ndata: out of memory\n\n",
        b'event:error\r\ndata:{"type":"error","error":{"type":"overloaded_error","message":"x"}}\r\n\r\n',
        b'id: 7\nevent: error\nretry: 1\n: a comment\ndata: {"type":"error","code":"server_error","message":"x","param":null}\n\n',
        b'event: response.failed\ndata: {"type":"response.failed","response":{"status":"failed","error":{"code":"x"}}}\n\n',
    ],
)
def test_an_error_event_is_no_token_in_time_however_it_is_spelled(error: bytes) -> None:
    token = b"data: " + json.dumps(CHAT_TOKEN).encode() + b"\n\n"
    for at in range(len(error)):
        count = read(token, token, error[:at], error[at:])
        assert (count.tokens, count.failed) == (2, True)


@pytest.mark.parametrize("nothing", [b"null", b"false", b'""', b"{}"])
def test_an_error_field_that_says_nothing_is_no_error(nothing: bytes) -> None:
    count = read(b'data: {"error": %b, "choices": [{"index": 0, "text": "\\"error\\": {}"}]}\n\n' % nothing)
    assert (count.tokens, count.failed) == (1, False)


async def test_an_error_event_of_another_api_counts_as_the_engines_failure(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        events = [kit.token("a"), b'event: error\r\ndata:{"type":"error","error":{"message":"x"}}\r\n\r\n']
        await line.send(kit.SSE_HEAD + b"".join(map(kit.chunk, events)) + b"0\r\n\r\n")

    stage = await kit.stage(script)
    client = await stage.client()
    await client.ask(kit.STREAM)

    tier = stage.gateway.core.status(0.0).tiers[1]
    assert stage.outcomes() == {"engine_failed": 1}
    assert tier.tokens_met + tier.tokens_missed == 1


# -- usage -------------------------------------------------------------------------------------------------------------

USAGE = {
    "prompt_tokens": 12,
    "total_tokens": 46,
    "completion_tokens": 34,
    "prompt_tokens_details": {"cached_tokens": 4},
}


@pytest.mark.parametrize(
    "filler", [0, 4_000, 5_000, 100_000, WHOLE_MAX_BYTES - 500, WHOLE_MAX_BYTES, 3 * WHOLE_MAX_BYTES]
)
@pytest.mark.parametrize("before", [False, True])
def test_usage_is_found_wherever_it_stands_in_an_answer_however_long(filler: int, before: bool) -> None:
    rest: dict[str, Any] = {"prompt_logprobs": ["x" * filler], "kv_transfer_params": {"remote_block_ids": [1, 2]}}
    document = rest | {"usage": USAGE} if before else {"usage": USAGE} | rest
    body = json.dumps(document, indent=1 if filler == 5_000 else None).encode()
    assert usage_of(*(body[at : at + 65_536] for at in range(0, len(body), 65_536))) == (12, 34)


def test_usage_of_an_endless_answer_survives_any_cut() -> None:
    head = b'{"choices": [{"text": "' + b"x" * (WHOLE_MAX_BYTES + 1)
    tail = (
        b'"}], "usage" : {"prompt_tokens": 5, "completion_tokens_details": {"x": 1}, "completion_tokens": 6}, "z": 1}'
    )
    for at in range(len(tail)):
        assert usage_of(head, tail[:at], tail[at:]) == (5, 6)


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"text": '"usage": {"prompt_tokens": 1, "completion_tokens": 2}'}]},
        {"choices": [{"usage": {"prompt_tokens": 1, "completion_tokens": 2}}]},
        {"kv_transfer_params": {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}},
        {"usage": None},
        {"usage": "12"},
        {"usage": {"prompt_tokens": "12", "completion_tokens": []}},
        {"usage": {"prompt_tokens": -1, "completion_tokens": 1e300}},
        {"usage": {"completion_tokens": 10**15, "prompt_tokens": 10**25}},
        ["usage"],
    ],
)
def test_what_only_looks_like_usage_is_not_taken(answer: object) -> None:
    assert usage_of(json.dumps(answer).encode()) == (None, None)
    assert usage_of(json.dumps(answer, indent=2).encode()) == (None, None)


def test_usage_in_a_string_of_a_stream_is_not_taken() -> None:
    choice = {"index": 0, "delta": {"content": '"usage":{"prompt_tokens":1,"completion_tokens":2}'}}
    count = read(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
    assert (count.tokens, count.usage.prompt_tokens, count.usage.completion_tokens) == (1, None, None)


def test_usage_that_is_null_in_every_event_is_no_usage_and_every_event_a_token() -> None:
    token = b'data: {"id":"c","choices":[{"index":0,"text":"a"}],"usage":null}\n\n'
    last = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\ndata: [DONE]\n\n'
    count = read(token, token, token, last)
    assert (count.tokens, count.usage.prompt_tokens, count.usage.completion_tokens, count.done) == (3, 7, 3, True)


def test_usage_behind_a_long_event_is_found_in_a_stream() -> None:
    event = {"choices": [], "usage": USAGE, "prompt_logprobs": ["y" * 200_000]}
    stream = b"data: " + json.dumps(event).encode() + b"\n\n"
    count = read(*(stream[at : at + 10_000] for at in range(0, len(stream), 10_000)))
    assert (count.tokens, count.usage.prompt_tokens, count.usage.completion_tokens) == (0, 12, 34)


def test_input_and_output_tokens_are_usage_too() -> None:
    assert usage_of(
        b'{"type":"message","usage":{"input_tokens":10,"output_tokens":3,"cache_read_input_tokens":5}}'
    ) == (15, 3)
    assert usage_of(b'{"object":"response","usage":{"input_tokens":10,"output_tokens":3,"total_tokens":13}}') == (10, 3)


# -- several sequences -------------------------------------------------------------------------------------------------


def test_tokens_of_several_sequences_are_told_apart() -> None:
    def event(*choices: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps({"choices": list(choices)}).encode() + b"\n\n"

    count = EventCount(3)
    roles = b"".join(event({"index": i, "delta": {"role": "assistant", "content": ""}}) for i in range(3))

    assert count.feed(roles) == 0
    assert (
        count.feed(event({"index": 1, "delta": {"content": "a"}}) + event({"index": 1, "delta": {"content": "b"}})) == 2
    )
    assert (count.tokens_of, count.ended) == ({1: 2}, [])
    assert (
        count.feed(event({"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}, {"index": 2, "text": "c"}))
        == 2
    )
    assert (count.tokens_of, count.ended) == ({0: 1, 2: 1}, [0])
    assert count.feed(b"data: [DONE]\n\n") == 0
    assert (count.tokens_of, count.tokens) == ({}, 4)


# -- the short way and the long one ------------------------------------------------------------------------------------

TEXTS = st.sampled_from(
    [
        "Hello",
        "",
        " the",
        'a "b"',
        "\n",
        "\\",
        "ü€😀",
        '{"error":1}',
        "data: [DONE]\n\n",
        '"usage":{"prompt_tokens":5}',
        "\u2028",
        "\x7f",
    ]
) | st.text(max_size=6)
ENDS = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r"])


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "c",
        "choices": [{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}],
    } | more


DOCUMENTS = st.one_of(
    TEXTS.map(chat),
    TEXTS.map(chat),
    TEXTS.map(lambda text: chat(text, usage=None)),
    TEXTS.map(lambda text: chat(text, error=None)),
    TEXTS.map(lambda text: chat(text, usage={"prompt_tokens": 3, "completion_tokens": len(text)})),
    TEXTS.map(lambda text: {"choices": [{"index": 0, "text": text, "finish_reason": "stop"}]}),
    TEXTS.map(lambda text: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]}),
    TEXTS.map(lambda text: {"choices": [], "content": text}),
    TEXTS.map(lambda text: {"error": {"message": text}}),
    TEXTS.map(lambda text: {"text": text}),
    TEXTS.map(lambda text: text),
    TEXTS.map(lambda text: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}),
    TEXTS.map(
        lambda text: {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "text": text}}
    ),
    TEXTS.map(lambda text: {"type": "message_delta", "delta": {}, "usage": {"output_tokens": len(text)}}),
    TEXTS.map(
        lambda text: {"type": "message_start", "message": {"usage": {"input_tokens": len(text), "output_tokens": 1}}}
    ),
    TEXTS.map(lambda text: {"type": "response.output_text.delta", "delta": text, "sequence_number": 4}),
    TEXTS.map(lambda text: {"type": "response.output_text.done", "text": text}),
    st.just({"type": "response.completed", "response": {"usage": {"input_tokens": 8, "output_tokens": 9}}}),
)


@st.composite
def events(draw: Any) -> str:
    document = draw(DOCUMENTS)
    end = draw(ENDS)
    colon = draw(st.sampled_from([": ", ": ", ": ", ":"]))
    separators = draw(st.sampled_from([(",", ":"), (",", ":"), (", ", ": ")]))
    indent = draw(st.sampled_from([None, None, None, 1]))
    text = json.dumps(document, ensure_ascii=draw(st.booleans()), separators=separators, indent=indent)
    lines = [f"data{colon}{line}" for line in text.split("\n")]
    if draw(st.sampled_from([False, False, False, True])):
        lines.insert(0, f"event{colon}{draw(st.sampled_from(['error', 'content_block_delta', 'x']))}")
    if draw(st.sampled_from([False, False, False, True])):
        lines.insert(0, ': comment "text":"')
    return end.join(lines) + end + end


STREAMS = st.lists(st.tuples(events(), st.sampled_from([1, 1, 2, 3])), max_size=8).map(
    lambda drawn: "".join(event * times for event, times in drawn).encode()
)


class Slowly(EventCount):
    """Reads every event as JSON."""

    def _learn(self, event: bytes) -> None:
        pass


def by_json(stream: bytes) -> tuple[int, bool, int | None, int | None]:
    """The same with other means: the standard's own grammar, and json.loads for every event."""
    tokens, failed, opened = 0, False, False
    usage: list[int | None] = [None, None]
    blocks = re.split(r"\n\n+", stream.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n"))
    for block in blocks[:-1]:
        fields: dict[str, list[str]] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value[1:] if value.startswith(" ") else value)
        document = json.loads("\n".join(fields["data"]))
        if fields.get("event") == ["error"] or (isinstance(document, dict) and document.get("error")):
            failed = True
            continue
        if not isinstance(document, dict):
            tokens += 1
            continue
        told = False
        for place in (document, document.get("response"), document.get("message")):
            said = (place or {}).get("usage") or {}
            for index, names in enumerate((("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))):
                for name in names:
                    if name in said:
                        usage[index] = said[name]
                        told = told or place is document
        if "choices" in document:
            for choice in document["choices"]:
                delta = choice.get("delta", {})
                tokens += opened or "role" not in delta or bool(delta["content"])
                opened = True
        elif "type" in document:
            kind = document["type"]
            signature = kind == "content_block_delta" and document["delta"]["type"] == "signature_delta"
            tokens += kind.endswith(".delta") or (kind == "content_block_delta" and not signature)
        else:
            tokens += not told
    return tokens, failed, usage[0], usage[1]


@given(STREAMS, st.lists(st.integers(0, 2000), max_size=10))
@example(
    b'data: {"choices":[{"index":0,"text":"a"}]}\n\n' * 3 + b'data: {"choices":[{"index":0,"text":"b"},"x"]}\n\n', []
)
def test_the_short_way_reads_what_the_long_way_reads(stream: bytes, places: list[int]) -> None:
    quick, slow = EventCount(), Slowly()
    counted = [(quick.feed(piece), slow.feed(piece)) for piece in cut(stream, places)]

    assert all(a == b for a, b in counted)
    assert (quick.tokens, quick.failed, quick.done) == (slow.tokens, slow.failed, slow.done)
    assert (quick.usage.prompt_tokens, quick.usage.completion_tokens) == (
        slow.usage.prompt_tokens,
        slow.usage.completion_tokens,
    )


@given(STREAMS, st.lists(st.integers(0, 2000), max_size=10))
def test_a_stream_is_read_as_its_standard_says(stream: bytes, places: list[int]) -> None:
    count = read(*cut(stream, places))
    assert (count.tokens, count.failed, count.usage.prompt_tokens, count.usage.completion_tokens) == by_json(stream)


def test_most_tokens_go_the_short_way() -> None:
    count = EventCount()
    tokens = [
        b"data: " + json.dumps(chat(text), separators=(",", ":")).encode() + b"\n\n" for text in ("a", " b", "c d")
    ]
    for token in tokens:
        count.feed(token)
    assert count._take_alike(b"".join(tokens)) == (3, sum(map(len, tokens)))
