"""Runs the engine model on the event loop's clock: one wake-up per iteration, whose tokens are handed to the requests' sinks.

The model is never late, but the machine may be: `lag` is the time from a token's time by the model to its writing.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from multislo_engine.emulator.body import Slo
from multislo_engine.emulator.metrics import EngineStats
from multislo_engine.model import EngineModel
from multislo_engine.terms import EngineRequest, EngineToken

EARLY_S = 0.0005
"""The loop's timers know milliseconds; one that fires this little too soon is taken for punctual, not armed again."""


class Sink(Protocol):
    """Where the tokens of one request go."""

    def token(self, index: int, finished: bool) -> None: ...

    def abort(self) -> None:
        """The engine gives the request up; no token follows."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """One sequence that is asked for: where its tokens go, how many, and whether a limit sets that."""

    sink: Sink
    tokens: int
    length_limited: bool


@dataclass(slots=True)
class _Flight:
    """A request in the engine."""

    sink: Sink
    prompt_tokens: int
    length_limited: bool
    arrived_s: float
    first_s: float = 0.0
    last_s: float = 0.0


class LiveEngine:
    """One engine model in real time. Everything here runs on one event loop; nothing awaits."""

    def __init__(self, model: EngineModel, stats: EngineStats) -> None:
        self.model = model
        self.stats = stats
        self._loop = asyncio.get_running_loop()
        self._flights: dict[int, _Flight] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._now = 0.0
        self._emptied: asyncio.Event | None = None
        self._next_id = 0
        self._iterations = 0
        self._tokens = 0

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    def submit(
        self,
        sequences: Sequence[Output],
        prompt_tokens: int,
        priority: int,
        slo: Slo,
    ) -> list[int] | None:
        """Takes in one prompt with its sequences; returns the ids to abort them by, or None when the queue is full."""
        now = self._deliver()
        ids = list(range(self._next_id, self._next_id + len(sequences)))
        self._next_id += len(sequences)
        request = EngineRequest(
            ids[0],
            prompt_tokens,
            sequences[0].tokens,
            priority,
            ttft_due_s=now + slo.ttft_s,
            tpot_s=slo.tpot_s,
            second_due_s=now + slo.late_ttft_s,
            forks=tuple([(id, one.tokens) for id, one in zip(ids[1:], sequences[1:], strict=True)]),
        )
        accepted = self.model.submit(now, request)
        if accepted:
            for id, one in zip(ids, sequences, strict=True):
                self._flights[id] = _Flight(one.sink, prompt_tokens, one.length_limited, now)
        self._arm()
        return ids if accepted else None

    def abort(self, id: int) -> bool:
        """Forgets a request whose client is gone; its KV is free when the running iteration ends. False if it was over."""
        if self._flights.pop(id, None) is None:
            return False
        self.model.abort(self._deliver(), id)
        self.stats.finished["abort"] += 1
        self._arm()
        return True

    async def empty(self, within_s: float) -> None:
        """Returns when no request is in flight, or after so many seconds."""
        self._emptied = asyncio.Event()
        if self._flights:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), within_s)

    def abort_all(self) -> None:
        """Ends every request; each answer says `finish_reason: abort`."""
        for id, flight in list(self._flights.items()):
            if self.abort(id):
                flight.sink.abort()

    def _wake(self) -> None:
        self._timer = self._timer_at = None
        self._deliver(EARLY_S)
        self._arm()

    def _arm(self) -> None:
        """One timer, at the end of the running iteration."""
        if self._emptied is not None and not self._flights:
            self._emptied.set()
        at = self.model.next_at()
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = at
        if at is not None:
            self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._wake)

    def _deliver(self, early_s: float = 0.0) -> float:
        """Hands out the tokens that are due; returns the time, which never goes back."""
        now = self._now = max(self._now, time.monotonic() + early_s)
        at = self.model.next_at()
        if at is None or at > now:
            return now
        tokens = self.model.advance(now)
        self._count_iterations()
        if tokens:
            self._hand_out(tokens)
            # Not now: the loop writes to the sockets when this callback is over.
            self._loop.call_soon(self._measure_lag, tokens)
        return now

    def _hand_out(self, tokens: list[EngineToken]) -> None:
        flights = self._flights
        observe = self.stats.inter_token.observe
        for id, index, made_s, finished in tokens:
            flight = flights.get(id)
            if flight is None:
                continue  # its client left during the iteration
            if flight.last_s:
                observe(made_s - flight.last_s)
            else:
                flight.first_s = made_s
                self.stats.first_token(flight.prompt_tokens, made_s - flight.arrived_s)
            flight.last_s = made_s
            if finished:
                del flights[id]
                self.stats.ended(
                    flight.prompt_tokens,
                    index + 1,
                    flight.first_s - flight.arrived_s,
                    made_s - flight.first_s,
                    "length" if flight.length_limited else "stop",
                )
            flight.sink.token(index, finished)

    def _measure_lag(self, tokens: list[EngineToken]) -> None:
        now = time.monotonic()
        first, last = tokens[0].at, tokens[-1].at
        if first == last:
            self.stats.lag(now, max(0.0, now - last), len(tokens))
        else:
            for token in tokens:
                self.stats.lag(now, max(0.0, now - token.at), 1)

    def _count_iterations(self) -> None:
        model = self.model
        iterations = model.iterations - self._iterations
        tokens = model.prefill_tokens + model.decode_tokens - self._tokens
        self._iterations += iterations
        self._tokens += tokens
        for _ in range(iterations):
            self.stats.iteration_tokens.observe(tokens / iterations)
