"""After an exception in the middle of an event: everything that is a sum or a list over the requests is made anew from the requests
themselves, so that a bug costs one event and not the router's books. Called by `RouterCore.recover`."""

from collections.abc import Iterable, Sequence

from multislo_router.core.events import Outcome
from multislo_router.core.fleet import Fleet
from multislo_router.core.instance import Instance
from multislo_router.core.request import HELD, Request
from multislo_router.core.tier import Tier


def rebook(requests: Iterable[Request], fleet: Fleet, tiers: Sequence[Tier], now: float) -> None:
    """Books every request where it says that it is: on its instance, or held. An arrival that is nowhere any more counts as failed."""
    for tier in tiers:
        tier.pending = tier.in_flight = 0
    placed: dict[Instance, list[Request]] = {instance: [] for instance in fleet.instances.values()}
    for request in requests:
        if request.instance is None:
            request.stage = HELD
            request.tier.pending += 1
        else:
            placed.setdefault(request.instance, []).append(request)
            request.tier.in_flight += 1
    for instance, here in placed.items():
        instance.rebook(here, now)
    fleet.list_anew(placed)
    for tier in tiers:
        over = sum(tier.outcomes.values()) + sum(tier.refusals.values())
        missing = tier.arrived - over - tier.pending - tier.in_flight
        if missing > 0:
            tier.outcomes[Outcome.ROUTER_FAILED] += missing
            tier.requests_missed += missing
        else:
            tier.arrived -= missing
