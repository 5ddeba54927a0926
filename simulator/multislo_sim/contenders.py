"""The contenders and their knobs: a router, a planner inside the engines, and start-up flags. Called by the experiments.

`knobs` are the values searched on the tuning trace (the Azure conversation trace), `chosen` the values that won there; they are used
everywhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from multislo_engine.planners import DynamicChunk, Planner, QoServe, SloAware
from multislo_perf.profile import Profile
from multislo_perf.sizing import batch_tokens
from multislo_router.core.config import Placement
from multislo_router.core.events import Scheduler
from multislo_router.core.placement import OfferBy, PlaceBy, offered
from multislo_sim.doors import by_deadline, in_queue_order
from multislo_sim.lockstep import Door
from multislo_sim.rivals import (
    at_random,
    headroom,
    least,
    lmetric,
    polyserve,
    power_of_two,
    predicted_time,
    requests_in_flight,
    round_robin,
    within_own_tier,
)
from multislo_sim.workloads.tiers import POLYSERVE_TPOT_S

Knob = int | float | str | bool
BUDGETS: tuple[Knob, ...] = (512, 1024, 2048, 4096, 8192, "by tier")
"""`max_num_batched_tokens` of stock engines: 8,192 is vLLM's default on large GPUs."""

LONG_BUDGETS: tuple[Knob, ...] = ("512/1024/2048/8192", "512/1024/4096/8192", "1024/2048/4096/8192")
"""By tier, tightest first, and larger for the looser: of a prompt of 30,000 tokens, whose idle prefill leaves 3 % of its TTFT, iterations
of 2,048 cost all of that. A router that follows the engines' queues can let decodes wait for such iterations as long as they have slack."""


HOMES: Mapping[Knob, Sequence[float] | None] = {
    "by share": None,
    "tighter": (0.14, 0.22, 0.30, 0.34),
    "tightest": (0.17, 0.24, 0.29, 0.30),
}
"""How a fleet that keeps its tiers apart may be split: a tight tier's work takes more instances than its share of the requests."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One contender with its knobs set, for one profile."""

    budgets: Mapping[float, int]
    """Token budget of a tier's home instances, by TPOT."""
    place_by: PlaceBy | None = None
    offer_by: OfferBy = offered
    planner: Planner | None = None
    scheduler: Scheduler = Scheduler.FCFS
    placement: Placement = Placement.PACK
    home_shares: Sequence[float] | None = None
    """Each tier's share of the instances, tightest first; None: as the classes have of the requests."""
    stock_half: Mapping[float, int] | None = None
    """Every other instance has a stock engine with these budgets, by TPOT."""
    door: Door | None = None
    """What it refuses where rejection is allowed. None: what `Overload.REJECT` of its tiers refuses."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy under a name. `group`: what it is compared as."""

    name: str
    group: str
    """naive, polyserve, rival, default (vLLM as it comes), ours (SLO-aware engines), ours-half
    (every other engine stock) or ours-stock."""
    build: Callable[[Profile, int, Mapping[str, Knob]], Setup]
    knobs: Mapping[str, tuple[Knob, ...]] = field(default_factory=dict)
    chosen: Mapping[str, Knob] = field(default_factory=dict)

    def setup(self, profile: Profile, seed: int, knobs: Mapping[str, Knob] | None = None) -> Setup:
        return self.build(profile, seed, {**self.chosen, **(knobs or {})})


def budgets(profile: Profile, knob: Knob) -> dict[float, int]:
    """The same for all tiers, or by tier (what the operator sets from the profile), or each named, as in "512/1024/2048/8192", from the
    tightest tier to the loosest."""
    if isinstance(knob, str) and "/" in knob:
        named = [int(tokens) for tokens in knob.split("/")]
        return {tpot_s: tokens for (tpot_s, _), tokens in zip(POLYSERVE_TPOT_S, named, strict=True)}
    return {
        tpot_s: batch_tokens(profile.latency, tpot_s) if knob == "by tier" else int(knob)
        for tpot_s, _ in POLYSERVE_TPOT_S
    }


def _stock(name: str, group: str, route: Callable[[int, Mapping[str, Knob]], PlaceBy], **more: object) -> Contender:
    """A router of the rivals' before stock engines."""

    def build(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> Setup:
        return Setup(budgets(profile, knobs["batch_tokens"]), route(seed, knobs), door=in_queue_order)

    grid = {"batch_tokens": BUDGETS, **more.get("knobs", {})}  # type: ignore[dict-item]
    chosen = {"batch_tokens": 1024, **more.get("chosen", {})}  # type: ignore[dict-item]
    return Contender(name, group, build, grid, chosen)


def _fixed(
    name: str, group: str, route: Callable[[int, Mapping[str, Knob]], PlaceBy], chosen: Mapping[str, Knob]
) -> Contender:
    """The same as it comes: nothing is tuned."""
    return replace(_stock(name, group, route, chosen=chosen), knobs={})


def _static_partition(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> Setup:
    planner, door = (
        (SloAware(profile.latency), by_deadline) if knobs["engine"] == "slo_aware" else (None, in_queue_order)
    )
    return Setup(
        budgets(profile, knobs["batch_tokens"]),
        within_own_tier(predicted_time),
        planner=planner,
        door=door,
        home_shares=HOMES[knobs["homes"]],
    )


def _polyserve(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> Setup:
    place, offer = polyserve(float(knobs["final_attention"]))
    planner = DynamicChunk(profile.latency, bool(knobs["by_deadline"]), int(knobs["chunk_tokens_max"]))
    homes = HOMES[knobs["homes"]]
    return Setup(budgets(profile, knobs["chunk_tokens_max"]), place, offer, planner, home_shares=homes)


def _qoserve(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> Setup:
    planner = QoServe(profile.latency, float(knobs["slack_fraction"]), 0.0, float(knobs["alpha_most_s"]))
    return Setup(budgets(profile, 8192), least(predicted_time), planner=planner, door=by_deadline)


def _ours(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> Setup:
    return Setup(
        budgets(profile, 8192),
        planner=SloAware(profile.latency),
        scheduler=Scheduler.SLO_AWARE,
        placement=Placement(str(knobs["placement"])),
        home_shares=HOMES[knobs["homes"]],
    )


def _ours_half(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> Setup:
    return replace(_ours(profile, seed, knobs), stock_half=budgets(profile, knobs["batch_tokens"]))


def _ours_stock(profile: Profile, seed: int, knobs: Mapping[str, Knob]) -> Setup:
    return Setup(
        budgets(profile, knobs["batch_tokens"]),
        scheduler=Scheduler(str(knobs["scheduler"])),
        placement=Placement(str(knobs["placement"])),
        home_shares=HOMES[knobs["homes"]],
    )


CONTENDERS = (
    _stock("random", "naive", lambda seed, _: at_random(seed), chosen={"batch_tokens": 2048}),
    _stock("round_robin", "naive", lambda *_: round_robin()),
    _stock("least_requests", "naive", lambda *_: least(requests_in_flight)),
    _stock("power_of_two", "naive", lambda seed, _: power_of_two(predicted_time, seed)),
    _stock("least_predicted_time", "naive", lambda *_: least(predicted_time)),
    _fixed("vllm_default", "default", lambda *_: round_robin(), {"batch_tokens": 8192}),
    _stock("lmetric", "rival", lambda *_: least(lmetric), chosen={"batch_tokens": 2048}),
    _stock(
        "llm_d_headroom",
        "rival",
        lambda _, knobs: least(headroom(float(knobs["ttft_weight"]), bool(knobs["most"]))),
        knobs={"ttft_weight": (0.5, 0.8), "most": (False, True)},
        chosen={"ttft_weight": 0.8, "most": True},
    ),
    Contender(
        "static_partition",
        "rival",
        _static_partition,
        {"homes": tuple(HOMES), "batch_tokens": BUDGETS, "engine": ("stock", "slo_aware")},
        {"homes": "tighter", "batch_tokens": 8192, "engine": "slo_aware"},
    ),
    Contender(
        "polyserve",
        "polyserve",
        _polyserve,
        {
            "homes": tuple(HOMES),
            "final_attention": (0.5, 1.0),
            "by_deadline": (False, True),
            "chunk_tokens_max": (1024, 2048, 4096),
        },
        {"homes": "tighter", "final_attention": 0.5, "by_deadline": True, "chunk_tokens_max": 4096},
    ),
    Contender(
        "qoserve",
        "rival",
        _qoserve,
        {"slack_fraction": (0.7, 0.8, 0.85, 0.95, 1.0), "alpha_most_s": (0.0, 0.00003, 0.0001, 0.001)},
        {"slack_fraction": 0.85, "alpha_most_s": 0.0001},
    ),
    Contender(
        "multislo",
        "ours",
        _ours,
        {"homes": tuple(HOMES), "placement": ("Pack", "Spread")},
        {"homes": "by share", "placement": "Spread"},
    ),
    Contender(
        "multislo_half",
        "ours-half",
        _ours_half,
        {"homes": tuple(HOMES), "placement": ("Pack", "Spread"), "batch_tokens": BUDGETS},
        {"homes": "tighter", "placement": "Spread", "batch_tokens": "by tier"},
    ),
    Contender(
        "multislo_stock",
        "ours-stock",
        _ours_stock,
        {
            "homes": tuple(HOMES),
            "placement": ("Pack", "Spread"),
            "scheduler": ("fcfs", "priority"),
            "batch_tokens": (*BUDGETS, *LONG_BUDGETS),
        },
        {
            "homes": "tighter",
            "placement": "Spread",
            "scheduler": "fcfs",
            "batch_tokens": "by tier",
        },
    ),
)


def contender_named(name: str) -> Contender:
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise ValueError(f"policy: {name!r} is none of {', '.join(contender.name for contender in CONTENDERS)}")
