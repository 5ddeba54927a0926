"""What the core is told once: tiers, the latency model, the engines' limits, and its named limits and margins."""

from dataclasses import dataclass
from enum import StrEnum

from multislo_perf.latency import LatencyModel
from multislo_router.core.events import Scheduler


class Placement(StrEnum):
    PACK = "Pack"
    SPREAD = "Spread"


class Overload(StrEnum):
    """What becomes of a request whose deadline no instance can meet any more."""

    QUEUE = "Queue"
    """It waits for its turn and is served late."""
    BEST_EFFORT = "BestEffort"
    """It is served late, behind everything that is still in time."""
    REJECT = "Reject"
    """429 with Retry-After, as soon as that is certain."""


@dataclass(frozen=True, slots=True)
class TierConfig:
    """An SLO class. Token i of a request is due at arrival + ttft_s + i * tpot_s."""

    name: str
    ttft_s: float
    tpot_s: float
    overload: Overload = Overload.QUEUE
    batch_tokens: int = 2048
    """`max_num_batched_tokens` of its home instances."""
    latest: float = 5.0
    """With `QUEUE`: a request that waits for so many times its TTFT is served now, at whoever's cost."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What every engine of the fleet was started with."""

    kv_tokens_max: int
    seqs_max: int = 1024
    scheduler: Scheduler = Scheduler.FCFS
    warm_batch_tokens: int = 1024
    """`max_num_batched_tokens` of an instance that was started in the warm pool."""


@dataclass(frozen=True, slots=True)
class CoreConfig:
    tiers: tuple[TierConfig, ...]
    default_tier: str
    latency: LatencyModel
    engine: EngineLimits
    placement: Placement = Placement.PACK
    length_max: int | None = None
    """Prompt and output tokens of one request; None: the KV cache is the only limit."""
    pending_max: int = 10_000
    """Requests held in the router. Beyond it a new one is refused: 10,000 prompts of a few KB are tens of MB."""
