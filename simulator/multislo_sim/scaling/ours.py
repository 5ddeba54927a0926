"""The production law: `decide` with its memory, asked as often as the operator asks it. Called by the simulated fleet."""

from collections.abc import Mapping, Sequence

from multislo_operator.decide.fleet import FleetObserved, FleetSpec, TierSpec
from multislo_operator.decide.memory import Memory
from multislo_operator.decide.plan import Action
from multislo_operator.decide.scale import decide
from multislo_router.core.config import TierConfig
from multislo_router.core.status import CoreStatus

UNLIMITED = 10_000


class Decide:
    """`decide` for one fleet. The operator calls it every second. Called every two seconds, a run is a fifth faster, and starts come a
    second later."""

    def __init__(self, spec: FleetSpec, every_s: float = 2.0) -> None:
        self.spec = spec
        self.every_s = every_s
        self._memory = Memory()

    def actions(self, now: float, observed: FleetObserved, status: CoreStatus) -> Sequence[Action]:
        plan, self._memory = decide(self.spec, observed, self._memory, now)
        return plan.actions


def fleet_spec(
    tiers: Sequence[TierConfig],
    startup_s: float,
    attainment: float,
    stabilization_s: float = 120.0,
    batch_tokens: Mapping[str, int] | None = None,
    instances_max: int = UNLIMITED,
) -> FleetSpec:
    """What a manifest with these tiers would say; no minima, no warm pool. `batch_tokens` by tier: none where engines plan by deadlines."""
    budgets = batch_tokens or {}
    return FleetSpec(
        tiers=tuple(
            TierSpec(tier.name, tier.tpot_s, tier.ttft_s, 0, UNLIMITED, 0, budgets.get(tier.name, 0)) for tier in tiers
        ),
        startup_s=startup_s,
        attainment=attainment,
        accelerators_max=instances_max,
        stabilization_s=stabilization_s,
    )
