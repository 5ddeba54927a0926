"""OpenAI's Responses API as vLLM fills it in: the whole response, and the events of its stream."""

from collections.abc import Sequence
from typing import Any

from multislo_engine.emulator.text import answer
from multislo_engine.emulator.wire import dumps


class ResponsesReply:
    """A response has one sequence; `index` is always 0. Its events are numbered."""

    __slots__ = ("_created", "_id", "_item_id", "_model", "_next", "_prompt_tokens")

    def __init__(self, id: str, created: int, model: str, prompt_tokens: int) -> None:
        self._id = id
        self._created = created
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._item_id = id.replace("resp_", "msg_", 1)
        self._next = 0

    def whole(self, ends: Sequence[tuple[int, str]]) -> bytes:
        ((tokens, finish_reason),) = ends
        return dumps(self._response(tokens, finish_reason))

    def opening(self, index: int) -> bytes:
        response = self._response(0, None)
        item = self._item([], "in_progress")
        part = self._part("")
        return (
            self._event("response.created", response=response)
            + self._event("response.in_progress", response=response)
            + self._event("response.output_item.added", item=item, output_index=0)
            + self._event(
                "response.content_part.added", content_index=0, item_id=self._item_id, output_index=0, part=part
            )
        )

    def piece(self, index: int, text: str, tokens: int, finish_reason: str | None) -> bytes:
        if not text:
            return b""
        place = {"content_index": 0, "delta": text, "item_id": self._item_id, "logprobs": [], "output_index": 0}
        return self._event("response.output_text.delta", **place)

    def halves(self, index: int) -> tuple[bytes, bytes] | None:
        return None

    def closing(self, ends: Sequence[tuple[int, str]]) -> bytes:
        ((tokens, finish_reason),) = ends
        part = self._part(answer(0, tokens))
        place = {"content_index": 0, "item_id": self._item_id, "output_index": 0}
        return (
            self._event("response.output_text.done", **place, logprobs=[], text=part["text"])
            + self._event("response.content_part.done", **place, part=part)
            + self._event("response.output_item.done", item=self._item([part], "completed"), output_index=0)
            + self._event("response.completed", response=self._response(tokens, finish_reason))
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        document = {**fields, "sequence_number": self._next, "type": kind}
        self._next += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), dumps(document))

    def _part(self, text: str) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": []}

    def _item(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {"id": self._item_id, "content": content, "role": "assistant", "status": status, "type": "message"}

    def _response(self, tokens: int, finish_reason: str | None) -> dict[str, Any]:
        """`finish_reason` None: it is under way."""
        status = {None: "in_progress", "length": "incomplete"}.get(finish_reason, "completed")
        usage = {
            "input_tokens": self._prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._prompt_tokens + tokens,
        }
        return {
            "id": self._id,
            "created_at": self._created,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": None,
            "metadata": None,
            "model": self._model,
            "object": "response",
            "output": [] if finish_reason is None else [self._item([self._part(answer(0, tokens))], "completed")],
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "background": False,
            "max_output_tokens": None,
            "previous_response_id": None,
            "service_tier": "auto",
            "status": status,
            "text": None,
            "top_logprobs": 0,
            "truncation": "disabled",
            "usage": None if finish_reason is None else usage,
            "user": None,
        }
