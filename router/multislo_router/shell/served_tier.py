"""Says in an answer's body which tier served it, for clients that asked with `service_tier`: OpenAI's clients look for the field there.
Called by the exchange, for such requests only; all other bodies pass as they are.

Nothing is parsed: inside a JSON string every quote is escaped, so `"service_tier":` is a key wherever it stands.
"""

import re
from typing import Final

from multislo_router.shell.response_head import ResponseBody, ResponseHead, SizedBody
from multislo_router.shell.routes import Route

BODY_MAX_BYTES: Final = 16 * 1024 * 1024
"""Of an answer that does not stream: it is held back for this. A longer one passes as it is; the header says the tier too."""
ADDED: Final = {Route.CHAT: True, Route.COMPLETIONS: True, Route.RESPONSES: False}
"""Whether the field is added, by the API. Engines write it into each object of the Responses API themselves; Anthropic has none like it."""
_GIVEN: Final = re.compile(rb'"service_tier":\s*(?:null|"[^"\\]*")')
_OBJECT: Final = re.compile(rb'\A\s*\{(?=\s*")')
_EVENT: Final = re.compile(rb'(?:\A|(?<=\n))data: ?\{(?=\s*")')
_EVENT_WITHIN: Final = re.compile(rb'(?<=\n)data: ?\{(?=\s*")')
_LENGTH: Final = re.compile(rb"(?<=\n)content-length:[^\r\n]*", re.IGNORECASE)


def served_tier(tier: str, route: Route, answer: ResponseHead, body: ResponseBody) -> "ServedTier | None":
    """What writes the field into this answer; None where it has no place for it."""
    if answer.status != 200 or route not in ADDED:
        return None
    if not answer.event_stream and (not isinstance(body, SizedBody) or (answer.length or 0) > BODY_MAX_BYTES):
        return None
    return ServedTier(tier, add=ADDED[route], whole=not answer.event_stream)


class ServedTier:
    """`add`: the field is added where the engine gave none, else only its value is changed. `whole`: the answer does not stream, and is
    held back until it is complete."""

    __slots__ = ("_add", "_at_line_start", "_field", "_held")

    def __init__(self, tier: str, *, add: bool, whole: bool) -> None:
        self._field = b'"service_tier":"%b"' % tier.encode()
        self._add = add
        self._at_line_start = True
        self._held: list[bytes] | None = [] if whole else None

    def relay(self, body: ResponseBody, *, chunked: bool) -> bytes:
        """What the client gets for the last pieces of a body, in chunks if it shall."""
        if self._held is not None:
            self._held += body.pieces
            return self._put(b"".join(self._held), _OBJECT) if body.done else b""
        pieces = [self._events(piece) for piece in body.pieces]
        if not chunked:
            return b"".join(pieces)
        chunks = b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece])
        return chunks + b"0\r\n\r\n" if body.done else chunks

    def head(self, head: bytes, body: bytes) -> bytes:
        """The answer's head, now that its body has another length."""
        return head if self._held is None else _LENGTH.sub(b"content-length: %d" % len(body), head)

    def _events(self, piece: bytes) -> bytes:
        begins = _EVENT if self._at_line_start else _EVENT_WITHIN
        self._at_line_start = piece[-1:] == b"\n"
        return self._put(piece, begins)

    def _put(self, data: bytes, begins: re.Pattern[bytes]) -> bytes:
        field = self._field
        if b'"service_tier":' in data:
            return _GIVEN.sub(field, data)
        return begins.sub(lambda begin: begin[0] + field + b",", data) if self._add else data
