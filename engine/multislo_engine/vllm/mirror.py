"""A vLLM engine as the planners see it. `Mirror` is told who comes, who is admitted, preempted or gone, reads the counters of the running
before each iteration, and turns a plan into what vLLM's scheduler can be told. No clock, and nothing of vLLM's is imported."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any, Protocol

import numpy as np

from multislo_engine.planners.planner import Planner
from multislo_engine.planners.view import Decodes, EngineView, Job, Plan

_ORDER = attrgetter("order")
_COMPUTED = attrgetter("num_computed_tokens")
SKIPS_MAX = 32
"""A prompt under way is passed over in so many iterations in a row at most: in overload somebody else always has the earlier deadline."""


class Request(Protocol):
    """What is read of one of vLLM's requests, and the one field that is written."""

    request_id: str
    num_prompt_tokens: int
    num_computed_tokens: int
    num_output_placeholders: int
    is_prefill_chunk: bool
    spec_token_ids: list[int]
    next_decode_eligible_step: int

    @property
    def num_output_tokens(self) -> int: ...


@dataclass(slots=True)
class Orders:
    """A plan in vLLM's terms."""

    running: list[Any]
    """All that run, in the order in which vLLM is to go through them."""
    skipped: list[Any]
    """Of them, those that get nothing in this iteration."""
    first: list[Any]
    """Of the waiting, those to be admitted, in this order."""
    tokens: int
    """Budget of the iteration."""
    chunk_tokens: int
    """No chunk may be larger; 0: no limit."""
    prompts: list[Any]
    """Who gets a chunk."""
    decodes: int
    left_out: int
    """Decodes that get nothing."""
    kv_tokens: int
    """Of the decodes that take part."""


class Mirror:
    """Of one engine. `cap_least`: smaller caps on chunks cannot be given (they would cut drafts); 0: none can."""

    def __init__(self, batch_tokens: int, seqs_max: int, block_tokens: int, planner: Planner, cap_least: int) -> None:
        self.view = EngineView(batch_tokens, seqs_max, block_tokens, 0, Decodes(block_tokens))
        self.jobs: dict[str, Job] = {}
        """Of every request that is not over."""
        self._requests: dict[int, Any] = {}
        self._decoding: list[Any] = []
        """The requests of `view.decodes`, by slot."""
        self._planner = planner
        self._cap_least = cap_least
        self._skips: dict[int, int] = {}
        self._sequence = 0

    @property
    def running(self) -> int:
        return len(self._decoding) + len(self.view.prefills)

    # -- what is told --------------------------------------------------------------------------------------------------

    def come(self, request: Request, arrived_s: float, slo: tuple[float, float, float]) -> None:
        """A request waits from now on; `slo`: its TTFT, TPOT and second TTFT."""
        ttft_s, tpot_s, second_s = slo
        job = Job(
            id=self._next(),
            prompt_tokens=request.num_prompt_tokens,
            output_tokens=1 << 40,
            priority=0,
            arrived_s=arrived_s,
            sequence=self._sequence,
            ttft_due_s=arrived_s + ttft_s,
            tpot_s=tpot_s,
            second_due_s=arrived_s + second_s,
            produced=request.num_output_tokens,
        )
        self.jobs[request.request_id] = job
        self._requests[job.id] = request
        self._wait(job)

    def admitted(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            job = self.jobs.get(request_id)
            if job is not None and job.admitted < 0:
                self._unplace(job)
                job.admitted = self._next()
                self.view.prefills.append(job)

    def preempted(self, request: Request) -> None:
        """Its KV is lost, and it waits again."""
        job = self.jobs.get(request.request_id)
        if job is not None:
            self._unplace(job)
            job.produced = request.num_output_tokens
            job.context = 0
            self._wait(job)

    def gone(self, request_id: str) -> None:
        job = self.jobs.pop(request_id, None)
        if job is not None:
            self._unplace(job)
            del self._requests[job.id]

    # -- what is asked, once an iteration ------------------------------------------------------------------------------

    def read(self, blocks_free: int) -> EngineView:
        """The view, up to date. O(running), at a few ns each for the decodes."""
        view = self.view
        view.blocks_free = blocks_free
        for job in tuple(view.prefills):
            request = self._requests[job.id]
            job.context = request.num_computed_tokens
            job.blocks = view.blocks(job.context)
            job.produced = request.num_output_tokens + request.num_output_placeholders
            if not request.is_prefill_chunk:
                view.prefills.remove(job)
                self._skips.pop(job.id, None)
                view.decodes.add(job)
                self._decoding.append(request)
        tokens = np.array(list(map(_COMPUTED, self._decoding)), np.int64)
        tokens += 1  # the newest token's KV is made by the iteration to come
        view.decodes.count(tokens)
        view.decode_kv_tokens = int(tokens.sum())
        return view

    def orders(self, plan: Plan, running: list[Any], speculating: bool) -> Orders:
        """A plan for vLLM, which goes through the running, then the waiting, and gives each what it lacks while the budget lasts."""
        view = self.view
        chunks, cap = self._expressible(plan.chunks)
        taking, skipped, left_out = running, [], 0
        if plan.decodes is not None or view.prefills:
            places = self._places(plan, chunks)
            taking, prompts = [], []
            for request in running:
                place = places.get(request.request_id, 0)
                if not place:
                    taking.append(request)
                elif place < 0:
                    skipped.append(request)
                else:
                    prompts.append((place, request))
            prompts.sort(key=itemgetter(0))
            taking += [request for _, request in prompts]
            left_out = 0 if plan.decodes is None else len(view.decodes) - len(plan.decodes)
        decodes = len(self._decoding) - left_out
        tokens = decodes + sum([tokens for _, tokens in chunks])
        if speculating:
            tokens += sum([len(request.spec_token_ids) for request in taking])
        return Orders(
            running=[*taking, *skipped],
            skipped=skipped,
            first=[self._requests[job.id] for job, _ in chunks if job.admitted < 0],
            tokens=max(1, min(tokens, view.batch_tokens)),
            chunk_tokens=cap,
            prompts=[self._requests[job.id] for job, _ in chunks],
            decodes=decodes,
            left_out=left_out,
            kv_tokens=view.decode_kv_tokens if plan.decodes is None else view.decodes.kv_tokens(plan.decodes),
        )

    def _places(self, plan: Plan, chunks: list[tuple[Job, int]]) -> dict[str, int]:
        """Where the running go by id: decodes (0, not in it) before prompts in the plan's order; below 0: nothing for them."""
        places = {self._requests[job.id].request_id: -1 for job in self.view.prefills}
        for place, (job, _) in enumerate(chunks):
            places[self._requests[job.id].request_id] = place + 1
        if plan.decodes is not None:
            taking = set(plan.decodes.tolist())
            for slot, request in enumerate(self._decoding):
                if slot not in taking:
                    places[request.request_id] = -1
        return places

    def _expressible(self, chunks: list[tuple[Job, int]]) -> tuple[list[tuple[Job, int]], int]:
        """The chunks that vLLM can be told, and a cap on all of them (0: none). The budget cuts only the last chunk that vLLM comes to. If
        the plan cuts another one, all are capped to its size, or, where that would cut others, it waits for the next iteration."""
        for job in self.view.prefills:
            if all(job is not other for other, _ in chunks):
                self._skips[job.id] = self._skips.get(job.id, 0) + 1
        forgotten = [job for job in self.view.prefills if self._skips.get(job.id, 0) > SKIPS_MAX]
        if forgotten:
            total = sum([tokens for _, tokens in chunks]) or 1
            self._skips[forgotten[0].id] = 0
            return [(forgotten[0], min(total, forgotten[0].prefill_tokens))], 0
        turn = [pair for pair in chunks if pair[0].admitted >= 0] + [pair for pair in chunks if pair[0].admitted < 0]
        caps = {tokens for job, tokens in turn if tokens < job.prefill_tokens}
        for cap in (0, *sorted(caps)):
            if (not cap or 0 < self._cap_least <= cap) and _given(turn, cap) == [tokens for _, tokens in turn]:
                for job, _ in turn:
                    self._skips.pop(job.id, None)
                return chunks, cap
        kept = [pair for pair in chunks if pair[1] >= pair[0].prefill_tokens or pair[0].admitted < 0]
        for job, _ in turn:
            if job.admitted >= 0 and all(job is not other for other, _ in kept):
                self._skips[job.id] = self._skips.get(job.id, 0) + 1
        return kept or chunks, 0

    # -- where jobs are ------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _wait(self, job: Job) -> None:
        job.admitted = -1
        job.order = self._planner.order(job)
        insort(self.view.waiting, job, key=_ORDER)

    def _unplace(self, job: Job) -> None:
        """Takes it out of the waiting, the prefills or the decodes."""
        view = self.view
        self._skips.pop(job.id, None)
        if job.slot >= 0:
            slot = job.slot
            view.decodes.remove(job)
            last = self._decoding.pop()
            if slot < len(self._decoding):
                self._decoding[slot] = last
        elif job.admitted >= 0:
            view.prefills.remove(job)
        else:
            del view.waiting[bisect_left(view.waiting, job.order, key=_ORDER)]


def _given(turn: list[tuple[Job, int]], cap: int) -> list[int]:
    """What vLLM gives each of these, one after the other, of the budget of all of them."""
    left = sum([tokens for _, tokens in turn])
    given = []
    for job, _ in turn:
        tokens = min(job.prefill_tokens, left, cap or left)
        given.append(tokens)
        left -= tokens
    return given
