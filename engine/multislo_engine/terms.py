"""The terms of the engine model: what an engine was started with, what a request asks of it, and what an iteration yields. Plain
values, used by all code that runs a model."""

from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine was started with."""

    kv_tokens_max: int
    batch_tokens: int
    """`max_num_batched_tokens`."""
    seqs_max: int = 1024
    block_tokens: int = 16
    queue_max: int | None = None
    """`max_num_queued_reqs`: a request that finds as many waiting is refused."""

    def __post_init__(self) -> None:
        for name in ("kv_tokens_max", "batch_tokens", "seqs_max", "block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.queue_max is not None and self.queue_max < 1:
            raise ValueError(f"queue_max: {self.queue_max} must be at least 1, or None for no limit")
        if self.kv_tokens_max < self.block_tokens:
            raise ValueError(f"kv_tokens_max: {self.kv_tokens_max} must hold one block of {self.block_tokens} tokens")


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request. `ttft_due_s` is the instant at which its first token is due (infinite: it has no SLO)."""

    id: int
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    ttft_due_s: float = inf
    tpot_s: float = inf
    second_due_s: float = -inf
    """When its first token is due once `ttft_due_s` is out of reach; no later than that: it has no second deadline."""
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache; they still take KV blocks of their own."""
    prefilled: bool = False
    """Its prompt was computed elsewhere, all but the last token, and the KV comes with it: it is among the decodes from the start."""
    forks: tuple[tuple[int, int], ...] = ()
    """Id and output tokens of further sequences of its prompt (`n`): they part from it at its first token, and share the blocks that the
    prompt fills."""


class EngineToken(NamedTuple):
    """Output token `index` (from 0) of request `id`, made at `at`; `finished` on the last one."""

    id: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a token
    at: float
    finished: bool


class EngineEnd(NamedTuple):
    """The last token of request `id` was made; `late` of its tokens came after they were due."""

    id: int
    tokens: int
    late: int


@dataclass(slots=True)
class Iteration:
    """What one iteration yielded, without an object a token: a token for every request that decodes but those `left_out`, and one for
    each whose prefill ended in it."""

    at: float
    decoded: int
    """How many decodes got a token."""
    left_out: list[int] = field(default_factory=list)
    """Ids of those past their prefill that got none: left out by the planner, preempted, or not yet let in."""
    prefilled: list[EngineToken] = field(default_factory=list)
    ended: list[EngineEnd] = field(default_factory=list)
