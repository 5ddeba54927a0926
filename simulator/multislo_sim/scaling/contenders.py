"""The scaling contenders of the experiments: a law with a router and engines, and the settings that are searched, from the leanest to
the most generous. Called by the experiments `day` and `cost`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from multislo_perf.profile import Profile
from multislo_router.core.config import TierConfig
from multislo_sim.contenders import Setup, contender_named
from multislo_sim.scaling import Scaler
from multislo_sim.scaling.ours import Decide, fleet_spec
from multislo_sim.scaling.rivals import Deployments, Hpa, Law, OnPending, Saturation, concurrency, load, queue, work
from multislo_sim.scaling.trial import STARTUP_S
from multislo_sim.trial import tier_name

Setting = Mapping[str, float]
STARTUP_MEAN_S = sum(STARTUP_S) / 2.0
"""What the production law is told of start-up: the profile's figure would be such a mean."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """`group`: ours, shared (over our router) or static (one Deployment and router per tier)."""

    name: str
    group: str
    contender: str
    """Router and engines, by their name among the contenders."""
    scaler: Callable[[Setup, Profile, Setting], Scaler]
    settings: tuple[Setting, ...]
    """From the leanest to the most generous."""
    likely: int = 0
    """The one that a search begins with."""

    def setup(self, profile: Profile, seed: int) -> Setup:
        return contender_named(self.contender).setup(profile, seed)


TILT = 0.3
"""Of the tightest tier's target: a tight tier's instances can be filled less."""


def _tier_names(setup: Setup) -> list[str]:
    return [tier_name(tpot_s) for tpot_s in setup.budgets]


def _decide(setup: Setup, profile: Profile, setting: Setting) -> Scaler:
    tiers = [TierConfig(tier_name(tpot_s), 0.5, tpot_s) for tpot_s in setup.budgets]
    budgets = None if setup.planner is not None else {tier_name(t): budget for t, budget in setup.budgets.items()}
    return Decide(fleet_spec(tiers, STARTUP_MEAN_S, setting["attainment"], setting["stabilization_s"], budgets))


def _apart(law: Callable[[Setting], Law]) -> Callable[[Setup, Profile, Setting], Scaler]:
    return lambda setup, profile, setting: Deployments(
        [[name] for name in _tier_names(setup)], [law(setting) for _ in setup.budgets]
    )


def _together(law: Callable[[Setting], Law]) -> Callable[[Setup, Profile, Setting], Scaler]:
    return lambda setup, profile, setting: Deployments([_tier_names(setup)], [law(setting)])


def _tilted(setup: Setup, profile: Profile, setting: Setting) -> Scaler:
    """A target for each tier: the tightest has the setting's, each looser one more."""
    laws = [
        Hpa(work, setting["target"] * (1.0 + TILT * index), setting["stabilization_s"])
        for index, _ in enumerate(sorted(setup.budgets))
    ]
    return Deployments([[tier_name(tpot_s)] for tpot_s in sorted(setup.budgets)], laws)


def _targets(*targets: float, stabilization_s: float = 300.0) -> tuple[Setting, ...]:
    return tuple({"target": target, "stabilization_s": stabilization_s} for target in targets)


def _hpa(signal: Callable[..., float]) -> Callable[[Setting], Law]:
    return lambda setting: Hpa(signal, setting["target"], setting["stabilization_s"])


def _keda(setting: Setting) -> Law:
    """With a limit of its own: what waits may be late already, and asks for hundreds."""
    return Hpa(queue, setting["target"], setting["stabilization_s"], setting["replicas_max"])


def _saturation(setting: Setting) -> Law:
    return Saturation(
        setting["kv_max"], setting["queue_max"], setting["kv_spare"], setting["queue_spare"], setting["look_s"]
    )


UTILISATIONS = (1.1, 1.0, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3)
USUAL, SOON = _targets(*UTILISATIONS), _targets(*UTILISATIONS, stabilization_s=60.0)
"""With Kubernetes' stabilisation window, and with one of a minute."""
AT_ONCE = _targets(*UTILISATIONS, stabilization_s=15.0)
ATTAINMENTS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def _ours(stabilization_s: float) -> tuple[Setting, ...]:
    return tuple({"attainment": attainment, "stabilization_s": stabilization_s} for attainment in ATTAINMENTS)


OURS, OURS_USUAL = _ours(30.0), _ours(120.0)
"""For a day that passes in an hour or two, and with the manifest's default."""
SATURATIONS: tuple[Setting, ...] = tuple(
    {"kv_max": kv_max, "queue_max": queue_max, "kv_spare": 0.1, "queue_spare": spare, "look_s": look_s}
    for kv_max, queue_max, spare, look_s in (
        (0.8, 5.0, 3.0, 60.0),
        (0.7, 3.0, 2.0, 30.0),
        (0.6, 2.0, 1.5, 30.0),
        (0.5, 2.0, 1.8, 30.0),
        (0.4, 1.5, 1.4, 30.0),
        (0.3, 1.0, 0.95, 30.0),
    )
)

SCALED = (
    Scaled("multislo", "ours", "multislo", _decide, OURS, 4),
    Scaled("multislo_120s", "ours", "multislo", _decide, OURS_USUAL, 4),
    Scaled("multislo_stock", "ours", "multislo_stock", _decide, OURS, 4),
    Scaled("hpa_work_shared", "shared", "multislo", _together(_hpa(work)), USUAL, 5),
    Scaled("hpa_work_shared_60s", "shared", "multislo", _together(_hpa(work)), SOON, 5),
    Scaled("hpa_work_shared_15s", "shared", "multislo", _together(_hpa(work)), AT_ONCE, 5),
    Scaled("hpa_load_shared", "shared", "multislo", _together(_hpa(load)), USUAL, 5),
    Scaled("hpa_work_shared_stock", "shared", "multislo_stock", _together(_hpa(work)), SOON, 5),
    Scaled("hpa_work", "static", "static_partition", _apart(_hpa(work)), USUAL, 10),
    Scaled("hpa_work_60s", "static", "static_partition", _apart(_hpa(work)), SOON, 10),
    Scaled("hpa_work_by_tier", "static", "static_partition", _tilted, USUAL, 11),
    Scaled("hpa_load", "static", "static_partition", _apart(_hpa(load)), USUAL, 10),
    Scaled(
        "hpa_concurrency",
        "static",
        "static_partition",
        _apart(_hpa(concurrency)),
        _targets(80.0, 56.0, 40.0, 28.0, 20.0, 14.0, 10.0, 7.0, 5.0, 3.5, 2.5),
    ),
    Scaled(
        "keda_queue",
        "static",
        "static_partition",
        _apart(_keda),
        tuple(
            {"target": target, "replicas_max": most, "stabilization_s": 300.0}
            for most in (3.0, 4.0, 5.0, 6.0)
            for target in (4.0, 1.0)
        ),
    ),
    Scaled("llm_d", "static", "static_partition", _apart(_saturation), SATURATIONS),
    Scaled(
        "polyserve",
        "static",
        "polyserve",
        _apart(lambda setting: OnPending(setting["every_s"], bool(setting["waits_for_start"]))),
        (
            {"every_s": 15.0, "waits_for_start": 1.0},
            {"every_s": 5.0, "waits_for_start": 1.0},
            {"every_s": 15.0, "waits_for_start": 0.0},
            {"every_s": 1.0, "waits_for_start": 0.0},
        ),
    ),
)
USUALLY = ("multislo", "hpa_work_shared", "hpa_work_shared_60s", "hpa_work", "hpa_work_by_tier", "llm_d", "polyserve")
"""The default contenders: multislo, the best HPAs over the same router, and the likely best ones with separate tiers."""


def scaled_named(name: str) -> Scaled:
    for scaled in SCALED:
        if scaled.name == name:
            return scaled
    raise ValueError(f"policy: {name!r} is none of {', '.join(scaled.name for scaled in SCALED)}")
