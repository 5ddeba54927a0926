"""Engines that are killed under load: how the ends of requests are judged, and a short storm over a real fleet."""

import asyncio
import json
from pathlib import Path
from random import Random
from time import monotonic

import pytest
from click.testing import CliRunner

from multislo.command import main
from multislo_api.manifest import load_manifest
from multislo_bench.chaos import Answer, Ask, Load, Verdict, asks, manifest, verdict_of

ERROR = b'{"error":{"message":"the engine failed","type":"server_error","param":null,"code":"engine_failed"}}'
TOKEN = b'data: {"choices":[{"text":" a"}]}\n\n'
CHAT_TOKEN = b'data: {"choices":[{"delta":{"content":" a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR_EVENT = b"data: " + ERROR + b"\n\n"


def ask(streaming: bool = True) -> Ask:
    return Ask(0.0, "batch", False, streaming, 10, 2, None)


def answer(body: bytes, status: int = 200, whole: bool = True) -> Answer:
    return Answer(status, bytearray(body), whole, None if whole else "connection closed")


@pytest.mark.parametrize(
    ("got", "verdict"),
    [
        (answer(TOKEN * 2 + DONE), Verdict.COMPLETE),
        (answer(CHAT_TOKEN * 2 + DONE), Verdict.COMPLETE),
        (answer(TOKEN + ERROR_EVENT, whole=False), Verdict.ERROR_EVENT),
        (answer(TOKEN + b'data: {"cho' + b"\n\n" + ERROR_EVENT, whole=False), Verdict.ERROR_EVENT),
        (answer(ERROR, status=503), Verdict.REFUSED),
        (answer(TOKEN + DONE), Verdict.UNCLEAR),
        (answer(TOKEN * 2), Verdict.UNCLEAR),
        (answer(TOKEN * 2, whole=False), Verdict.UNCLEAR),
        (answer(TOKEN * 2 + DONE, whole=False), Verdict.UNCLEAR),
        (answer(TOKEN + ERROR_EVENT + ERROR_EVENT), Verdict.UNCLEAR),
        (answer(TOKEN + ERROR_EVENT + DONE), Verdict.UNCLEAR),
        (answer(TOKEN * 2 + DONE + ERROR_EVENT), Verdict.UNCLEAR),
        (answer(TOKEN + b'data: {"cho', whole=False), Verdict.UNCLEAR),
        (answer(b"Bad Gateway", status=502), Verdict.UNCLEAR),
        (answer(ERROR[:-1], status=503, whole=False), Verdict.UNCLEAR),
        (answer(b"", status=0, whole=False), Verdict.UNCLEAR),
    ],
)
def test_only_a_whole_answer_or_one_error_is_a_clear_end(got: Answer, verdict: Verdict) -> None:
    assert verdict_of(got, ask())[0] is verdict


def test_an_answer_that_does_not_stream_must_have_all_its_tokens() -> None:
    whole = json.dumps({"choices": [{"text": " a a"}], "usage": {"completion_tokens": 2}}).encode()
    short = whole.replace(b": 2", b": 1")

    assert verdict_of(answer(whole), ask(streaming=False))[0] is Verdict.COMPLETE
    assert verdict_of(answer(short), ask(streaming=False))[0] is Verdict.UNCLEAR
    assert verdict_of(answer(whole[:-3], whole=False), ask(streaming=False))[0] is Verdict.UNCLEAR


async def test_a_server_that_hangs_up_without_a_word_is_unclear() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        load = Load(server.sockets[0].getsockname()[1], Random(1), monotonic() + 30.0)
        verdict, cause = await load.ask(ask())

    assert verdict is Verdict.UNCLEAR
    assert cause.startswith("no answer")


def test_the_load_is_the_same_for_one_seed_and_of_every_kind() -> None:
    made = asks(60.0, 20.0, Random(3))

    assert made == asks(60.0, 20.0, Random(3))
    assert {(one.tier, one.chat, one.streaming) for one in made} == {
        (tier, chat, streaming)
        for tier in ("realtime", "standard", "batch")
        for chat in (True, False)
        for streaming in (True, False)
    }
    assert any(one.leaves_after_s is not None for one in made)


@pytest.mark.parametrize("engines", [3, 4, 6])
def test_the_fleet_has_so_many_engines(engines: int, tmp_path: Path) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(json.dumps(manifest(engines, 30_000, 30_001)))

    made = load_manifest(path)

    assert sum(tier.instances.min for tier in made.spec.tiers) == engines


def test_no_request_ends_unclearly_while_an_engine_dies_each_second() -> None:
    result = CliRunner().invoke(main, ["bench", "chaos", "--seconds", "8", "--engines", "3", "--rate", "4", "--json"])

    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["unclear"] == 0
    assert document["left_over"] == []
    assert document["complete"] > 0
    assert document["kills"] + document["kills_missed"] == 8


def test_wrong_use_of_chaos_exits_2() -> None:
    assert CliRunner().invoke(main, ["bench", "chaos", "--engines", "2"]).exit_code == 2
