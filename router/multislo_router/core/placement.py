"""The two placements: functions from (fleet, request, now) to the instance that takes it, or none. Both ask the same room test; they
differ in which instances they ask first. Called by `machine` for a new request and for a held one."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from multislo_router.core.config import Placement
from multislo_router.core.decisions import Kind
from multislo_router.core.instance import Instance
from multislo_router.core.ladder import Ladder
from multislo_router.core.request import Request
from multislo_router.core.room import Room, room, room_for_late

OWN_CANDIDATES = 4
OTHER_CANDIDATES = 2
"""Instances asked for room, in the own tier and in each other one: the bound on a decision's cost."""
PACK_LOAD = 0.85
"""Pack fills an instance up to this load (the reserve is what the tail of long prompts lives on), then spreads."""
HOME_BONUS = 0.1
"""How much fuller an own-tier instance may be than another tier's before Spread prefers the other."""


class Homes(NamedTuple):
    """The placeable instances: a ladder a tier (tightest first) and the warm pool's."""

    tiers: list[Ladder]
    warm: Ladder


class Choice(NamedTuple):
    room: Room
    kind: Kind


PlaceBy = Callable[[Homes, Request, float], Choice | None]


def pack(homes: Homes, request: Request, now: float) -> Choice | None:
    """PolyServe's ladder on demand-bound room: the own tier from the fullest that keeps its reserve, then tighter tiers the same way,
    then the warm pool; where nobody keeps the reserve, whoever has room at all, emptiest first, looser tiers last."""
    home = request.tier.index
    for instance in islice(homes.tiers[home].falling(PACK_LOAD), OWN_CANDIDATES):
        found = _keeping_reserve(instance, request, now)
        if found:
            return Choice(found, Kind.OWN_TIER)
    for index in range(home - 1, -1, -1):
        for instance in islice(homes.tiers[index].falling(PACK_LOAD), OTHER_CANDIDATES):
            found = _keeping_reserve(instance, request, now)
            if found:
                return Choice(found, Kind.PROMOTED)
    for instance in islice(homes.warm.falling(PACK_LOAD), OTHER_CANDIDATES):
        found = _keeping_reserve(instance, request, now)
        if found:
            return Choice(found, Kind.WARM_POOL)
    return spread(homes, request, now)


def _keeping_reserve(instance: Instance, request: Request, now: float) -> Room | None:
    found = room(instance, request, now)
    if found is None or found.own_s < 0.0 or found.harm_s < 0.0:
        return None
    return found


def spread(homes: Homes, request: Request, now: float) -> Choice | None:
    """The least loaded among those with room, a bonus for the request's home tier; tiers serve each other in both directions."""
    home = request.tier.index
    candidates: list[tuple[float, Instance, Kind]] = []
    for index, ladder in enumerate(homes.tiers):
        if not ladder:
            continue
        own = index == home
        kind = Kind.OWN_TIER if own else Kind.PROMOTED if index < home else Kind.DEMOTED
        bonus = HOME_BONUS if own else 0.0
        emptiest = islice(ladder.rising(), OWN_CANDIDATES if own else OTHER_CANDIDATES)
        candidates += [(bonus, instance, kind) for instance in emptiest]
    candidates += [(0.0, instance, Kind.WARM_POOL) for instance in islice(homes.warm.rising(), OTHER_CANDIDATES)]
    best: Choice | None = None
    best_load = 0.0
    for bonus, instance, kind in candidates:
        found = room(instance, request, now)
        if found is not None and found.own_s >= 0.0 and found.harm_s >= 0.0:
            load = found.load - bonus
            if best is None or load < best_load:
                best = Choice(found, kind)
                best_load = load
    return best


def least_harm(homes: Homes, request: Request, now: float) -> Choice | None:
    """For a request that is late already: the emptiest instance on which it harms nobody."""
    for instance in _emptiest(homes):
        found = room_for_late(instance, request, now)
        if found is not None:
            return Choice(found, Kind.LATE)
    return None


def nearly(homes: Homes, request: Request, now: float, tolerance_s: float) -> Choice | None:
    """The last try before a deadline is given up: the instance with the largest margin, if it is not worse than the tolerance."""
    best: Room | None = None
    for instance in _emptiest(homes):
        found = room(instance, request, now)
        if found is not None and (best is None or found.least_s > best.least_s):
            best = found
    if best is None or best.least_s < -tolerance_s:
        return None
    return Choice(best, kind_on(best.instance, request))


def _emptiest(homes: Homes) -> Iterator[Instance]:
    for ladder in (*homes.tiers, homes.warm):
        yield from islice(ladder.rising(), OTHER_CANDIDATES)


def kind_on(instance: Instance, request: Request) -> Kind:
    """How a request stands to the instance that takes it."""
    if instance.tier is None:
        return Kind.WARM_POOL
    if instance.tier is request.tier:
        return Kind.OWN_TIER
    return Kind.PROMOTED if instance.tier.index < request.tier.index else Kind.DEMOTED


PLACEMENTS: dict[Placement, PlaceBy] = {
    Placement.PACK: pack,
    Placement.SPREAD: spread,
}
