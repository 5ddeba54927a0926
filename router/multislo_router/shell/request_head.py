"""A request's head as the shell needs it: what is answered to, what is relayed, what is kept from the engine. Made by the client's
connection from httptools' callbacks."""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from multislo_router.shell.errors import Fault, Reason
from multislo_router.shell.routes import READ, Target


class Header(Enum):
    """Headers with a meaning here; all others are relayed as they are."""

    HOST = auto()
    HOP = auto()
    """Ends at this connection (RFC 9110, 7.6.1), or is written anew."""
    CONNECTION = auto()
    EXPECT = auto()
    CONTENT_LENGTH = auto()
    CONTENT_ENCODING = auto()
    AUTHORIZATION = auto()
    API_KEY = auto()
    REQUEST_ID = auto()
    TTFT = auto()
    TPOT = auto()
    TIER = auto()
    INTERNAL = auto()
    ORIGIN = auto()
    METHOD_WANTED = auto()
    """Of a preflight, as `HEADERS_WANTED`."""
    HEADERS_WANTED = auto()


HEADERS: dict[bytes, Header] = {
    b"host": Header.HOST,
    b"accept-encoding": Header.HOP,  # what is counted on its way through must not be compressed
    b"keep-alive": Header.HOP,
    b"proxy-connection": Header.HOP,
    b"proxy-authenticate": Header.HOP,
    b"proxy-authorization": Header.HOP,
    b"te": Header.HOP,
    b"trailer": Header.HOP,
    b"transfer-encoding": Header.HOP,
    b"upgrade": Header.HOP,
    b"http2-settings": Header.HOP,
    b"connection": Header.CONNECTION,
    b"expect": Header.EXPECT,
    b"content-length": Header.CONTENT_LENGTH,
    b"content-encoding": Header.CONTENT_ENCODING,
    b"authorization": Header.AUTHORIZATION,
    b"x-api-key": Header.API_KEY,
    b"x-request-id": Header.REQUEST_ID,
    b"x-slo-ttft-ms": Header.TTFT,
    b"x-llm-d-slo-ttft-ms": Header.TTFT,
    b"x-slo-tpot-ms": Header.TPOT,
    b"x-llm-d-slo-tpot-ms": Header.TPOT,
    b"x-slo-tier": Header.TIER,
    b"origin": Header.ORIGIN,
    b"access-control-request-method": Header.METHOD_WANTED,
    b"access-control-request-headers": Header.HEADERS_WANTED,
    b"x-multislo-tier": Header.INTERNAL,
    b"x-multislo-instance": Header.INTERNAL,
    b"x-multislo-reason": Header.INTERNAL,
}


_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
"""RFC 3986's host and port, but for the punctuation that no name in use has."""


def is_http_1_0(line: bytes) -> bool:
    """By the end of the request line. Raises a `Fault` for other versions than 1.0 and 1.1: llhttp also reads 2.0, 0.9 where the line has
    no version, and RTSP."""
    version = line.rpartition(b" ")[2].strip()
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        shown = version.decode("latin-1")
        raise Fault(Reason.MALFORMED, f"the request line ends with {shown!r}; it must end with HTTP/1.1 or HTTP/1.0")
    return version == b"HTTP/1.0"


def _listed(given: bytes | None, value: bytes) -> bytes:
    """What a field that is given several times means (RFC 9110, 5.3)."""
    return value if given is None else given + b", " + value


@dataclass(slots=True)
class RequestHead:
    """`relayed` are the header lines for the engine, each with its line end. Once read it is shared by all requests that have the same
    head, and not changed any more."""

    method: bytes
    target: Target
    http_1_0: bool
    keep_alive: bool
    relayed: bytes = b""
    request_id: bytes = b""
    """The client's own; empty where it gave none."""
    content_length: int | None = None
    has_body: bool = False
    hosts: int = 0
    host: bytes = b""
    transfer_encoding: bytes | None = None
    content_encoding: bytes | None = None
    expect: bytes | None = None
    authorization: bytes | None = None
    """All that were given, as one list: a request with two shows no key, whichever of them a proxy has looked at."""
    api_key: bytes | None = None
    """The header `x-api-key`, likewise."""
    ttft: tuple[bytes, bytes] | None = None
    """Header's name and value as the client wrote them; likewise `tpot`."""
    tpot: tuple[bytes, bytes] | None = None
    tier: bytes | None = None
    origin: bytes | None = None
    method_wanted: bytes | None = None
    headers_wanted: bytes | None = None
    cors: bytes = b""
    """Header lines for every answer."""

    def read(self, headers: list[tuple[bytes, bytes]], *, keep_credentials: bool) -> None:
        """Takes all header fields in their order."""
        relayed: list[bytes] = []
        meaning_of = HEADERS.get
        dropped: list[bytes] = []
        for name, value in headers:
            meaning = meaning_of(name.lower())
            if meaning is None:
                relayed.append(b"%b: %b\r\n" % (name, value))
            elif meaning is Header.HOST:
                self.hosts += 1
                self.host = value
            elif meaning is Header.HOP:
                if name.lower() == b"transfer-encoding":
                    self.has_body = True
                    self.transfer_encoding = _listed(self.transfer_encoding, value)
            elif meaning is Header.CONTENT_LENGTH:
                self.content_length = int(value)
                self.has_body = True
            elif meaning is Header.CONTENT_ENCODING:
                self.content_encoding = _listed(self.content_encoding, value)
                relayed.append(b"%b: %b\r\n" % (name, value))
            elif meaning is Header.AUTHORIZATION:
                self.authorization = _listed(self.authorization, value)
                if keep_credentials:
                    relayed.append(b"%b: %b\r\n" % (name, value))
            elif meaning is Header.API_KEY:
                self.api_key = _listed(self.api_key, value)
                if keep_credentials:
                    relayed.append(b"%b: %b\r\n" % (name, value))
            elif meaning is Header.CONNECTION:
                dropped += [token.strip().lower() for token in value.split(b",")]
            else:
                self._read_own(meaning, name, value)
        if dropped and not {b"keep-alive", b"close"}.issuperset(dropped):
            relayed = [line for line in relayed if line.partition(b":")[0].lower() not in dropped]
        self.relayed = b"".join(relayed)

    def check(self) -> None:
        """Raises a `Fault` for what llhttp lets through and RFC 9112 (3.2, 6.1) does not. It takes any Host, any list of codings that ends
        with chunked, and chunks in HTTP/1.0; whoever reads such a request otherwise finds another one behind it."""
        if self.http_1_0:
            self.keep_alive = False
        if self.hosts > 1 or not (self.hosts or self.http_1_0):
            raise Fault(Reason.MALFORMED, f"host: given {self.hosts} times, must be given once", param="host")
        if _HOST.fullmatch(self.host) is None:
            shown = self.host.decode("latin-1")
            raise Fault(Reason.MALFORMED, f"host: {shown!r} must be a host's name or address, and a port", param="host")
        if self.target.route in READ and (self.content_encoding or b"identity").lower() != b"identity":
            shown = (self.content_encoding or b"").decode("latin-1")
            message = f"content-encoding: {shown!r}: the body must be sent as it is, without a coding"
            raise Fault(Reason.UNSUPPORTED_ENCODING, message, param="content-encoding")
        coding = self.transfer_encoding
        if coding is None:
            return
        if self.http_1_0:
            message = "transfer-encoding: there is none in HTTP/1.0"
            raise Fault(Reason.MALFORMED, message, param="transfer-encoding")
        if coding.lower() != b"chunked":
            message = f"transfer-encoding: {coding.decode('latin-1')!r} must be chunked, and nothing else"
            ends = coding.lower().endswith(b"chunked")
            raise Fault(Reason.NOT_IMPLEMENTED if ends else Reason.MALFORMED, message, param="transfer-encoding")

    def _read_own(self, meaning: Header, name: bytes, value: bytes) -> None:
        if meaning is Header.REQUEST_ID:
            self.request_id = value
        elif meaning is Header.TTFT:
            if self.ttft is None or name.lower().startswith(b"x-slo-"):
                self.ttft = (name, value)
        elif meaning is Header.TPOT:
            if self.tpot is None or name.lower().startswith(b"x-slo-"):
                self.tpot = (name, value)
        elif meaning is Header.TIER:
            self.tier = value
        elif meaning is Header.EXPECT:
            self.expect = value.lower()
        elif meaning is Header.ORIGIN:
            self.origin = value
        elif meaning is Header.METHOD_WANTED:
            self.method_wanted = value
        elif meaning is Header.HEADERS_WANTED:
            self.headers_wanted = value
