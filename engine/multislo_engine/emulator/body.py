"""Request bodies of the emulator: what a client may send to /v1/completions and /v1/chat/completions, and the errors for wrong
requests. Only fields that affect timing are modelled; all others are accepted and ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multislo_engine.emulator.text import CHAT_TOKENS, MESSAGE_TOKENS, count_tokens

CHOICES_MAX = 16_384
"""Of `n`: vLLM's."""
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
    role: str = "user"
    content: str | list[dict[str, Any]] | None = None


Choices = Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None


class _Body(_Part):
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: int = 0
    vllm_xargs: dict[str, Any] | None = None


class CompletionBody(_Body):
    n: Choices = None
    prompt: str | list[int] | list[str] | list[list[int]]


class ChatBody(_Body):
    n: Choices = None
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class Item(_Part):
    """Of a response's input: a message, a function call, or its output."""

    content: str | list[dict[str, Any]] | None = None
    output: str | list[dict[str, Any]] | None = None
    arguments: str | None = None


class ResponsesBody(_Body):
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] = "auto"
    previous_response_id: str | None = None
    background: bool | None = None


class MessagesBody(_Body):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    system: str | list[dict[str, Any]] | None = None


class CountTokensBody(_Part):
    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    system: str | list[dict[str, Any]] | None = None


class TokenizeBody(_Part):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: bool = False


class DetokenizeBody(_Part):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


@dataclass(frozen=True, slots=True)
class Slo:
    """What is left of a request's deadlines when it arrives here, seconds; the defaults are those of one that has none."""

    ttft_s: float = inf
    tpot_s: float = inf
    late_ttft_s: float = -inf
    """Counts once `ttft_s` is out of reach."""


@dataclass(slots=True)
class Ask:
    """An accepted request. `output_tokens_max` None: the client leaves the length to the model."""

    model: str | None
    prompts: tuple[int, ...]
    """The tokens of each."""
    choices: int
    output_tokens_max: int | None
    output_tokens_min: int
    ignore_eos: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    priority: int
    slo: Slo


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
    if isinstance(prompt, str):
        tokens = [count_tokens(prompt)]
    elif prompt and isinstance(prompt[0], int):
        tokens = [len(prompt)]
    else:
        tokens = [count_tokens(one) if isinstance(one, str) else len(one) for one in prompt if not isinstance(one, int)]
    if not tokens or min(tokens) < 1:
        raise bad_request("prompt: must hold at least one token", "prompt")
    limit = body.max_tokens
    if limit is None and not body.ignore_eos:
        limit = COMPLETION_TOKENS_DEFAULT
    return _ask(body, tuple(tokens), limit, body.n or 1)


def chat_ask(raw: bytes) -> Ask:
    body = parse(ChatBody, raw)
    return _ask(body, (chat_tokens(body.messages),), body.max_completion_tokens or body.max_tokens, body.n or 1)


def responses_ask(raw: bytes) -> Ask:
    body = parse(ResponsesBody, raw)
    if body.previous_response_id is not None:
        message = f"previous_response_id: {body.previous_response_id!r} is not stored here"
        raise Refusal(404, "invalid_request_error", message, "previous_response_id")
    if body.background:
        raise bad_request("background: needs a store, which this server has not", "background")
    if isinstance(body.input, str):
        messages = [Message(content=body.input)]
    else:
        messages = [Message(content=item.content or item.output or item.arguments) for item in body.input]
    if body.instructions is not None:
        messages.append(Message(role="system", content=body.instructions))
    return _ask(body, (chat_tokens(messages),), body.max_output_tokens)


def messages_ask(raw: bytes) -> Ask:
    body = parse(MessagesBody, raw)
    return _ask(body, (messages_tokens(body),), body.max_tokens)


def messages_tokens(body: MessagesBody | CountTokensBody) -> int:
    system = [] if body.system is None else [Message(role="system", content=body.system)]
    return chat_tokens([*system, *body.messages])


def chat_tokens(messages: Sequence[Message]) -> int:
    total = CHAT_TOKENS
    for message in messages:
        content = message.content
        if isinstance(content, list):
            content = "".join([str(part.get("text", "")) for part in content])
        total += MESSAGE_TOKENS + (count_tokens(content) if content else 0)
    return total


def _ask(body: _Body, prompts: tuple[int, ...], limit: int | None, choices: int = 1) -> Ask:
    options = body.stream_options
    if options is not None and not body.stream:
        raise bad_request("stream_options: may only be given together with stream: true", "stream_options")
    if limit is not None and body.min_tokens > limit:
        raise bad_request(f"min_tokens: {body.min_tokens} must be at most max_tokens ({limit})", "min_tokens")
    xargs = body.vllm_xargs or {}
    return Ask(
        model=body.model,
        prompts=prompts,
        choices=choices,
        output_tokens_max=limit,
        output_tokens_min=body.min_tokens,
        ignore_eos=body.ignore_eos,
        stream=body.stream,
        include_usage=options is not None and options.include_usage,
        continuous_usage=options is not None and options.include_usage and options.continuous_usage_stats,
        priority=body.priority,
        slo=Slo(
            _seconds(xargs, "slo_ttft_ms", inf),
            _seconds(xargs, "slo_tpot_ms", inf),
            _seconds(xargs, "slo_late_ttft_ms", -inf),
        ),
    )


def _seconds(xargs: dict[str, Any], name: str, default: float) -> float:
    value = xargs.get(name)
    if value is None:
        return default
    try:
        seconds = float(value) / 1000.0
    except (TypeError, ValueError):
        raise bad_request(f"vllm_xargs.{name}: {value!r} is not a number of milliseconds", "vllm_xargs") from None
    # A first token may be overdue when it arrives here (negative); a pace may not.
    if seconds != seconds or (name == "slo_tpot_ms" and seconds <= 0.0):
        raise bad_request(f"vllm_xargs.{name}: {value!r} must be above 0", "vllm_xargs")
    return seconds
