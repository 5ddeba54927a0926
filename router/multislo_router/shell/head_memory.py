"""Remembers request heads that were read already: clients that keep a connection send the same head again and again, but for the
length of the body. Owned by the gateway, asked by each client's connection before it parses.

A head is remembered only after httptools has read it strictly and the gateway has accepted it, and found again only byte for byte
(the digits of Content-Length apart), so that nothing is believed here that was not checked there.
"""

from multislo_router.shell.request_head import RequestHead

HEADS_MAX = 1024
"""Then all are forgotten: those in use come back at once. With the bound below, at most 4 MB."""
HEAD_MAX_BYTES = 4096
"""SDKs send 500 to 1000 bytes. A longer head is unusual, and read each time."""
_LENGTH_MAX_DIGITS = 9


class HeadMemory:
    __slots__ = ("_body_max_bytes", "_heads")

    def __init__(self, body_max_bytes: int) -> None:
        self._body_max_bytes = body_max_bytes
        self._heads: dict[bytes, RequestHead] = {}

    def find(self, data: bytes) -> tuple[RequestHead, int] | None:
        """The head that `data` begins with and where it ends, if it is known and `data` is exactly one whole request."""
        parts = _parts(data)
        if parts is None:
            return None
        key, length, end = parts
        head = self._heads.get(key)
        if head is None or len(data) != end + length or length > self._body_max_bytes:
            return None
        return head, end

    def remember(self, data: bytes, head: RequestHead) -> None:
        """`data` was read as one whole request with this head."""
        if head.expect is not None or head.request_id or not head.keep_alive:
            return  # needs more than its bytes, never comes again, or ends its connection
        parts = _parts(data)
        if parts is None:
            return
        key, length, end = parts
        name_is_whole = data[: end - 2].lower().find(b"\r\ncontent-length: %d\r\n" % length) == key.find(b"\0") - 18
        if name_is_whole and length == head.content_length and len(data) == end + length:
            if len(self._heads) >= HEADS_MAX:
                self._heads.clear()
            self._heads[key] = head


def _parts(data: bytes) -> tuple[bytes, int, int] | None:
    """The head without the digits of its length, the length, and where the body begins."""
    end = data.find(b"\r\n\r\n", 0, HEAD_MAX_BYTES)
    if end < 0:
        return None
    at = data.find(b"-Length: ", 0, end)
    if at < 0:
        at = data.find(b"-length: ", 0, end)
        if at < 0:
            return None
    at += 9
    stop = data.find(b"\r", at, end + 1)
    digits = data[at:stop]
    if not digits.isdigit() or len(digits) > _LENGTH_MAX_DIGITS:
        return None
    return b"%b\0%b" % (data[:at], data[stop:end]), int(digits), end + 4
