"""`n`, lists of prompts and lists of token ids: what the core is told, and what an engine's stream of several sequences makes of it."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multislo_router.core import events as e
from multislo_router.shell.body_scan import SEQUENCES_MAX, scan_body
from multislo_router.shell.routes import Route

COMPLETION = {"model": "llama", "max_tokens": 4}


def told(stage: Any, kind: type) -> list[Any]:
    """What the core will be told of this kind."""
    seen: list[Any] = []
    handle = stage.gateway.core.handle

    def watching(event: Any) -> Any:
        if isinstance(event, kind):
            seen.append(event)
        return handle(event)

    stage.gateway.core.handle = watching
    return seen


async def test_twenty_lists_of_a_thousand_ids_fit_a_model_of_8192(kit: Any) -> None:
    stage = await kit.stage(core=replace(kit.CORE, length_max=8192))
    client = await stage.client()
    arrivals = told(stage, e.RequestArrived)

    answer = await client.ask(COMPLETION | {"prompt": [[7] * 1000] * 20}, "/v1/completions")

    assert answer.status == 200
    assert (arrivals[0].prompts, arrivals[0].prompt_tokens, arrivals[0].choices) == ((1000,) * 20, 20_000, 1)


async def test_one_list_of_ids_among_several_that_is_too_long_is_refused(kit: Any) -> None:
    stage = await kit.stage(core=replace(kit.CORE, length_max=8192))
    client = await stage.client()
    answer = await client.ask(COMPLETION | {"prompt": [[7] * 10, [7] * 9000]}, "/v1/completions")
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")


async def test_a_list_of_texts_is_several_prompts_by_their_sizes(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    arrivals = told(stage, e.RequestArrived)

    await client.ask(COMPLETION | {"prompt": ["a" * 4000, 'b"\\[1,2]' * 500, "c"], "n": 3}, "/v1/completions")
    await client.ask(COMPLETION | {"prompt": ["one alone"]}, "/v1/completions")

    first, second, third = arrivals[0].prompts
    assert (first, second, third) == (pytest.approx(1000, rel=0.1), pytest.approx(1250, rel=0.2), 1)
    assert arrivals[0].choices == 3
    assert (arrivals[1].prompts, arrivals[1].choices) == ((), 1)


async def test_n_of_a_chat_is_so_many_choices(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    arrivals = told(stage, e.RequestArrived)
    for n in (8, None, 1.0):
        await client.ask(kit.CHAT | {"n": n})
    assert [(event.prompts, event.choices) for event in arrivals] == [((), 8), ((), 1), ((), 1)]


@pytest.mark.parametrize("n", [0, -1, 2.5, "3", True, 10**9, [2]])
async def test_an_n_that_is_none_is_refused_with_its_range(kit: Any, n: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    answer = await client.ask(kit.CHAT | {"n": n})
    assert (answer.status, answer.headers["x-multislo-reason"], answer.error["param"]) == (400, "invalid_field", "n")
    assert not stage.engines[0].asked


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/responses", {"input": "x"}), ("/v1/messages", {"messages": [{"role": "user", "content": "x"}]})],
)
@pytest.mark.parametrize("n", [4, 0, "four"])
async def test_an_n_of_an_api_that_has_none_means_nothing(kit: Any, path: str, body: Any, n: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    arrivals = told(stage, e.RequestArrived)
    assert (await client.ask(body | {"model": "llama", "n": n, "max_tokens": 3}, path)).status == 200
    assert arrivals[0].choices == 1


async def test_best_of_is_relayed_and_counts_nothing(kit: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    arrivals = told(stage, e.RequestArrived)
    await client.ask(COMPLETION | {"prompt": "x", "n": 2, "best_of": 4}, "/v1/completions")
    assert arrivals[0].choices == 2
    assert stage.engines[0].asked[0].json["best_of"] == 4


@pytest.mark.parametrize("prompt", [["x"] * 3000, [[1]] * 3000, ["x"] * 1500])
async def test_more_sequences_than_an_engine_could_run_are_refused_with_their_number(kit: Any, prompt: Any) -> None:
    stage = await kit.stage()
    client = await stage.client()
    answer = await client.ask(COMPLETION | {"prompt": prompt, "n": 2}, "/v1/completions")
    assert (answer.status, answer.error["param"]) == (400, "prompt")
    assert str(SEQUENCES_MAX) in answer.error["message"]


@given(st.lists(st.text(max_size=12), max_size=6), st.booleans(), st.booleans())
def test_prompts_are_counted_as_json_counts_them(texts: list[str], ascii_only: bool, spaced: bool) -> None:
    document = {"prompt": texts}
    body = json.dumps(document, ensure_ascii=ascii_only, indent=1 if spaced else None).encode("utf-8", "surrogatepass")
    try:
        body.decode()
    except UnicodeDecodeError:
        return
    scan = scan_body(body, Route.COMPLETIONS)
    assert len(scan.prompts) == (len(texts) if len(texts) > 1 else 0)


@given(st.lists(st.lists(st.integers(-5, 10**5), max_size=6), min_size=1, max_size=6), st.booleans())
def test_lists_of_ids_are_counted_as_json_counts_them(lists: list[list[int]], spaced: bool) -> None:
    scan = scan_body(json.dumps({"prompt": lists}, indent=1 if spaced else None).encode(), Route.COMPLETIONS)
    if lists[0]:
        assert scan.prompt_tokens == sum(map(len, lists))
        assert scan.prompts == (tuple(map(len, lists)) if len(lists) > 1 else ())


async def test_a_tokenizer_counts_each_prompt_of_a_list(kit: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    words.save(str(tmp_path / "tokenizer.json"))
    stage = await kit.stage(tokenizer=tmp_path / "tokenizer.json")
    client = await stage.client()
    arrivals = told(stage, e.RequestArrived)

    await client.ask(COMPLETION | {"prompt": ["hello " * 3, "hello", "hello " * 3000]}, "/v1/completions")

    assert arrivals[0].prompts == (3, 1, 3000)


async def test_tokens_of_a_stream_are_told_by_their_sequence(kit: Any) -> None:
    def token(index: int, reason: str | None = None) -> bytes:
        return kit.event({"choices": [{"index": index, "text": "x", "finish_reason": reason}]})

    async def script(line: Any, asked: Any) -> None:
        await line.send(kit.SSE_HEAD + kit.chunk(token(0) + token(1)) + kit.chunk(token(2)))
        await seen.wait()
        await line.send(kit.chunk(token(1, "stop") + token(0)) + kit.chunk(token(0, "length") + token(2, "length")))
        await line.send(kit.chunk(kit.DONE) + b"0\r\n\r\n")

    seen = asyncio.Event()
    stage = await kit.stage(script)
    client = await stage.client()
    tokens, ends = told(stage, e.TokensReceived), []
    await client.send(kit.post(COMPLETION | {"prompt": "x", "n": 3, "stream": True}, "/v1/completions"))
    await stage.until(lambda: sum(event.tokens for event in tokens) == 3)
    assert stage.gateway.core.status(0.0).instances[0].decodes == 3
    ends = told(stage, e.SequenceEnded)
    seen.set()
    answer = await client.answer()

    assert answer.events[-1] == "[DONE]"
    assert sorted(event.sequence for event in tokens for _ in range(event.tokens)) == [0, 0, 0, 1, 1, 2, 2]
    assert [event.sequence for event in ends] == [1, 0, 2]
    tier = stage.gateway.core.status(0.0).tiers[1]
    assert tier.tokens_met + tier.tokens_missed == 7
    assert sum(tier.ttft.counts) == 1
    assert stage.outcomes() == {"completed": 1}


async def test_tokens_that_came_several_in_an_event_are_told_from_usage(kit: Any) -> None:
    async def script(line: Any, asked: Any) -> None:
        for index in (0, 1, 0, 1):  # four tokens in each
            await line.send(
                kit.SSE_HEAD * (not sent) + kit.chunk(kit.event({"choices": [{"index": index, "text": "x"}]}))
            )
            sent.append(index)
        usage = kit.event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 16}})
        await line.send(kit.chunk(usage + kit.DONE) + b"0\r\n\r\n")

    sent: list[int] = []
    stage = await kit.stage(script)
    await (await stage.client()).ask(COMPLETION | {"prompt": "x", "n": 2, "stream": True}, "/v1/completions")

    tier = stage.gateway.core.status(0.0).tiers[1]
    assert tier.tokens_met + tier.tokens_missed == 16
