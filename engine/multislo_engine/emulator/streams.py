"""Where a request's tokens go: `StreamSink` writes each to the client's connection as it is made, `WholeSink` counts them.

A stream writes directly to the transport, so no task wakes up for a token. A client that reads slowly does not delay others and costs
no memory: its unsent tokens are only a count, and are sent as one event when there is room again.
"""

import asyncio

from multislo_engine.emulator.text import WORDS, answer
from multislo_engine.emulator.wire import Reply, framed, framed_halves

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
    """A sequence whose answer is a stream of server-sent events in chunked coding, or bare for an HTTP/1.0 client."""

    __slots__ = (
        "_chunked",
        "_halves",
        "_index",
        "_reply",
        "_sent",
        "_transport",
        "begun",
        "finish_reason",
        "over",
        "tokens",
    )

    def __init__(
        self, reply: Reply, index: int, transport: asyncio.Transport, finish_reason: str, chunked: bool
    ) -> None:
        self.finish_reason = finish_reason
        self.tokens = 0
        self.over = asyncio.Event()
        self._reply = reply
        self._index = index
        self._transport = transport
        self._chunked = chunked
        self._sent = 0
        self.begun = False
        """The headers are written: tokens that came before them follow with the next one."""
        halves = reply.halves(index)
        self._halves = framed_halves(*halves) if chunked and halves is not None else halves

    def token(self, index: int, finished: bool) -> None:
        self.tokens = index + 1
        if finished:
            self.over.set()  # the rest is the handler's, who can wait for a slow client
            return
        transport = self._transport
        if not self.begun or transport.get_write_buffer_size() > BUFFERED_MAX or transport.is_closing():
            return
        halves = self._halves
        if halves is not None and self._sent == index and index:
            transport.write(halves[0] + _WORDS[index % _CYCLE] + halves[1])
            self._sent = index + 1
            return
        data = self.unsent()
        transport.write(framed(data) if self._chunked else data)

    def abort(self) -> None:
        self.finish_reason = "abort"
        self.over.set()

    def unsent(self) -> bytes:
        """The events that the client has not been sent yet; from now on it has."""
        data = b"" if self._sent else self._reply.opening(self._index)
        last = self.finish_reason if self.over.is_set() else None
        if self._sent < self.tokens or last is not None:
            text = answer(self._sent, self.tokens - self._sent)
            data += self._reply.piece(self._index, text, self.tokens, last)
        self._sent = self.tokens
        return data
