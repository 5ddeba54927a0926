"""A planner that uses slack: it knows when each request's next token is due and forms every iteration by that.

Six rules:
- prefills in order of their deadline, one under way may be overtaken;
- the chunk is as large as the latency model allows an iteration that takes at most a fraction of the least slack of its decodes;
- where the fixed cost of iterations is what would make the first prefill late, its chunks may be larger than the cap;
- while a prefill is pressed, decodes with plenty of slack are left out, so that the iteration is the prefill's;
- while none is, every decode takes part: tokens made early are slack saved for later;
- prefills that are late whatever happens go behind the others, with a few tokens an iteration so that they end some day.

The slack-bounded batch is that of SLOs-Serve (arXiv 2504.08784, section 4) with the slack of running decodes in the place of the
tightest TPOT.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from math import inf
from operator import attrgetter, itemgetter

import numpy as np
from numpy.typing import NDArray

from multislo_engine.planners.planner import Planner
from multislo_engine.planners.view import TTFT_DEFAULT_S, EngineView, Job, Plan, Slots, last_admitted
from multislo_perf.latency import LatencyModel

_DUE = attrgetter("due_s")
ERRORS = 6.0
"""An iteration may exceed its prediction by this many mean errors and still be within the slack. A request has hundreds of tokens, and
a single late one makes it miss. (Iterations that vary by 20 %, Azure's lengths: 0 attains .65, 3 .84, 6 .97, 8 .98, 10 .87, since
shorter iterations are more fixed cost.)"""

SLACK_MOST = 0.85
"""Of `SloAware.slack_fraction`, which a noisy engine lowers."""


@dataclass(frozen=True, slots=True)
class SloAware:
    """`latency` is the planner's own belief; `calibrated` corrects it where the engine turns out to be slower or faster."""

    latency: LatencyModel
    slack_fraction: float = SLACK_MOST
    """The share of the least slack that an iteration may take. The rest pays for the belief's error: .85 attains 51 req/s where .95
    attains 36 (99 % of requests in time, long prompts)."""
    chunk_tokens_max: int = 4096
    """A longer iteration wastes less of the time on its fixed cost (5 % of 2,048 tokens, 2.5 % of 4,096), but requests that arrive
    meanwhile wait for its end."""
    chunk_tokens_tight: int = 8192
    """The cap if the first prefill is in time only with the fixed cost of iterations that this saves."""
    tight_share: float = 0.9
    """A prefill is tight whose work, in chunks of the usual cap, takes more than this share of the time until it is due."""
    chunk_tokens_min: int = 16
    """What a prefill gets however tight the decodes are: it must finish eventually, and so few tokens cost nothing while the weights
    are read."""
    pressed_margin: float = 2.0
    """A prefill is pressed when its deadline is nearer than this times the work that is due by then."""
    work_least: float = 0.0
    """What is held back for noise does not make an iteration shorter than this times its decodes alone. An engine whose iterations vary by
    20 % and are half fixed cost, or more, would otherwise do little but read its weights (.73 in time, and .98 stock)."""
    waiting_considered: int = 16
    """Waiting jobs that are considered per iteration: more never fit in one."""

    @property
    def name(self) -> str:
        return "slo-aware"

    def order(self, job: Job) -> tuple[float, ...]:
        return (job.due_s, job.sequence)

    def victim(self, view: EngineView) -> Job:
        return last_admitted(view)

    def calibrated(self, factor: float, error: float) -> Planner:
        fraction = min(self.slack_fraction, 1.0 / (1.0 + ERRORS * error))
        return replace(self, latency=self.latency.slower(factor), slack_fraction=fraction)

    def plan(self, now: float, view: EngineView) -> Plan:
        count = len(view.decodes.jobs)
        prefills, lost = self._prefills(now, view)
        if not count:
            return Plan(self._chunks(now, view, prefills, lost, inf, 0, 0))
        slacks = self._slacks(now, view)
        least_s = self._least(slacks)
        seats = view.batch_tokens - (self.chunk_tokens_min if prefills or lost else 0)
        alone_s = self.latency.iteration_s(0, 0, count, view.decode_kv_tokens)
        budget_s = max(
            self.slack_fraction * least_s, min(SLACK_MOST * least_s, self.work_least * self.latency.tokens_s(1))
        )
        if not (alone_s > budget_s or count > seats or (prefills and self._pressed(now, view, prefills, budget_s))):
            return Plan(self._chunks(now, view, prefills, lost, budget_s, count, view.decode_kv_tokens))
        slots = self._urgent(view, slacks, max(budget_s, self._pace(view, slacks)), max(1, seats), bool(prefills))
        if slots is None:
            return Plan(self._chunks(now, view, prefills, lost, budget_s, count, view.decode_kv_tokens))
        kv_tokens = view.decodes.kv_tokens(slots)
        return Plan(self._chunks(now, view, prefills, lost, budget_s, len(slots), kv_tokens), slots)

    def _slacks(self, now: float, view: EngineView) -> NDArray[np.float64]:
        """How long it is until each decode's next token is due."""
        slacks = view.decodes.due_s
        slacks -= now
        return slacks

    def _prefills(self, now: float, view: EngineView) -> tuple[list[Job], list[Job]]:
        """Those that may get a chunk, by deadline, the ones under way and of the waiting those that fit in free KV and seats:
        first those that can be in time, then those that are lost. In overload, one queue by deadline would make all of them late.
        """
        candidates = list(view.prefills)
        if view.waiting and view.admitting:
            candidates += self._admissible(now, view)
        if not candidates:
            return [], []
        planned = self._by_due(now, candidates)
        in_time = bisect_left(planned, inf, key=itemgetter(0))
        jobs = [job for *_, job in planned]
        return jobs[:in_time], jobs[in_time:]

    def _by_due(self, now: float, jobs: list[Job]) -> list[tuple[float, float, int, Job]]:
        """In the order of the deadlines that they are planned by; the lost ones last, by the ones that they missed."""
        return sorted([(self._due(now, job), job.due_s, job.sequence, job) for job in jobs])

    def _due(self, now: float, job: Job) -> float:
        """The deadline that a prefill is planned by: the first of its two that can still be met; infinity: it is lost."""
        tokens = job.prefill_tokens
        soonest = now + self.latency.attention_s(tokens, job.context) + self.latency.tokens_s(tokens)
        if job.due_s >= soonest:
            return job.due_s
        return job.second_due_s if job.second_due_s >= soonest else inf

    def _admissible(self, now: float, view: EngineView) -> list[Job]:
        """Of the waiting, those that free KV blocks and seats allow: those not overdue, then the overdue; but one that is
        overdue for very long comes first."""
        waiting = view.waiting
        overdue = bisect_left(waiting, now, key=_DUE)
        forgotten = 1 if overdue and now - waiting[0].due_s > TTFT_DEFAULT_S else 0
        count = self.waiting_considered
        considered = [*waiting[overdue : overdue + count], *waiting[forgotten : min(overdue, count)]]
        queue = [*waiting[:forgotten], *[job for *_, job in self._by_due(now, considered)]]
        seats = view.seqs_max - len(view.decodes.jobs) - len(view.prefills)
        free = view.blocks_free - view.blocks_promised()
        admissible: list[Job] = []
        for job in queue:
            free -= view.blocks(job.tokens)
            if free < 0 or len(admissible) >= seats:
                break  # nobody smaller passes it: it might wait for ever
            admissible.append(job)
        return admissible

    def _least(self, slacks: NDArray[np.float64]) -> float:
        """The least slack that an iteration has to respect.

        A decode that will be late (due before the shortest iteration could end) does not limit the iteration. If it still did, late
        decodes would slow the engine down until all are late. It is never left out, so it does not starve.
        """
        shortest_s = self.latency.tokens_s(1)
        least_s = float(slacks.min())
        if least_s < shortest_s:
            alive = slacks[slacks >= shortest_s]
            least_s = float(alive.min()) if len(alive) else inf
        return least_s

    def _pace(self, view: EngineView, slacks: NDArray[np.float64]) -> float:
        """The tightest TPOT of those that are not lost."""
        tpots = view.decodes.tpot_s[slacks >= self.latency.tokens_s(1)]
        return float(tpots.min()) if len(tpots) else inf

    def _pressed(self, now: float, view: EngineView, prefills: list[Job], budget_s: float) -> bool:
        """Whether some prefill misses its deadline if every iteration carries all the decodes (processor demand, by
        deadline)."""
        law = self.latency
        batch, kv_tokens = len(view.decodes.jobs), view.decode_kv_tokens
        chunk = min(self.chunk_tokens_max, view.batch_tokens - batch)
        if budget_s < inf:
            chunk = min(chunk, law.chunk_max(budget_s, 0, batch, kv_tokens))
        chunk = max(self.chunk_tokens_min, chunk)
        decode_s = law.per_decode_s * batch + law.per_kv_token_s * kv_tokens
        token_s = (law.tokens_s(chunk + batch) + decode_s) / chunk
        work_s = 0.0
        for job in prefills:
            tokens = job.prefill_tokens
            work_s += tokens * token_s + law.attention_s(tokens, job.context)
            if work_s * self.pressed_margin > self._due(now, job) - now:
                return True
        return False

    def _urgent(
        self, view: EngineView, slacks: NDArray[np.float64], iteration_s: float, seats: int, prefilling: bool
    ) -> Slots | None:
        """The decodes that cannot sit this iteration out: after it and another like it, their next token would be late.

        `iteration_s` is never less than the tightest TPOT. If it were the small slack at this moment, every decode would be left out
        until its last chance, and iterations would become so short that they are only fixed cost.
        """
        if prefilling:
            iteration_s = min(iteration_s, self.latency.tokens_s(min(self.chunk_tokens_max, view.batch_tokens)))
        slots = (slacks < 2.0 * iteration_s).nonzero()[0]
        if not len(slots) and not prefilling:
            slots = np.arange(len(slacks))
        if len(slots) > seats:
            slots = np.sort(slots[np.argsort(slacks[slots], kind="stable")[:seats]])
        return None if len(slots) == len(slacks) else slots

    def _cap(self, now: float, prefills: list[Job]) -> int:
        """Tokens of prefill an iteration may carry."""
        if prefills and (tokens := prefills[0].prefill_tokens) > self.chunk_tokens_max:
            law = self.latency
            job = prefills[0]
            left_s = self._due(now, job) - now
            iterations = tokens / self.chunk_tokens_max
            work_s = law.attention_s(tokens, job.context) + law.tokens_s(tokens)
            if work_s + (iterations - 1.0) * (law.fixed_s + law.gemm_s) > self.tight_share * left_s:
                return self.chunk_tokens_tight
        return self.chunk_tokens_max

    def _chunks(
        self,
        now: float,
        view: EngineView,
        prefills: list[Job],
        lost: list[Job],
        budget_s: float,
        decodes: int,
        kv_tokens: int,
    ) -> list[tuple[Job, int]]:
        """Chunks in order, as many tokens as `budget_s` and the caps allow beside the decodes; the first one and the first of
        the lost get a few tokens in any case."""
        law = self.latency
        floor = self.chunk_tokens_min
        room = min(self._cap(now, prefills), view.batch_tokens - decodes)
        chunks: list[tuple[Job, int]] = []
        used = 0
        for place, job in enumerate((*prefills, *lost)):
            in_time = place < len(prefills)
            left = room - used - (floor if in_time and lost else 0)
            if left <= 0 and (in_time or place > len(prefills)):
                continue
            tokens = min(job.prefill_tokens, left)
            if budget_s < inf:
                # Chunks before this one count as tokens of the batch, but not as decodes.
                fits = law.chunk_max(budget_s + law.per_decode_s * used, job.context, decodes + used, kv_tokens)
                tokens = min(tokens, max(fits, floor if not chunks or place == len(prefills) else 0))
            if tokens <= 0:
                continue
            chunks.append((job, tokens))
            used += tokens
            budget_s -= law.attention_s(tokens, job.context)
            if in_time and tokens == job.prefill_tokens:
                # Its first token comes when the iteration ends: what follows must not make it late.
                rest_s = self._due(now, job) - now - law.attention_s(tokens, job.context)
                if rest_s > law.tokens_s(decodes + used):
                    budget_s = min(budget_s, rest_s)
        return chunks
