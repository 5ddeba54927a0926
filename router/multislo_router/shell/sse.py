"""What an engine's answer says of itself on its way through: tokens, usage, errors. The exchange feeds it each piece of a body.

`EventCount` reads server-sent events by their standard (WHATWG HTML, 9.2) and the JSON in them, whatever API they belong to: chats and
completions of OpenAI, its Responses, Anthropic's Messages. Nearly every event of a stream differs from the one before in one string only.
Such an event takes a short way that needs no JSON (`_take_alike`) and, by construction, comes to the same result.
"""

import re
from typing import Final

import msgspec

EVENT_MAX_BYTES: Final = 4 << 20
"""Of an event that is still incomplete: `response.completed` repeats a whole answer. A longer one is not read; it counts as a token."""
ALIKE_MAX_BYTES: Final = 4096
"""Of an event that others are compared with: with one token's text it has 200."""
WHOLE_MAX_BYTES: Final = 1 << 20
"""An answer that does not stream is read as JSON up to this size; in a longer one `usage` is searched for."""
USAGE_MAX_BYTES: Final = 4096
"""Of a `usage` object: they are 100 to 500."""
TOKENS_MAX: Final = 1 << 31

_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_EVENT_END_BYTES: Final = 4
_STRING: Final = re.compile(rb'[^"\\\x00-\x1f]*(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*)*')
"""The inside of a JSON string."""
_TEXT: Final = re.compile(
    rb'(?s)(.*?"(?:content|text|reasoning|reasoning_content|arguments|thinking|partial_json)": ?")'
    + _STRING.pattern
    + rb'(".*)'
)
"""An event before and behind the text of its token."""
_USAGE: Final = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')

_ABSENT: Final = msgspec.Raw()
_NULL: Final = b"null"
_NOTHING: Final = (_NULL, b"false", b'""', b"{}", b"[]")
_ERROR_TYPES: Final = (b'"error"', b'"response.failed"')
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Event(msgspec.Struct, gc=False):
    """The fields of any API's event that say what it is; none of them is read further than that asks for."""

    type: msgspec.Raw = _ABSENT
    object: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT
    choices: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT
    delta: msgspec.Raw = _ABSENT
    sequence_number: msgspec.Raw = _ABSENT


class _Inner(msgspec.Struct, gc=False):
    """`response` or `message` in an event, or a whole answer."""

    usage: msgspec.Raw = _ABSENT


class _Delta(msgspec.Struct, gc=False):
    type: msgspec.Raw = _ABSENT
    role: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: msgspec.Raw = _ABSENT


_read_event: Final = msgspec.json.Decoder(_Event).decode
_read_inner: Final = msgspec.json.Decoder(_Inner).decode
_read_delta: Final = msgspec.json.Decoder(_Delta).decode
_read_choices: Final = msgspec.json.Decoder(list[_Choice]).decode
_read_usage: Final = msgspec.json.Decoder(_Usage).decode


class UsageSeen:
    """The latest `usage` of an answer: tokens of its prompt and of its output; None while it has not said."""

    __slots__ = ("completion_tokens", "prompt_tokens")

    def __init__(self) -> None:
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    def take(self, usage: bytes) -> bool:
        """The JSON of a `usage`; False where it says nothing."""
        if usage[:1] != b"{":
            return False
        try:
            said = _read_usage(usage)
        except msgspec.DecodeError:
            return False
        prompt, completion = said.prompt_tokens, said.completion_tokens
        if prompt is None and said.input_tokens is not None:
            # Of a Messages answer: its input without what came from the prefix cache.
            prompt = said.input_tokens + (said.cache_read_input_tokens or 0) + (said.cache_creation_input_tokens or 0)
        if completion is None:
            completion = said.output_tokens
        if prompt is not None and 0 <= prompt <= TOKENS_MAX:
            self.prompt_tokens = prompt
        if completion is not None and 0 <= completion <= TOKENS_MAX:
            self.completion_tokens = completion
        return prompt is not None or completion is not None


class EventCount:
    """One stream's events. An event that brings text is one token. The result does not depend on how the stream is cut into pieces.

    Of a request with several `sequences` (`n`, lists of prompts) each event says whose token it brings.
    """

    __slots__ = (
        "_after",
        "_before",
        "_held",
        "_opened",
        "_overlong",
        "done",
        "ended",
        "failed",
        "several",
        "tokens",
        "tokens_of",
        "usage",
    )

    def __init__(self, sequences: int = 1) -> None:
        self._held = bytearray()
        """The beginning of an event that is incomplete."""
        self._overlong = False
        """That event is too long to be read, and only its end is kept."""
        self._opened: set[int] = set()
        """Sequences of which an event was seen: the first one of a chat only names the role."""
        self._before = b""
        self._after = b""
        """The last token's event before and behind its text; empty before the first that is alike."""
        self.several = sequences > 1
        self.tokens = 0
        """Counted so far; fewer than `usage` says where an engine packs several into one event."""
        self.tokens_of: dict[int, int] = {}
        """Tokens by sequence in the piece that was fed last, where there are several."""
        self.ended: list[int] = []
        """Sequences that ended in it, likewise."""
        self.usage = UsageSeen()
        self.done = False
        """`[DONE]` was seen."""
        self.failed = False
        """The engine put an error event into the stream."""

    @property
    def between(self) -> bool:
        """No event is incomplete."""
        return not self._held

    def feed(self, piece: bytes) -> int:
        """Tokens in the events that `piece` (de-chunked bytes of the body) completes."""
        at = 0
        tokens = 0
        if self.several:
            self.tokens_of.clear()
            self.ended.clear()
        if not self._held:
            if self._before:
                tokens, at = self._take_alike(piece)
                if at == len(piece):
                    self.tokens += tokens
                    return tokens
            start, end = _event_end(piece, at)
            while end:
                tokens += self._take(piece[at:end], start - at)
                at = end
                start, end = _event_end(piece, at)
            self._held += piece[at:]
        else:
            tokens = self._feed_held(piece)
        if len(self._held) > EVENT_MAX_BYTES:
            self._overlong = True
            del self._held[:-_EVENT_END_BYTES]
        self.tokens += tokens
        return tokens

    def _take_alike(self, piece: bytes) -> tuple[int, int]:
        """Events that are the last token's but for the text in them, which no other field depends on: their number, and where they end."""
        before, after = self._before, self._after
        at = tokens = 0
        while piece.startswith(before, at):
            text = _STRING.match(piece, at + len(before))
            assert text is not None
            end = text.end()
            if not piece.startswith(after, end):
                break
            at = end + len(after)
            tokens += 1
        return tokens, at

    def _feed_held(self, piece: bytes) -> int:
        """`feed`, where an event has begun in an earlier piece."""
        held = self._held
        look_from = max(0, len(held) - _EVENT_END_BYTES)
        held += piece
        start, end = _event_end(held, look_from)
        at = tokens = 0
        while end:
            if self._overlong:
                self._overlong = False
                tokens += 1
            else:
                tokens += self._take(bytes(held[at:end]), start - at)
            at = end
            start, end = _event_end(held, at)
        del held[:at]
        return tokens

    def _take(self, event: bytes, length: int) -> int:
        """A complete event, of `length` bytes before its end: how many tokens it brings."""
        name, data = _fields(event[:length])
        if data is None:
            return 0
        if data.strip() == b"[DONE]":
            self.done = True
            return 0
        try:
            said = _read_event(data)
        except (msgspec.DecodeError, RecursionError):
            # No JSON, or none that we know: the engine has said something, and if that is no error, it is a token.
            self.failed = self.failed or name == b"error"
            return int(name != b"error")
        if name == b"error" or _is_error(said):
            self.failed = True
            return 0
        told = said.usage is not _ABSENT and self.usage.take(bytes(said.usage))
        if said.response is not _ABSENT:
            self.usage.take(_usage_in(bytes(said.response)))
        if said.message is not _ABSENT:
            self.usage.take(_usage_in(bytes(said.message)))
        if said.choices is not _ABSENT:
            tokens = self._choices(bytes(said.choices))
        elif said.type is not _ABSENT:
            tokens = _is_text_delta(said)
        else:
            tokens = not told
        if tokens and not told and said.sequence_number is _ABSENT and not self.several:
            self._learn(event)
        return int(tokens)

    def _choices(self, choices: bytes) -> int:
        if choices in (b"[]", _NULL):
            return 0
        if self._opened and not self.several:
            return 1
        try:
            read = _read_choices(choices)
        except msgspec.DecodeError:
            return 1
        tokens = 0
        for choice in read:
            opening = choice.index not in self._opened and choice.delta is not None and _only_names_role(choice.delta)
            self._opened.add(choice.index)
            if not opening:
                tokens += 1
                if self.several:
                    self.tokens_of[choice.index] = self.tokens_of.get(choice.index, 0) + 1
            if self.several and bytes(choice.finish_reason) not in (b"", _NULL):
                self.ended.append(choice.index)
        return tokens if self.several else min(tokens, 1)

    def _learn(self, event: bytes) -> None:
        found = _TEXT.fullmatch(event) if len(event) <= ALIKE_MAX_BYTES else None
        if found is not None:
            self._before, self._after = found.groups()


class WholeAnswer:
    """An answer that does not stream, and the `usage` in it."""

    __slots__ = ("_pieces", "_size", "usage")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self.usage = UsageSeen()

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > WHOLE_MAX_BYTES:
            data = b"".join(self._pieces)
            for usage in _USAGE.findall(data):
                self.usage.take(usage)
            self._pieces = [data[-USAGE_MAX_BYTES:]]

    def end(self) -> None:
        """All of it was fed."""
        if self._size <= WHOLE_MAX_BYTES:
            self.usage.take(_usage_in(b"".join(self._pieces)))
        self._pieces = []


def _event_end(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """Where the empty line begins and ends that ends an event; (0, 0) where there is none."""
    if b"\r" not in data:
        start = data.find(b"\n\n", at)
        return (start, start + 2) if start >= 0 else (0, 0)
    found = _EVENT_END.search(data, at)
    return (0, 0) if found is None else found.span()


def _fields(event: bytes) -> tuple[bytes, bytes | None]:
    """The name and the data of an event; None where it has no data."""
    if event[:6] == b"data: " and b"\n" not in event and b"\r" not in event:
        return b"", event[6:]
    name = b""
    data: list[bytes] = []
    for line in event.removeprefix(_BYTE_ORDER_MARK).splitlines():
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return name, b"\n".join(data) if data else None


def _is_error(said: _Event) -> bool:
    if said.error is not _ABSENT and bytes(said.error) not in _NOTHING:
        return True
    if said.type is not _ABSENT:
        return bytes(said.type) in _ERROR_TYPES
    return bytes(said.object) == b'"error"'


def _is_text_delta(said: _Event) -> bool:
    """Of an event with a type, as Responses and Messages have them: whether it brings generated text (answer, reasoning, arguments)."""
    kind = bytes(said.type)
    if kind.endswith(b'.delta"'):
        return True
    if kind != b'"content_block_delta"':
        return False
    try:
        return bytes(_read_delta(said.delta).type) != b'"signature_delta"'
    except msgspec.DecodeError:
        return True


def _only_names_role(delta: _Delta) -> bool:
    return delta.role is not _ABSENT and bytes(delta.content) in (b"", b'""', _NULL)


def _usage_in(document: bytes) -> bytes:
    """The JSON of the `usage` of a JSON object; empty where it has none."""
    try:
        return bytes(_read_inner(document).usage)
    except (msgspec.DecodeError, RecursionError):
        return b""
