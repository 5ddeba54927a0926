"""Sends a workload open loop: each request at its own time, however slow the answers are, and keeps a record of each. Also measures
its own delays, so that they are not mistaken for the server's. `multislo replay` and the demo call it."""

import asyncio
import gc
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time, time

import aiohttp

from multislo_bench.client import Client, Endpoint
from multislo_bench.prompts import prompts
from multislo_bench.record import Outcome, Record
from multislo_sim.workloads.request import Request

LAG_PROBE_S = 0.01
SWEEP_S = 0.25


class ReplayImpossible(Exception):
    """The server cannot be asked at all; the message says what was tried."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server, and how to send to it. `own_slo`: requests send their SLO in headers instead of their tier's name."""

    url: str
    model: str
    api_key: str | None = None
    chat: bool = False
    as_ids: bool = False
    own_slo: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a replay. They do not change its arrivals."""

    in_flight_max: int = 4096
    timeout_s: float = 300.0
    """Of one request, from sending."""
    drain_s: float = 60.0
    """How long after the last arrival answers are waited for; what is unfinished then counts as missed."""


@dataclass(slots=True)
class Timing:
    """The client's own delays in seconds, and its CPU time."""

    sent_late_s: list[float] = field(default_factory=list)
    loop_lag_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0


@dataclass(slots=True)
class Progress:
    """What a progress bar shows."""

    elapsed_s: float
    sent: int
    in_flight: int
    ended: int
    tokens: int


@dataclass(slots=True)
class Replayed:
    records: list[Record]
    timing: Timing
    started_unix_s: float = 0.0


async def replay(
    requests: Sequence[Request],
    target: Target,
    limits: Limits,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> Replayed:
    """Sends each request at its `at_s` from now on and waits for the answers. After `stop` nothing more is sent."""
    run = _Run(requests, target, limits, seed, on_progress)
    return await run.run(stop or asyncio.Event())


class _Run:
    """One replay's state: the schedule, the client, and the counts that bound it."""

    def __init__(
        self,
        requests: Sequence[Request],
        target: Target,
        limits: Limits,
        seed: int,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        _raise_file_limit(limits.in_flight_max)
        path = "/v1/chat/completions" if target.chat else "/v1/completions"
        self._client = Client(Endpoint.of(target.url, path), target.api_key)
        longest = max((request.prompt_tokens for request in requests), default=0)
        self._prompts = prompts(target.model, target.chat, target.as_ids, longest, seed)
        self._own_slo = target.own_slo
        self._limits = limits
        self._on_progress = on_progress
        self._records = [
            Record(r.at_s, r.prompt_tokens, r.output_tokens, r.tier, r.ttft_s, r.tpot_s)
            for r in sorted(requests, key=lambda request: request.at_s)
        ]
        self._timing = Timing()
        self._sent = 0
        self._ended = 0
        self._empty = asyncio.Event()
        self._started_at = 0.0

    async def run(self, stop: asyncio.Event) -> Replayed:
        collecting = gc.isenabled()
        gc.collect()
        gc.freeze()
        # A collection over the records of a long run stops the loop for tens of milliseconds; a run makes no cycles.
        gc.disable()
        cpu_s = process_time()
        started_unix_s = time()
        self._started_at = perf_counter()
        side = [asyncio.create_task(self._probe()), asyncio.create_task(self._sweep())]
        try:
            await self._send_all(stop)
            if self._sent > self._ended:
                try:
                    async with asyncio.timeout(self._limits.drain_s):
                        await self._empty.wait()
                except TimeoutError:
                    pass
        finally:
            for task in side:
                task.cancel()
            self._client.close()
            await asyncio.gather(*side, *self._client.connecting, return_exceptions=True)
            gc.unfreeze()
            if collecting:
                gc.enable()
        self._timing.cpu_s = process_time() - cpu_s
        self._timing.wall_s = perf_counter() - self._started_at
        return Replayed(self._records, self._timing, started_unix_s)

    async def _send_all(self, stop: asyncio.Event) -> None:
        late_s = self._timing.sent_late_s
        for index, record in enumerate(self._records):
            due = self._started_at + record.at_s
            while (wait_s := due - perf_counter()) > 0.0005:
                if stop.is_set():
                    break
                # uvloop's timers count whole milliseconds; the rest of one is slept away by a turn of the loop or two.
                await asyncio.sleep(min(wait_s, SWEEP_S))
            if stop.is_set():
                for rest in self._records[index:]:
                    rest.outcome, rest.cause = Outcome.NOT_SENT, "the replay was stopped"
                return
            if self._sent - self._ended >= self._limits.in_flight_max:
                record.outcome, record.cause = Outcome.NOT_SENT, f"{self._limits.in_flight_max} requests in flight"
                continue
            body = self._prompts.body(record.prompt_tokens, record.output_tokens)
            record.sent_late_s = max(0.0, perf_counter() - due)
            late_s.append(record.sent_late_s)
            self._sent += 1
            self._empty.clear()
            self._client.send(record, self._headers(record), body, self._one_ended)

    def _headers(self, record: Record) -> bytes:
        if self._own_slo and record.ttft_slo_s is not None and record.tpot_slo_s is not None:
            ttft_ms, tpot_ms = record.ttft_slo_s * 1000.0, record.tpot_slo_s * 1000.0
            return f"x-slo-ttft-ms: {ttft_ms:g}\r\nx-slo-tpot-ms: {tpot_ms:g}\r\n".encode()
        return f"x-slo-tier: {record.tier}\r\n".encode() if record.tier else b""

    def _one_ended(self) -> None:
        self._ended += 1
        if self._ended == self._sent:
            self._empty.set()

    async def _probe(self) -> None:
        """How late this loop wakes up: the time a token may have waited in the socket before it was stamped."""
        lag_s = self._timing.loop_lag_s
        while True:
            due = perf_counter() + LAG_PROBE_S
            await asyncio.sleep(LAG_PROBE_S)
            lag_s.append(max(0.0, perf_counter() - due))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = perf_counter()
            for connection in list(self._client.busy):
                if connection.age_s(now) > self._limits.timeout_s:
                    connection.give_up(Outcome.TIMED_OUT)
            if self._on_progress is not None:
                elapsed_s = now - self._started_at
                tokens = sum(record.tokens for record in self._records)
                self._on_progress(Progress(elapsed_s, self._sent, self._sent - self._ended, self._ended, tokens))


async def served_model(url: str, api_key: str | None) -> str:
    """The first model that the server lists. Raises ReplayImpossible where it cannot be asked."""
    endpoint = Endpoint.of(url, "/v1/models")
    scheme = "https" if endpoint.tls else "http"
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    where = f"{scheme}://{endpoint.authority}{endpoint.path}"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10.0), headers=headers) as session,
            session.get(where) as response,
        ):
            if response.status != 200:
                raise ReplayImpossible(f"{where} answered {response.status}; name the model by --model")
            listed = await response.json(content_type=None)
            return str(listed["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ReplayImpossible(f"{where} cannot be asked: {error or type(error).__name__}") from None
    except (KeyError, IndexError, TypeError, ValueError):
        raise ReplayImpossible(f"{where} lists no model; name one by --model") from None


def _raise_file_limit(in_flight_max: int) -> None:
    """A connection is an open file, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = in_flight_max + 256
    if soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
