"""What a planner sees of its engine, and what it answers. The engine model keeps one `EngineView` up to date and
asks its planner for a `Plan` at the start of every iteration; planners read and never write."""

from dataclasses import dataclass, field
from math import inf
from typing import Protocol


@dataclass(slots=True, eq=False)
class Job:
    """A request inside an engine. Token i (from 0) is due at `ttft_due_s + i * tpot_s` on the engine's clock."""

    id: int
    prompt_tokens: int
    output_tokens: int
    """How many tokens it will yield. The engine's truth: a planner that reads it cheats."""
    priority: int
    arrived_s: float
    sequence: int
    """Number in order of arrival; breaks every tie."""
    ttft_due_s: float = inf
    tpot_s: float = inf
    context: int = 0
    """Tokens in the cache while it waits or prefills (of one that waits: those that its admission gets for nothing)."""
    produced: int = 0
    admitted: int = -1
    """Number in order of admission; -1 while it waits."""
    blocks: int = 0
    until: int = 0
    """Decode steps until it ends or needs another KV block."""
    aborted: bool = False
    order: tuple[float, ...] = ()
    """Its planner's sort key, fixed when it starts to wait."""

    @property
    def tokens(self) -> int:
        """Prompt and output so far: what a prefill has to cover (after a preemption the output too), what a decode
        attends to."""
        return self.prompt_tokens + self.produced

    @property
    def prefill_tokens(self) -> int:
        """Tokens still to be prefilled before it yields its next one."""
        return self.prompt_tokens + self.produced - self.context


@dataclass(slots=True)
class EngineView:
    """The state of one engine between two iterations."""

    batch_tokens: int
    """Tokens of one iteration at most, a decode counting as one (`max_num_batched_tokens`)."""
    seqs_max: int
    block_tokens: int
    blocks_free: int
    decodes: list[Job] = field(default_factory=list)
    """Running and past their prefill. Their next KV block, if they need one, is theirs already."""
    prefills: list[Job] = field(default_factory=list)
    """Running with a prefill under way, in order of admission."""
    waiting: list[Job] = field(default_factory=list)
    """Not admitted, sorted by `Planner.order`."""
    decode_kv_tokens: int = 0
    """Sum of `tokens` over `decodes`."""
    admitting: bool = True
    """False in an iteration that had to preempt: nobody is admitted in it."""

    def blocks(self, tokens: int) -> int:
        """KV blocks that hold `tokens`."""
        return -(-tokens // self.block_tokens)

    def blocks_promised(self) -> int:
        """Blocks that the prefills under way still have to take."""
        size = self.block_tokens
        return sum(-(-job.tokens // size) - job.blocks for job in self.prefills)


@dataclass(slots=True)
class Plan:
    """One iteration: the prefill chunks (a waiting job in it is thereby admitted) and the jobs that decode one token
    each."""

    chunks: list[tuple[Job, int]]
    decodes: list[Job]


class Planner(Protocol):
    """Chooses each iteration's batch. Pure and without memory: the same view gets the same plan."""

    @property
    def name(self) -> str: ...

    def order(self, job: Job) -> tuple[float, ...]:
        """Sort key among the waiting, asked once when the job starts to wait."""
        ...

    def plan(self, now: float, view: EngineView) -> Plan:
        """The next iteration. Never empty while there is a running job, nor while a waiting one could be admitted."""
        ...

    def victim(self, view: EngineView) -> Job:
        """The running job that loses its KV when there is no block left."""
        ...


def last_admitted(view: EngineView) -> Job:
    """The victim of vLLM's FCFS policy: the tail of its running list."""
    return max((*view.decodes, *view.prefills), key=_admission)


def _admission(job: Job) -> int:
    return job.admitted
