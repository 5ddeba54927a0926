"""Real sockets around the gateway: scripted engines behind it, raw clients before it. Every test ends with the core's invariants and
all counts at zero."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import uvloop
from h200_law import LAW

from multislo_api.fleet import InstanceEntry, InstanceList
from multislo_router.core.config import CoreConfig, EngineLimits, Overload, TierConfig
from multislo_router.shell.gateway import Gateway
from multislo_router.shell.settings import ShellSettings

PATIENCE_S = 30.0

CORE = CoreConfig(
    tiers=(
        TierConfig("realtime", 0.3, 0.02, Overload.REJECT, 512),
        TierConfig("interactive", 5.0, 0.05, Overload.QUEUE, 1024),
        TierConfig("batch", 20.0, 0.1, Overload.BEST_EFFORT, 2048),
    ),
    default_tier="interactive",
    latency=LAW,
    engine=EngineLimits(kv_tokens_max=400_000),
    length_max=131_072,
)
SETTINGS = ShellSettings(
    served_names=("llama",), probe_first_s=0.02, probe_max_s=0.1, sweep_interval_s=0.02, health_timeout_s=30
)


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """The loop that the router runs on."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass
class Asked:
    """A request as an engine or a client's peer saw it."""

    head: bytes
    body: bytes

    @property
    def line(self) -> str:
        return self.head.partition(b"\r\n")[0].decode()

    @property
    def headers(self) -> dict[str, str]:
        return headers_of(self.head)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int
    head: bytes
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        return headers_of(self.head)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[str]:
        return [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]


def headers_of(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return (await reader.readuntil(b"\r\n\r\n"))[:-2]


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", ""):
        pieces = []
        while True:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            pieces.append(await reader.readexactly(size))
            await reader.readexactly(2)
            if not size:
                return b"".join(pieces)
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def sized(body: bytes, status: str = "200 OK", extra: str = "", kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{extra}\r\n".encode() + body


SSE_HEAD = b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def event(document: object) -> bytes:
    return b"data: " + (document if isinstance(document, bytes) else json.dumps(document).encode()) + b"\n\n"


def token(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return event({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})


ROLE = event({"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
USAGE = event({"id": "c", "choices": [], "usage": {"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3}})
DONE = event(b"[DONE]")
COMPLETION = json.dumps(
    {
        "id": "c",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi there"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "total_tokens": 12, "completion_tokens": 3},
        "prompt_logprobs": None,
    }
).encode()


class EngineLine:
    """One connection at an engine, in a script's hands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Until the router closes the connection."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[EngineLine, Asked], Awaitable[None]]


async def complete(line: EngineLine, asked: Asked) -> None:
    """What a healthy engine does."""
    if not asked.line.startswith("POST /v1/") or not asked.json.get("stream"):
        await line.send(sized(COMPLETION))
        return
    await line.send(SSE_HEAD + chunk(ROLE))
    for text in ("Hi", " there", "!"):
        await line.send(chunk(token(text)))
    await line.send(chunk(DONE) + b"0\r\n\r\n")


@dataclass(eq=False)
class Engine:
    """A scripted engine. `script` answers requests other than the router's own GETs of /health and /metrics."""

    script: Script = complete
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    metrics: bytes = b""
    healthy: bool = True
    says_its_health: asyncio.Event = field(default_factory=asyncio.Event)
    """While it is not set, GET /health gets no answer."""
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> None:
        self.says_its_health.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._serve(EngineLine(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)
            self._writers.discard(writer)

    async def _serve(self, line: EngineLine) -> None:
        counted = False
        while not line.writer.is_closing():
            head = await read_head(line.reader)
            headers = headers_of(head)
            body = b""
            if "content-length" in headers or "transfer-encoding" in headers:
                body = await read_body(line.reader, headers)
            asked = Asked(head, body)
            if asked.line.startswith("GET /health"):
                await self.says_its_health.wait()
                await line.send(sized(b"", "200 OK" if self.healthy else "503 No"))
            elif asked.line.startswith("GET /metrics"):
                await line.send(sized(self.metrics, kind="text/plain"))
            else:
                self.connections += not counted
                counted = True
                self.asked.append(asked)
                await self.script(line, asked)

    async def stop(self) -> None:
        """As a crash: the port refuses, every connection is reset."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class RawClient:
    """A client that writes and reads bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head_only: bool = False) -> Answer:
        async with asyncio.timeout(PATIENCE_S):
            head = await read_head(self.reader)
            status = int(head.split()[1])
            bodyless = head_only or status < 200 or status in (204, 304)
            body = b"" if bodyless else await read_body(self.reader, headers_of(head))
            return Answer(status, head, body)

    async def rest(self) -> bytes:
        """All that comes until the router closes the connection."""
        data = b""
        async with asyncio.timeout(PATIENCE_S):
            try:
                while more := await self.reader.read(65536):
                    data += more
            except ConnectionError:
                pass
        return data

    async def ask(self, document: object, path: str = "/v1/chat/completions", headers: str = "") -> Answer:
        await self.send(post(document, path, headers))
        return await self.answer()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


def post(document: object, path: str = "/v1/chat/completions", headers: str = "") -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


CHAT = {"model": "llama", "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 3}
STREAM = CHAT | {"stream": True}


@dataclass
class Stage:
    """A gateway with engines behind it, and clients."""

    gateway: Gateway
    engines: list[Engine]
    clients: list[RawClient] = field(default_factory=list)

    async def client(self) -> RawClient:
        client = RawClient(*await asyncio.open_connection("127.0.0.1", self.gateway.port, limit=1 << 22))
        self.clients.append(client)
        return client

    def set_fleet(self, *engines: Engine, **fields: Any) -> None:
        entries = [
            InstanceEntry(id=f"i{self.engines.index(engine)}", url=engine.url, tier="interactive", **fields)
            for engine in engines
        ]
        self.gateway.set_fleet(InstanceList(instances=entries))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110  any condition at all
                await asyncio.sleep(0.002)

    def in_flight(self) -> int:
        status = self.gateway.core.status(asyncio.get_running_loop().time())
        return sum(tier.in_flight + tier.pending for tier in status.tiers)

    def outcomes(self) -> dict[str, int]:
        status = self.gateway.core.status(asyncio.get_running_loop().time())
        counts: dict[str, int] = {}
        for tier in status.tiers:
            for outcome, count in tier.outcomes.items():
                if count:
                    counts[outcome.value] = counts.get(outcome.value, 0) + count
        return counts


class Kit:
    """What tests take from here, as a fixture: test folders are no packages."""

    CHAT, STREAM, COMPLETION, SSE_HEAD, ROLE, USAGE, DONE = CHAT, STREAM, COMPLETION, SSE_HEAD, ROLE, USAGE, DONE
    CORE, SETTINGS, PATIENCE_S = CORE, SETTINGS, PATIENCE_S
    post, chunk, event, token, sized = map(staticmethod, (post, chunk, event, token, sized))
    complete = staticmethod(complete)

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    async def stage(
        self, *scripts: Script, core: CoreConfig = CORE, settings: ShellSettings = SETTINGS, **limits: Any
    ) -> Stage:
        """A started gateway with one engine per script, all ready in the default tier."""
        gateway = Gateway(core, replace(settings, **limits))
        engines = [Engine(script) for script in scripts or (complete,)]
        for engine in engines:
            await engine.start()
        await gateway.start("127.0.0.1", 0)
        stage = Stage(gateway, engines)
        self.stages.append(stage)
        stage.set_fleet(*engines)
        return stage

    async def close(self) -> None:
        for stage in self.stages:
            for client in stage.clients:
                client.reset()
            await stage.gateway.shutdown(0.5)
            for engine in stage.engines:
                await engine.stop()
        for stage in self.stages:
            stage.gateway.core.check()
            assert not stage.in_flight()
            assert not stage.gateway.exchanges
            assert not stage.gateway.passing
            assert not stage.gateway.clients
            assert all(not instance.passing for instance in stage.gateway.fleet.instances.values())


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    kit = Kit()
    yield kit
    await kit.close()


@pytest.fixture
def tell() -> Callable[[Callable[[Kit], Awaitable[None]]], None]:
    """Tells a story on a loop of its own, for those that are told many times over."""

    async def told(story: Callable[[Kit], Awaitable[None]]) -> None:
        kit = Kit()
        try:
            await story(kit)
        finally:
            await kit.close()  # uvloop's loop waits for ever for a server that nobody closed

    return lambda story: uvloop.run(told(story))
