"""The API server's answers as they come over the wire: whole documents and streams of events, each up to a stated size. Used by `client`,
and by the scenarios' own client in `e2e/`.

Why not `async for line in response.content`: aiohttp refuses a line that is longer than twice its buffer. One event is one line, and an
object of 1.5 MB whose text JSON escapes (`<` takes six bytes) is a line of 9 MB.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import StreamReader

DOCUMENT_BYTES_MAX = 32 * 1024 * 1024
"""Of an answer or an event. An API server takes objects of 3 MB at most, and JSON's escapes make six bytes of one at worst."""

Json = dict[str, Any]


class TooLarge(ValueError):
    """An answer or an event of more bytes, or of more levels, than are read."""


def parsed(text: bytes) -> Json:
    """The object in a JSON text. Raises TooLarge, and ValueError for what is none."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise TooLarge(f"nested too deeply: {text[:200]!r}") from None
    if not isinstance(found, dict):
        raise ValueError(f"no object: {text[:200]!r}")
    return found


async def document(content: StreamReader, bytes_max: int = DOCUMENT_BYTES_MAX) -> bytes:
    """A whole body. Raises TooLarge."""
    parts: list[bytes] = []
    size = 0
    async for chunk in content.iter_any():
        parts.append(chunk)
        size += len(chunk)
        if size > bytes_max:
            raise TooLarge(f"an answer of more than {bytes_max} bytes")
    return b"".join(parts)


async def events(content: StreamReader, bytes_max: int = DOCUMENT_BYTES_MAX) -> AsyncIterator[tuple[str, Json]]:
    """(type, object) of each event of a watch, as they come. Raises TooLarge, ValueError for what is no event, and
    ConnectionError where the stream ends in the middle of one."""
    async for line in _lines(content, bytes_max):
        event = parsed(line)
        type, object = event.get("type"), event.get("object")
        if not isinstance(type, str) or not isinstance(object, dict):
            raise ValueError(f"an event without type or object: {line[:200]!r}")
        yield type, object


async def _lines(content: StreamReader, bytes_max: int) -> AsyncIterator[bytes]:
    begun: list[bytes] = []
    size = 0
    async for chunk in content.iter_any():
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            line = b"".join((*begun, part))
            begun.clear()
            size = 0
            if line.strip():
                yield line
        if rest:
            begun.append(rest)
            size += len(rest)
        if size > bytes_max:
            raise TooLarge(f"an event of more than {bytes_max} bytes")
    if begun:
        raise ConnectionError(f"the stream ended within an event: {b''.join(begun)[:200]!r}")
