"""Random lives of the data path: clients that split, pipeline, vanish and stop reading, engines that misbehave in every known way, a
fleet that changes under them. Whatever happens, each request gets one well-formed answer or its client sees a cut, nobody gets a byte
of somebody else's, the core's invariants hold after every event, and all counts are zero at the end."""

import asyncio
import contextlib
import itertools
import json
import re
from dataclasses import dataclass, field
from typing import Any

import httptools
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NONCE = re.compile(rb"nonce-[0-9]+-[0-9]+")
TOKENS = 4
QUICK = {
    "engine_silence_timeout_s": 1.0,
    "reader_stall_timeout_s": 2.0,
    "linger_timeout_s": 0.1,
    "connect_timeout_s": 2.0,
    "engine_idle_timeout_s": 0.5,
    "write_buffer_max_bytes": 16 * 1024,
    "held_max_bytes": 1024 * 1024,
}

# -- what engines do ---------------------------------------------------------------------------------------------------

WELL = ("answers", "answers", "answers", "in pieces", "closes behind it", "interim first", "without a length", "large")
ILL = (
    "resets at once",
    "closes at once",
    "resets behind the head",
    "resets in the middle",
    "closes in the middle",
    "falls silent",
    "400",
    "429",
    "500",
    "503",
    "talks nonsense",
    "breaks a chunk",
    "says too much",
    "switches protocols",
    "error event",
)


@dataclass(frozen=True)
class Habits:
    """Of one engine: what it does with its first request, its second, ...; in the end it is well."""

    deeds: list[str]
    cuts: list[int]


HABITS = st.builds(Habits, st.lists(st.sampled_from(WELL + ILL), max_size=8), st.lists(st.integers(1, 600), max_size=5))


class Fuzzed:
    """The script of one engine."""

    def __init__(self, kit: Any, habits: Habits) -> None:
        self.kit = kit
        self.habits = habits
        self.asked = 0
        self.well = False

    async def __call__(self, line: Any, asked: Any) -> None:
        deed = self.habits.deeds[self.asked] if self.asked < len(self.habits.deeds) and not self.well else "answers"
        self.asked += 1
        nonce = NONCE.search(asked.body)
        name = nonce[0] if nonce is not None else b"nobody"
        stream = asked.line.startswith("POST /v1/") and bool(asked.json.get("stream"))
        await self._do(line, deed, name, stream)

    async def _do(self, line: Any, deed: str, name: bytes, stream: bool) -> None:
        whole = self.answer(name, stream)
        if deed in ("resets at once", "closes at once"):
            line.reset() if deed[0] == "r" else line.writer.close()
        elif deed.isdigit():
            body = json.dumps(
                {"error": {"message": f"said by the engine: {name.decode()}", "code": int(deed)}}
            ).encode()
            await line.send(self.kit.sized(body, f"{deed} No", "retry-after: 1\r\n" if deed in ("429", "503") else ""))
        elif deed == "falls silent":
            await line.send(whole[: len(whole) // 2] if len(name) % 2 else b"")
            await line.gone()
        elif deed == "talks nonsense":
            await line.send(b"HTTP/9.9 soon\r\n\r\n" + name)
        elif deed == "switches protocols":
            await line.send(b"HTTP/1.1 101 Sure\r\nupgrade: x\r\n\r\n" + name)
        elif deed == "interim first":
            await line.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + whole)
        elif deed == "error event" and stream:
            event = self.kit.event({"error": {"message": f"in the stream: {name.decode()}"}})
            await line.send(self.kit.SSE_HEAD + self.kit.chunk(event) + b"0\r\n\r\n")
        else:
            await self._send_badly(line, deed, whole, name, stream)

    async def _send_badly(self, line: Any, deed: str, whole: bytes, name: bytes, stream: bool) -> None:
        head = whole.index(b"\r\n\r\n") + 4
        if deed == "without a length":
            lines = [part for part in whole[:head].split(b"\r\n") if b"length" not in part and b"encoding" not in part]
            await line.send(b"\r\n".join(lines) + self.content(name, stream))
            line.writer.close()
        elif deed == "large":
            await self._pieces(line, self.answer(name, stream, padding=60_000))
        elif deed == "in pieces":
            await self._pieces(line, whole)
        elif deed == "breaks a chunk" and stream:
            await line.send(whole[: head + 40].replace(b"\r\n{", b"\r\n\r\n") + b"zz\r\n" + name)
        elif deed == "says too much":
            await line.send(whole + b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong")
        elif deed.endswith("behind the head"):
            await line.send(whole[:head])
            await asyncio.sleep(0.005)
            line.reset()
        elif deed.endswith("in the middle"):
            await line.send(whole[: (head + len(whole)) // 2])
            await asyncio.sleep(0.005)
            line.reset() if deed[0] == "r" else line.writer.close()
        else:
            await line.send(whole)
            if deed == "closes behind it":
                line.writer.close()

    async def _pieces(self, line: Any, data: bytes) -> None:
        edges = sorted({min(cut * 7, len(data)) for cut in self.habits.cuts} | {0, len(data)})
        for start, end in itertools.pairwise(edges):
            await line.send(data[start:end])
            await asyncio.sleep(0)

    def events(self, name: bytes, padding: int) -> list[bytes]:
        text = name.decode() + "x" * padding
        return [self.kit.ROLE, *(self.kit.token(text) for _ in range(TOKENS)), self.kit.DONE]

    def content(self, name: bytes, stream: bool, padding: int = 0) -> bytes:
        if stream:
            return b"".join(self.events(name, padding))
        return json.dumps({"text": name.decode() + "x" * padding, "usage": {"completion_tokens": 3}}).encode()

    def answer(self, name: bytes, stream: bool, padding: int = 0) -> bytes:
        if stream:
            chunks = b"".join(map(self.kit.chunk, self.events(name, padding)))
            return self.kit.SSE_HEAD + chunks + b"0\r\n\r\n"  # type: ignore[no-any-return]
        return self.kit.sized(self.content(name, stream, padding))  # type: ignore[no-any-return]


# -- what clients do ---------------------------------------------------------------------------------------------------

KINDS = ("stream", "stream", "chat", "chat", "completion", "models", "passed", "bad", "unknown")


@dataclass(frozen=True)
class Asks:
    kind: str
    chunked: bool
    upgrade: bool
    tier: str | None
    padding: int


ASKS = st.builds(
    Asks,
    st.sampled_from(KINDS),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "realtime", "interactive", "batch"]),
    st.sampled_from([0, 0, 0, 300, 5_000, 20_000, 100_000]),
)


@dataclass(frozen=True)
class Visit:
    """One connection. `vanishes_at` bytes of what it gets, it leaves; with `nonsense` its last bytes are no request."""

    asks: list[Asks]
    pipelines: bool
    cuts: list[int]
    vanishes_at: int | None
    leaves_by: str
    nonsense: bool
    reads_late: bool
    starts_ms: int


VISITS = st.builds(
    Visit,
    st.lists(ASKS, min_size=1, max_size=4),
    st.booleans(),
    st.lists(st.integers(1, 400), max_size=6),
    st.none() | st.integers(0, 900),
    st.sampled_from(["reset", "close"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 20),
)


class Answer:
    """What httptools makes of one answer."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.complete = False


@dataclass
class Client:
    """`answers` in the order of its requests; the last one may be incomplete."""

    kit: Any
    number: int
    visit: Visit
    answers: list[Answer] = field(default_factory=list)
    sent: int = 0
    got: int = 0
    left: bool = False
    ended: bool = False

    def nonce(self, index: int) -> bytes:
        return b"nonce-%d-%d" % (self.number, index)

    def wire(self, index: int) -> bytes:
        ask = self.visit.asks[index]
        if ask.kind == "models":
            return b"GET /v1/models HTTP/1.1\r\nhost: r\r\n\r\n"
        path = {"completion": b"/v1/completions", "passed": b"/tokenize"}.get(ask.kind, b"/v1/chat/completions")
        prompt = self.nonce(index).decode() + "y" * ask.padding
        document = {"model": "nobody" if ask.kind == "unknown" else "llama", "prompt": prompt, "max_tokens": TOKENS}
        body = json.dumps(document | ({"stream": True} if ask.kind == "stream" else {})).encode()
        if ask.kind == "bad":
            body = body[:-1]
        lines = b"" if ask.tier is None else b"x-slo-tier: %b\r\n" % ask.tier.encode()
        if ask.upgrade:
            lines += b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n"
        head = b"POST %b HTTP/1.1\r\nhost: r\r\n%b" % (path, lines)
        if not ask.chunked:
            return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)
        size = max(1, len(body) // 3)
        chunks = b"".join(self.kit.chunk(body[at : at + size]) for at in range(0, len(body), size))
        return head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

    # -- its life

    async def live(self, stage: Any) -> None:
        await asyncio.sleep(self.visit.starts_ms / 1000)
        raw = await stage.client()
        self._new_parser()
        reading = asyncio.create_task(self._read(raw))
        try:
            await self._write(raw)
            if self.visit.nonsense and not self.left:
                await raw.send(b"\x00NONSENSE\r\n\r\n")
            await asyncio.wait_for(asyncio.shield(reading), self.kit.PATIENCE_S)
        except (ConnectionError, RuntimeError):
            await asyncio.wait_for(asyncio.shield(reading), self.kit.PATIENCE_S)
        finally:
            reading.cancel()
            raw.reset()

    async def _write(self, raw: Any) -> None:
        wires = [self.wire(index) for index in range(len(self.visit.asks))]
        if self.visit.pipelines:
            wires = [b"".join(wires)]
        for index, wire in enumerate(wires):
            edges = sorted({min(cut * 11, len(wire)) for cut in self.visit.cuts} | {0, len(wire)})
            for start, end in itertools.pairwise(edges):
                if self.left or self.ended:
                    return
                await raw.send(wire[start:end])
                await asyncio.sleep(0)
            self.sent = len(self.visit.asks) if self.visit.pipelines else index + 1
            while not self.visit.pipelines and not self._answered(index + 1):
                if self.left or self.ended:
                    return
                await asyncio.sleep(0.001)

    def _answered(self, count: int) -> bool:
        return len([answer for answer in self.answers if answer.complete]) >= count

    async def _read(self, raw: Any) -> None:
        """Until everything is answered, the router closes the connection, or this client has had enough."""
        if self.visit.reads_late:
            raw.writer.transport.pause_reading()
            await asyncio.sleep(0.05)
            raw.writer.transport.resume_reading()
        wanted = len(self.visit.asks) + self.visit.nonsense
        while not self._answered(wanted):
            if self.visit.vanishes_at is not None and self.got >= self.visit.vanishes_at:
                self.left = True
                raw.reset() if self.visit.leaves_by == "reset" else raw.close()
                return
            try:
                data = await raw.reader.read(4096)
            except ConnectionError:
                data = b""
            if not data:
                self.ended = True
                return
            self.got += len(data)
            self._feed(data)

    # -- what it gets

    def _new_parser(self) -> None:
        self._parser = httptools.HttpResponseParser(self)

    def _feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.answers.append(Answer())

    def on_headers_complete(self) -> None:
        self.answers[-1].status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.answers[-1].body += body

    def on_message_complete(self) -> None:
        self.answers[-1].complete = True

    # -- what must hold of it

    def judge(self) -> None:
        assert len(self.answers) <= len(self.visit.asks) + self.visit.nonsense
        for index, answer in enumerate(self.answers):
            where = f"client {self.number}, answer {index}: {answer.status} {answer.body[:300]!r}"
            last = index == len(self.answers) - 1
            assert answer.complete or (last and (self.left or self.ended)), f"half an answer, and then more; {where}"
            if index < len(self.visit.asks):
                self._judge_answer(index, answer, where)
            else:
                assert answer.status == 400, where
        complete = sum(answer.complete for answer in self.answers)
        assert complete == len(self.visit.asks) + self.visit.nonsense or self.left or self.ended

    def _judge_answer(self, index: int, answer: Answer, where: str) -> None:
        ask = self.visit.asks[index]
        assert set(NONCE.findall(answer.body)) <= {self.nonce(index)}, f"somebody else's bytes; {where}"
        if not answer.complete:
            return
        if ask.kind == "models":
            assert answer.status == 200, where
        elif ask.kind in ("bad", "unknown"):
            assert answer.status == {"bad": 400, "unknown": 404}[ask.kind], where
        elif answer.status != 200:
            assert answer.status in (400, 408, 413, 429, 500, 502, 503, 504), where
            assert json.loads(answer.body)["error"]["message"], where
        elif ask.kind == "stream":
            events = [line for line in answer.body.decode().splitlines() if line.startswith("data: ")]
            failed = '"error"' in events[-1]
            assert failed or events[-1] == "data: [DONE]", where
            assert failed or len(NONCE.findall(answer.body)) == TOKENS, where
        else:
            assert json.loads(answer.body)["text"].startswith(self.nonce(index).decode()), where


# -- the fleet ---------------------------------------------------------------------------------------------------------

CHANGES = st.lists(
    st.tuples(st.integers(1, 40), st.sets(st.integers(0, 2)), st.sampled_from(["ready", "ready", "draining"])),
    max_size=4,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(HABITS, min_size=1, max_size=3),
    st.lists(VISITS, min_size=1, max_size=6),
    CHANGES,
    st.sampled_from([0.0, 0.03]),
)
def test_whatever_clients_engines_and_fleet_do_everybody_gets_an_answer_of_his_own(
    tell: Any,
    habits: list[Habits],
    visits: list[Visit],
    changes: list[tuple[int, set[int], str]],
    keep_alive_s: float,
) -> None:
    async def story(kit: Any) -> None:
        scripts = [Fuzzed(kit, one) for one in habits]
        stage = await kit.stage(*scripts, stream_keep_alive_s=keep_alive_s, **QUICK)
        gateway = stage.gateway
        handle = gateway.core.handle

        def checking(event: Any) -> Any:
            made = handle(event)
            gateway.core.check()
            return made

        gateway.core.handle = checking

        async def fleet_life() -> None:
            for pause_ms, members, state in changes:
                await asyncio.sleep(pause_ms / 1000)
                stage.set_fleet(*(engine for n, engine in enumerate(stage.engines) if n in members), state=state)
            await asyncio.sleep(0.02)
            for script in scripts:
                script.well = True
            stage.set_fleet(*stage.engines)

        clients = [Client(kit, number, visit) for number, visit in enumerate(visits)]
        async with asyncio.timeout(2 * kit.PATIENCE_S):
            await asyncio.gather(fleet_life(), *(client.live(stage) for client in clients))
        for client in clients:
            client.judge()
        await stage.until(lambda: not gateway.exchanges and not gateway.passing and not gateway.clients)
        assert gateway.rules.held.used == 0
        assert not gateway.errors.counts, gateway.errors.counts
        with contextlib.suppress(KeyError):
            assert not gateway.core.requests

    tell(story)
