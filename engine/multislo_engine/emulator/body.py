"""Request bodies of the emulator: what a client may send to /v1/completions and /v1/chat/completions, and the errors for wrong
requests. Only fields that affect timing are modelled; all others are accepted and ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multislo_engine.emulator.text import CHAT_TOKENS, MESSAGE_TOKENS, count_tokens

COMPLETION_TOKENS_DEFAULT = 16
"""`max_tokens` of /v1/completions where the client sets none: OpenAI's default, and vLLM's."""


_BodyT = TypeVar("_BodyT", bound=BaseModel)


class Refusal(Exception):
    """A request that gets no answer but an error: HTTP status, OpenAI's error type, and the field that is wrong."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}}


def bad_request(message: str, param: str | None = None) -> Refusal:
    return Refusal(400, "BadRequestError", message, param)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class StreamOptions(_Part):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Message(_Part):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _Body(_Part):
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: int = 0
    n: int = 1
    vllm_xargs: dict[str, Any] | None = None


class CompletionBody(_Body):
    prompt: str | list[int] | list[str] | list[list[int]]


class ChatBody(_Body):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class TokenizeBody(_Part):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: bool = False


class DetokenizeBody(_Part):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


@dataclass(slots=True)
class Ask:
    """An accepted request. `output_tokens_max` None: the client leaves the length to the model."""

    model: str | None
    prompt_tokens: int
    output_tokens_max: int | None
    output_tokens_min: int
    ignore_eos: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    priority: int
    slo_ttft_s: float | None
    slo_tpot_s: float | None


def parse(kind: type[_BodyT], raw: bytes) -> _BodyT:
    """Raises Refusal 400 that names the field."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise bad_request(f"{field or 'body'}: {problem['msg']}", field or None) from None


def completion_ask(raw: bytes) -> Ask:
    body = parse(CompletionBody, raw)
    prompt = body.prompt
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise bad_request(f"prompt: {len(prompt)} prompts in one request; the emulator serves one", "prompt")
        first = prompt[0]
        assert not isinstance(first, int)
        tokens = count_tokens(first) if isinstance(first, str) else len(first)
    else:
        tokens = count_tokens(prompt) if isinstance(prompt, str) else len(prompt)
    if tokens < 1:
        raise bad_request("prompt: must hold at least one token", "prompt")
    limit = body.max_tokens
    if limit is None and not body.ignore_eos:
        limit = COMPLETION_TOKENS_DEFAULT
    return _ask(body, tokens, limit)


def chat_ask(raw: bytes) -> Ask:
    body = parse(ChatBody, raw)
    return _ask(body, chat_tokens(body.messages), body.max_completion_tokens or body.max_tokens)


def chat_tokens(messages: Sequence[Message]) -> int:
    total = CHAT_TOKENS
    for message in messages:
        content = message.content
        if isinstance(content, list):
            content = "".join([str(part.get("text", "")) for part in content])
        total += MESSAGE_TOKENS + (count_tokens(content) if content else 0)
    return total


def _ask(body: _Body, prompt_tokens: int, limit: int | None) -> Ask:
    if body.n != 1:
        raise bad_request(f"n: {body.n} is not served by the emulator; it must be 1", "n")
    options = body.stream_options
    if options is not None and not body.stream:
        raise bad_request("stream_options: may only be given together with stream: true", "stream_options")
    if limit is not None and body.min_tokens > limit:
        raise bad_request(f"min_tokens: {body.min_tokens} must be at most max_tokens ({limit})", "min_tokens")
    xargs = body.vllm_xargs or {}
    return Ask(
        model=body.model,
        prompt_tokens=prompt_tokens,
        output_tokens_max=limit,
        output_tokens_min=body.min_tokens,
        ignore_eos=body.ignore_eos,
        stream=body.stream,
        include_usage=options is not None and options.include_usage,
        continuous_usage=options is not None and options.include_usage and options.continuous_usage_stats,
        priority=body.priority,
        slo_ttft_s=_milliseconds(xargs, "slo_ttft_ms"),
        slo_tpot_s=_milliseconds(xargs, "slo_tpot_ms"),
    )


def _milliseconds(xargs: dict[str, Any], name: str) -> float | None:
    value = xargs.get(name)
    if value is None:
        return None
    try:
        seconds = float(value) / 1000.0
    except (TypeError, ValueError):
        raise bad_request(f"vllm_xargs.{name}: {value!r} is not a number of milliseconds", "vllm_xargs") from None
    # A first token may be overdue when it arrives here (negative); a pace may not.
    if seconds != seconds or (name == "slo_tpot_ms" and seconds <= 0.0):
        raise bad_request(f"vllm_xargs.{name}: {value!r} must be above 0", "vllm_xargs")
    return seconds
