"""What `decide` answers: actions with their reasons, what is held back and why, and each tier's desired count."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Terms = Mapping[str, float]
"""The figures that a reason rests on, by name; units last."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start an instance for `tier` (None: for the warm pool)."""

    tier: str | None
    reason: str
    terms: Terms = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drain:
    """Place nothing more on the instance; it is stopped when it is empty."""

    instance: str
    reason: str
    terms: Terms = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallOffDrain:
    """Make a draining instance ready again, in the tier that it had."""

    instance: str
    reason: str
    terms: Terms = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Convert:
    """Move a ready instance to `tier` (None: to the warm pool) without a restart."""

    instance: str
    tier: str | None
    reason: str
    terms: Terms = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """End the instance: it is drained and empty, or out of time, or has failed for good."""

    instance: str
    reason: str
    terms: Terms = field(default_factory=dict)


Action = Start | Drain | CallOffDrain | Convert | Stop


class HoldCause(StrEnum):
    """Why something that would be done is not. CamelCase: these become the reason of the ScalingReady condition."""

    DATA_UNKNOWN = "DataUnknown"
    BUDGET_SHORT = "BudgetShort"
    TIER_AT_MAX = "TierAtMax"
    NOT_COMING_UP = "InstancesNotComingUp"
    PENDING = "RequestsPending"
    STARTING = "InstancesStarting"
    DRAINING = "InstanceDraining"
    ATTAINMENT_LOW = "AttainmentLow"


@dataclass(frozen=True, slots=True)
class Hold:
    cause: HoldCause
    reason: str
    tier: str | None = None


@dataclass(frozen=True, slots=True)
class TierPlan:
    """A tier's row: what is wanted, what is there (before the actions), and why."""

    name: str
    desired: int
    ready: int
    starting: int
    draining: int
    failed: int
    reason: str
    terms: Terms


@dataclass(frozen=True, slots=True)
class Plan:
    """One decision. `known` is False where the figures said nothing and only the minima were kept."""

    actions: tuple[Action, ...]
    holds: tuple[Hold, ...]
    tiers: tuple[TierPlan, ...]
    warm_desired: int
    instances_used: int
    """Instances that hold accelerators now, in any state."""
    instances_max: int | None
    known: bool
