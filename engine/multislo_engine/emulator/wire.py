"""Bytes of the answers: OpenAI's bodies as vLLM fills them in, and server-sent events cut so that a streamed token costs one
concatenation. Used by the streams and by the handlers of the app."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from multislo_engine.emulator.text import TOKEN_BYTES, answer

DONE = b"data: [DONE]\n\n"
MARK = "\x00"
_MARK_JSON = json.dumps(MARK)[1:-1]


class Reply(Protocol):
    """The bytes of one answer, whatever its API: whole, or as the events of a stream."""

    def opening(self, index: int) -> bytes:
        """The events before the first token of a sequence, sent together with it."""
        ...

    def piece(self, index: int, text: str, tokens: int, finish_reason: str | None) -> bytes:
        """The event of some text of a sequence, which has `tokens` with it; `finish_reason` on its last one."""
        ...

    def halves(self, index: int) -> tuple[bytes, bytes] | None:
        """An event before and behind its text, where all are alike."""
        ...

    def closing(self, ends: Sequence[tuple[int, str]]) -> bytes:
        """The events after the last token: each sequence's tokens and why it ended."""
        ...

    def whole(self, ends: Sequence[tuple[int, str]]) -> bytes: ...


@dataclass(frozen=True, slots=True)
class CompletionReply:
    """OpenAI's chats and completions. `prompt_tokens` are those of all prompts."""

    id: str
    created: int
    model: str
    chat: bool
    prompt_tokens: int
    include_usage: bool = False
    continuous_usage: bool = False

    def usage(self, output_tokens: int) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + output_tokens,
            "completion_tokens": output_tokens,
            "prompt_tokens_details": None,
        }

    def whole(self, ends: Sequence[tuple[int, str]]) -> bytes:
        choices = []
        for index, (tokens, finish_reason) in enumerate(ends):
            choice: dict[str, Any] = {"index": index}
            text = answer(0, tokens)
            if self.chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}
            else:
                choice["text"] = text
            choices.append(choice | {"logprobs": None, "finish_reason": finish_reason, "stop_reason": None})
        kind = "chat.completion" if self.chat else "text_completion"
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return dumps(head | {"choices": choices, "usage": self.usage(sum(tokens for tokens, _ in ends))})

    def opening(self, index: int) -> bytes:
        if not self.chat:
            return b""
        return self._event({"index": index, "delta": {"role": "assistant", "content": ""}}, None, 0)

    def piece(self, index: int, text: str, tokens: int, finish_reason: str | None) -> bytes:
        choice = {"delta": {"content": text}} if self.chat else {"text": text}
        return self._event({"index": index, **choice}, finish_reason, tokens)

    def halves(self, index: int) -> tuple[bytes, bytes] | None:
        return None if self.continuous_usage else split_at_text(self.piece(index, MARK, 0, None))

    def closing(self, ends: Sequence[tuple[int, str]]) -> bytes:
        if not self.include_usage:
            return DONE
        usage = self.usage(sum(tokens for tokens, _ in ends))
        return b"data: " + dumps({**self._head(), "choices": [], "usage": usage}) + b"\n\n" + DONE

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
        }

    def _event(self, choice: dict[str, Any], finish_reason: str | None, tokens: int) -> bytes:
        choice |= {"logprobs": None, "finish_reason": finish_reason}
        if finish_reason is not None or not self.chat:
            choice["stop_reason"] = None
        body: dict[str, Any] = {**self._head(), "choices": [choice]}
        if self.continuous_usage:
            body["usage"] = self.usage(tokens)
        return b"data: " + dumps(body) + b"\n\n"


def split_at_text(event: bytes) -> tuple[bytes, bytes]:
    """An event with `MARK` as its text: before and behind it, for texts that JSON need not escape."""
    before, behind = event.split(_MARK_JSON.encode())
    return before, behind


def framed(data: bytes) -> bytes:
    """One chunk of chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def framed_halves(before: bytes, behind: bytes) -> tuple[bytes, bytes]:
    """The two parts around one token's text, framing included: every token's text has the same length."""
    return b"%x\r\n%b" % (len(before) + TOKEN_BYTES + len(behind), before), behind + b"\r\n"


def dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
