"""One trial: a router policy on a fixed simulated fleet under Poisson arrivals of a trace's lengths, with PolyServe's SLO classes. Called
by `multislo simulate` and by tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from multislo_perf.profile import Profile
from multislo_perf.sizing import batch_tokens
from multislo_router.core.config import CoreConfig, EngineLimits, Placement, TierConfig
from multislo_router.core.events import Scheduler
from multislo_sim.fleet import Record, Scenario, SimulatedFleet, attainment
from multislo_sim.rivals import RIVALS
from multislo_sim.workloads.arrivals import stamps, steady
from multislo_sim.workloads.request import Request, with_arrivals
from multislo_sim.workloads.tiers import POLYSERVE_TPOT_S, with_polyserve_classes

POLICIES = (*(placement.value for placement in Placement), *RIVALS)
KV_SHARE_MAX = 0.9
"""Requests that need more than this share of an instance's KV cache are left out: no policy could serve them beside another."""
SETTLING_S = 20.0
"""Played on after the last arrival, so that what was served late is told from what was never served."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The terms of one run. Rates are requests a second, times seconds."""

    policy: str
    profile: Profile
    instances: int
    rate: float
    duration_s: float
    warmup_s: float
    seed: int
    scheduler: Scheduler = Scheduler.FCFS
    batch_tokens: int | None = None
    """The same token budget on every instance; None: by the tier's TPOT."""


def play(trial: Trial, lengths: Sequence[Request]) -> tuple[dict[str, float], list[Record]]:
    """Attainment by tier and over `all`, of what arrived after the warm-up; and the records."""
    profile = trial.profile
    budgets = {tpot_s: trial.batch_tokens or batch_tokens(profile.latency, tpot_s) for tpot_s, _ in POLYSERVE_TPOT_S}
    tiers = tuple(TierConfig(_name(tpot_s), 0.5, tpot_s, batch_tokens=budget) for tpot_s, budget in budgets.items())
    core = CoreConfig(
        tiers,
        tiers[-1].name,
        profile.latency,
        EngineLimits(profile.kv_tokens_max, scheduler=trial.scheduler),
        Placement(trial.policy) if trial.policy not in RIVALS else Placement.PACK,
    )
    place_by = RIVALS[trial.policy]() if trial.policy in RIVALS else None
    requests = _requests(trial, lengths, budgets)
    scenario = Scenario(core, _homes(trial.instances), profile.latency, place_by)
    outcome = SimulatedFleet(scenario, requests).run(trial.duration_s + SETTLING_S)
    return attainment(outcome.records, trial.warmup_s, trial.duration_s), outcome.records


def _requests(trial: Trial, lengths: Sequence[Request], budgets: dict[float, int]) -> list[Request]:
    kv_tokens_max = KV_SHARE_MAX * trial.profile.kv_tokens_max
    shuffled = [request for request in lengths if request.prompt_tokens + request.output_tokens <= kv_tokens_max]
    Random(trial.seed).shuffle(shuffled)
    moments = stamps(steady(trial.rate, trial.duration_s), trial.seed)
    times = len(moments) // len(shuffled) + 1
    arriving = with_arrivals((shuffled * times)[: len(moments)], moments)
    return with_polyserve_classes(arriving, trial.profile.latency, budgets.__getitem__, trial.seed)[0]


def _homes(instances: int) -> tuple[str, ...]:
    """Home tiers in the shares of the classes, at least one each; the loosest takes what rounding leaves."""
    counts = [max(1, round(share * instances)) for _, share in POLYSERVE_TPOT_S]
    while sum(counts) > instances:
        counts[counts.index(max(counts))] -= 1
    counts[-1] += instances - sum(counts)
    return tuple(
        _name(tpot_s) for (tpot_s, _), count in zip(POLYSERVE_TPOT_S, counts, strict=True) for _ in range(count)
    )


def _name(tpot_s: float) -> str:
    return f"{tpot_s * 1000:.0f}ms"
