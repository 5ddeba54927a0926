"""multislo with one of its parts switched off, each as a contender: the placements and planners that lack it. Called by
`multislo simulate ablation`; nothing of this is in the production packages."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from multislo_engine.planners import EngineView, Job, SloAware
from multislo_engine.planners.chunks import admissible
from multislo_engine.planners.view import Slots
from multislo_perf.profile import Profile
from multislo_router.core.capacity import load_with
from multislo_router.core.instance import Instance
from multislo_router.core.ladder import Ladder
from multislo_router.core.placement import (
    HOME_BONUS,
    OTHER_BY_DEMAND,
    OWN_CANDIDATES,
    PLACEMENTS,
    ROOMS_BY_DEMAND_MAX,
    SHORT_SHARE,
    Choice,
    Homes,
    OfferBy,
    PlaceBy,
    first_with_room,
    offered,
    spread,
)
from multislo_router.core.request import Request
from multislo_sim.contenders import Contender, Setup, contender_named
from multislo_sim.rivals import least

# -- the router's parts ------------------------------------------------------------------------------------------------


def place_of(setup: Setup) -> PlaceBy:
    return setup.place_by or PLACEMENTS[setup.placement]


def expecting(place_by: PlaceBy, output_tokens: Callable[[Request], int]) -> PlaceBy:
    """The same placement believing other output lengths."""

    def place(homes: Homes, request: Request, now: float) -> Choice | None:
        request.output_tokens_expected = output_tokens(request)
        return place_by(homes, request, now)

    return place


def _within_own_tier(place_by: PlaceBy) -> PlaceBy:
    def place(homes: Homes, request: Request, now: float) -> Choice | None:
        own = request.tier.index
        tiers = [ladder if index == own else Ladder() for index, ladder in enumerate(homes.tiers)]
        return place_by(Homes(tiers, homes.warm, homes.scheduler), request, now)

    return place


def _offered_within_own_tier(instance: Instance, request: Request, now: float) -> Choice | None:
    return offered(instance, request, now) if instance.tier is request.tier else None


def _into_any(homes: Homes, request: Request, now: float) -> Choice | None:
    """`spread`, but full instances take other tiers' requests, too."""
    ranked: list[tuple[float, int, Instance]] = []
    for index, ladder in enumerate(homes.tiers):
        bonus, most = (HOME_BONUS, OWN_CANDIDATES) if index == request.tier.index else (0.0, OTHER_BY_DEMAND)
        for instance in ladder.emptiest(most):
            ranked.append((load_with(instance, request) - bonus, len(ranked), instance))
    ranked.sort()
    return first_with_room([instance for *_, instance in ranked[:ROOMS_BY_DEMAND_MAX]], request, now, SHORT_SHARE)


def _offered_into_any(instance: Instance, request: Request, now: float) -> Choice | None:
    return first_with_room([instance], request, now)


def _load_alone(instance: Instance, request: Request, now: float) -> float:
    return load_with(instance, request) - (HOME_BONUS if instance.tier is request.tier else 0.0)


# -- the planner's parts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WithoutSlack(SloAware):
    """An iteration takes at most its fraction of the tightest TPOT; the slack of early decodes is ignored."""

    def _slacks(self, now: float, view: EngineView) -> NDArray[np.float64]:
        return np.minimum(SloAware._slacks(self, now, view), view.decodes.tpot_s)


@dataclass(frozen=True, slots=True)
class WithAllDecodes(SloAware):
    """Every decode takes part in every iteration."""

    def _urgent(
        self, view: EngineView, slacks: NDArray[np.float64], iteration_s: float, seats: int, prefilling: bool
    ) -> Slots | None:
        return None


@dataclass(frozen=True, slots=True)
class InOrderOfArrival(SloAware):
    """Prefills in order of arrival."""

    def order(self, job: Job) -> tuple[float, ...]:
        return (job.sequence,)

    def _admissible(self, now: float, view: EngineView) -> list[Job]:
        return admissible(view, view.waiting[: self.waiting_considered])


@dataclass(frozen=True, slots=True)
class WithFixedChunk(SloAware):
    """Chunks up to the cap, whatever time the decodes have."""

    def _chunks(
        self,
        now: float,
        view: EngineView,
        prefills: list[Job],
        lost: list[Job],
        budget_s: float,
        decodes: int,
        kv_tokens: int,
    ) -> list[tuple[Job, int]]:
        return SloAware._chunks(self, now, view, prefills, lost, float("inf"), decodes, kv_tokens)


@dataclass(frozen=True, slots=True)
class WithOneCap(SloAware):
    """The usual cap for all prompts."""

    def _cap(self, now: float, prefills: list[Job]) -> int:
        return self.chunk_tokens_max


# --------------------------------------------------------------------------------------------------------------------


def _routed(wrap: Callable[[Setup], PlaceBy], offer_by: OfferBy = offered) -> Callable[[Setup, Profile], Setup]:
    return lambda setup, _: replace(setup, place_by=wrap(setup), offer_by=offer_by)


def _planned(planner: type[SloAware]) -> Callable[[Setup, Profile], Setup]:
    return lambda setup, profile: replace(setup, planner=planner(profile.latency))


OUTPUT_TOKENS_PRIOR = 200


def _of_no_memory(request: Request) -> int:
    return -request.prompt_tokens


def _of_prior_length(request: Request) -> int:
    return OUTPUT_TOKENS_PRIOR


_PARTS: dict[str, Callable[[Setup, Profile], Setup]] = {
    "full": lambda setup, _: setup,
    "no promotion": _routed(lambda setup: _within_own_tier(place_of(setup)), _offered_within_own_tier),
    "no keeping apart": _routed(lambda _: _into_any, _offered_into_any),
    "no soft homes": _routed(lambda _: partial(spread, home_bonus=0.0)),
    "no wait-time test": _routed(lambda _: least(_load_alone)),
    "no KV admission": _routed(lambda setup: expecting(place_of(setup), _of_no_memory)),
    "no length prediction": _routed(lambda setup: expecting(place_of(setup), _of_prior_length)),
    "no slack spent": _planned(WithoutSlack),
    "no larger chunk for tight prompts": _planned(WithOneCap),
    "no decodes left out": _planned(WithAllDecodes),
    "no dynamic chunk": _planned(WithFixedChunk),
    "no EDF": _planned(InOrderOfArrival),
}
WHAT = {
    "full": "multislo as it is",
    "no promotion": "a request is placed on its own tier's instances alone, except at its last call",
    "no keeping apart": "full instances take other tiers' requests, too (but at a request's last call)",
    "no soft homes": "one pool: the own tier's instances are not preferred",
    "no wait-time test": "the least loaded that has memory; no deadline is tested before a request is placed",
    "no KV admission": "nothing is reserved: memory is never short in the router's books",
    "no length prediction": f"every output is believed to have {OUTPUT_TOKENS_PRIOR} tokens",
    "no slack spent": "what decodes are early by is not spent: iterations within the tightest TPOT",
    "no larger chunk for tight prompts": "the usual cap for prompts that would need larger chunks to be in time",
    "no decodes left out": "every decode takes part in every iteration",
    "no dynamic chunk": "chunks up to the cap, whatever time the decodes have",
    "no EDF": "prefills in the order of their arrival",
}


def ablated(name: str) -> Contender:
    """multislo without the part that the name says (one of `WHAT`)."""
    change = _PARTS[name]
    ours = contender_named("multislo")
    return Contender(name, "ours", lambda profile, seed, knobs: change(ours.setup(profile, seed, knobs), profile))
