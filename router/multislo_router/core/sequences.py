"""A request with several sequences: several prompts, or several answers to one (`n`). Each sequence is a `Request` of its own on the
instance's books, with its own place among the decodes, its own KV and its own deadlines. The request itself is what is placed, held and
counted.

The answers to one prompt share it: it is computed once, by the first of them, and the others begin to decode with that one's first token.
Used by `machine`, `admissions` and `invariants`.
"""

from typing import Final

from multislo_perf.latency import LatencyModel
from multislo_router.core.instance import Instance
from multislo_router.core.request import DECODE, HELD, PREFILL, Request

IDS: Final = 1 << 16
"""Sequences of one request at most; each has an id of its own, below 0."""


def split(request: Request, prompts: tuple[int, ...], choices: int, latency: LatencyModel) -> None:
    """Make its sequences. Their prompts are in `request.parts`, the other choices of each in that one's `shares`."""
    request.parts = []
    request.sequences = len(prompts) * choices
    request.attention_s = request.prefill_work_s = 0.0
    for tokens in prompts:
        tokens = max(1, tokens)
        part = _sequence(request, len(request.parts) * choices, tokens)
        part.measure_prefill(latency)
        part.sequences = choices
        part.shares = [_sequence(request, len(request.parts) * choices + k, tokens) for k in range(1, choices)]
        request.parts.append(part)
        request.attention_s += part.attention_s
        request.prefill_work_s += part.prefill_work_s
        request.reserve_share = max(request.reserve_share, part.reserve_share)
    request.members = [sequence for part in request.parts for sequence in (part, *part.shares)]


def _sequence(request: Request, index: int, prompt_tokens: int) -> Request:
    return Request(
        -1 - index - IDS * request.id,
        request.tier,
        request.arrived,
        request.slo_due - request.arrived,
        request.tpot_s,
        prompt_tokens,
        request.output_tokens_max,
        request.streaming,
        False,
    )


def on_books(request: Request) -> list[Request]:
    """What an instance has of a request that is placed there."""
    if not request.parts:
        return [request]
    return [sequence for sequence in request.members if sequence.stage is PREFILL or sequence.stage is DECODE]


def admit(request: Request, instance: Instance, now: float) -> None:
    """Book a request that is sent there now."""
    if not request.parts:
        instance.admit(request, now)
        return
    request.stage = PREFILL
    for sequence in request.members:
        sequence.is_late_like(request)
        sequence.placed_at = now
        sequence.ttft_predicted_at = request.ttft_predicted_at
        sequence.iteration_predicted_s = request.iteration_predicted_s
    for part in request.parts:
        instance.admit(part, now)


def release(request: Request, instance: Instance, now: float) -> None:
    """Forget a request there, at whatever stage it is."""
    for sequence in on_books(request):
        instance.release(sequence, now)


def sequence_of(request: Request, index: int, instance: Instance, now: float) -> Request | None:
    """Whose tokens come, where they name a sequence that is there."""
    if not request.parts:
        return request
    if not 0 <= index < len(request.members):
        return None
    sequence = request.members[index]
    if sequence.stage is HELD:
        # A token of a choice: its prompt is through, though the first choice's token may come behind it.
        part = request.parts[index // (len(request.members) // len(request.parts))]
        if part.stage is PREFILL:
            part.first_token_at = now
            instance.prompt_done(part, now)
    return sequence if sequence.stage is PREFILL or sequence.stage is DECODE else None


def sum_up(request: Request, tokens: int, now: float) -> None:
    """It is over: what became of its sequences is what became of it. `tokens` are those of all, by its `usage`; 0 where that is not known.
    How those that no event has told are spread is not known: evenly, as nearly as may be."""
    members = request.members
    if not request.streaming:
        for sequence in members:
            sequence.tokens = sequence.tokens_met = 0
            sequence.late_most_s = 0.0
            sequence.last_token_at = now
    told = [sequence for sequence in members if sequence.tokens or not request.streaming]
    unseen = tokens - sum([sequence.tokens for sequence in told])
    if told and unseen > 0:
        each, more = divmod(unseen, len(told))
        for index, sequence in enumerate(told):
            count = each + 1 if index < more else each
            sequence.judge(count, sequence.last_token_at)
            sequence.tokens += count
    request.tokens = sum([sequence.tokens for sequence in members])
    request.tokens_met = sum([sequence.tokens_met for sequence in members])
    request.late_most_s = max([sequence.late_most_s for sequence in members])
    request.first_token_at = max([sequence.first_token_at for sequence in members])
