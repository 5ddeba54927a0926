"""`EngineQueue`: the prompts of one engine in the order in which it computes them, how far it has come, and what it does next.

A stock engine gives every decode a token an iteration and fills what its token budget leaves with prompts, first come first served or by
priority. So what it will do is known, but for how long it takes: `forecast` follows it, iteration by iteration. An engine that plans by
deadlines chooses its own batches; of it only the order and a rough progress are known.
Changed by `Instance` alone.
"""

from math import inf, nextafter
from typing import Final

from multislo_router.core.bookings import Bookings
from multislo_router.core.events import PRIORITY, SLO_AWARE, Scheduler
from multislo_router.core.iteration import chunks_of
from multislo_router.core.pace import Pace
from multislo_router.core.request import Request

CHUNK_LEAST: Final = 16
"""What an iteration computes of prompts at least, however many decode."""
SAME_S: Final = 1e-4
"""Tokens this close together come from one iteration."""
LAG_WEIGHT: Final = 0.5
"""How far a contradiction moves the believed lag."""
LAG_MAX_S: Final = 2.0
"""A request that waited longer for its iteration was kept out of it by something else."""
PROGRESS_MAX: Final = 0.95
"""A prompt is never believed to be quite through before its first token has come."""


class EngineQueue:
    """`row`: the prompts without a first token, in the engine's order. An iteration is under way since `began_at`."""

    __slots__ = (
        "_before_at",
        "_began_seen",
        "_done_before",
        "_done_now",
        "_long_before_at",
        "_taken_before",
        "batch_tokens",
        "began_at",
        "computed",
        "head_since",
        "lag_s",
        "row",
        "scheduler",
    )

    def __init__(self, scheduler: Scheduler, batch_tokens: int, now: float) -> None:
        self.scheduler = scheduler
        self.batch_tokens = batch_tokens
        self.row: list[Request] = []
        self.computed = 0
        """Tokens of the row, from its head, that were computed before the iteration under way."""
        self.began_at = now
        self.head_since = now
        """When the engine began with the first of the row."""
        self.lag_s = 0.0
        """From sending something there until the engine's tokens can show it, beyond what the engine takes: see `_measure_lag`."""
        self._began_seen = False
        """The end of the iteration before was seen, not only believed."""
        self._before_at = self._long_before_at = -inf
        """When the last iteration that ended had begun, and the one before it; -inf where that was not seen."""
        self._done_now = self._done_before = 0
        """Prompt tokens of the first tokens that came from these two."""
        self._taken_before = 0
        """Prompt tokens that the last one is believed to have computed."""

    # -- what happens --------------------------------------------------------------------------------------------------

    def joins(self, request: Request, idle: bool, now: float) -> None:
        """A request is sent there now. `idle`: the engine has nothing to do, and begins an iteration with it."""
        request.joins_at = now + self.lag_s
        if idle:
            self.computed = 0
            self.began_at = request.joins_at
            request.joins_at = nextafter(
                self.began_at, -inf
            )  # just before: what else comes now is not in that iteration
            self._began_seen = False
        if request.prefilled:
            return
        self.row.append(request)
        if len(self.row) == 1:
            self.head_since = request.joins_at
        else:
            self.reorder(now)

    def reorder(self, now: float) -> None:
        """Sort the row as the engine does."""
        row = self.row
        if len(row) < 2:
            return
        head = row[0]
        if self.scheduler is SLO_AWARE:
            # What is lost goes behind all others, and a prompt under way may be overtaken.
            row.sort(key=_lost_then_due)
            if row[0] is not head:
                self.head_since = now
        elif self.scheduler is PRIORITY:
            # vLLM orders only what waits: a prompt that has begun stays at the head, whatever its deadline.
            waiting = row[1:]
            waiting.sort(key=_due)
            self.row = [head, *waiting]

    def leaves(self, request: Request, now: float) -> None:
        """A prompt has its first token, or its request is gone."""
        row = self.row
        if row[0] is request:
            row.pop(0)
            self.computed = max(0, self.computed - request.prompt_tokens)
            self.head_since = now
        else:
            row.remove(request)

    def iteration_ended(self, bookings: Bookings, pace: Pace, now: float) -> None:
        """An iteration was seen to end, and the next begins."""
        if now - self.began_at <= SAME_S:
            return
        row = self.row
        if row:
            self.computed = self.computed_by(now)
            if not bookings.decodes:
                self._pass_silent(pace, now)
            self._taken_before = chunks_of(
                row, 0, self.computed, self.free(len(bookings.decodes)), self.began_at, pace.latency
            ).tokens
            self.computed += self._taken_before
        self._long_before_at = self._before_at
        self._before_at = self.began_at if self._began_seen else -inf
        self._done_before = self._done_now
        self._done_now = 0
        self._began_seen = True
        self.began_at = now

    def _pass_silent(self, pace: Pace, now: float) -> None:
        """An engine without decodes shows nothing before a prompt is through: believe that its iterations ended as predicted."""
        row = self.row
        while True:
            chunks = chunks_of(row, 0, self.computed, self.free(0), self.began_at, pace.latency)
            ends_at = self.began_at + pace.batch_s(chunks.tokens, chunks.attention_s, 0, 0.0)
            if chunks.done or not chunks.tokens or ends_at > now:
                return
            self.computed += chunks.tokens
            self._taken_before = chunks.tokens
            self.began_at = ends_at
            self._began_seen = False

    def first_token(self, request: Request, decodes: int) -> None:
        """The first token of a prompt of the row was seen, with the iteration that has just ended; `decodes`: beside it."""
        if self.scheduler is not SLO_AWARE:
            self._done_now += request.prompt_tokens
            if decodes:
                self._measure_lag(request, decodes)

    def _measure_lag(self, request: Request, decodes: int) -> None:
        """A prompt is computed from the first iteration on that begins after it has come. The iteration that its first token came from
        thus bounds the lag: less than from its sending to that iteration's beginning, more than to the beginning of the one before."""
        lag_s = self.lag_s
        most = self._before_at - request.placed_at
        if -inf < most < lag_s:
            lag_s += LAG_WEIGHT * (most - lag_s)
        elif self._done_now + self._done_before + decodes <= self.batch_tokens and (
            self.scheduler is not PRIORITY or len(self.row) == 1
        ):
            # Had it come before that iteration began, it would have been computed in it, whatever else was.
            least = self._long_before_at - request.placed_at
            if least > lag_s:
                lag_s += LAG_WEIGHT * (least - lag_s)
        self.lag_s = min(max(lag_s, 0.0), LAG_MAX_S)

    # -- what it will do -----------------------------------------------------------------------------------------------

    def computed_by(self, now: float) -> int:
        """`computed`, corrected by what has not been seen: a first prompt that should be through, and whose token is not there, joined an
        iteration later than believed, or is longer."""
        if self.row and now - self.began_at > SAME_S:
            head = self.row[0].prompt_tokens
            if self.computed >= head:
                return max(0, min(self.computed - self._taken_before, head - 1))
        return self.computed

    def head_progress(self, bookings: Bookings, pace: Pace, now: float) -> float:
        """Share of the row's first prompt that is computed, believed; never all of it before its token has come."""
        if not self.row:
            return 0.0
        if self.scheduler is SLO_AWARE:
            done = (now - self.head_since) / self.head_takes_s(bookings, pace)
        else:
            done = self.computed / self.row[0].prompt_tokens
        return min(max(done, 0.0), PROGRESS_MAX)

    def head_takes_s(self, bookings: Bookings, pace: Pace) -> float:
        """How long the row's first prompt takes in all, beside the decodes that are there."""
        decodes = min(len(bookings.decodes), self.batch_tokens - 1)
        tokens = self.row[0].prompt_tokens
        return pace.calibration * pace.latency.prefill_s(
            tokens, 0, self.batch_tokens, decodes, bookings.kv_decode_tokens
        )

    def work_left_s(self, bookings: Bookings, pace: Pace, now: float) -> float:
        """Seconds of prefill that are still to do."""
        work_s = 0.0
        undone = 1.0 - self.head_progress(bookings, pace, now)
        for request in self.row:
            work_s += undone * request.prefill_work_s
            undone = 1.0
        return pace.calibration * work_s

    def free(self, decodes: int) -> int:
        """The tokens that an iteration has for prompts."""
        free = self.batch_tokens - decodes
        return free if free > CHUNK_LEAST else CHUNK_LEAST

    def place_of(self, request: Request) -> int:
        """Where in the row the engine puts one more prompt: at the end, or by priority behind the first, which has begun."""
        row = self.row
        place = len(row)
        if self.scheduler is PRIORITY:
            while place > 1 and row[place - 1].due > request.due:
                place -= 1
        return place


def _due(request: Request) -> float:
    return request.due


def _lost_then_due(request: Request) -> tuple[bool, float]:
    return request.lost, request.due
