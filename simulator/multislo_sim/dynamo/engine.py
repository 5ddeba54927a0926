"""Our latency model in the two forms that NVIDIA's parts need: tables that its mocker interpolates, and passes that its planner learns
from. Also compares the mocker's passes with the model. Called by `replay`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multislo_perf.latency import LatencyModel

PREFILLS = (0, 1, *range(32, 512, 32), *range(512, 16_385, 128))
"""Tokens. The mocker goes on in a straight line beyond the last."""
CONTEXTS = (
    1,
    32,
    64,
    128,
    192,
    256,
    384,
    512,
    640,
    768,
    896,
    1024,
    1280,
    1536,
    1792,
    2048,
    2560,
    3072,
    4096,
    6144,
    8192,
)
LONG_CONTEXTS = (16_384, 65_536, 131_072)
TOLD_CONTEXTS = (250, 500, 1000, 2000, 4000)
TOLD_DECODES = (0, 1, 8, 16, 32, 64, 96, 128, 192, 256)


@dataclass(frozen=True, slots=True)
class Usual:
    """What the mocker's tables cannot know of a pass and are made for."""

    decodes: int
    """Beside a prefill."""
    attention_per_token_s: float
    """Of a prompt's token, averaged over all prompts: the tables know no context before a chunk."""


def write_profile(path: Path, law: LatencyModel, kv_tokens_max: int, usual: Usual) -> None:
    """The mocker's tables: milliseconds of a pass's prefills by their tokens, of its decodes by their KV tokens and mean context.

    A pass takes the sum of both, so a prefill is told as what it adds to a pass with the usual decodes: that pass comes out as by the law,
    and one without decodes too short by about an empty pass. All prompts together take as long as by the law, long ones less.
    """
    beside_s = law.tokens_s(usual.decodes)
    prefills_ms = [
        1000.0 * (law.tokens_s(n + usual.decodes) - beside_s + n * usual.attention_per_token_s) for n in PREFILLS
    ]
    kv = np.array(
        [*range(0, 8000, 500), *range(8000, 64_000, 4000), *range(64_000, kv_tokens_max + 16_000, 16_000)], float
    )
    contexts = np.array(CONTEXTS + LONG_CONTEXTS, float)
    kv_tokens, context = np.meshgrid(kv, contexts, indexing="ij")
    decodes = kv_tokens / context
    tokens_s = law.fixed_s + np.maximum(
        law.weights_s + law.weights_per_token_s * decodes, law.gemm_s + law.gemm_per_token_s * decodes
    )
    np.savez(
        path,
        prefill_isl=np.array(PREFILLS, float),
        prefill_ttft_ms=np.array(prefills_ms),
        decode_active_kv_tokens=kv,
        decode_context_length=contexts,
        decode_itl=1000.0 * (tokens_s + law.per_decode_s * decodes + law.per_kv_token_s * kv_tokens),
    )


def passes_told(law: LatencyModel, batch_tokens: int) -> list[tuple[int, int, int, float]]:
    """Prefill tokens, decodes, KV tokens and seconds of passes over what an engine meets: what a profiling run would have measured."""
    told = []
    for prefill in (0, batch_tokens // 8, batch_tokens // 4, batch_tokens // 2, batch_tokens):
        for decodes in TOLD_DECODES:
            for context in TOLD_CONTEXTS if decodes else (0,):
                if prefill + decodes:
                    kv_tokens = decodes * context
                    told.append((prefill, decodes, kv_tokens, law.iteration_s(prefill, 0, decodes, kv_tokens)))
    return told


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Passes of one kind, and their seconds in the mocker as a share of those by the law."""

    passes: int
    ratio: float


def mismatch(law: LatencyModel, passes: Iterable[Sequence[float]]) -> dict[str, Mismatch]:
    """By kind (decode, prefill, mixed) and over `all`; each pass as the driver reports it."""
    sums: dict[str, tuple[int, float, float]] = {}
    for prompts, chunk_tokens, context, decodes, kv_tokens, wall_s in passes:
        if not prompts and not decodes:
            continue
        kind = "mixed" if prompts and decodes else "prefill" if prompts else "decode"
        due_s = law.tokens_s(int(chunk_tokens + decodes)) + law.per_decode_s * decodes + law.per_kv_token_s * kv_tokens
        if prompts:
            due_s += prompts * law.attention_s(int(chunk_tokens / prompts), int(context / prompts))
        for name in (kind, "all"):
            count, took_s, by_law_s = sums.get(name, (0, 0.0, 0.0))
            sums[name] = (count + 1, took_s + wall_s, by_law_s + due_s)
    return {name: Mismatch(count, took_s / by_law_s) for name, (count, took_s, by_law_s) in sums.items()}
