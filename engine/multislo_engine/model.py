"""The engine model: what happens inside one inference engine and when. Pure; the simulator advances it from a heap,
the emulator from its event loop.

It imitates vLLM's v1 engine: iterations, each planned by a planner when the one before has ended; chunked prefill,
the last chunk of which yields the first token; KV cache in blocks; preemption by recomputation when there is no
block left. An iteration takes what the latency model says of its batch, times `jitter()`.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from operator import attrgetter
from typing import NamedTuple

from multislo_engine.planners.view import EngineView, Job, Plan, Planner
from multislo_perf.latency import LatencyModel

_ORDER = attrgetter("order")
_ADMITTED = attrgetter("admitted")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine was started with."""

    kv_tokens_max: int
    batch_tokens: int
    """`max_num_batched_tokens`."""
    seqs_max: int = 1024
    block_tokens: int = 16
    queue_max: int | None = None
    """`max_num_queued_reqs`: a request that finds as many waiting is refused."""

    def __post_init__(self) -> None:
        for name in ("kv_tokens_max", "batch_tokens", "seqs_max", "block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.queue_max is not None and self.queue_max < 1:
            raise ValueError(f"queue_max: {self.queue_max} must be at least 1, or None for no limit")
        if self.kv_tokens_max < self.block_tokens:
            raise ValueError(f"kv_tokens_max: {self.kv_tokens_max} must hold one block of {self.block_tokens} tokens")


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request. `ttft_due_s` is the instant at which its first token is due (infinite: it has no SLO)."""

    id: int
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    ttft_due_s: float = inf
    tpot_s: float = inf
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache; they still take KV blocks of their own."""


class EngineToken(NamedTuple):
    """Output token `index` (from 0) of request `id`, made at `at`; `finished` on the last one."""

    id: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a token
    at: float
    finished: bool


_new_token = tuple.__new__


class EngineModel:
    """One engine. Every `now` is on one clock and never goes back; call `advance` before anything else that happens
    later."""

    def __init__(
        self,
        latency: LatencyModel,
        config: EngineConfig,
        planner: Planner,
        jitter: Callable[[], float] | None = None,
    ) -> None:
        self.config = config
        self.planner = planner
        self.iterations = 0
        self.preemptions = 0
        self.prefill_tokens = 0
        """Prompt tokens computed so far, recomputation included."""
        self.decode_tokens = 0
        self.output_tokens = 0
        self._latency = latency
        self._jitter = jitter
        self._blocks_max = config.kv_tokens_max // config.block_tokens
        self._view = EngineView(config.batch_tokens, config.seqs_max, config.block_tokens, self._blocks_max)
        self._jobs: dict[int, Job] = {}
        self._plan = Plan([], [])
        self._ends = inf
        self._short: list[Job] = []  # decodes whose last block is full
        self._aborting: list[Job] = []
        self._sequence = 0
        self._admissions = 0

    @property
    def running(self) -> int:
        return len(self._view.decodes) + len(self._view.prefills)

    @property
    def waiting(self) -> int:
        return len(self._view.waiting)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the blocks in use could hold."""
        return (self._blocks_max - self._view.blocks_free) * self.config.block_tokens

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a request of this size can ever be served: alone, it must fit in the KV cache."""
        return self._view.blocks(prompt_tokens + output_tokens) <= self._blocks_max

    def submit(self, now: float, request: EngineRequest) -> bool:
        """Takes a request in; an idle engine starts its iteration at once. False: the queue is full, or it can never
        fit."""
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise ValueError(f"request {request.id}: prompt_tokens and output_tokens must be at least 1")
        if request.id in self._jobs:
            raise ValueError(f"request {request.id}: there is one of this id already")
        limit = self.config.queue_max
        if limit is not None and len(self._view.waiting) >= limit:
            return False
        if not self.fits(request.prompt_tokens, request.output_tokens):
            return False
        job = Job(
            id=request.id,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            priority=request.priority,
            arrived_s=now,
            sequence=self._sequence,
            ttft_due_s=request.ttft_due_s,
            tpot_s=request.tpot_s,
            # The last prompt token is always computed: it yields the first output token.
            context=max(0, min(request.cached_tokens, request.prompt_tokens - 1)),
        )
        self._sequence += 1
        self._jobs[job.id] = job
        self._wait(job)
        if self._ends == inf:
            self._start(now)
        return True

    def abort(self, now: float, id: int) -> None:
        """Drops a request: at once if it waits, else at the end of the running iteration, which yields it no token."""
        job = self._jobs.get(id)
        if job is None or job.aborted:
            return
        job.aborted = True
        if job.admitted < 0:
            self._unwait(job)
            del self._jobs[id]
        else:
            self._aborting.append(job)

    def next_at(self) -> float | None:
        """When the running iteration ends; None: the engine is idle."""
        return None if self._ends == inf else self._ends

    def advance(self, now: float) -> list[EngineToken]:
        """Tokens of all iterations that have ended by now, in order; every iteration starts when the one before has
        ended."""
        tokens: list[EngineToken] = []
        while (at := self._ends) <= now and at < inf:
            self._complete(at, tokens)
            self._start(at)
        return tokens

    def _start(self, now: float) -> None:
        """Plans the next iteration and sets when it ends, or goes idle."""
        view = self._view
        if not view.decodes and not view.prefills and not view.waiting:
            self._ends = inf
            self._plan = Plan([], [])
            return
        view.admitting = True
        if self._short:
            self._extend()
        plan, grown = self._fitting_plan(now)
        for (job, _), blocks in zip(plan.chunks, grown, strict=True):
            if job.admitted < 0:
                self._admit(job)
            job.blocks += blocks
            view.blocks_free -= blocks
        self._plan = plan
        self._ends = now + self._iteration_s(plan)

    def _fitting_plan(self, now: float) -> tuple[Plan, list[int]]:
        """A plan whose chunks get their blocks, and those blocks; running jobs are preempted until there is one."""
        view = self._view
        while True:
            plan = self.planner.plan(now, view)
            if not plan.chunks:
                if not plan.decodes:
                    raise RuntimeError(f"the planner {self.planner.name!r} left an engine with work idle")
                return plan, []
            grown = [max(0, view.blocks(job.context + tokens) - job.blocks) for job, tokens in plan.chunks]
            if sum(grown) <= view.blocks_free:
                return plan, grown
            if not view.decodes and not view.prefills:
                raise RuntimeError(f"the planner {self.planner.name!r} admitted more than the KV cache holds")
            self._preempt(self.planner.victim(view))
            view.admitting = False

    def _iteration_s(self, plan: Plan) -> float:
        view = self._view
        decodes = plan.decodes
        kv_tokens = view.decode_kv_tokens if decodes is view.decodes else sum([job.tokens for job in decodes])
        chunks = plan.chunks
        if not chunks:
            seconds = self._latency.iteration_s(0, 0, len(decodes), kv_tokens)
        elif len(chunks) == 1:
            job, tokens = chunks[0]
            seconds = self._latency.iteration_s(tokens, job.context, len(decodes), kv_tokens)
        else:
            pairs = [(tokens, job.context) for job, tokens in chunks]
            seconds = self._latency.batch_s(pairs, len(decodes), kv_tokens)
        return seconds if self._jitter is None else seconds * self._jitter()

    def _complete(self, at: float, tokens: list[EngineToken]) -> None:
        """Ends the running iteration: its tokens, its finished, its aborted."""
        self.iterations += 1
        view = self._view
        if self._aborting:
            self._drop_aborted()
        plan = self._plan
        decodes = plan.decodes
        finished = 0
        # The hot loop of every simulation: one pass, three stores a token.
        for job in decodes:
            index = job.produced
            job.produced = index + 1
            job.until = until = job.until - 1
            if until:
                tokens.append(_new_token(EngineToken, (job.id, index, at, False)))
            elif index + 1 == job.output_tokens:
                tokens.append(_new_token(EngineToken, (job.id, index, at, True)))
                finished += 1
                view.decode_kv_tokens -= job.prompt_tokens + index + 1
                self._free(job)
            else:
                tokens.append(_new_token(EngineToken, (job.id, index, at, False)))
                self._short.append(job)
        view.decode_kv_tokens += len(decodes)
        self.decode_tokens += len(decodes)
        self.output_tokens += len(decodes)
        if finished:
            view.decodes = [job for job in view.decodes if job.blocks]
        for job, chunk in plan.chunks:
            self.prefill_tokens += chunk
            job.context += chunk
            if job.context == job.prompt_tokens + job.produced:
                self._first_token(job, at, tokens)

    def _first_token(self, job: Job, at: float, tokens: list[EngineToken]) -> None:
        """A prefill is complete: its last chunk yields a token (not the first one after a preemption)."""
        view = self._view
        view.prefills.remove(job)
        index = job.produced
        job.produced = index + 1
        self.output_tokens += 1
        finished = job.produced == job.output_tokens
        tokens.append(EngineToken(job.id, index, at, finished))
        if finished:
            self._free(job)
            return
        view.decodes.append(job)
        view.decode_kv_tokens += job.tokens
        room = job.blocks * view.block_tokens - job.context
        job.until = min(room, job.output_tokens - job.produced)
        if not room:
            self._short.append(job)

    def _extend(self) -> None:
        """One more block for each decode whose last one is full, the longest admitted first; the planner's victims
        pay."""
        view = self._view
        short, self._short = self._short, []
        if len(short) > view.blocks_free:
            short.sort(key=_ADMITTED)
        for job in short:
            while job.admitted >= 0 and not view.blocks_free:
                self._preempt(self.planner.victim(view))
                view.admitting = False
            if job.admitted >= 0:
                job.blocks += 1
                view.blocks_free -= 1
                job.until = min(view.block_tokens, job.output_tokens - job.produced)

    def _preempt(self, job: Job) -> None:
        """Takes a running job's KV; it waits again and will prefill its prompt and its output so far."""
        view = self._view
        self.preemptions += 1
        view.blocks_free += job.blocks
        self._unrun(job)
        job.blocks = 0
        job.context = 0
        job.admitted = -1
        self._wait(job)

    def _drop_aborted(self) -> None:
        aborting, self._aborting = self._aborting, []
        for job in aborting:
            self._unrun(job)
            self._free(job)
        plan = self._plan
        self._plan = Plan(
            [chunk for chunk in plan.chunks if not chunk[0].aborted], [job for job in plan.decodes if not job.aborted]
        )

    def _unrun(self, job: Job) -> None:
        """Takes a job out of the running; its blocks are the caller's to free."""
        view = self._view
        if job in view.prefills:
            view.prefills.remove(job)
        else:
            # A new list: the plan of the running iteration may be the old one.
            view.decodes = [other for other in view.decodes if other is not job]
            view.decode_kv_tokens -= job.tokens

    def _free(self, job: Job) -> None:
        self._view.blocks_free += job.blocks
        job.blocks = 0
        del self._jobs[job.id]

    def _admit(self, job: Job) -> None:
        self._unwait(job)
        job.admitted = self._admissions
        self._admissions += 1
        self._view.prefills.append(job)

    def _wait(self, job: Job) -> None:
        job.order = self.planner.order(job)
        insort(self._view.waiting, job, key=_ORDER)

    def _unwait(self, job: Job) -> None:
        waiting = self._view.waiting
        place = bisect_left(waiting, job.order, key=_ORDER)
        assert waiting[place] is job, "a planner's order must be unique"
        del waiting[place]

    def check(self) -> None:
        """Raises AssertionError unless all invariants hold. For tests: it looks at every job."""
        view = self._view
        running = [*view.decodes, *view.prefills]
        assert 0 <= view.blocks_free <= self._blocks_max, "KV blocks out of range"
        assert sum(job.blocks for job in running) == self._blocks_max - view.blocks_free, "KV blocks leaked"
        assert all(job.blocks == 0 and job.admitted < 0 for job in view.waiting), "a waiting job holds KV"
        assert len(running) + len(view.waiting) == len(self._jobs), "a job is lost or counted twice"
        assert len({job.id for job in (*running, *view.waiting)}) == len(self._jobs), "a job is in two places"
        assert len(running) <= self.config.seqs_max, "too many running"
        assert view.decode_kv_tokens == sum(job.tokens for job in view.decodes), "KV of the decodes is miscounted"
        assert all(0 <= job.produced < job.output_tokens for job in self._jobs.values()), "a finished job is kept"
        assert all(job.prefill_tokens > 0 for job in view.prefills), "a complete prefill is kept"
        for job in view.decodes:
            assert job.blocks * view.block_tokens >= job.tokens - 1, "a decode has fewer blocks than tokens"
        orders = [job.order for job in view.waiting]
        assert orders == sorted(orders), "the waiting are unsorted"
        batch = len(self._plan.decodes) + sum(tokens for _, tokens in self._plan.chunks)
        assert batch <= self.config.batch_tokens, "a plan over the token budget"
        assert (self._ends == inf) == (not self._jobs), "idle with work, or busy without"
        if not self._jobs:
            assert view.blocks_free == self._blocks_max, "KV left behind by the finished"
