"""The engine model: what happens inside one inference engine and when. Pure; the simulator advances it from a heap,
the emulator from its event loop.

It imitates vLLM's v1 engine: iterations, each planned by a planner when the one before has ended; chunked prefill,
the last chunk of which yields the first token; KV cache in blocks; preemption by recomputation when there is no
block left. An iteration takes the latency model's time for its batch, times `jitter()`. A planner that believes otherwise is corrected
by measured iterations.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from math import inf
from operator import attrgetter

from multislo_engine.planners.calibration import Calibration, batch_s
from multislo_engine.planners.planner import Believing, Planner
from multislo_engine.planners.view import Decodes, EngineView, Job, Plan, SharedBlocks
from multislo_engine.terms import EngineConfig, EngineEnd, EngineRequest, EngineToken, Iteration
from multislo_perf.latency import LatencyModel

_ORDER = attrgetter("order")
_ADMITTED = attrgetter("admitted")
_NEAR_S = 1e-9
"""A token so little after its deadline is in time: what rounding makes of a sum."""


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
        self._calibration: Calibration | None = None
        if isinstance(planner, Believing) and (jitter is not None or planner.latency != latency):
            # Where the belief is the truth there is nothing to learn, and asking would cost a long run some per cent.
            self._calibration = Calibration(planner)
        self.iterations = 0
        self.preemptions = 0
        self.prefill_tokens = 0
        """Prompt tokens computed so far, recomputation included."""
        self.decode_tokens = 0
        self.output_tokens = 0
        self._latency = latency
        self._jitter = jitter
        self._blocks_max = config.kv_tokens_max // config.block_tokens
        self._view = EngineView(
            config.batch_tokens, config.seqs_max, config.block_tokens, self._blocks_max, Decodes(config.block_tokens)
        )
        self._jobs: dict[int, Job] = {}
        self._plan = Plan([])
        self._ends = inf
        self._took_s = 0.0
        self._predicted_s = 0.0  # the running iteration by the planner's belief
        self._due_least = inf  # no decode's next token is due before
        self._apart: list[int] = []  # ids of those past their prefill that wait: preempted, or come with their KV
        self._aborting: list[Job] = []
        self._sequence = 0
        self._admissions = 0

    @property
    def running(self) -> int:
        return len(self._view.decodes) + len(self._view.prefills)

    @property
    def waiting(self) -> int:
        return sum([1 + len(job.forks) for job in self._view.waiting])

    @property
    def kv_tokens(self) -> int:
        """Tokens that the blocks in use could hold."""
        return (self._blocks_max - self._view.blocks_free) * self.config.block_tokens

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether a request of this size can ever be served: alone, it must fit in the KV cache."""
        return self._view.blocks(prompt_tokens + output_tokens) <= self._blocks_max

    def late(self, now: float) -> list[int]:
        """Ids of the requests here that have missed a deadline by now, by the deadlines that they came with."""
        decodes = self._view.decodes
        late = [job.id for job in decodes.late(now)]
        late += [job.id for job in (*self._view.waiting, *self._view.prefills) if job.late or job.due_s < now]
        return late

    def submit(self, now: float, request: EngineRequest) -> bool:
        """Takes a request in; an idle engine starts its iteration at once. False: the queue is full, or it can never
        fit."""
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise ValueError(f"request {request.id}: prompt_tokens and output_tokens must be at least 1")
        if request.id in self._jobs:
            raise ValueError(f"request {request.id}: there is one of this id already")
        limit = self.config.queue_max
        if limit is not None and self.waiting + len(request.forks) >= limit:
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
            second_due_s=request.second_due_s,
            # The last prompt token is always computed: it yields the first output token.
            context=max(0, min(request.cached_tokens, request.prompt_tokens - 1)),
            prefilled=request.prefilled,
            forks=request.forks,
        )
        if job.prefilled:
            job.context = job.prompt_tokens - 1
            self._apart.append(job.id)
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
            self._free(job)
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

    def end_iteration(self) -> Iteration:
        """What the running iteration yields, at `next_at()`, and the next one begun: `advance` without an object a token."""
        iteration = self._complete(self._ends, None)
        self._start(iteration.at)
        return iteration

    def _start(self, now: float) -> None:
        """Plans the next iteration and sets when it ends, or goes idle."""
        view = self._view
        if not view.decodes.jobs and not view.prefills and not view.waiting:
            self._ends = inf
            self._plan = Plan([])
            return
        view.admitting = True
        if self._apart:
            self._let_in()
        if view.decodes.jobs:
            self._extend()
        plan, grown = self._fitting_plan(now)
        for (job, _), blocks in zip(plan.chunks, grown, strict=True):
            if job.admitted < 0:
                self._admit(job)
            job.blocks += blocks
            view.blocks_free -= blocks
        self._plan = plan
        self._took_s = batch_s(self._latency, view, plan) * (1.0 if self._jitter is None else self._jitter())
        self._ends = now + self._took_s
        if self._calibration is not None:
            self._predicted_s = self._calibration.predicted_s(view, plan)

    def _fitting_plan(self, now: float) -> tuple[Plan, list[int]]:
        """A plan whose chunks get their blocks, and those blocks; running jobs are preempted until there is one."""
        view = self._view
        while True:
            plan = self.planner.plan(now, view)
            if not plan.chunks:
                if (plan.decodes is not None and not len(plan.decodes)) or not view.decodes.jobs:
                    raise RuntimeError(f"the planner {self.planner.name!r} left an engine with work idle")
                return plan, []
            grown = [max(0, view.blocks(job.context + tokens) - job.blocks) for job, tokens in plan.chunks]
            if sum(grown) <= view.blocks_free:
                return plan, grown
            if not view.decodes.jobs and not view.prefills:
                raise RuntimeError(f"the planner {self.planner.name!r} admitted more than the KV cache holds")
            self._preempt(self.planner.victim(view))
            view.admitting = False

    def _complete(self, at: float, tokens: list[EngineToken] | None) -> Iteration:
        """Ends the running iteration: its tokens (each in `tokens`, where somebody wants them), its finished, its aborted."""
        self.iterations += 1
        if self._calibration is not None:
            self.planner = self._calibration.observe(self._took_s, self._predicted_s)
        plan = self._plan
        count = len(self._view.decodes.jobs) if plan.decodes is None else len(plan.decodes)
        made = Iteration(at, count)
        if count:
            self._complete_decodes(plan, made, tokens)
        elif self._view.decodes.jobs:
            made.left_out = [job.id for job in self._view.decodes.jobs]
        if self._apart and count:
            made.left_out.extend(self._apart)
        if self._aborting:
            self._drop_aborted()
        self.decode_tokens += made.decoded
        self.output_tokens += made.decoded
        for job, chunk in plan.chunks:
            if job.aborted:
                continue
            self.prefill_tokens += chunk
            job.context += chunk
            if job.context == job.prompt_tokens + job.produced:
                self._first_token(job, at, made)
        if tokens is not None:
            tokens.extend(made.prefilled)
        return made

    def _complete_decodes(self, plan: Plan, made: Iteration, tokens: list[EngineToken] | None) -> None:
        view = self._view
        decodes = view.decodes
        slots = plan.decodes
        if slots is not None and len(slots) < len(decodes.jobs):
            taking = set(slots.tolist())
            made.left_out = [job.id for slot, job in enumerate(decodes.jobs) if slot not in taking]
        at = made.at - _NEAR_S
        if at > self._due_least:
            self._due_least = decodes.count_late(slots, at)
        ended = decodes.step(slots)
        view.decode_kv_tokens += made.decoded
        for job in self._aborting:
            if job.slot >= 0 and job.id not in made.left_out:
                made.decoded -= 1
        if tokens is not None:
            jobs = decodes.jobs if slots is None else [decodes.jobs[slot] for slot in slots.tolist()]
            for job in jobs:
                if not job.aborted:
                    index = decodes.tokens_of(job) - job.prompt_tokens - 1
                    tokens.append(EngineToken(job.id, index, made.at, index + 1 == job.output_tokens))
        for job in ended:
            if not job.aborted:
                view.decode_kv_tokens -= job.prompt_tokens + job.output_tokens
                decodes.remove(job)
                made.ended.append(EngineEnd(job.id, job.produced, job.late))
                self._free(job)

    def _first_token(self, job: Job, at: float, made: Iteration) -> None:
        """A prefill is complete: its last chunk yields a token (not the first one after a preemption)."""
        view = self._view
        view.prefills.remove(job)
        due_s = job.due_s
        if at - _NEAR_S > due_s:
            job.late += 1
        index = job.produced
        job.produced = index + 1
        self.output_tokens += 1
        if job.id in self._apart:
            self._apart.remove(job.id)
        finished = job.produced == job.output_tokens
        made.prefilled.append(EngineToken(job.id, index, at, finished))
        if job.forks:
            self._fork(job, at, made)
        if finished:
            made.ended.append(EngineEnd(job.id, job.produced, job.late))
            self._free(job)
            return
        self._decode(job)

    def _fork(self, job: Job, at: float, made: Iteration) -> None:
        """The other sequences of its prompt have their first token in the same iteration. They share the blocks that the prompt fills; one
        that finds no block or no seat for the rest waits, as if it had been preempted."""
        view = self._view
        whole = view.blocks(job.prompt_tokens)
        shared = SharedBlocks(job.prompt_tokens // self.config.block_tokens, 1)
        for id, output_tokens in job.forks:
            fork = Job(
                id=id,
                prompt_tokens=job.prompt_tokens,
                output_tokens=output_tokens,
                priority=job.priority,
                arrived_s=job.arrived_s,
                sequence=self._sequence,
                ttft_due_s=job.ttft_due_s,
                tpot_s=job.tpot_s,
                second_due_s=job.second_due_s,
                context=job.context,
                produced=job.produced,
                late=job.late,
            )
            self._sequence += 1
            self._jobs[id] = fork
            self.output_tokens += 1
            finished = fork.produced == fork.output_tokens
            made.prefilled.append(EngineToken(id, fork.produced - 1, at, finished))
            if finished:
                made.ended.append(EngineEnd(id, fork.produced, fork.late))
                del self._jobs[id]
            elif view.blocks_free < whole - shared.blocks or self.running + 1 >= self.config.seqs_max:
                fork.context = 0
                self._apart.append(id)
                self._wait(fork)
            else:
                fork.shared = job.shared = shared
                shared.jobs += 1
                fork.blocks = whole
                view.blocks_free -= whole - shared.blocks
                fork.admitted = self._admissions
                self._admissions += 1
                self._decode(fork)
        job.forks = ()

    def _decode(self, job: Job) -> None:
        view = self._view
        view.decodes.add(job)
        view.decode_kv_tokens += job.tokens
        self._due_least = min(self._due_least, job.due_s)

    def _let_in(self) -> None:
        """Who waits with his prompt's KV decodes from this iteration on, where there are blocks and seats; he passes nobody who waits to
        prefill."""
        view = self._view
        free = view.blocks_free - view.blocks_promised()
        while view.waiting and self.running < self.config.seqs_max:
            job = view.waiting[0]
            free -= view.blocks(job.tokens)
            if not job.prefilled or not job.context or free < 0:
                break
            self._admit(job)
            view.prefills.remove(job)
            job.blocks = view.blocks(job.context)
            view.blocks_free -= job.blocks
            self._apart.remove(job.id)
            self._decode(job)

    def _extend(self) -> None:
        """One more block for each decode whose last one is full, the longest admitted first; the planner's victims
        pay."""
        view = self._view
        decodes = view.decodes
        full = decodes.full()
        if not len(full):
            return
        if len(full) <= view.blocks_free:
            view.blocks_free -= len(full)
            decodes.give_blocks(full)
            return
        short = sorted((decodes.jobs[slot] for slot in full.tolist()), key=_ADMITTED)
        for job in short:
            while job.admitted >= 0 and not view.blocks_free:
                self._preempt(self.planner.victim(view))
                view.admitting = False
            if job.admitted >= 0:
                decodes.give_block(job)
                view.blocks_free -= 1

    def _preempt(self, job: Job) -> None:
        """Takes a running job's KV; it waits again and will prefill its prompt and its output so far."""
        self.preemptions += 1
        self._unrun(job)
        self._give_back(job)
        job.context = 0
        job.admitted = -1
        if (job.produced or job.prefilled) and job.id not in self._apart:
            self._apart.append(job.id)
        self._wait(job)

    def _drop_aborted(self) -> None:
        aborting, self._aborting = self._aborting, []
        for job in aborting:
            self._unrun(job)
            self._free(job)

    def _unrun(self, job: Job) -> None:
        """Takes a job out of the running; its blocks are the caller's to free."""
        view = self._view
        if job.slot < 0:
            view.prefills.remove(job)
        else:
            view.decodes.remove(job)
            view.decode_kv_tokens -= job.tokens

    def _give_back(self, job: Job) -> None:
        """Its blocks, but for those that others hold as well."""
        shared = job.shared
        if shared is not None:
            shared.jobs -= 1
            if shared.jobs:
                job.blocks -= shared.blocks
            job.shared = None
        self._view.blocks_free += job.blocks
        job.blocks = 0

    def _free(self, job: Job) -> None:
        self._give_back(job)
        if job.id in self._apart:
            self._apart.remove(job.id)
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
        decodes = view.decodes
        running = [*decodes, *view.prefills]
        held_twice = {
            id(job.shared): (job.shared.jobs - 1) * job.shared.blocks for job in running if job.shared is not None
        }
        blocks = sum(decodes.blocks_of(job) for job in decodes) + sum(job.blocks for job in view.prefills)
        assert 0 <= view.blocks_free <= self._blocks_max, "KV blocks out of range"
        blocks -= sum(held_twice.values())
        assert blocks == self._blocks_max - view.blocks_free, "KV blocks leaked"
        assert all(job.blocks == 0 and job.admitted < 0 for job in view.waiting), "a waiting job holds KV"
        assert len(running) + len(view.waiting) == len(self._jobs), "a job is lost or counted twice"
        assert len({job.id for job in (*running, *view.waiting)}) == len(self._jobs), "a job is in two places"
        assert len(running) <= self.config.seqs_max, "too many running"
        assert view.decode_kv_tokens == decodes.kv_tokens(None), "KV of the decodes is miscounted"
        assert all(0 <= job.produced < job.output_tokens for job in self._jobs.values()), "a finished job is kept"
        assert all(job.prefill_tokens > 0 for job in view.prefills), "a complete prefill is kept"
        apart = [job.id for job in (*view.waiting, *view.prefills) if job.produced or job.prefilled]
        assert sorted(self._apart) == sorted(apart), "a preempted job is forgotten"
        for slot, job in enumerate(decodes):
            assert job.slot == slot, "a decode is not in its slot"
            assert decodes.tokens_of(job) - job.prompt_tokens < job.output_tokens, "a finished decode is kept"
            assert decodes.blocks_of(job) * view.block_tokens >= decodes.tokens_of(job) - 1, "a decode lacks blocks"
            assert float(decodes.due_s[slot]) >= self._due_least - _NEAR_S, "a deadline is overlooked"
        orders = [job.order for job in view.waiting]
        assert orders == sorted(orders), "the waiting are unsorted"
        planned = self._plan.decodes
        batch = (len(decodes) if planned is None else len(planned)) + sum(tokens for _, tokens in self._plan.chunks)
        assert batch <= self.config.batch_tokens, "a plan over the token budget"
        assert (self._ends == inf) == (not self._jobs), "idle with work, or busy without"
        if not self._jobs:
            assert view.blocks_free == self._blocks_max, "KV left behind by the finished"
