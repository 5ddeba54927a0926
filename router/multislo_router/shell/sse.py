"""Counts tokens in an engine's answer on its way through, without parsing JSON. Called by the exchange for each piece of a body.

What is searched for cannot be forged by a generated text: inside a JSON string a quote and a newline are always escaped.
"""

import re

LINE_MAX_BYTES = 1 << 20
"""Of an event that is still incomplete: log-probabilities of one token are some KB. Beyond it the rest of the line is not looked at."""
TAIL_BYTES = 4096
"""`usage` is among the last fields of an answer that does not stream."""
_DONE = re.compile(rb"(?:^|\n)data: ?\[DONE\]")
_EMPTY_DELTA = re.compile(rb'"content":\s*""')
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens":\s*(\d{1,12})')
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":\s*(\d{1,12})')


class EventCount:
    """One stream's events. A token is a complete `data:` line other than `[DONE]`, an error, a usage-only event or the opening one
    that only names the role. The result does not depend on how the stream is cut into pieces."""

    __slots__ = ("_held", "_held_bytes", "_opened", "completion_tokens", "done", "failed", "prompt_tokens", "tokens")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._opened = False
        self.done = False
        """`[DONE]` was seen."""
        self.failed = False
        """The engine put an error event into the stream."""
        self.tokens = 0
        """Counted so far; fewer than `completion_tokens` where an engine packs several into one event."""
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        """By the last `usage` in the stream."""

    def feed(self, piece: bytes) -> int:
        """Tokens that `piece` (de-chunked bytes of the body) completes."""
        if self._held or piece[-1:] != b"\n":
            piece = self._lines(piece)
            if not piece:
                return 0
        tokens = piece.count(b"\ndata:")
        if piece[:5] == b"data:":
            tokens += 1
        if not self._opened and tokens:
            self._opened = True
            first = piece[: piece.find(b"\n", piece.find(b"data:"))]
            if b'"role":' in first and _EMPTY_DELTA.search(first):
                tokens -= 1
        if b"[DONE]" in piece and _DONE.search(piece) is not None:
            self.done = True
            tokens -= 1
        if b'"choices":[]' in piece or b'"choices": []' in piece:
            tokens -= piece.count(b'"choices":[]') + piece.count(b'"choices": []')
        if b'"prompt_tokens":' in piece:
            self._read_usage(piece)
        if b'data: {"error":' in piece:
            self.failed = True
            tokens -= piece.count(b'data: {"error":')
        if tokens <= 0:
            return 0
        self.tokens += tokens
        return tokens

    def _lines(self, piece: bytes) -> bytes:
        """The complete lines up to the end of `piece`; keeps what is left."""
        end = piece.rfind(b"\n") + 1
        if not end:
            room = LINE_MAX_BYTES - self._held_bytes
            if room > 0 and piece:
                self._held.append(piece[:room])
                self._held_bytes += len(self._held[-1])
            return b""
        self._held.append(piece[:end])
        lines = b"".join(self._held)
        rest = piece[end:]
        self._held = [rest] if rest else []
        self._held_bytes = len(rest)
        return lines

    def _read_usage(self, piece: bytes) -> None:
        if (prompt := _PROMPT_TOKENS.search(piece)) is not None:
            self.prompt_tokens = int(prompt[1])
        if completions := _COMPLETION_TOKENS.findall(piece):
            self.completion_tokens = int(completions[-1])


class UsageTail:
    """The end of an answer that does not stream, and the `usage` in it."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, piece: bytes) -> None:
        self._tail = piece[-TAIL_BYTES:] if len(piece) >= TAIL_BYTES else (self._tail + piece)[-TAIL_BYTES:]

    def usage(self) -> tuple[int | None, int | None]:
        """Prompt and completion tokens; None where the answer does not say."""
        tail = self._tail
        at = tail.rfind(b'"usage":')
        if at < 0:
            return None, None
        prompt = _PROMPT_TOKENS.search(tail, at)
        completion = _COMPLETION_TOKENS.search(tail, at)
        return (int(prompt[1]) if prompt else None, int(completion[1]) if completion else None)
