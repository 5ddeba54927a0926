"""Sizes that follow from a latency model for an instance of a tier: its token budget, the TTFT of an idle instance, the SLOs that it
cannot meet. Pure; called by the operator (flags of an engine), by checks that warn, and by `multislo profile show`."""

from dataclasses import dataclass
from typing import Literal

from multislo_perf.latency import LatencyModel

BATCH_TOKENS_STEP = 256  # GEMMs run in tiles of 128 to 256 tokens: what lies between two steps is paid and not used
BATCH_TOKENS_MIN = 256
BATCH_TOKENS_MAX = 8192  # of 8,192 tokens, the fixed cost of an iteration is a twenty-fifth on an H200
PREFILL_SHARE = 0.7  # of a tier's TPOT; the rest is for the decodes that share the iteration
DECODES_TYPICAL, CONTEXT_TYPICAL = 128, 1500  # what an instance of a chat model decodes at once under load
SLACK_ITERATIONS = 2.0  # a prefill may take the slack that a decode has saved up in so many iterations


@dataclass(frozen=True, slots=True)
class Unattainable:
    """An SLO that even an idle instance misses."""

    slo: Literal["ttft", "tpot"]
    asked_s: float
    idle_s: float


def batch_tokens(latency: LatencyModel, tpot_s: float) -> int:
    """Tokens an iteration (`max_num_batched_tokens`) for a tier: the largest step whose pure prefill takes at most 0.7 of the
    TPOT, or twice the slack that a typical decode iteration leaves of it. Between prefills the decodes of a loose tier run
    ahead of their deadlines; a router that follows the queues lets a long prompt spend that, and fixed cost is saved."""
    decode_s = latency.iteration_s(0, 0, DECODES_TYPICAL, DECODES_TYPICAL * CONTEXT_TYPICAL)
    budget_s = max(PREFILL_SHARE * tpot_s, SLACK_ITERATIONS * (tpot_s - decode_s))
    steps = latency.chunk_max(budget_s, 0, 0, 0) // BATCH_TOKENS_STEP
    return min(BATCH_TOKENS_MAX, max(BATCH_TOKENS_MIN, steps * BATCH_TOKENS_STEP))


def idle_ttft_s(latency: LatencyModel, prompt_tokens: int, batch_tokens: int) -> float:
    """Seconds from a prompt's arrival at an idle instance to its first token."""
    return latency.prefill_s(prompt_tokens, 0, batch_tokens, 0, 0)


def idle_tpot_s(latency: LatencyModel, context_tokens: int) -> float:
    """Seconds a token of a request that has an instance to itself."""
    return latency.iteration_s(0, 0, 1, context_tokens)


def prefill_rate(latency: LatencyModel, batch_tokens: int) -> float:
    """Prompt tokens a second of an instance that only prefills, short prompts."""
    return batch_tokens / latency.iteration_s(batch_tokens, 0, 0, 0)


def unattainable(latency: LatencyModel, ttft_s: float, tpot_s: float, prompt_tokens: int = 1) -> list[Unattainable]:
    """Which of the two SLOs an idle instance, sized for this TPOT, misses with a prompt this long. Empty where it meets both."""
    ttft_idle_s = idle_ttft_s(latency, prompt_tokens, batch_tokens(latency, tpot_s))
    tpot_idle_s = idle_tpot_s(latency, prompt_tokens + 1)
    found: list[Unattainable] = []
    if ttft_idle_s > ttft_s:
        found.append(Unattainable("ttft", ttft_s, ttft_idle_s))
    if tpot_idle_s > tpot_s:
        found.append(Unattainable("tpot", tpot_s, tpot_idle_s))
    return found
