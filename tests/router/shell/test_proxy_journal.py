"""/debug/journal: a router's events and decisions over real HTTP, and `multislo replay-journal`, which plays them again."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, ClientTimeout
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result

from multislo.command import main
from multislo_router.core.config import EngineLimits
from multislo_router.core.events import TokensReceived
from multislo_router.shell import recording
from multislo_router.shell.admin import Admin

SECRET = "correct horse battery staple"


@asynccontextmanager
async def listening(stage: Any) -> AsyncIterator[TestServer]:
    async with TestServer(Admin(stage.gateway, model="llama", placement="Pack").application()) as server:
        yield server


@asynccontextmanager
async def reading(server: TestServer, query: str = "?seconds=600") -> AsyncIterator[ClientResponse]:
    async with (
        ClientSession(timeout=ClientTimeout(total=60)) as session,
        session.get(server.make_url(f"/debug/journal{query}")) as answer,
    ):
        yield answer


async def ended(stage: Any, answer: ClientResponse) -> bytes:
    """All of the journal, once its router closes."""
    await stage.gateway.shutdown(5.0)
    return await answer.read()


def replayed(journal: bytes, *options: str) -> Result:
    return CliRunner().invoke(main, ["replay-journal", "-", *options], input=journal)


def summary_of(journal: bytes) -> tuple[int, dict[str, Any]]:
    result = replayed(journal, "--json")
    return result.exit_code, json.loads(result.output)


def last_of(journal: bytes) -> Any:
    return json.loads(journal.splitlines()[-1])


async def some_traffic(kit: Any, stage: Any) -> None:
    """Streams and whole answers of all tiers, a client that leaves, refusals, and readings of the status."""
    asks = [
        (kit.STREAM, ""),
        (kit.CHAT, "x-slo-tier: batch\r\n"),
        (kit.STREAM | {"n": 3}, "x-slo-tpot-ms: 70\r\n"),
        (kit.CHAT | {"max_tokens": 1_000_000}, ""),
        (kit.STREAM, "x-slo-ttft-ms: 2\r\nx-slo-tier: realtime\r\n"),
    ]
    clients = [await stage.client() for _ in range(20)]
    for turn in range(3):
        await asyncio.gather(*[c.ask(*_asked(asks[(i + turn) % len(asks)])) for i, c in enumerate(clients)])
        stage.gateway.status(asyncio.get_running_loop().time())
    leaving = await stage.client()
    await leaving.send(kit.post(kit.STREAM))
    leaving.reset()
    await stage.until(lambda: not stage.in_flight())


def _asked(ask: tuple[Any, str]) -> tuple[Any, str, str]:
    return ask[0] | {"messages": [{"role": "user", "content": SECRET}]}, "/v1/chat/completions", ask[1]


async def test_a_journal_of_real_traffic_plays_again_with_every_decision_the_same(kit: Any) -> None:
    turn = count(1)

    async def flaky(line: Any, asked: Any) -> None:
        if next(turn) % 9:
            await kit.complete(line, asked)
        else:
            line.reset()

    stage = await kit.stage(flaky, flaky, flaky)
    async with listening(stage) as server, reading(server) as answer:
        assert (answer.status, answer.content_type) == (200, "application/x-ndjson")
        await some_traffic(kit, stage)
        journal = await ended(stage, answer)

    code, summary = summary_of(journal)
    assert (code, summary["first_difference"]) == (0, None)
    assert summary["same"] == summary["decisions"] >= 60
    assert summary["in_flight"] == 0
    assert last_of(journal) == {"end": "router_closing", "events": summary["events"]}
    kinds = {json.loads(line).get("event") for line in journal.splitlines()}
    assert {"TokensReceived", "RequestEnded", "PromptMeasured", "SendFailed", "InstanceFailed"} <= kinds
    assert b'"status"' in journal
    assert SECRET.encode() not in journal
    assert stage.gateway.recording is None


async def test_a_journal_that_begins_amid_requests_plays_again_with_every_decision_the_same(kit: Any) -> None:
    go = asyncio.Event()

    async def slow(line: Any, asked: Any) -> None:
        await go.wait()
        await kit.complete(line, asked)

    stage = await kit.stage(slow, slow, core=replace(kit.CORE, engine=EngineLimits(kv_tokens_max=400_000, seqs_max=8)))
    clients = [await stage.client() for _ in range(40)]
    for client in clients[:30]:
        await client.send(kit.post(kit.STREAM, headers="x-slo-tier: batch\r\n"))
    await stage.until(lambda: len(stage.gateway.core.requests) == 30)
    stage.gateway.fleet.failed(stage.gateway.fleet.instances["i1"])
    held = len(stage.gateway.core.requests) - len(stage.gateway.core.places)
    async with listening(stage) as server, reading(server) as answer:
        for client in clients[30:]:
            await client.send(kit.post(kit.STREAM))
        go.set()
        await asyncio.gather(*[client.answer() for client in clients])
        journal = await ended(stage, answer)

    code, summary = summary_of(journal)
    assert (code, summary["in_flight"], summary["first_difference"]) == (0, 30, None)
    assert summary["decisions"] >= 10 + held > 10
    assert "30 requests were under way before" in replayed(journal).output


async def test_a_journal_ends_when_its_time_is_over_and_the_next_may_begin(kit: Any) -> None:
    stage = await kit.stage()
    async with listening(stage) as server:
        for _ in range(2):
            async with reading(server, "?seconds=1") as answer:
                assert last_of(await answer.read())["end"] == "time"
            await stage.until(lambda: stage.gateway.recording is None)


async def test_a_journal_ends_with_its_last_event(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "EVENTS_MAX", 3)
    stage = await kit.stage()
    async with listening(stage) as server, reading(server) as answer:
        await (await stage.client()).ask(kit.STREAM)
        journal = await answer.read()
    assert last_of(journal) == {"end": "events", "events": 3}
    assert len(journal.splitlines()) == 5
    result = replayed(journal)
    assert "the journal ended before its time: events" in result.output


async def test_a_reader_that_is_too_slow_ends_its_journal_and_costs_no_more_memory(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "BUFFER_BYTES_MAX", 200_000)
    stage = await kit.stage()
    async with listening(stage) as server, reading(server) as answer:
        while stage.gateway.recording.ended is None:
            for _ in range(1000):  # of nobody's request, faster than anybody reads
                stage.gateway.tell(TokensReceived(0.0, 10**6))
        assert len(stage.gateway.recording._buffer) < 220_000
        journal = await answer.read()
    assert last_of(journal)["end"] == "slow_reader"
    assert len(journal) < 220_000


async def test_a_reader_that_reads_nothing_is_given_up(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multislo_router.shell.admin.JOURNAL_REST_S", 0.0)
    stage = await kit.stage()
    async with listening(stage) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port, limit=1024)
        writer.write(b"GET /debug/journal?seconds=1 HTTP/1.1\r\nhost: r\r\n\r\n")
        await stage.until(lambda: stage.gateway.recording is not None)
        for _ in range(190_000):  # 15 MB: more than sockets hold, less than the router
            stage.gateway.tell(TokensReceived(0.0, 10**6))
        assert stage.gateway.recording.ended is None
        await stage.until(lambda: stage.gateway.recording is None)
        data = b""
        while more := await reader.read(1 << 20):
            data += more
        assert not data.endswith(b"0\r\n\r\n"), "a journal that is cut off does not look whole"
        writer.close()


async def test_a_second_reader_is_told_that_there_is_one_already(kit: Any) -> None:
    stage = await kit.stage()
    async with listening(stage) as server, reading(server):
        async with reading(server) as second:
            assert second.status == 409
            assert "one at a time" in (await second.json())["error"]["message"]
        assert stage.gateway.recording is not None


async def test_a_reader_that_goes_ends_its_journal(kit: Any) -> None:
    stage = await kit.stage()
    async with listening(stage) as server:
        async with reading(server) as answer:
            await answer.content.readline()
        await stage.until(lambda: stage.gateway.recording is None)


@pytest.mark.parametrize("seconds", ["0", "601", "-3", "1.5", "x", "", "9" * 5000])
async def test_a_wrong_time_is_refused_with_the_legal_ones(kit: Any, seconds: str) -> None:
    stage = await kit.stage()
    async with listening(stage) as server, reading(server, f"?seconds={seconds}") as answer:
        assert answer.status == 400
        [problem] = (await answer.json())["error"]["problems"]
        assert not stage.gateway.recording
    assert (problem["path"], problem["legal"]) == ("seconds", "a whole number from 1 to 600")


async def test_an_event_that_cannot_be_written_ends_the_journal_and_nothing_else(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = await kit.stage()
    async with listening(stage) as server, reading(server) as answer:
        monkeypatch.setattr("multislo_router.journal.event_line", lambda event, decisions: 1 // 0)
        assert (await (await stage.client()).ask(kit.CHAT)).status == 200
        assert last_of(await answer.read()) == {"end": "router_failed", "events": 0}


async def test_an_event_on_which_the_core_fails_is_in_the_journal(kit: Any) -> None:
    stage = await kit.stage()
    async with listening(stage) as server, reading(server) as answer:
        core = stage.gateway.core
        handle, core.handle = core.handle, lambda event: 1 // 0
        assert (await (await stage.client()).ask(kit.CHAT)).status == 500
        core.handle = handle
        await stage.until(lambda: not stage.in_flight())
        journal = await ended(stage, answer)
    result = replayed(journal)
    assert result.exit_code == 1
    assert "failed: ZeroDivisionError" in result.output


# -- the command on a file ---------------------------------------------------------------------------------------------


@pytest.fixture
async def journal(kit: Any) -> bytes:
    stage = await kit.stage()
    async with listening(stage) as server, reading(server) as answer:
        client = await stage.client()
        for _ in range(3):
            await client.ask(kit.STREAM)
        await stage.until(lambda: not stage.in_flight())
        return await ended(stage, answer)


def changed(journal: bytes, number: int, line: bytes) -> bytes:
    lines = journal.splitlines(keepends=True)
    lines[number - 1] = line
    return b"".join(lines)


def placed(journal: bytes) -> int:
    """The number of the first line with a decision."""
    return next(number for number, line in enumerate(journal.splitlines(), 1) if b'"decision"' in line)


async def test_each_decision_is_a_line_with_its_figures(journal: bytes, tmp_path: Path) -> None:
    file = tmp_path / "journal"
    file.write_bytes(journal)
    result = CliRunner().invoke(main, ["replay-journal", str(file)])
    assert result.exit_code == 0, result.output
    first, *_ = result.output.splitlines()
    assert "request 1  interactive  i0  Place own_tier: first token predicted after 0." in first
    assert first.endswith("[same]")
    assert "3 of 3 decisions are the same" in result.output


@pytest.mark.parametrize(
    ("field", "value", "verdict", "words"),
    [
        ("instance", "i7", "differs", "1 differ"),
        ("load", 0.5, "other figures", "1 are the same choice by other figures"),
    ],
)
async def test_a_decision_that_is_another_one_than_recorded_is_shown_beside_it(
    journal: bytes, field: str, value: object, verdict: str, words: str
) -> None:
    number = placed(journal)
    line = json.loads(journal.splitlines()[number - 1])
    line["decisions"][0][field] = value
    other = changed(journal, number, json.dumps(line).encode() + b"\n")

    result = replayed(other)
    assert result.exit_code == 1
    assert "2 of 3 decisions are the same" in result.output
    assert words in result.output
    assert f"[{verdict}]" in result.output
    assert f"recorded, line {number}" in result.output
    assert replayed(other, "--choices").exit_code == (verdict == "differs")
    code, summary = summary_of(other)
    first = summary["first_difference"]
    assert (code, first["line"], first["verdict"]) == (1, number, verdict)
    assert first["recorded"][field] == value != first["replayed"][field]


async def test_a_decision_that_only_one_side_took_differs(journal: bytes) -> None:
    number = placed(journal)
    line = json.loads(journal.splitlines()[number - 1])
    del line["decisions"]
    code, summary = summary_of(changed(journal, number, json.dumps(line).encode() + b"\n"))
    assert (code, summary["different"], summary["first_difference"]["recorded"]) == (1, 1, None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken\n", "malformed"),
        (b"\xff\n", "malformed"),
        (b"[]\n", "Expected `object`"),
        (b"{}\n", "must have one of the keys event, status and end"),
        (b'{"event": "Gone", "now": 1.0}\n', "event: 'Gone' must be one of RequestArrived, "),
        (b'{"event": "Tick"}\n', "Tick: .*now"),
        (b'{"event": "Tick", "now": 1.0, "then": 2}\n', "Tick: .*then"),
        (b'{"event": "Tick", "now": "noon"}\n', "Tick.now: Expected `float`, got `str`"),
        (b'{"event": "RequestEnded", "now": 1, "request": 1, "outcome": "eaten"}\n', "RequestEnded.outcome: .*eaten"),
        (b'{"event": "FleetChanged", "now": 1.0, "instances": 7}\n', "FleetChanged.instances: Expected `array`"),
        (b'{"event": "FleetChanged", "now": 1.0, "instances": [{"id": 7}]}\n', r"instances\[0\].id: Expected `str`"),
        (b'{"event": "Tick", "now": 1.0, "decisions": [3]}\n', "Expected `object`"),
        (b'{"event": "Tick", "now": 1.0, "decisions": [{"request": [1]}]}\n', "Expected `int . null`"),
    ],
)
async def test_a_broken_line_is_named_with_the_reason(journal: bytes, line: bytes, reason: str) -> None:
    result = replayed(changed(journal, 3, line))
    assert result.exit_code == 2
    assert f"line 3: {reason}" in result.output or _found(f"line 3: .*{reason}", result.output), result.output


def _found(pattern: str, text: str) -> bool:
    import re

    return re.search(pattern, text) is not None


async def test_a_file_that_is_cut_off_says_so(journal: bytes) -> None:
    result = replayed(journal[:-40])
    assert result.exit_code == 2
    assert "the file is cut off here" in result.output

    result = replayed(b"".join(journal.splitlines(keepends=True)[:-1]))
    assert result.exit_code == 0, result.output
    assert "the journal has no last line" in result.output


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"", "truncated"),
        (b"7\n", "no journal of a router"),
        (b'{"journal": 2}\n', "journal 2 must be 1"),
        (b'{"journal": 1}\n', "missing required field"),
    ],
)
async def test_a_file_that_is_no_journal_is_refused(first: bytes, reason: str) -> None:
    result = replayed(first)
    assert result.exit_code == 2
    assert "line 1: " in result.output
    assert reason in result.output


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ([], "list index out of range"),
        ([["global", "os:system"]], "os:system is no part of a core"),
        ([["multislo_router.core.machine:Gone", {}]], "Gone"),
        ([["multislo_router.core.tier:Tier", {}]], "its first object is none"),
        (
            [
                ["multislo_router.core.machine:RouterCore", {"config": [1]}],
                ["multislo_router.core.tier:Tier", {"gone": 1}],
            ],
            "gone",
        ),
        ([["multislo_router.core.machine:RouterCore", {"config": [7]}]], "list index out of range"),
        ([["multislo_router.core.machine:RouterCore", {}], 7], "int"),
    ],
)
async def test_a_state_of_another_version_is_refused_with_both_versions(journal: bytes, part: Any, reason: str) -> None:
    header = json.loads(journal.splitlines()[0]) | {"state": part, "version": "9.8.7"}
    result = replayed(changed(journal, 1, json.dumps(header).encode() + b"\n"))
    assert result.exit_code == 2
    assert "line 1: state: not of a core of this version: " in result.output
    assert reason in result.output
    assert "multislo 9.8.7 wrote it" in result.output
