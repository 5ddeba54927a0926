"""Bytes of the answers: OpenAI's bodies as vLLM fills them in, and server-sent events cut so that a streamed token costs one
concatenation. Used by the streams and by the handlers of the app."""

import json
from dataclasses import dataclass
from typing import Any

from multislo_engine.emulator.text import TOKEN_BYTES, answer

DONE = b"data: [DONE]\n\n"
_MARK = "\x00"
_MARK_JSON = json.dumps(_MARK)[1:-1]


@dataclass(frozen=True, slots=True)
class Reply:
    """What all chunks of one answer have in common."""

    id: str
    created: int
    model: str
    chat: bool
    prompt_tokens: int

    def usage(self, output_tokens: int) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + output_tokens,
            "completion_tokens": output_tokens,
            "prompt_tokens_details": None,
        }

    def whole(self, tokens: int, finish_reason: str) -> bytes:
        """The body of an answer that is not streamed."""
        text = answer(0, tokens)
        choice: dict[str, Any] = {"index": 0}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
        return _dumps(
            {
                "id": self.id,
                "object": "chat.completion" if self.chat else "text_completion",
                "created": self.created,
                "model": self.model,
                "choices": [choice],
                "usage": self.usage(tokens),
            }
        )

    def chunk(self, text: str, finish_reason: str | None, usage: dict[str, Any] | None = None) -> bytes:
        """One event of a stream."""
        if self.chat:
            return self._event({"index": 0, "delta": {"content": text}}, finish_reason, usage)
        return self._event({"index": 0, "text": text}, finish_reason, usage)

    def role_chunk(self, usage: dict[str, Any] | None = None) -> bytes:
        """The event that opens a chat, sent with the first token and not before."""
        return self._event({"index": 0, "delta": {"role": "assistant", "content": ""}}, None, usage)

    def usage_chunk(self, output_tokens: int) -> bytes:
        """The event behind the last token that `include_usage` asks for."""
        return b"data: " + _dumps({**self._head(), "choices": [], "usage": self.usage(output_tokens)}) + b"\n\n"

    def halves(self) -> tuple[bytes, bytes]:
        """An event before and behind its text, for texts that JSON need not escape."""
        before, behind = self.chunk(_MARK, None).split(_MARK_JSON.encode())
        return before, behind

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
        }

    def _event(self, choice: dict[str, Any], finish_reason: str | None, usage: dict[str, Any] | None) -> bytes:
        choice |= {"logprobs": None, "finish_reason": finish_reason}
        if finish_reason is not None or not self.chat:
            choice["stop_reason"] = None
        body: dict[str, Any] = {**self._head(), "choices": [choice]}
        if usage is not None:
            body["usage"] = usage
        return b"data: " + _dumps(body) + b"\n\n"


def framed(data: bytes) -> bytes:
    """One chunk of chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def framed_halves(before: bytes, behind: bytes) -> tuple[bytes, bytes]:
    """The two parts around one token's text, framing included: every token's text has the same length."""
    return b"%x\r\n%b" % (len(before) + TOKEN_BYTES + len(behind), before), behind + b"\r\n"


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
