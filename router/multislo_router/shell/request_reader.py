"""Reads one client's requests strictly (httptools): bytes go in by pieces, complete requests come out, or the fault that ends the
connection. Owned by the client's connection; knows no socket and no clock."""

from collections import deque
from dataclasses import dataclass
from typing import Final

import httptools

from multislo_router.shell.cors import Cors
from multislo_router.shell.errors import Fault, Reason
from multislo_router.shell.internal_errors import InternalErrors, Seam
from multislo_router.shell.keys import check_key
from multislo_router.shell.request_head import RequestHead, is_http_1_0
from multislo_router.shell.routes import OPEN, Routes
from multislo_router.shell.settings import ShellSettings

PIECE_BYTES: Final = 4096
"""Fed to the parser at once, but for a body whose length is known. An SDK's head is 500 to 1,000 bytes."""
HEAD_END: Final = b"\r\n\r\n"
"""Ends a head, and a body in chunks."""
VERSION_BYTES: Final = len(b" HTTP/1.1\r")
HEADER_FIELDS_MAX: Final = 256
"""Fields of two bytes each would take thirty times their bytes. Clients and proxies send 10 to 40."""
SMALL_BODY_BYTES: Final = 16 * 1024
"""A body up to this size is let in however much is held already: 20,000 connections could hold 320 MiB in all of these."""


class HeldBytes:
    """What all connections together hold of requests: unread bytes, bodies under way, bodies that no engine has answered yet."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def takes(self, size: int) -> bool:
        """Whether a body of this size may come in."""
        return size <= SMALL_BODY_BYTES or self.used + size <= self.limit


@dataclass(slots=True)
class Rules:
    """What every request is read by."""

    settings: ShellSettings
    routes: Routes
    cors: Cors
    held: HeldBytes
    errors: InternalErrors


class RequestReader:
    """`head` is that of the request whose body is being read. After `fault`, or `ended`, nothing more is read as a request."""

    __slots__ = (
        "_body",
        "_headers",
        "_last",
        "_line_end",
        "_line_read",
        "_parser",
        "_piece_bytes",
        "_rules",
        "_url",
        "body_bytes",
        "continue_due",
        "ended",
        "fault",
        "head",
        "quiet_bytes",
        "requests",
    )

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._parser: httptools.HttpRequestParser | None = None
        """Made when it is needed: a client whose heads are all remembered needs none."""
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: bytes | bytearray = b""
        self._piece_bytes = 0
        self._last = b""
        """The last bytes that were fed, where an empty line may go on."""
        self._line_end = b""
        """Of the request line, as far as it was read: the parser tells no protocol, and takes `RTSP/1.0` for HTTP."""
        self._line_read = False
        self.head: RequestHead | None = None
        self.body_bytes = 0
        self.quiet_bytes = 0
        """Read without getting on: of a head, or of chunk framing and trailers without a byte of content."""
        self.continue_due = False
        self.requests: deque[tuple[RequestHead, bytes]] = deque()
        """Complete ones that nobody has begun with."""
        self.fault: Fault | None = None
        """What ends the connection, once the requests before it are answered."""
        self.ended = False

    @property
    def between(self) -> bool:
        """No request is half read."""
        return self.head is None and not self._url and not self.quiet_bytes

    def piece_end(self, data: bytes, at: int) -> int:
        """Where the piece ends that begins in `data` at `at`: with a head or a body at the latest. So each request begins with a piece of
        its own, and what is behind one waits as bytes and not as a request, which takes thirty times the memory."""
        head = self.head
        if head is not None and head.content_length is not None:
            return at + head.content_length - self.body_bytes
        last = self._last
        end = (last + data[at : at + len(HEAD_END)]).find(HEAD_END)
        if end >= 0:
            return at + end + len(HEAD_END) - len(last)
        end = data.find(HEAD_END, at, at + PIECE_BYTES)
        return at + PIECE_BYTES if end < 0 else end + len(HEAD_END)

    def close(self) -> None:
        """Nothing more comes. The parser and its callbacks hold each other: without this only the garbage collector would free a half-sent
        body, much later."""
        self.ended = True
        self._parser = None
        self._body = b""
        self.body_bytes = 0
        self.quiet_bytes = 0
        self._headers = []
        self.requests.clear()
        self.fault = None

    def overflow(self) -> None:
        """There is no memory for what follows the requests that are complete."""
        self.ended = True
        if self.fault is None:
            self.fault = self._no_memory()

    def feed(self, data: bytes) -> None:
        """Takes bytes up to `piece_end`; then there is one more of `requests`, or a `fault`, or one is half read."""
        content = self.body_bytes
        self._piece_bytes = len(data)
        self._last = (self._last + data[-len(HEAD_END) :])[1 - len(HEAD_END) :]
        if not self._line_read:
            self._read_line(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self.ended = True
            # Its traceback holds the frames that raised it, and so this reader and what it was reading.
            self.fault = (self.fault or self._fault_of(error)).with_traceback(None)
            return
        if self.between and self.requests:
            return
        self.quiet_bytes = self.quiet_bytes + len(data) if self.head is None or self.body_bytes == content else 0
        if self.quiet_bytes > self._rules.settings.header_max_bytes:
            self.ended = True
            self.fault = self._head_too_large()

    def _parse(self, data: bytes) -> None:
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()

    def _read_line(self, data: bytes) -> None:
        """Keeps how the request line ends. Empty lines before it mean nothing (RFC 9112, 2.2)."""
        if not self._line_end:
            data = data.lstrip(b"\r\n")
        line, end, _ = data.partition(b"\n")
        self._line_end = (self._line_end + line)[-VERSION_BYTES:]
        self._line_read = bool(end)

    def _ignore_upgrade(self) -> None:
        """RFC 9110, 7.8: who does not want to upgrade answers as if it had not been asked. The parser stops behind the head, so another one
        goes on, and is told the framing of the body that is still to come."""
        self._parser = httptools.HttpRequestParser(self)
        head = self.head
        if head is not None:
            length = (
                b"transfer-encoding: chunked"
                if head.content_length is None
                else b"content-length: %d" % head.content_length
            )
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % length)

    def _fault_of(self, error: httptools.HttpParserError) -> Fault:
        if isinstance(error, httptools.HttpParserCallbackError):
            self._rules.errors.report(Seam.CLIENT, error)
            return Fault(Reason.INTERNAL, "the router failed on this request")
        assert self._parser is not None
        if self._parser.get_method() == b"PRI":
            return Fault(Reason.MALFORMED, "HTTP/2 is not spoken here; the version must be HTTP/1.1 or HTTP/1.0")
        return Fault(Reason.MALFORMED, f"not a well-formed HTTP/1.1 request: {error}")

    # -- the parser's calls --------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is not None:
            return  # a trailer
        self._headers.append((name, value))
        if len(self._headers) > HEADER_FIELDS_MAX:
            self.fault = Fault(Reason.HEAD_TOO_LARGE, f"there are more than {HEADER_FIELDS_MAX} header fields")
            raise self.fault

    def on_headers_complete(self) -> None:
        if self.head is not None:
            return  # the head that only tells another parser a framing
        parser = self._parser
        assert parser is not None
        rules = self._rules
        method = parser.get_method()
        try:
            head = self.head = RequestHead(
                method=method,
                target=rules.routes.find(method, self._url),
                http_1_0=is_http_1_0(self._line_end),
                keep_alive=parser.should_keep_alive(),
            )
            head.read(self._headers, keep_credentials=not rules.settings.api_keys)
            head.cors = rules.cors.lines(head)
            self._check(head)
        except Fault as fault:
            self.fault = fault
            raise

    def on_body(self, body: bytes) -> None:
        if not self.body_bytes:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)  # one block: small chunks would take ten times their bytes in a list
            self._body += body
        self.body_bytes += len(body)
        if self.body_bytes > self._rules.settings.body_max_bytes:
            self.fault = self._too_large()
        elif self.body_bytes > SMALL_BODY_BYTES and self._rules.held.used > self._rules.held.limit:
            self.fault = self._no_memory()
        else:
            return
        raise self.fault

    def on_message_complete(self) -> None:
        head = self.head
        parser = self._parser
        assert head is not None
        assert parser is not None
        if head.has_body and parser.should_upgrade():
            return  # only the head is complete: `_ignore_upgrade`
        if head.method == b"CONNECT":
            head.keep_alive = False
            self.ended = True  # whatever follows was meant for somebody else
        self.requests.append((head, bytes(self._body)))
        self.head = None
        self._url = b""
        self._last = self._line_end = b""
        self._line_read = False
        self.quiet_bytes = 0
        self.continue_due = False
        self._body = b""
        self.body_bytes = 0

    # -- what is refused -----------------------------------------------------------------------------------------------

    def _check(self, head: RequestHead) -> None:
        """What can be refused before a byte of the body has been read."""
        settings = self._rules.settings
        if self.quiet_bytes + self._piece_bytes > settings.header_max_bytes:
            raise self._head_too_large()
        self.quiet_bytes = 0
        head.check()
        if settings.api_keys and head.target.route not in OPEN:
            check_key(settings.api_keys, head)
        if head.content_length is not None:
            self._check_length(head.content_length)
        if head.expect is not None:
            if head.expect != b"100-continue":
                raise Fault(Reason.EXPECTATION_FAILED, "expect: only 100-continue is known", param="expect")
            self.continue_due = head.has_body and not head.http_1_0

    def _check_length(self, length: int) -> None:
        if length > self._rules.settings.body_max_bytes:
            raise self._too_large()
        if not self._rules.held.takes(length):
            raise self._no_memory()

    def _head_too_large(self) -> Fault:
        limit = self._rules.settings.header_max_bytes
        return Fault(Reason.HEAD_TOO_LARGE, f"request line and headers exceed {limit} bytes")

    def _too_large(self) -> Fault:
        return Fault(Reason.BODY_TOO_LARGE, f"the body exceeds {self._rules.settings.body_max_bytes} bytes")

    def _no_memory(self) -> Fault:
        message = f"the router holds {self._rules.held.limit} bytes of requests already"
        return Fault(Reason.BODIES_FULL, message, retry_after_s=1.0)
