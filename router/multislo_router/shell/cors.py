"""Which browsers' pages may read the answers (CORS, the Fetch standard). Asked once for each head that has not been seen yet.

An engine's own CORS headers end at the router. No answer allows credentials: a page sends its key in a header, and cookies mean nothing
here.
"""

from collections.abc import Iterable
from typing import Final

from multislo_router.shell.request_head import RequestHead

ANY_ORIGIN: Final = "*"
PREFLIGHT_MAX_AGE_S: Final = 600
"""How long a browser may remember a preflight: a changed manifest is seen after ten minutes."""
_EXPOSED: Final = (
    b"access-control-expose-headers: "
    b"request-id, retry-after, x-multislo-instance, x-multislo-reason, x-multislo-tier, x-request-id\r\n"
)
_VARY: Final = b"vary: origin\r\n"


class Cors:
    """`origins` as browsers write them; without one CORS is off."""

    __slots__ = ("_any", "_on", "_origins")

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self._on = bool(self._origins)
        self._any = ANY_ORIGIN.encode() in self._origins

    def lines(self, head: RequestHead) -> bytes:
        """The header lines of every answer to a request with this head, a preflight's included."""
        if not self._on:
            return b""
        if head.origin is None or not (self._any or head.origin in self._origins):
            return b"" if self._any else _VARY
        origin = b"*" if self._any else head.origin
        lines = b"access-control-allow-origin: %b\r\n%b" % (origin, b"" if self._any else _VARY)
        if head.method != b"OPTIONS" or head.method_wanted is None:
            return lines + _EXPOSED
        lines += b"access-control-allow-methods: %b\r\naccess-control-max-age: %d\r\n" % (
            head.target.allow,
            PREFLIGHT_MAX_AGE_S,
        )
        if head.headers_wanted is not None:
            lines += b"access-control-allow-headers: %b\r\n" % head.headers_wanted
        return lines
