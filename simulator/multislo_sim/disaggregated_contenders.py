"""The contenders with prefill and decode on separate instances, and their knobs: a router for each stage, engines, and the number of
prefill instances. Called by the experiment and its search."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil

from multislo_engine.planners import SloAware
from multislo_perf.profile import Profile
from multislo_router.core.capacity import fits
from multislo_router.core.config import Placement
from multislo_router.core.events import Scheduler
from multislo_router.core.instance import Instance
from multislo_router.core.placement import Choice, Homes, OfferBy, PlaceBy, kind_on
from multislo_router.core.request import Request
from multislo_router.core.room import Room
from multislo_sim.contenders import Knob, Setup, budgets
from multislo_sim.disaggregated import PREFILL_TPOT_S, Stages
from multislo_sim.rivals import (
    Score,
    at_random,
    headroom,
    least,
    lmetric,
    predicted_time,
    requests_in_flight,
    round_robin,
    within_own_tier,
)
from multislo_sim.trial import homes_of, tier_name
from multislo_sim.workloads.tiers import POLYSERVE_TPOT_S

PREFILL_BUDGETS: tuple[Knob, ...] = (2048, 4096, 8192)
"""Of stock engines that only prefill."""
PREFILL_CHUNKS: tuple[Knob, ...] = (2048, 4096, 6144, 8192)
MORE_PREFILL: tuple[Knob, ...] = (-1, 0, 1)
"""Prefill instances beyond what the fluid bound asks for: the trace decides how many that is, the policy how far from it is best."""
DECODE_TOKENS = 2048
"""Token budget of decode instances, larger than their number of decodes ever is. It limits only requests that lost their KV and
prefill again."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A contender under a name. `group`: what it is compared as (naive, polyserve, rival, ours, ours-stock)."""

    name: str
    group: str
    build: Callable[[Profile, int, Mapping[str, Knob]], tuple[Setup, Setup]]
    knobs: Mapping[str, tuple[Knob, ...]] = field(default_factory=dict)
    chosen: Mapping[str, Knob] = field(default_factory=dict)

    def stages(
        self,
        profile: Profile,
        seed: int,
        instances: int,
        prefill_fluid: int,
        knobs: Mapping[str, Knob] | None = None,
    ) -> Stages:
        """`prefill_fluid` of the instances prefill by the bound."""
        values = {"more_prefill": 0, "batch_tokens": 8192, "homes": "nearest", **self.chosen, **(knobs or {})}
        prefill, decode = self.build(profile, seed, values)
        count = min(instances - len(decode.budgets), max(1, prefill_fluid + int(values["more_prefill"])))
        homes = homes_up if values["homes"] == "up" else homes_of
        return Stages(prefill, decode, count, homes(instances - count))


def homes_up(instances: int) -> tuple[str, ...]:
    """Home tiers in the shares of the classes, rounded up from the tightest on: a request without room at home may be promoted, but
    never the other way round."""
    homes: list[str] = []
    for index, (tpot_s, share) in enumerate(POLYSERVE_TPOT_S):
        left = instances - len(homes) - (len(POLYSERVE_TPOT_S) - index - 1)
        homes += [tier_name(tpot_s)] * min(left, ceil(share * instances))
    return tuple(homes + [tier_name(POLYSERVE_TPOT_S[-1][0])] * (instances - len(homes)))


# -- decode routers ----------------------------------------------------------------------------------------------------


def steady_iteration(instance: Instance, request: Request, now: float) -> float:
    """Seconds of an iteration with all present requests: least predicted time on an instance without prefills."""
    return instance.pace.steady_s


def pace_room(most: bool = False) -> Score:
    """llm-d's headroom on an instance without prefills: the request's TPOT less the predicted iteration; the least that is positive
    (or the most), else the smallest deficit."""

    def score(instance: Instance, request: Request, now: float) -> float:
        left = 1.0 - _with(instance, request) / request.tpot_s
        if left >= 0.0:
            return -left if most else left
        return 1e6 - left

    return score


def polyserve_decode(final_kv: float) -> tuple[PlaceBy, OfferBy]:
    """PolyServe's ladder on decode instances: the own tier from the fullest down, then (lazily) tighter ones, nearest first; an instance
    is attainable if the iteration stays within the host tier's TPOT at the largest KV that the batch will reach, and the next token,
    after the iteration under way, is in time. Else it waits in the router. Chosen: of the way from the KV that is held to the KV that
    all will hold at their ends, the batch reaches this share."""

    def offer(instance: Instance, request: Request, now: float) -> Choice | None:
        if instance.tier is None or instance.tier.index > request.tier.index or not fits(instance, request):
            return None
        decodes = len(instance.bookings.decodes)
        kv_tokens = instance.bookings.kv_decode_tokens + final_kv * (
            instance.bookings.kv_reserved - instance.bookings.kv_decode_tokens
        )
        kv_tokens += request.prompt_tokens + final_kv * request.output_tokens_expected
        if instance.pace.latency.iteration_s(0, 0, decodes + 1, kv_tokens) > min(request.tpot_s, instance.tier.tpot_s):
            return None
        wait_s = max(0.0, instance.pace.boundary_at + instance.pace.iteration_s - now) if decodes else 0.0
        near_s = _with(instance, request)
        until = request.due - now - wait_s - near_s
        if until < 0.0:
            return None
        return Choice(Room(instance, until, 0.0, now + wait_s + near_s, near_s), kind_on(instance, request))

    def place(homes: Homes, request: Request, now: float) -> Choice | None:
        for index in range(request.tier.index, -1, -1):
            for instance in sorted(homes.tiers[index], key=_fullest_first):
                choice = offer(instance, request, now)
                if choice is not None:
                    return choice
        return None

    return place, offer


def _fullest_first(instance: Instance) -> tuple[float, str]:
    return -instance.pace.steady_s, instance.id


def _with(instance: Instance, request: Request) -> float:
    """Seconds of an iteration with one decode more."""
    latency = instance.pace.latency
    decode_s = latency.gemm_per_token_s + latency.per_decode_s + latency.per_kv_token_s * request.prompt_tokens
    return instance.pace.steady_s + instance.pace.calibration * decode_s


# -- the contenders ----------------------------------------------------------------------------------------------------


def _prefill(profile: Profile, tokens: Knob, place_by: PlaceBy | None, **more: object) -> Setup:
    return Setup({PREFILL_TPOT_S: int(tokens)}, place_by, **more)  # type: ignore[arg-type]


def _decode(profile: Profile, place_by: PlaceBy | None, **more: object) -> Setup:
    return Setup(budgets(profile, DECODE_TOKENS), place_by, **more)  # type: ignore[arg-type]


def _naive(name: str, prefill: Callable[[int], PlaceBy], decode: Callable[[int], PlaceBy], **more: object) -> Policy:
    """A router that chooses at once, before stock engines on both sides."""

    def build(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> tuple[Setup, Setup]:
        return _prefill(profile, knobs["batch_tokens"], prefill(seed)), _decode(profile, decode(seed + 1))

    group = str(more.get("group", "naive"))
    return Policy(name, group, build, {"batch_tokens": PREFILL_BUDGETS, "more_prefill": MORE_PREFILL})


def _llm_d(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> tuple[Setup, Setup]:
    most = bool(knobs["most"])
    prefill = _prefill(profile, knobs["batch_tokens"], least(headroom(1.0, most)))
    return prefill, _decode(profile, least(pace_room(most)))


def _static_partition(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> tuple[Setup, Setup]:
    prefill = _prefill(profile, knobs["batch_tokens"], least(predicted_time))
    return prefill, _decode(profile, within_own_tier(steady_iteration))


def _polyserve(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> tuple[Setup, Setup]:
    """The least loaded prefill instance (which, the paper does not say), the ladder on decode."""
    place, offer = polyserve_decode(float(knobs["final_kv"]))
    prefill = _prefill(profile, knobs["batch_tokens"], least(predicted_time))
    return prefill, _decode(profile, place, offer_by=offer)


def _ours(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> tuple[Setup, Setup]:
    made = {"scheduler": Scheduler.SLO_AWARE, "placement": Placement(str(knobs["placement"]))}
    prefill = _prefill(
        profile, 8192, None, planner=SloAware(profile.latency, chunk_tokens_max=int(knobs["chunk_tokens"])), **made
    )
    return prefill, _decode(profile, None, planner=SloAware(profile.latency), **made)


def _ours_stock(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> tuple[Setup, Setup]:
    made = {"scheduler": Scheduler(str(knobs["scheduler"])), "placement": Placement(str(knobs["placement"]))}
    return _prefill(profile, knobs["batch_tokens"], None, **made), _decode(profile, None, **made)


_SPLIT: Mapping[str, tuple[Knob, ...]] = {"batch_tokens": PREFILL_BUDGETS, "more_prefill": MORE_PREFILL}
POLICIES = (
    _naive("random", at_random, at_random),
    _naive("round_robin", lambda _: round_robin(), lambda _: round_robin()),
    _naive("least_requests", lambda _: least(requests_in_flight), lambda _: least(requests_in_flight)),
    _naive("least_predicted_time", lambda _: least(predicted_time), lambda _: least(steady_iteration)),
    _naive("lmetric", lambda _: least(lmetric), lambda _: least(lmetric), group="rival"),
    Policy("llm_d_headroom", "rival", _llm_d, {**_SPLIT, "most": (False, True)}, {"most": True}),
    Policy("static_partition", "rival", _static_partition, {**_SPLIT, "homes": ("nearest", "up")}),
    Policy(
        "polyserve",
        "polyserve",
        _polyserve,
        {**_SPLIT, "final_kv": (0.0, 0.5, 1.0), "homes": ("nearest", "up")},
        {"final_kv": 1.0},
    ),
    Policy(
        "multislo",
        "ours",
        _ours,
        {"chunk_tokens": PREFILL_CHUNKS, "placement": ("Pack", "Spread"), "more_prefill": MORE_PREFILL},
        {"chunk_tokens": 6144, "placement": "Spread"},
    ),
    Policy(
        "multislo_stock",
        "ours-stock",
        _ours_stock,
        {**_SPLIT, "placement": ("Pack", "Spread"), "scheduler": ("fcfs", "priority")},
        {"placement": "Spread", "scheduler": "fcfs", "batch_tokens": 4096},
    ),
)


def policy_named(name: str) -> Policy:
    for policy in POLICIES:
        if policy.name == name:
            return policy
    raise ValueError(f"policy: {name!r} is none of {', '.join(policy.name for policy in POLICIES)}")
