"""Code shared by several planners: which waiting jobs may be admitted, and how chunks are cut to a budget of seconds."""

from collections.abc import Iterable
from math import inf

from multislo_engine.planners.view import EngineView, Job
from multislo_perf.latency import LatencyModel

WAITING_CONSIDERED = 16
"""So many of the waiting are looked at an iteration: more never fit in one."""


def admissible(view: EngineView, queue: Iterable[Job]) -> list[Job]:
    """The waiting jobs, in this order, that free KV blocks and seats allow; no smaller job passes one that does not fit, or it might
    wait for ever."""
    if not view.admitting:
        return []
    seats = view.seqs_max - len(view.decodes.jobs) - len(view.prefills)
    free = view.blocks_free - view.blocks_promised()
    found: list[Job] = []
    for job in queue:
        free -= view.blocks(job.tokens)
        if free < 0 or len(found) >= seats:
            break
        found.append(job)
    return found


def cut(
    law: LatencyModel, view: EngineView, queue: Iterable[Job], budget_s: float, tokens_max: int
) -> list[tuple[Job, int]]:
    """Chunks in this order, beside all decodes, as many tokens as fit in `budget_s` and `tokens_max`; the first gets one in any case."""
    decodes = len(view.decodes.jobs)
    chunks: list[tuple[Job, int]] = []
    used = 0
    for job in queue:
        tokens = min(job.prefill_tokens, tokens_max - used)
        if budget_s < inf and tokens > 0:
            # Chunks before this one count as tokens of the batch, but not as decodes.
            rest_s = budget_s + law.per_decode_s * used
            fits = law.chunk_max(rest_s, job.context, decodes + used, view.decode_kv_tokens)
            tokens = min(tokens, fits if chunks else max(fits, 1))
        if tokens <= 0:
            break
        chunks.append((job, tokens))
        used += tokens
        budget_s -= law.attention_s(tokens, job.context)
    return chunks
