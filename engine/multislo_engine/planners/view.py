"""What a planner sees of its engine, and what it answers. The engine model keeps one `EngineView` up to date and
asks its planner for a `Plan` at the start of every iteration; planners read and never write."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]
"""Places in `Decodes`, ascending."""

TTFT_DEFAULT_S = 30.0
TPOT_DEFAULT_S = 0.5
"""Taken as the SLO of a request that has none, so that it is served behind the others but not never."""


@dataclass(slots=True, eq=False)
class SharedBlocks:
    """The KV blocks that a prompt fills, where several sequences have it."""

    blocks: int
    jobs: int
    """How many hold them."""


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
    prefilled: bool = False
    """It came with its prompt's KV, all but the last token's: it does not prefill, unless it was preempted."""
    produced: int = 0
    """Tokens made. While it decodes, those made before it began to; `Decodes.produced` counts on."""
    late: int = 0
    """Of these, the ones that came after they were due. Counted like `produced`."""
    admitted: int = -1
    """Number in order of admission; -1 while it waits."""
    blocks: int = 0
    """KV blocks that it holds. Counted like `produced`."""
    forks: tuple[tuple[int, int], ...] = ()
    """Id and output tokens of the sequences that part from it at its first token."""
    shared: SharedBlocks | None = None
    """Those of its blocks that others hold, too."""
    slot: int = -1
    """Its place in `Decodes`; -1 while it does not decode."""
    aborted: bool = False
    order: tuple[float, ...] = ()
    """Its planner's sort key, fixed when it starts to wait."""
    second_due_s: float = -inf
    """When its first token is due once `ttft_due_s` is out of reach; no later than that: never."""

    @property
    def tokens(self) -> int:
        """Prompt and output so far: what a prefill has to cover (after a preemption the output too)."""
        return self.prompt_tokens + self.produced

    @property
    def prefill_tokens(self) -> int:
        """Tokens still to be prefilled before it yields its next one."""
        return self.prompt_tokens + self.produced - self.context

    @property
    def due_s(self) -> float:
        """When its next token is due, for a job that does not decode; with the default SLO where it has none."""
        ttft_due_s = self.ttft_due_s if self.ttft_due_s < inf else self.arrived_s + TTFT_DEFAULT_S
        return ttft_due_s + self.produced * (self.tpot_s if self.tpot_s < inf else TPOT_DEFAULT_S)


class Decodes:
    """The jobs past their prefill, one slot each, as parallel arrays: an iteration costs a few array operations and not a loop.

    Arrays hold numbers of steps, not counts that every step would have to change: all that took part in every step since they
    joined have made `steps - born` tokens. A job that is left out of a step has its numbers moved by one instead.
    """

    __slots__ = (
        "_blocks_from",
        "_born",
        "_due_zero",
        "_ends",
        "_full",
        "_late",
        "_prompt",
        "_tpot",
        "block_tokens",
        "jobs",
        "steps",
    )

    def __init__(self, block_tokens: int = 16, jobs: Iterable[Job] = ()) -> None:
        self.jobs: list[Job] = []
        self.block_tokens = block_tokens
        self.steps = 0
        size = 64
        self._born = np.zeros(size, np.int64)
        self._ends = np.zeros(size, np.int64)
        self._full = np.zeros(size, np.int64)
        self._late = np.zeros(size, np.int64)
        self._prompt = np.zeros(size, np.int64)
        self._blocks_from = np.zeros(size, np.int64)
        self._due_zero = np.zeros(size)
        self._tpot = np.zeros(size)
        for job in jobs:
            self.add(job)

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    # -- what planners ask ---------------------------------------------------------------------------------------------

    @property
    def due_s(self) -> NDArray[np.float64]:
        """When each one's next token is due, by slot; with the default SLO where it has none."""
        count = len(self.jobs)
        due: NDArray[np.float64] = self._tpot[:count] * self.steps
        due += self._due_zero[:count]
        return due

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        return self._tpot[: len(self.jobs)]

    @property
    def produced(self) -> NDArray[np.int64]:
        """Tokens that each one has made, by slot."""
        return self.steps - self._born[: len(self.jobs)]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Prompt and output so far, by slot: what each one attends to."""
        count = len(self.jobs)
        return self._prompt[:count] + self.steps - self._born[:count]

    def tokens_of(self, job: Job) -> int:
        return job.prompt_tokens + self.steps - int(self._born[job.slot])

    def kv_tokens(self, slots: Slots | None) -> int:
        """Sum of `tokens` over some of them, or all."""
        count = len(self.jobs)
        if slots is None:
            return int((self._prompt[:count] - self._born[:count]).sum()) + count * self.steps
        return int((self._prompt[slots] - self._born[slots]).sum()) + len(slots) * self.steps

    # -- what the engine does ------------------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        slot = len(self.jobs)
        if slot == len(self._born):
            self._grow()
        self.jobs.append(job)
        job.slot = slot
        born = self.steps - job.produced
        tpot_s = job.tpot_s if job.tpot_s < inf else TPOT_DEFAULT_S
        self._born[slot] = born
        self._ends[slot] = born + job.output_tokens
        # Its last token so far is in no block yet: it gets its place when the next one is made.
        self._full[slot] = self.steps + job.blocks * self.block_tokens - job.tokens + 1
        self._blocks_from[slot] = job.blocks
        self._late[slot] = job.late
        self._prompt[slot] = job.prompt_tokens
        self._tpot[slot] = tpot_s
        self._due_zero[slot] = job.due_s - self.steps * tpot_s

    def remove(self, job: Job) -> None:
        """Take a job out and write what was counted for it back; the last slot's job takes its place."""
        slot = job.slot
        job.produced = self.steps - int(self._born[slot])
        job.late = int(self._late[slot])
        job.blocks = int(self._blocks_from[slot])
        job.slot = -1
        last = self.jobs.pop()
        if last is not job:
            from_slot = len(self.jobs)
            for array in (
                self._born,
                self._ends,
                self._full,
                self._late,
                self._prompt,
                self._blocks_from,
                self._due_zero,
                self._tpot,
            ):
                array[slot] = array[from_slot]
            self.jobs[slot] = last
            last.slot = slot

    def step(self, slots: Slots | None) -> list[Job]:
        """One more token for those in `slots` (None: all); answers whose last one it was."""
        count = len(self.jobs)
        self.steps += 1
        if slots is not None and len(slots) < count:
            out = np.ones(count, np.bool_)
            out[slots] = False
            self._born[:count] += out
            self._ends[:count] += out
            self._full[:count] += out
            self._due_zero[:count] -= self._tpot[:count] * out
        ended = (self._ends[:count] == self.steps).nonzero()[0]
        jobs = self.jobs
        return [jobs[slot] for slot in ended.tolist()] if len(ended) else []

    def count(self, tokens: NDArray[np.int64]) -> None:
        """Set the `tokens` of each, by slot: for an engine that says so itself (vLLM), in the place of `step`."""
        count = len(self.jobs)
        more = tokens - self.tokens
        self._born[:count] -= more
        self._due_zero[:count] += self._tpot[:count] * more

    def count_late(self, slots: Slots | None, at: float) -> float:
        """Count the tokens of the next step that are late if it ends `at`; answers the earliest deadline."""
        due = self.due_s
        least = float(due.min())
        if least < at:
            late = due < at
            if slots is not None:
                taking = np.zeros(len(due), np.bool_)
                taking[slots] = True
                late &= taking
            self._late[: len(due)] += late
        return least

    def late(self, now: float) -> list[Job]:
        """Who has missed a deadline by now."""
        late = (self._late[: len(self.jobs)] > 0) | (self.due_s < now)
        return [self.jobs[slot] for slot in late.nonzero()[0].tolist()]

    def full(self) -> Slots:
        """Whose last KV block is full: the next step needs another."""
        full: Slots = (self._full[: len(self.jobs)] == self.steps).nonzero()[0]
        return full

    def give_blocks(self, slots: Slots) -> None:
        """One more block for each."""
        self._full[slots] += self.block_tokens
        self._blocks_from[slots] += 1

    def give_block(self, job: Job) -> None:
        self._full[job.slot] += self.block_tokens
        self._blocks_from[job.slot] += 1

    def blocks_of(self, job: Job) -> int:
        return int(self._blocks_from[job.slot])

    def _grow(self) -> None:
        for name in ("_born", "_ends", "_full", "_late", "_prompt", "_blocks_from", "_due_zero", "_tpot"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.zeros_like(array)]))


@dataclass(slots=True)
class EngineView:
    """The state of one engine between two iterations."""

    batch_tokens: int
    """Tokens of one iteration at most, a decode counting as one (`max_num_batched_tokens`)."""
    seqs_max: int
    block_tokens: int
    blocks_free: int
    decodes: Decodes = field(default_factory=Decodes)
    """Running and past their prefill. Their next KV block, if they need one, is theirs already."""
    prefills: list[Job] = field(default_factory=list)
    """Running with a prefill under way, in order of admission."""
    waiting: list[Job] = field(default_factory=list)
    """Not admitted, sorted by `Planner.order`."""
    decode_kv_tokens: int = 0
    """Sum of `tokens` over `decodes`."""
    admitting: bool = True
    """False in an iteration that had to preempt: it admits no job."""

    def blocks(self, tokens: int) -> int:
        """KV blocks that hold `tokens`."""
        return -(-tokens // self.block_tokens)

    def blocks_promised(self) -> int:
        """Blocks that the prefills under way still have to take."""
        size = self.block_tokens
        return sum(-(-job.tokens // size) - job.blocks for job in self.prefills)


@dataclass(slots=True, init=False)
class Plan:
    """One iteration: the prefill chunks (a waiting job in it is thereby admitted) and the decodes that get one token each."""

    chunks: list[tuple[Job, int]]
    decodes: Slots | None
    """Their slots; None: all that there are."""

    def __init__(self, chunks: list[tuple[Job, int]], decodes: Slots | None = None) -> None:
        self.chunks = chunks
        self.decodes = decodes


def last_admitted(view: EngineView) -> Job:
    """The victim of vLLM's FCFS policy: the tail of its running list."""
    return max([*view.decodes.jobs, *view.prefills], key=_admission)


def _admission(job: Job) -> int:
    return job.admitted
