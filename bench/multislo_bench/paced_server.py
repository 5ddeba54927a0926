"""A back end that streams tokens at a steady pace and costs little: `python -m multislo_bench.paced_server PERIOD_S PORT ...`.
The proxy benchmark puts it behind the routers to measure what a relayed token costs them. Each port is an engine with
iterations of its own: the tokens of its streams come together."""

import asyncio
import re
import sys
from functools import partial

import uvloop

EVENT = (
    b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1763700000,"model":"m",'
    b'"choices":[{"index":0,"text":" tok","logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'
)
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}}\n\n'
MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
MAX_TOKENS = re.compile(rb'"max_tokens":\s*(\d+)')


class Stream(asyncio.Protocol):
    """One connection: a completion request is answered with a paced stream, everything else at once."""

    def __init__(self, engine: set["Stream"]) -> None:
        self._engine = engine

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._received = b""
        self._tokens = 0
        self._sent = 0

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"content-length:\s*(\d+)", head, re.IGNORECASE)
        if length is not None and len(body) < int(length[1]):
            return
        self._received = b""
        wanted = MAX_TOKENS.search(body)
        if head.startswith(b"POST /v1/") and wanted is not None:
            self._tokens, self._sent = int(wanted[1]), 0
            self._transport.write(HEAD)
            self._engine.add(self)
        else:
            answer = MODELS if b"/models" in head else b"{}"
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(answer), answer)
            )

    def connection_lost(self, error: Exception | None) -> None:
        self._engine.discard(self)

    def token(self) -> None:
        """The next token of its answer, or the end."""
        if self._sent < self._tokens:
            self._sent += 1
            self._transport.write(CHUNK)
            return
        end = USAGE % (self._tokens, self._tokens + 1) + b"data: [DONE]\n\n"
        self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(end), end))
        self._engine.discard(self)


async def serve(period_s: float, ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    engines: list[set[Stream]] = [set() for _ in ports]
    for port, engine in zip(ports, engines, strict=True):
        await loop.create_server(partial(Stream, engine), "127.0.0.1", port)
    due = loop.time()
    while True:
        for engine in engines:
            due += period_s / len(engines)
            await asyncio.sleep(max(0.0, due - loop.time()))
            for stream in tuple(engine):
                stream.token()


if __name__ == "__main__":
    uvloop.run(serve(float(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
