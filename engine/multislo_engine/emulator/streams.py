"""Where a request's tokens go: `StreamSink` writes each to the client's connection as it is made, `WholeSink` counts them.

A stream writes directly to the transport, so no task wakes up for a token. A client that reads slowly does not delay others and costs
no memory: its unsent tokens are only a count, and are sent as one event when there is room again.
"""

import asyncio

from multislo_engine.emulator.text import WORDS, answer
from multislo_engine.emulator.wire import DONE, Reply, framed, framed_halves

BUFFERED_MAX = 64 * 1024
"""Bytes that may wait in one connection's write buffer (beside what the kernel takes): 300 tokens, seconds of reading."""
_WORDS = tuple(word.encode() for word in WORDS)
_CYCLE = len(_WORDS)


class WholeSink:
    """A request whose answer is one body."""

    __slots__ = ("finish_reason", "over", "tokens")

    def __init__(self, finish_reason: str) -> None:
        self.finish_reason = finish_reason
        self.tokens = 0
        self.over = asyncio.Event()

    def token(self, index: int, finished: bool) -> None:
        self.tokens = index + 1
        if finished:
            self.over.set()

    def abort(self) -> None:
        self.finish_reason = "abort"
        self.over.set()


class StreamSink:
    """A request whose answer is a stream of server-sent events in chunked coding, or bare for an HTTP/1.0 client."""

    __slots__ = (
        "_after",
        "_before",
        "_chunked",
        "_continuous",
        "_include_usage",
        "_reply",
        "_sent",
        "_transport",
        "finish_reason",
        "over",
        "tokens",
    )

    def __init__(
        self,
        reply: Reply,
        transport: asyncio.Transport,
        finish_reason: str,
        include_usage: bool,
        continuous: bool,
        chunked: bool,
    ) -> None:
        self.finish_reason = finish_reason
        self.tokens = 0
        self.over = asyncio.Event()
        self._reply = reply
        self._transport = transport
        self._include_usage = include_usage
        self._continuous = continuous
        self._chunked = chunked
        self._sent = 0
        halves = reply.halves()
        self._before, self._after = framed_halves(*halves) if chunked else halves

    def token(self, index: int, finished: bool) -> None:
        self.tokens = index + 1
        if finished:
            self.over.set()  # the rest is the handler's, who can wait for a slow client
            return
        transport = self._transport
        if transport.get_write_buffer_size() > BUFFERED_MAX or transport.is_closing():
            return
        if self._sent == index and index and not self._continuous:
            transport.write(self._before + _WORDS[index % _CYCLE] + self._after)
            self._sent = index + 1
            return
        data = self.unsent()
        transport.write(framed(data) if self._chunked else data)

    def abort(self) -> None:
        self.finish_reason = "abort"
        self.over.set()

    def unsent(self) -> bytes:
        """The events that the client has not been sent yet; from now on it has."""
        data = b""
        if not self._sent:
            data = self._reply.role_chunk(self._usage(0)) if self._reply.chat else b""
        last = self.finish_reason if self.over.is_set() else None
        if self._sent < self.tokens or last is not None:
            text = answer(self._sent, self.tokens - self._sent)
            data += self._reply.chunk(text, last, self._usage(self.tokens))
        if last is not None:
            if self._include_usage:
                data += self._reply.usage_chunk(self.tokens)
            data += DONE
        self._sent = self.tokens
        return data

    def _usage(self, tokens: int) -> dict[str, object] | None:
        return self._reply.usage(tokens) if self._continuous else None
