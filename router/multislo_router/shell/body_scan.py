"""What the router must know of a request's body: read in one pass by msgspec, which checks all of it and builds only these fields.

Called by the gateway once a body is complete. The body itself goes to the engine byte for byte; `with_fields` adds to it.
220 KB of prompt cost about 0.2 ms here, where `json.loads` takes 0.7 ms (5 ms for token ids).
"""

import codecs
import re
from dataclasses import dataclass

import msgspec

from multislo_router.shell.errors import Fault, Reason

IMAGE_TOKENS = 1024
"""Of one inline image, roughly: the bytes of its base64 text say nothing."""
TOKENS_MAX = 1 << 31
"""An engine counts in 32 bits; a larger max_tokens is a mistake."""
_INLINE_FILE = re.compile(rb";base64,[A-Za-z0-9+/=\\]*")
_TOKEN_IDS = re.compile(rb"\[[\s\[]*-?[0-9]")


PIECE_BYTES = 256 * 1024
_UTF_8 = codecs.getincrementaldecoder("utf-8")
_ABSENT = msgspec.Raw()
_NULL = b"null"


class _Body(msgspec.Struct, gc=False):
    """The fields that matter; all others are skipped. The annotations are the legal types."""

    model: str | None = None
    stream: bool | None = None
    max_tokens: int | float | None = None
    max_completion_tokens: int | float | None = None
    service_tier: str | None = None
    messages: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    priority: msgspec.Raw = _ABSENT
    vllm_xargs: msgspec.Raw = _ABSENT
    truncate_prompt_tokens: msgspec.Raw = _ABSENT


_decode = msgspec.json.Decoder(_Body).decode
_decode_text = msgspec.json.Decoder(str).decode


@dataclass(slots=True)
class BodyScan:
    """`text_bytes` is the prompt's size for an estimate; `prompt_tokens` is exact where the prompt came as token ids."""

    model: str | None
    streaming: bool
    output_tokens_max: int | None
    service_tier: str | None
    text_bytes: int
    image_tokens: int
    prompt_tokens: int | None
    has_priority: bool
    has_xargs: bool
    truncates: bool
    """The engine cuts the prompt to a length that the client gave: no prompt is too long."""
    prompt: bytes
    """The JSON of the prompt or of the messages, for the tokenizer."""


def scan_body(body: bytes) -> BodyScan:
    """Raises a `Fault` that names the field, where the body is no JSON object or a field has the wrong type."""
    if not body.isascii():
        _check_utf_8(body)
    try:
        fields = _decode(body)
    except msgspec.ValidationError as error:
        raise _field_fault(str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Fault(Reason.INVALID_JSON, f"the body is not valid JSON: {error}") from None
    messages = fields.messages
    chat = messages is not _ABSENT and (prompt := bytes(messages)) != _NULL
    if not chat:
        prompt = bytes(fields.prompt)
    prompt_tokens = None
    images = 0
    text_bytes = len(prompt)
    if not chat and prompt[:1] == b"[" and _TOKEN_IDS.match(prompt):
        prompt_tokens = prompt.count(b",") + 1
    else:
        if fields.tools is not _ABSENT:
            text_bytes += len(bytes(fields.tools))
        if b";base64," in prompt:
            inline = _INLINE_FILE.findall(prompt)
            images = len(inline)
            text_bytes -= sum(map(len, inline))
        # \uXXXX stands for one UTF-16 unit, which is two or three bytes of UTF-8 outside of ASCII.
        text_bytes -= 3 * prompt.count(b"\\u")
    limit = fields.max_completion_tokens if fields.max_completion_tokens is not None else fields.max_tokens
    return BodyScan(
        model=fields.model,
        streaming=fields.stream is True,
        output_tokens_max=None if limit is None else _tokens(limit, fields),
        service_tier=fields.service_tier,
        text_bytes=max(0, text_bytes),
        image_tokens=images * IMAGE_TOKENS,
        prompt_tokens=prompt_tokens,
        has_priority=fields.priority is not _ABSENT,
        has_xargs=fields.vllm_xargs is not _ABSENT,
        truncates=fields.truncate_prompt_tokens is not _ABSENT,
        prompt=prompt,
    )


def _check_utf_8(body: bytes) -> None:
    """msgspec looks only into the text that it builds. In pieces: the text of a large body takes up to four times its bytes."""
    decoder = _UTF_8()
    try:
        for at in range(0, len(body), PIECE_BYTES):
            decoder.decode(body[at : at + PIECE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        raise Fault(Reason.INVALID_JSON, f"the body is not valid UTF-8: byte 0x{bad:02x}: {error.reason}") from None


def _tokens(limit: int | float, fields: _Body) -> int:
    name = "max_tokens" if fields.max_completion_tokens is None else "max_completion_tokens"
    if limit != limit // 1 or not 0 <= limit <= TOKENS_MAX:
        message = f"{name}: {limit!r} must be an integer from 0 to {TOKENS_MAX}"
        raise Fault(Reason.INVALID_FIELD, message, param=name)
    return int(limit)


def _field_fault(problem: str) -> Fault:
    """From msgspec's "Expected `bool | null`, got `str` - at `$.stream`"."""
    expected, _, path = problem.partition(" - at `$.")
    if not path:
        return Fault(Reason.INVALID_JSON, f"the body must be a JSON object: {problem}")
    param = path.rstrip("`")
    return Fault(Reason.INVALID_FIELD, f"{param}: {expected[0].lower()}{expected[1:]}", param=param)


def prompt_texts(prompt: bytes) -> list[str]:
    """All texts in a prompt or in messages (`content`, `text`), for the tokenizer; what is neither counts as nothing. Raises a `Fault`
    where they cannot be read."""
    texts: list[str] = []
    try:
        todo: list[object] = [msgspec.json.decode(prompt)] if prompt else []
    except (ValueError, RecursionError) as error:
        raise Fault(Reason.INVALID_JSON, f"the body is not valid JSON: {error}") from None
    while todo:
        match todo.pop():
            case str(text):
                texts.append(text)
            case list(items):
                todo.extend(items)
            case dict(item):
                todo.extend(item[key] for key in ("content", "text") if key in item)
    return texts


def with_fields(body: bytes, fields: bytes) -> bytes:
    """The valid JSON object `body` with `fields` (`"name":value,...`) put before its last brace."""
    end = body.rindex(b"}")
    comma = b"" if body[:end].strip(b" \t\r\n") == b"{" else b","
    return body[:end] + comma + fields + body[end:]
