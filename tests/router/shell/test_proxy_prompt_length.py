"""How long prompts are believed to be: from bytes, corrected by usage; exact by token ids or a tokenizer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multislo_router.core.events import RequestArrived
from multislo_router.shell.prompt_length import TOKENS_PER_BYTE_MAX, TOKENS_PER_BYTE_MIN, LengthEstimate


def arrivals(stage: Any) -> list[RequestArrived]:
    """What the core will be told of arriving requests."""
    seen: list[RequestArrived] = []
    handle = stage.gateway.core.handle

    def watching(event: Any) -> Any:
        if isinstance(event, RequestArrived):
            seen.append(event)
        return handle(event)

    stage.gateway.core.handle = watching
    return seen


async def test_the_estimate_follows_usage(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        usage = {"prompt_tokens": len(asked.json["prompt"]) // 2, "completion_tokens": 1}
        await line.send(kit.sized(json.dumps({"choices": [], "usage": usage}).encode()))

    stage = await kit.stage(script)
    client = await stage.client()
    seen = arrivals(stage)

    for _ in range(5):
        await client.ask({"model": "llama", "prompt": "x" * 8000, "max_tokens": 1}, "/v1/completions")

    assert seen[0].prompt_tokens == pytest.approx(2000, rel=0.01)
    assert seen[-1].prompt_tokens == pytest.approx(4000, rel=0.1)


def test_the_estimate_forgets_what_is_no_longer_so() -> None:
    estimate = LengthEstimate()
    for _ in range(1000):
        estimate.correct(10_000, 5000)
    for _ in range(100):
        estimate.correct(10_000, 3000)
    assert estimate.tokens(1000) == pytest.approx(300, rel=0.02)


async def test_token_ids_are_counted_exactly(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    seen = arrivals(stage)

    await client.ask({"model": "llama", "prompt": [5, 6, 7], "max_tokens": 9}, "/v1/completions")

    assert (seen[0].prompt_tokens, seen[0].output_tokens_max, seen[0].streaming) == (3, 9, False)


async def test_an_inline_image_is_not_taken_for_text(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    seen = arrivals(stage)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 50_000}}

    answer = await client.ask({"model": "llama", "messages": [{"role": "user", "content": [image]}]})

    assert answer.status == 200
    assert 1000 < seen[0].prompt_tokens < 1200


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    path = tmp_path / "tokenizer.json"
    words.save(str(path))
    return path


@pytest.mark.parametrize("words", [10, 20_000])
async def test_a_tokenizer_counts_exactly_short_prompts_and_long_ones(kit: Any, tokenizer: Path, words: int) -> None:
    stage = await kit.stage(tokenizer=tokenizer)
    client = await stage.client()
    seen = arrivals(stage)

    answer = await client.ask({"model": "llama", "prompt": "hello " * words}, "/v1/completions")

    assert answer.status == 200
    assert seen[0].prompt_tokens == words


async def test_a_client_that_leaves_while_its_prompt_is_counted_is_never_placed(kit: Any, tokenizer: Path) -> None:
    stage = await kit.stage(tokenizer=tokenizer)
    client = await stage.client()
    seen = arrivals(stage)

    await client.send(kit.post({"model": "llama", "prompt": "hello " * 200_000}, "/v1/completions"))
    await stage.until(lambda: bool(stage.gateway.exchanges))
    client.reset()
    await stage.until(lambda: not stage.gateway.exchanges)

    assert not seen
    assert not stage.engines[0].asked


@given(st.lists(st.tuples(st.integers(-5, 10**7), st.integers(-5, 10**7)), max_size=50))
def test_no_usage_can_bend_the_estimate_out_of_bounds(pairs: list[tuple[int, int]]) -> None:
    estimate = LengthEstimate()
    for text_bytes, tokens in pairs:
        estimate.correct(text_bytes, tokens)
    assert TOKENS_PER_BYTE_MIN * 0.999 <= estimate.tokens_per_byte <= TOKENS_PER_BYTE_MAX * 1.001
    assert estimate.tokens(0) == 1


LONG = "word " * 30_000
"""150 KB: about 37,500 tokens by the estimate, 30,000 by the tokenizer of these tests."""


async def test_an_estimate_alone_refuses_nothing(kit: Any) -> None:
    """Near the limit it is too high as often as too low; the engine knows, and its own words reach the client."""

    async def script(line: Any, asked: Any) -> None:
        if asked.json.get("user") == "too long":
            await line.send(kit.sized(b'{"error": {"message": "maximum context length is 8192"}}', "400 Bad Request"))
        else:
            await line.send(kit.sized(kit.COMPLETION))

    stage = await kit.stage(script, core=replace(kit.CORE, length_max=8192))
    client = await stage.client()
    chat = kit.CHAT | {"messages": [{"role": "user", "content": LONG}]}

    answers = [
        await client.ask(chat),
        await client.ask({"model": "llama", "prompt": LONG, "max_tokens": 8000}, "/v1/completions"),
        await client.ask(chat | {"user": "too long"}),
    ]

    assert [answer.status for answer in answers] == [200, 200, 400]
    assert answers[2].error["message"] == "maximum context length is 8192"
    assert "x-multislo-reason" not in answers[2].headers


async def test_an_exact_count_refuses_what_cannot_fit(kit: Any, tokenizer: Path) -> None:
    stage = await kit.stage(core=replace(kit.CORE, length_max=8192), tokenizer=tokenizer)
    client = await stage.client()
    ids = {"model": "llama", "prompt": list(range(8192)), "max_tokens": 1}
    text = {"model": "llama", "prompt": LONG, "max_tokens": 1}
    chat = kit.CHAT | {"messages": [{"role": "user", "content": LONG}]}

    refused = [await client.ask(body, "/v1/completions") for body in (ids, text)]
    refused.append(await client.ask(kit.CHAT | {"max_tokens": 8192}))
    served = [
        await client.ask(ids | {"prompt": list(range(8191))}, "/v1/completions"),
        await client.ask(ids | {"truncate_prompt_tokens": 100}, "/v1/completions"),
        await client.ask(chat),  # a template may leave out most of it
    ]

    assert [(answer.status, answer.error["code"]) for answer in refused] == [(400, "context_length_exceeded")] * 3
    assert [answer.status for answer in served] == [200, 200, 200]
