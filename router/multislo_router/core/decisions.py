"""What the core decides. Every decision carries its terms: logs, metrics, tests and the simulator's journal print the same record."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """How a request got its place. A metric label."""

    OWN_TIER = "own_tier"
    PROMOTED = "promoted"
    """On an instance of a tighter tier."""
    DEMOTED = "demoted"
    """On an instance of a looser tier that has room for it (soft homes)."""
    WARM_POOL = "warm_pool"
    LATE = "late"
    """Its own deadline cannot be met any more; it goes where it harms no other."""
    BEST_EFFORT = "best_effort"


OWN_TIER: Final = Kind.OWN_TIER
PROMOTED: Final = Kind.PROMOTED
DEMOTED: Final = Kind.DEMOTED
WARM_POOL: Final = Kind.WARM_POOL
LATE: Final = Kind.LATE
BEST_EFFORT: Final = Kind.BEST_EFFORT


class Cause(StrEnum):
    """Why a request was refused. A metric label and the machine-readable reason of the response."""

    DEADLINE = "deadline"
    """No instance can meet its deadline, and its tier rejects."""
    QUEUE_FULL = "queue_full"
    NO_INSTANCE = "no_instance"
    TOO_LONG = "too_long"
    """Prompt and output can never fit an instance's KV cache or the model's length."""
    ENGINE_FAILED = "engine_failed"
    """It failed before its first byte, and was tried again already."""
    ENGINE_FULL = "engine_full"
    """Likewise, and the last engine said that it is full."""


@dataclass(slots=True, init=False)
class Place:
    """Send the request to the instance now."""

    request: int
    instance: str
    tier: str
    kind: Kind
    ttft_predicted_s: float
    """From the request's arrival at the router to its first token."""
    iteration_predicted_s: float
    """The steady decode iteration of the instance with the request in it."""
    room_s: float
    """The least margin over all deadlines that the placement touches; negative where one will be missed."""
    load: float
    """The instance's load with the request in it."""
    ttft_due: float
    """When its first token is due, on the core's clock; for engines that plan by deadlines."""
    second_due: float
    """The deadline that it is planned by once that one is out of reach; no later: it has none."""
    tpot_s: float
    priority: int | None
    """Lower = earlier, where the instance runs `--scheduling-policy priority`: the deadline in milliseconds, on the core's clock. Who sends
    it to an engine puts it on a clock that all routers share."""
    reason: str

    def __init__(
        self,
        request: int,
        instance: str,
        tier: str,
        kind: Kind,
        ttft_predicted_s: float,
        iteration_predicted_s: float,
        room_s: float,
        load: float,
        ttft_due: float,
        second_due: float,
        tpot_s: float,
        priority: int | None,
        reason: str,
    ) -> None:
        self.request = request
        self.instance = instance
        self.tier = tier
        self.kind = kind
        self.ttft_predicted_s = ttft_predicted_s
        self.iteration_predicted_s = iteration_predicted_s
        self.room_s = room_s
        self.load = load
        self.ttft_due = ttft_due
        self.second_due = second_due
        self.tpot_s = tpot_s
        self.priority = priority
        self.reason = reason


@dataclass(slots=True)
class Hold:
    """Keep the request in the router: no instance has room for it yet. A later event places or refuses it."""

    request: int
    tier: str
    reason: str


@dataclass(slots=True)
class Refuse:
    """Answer the client with an error: 429 for `DEADLINE` and `QUEUE_FULL`, 503 for `NO_INSTANCE` and `ENGINE_FULL`, 400 for `TOO_LONG`,
    502 for `ENGINE_FAILED`; or as the last engine did, where that has answered."""

    request: int
    tier: str
    cause: Cause
    retry_after_s: float | None
    reason: str


@dataclass(slots=True)
class Suspect:
    """Nothing has come of the requests on an instance for far longer than predicted. Nothing is placed there until it is revived: let it
    compute a token. While it does not, `Unanswered` moves what can still be moved."""

    instance: str
    silent_s: float
    predicted_s: float
    reason: str


Decision = Place | Hold | Refuse | Suspect
