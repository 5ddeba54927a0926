"""Planners of published systems, rebuilt from their papers as rivals to compare with: PolyServe's dynamic chunk and QoServe's hybrid
priority with relegation. Docstrings say what was chosen where a paper is silent. Their latency model is corrected by measured
iterations, as ours is, although their papers do not say so."""

from dataclasses import dataclass, replace
from heapq import nsmallest
from itertools import islice
from math import inf

from multislo_engine.planners.chunks import WAITING_CONSIDERED, admissible, cut
from multislo_engine.planners.planner import Planner
from multislo_engine.planners.stock import stock_plan
from multislo_engine.planners.view import EngineView, Job, Plan, last_admitted
from multislo_perf.latency import LatencyModel

SORTED_MAX = 128
"""Of the waiting, by deadline, so many are ranked by their priority: in overload the queue is long, and the rest are lost."""


@dataclass(frozen=True, slots=True)
class DynamicChunk:
    """PolyServe (arXiv 2507.17769, dynamic chunking): the chunk is the largest whose iteration keeps the tightest TPOT of those that
    decode here. It spends no slack. Prefills are in order of arrival, or of deadlines. Chosen: a cap if there are no decodes."""

    latency: LatencyModel
    by_deadline: bool = False
    chunk_tokens_max: int = 2048

    @property
    def name(self) -> str:
        return "dynamic-chunk"

    def order(self, job: Job) -> tuple[float, ...]:
        return (job.due_s, job.sequence) if self.by_deadline else (job.sequence,)

    def victim(self, view: EngineView) -> Job:
        return last_admitted(view)

    def calibrated(self, factor: float, error: float) -> Planner:
        return replace(self, latency=self.latency.slower(factor))

    def plan(self, now: float, view: EngineView) -> Plan:
        count = len(view.decodes.jobs)
        room = min(self.chunk_tokens_max, view.batch_tokens - count)
        if room <= 0:
            return stock_plan(view)
        queue = [*view.prefills, *admissible(view, islice(view.waiting, WAITING_CONSIDERED))]
        if not queue:
            return Plan([])
        if self.by_deadline:
            queue.sort(key=self.order)
        budget_s = float(view.decodes.tpot_s.min()) if count else inf
        return Plan(cut(self.latency, view, queue, budget_s, room))


@dataclass(frozen=True, slots=True)
class QoServe:
    """QoServe (ASPLOS'26; Niyama, arXiv 2503.22562): the chunk is the largest within the least slack of the decodes; prefills by
    deadline plus `alpha` seconds for each token still to prefill (between earliest deadline and shortest job, more with load);
    requests that can no longer be in time are relegated after all others. Prefills preempt each other, decodes never. Chosen: alpha
    rises from its least to its most as the prefill work here goes from nothing to `busy_s`; a decode that is already late limits no
    chunk."""

    latency: LatencyModel
    slack_fraction: float = 1.0
    alpha_least_s: float = 0.0
    alpha_most_s: float = 0.0001
    busy_s: float = 1.0
    chunk_tokens_max: int = 2500

    @property
    def name(self) -> str:
        return "qoserve"

    def order(self, job: Job) -> tuple[float, ...]:
        return (job.due_s, job.sequence)

    def victim(self, view: EngineView) -> Job:
        return last_admitted(view)

    def calibrated(self, factor: float, error: float) -> Planner:
        return replace(self, latency=self.latency.slower(factor))

    def plan(self, now: float, view: EngineView) -> Plan:
        count = len(view.decodes.jobs)
        room = min(self.chunk_tokens_max, view.batch_tokens - count)
        if room <= 0:
            return stock_plan(view)
        queue = self._queue(now, view)
        if not queue:
            return Plan([])
        budget_s = inf
        if count:
            slacks = view.decodes.due_s - now
            alive = slacks[slacks >= self.latency.tokens_s(1)]
            budget_s = self.slack_fraction * float(alive.min()) if len(alive) else inf
        return Plan(cut(self.latency, view, queue, budget_s, room))

    def _queue(self, now: float, view: EngineView) -> list[Job]:
        law = self.latency
        jobs = [*view.prefills, *view.waiting]
        if not jobs:
            return []
        work_s = sum(job.prefill_tokens for job in jobs) * law.gemm_per_token_s
        busy = min(1.0, work_s / self.busy_s)
        alpha_s = self.alpha_least_s + busy * (self.alpha_most_s - self.alpha_least_s)

        def key(job: Job) -> tuple[bool, float, int]:
            tokens = job.prefill_tokens
            lost = job.due_s - now < law.tokens_s(tokens) + law.attention_s(tokens, job.context)
            return (lost, job.due_s + alpha_s * tokens, job.sequence)

        waiting = nsmallest(WAITING_CONSIDERED, islice(view.waiting, SORTED_MAX), key=key)
        return sorted([*view.prefills, *admissible(view, waiting)], key=key)
