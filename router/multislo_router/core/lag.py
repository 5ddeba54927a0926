"""How late the router sees what a stock engine does, learned from the iterations that prompts are found in. Called by `machine`.

A prompt is computed from the first iteration on that begins after it has come. Where its first token shows which one that was, the lag
(the way there and the way back, together) is less than the time from its sending to that iteration's beginning, as seen, and more than to
the beginning of the one before: two bounds that need no profile, and that no lag at all never contradicts.
"""

from math import inf
from typing import TYPE_CHECKING

from multislo_router.core.events import PRIORITY, SLO_AWARE
from multislo_router.core.request import Request

if TYPE_CHECKING:
    from multislo_router.core.instance import Instance

LAG_WEIGHT = 0.5
"""By how much of the way a contradiction moves what is believed."""
LAG_MAX_S = 2.0
"""A request that waited longer for an iteration was kept out of it by something else."""


def measure_lag(instance: "Instance", request: Request, clients_hear_first: bool) -> None:
    """Its first token has been seen, with the iteration that has just ended."""
    if instance.scheduler is SLO_AWARE:
        return
    queue = instance.queue
    queue.done_now += request.prompt_tokens
    if not instance.decodes:
        return
    lag_s = instance.lag_s
    most = queue.before_at - request.placed_at
    if -inf < most < lag_s:
        lag_s += LAG_WEIGHT * (most - lag_s)
    elif queue.done_now + queue.done_before + len(instance.decodes) <= instance.batch_tokens and (
        instance.scheduler is not PRIORITY or len(instance.prefills) == 1
    ):
        # Had it come before that iteration began, it would have been computed in it, whoever else was.
        least = queue.long_before_at - request.placed_at
        if least > lag_s:
            lag_s += LAG_WEIGHT * (least - lag_s)
    instance.lag_s = min(max(lag_s, 0.0), LAG_MAX_S)
    if clients_hear_first:
        instance.grace_s = instance.lag_s
