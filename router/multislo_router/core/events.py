"""Everything that can happen to the router's core. Each event carries its own time, in seconds of the caller's monotonic clock.

What is made for each request or token has a written `__init__`: a generated one stays Python in the compiled build.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class InstanceState(StrEnum):
    """What the fleet says of an instance. One that is gone is simply absent from `FleetChanged`."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Scheduler(StrEnum):
    """How an engine orders its waiting prompts, and whether it shapes its batches by deadlines."""

    FCFS = "fcfs"
    PRIORITY = "priority"
    SLO_AWARE = "slo_aware"


FCFS: Final = Scheduler.FCFS
PRIORITY: Final = Scheduler.PRIORITY
SLO_AWARE: Final = Scheduler.SLO_AWARE
"""Asked twenty times a decision, and looking up a member of an enum takes 0.1 us."""


class Outcome(StrEnum):
    """How a placed request ended. A metric label: few, and for ever."""

    COMPLETED = "completed"
    CLIENT_GONE = "client_gone"
    ENGINE_FAILED = "engine_failed"
    CLIENT_ERROR = "client_error"
    """Its engine answered 4xx: nobody could have served it."""
    ROUTER_FAILED = "router_failed"
    """By a bug of the router's own."""


COMPLETED: Final = Outcome.COMPLETED


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """One engine server as the fleet describes it."""

    id: str
    tier: str | None
    """Home tier; None for an instance of the warm pool."""
    state: InstanceState
    batch_tokens: int | None = None
    """`max_num_batched_tokens` that its server was started with; None: its tier's."""
    epoch: int = 0
    """Changes when the server restarts under the same id: its cache and queues are empty then."""
    scheduler: Scheduler | None = None
    """How its engine schedules, where that is not how the fleet's do (half of a fleet may have been moved to another engine)."""


@dataclass(slots=True)
class FleetChanged:
    """The whole fleet as it is now (level-triggered: the core finds the differences)."""

    now: float
    instances: list[InstanceSpec]


@dataclass(slots=True)
class InstanceFailed:
    """The shell could not reach an instance, or its connection broke. No request goes there until it is revived."""

    now: float
    instance: str


@dataclass(slots=True)
class InstanceRevived:
    """A probe reached an instance that had failed."""

    now: float
    instance: str


@dataclass(slots=True)
class InstanceReported:
    """What an engine says of itself (its metrics, or a response header)."""

    now: float
    instance: str
    running: int
    waiting: int
    kv_tokens: int
    kv_tokens_max: int | None = None
    """What its KV cache can hold; None: it does not tell."""
    tokens_total: int | None = None
    """Tokens computed since its start; None: it does not tell."""


@dataclass(slots=True)
class InstanceUnreported:
    """It was asked how it is, and did not answer."""

    now: float
    instance: str


@dataclass(slots=True, init=False)
class RequestArrived:
    """A client asks. `tier` None means: by its SLO if it brings one, else the default tier."""

    now: float
    request: int
    prompt_tokens: int
    output_tokens_max: int | None
    """`max_tokens` of the body; None where the client set none."""
    tier: str | None
    ttft_s: float | None
    """From now; below 0 its deadline has passed."""
    tpot_s: float | None
    streaming: bool
    """False: no token is seen before the last one."""
    prefilled: bool
    """Its prompt was computed elsewhere, all but its last token, and the KV comes with it: it decodes from the start."""
    prompts: tuple[int, ...]
    """The length of each, where it has several; `prompt_tokens` are those of all."""
    choices: int
    """Answers to each prompt (`n`). Prompts times choices are its sequences, those of the first prompt first."""

    def __init__(
        self,
        now: float,
        request: int,
        prompt_tokens: int,
        output_tokens_max: int | None = None,
        tier: str | None = None,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
        streaming: bool = True,
        prefilled: bool = False,
        prompts: tuple[int, ...] = (),
        choices: int = 1,
    ) -> None:
        self.now = now
        self.request = request
        self.prompt_tokens = prompt_tokens
        self.output_tokens_max = output_tokens_max
        self.tier = tier
        self.ttft_s = ttft_s
        self.tpot_s = tpot_s
        self.streaming = streaming
        self.prefilled = prefilled
        self.prompts = prompts
        self.choices = choices


@dataclass(slots=True)
class PromptMeasured:
    """The engine told the true length of a prompt that had been estimated."""

    now: float
    request: int
    prompt_tokens: int


@dataclass(slots=True, init=False)
class TokensReceived:
    """`tokens` more output tokens of a request passed through (the first event of a request ends its prefill)."""

    now: float
    request: int
    tokens: int
    sequence: int

    def __init__(self, now: float, request: int, tokens: int = 1, sequence: int = 0) -> None:
        self.now = now
        self.request = request
        self.tokens = tokens
        self.sequence = sequence


@dataclass(slots=True, init=False)
class SequenceEnded:
    """One of several sequences of a request has its last token; others go on."""

    now: float
    request: int
    sequence: int

    def __init__(self, now: float, request: int, sequence: int) -> None:
        self.now = now
        self.request = request
        self.sequence = sequence


@dataclass(slots=True, init=False)
class RequestEnded:
    """A request that had been placed or held is over. Of one that does not stream, or that has several
    sequences, `tokens` are all that it got."""

    now: float
    request: int
    outcome: Outcome
    tokens: int

    def __init__(self, now: float, request: int, outcome: Outcome, tokens: int = 0) -> None:
        self.now = now
        self.request = request
        self.outcome = outcome
        self.tokens = tokens


@dataclass(slots=True)
class SendFailed:
    """A placed request came back with nothing sent to its client (connection refused or broken): it may be placed once more."""

    now: float
    request: int


@dataclass(slots=True)
class Unanswered:
    """A placed request, with nothing sent to its client, is on an engine that gives no sign of life: it may be placed once more."""

    now: float
    request: int


@dataclass(slots=True)
class EngineFull:
    """A placed request came back because its engine says that it is full: it may be placed once more, and the instance gets no more than it
    has until `retry_after_s` have passed or something there has ended."""

    now: float
    request: int
    retry_after_s: float | None = None


@dataclass(slots=True)
class Tick:
    """`RouterCore.wake_at` has come."""

    now: float


Event = (
    RequestArrived
    | TokensReceived
    | SequenceEnded
    | RequestEnded
    | PromptMeasured
    | SendFailed
    | Unanswered
    | EngineFull
    | Tick
    | InstanceReported
    | InstanceUnreported
    | InstanceFailed
    | InstanceRevived
    | FleetChanged
)
