"""A streaming answer that the router opens itself, because its client would wait too long without a byte: proxies and balancers give up
after 30 to 60 s. Called by the exchange.

Comments are no part of the answer (WHATWG HTML, 9.2.6), so the request may still be tried elsewhere; but the status is said, and whatever
goes wrong later becomes an event.
"""

import json
from typing import Final

from multislo_router.shell.errors import Dialect, Fault, Reason, error_event, event_of

COMMENT: Final = b": keep-alive\n"
"""A line of its own, without an empty line behind it: there some clients (openai-go up to the summer of 2026) take it for an event without
data, and fail."""
DONE: Final = b"data: [DONE]\n\n"
LAST_CHUNK: Final = b"0\r\n\r\n"


def stream_head(request_id: bytes, tier: bytes, extra: bytes, *, chunked: bool, close: bool) -> bytes:
    """The head of an answer whose instance is not known yet; `tier` and `extra` are whole header lines."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
        b"x-request-id: %b\r\n%b%b%b%b\r\n"
    ) % (
        request_id,
        tier,
        extra,
        b"transfer-encoding: chunked\r\n" if chunked else b"",
        b"connection: close\r\n" if close else b"",
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def as_events(status: int, content: bytes, dialect: Dialect, request_id: bytes) -> bytes:
    """An engine's answer that is no stream of events, as the end of one: an error, or a whole answer."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        if status >= 400 and document.get("error"):
            return event_of(document, dialect)
        if status < 400 and dialect is Dialect.OPENAI:
            return event_of(document, dialect) + DONE
    said = content[:1000].decode("utf-8", "replace").strip()
    return error_event(Fault(Reason.ENGINE_FAILED, f"the engine answered {status}: {said}"), dialect, request_id)
