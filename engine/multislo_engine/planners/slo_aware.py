"""A planner that spends slack: it knows when each request's next token is due and shapes every iteration by that.

Five rules:
- prefills in order of their deadline, one under way may be overtaken;
- the chunk is as large as the latency model allows an iteration that takes at most a fraction of the least slack of its decodes;
- while a prefill is pressed, decodes with plenty of slack are left out, so that the iteration is the prefill's;
- while none is, every decode takes part: tokens made early are slack saved for later;
- prefills that are late whatever happens go behind the others, with a few tokens an iteration so that they end some day.

The slack-bounded batch is that of SLOs-Serve (arXiv 2504.08784, section 4) with the slack of running decodes in the place of the
tightest TPOT.
"""

from bisect import bisect_left
from dataclasses import dataclass
from heapq import nsmallest
from math import inf

from multislo_engine.planners.view import EngineView, Job, Plan, last_admitted
from multislo_perf.latency import LatencyModel


@dataclass(frozen=True, slots=True)
class SloAware:
    """`latency` is the planner's own belief; the engine it plans for may be slower."""

    latency: LatencyModel
    slack_fraction: float = 0.85
    """Of the least slack, what an iteration may take. The rest pays for the belief's error: .85 attains 51 req/s
    where .95 attains 36 (99 % of requests in time, long prompts)."""
    chunk_tokens_max: int = 2048
    """An iteration of more tokens saves nothing and makes whoever arrives meanwhile wait for its end."""
    chunk_tokens_min: int = 16
    """What a prefill gets however tight the decodes are: it must end some day, and so few tokens hide behind the
    weights."""
    pressed_margin: float = 2.0
    """A prefill is pressed when its deadline is nearer than this times the work that is due by then."""
    waiting_considered: int = 16
    """So many of the waiting are looked at an iteration: more never fit in one."""
    ttft_s: float = 30.0
    """Taken as the SLO of a request that has none, so that it is served behind the others but not never."""
    tpot_s: float = 0.5

    @property
    def name(self) -> str:
        return "slo-aware"

    def order(self, job: Job) -> tuple[float, ...]:
        return (self.due_s(job), job.sequence)

    def victim(self, view: EngineView) -> Job:
        return last_admitted(view)

    def due_s(self, job: Job) -> float:
        """When the job's next token is due."""
        ttft_due_s = job.ttft_due_s if job.ttft_due_s < inf else job.arrived_s + self.ttft_s
        return ttft_due_s + job.produced * (job.tpot_s if job.tpot_s < inf else self.tpot_s)

    def plan(self, now: float, view: EngineView) -> Plan:
        decodes = view.decodes
        prefills, lost = self._prefills(now, view)
        if not decodes:
            return Plan(self._chunks(now, view, prefills, lost, inf, 0, 0), decodes)
        slacks, least_s, pace_s = self._slacks(now, decodes)
        budget_s = self.slack_fraction * least_s
        kv_tokens = view.decode_kv_tokens
        seats = view.batch_tokens - (self.chunk_tokens_min if prefills or lost else 0)
        alone_s = self.latency.iteration_s(0, 0, len(decodes), kv_tokens)
        if alone_s > budget_s or len(decodes) > seats or (prefills and self._pressed(now, view, prefills, budget_s)):
            decodes = self._urgent(view, slacks, max(budget_s, pace_s), max(1, seats), bool(prefills))
            kv_tokens = sum([job.tokens for job in decodes])
        return Plan(self._chunks(now, view, prefills, lost, budget_s, len(decodes), kv_tokens), decodes)

    def _prefills(self, now: float, view: EngineView) -> tuple[list[Job], list[Job]]:
        """Those that may get a chunk, by deadline, the ones under way and of the waiting those that fit in free KV and seats:
        first those that can be in time, then those that are lost. In overload, one queue by deadline would make all of them late.
        """
        candidates = list(view.prefills)
        if view.waiting and view.admitting:
            candidates += self._admissible(now, view)
        if not candidates:
            return [], []
        candidates.sort(key=self.order)
        law = self.latency
        in_time: list[Job] = []
        lost: list[Job] = []
        for job in candidates:
            tokens = job.prefill_tokens
            soonest_s = law.attention_s(tokens, job.context) + law.tokens_s(tokens)
            (in_time if self.due_s(job) - now >= soonest_s else lost).append(job)
        return in_time, lost

    def _admissible(self, now: float, view: EngineView) -> list[Job]:
        """Of the waiting, those that free KV blocks and seats allow: those not overdue, then the overdue; but one that is
        overdue for very long comes first."""
        waiting = view.waiting
        overdue = bisect_left(waiting, now, key=self.due_s)
        forgotten = 1 if overdue and now - self.due_s(waiting[0]) > self.ttft_s else 0
        count = self.waiting_considered
        queue = (
            *waiting[:forgotten],
            *waiting[overdue : overdue + count],
            *waiting[forgotten : min(overdue, count)],
        )
        seats = view.seqs_max - len(view.decodes) - len(view.prefills)
        free = view.blocks_free - view.blocks_promised()
        admissible: list[Job] = []
        for job in queue:
            free -= view.blocks(job.tokens)
            if free < 0 or len(admissible) >= seats:
                break  # nobody smaller passes it: it might wait for ever
            admissible.append(job)
        return admissible

    def _slacks(self, now: float, decodes: list[Job]) -> tuple[list[float], float, float]:
        """Seconds until each decode's next token is due; the least that an iteration has to respect; and the
        tightest TPOT.

        One that is lost (due before the shortest iteration could end) holds nobody back: were it owed its pace
        still, the late would slow the engine down until everybody is late. It is never left out, so it does not starve.
        """
        shortest_s = self.latency.tokens_s(1)
        least_s = pace_s = inf
        slacks = []
        for job in decodes:
            # `due_s`, written out: this is the planner's hot loop.
            tpot_s = job.tpot_s
            if tpot_s == inf:
                tpot_s = self.tpot_s
            due_s = job.ttft_due_s
            if due_s == inf:
                due_s = job.arrived_s + self.ttft_s
            slack_s = due_s + job.produced * tpot_s - now
            slacks.append(slack_s)
            if slack_s >= shortest_s:
                if slack_s < least_s:
                    least_s = slack_s
                if tpot_s < pace_s:
                    pace_s = tpot_s
        return slacks, least_s, pace_s

    def _pressed(self, now: float, view: EngineView, prefills: list[Job], budget_s: float) -> bool:
        """Whether some prefill misses its deadline if every iteration carries all the decodes (processor demand, by
        deadline)."""
        law = self.latency
        batch, kv_tokens = len(view.decodes), view.decode_kv_tokens
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
            if work_s * self.pressed_margin > self.due_s(job) - now:
                return True
        return False

    def _urgent(
        self, view: EngineView, slacks: list[float], iteration_s: float, seats: int, prefilling: bool
    ) -> list[Job]:
        """The decodes that cannot sit this iteration out: after it and another like it, their next token would be late.

        `iteration_s` is never less than the tightest TPOT. If it were the little slack that is left just now,
        everybody would be left out until his last moment, and iterations would become so short that they are nothing
        but their fixed cost.
        """
        if prefilling:
            iteration_s = min(iteration_s, self.latency.tokens_s(min(self.chunk_tokens_max, view.batch_tokens)))
        soon_s = 2.0 * iteration_s
        pairs = [(slack_s, job) for slack_s, job in zip(slacks, view.decodes, strict=True) if slack_s < soon_s]
        if not pairs and not prefilling:
            pairs = list(zip(slacks, view.decodes, strict=True))
        if len(pairs) > seats:
            pairs = nsmallest(seats, pairs, key=_slack)
        return [job for _, job in pairs]

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
        room = min(self.chunk_tokens_max, view.batch_tokens - decodes)
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
                rest_s = self.due_s(job) - now - law.attention_s(tokens, job.context)
                if rest_s > law.tokens_s(decodes + used):
                    budget_s = min(budget_s, rest_s)
        return chunks


def _slack(pair: tuple[float, Job]) -> float:
    return pair[0]
