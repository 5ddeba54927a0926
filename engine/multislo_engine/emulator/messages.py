"""Anthropic's Messages API as vLLM fills it in: the whole message, and the events of its stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from multislo_engine.emulator.text import answer
from multislo_engine.emulator.wire import MARK, dumps, split_at_text

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "abort": "end_turn"}


@dataclass(frozen=True, slots=True)
class MessagesReply:
    """A message has one sequence; `index` is always 0."""

    id: str
    model: str
    prompt_tokens: int

    def whole(self, ends: Sequence[tuple[int, str]]) -> bytes:
        ((tokens, finish_reason),) = ends
        content = [{"type": "text", "text": answer(0, tokens)}] if tokens else []
        return dumps(self._message(content, STOP_REASONS[finish_reason], tokens))

    def opening(self, index: int) -> bytes:
        start = {"type": "message_start", "message": self._message([], None, 0)}
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        return _event(start) + _event(block)

    def piece(self, index: int, text: str, tokens: int, finish_reason: str | None) -> bytes:
        if not text:
            return b""
        return _event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})

    def halves(self, index: int) -> tuple[bytes, bytes] | None:
        return split_at_text(self.piece(index, MARK, 0, None))

    def closing(self, ends: Sequence[tuple[int, str]]) -> bytes:
        ((tokens, finish_reason),) = ends
        usage = {"input_tokens": self.prompt_tokens, "output_tokens": tokens}
        delta = {"type": "message_delta", "delta": {"stop_reason": STOP_REASONS[finish_reason]}, "usage": usage}
        return _event({"type": "content_block_stop", "index": 0}) + _event(delta) + _event({"type": "message_stop"})

    def _message(self, content: list[dict[str, Any]], stop_reason: str | None, output_tokens: int) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.model,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": {"input_tokens": self.prompt_tokens, "output_tokens": output_tokens},
        }


def error_body(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def _event(document: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (document["type"].encode(), dumps(document))
