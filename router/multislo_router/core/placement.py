"""The two placements: functions from (fleet, request, now) to the instance that takes it, or none. Both ask the same room test; they
differ in which instances they ask first. Called by `machine` for a new request and for a held one."""

from collections.abc import Callable, Iterator
from math import inf
from typing import Final

from multislo_router.core.capacity import load_with, overloaded
from multislo_router.core.config import Placement
from multislo_router.core.decisions import DEMOTED, LATE, OWN_TIER, PROMOTED, WARM_POOL, Kind
from multislo_router.core.events import FCFS, SLO_AWARE, Scheduler
from multislo_router.core.instance import Instance
from multislo_router.core.ladder import Ladder
from multislo_router.core.request import Request
from multislo_router.core.room import Room, room, room_for_late

OWN_CANDIDATES: Final = 4
OTHER_CANDIDATES: Final = 2
"""Instances asked for room, in the own tier and in each other one: the bound on a decision's cost."""
ROOMS_MAX: Final = 4
"""Of these, the least loaded that are asked for room."""
SHORT_SHARE: Final = 0.1
"""Of a TTFT, what an SLO-aware engine may lack in room and still get the request at once, where its tier does not refuse who is late."""
ROOMS_BY_DEMAND_MAX: Final = 12
OTHER_BY_DEMAND: Final = 4
"""As `ROOMS_MAX` and `OTHER_CANDIDATES`, of engines that plan by deadlines: their room depends on the deadlines there more than on load."""
TIGHT_SHARE: Final = 0.8
"""A prompt whose prefill alone takes more than this share of the time that it has left is tight: a stock engine that has begun with another
prompt, or whose iterations are many, is too slow for it."""
TIGHT_CANDIDATES: Final = 8
"""Instances looked at for a tight prompt in each tier, and of all these, asked for room: few have it, and a prompt that is not placed now
hardly meets its deadline later."""
PACK_LOAD: Final = 0.85
"""Pack fills an instance up to this load (the reserve is what the tail of long prompts lives on), then spreads."""
HOME_BONUS: Final = 0.1
"""How much fuller an own-tier instance may be than another tier's before Spread prefers the other."""


class Homes:
    """The placeable instances: a ladder a tier (tightest first) and the warm pool's."""

    __slots__ = ("scheduler", "tiers", "warm")

    def __init__(self, tiers: list[Ladder], warm: Ladder, scheduler: Scheduler = FCFS) -> None:
        self.tiers = tiers
        self.warm = warm
        self.scheduler = scheduler
        """Of the engines, where an instance does not say otherwise."""


class Choice:
    """The instance that takes a request, with its room, and how the request stands to it."""

    __slots__ = ("kind", "room")

    def __init__(self, room: Room, kind: Kind) -> None:
        self.room = room
        self.kind = kind


PlaceBy = Callable[[Homes, Request, float], Choice | None]
OfferBy = Callable[[Instance, Request, float], Choice | None]


def pack(homes: Homes, request: Request, now: float) -> Choice | None:
    """PolyServe's highest load attainable; where no instance keeps the reserve, as `spread`."""
    choice = _highest_load_attainable(homes, request, now)
    return choice if choice is not None else spread(homes, request, now)


def _highest_load_attainable(homes: Homes, request: Request, now: float) -> Choice | None:
    """PolyServe's ladder: the fullest instance with room in the own tier; then in tighter tiers, nearest first (lazy promotion); then in
    the warm pool. Each is filled to `PACK_LOAD` only."""
    home = request.tier.index
    for index in range(home, -1, -1):
        most = OWN_CANDIDATES if index == home else OTHER_CANDIDATES
        fullest = homes.tiers[index].fullest(PACK_LOAD, most)
        below = [instance for instance in fullest if load_with(instance, request) <= PACK_LOAD]
        choice = first_with_room(below, request, now)
        if choice is not None:
            return choice
    return first_with_room(homes.warm.fullest(PACK_LOAD, OTHER_CANDIDATES), request, now)


def spread(homes: Homes, request: Request, now: float, home_bonus: float = HOME_BONUS) -> Choice | None:
    """The least loaded among those with room, a bonus for the request's home tier; tiers serve each other in both directions."""
    by_demand = homes.scheduler is SLO_AWARE
    if not by_demand and request.prefill_work_s > TIGHT_SHARE * (request.due - now):
        return _spread_tight(homes, request, now)
    home = request.tier.index
    others, rooms = (OTHER_BY_DEMAND, ROOMS_BY_DEMAND_MAX) if by_demand else (OTHER_CANDIDATES, ROOMS_MAX)
    # One tier alone (a pool that only prefills) is asked as far as all tiers together would be.
    own = rooms if by_demand and len(homes.tiers) == 1 else OWN_CANDIDATES
    candidates: list[tuple[float, int, Instance]] = []
    for index, ladder in enumerate(homes.tiers):
        bonus, most = (home_bonus, own) if index == home else (0.0, others)
        for instance in ladder.emptiest(most):
            load = load_with(instance, request)
            if not overloaded(instance, request, load):
                candidates.append((load - bonus, len(candidates), instance))
    for instance in homes.warm.emptiest(OTHER_CANDIDATES):
        candidates.append((load_with(instance, request), len(candidates), instance))
    candidates.sort()
    short_share = 0.0 if request.tier.refuses or request.late else SHORT_SHARE
    return first_with_room([instance for _, _, instance in candidates[:rooms]], request, now, short_share)


def _spread_tight(homes: Homes, request: Request, now: float) -> Choice | None:
    """For a tight prompt: where no prompt is, the largest token budget first (its iterations are the fewest, and each one reads the
    decodes' KV again), then the fewest and shortest decodes. No tier is home and no load too much: the next iterations decide, and those
    the room test follows one by one."""
    ranked: list[tuple[bool, int, float, int, Instance]] = []
    for ladder in (*homes.tiers, homes.warm):
        for instance in ladder.emptiest(TIGHT_CANDIDATES):
            # The number settles ties, so that instances are never compared.
            ranked.append(
                (bool(instance.queue.row), -instance.batch_tokens, instance.pace.steady_s, len(ranked), instance)
            )
    ranked.sort()
    return first_with_room([instance for *_, instance in ranked[:TIGHT_CANDIDATES]], request, now)


def first_with_room(instances: list[Instance], request: Request, now: float, short_share: float = 0.0) -> Choice | None:
    """The first that has room; else, of those that plan by deadlines, the one that lacks least, if that is no more than this share of the
    TTFT: waiting for room to come up loses the time that is left, and such an engine makes good what an estimate lacks."""
    best: Room | None = None
    for instance in instances:
        found = room(instance, request, now)
        if found is None:
            continue
        if found.own_s >= 0.0 and found.harm_s >= 0.0:
            return Choice(found, kind_on(instance, request))
        if instance.scheduler is SLO_AWARE and (best is None or found.least_s > best.least_s):
            best = found
    if best is None or best.least_s < -short_share * (request.slo_due - request.arrived):
        return None
    return Choice(best, kind_on(best.instance, request))


def offered(instance: Instance, request: Request, now: float) -> Choice | None:
    """Whether a held request takes the room that an instance has just got."""
    if overloaded(instance, request, load_with(instance, request)):
        return None
    return first_with_room([instance], request, now)


def least_harm(homes: Homes, request: Request, now: float) -> Choice | None:
    """For a request that is late already: the emptiest instance on which it harms nobody."""
    for instance in _emptiest(homes):
        found = room_for_late(instance, request, now)
        if found is not None:
            return Choice(found, LATE)
    return None


def nearly(homes: Homes, request: Request, now: float, tolerance_s: float) -> Choice | None:
    """The last try before a deadline is given up: the instance with the largest margin, if it is not worse than the tolerance (infinite:
    whatever it is)."""
    best: Room | None = None
    for instance in _emptiest(homes):
        by_demand = instance.scheduler is SLO_AWARE
        if (
            (by_demand or request.late)
            and tolerance_s < inf
            and overloaded(instance, request, load_with(instance, request))
        ):
            continue
        found = room(instance, request, now)
        if found is None or (not by_demand and found.harm_s < 0.0 and tolerance_s < inf):
            continue  # what a stock engine does next is known: the tolerance is for the request's own deadline
        if best is None or found.least_s > best.least_s:
            best = found
    if best is None or best.least_s < -tolerance_s:
        return None
    return Choice(best, kind_on(best.instance, request))


def _emptiest(homes: Homes) -> Iterator[Instance]:
    for ladder in (*homes.tiers, homes.warm):
        yield from ladder.emptiest(OTHER_CANDIDATES)


def kind_on(instance: Instance, request: Request) -> Kind:
    """How a request stands to the instance that takes it."""
    if instance.tier is None:
        return WARM_POOL
    if instance.tier is request.tier:
        return OWN_TIER
    return PROMOTED if instance.tier.index < request.tier.index else DEMOTED


PLACEMENTS: Final[dict[Placement, PlaceBy]] = {
    Placement.PACK: pack,
    Placement.SPREAD: spread,
}
