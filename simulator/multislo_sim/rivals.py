"""Rival router policies on the production core's state: each is a function like `placement.pack`, none ever holds a request back.
Each makes its choice among all placeable instances; KV memory is not theirs to check, as in the routers they stand for."""

from collections.abc import Callable
from itertools import chain

from multislo_router.core.instance import Instance
from multislo_router.core.placement import Choice, Homes, PlaceBy, kind_on
from multislo_router.core.request import Request
from multislo_router.core.room import Room


def round_robin() -> PlaceBy:
    """Each instance in its turn, in the order of their names."""
    turn = 0

    def place(homes: Homes, request: Request, now: float) -> Choice | None:
        nonlocal turn
        instances = sorted(_all(homes), key=_name)
        if not instances:
            return None
        turn += 1
        return _choice(instances[turn % len(instances)], request, now)

    return place


def least_requests() -> PlaceBy:
    """The instance with the fewest requests in flight; ties by name."""

    def place(homes: Homes, request: Request, now: float) -> Choice | None:
        instances = _all(homes)
        if not instances:
            return None
        return _choice(min(instances, key=lambda instance: (instance.requests, instance.id)), request, now)

    return place


def least_predicted_time() -> PlaceBy:
    """The instance whose queued prefills and decode iteration are shortest (PolyServe's "Minimal")."""

    def place(homes: Homes, request: Request, now: float) -> Choice | None:
        instances = _all(homes)
        if not instances:
            return None
        return _choice(min(instances, key=lambda instance: (_predicted_s(instance, now), instance.id)), request, now)

    return place


def _predicted_s(instance: Instance, now: float) -> float:
    latency = instance.latency
    backlog = 0.0
    undone = 1.0 - instance.head_progress(now)
    for queued in instance.prefills.values():
        backlog += undone * queued.prefill_work_s
        undone = 1.0
    return backlog + latency.iteration_s(0, 0, len(instance.decodes), instance.kv_decode_tokens)


def _all(homes: Homes) -> list[Instance]:
    return list(chain.from_iterable((*homes.tiers, homes.warm)))


def _name(instance: Instance) -> tuple[int, str]:
    return len(instance.id), instance.id


def _choice(instance: Instance, request: Request, now: float) -> Choice:
    return Choice(Room(instance, 0.0, 0.0, now, instance.iteration_s), kind_on(instance, request))


RIVALS: dict[str, Callable[[], PlaceBy]] = {
    "round_robin": round_robin,
    "least_requests": least_requests,
    "least_predicted_time": least_predicted_time,
}
