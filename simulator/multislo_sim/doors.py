"""The front door of the setting with rejection: a policy without its own admission refuses at once a request whose first token it
predicts late on the instance that it has chosen. Called by `trial`; multislo and PolyServe refuse by the tiers' own `Overload.REJECT`."""

from multislo_router.core.instance import Instance
from multislo_router.core.request import Request
from multislo_sim.rivals import predicted_ttft_tpot


def in_queue_order(instance: Instance, request: Request, now: float) -> bool:
    """For engines that prefill in the order of arrival: the queue before it and itself, at the engine's token budget beside its decodes."""
    return now + predicted_ttft_tpot(instance, request, now)[0] <= request.due


def by_deadline(instance: Instance, request: Request, now: float) -> bool:
    """For engines that prefill by urgency: only what is due before it is in its way, in iterations as full as the engine makes them."""
    work_s, tokens = request.prefill_work_s, request.prompt_tokens
    for queued in instance.queue.row:
        if queued.due <= request.due:
            work_s += queued.prefill_work_s
            tokens += queued.prompt_tokens
    law, bookings = instance.pace.latency, instance.bookings
    decode_s = law.per_decode_s * len(bookings.decodes) + law.per_kv_token_s * bookings.kv_decode_tokens
    iterations = max(1.0, tokens / instance.batch_tokens)
    return (
        now + instance.pace.calibration * (work_s + iterations * (law.fixed_s + law.gemm_s + decode_s)) <= request.due
    )
