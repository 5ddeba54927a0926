"""The router's own failures: whatever raises, wherever, each client gets one answer or sees its connection end, the process goes on
serving, and every count returns to zero."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from faults import Fault, Injected
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import multislo_router.core
import multislo_router.shell
from multislo_router.core import events as e
from multislo_router.shell import engine
from multislo_router.shell.exchange import Exchange

ROOMS = [Path(room.__file__).parent for room in (multislo_router.core, multislo_router.shell)]
GUARDS = frozenset(
    {
        "internal_errors.py",
        "_accept",
        "_connect",
        "_loop_failed",
        "_sweep",
        "_wake",
        "arrive",
        "connection_lost",
        "connection_made",
        "watch",
    }
)
"""What ends others when they fail: nothing is left to catch an exception at its very door."""


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    path = tmp_path / "tokenizer.json"
    words.save(str(path))
    return path


def chat(text: bytes) -> bytes:
    return b'{"model": "llama", "messages": [{"role": "user", "content": "%b"}]}' % text


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("padding", [0, 10_000])
@pytest.mark.parametrize(
    "bad",
    [b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe2\x82", "\u00e9".encode("utf-16")],
)
async def test_a_message_that_is_no_utf_8_is_a_400_whatever_its_size(
    kit: Any, tokenizer: Path, bad: bytes, padding: int, counted: bool
) -> None:
    stage = await kit.stage(**({"tokenizer": tokenizer} if counted else {}))
    client = await stage.client()

    for body in (
        chat(b"hello " * padding + bad),
        b'{"model": "%b", "prompt": "%b"}' % (bad, b"x" * padding),
        b'{"%b": 1, "prompt": "%b"}' % (bad, b"x" * padding),
    ):
        answer = await client.ask(body)
        assert (answer.status, answer.headers["x-multislo-reason"]) == (400, "invalid_json")
        assert "not valid UTF-8" in answer.error["message"]
    assert (await client.ask(kit.CHAT)).status == 200
    assert not stage.gateway.errors.counts


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("padding", [0, 10_000])
@pytest.mark.parametrize("text", [rb"\ud800", rb"\udc00 x", rb"\ud800\ud800", b"[" * 5000, rb"\u00", b"\x00"])
async def test_text_that_no_tokenizer_could_read_is_a_400(
    kit: Any, tokenizer: Path, text: bytes, padding: int, counted: bool
) -> None:
    stage = await kit.stage(**({"tokenizer": tokenizer} if counted else {}))
    client = await stage.client()
    nested = b'{"messages": %b}' % text if text[:1] == b"[" else chat(b"hello " * padding + text)

    answer = await client.ask(nested)

    assert (answer.status, answer.headers["x-multislo-reason"]) == (400, "invalid_json")
    assert (await client.ask(kit.CHAT)).status == 200
    assert not stage.gateway.errors.counts


@pytest.mark.parametrize("words", [1, 20_000])
async def test_a_tokenizer_that_fails_costs_one_request_a_500(kit: Any, tokenizer: Path, words: int) -> None:
    class Panic(BaseException):
        """As a panic in Rust shows itself."""

    class Failing:
        def encode_batch_fast(self, *arguments: object, **options: object) -> list[list[int]]:
            raise Panic("index out of bounds")

    stage = await kit.stage(tokenizer=tokenizer)
    client = await stage.client()
    healthy = stage.gateway.lengths._tokenizer._tokenizer
    stage.gateway.lengths._tokenizer._tokenizer = Failing()
    failed = await client.ask({"model": "llama", "prompt": "hello " * words}, "/v1/completions")
    stage.gateway.lengths._tokenizer._tokenizer = healthy

    assert (failed.status, failed.headers["x-multislo-reason"]) == (500, "internal")
    assert sum(stage.gateway.errors.counts.values()) == 1
    assert (await client.ask(kit.CHAT)).status == 200


@pytest.mark.parametrize("event", [e.TokensReceived, e.PromptMeasured, e.RequestEnded, e.SendFailed, e.Tick])
async def test_an_exception_in_the_core_ends_the_request_that_its_event_was_about(kit: Any, event: type) -> None:
    released = asyncio.Event()

    async def script(line: Any, asked: Any) -> None:
        if event is e.SendFailed and len(stage.engines[0].asked) == 1:
            line.reset()
            return
        await line.send(kit.SSE_HEAD + kit.chunk(kit.token("one")))
        await released.wait()
        await line.send(kit.chunk(kit.USAGE) + kit.chunk(kit.DONE) + b"0\r\n\r\n")

    stage = await kit.stage(script)
    core = stage.gateway.core
    handle = core.handle

    def fails_once(told: Any) -> Any:
        if isinstance(told, event):
            core.handle = handle
            raise Injected("once")
        return handle(told)

    core.handle = fails_once
    client = await stage.client()
    await client.send(kit.post(kit.STREAM))
    if event is e.Tick:
        stage.gateway.tell(e.Tick(asyncio.get_running_loop().time()))
    released.set()
    answer = await client.rest() if event is e.TokensReceived else (await client.answer()).body

    if event is e.TokensReceived:
        assert b"the router failed on this request" in answer
        assert not answer.endswith(b"0\r\n\r\n")
    elif event is e.SendFailed:
        assert b"the router failed on this request" in answer
    else:
        assert answer.endswith(kit.DONE)  # the accounts failed, and not the answer
    await stage.until(lambda: not stage.in_flight() and not core.requests)
    assert stage.gateway.errors.counts["core"] == 1
    assert (await (await stage.client()).ask(kit.CHAT)).status == 200


async def test_one_decision_that_cannot_be_carried_out_hides_no_other_of_its_event(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = await kit.stage()
    stage.set_fleet()
    clients = [await stage.client() for _ in range(3)]
    for client in clients:
        await client.send(kit.post(kit.CHAT))
    await stage.until(lambda: stage.in_flight() == 3)
    unlucky = next(iter(stage.gateway.exchanges))
    send_to = Exchange.send_to

    def fails(exchange: Exchange, *arguments: Any) -> None:
        if exchange.id == unlucky:
            raise Injected("once")
        send_to(exchange, *arguments)

    monkeypatch.setattr(Exchange, "send_to", fails)
    stage.set_fleet(*stage.engines)

    statuses = [(await client.answer()).status for client in clients]

    assert statuses == [500, 200, 200]
    assert stage.gateway.errors.counts == {"decision": 1}


async def test_a_request_that_nothing_would_continue_is_found_and_ended(kit: Any) -> None:
    async def silent(line: Any, asked: Any) -> None:
        await line.gone()

    stage = await kit.stage(silent)
    client = await stage.client()
    await client.send(kit.post(kit.CHAT))
    await stage.until(lambda: bool(stage.engines[0].asked))
    (exchange,) = stage.gateway.exchanges.values()
    exchange.connection.exchange = None  # what a bug might do

    answer = await client.answer()

    assert (answer.status, answer.headers["x-multislo-reason"]) == (500, "internal")
    assert stage.gateway.errors.counts == {"lost": 1}


async def test_a_connection_to_an_engine_that_cannot_be_set_up_ends_its_request(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop itself would end neither the connection nor the wait for it."""
    stage = await kit.stage()
    client = await stage.client()

    def fails(*_: object) -> None:
        raise OSError(22, "Invalid argument")  # what some systems say of a socket whose peer has gone already

    monkeypatch.setattr(engine, "watch_peer", fails)
    failed = await client.ask(kit.CHAT)
    monkeypatch.undo()

    assert failed.status == 502
    assert stage.gateway.errors.counts == {"connect": 2}  # it was tried twice
    await stage.until(lambda: not any(i.failed.is_set() for i in stage.gateway.fleet.instances.values()))
    assert (await client.ask(kit.CHAT)).status == 200


async def test_timers_go_on_after_an_exception(kit: Any) -> None:
    stage = await kit.stage(idle_timeout_s=0.05)
    stage.gateway.fleet.close_idle = None
    client = await stage.client()
    await stage.until(lambda: stage.gateway.errors.counts["timer"] > 2)

    assert await client.rest() == b""
    del stage.gateway.fleet.close_idle


async def outcome_of(client: Any, sent: bytes, expected: dict[int, bytes]) -> str:
    """Sends one request; "answered", "failed" or "cut", and nothing else may come."""
    try:
        await client.send(sent)
        answer = await client.answer()
    except (ConnectionError, asyncio.IncompleteReadError):
        return "cut"
    if answer.status == 200:
        if answer.body == expected[200]:
            return "answered"
        assert b'"error"' in answer.body, answer.body
        return "failed"
    assert answer.status in (500, 502, 503), (answer.status, answer.body)
    assert json.loads(answer.body)["error"]["message"]
    return "failed"


def tell_fleet(stage: Any, engines: list[Any]) -> bool:
    """Whether it failed: the operator gets a 500 then, and says it all again."""
    try:
        stage.set_fleet(*engines)
        return False
    except (Injected, RuntimeError):
        stage.set_fleet(*engines)
        return True


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 2500))
def test_an_exception_anywhere_leaves_nobody_without_an_answer(tell: Any, number: int) -> None:
    async def story(kit: Any) -> None:
        stream = b"".join([kit.ROLE, *map(kit.token, ("Hi", " there", "!")), kit.DONE])
        stage = await kit.stage()
        first, second = await stage.client(), await stage.client()
        with Fault(number, *ROOMS, spared=GUARDS) as fault:
            held = await stage.client()
            told_operator = tell_fleet(stage, [])
            with contextlib.suppress(ConnectionError):
                await held.send(kit.post(kit.CHAT))
            await asyncio.sleep(0.005)
            told_operator |= tell_fleet(stage, stage.engines)
            for client, document, body in (
                (first, kit.STREAM, stream),
                (first, kit.CHAT, kit.COMPLETION),
                (second, kit.STREAM, stream),
            ):
                async with asyncio.timeout(kit.PATIENCE_S):
                    await outcome_of(client, kit.post(document), {200: body})
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                assert (await held.answer()).status in (200, 500, 502)
            leaver = await stage.client()
            with contextlib.suppress(ConnectionError):
                await leaver.send(kit.post(kit.STREAM))
            leaver.reset()
            await asyncio.sleep(0.01)
        if fault.at is not None:
            assert told_operator or stage.gateway.errors.counts, fault.at
        await stage.until(lambda: not stage.in_flight() and not stage.gateway.exchanges)
        stage.set_fleet(*stage.engines)
        await stage.until(lambda: all(not i.failed.is_set() for i in stage.gateway.fleet.instances.values()))
        assert (await (await stage.client()).ask(kit.CHAT)).status == 200, fault.at

    tell(story)
