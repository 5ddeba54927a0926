"""vLLM's own scheduler (v1), as far as time and memory are concerned: an engine that does not know SLOs.

A static token budget. The running come first, in order of admission, so decodes are never held back and a prefill
under way is continued before another begins; the rest of the budget admits waiting jobs, in order of arrival or by `priority`. A
prompt is admitted only if all of it fits in the free KV blocks beside what the prefills under way will take
(`scheduler_reserve_full_isl`, vLLM's default), and no job is skipped: the first that does not fit ends the admission.
"""

from itertools import islice

import numpy as np

from multislo_engine.planners.chunks import WAITING_CONSIDERED, admissible
from multislo_engine.planners.view import EngineView, Job, Plan, Slots, last_admitted


class Fcfs:
    """`--scheduling-policy fcfs`."""

    name = "fcfs"

    def order(self, job: Job) -> tuple[float, ...]:
        # A preempted job arrived before everybody who waits, so its number puts it back at the head, where vLLM puts
        # it.
        return (job.sequence,)

    def plan(self, now: float, view: EngineView) -> Plan:
        return stock_plan(view)

    def victim(self, view: EngineView) -> Job:
        return last_admitted(view)


class Priority:
    """`--scheduling-policy priority`: the waiting by (priority, arrival), lower first; the running as in `Fcfs`."""

    name = "priority"

    def order(self, job: Job) -> tuple[float, ...]:
        return (job.priority, job.arrived_s, job.sequence)

    def plan(self, now: float, view: EngineView) -> Plan:
        return stock_plan(view)

    def victim(self, view: EngineView) -> Job:
        return max([*view.decodes.jobs, *view.prefills], key=self.order)


class Edf:
    """A static budget as in Sarathi, with prefills by deadline: one under way may be overtaken. vLLM has no such policy."""

    name = "edf"

    def order(self, job: Job) -> tuple[float, ...]:
        return (job.due_s, job.sequence)

    def plan(self, now: float, view: EngineView) -> Plan:
        budget = view.batch_tokens - len(view.decodes.jobs)
        if budget <= 0:
            return stock_plan(view)
        chunks: list[tuple[Job, int]] = []
        queue = [*view.prefills, *admissible(view, islice(view.waiting, WAITING_CONSIDERED))]
        for job in sorted(queue, key=self.order):
            tokens = min(job.prefill_tokens, budget)
            chunks.append((job, tokens))
            budget -= tokens
            if not budget:
                break
        return Plan(chunks)

    def victim(self, view: EngineView) -> Job:
        return last_admitted(view)


def stock_plan(view: EngineView) -> Plan:
    """One iteration of the stock scheduler. O(1) beyond the chunks."""
    count = len(view.decodes.jobs)
    budget = view.batch_tokens - count
    if budget <= 0:
        return Plan([], None if budget == 0 else _first_admitted(view))
    chunks: list[tuple[Job, int]] = []
    for job in view.prefills:
        tokens = min(job.prefill_tokens, budget)
        chunks.append((job, tokens))
        budget -= tokens
        if not budget:
            return Plan(chunks)
    if not view.waiting or not view.admitting:
        return Plan(chunks)
    seats = view.seqs_max - count - len(view.prefills)
    free = view.blocks_free - view.blocks_promised()
    for job in view.waiting:
        free -= view.blocks(job.tokens)
        if seats <= 0 or budget <= 0 or free < 0:
            break
        tokens = min(job.prefill_tokens, budget)
        chunks.append((job, tokens))
        budget -= tokens
        seats -= 1
    return Plan(chunks)


def _first_admitted(view: EngineView) -> Slots:
    """More decodes than the budget: the longest admitted."""
    jobs = sorted(view.decodes.jobs, key=lambda job: job.admitted)[: view.batch_tokens]
    return np.array(sorted(job.slot for job in jobs), np.int64)
