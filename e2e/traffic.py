"""Users of a fleet: streams of every tier through its Service, each watched to its end. What a scenario promises them is asked here."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType

import aiohttp

from cluster.api import Refused
from cluster.scene import Scene

STREAMS_MAX = 600
"""At once; a user who would be one more stays at home, and is counted."""
DOORS_EVERY_S = 0.5
"""How long a node's routing tables may lag behind the Service."""
STREAM_S = 120.0


class End(StrEnum):
    UNDER_WAY = "under way"
    WHOLE = "whole"
    """All its tokens, and the mark of the end."""
    REFUSED = "refused"
    """429 or 503 before the first token."""
    BROKEN = "broken"
    """It had begun, and ended otherwise."""
    FAILED = "failed"
    """No answer, or another error before the first token."""


@dataclass(slots=True)
class Stream:
    """One request. Times by the monotonic clock."""

    tier: str
    tokens_wanted: int
    began_at: float
    door: str = ""
    instance: str = ""
    tokens: int = 0
    error_events: int = 0
    end: End = End.UNDER_WAY
    ended_at: float = 0.0
    cause: str = ""

    @property
    def lost(self) -> bool:
        return self.end in (End.BROKEN, End.FAILED)


@dataclass(slots=True)
class Flow:
    """What comes of one tier: so many requests a second at random times, of so many tokens."""

    per_s: float
    prompt_tokens: int = 64
    output_tokens: int = 24


@dataclass(slots=True)
class Traffic:
    """`async with Traffic(...) as traffic: traffic.flow("chat", Flow(5.0))`, again for another rate. At the end every stream has ended."""

    scene: Scene
    service: str
    model: str
    streams: list[Stream] = field(default_factory=list)
    stayed_at_home: int = 0
    doors: list[str] = field(default_factory=list)
    _flows: dict[str, tuple[Flow, asyncio.Task[None]]] = field(default_factory=dict)
    _running: set[asyncio.Task[None]] = field(default_factory=set)
    _dice: random.Random = field(default_factory=lambda: random.Random(7))
    _session: aiohttp.ClientSession | None = None
    _doors: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Traffic":
        # A connection for each stream: so a Service spreads them, and nothing is hidden by a retry.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=STREAM_S))
        self.doors = await self.scene.behind(self.service)
        self._doors = asyncio.create_task(self._watch_doors())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        assert self._doors is not None
        self._stop_flows()
        if kind is not None:
            for task in self._running:
                task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._doors.cancel()
        await self._session.close()

    # -- coming and going ----------------------------------------------------------------------------------------------------

    def flow(self, tier: str, flow: Flow) -> None:
        """From now on this is what comes of the tier."""
        if tier in self._flows:
            self._flows.pop(tier)[1].cancel()
        if flow.per_s > 0.0:
            self._flows[tier] = flow, asyncio.create_task(self._come(tier, flow))

    async def burst(self, tier: str, number: int, prompt_tokens: int = 64, output_tokens: int = 24) -> list[Stream]:
        """So many at once; when all have ended."""
        tasks = [self._begin(tier, Flow(0.0, prompt_tokens, output_tokens)) for _ in range(number)]
        begun = [task for task in tasks if task is not None]
        await asyncio.gather(*(task for task, _ in begun))
        return [stream for _, stream in begun]

    async def all_ended(self) -> None:
        """Nobody else comes, and who came has gone."""
        self._stop_flows()
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    def _stop_flows(self) -> None:
        for _, task in self._flows.values():
            task.cancel()
        self._flows.clear()

    async def _come(self, tier: str, flow: Flow) -> None:
        due = time.monotonic()
        while True:
            due += self._dice.expovariate(flow.per_s)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._begin(tier, flow)

    def _begin(self, tier: str, flow: Flow) -> tuple[asyncio.Task[None], Stream] | None:
        if len(self._running) >= STREAMS_MAX:
            self.stayed_at_home += 1
            return None
        stream = Stream(tier, flow.output_tokens, time.monotonic())
        self.streams.append(stream)
        task = asyncio.create_task(self._live(stream, flow.prompt_tokens))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task, stream

    # -- one stream ----------------------------------------------------------------------------------------------------------

    async def _live(self, stream: Stream, prompt_tokens: int) -> None:
        try:
            await self._ask(stream, prompt_tokens)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            stream.cause = f"{type(error).__name__} {error}".strip()
            stream.end = End.BROKEN if stream.tokens else End.FAILED
        finally:
            stream.ended_at = time.monotonic()

    async def _ask(self, stream: Stream, prompt_tokens: int) -> None:
        assert self._session is not None
        if not self.doors:
            stream.end, stream.cause = End.FAILED, "no door is open"
            return
        stream.door = self._dice.choice(self.doors)
        start = self._dice.randrange(1000, 9999)  # Nothing to find in a prefix cache.
        body = {
            "model": self.model,
            "service_tier": stream.tier,
            "prompt": " ".join(f"{(start + index) % 1000:03d}" for index in range(prompt_tokens)),
            "max_tokens": stream.tokens_wanted,
            "ignore_eos": True,
            "stream": True,
        }
        async with self._session.post(f"http://{stream.door}/v1/completions", json=body) as answer:
            stream.instance = answer.headers.get("x-multislo-instance", "")
            if answer.status != 200:
                reason = answer.headers.get("x-multislo-reason", "")
                stream.end = End.REFUSED if answer.status in (429, 503) else End.FAILED
                stream.cause = f"{answer.status} {reason}"
                return
            done = False
            async for line in answer.content:
                if line.startswith(b"data: [DONE]"):
                    done = True
                elif line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        stream.error_events += 1
                        stream.cause = str(event["error"].get("code") or event["error"])
                    elif event["choices"] and event["choices"][0].get("text"):
                        stream.tokens += 1
            whole = done and not stream.error_events and stream.tokens > 0
            stream.end = End.WHOLE if whole else End.BROKEN if stream.tokens else End.FAILED
            stream.cause = stream.cause or (
                "" if whole else f"ended after {stream.tokens} of {stream.tokens_wanted} tokens"
            )

    async def _watch_doors(self) -> None:
        """As the nodes' routing follows a Service."""
        while True:
            await asyncio.sleep(DOORS_EVERY_S)
            try:
                self.doors = await self.scene.behind(self.service)
            except (Refused, OSError, aiohttp.ClientError, TimeoutError):
                continue

    # -- what became of them -------------------------------------------------------------------------------------------------

    @property
    def under_way(self) -> list[Stream]:
        """Those that have had a token and are not at their end."""
        return [stream for stream in self.streams if stream.end is End.UNDER_WAY and stream.tokens]

    def counts(self, since: float = 0.0) -> dict[str, Counter[str]]:
        """Ends by tier, and how many there were."""
        found: dict[str, Counter[str]] = {}
        for stream in self.streams:
            if stream.began_at >= since:
                count = found.setdefault(stream.tier, Counter())
                count[str(stream.end)] += 1
                count["all"] += 1
        return found

    def nobody_was_dropped(self, but: Iterable[Stream] = ()) -> None:
        """Asserts that each stream that began came to its end, but for those given."""
        excused = {id(stream) for stream in but}
        lost = [stream for stream in self.streams if stream.lost and id(stream) not in excused]
        told = [f"{s.tier} at {s.door} on {s.instance}: {s.end}, {s.tokens} tokens, {s.cause}" for s in lost[:10]]
        assert not lost, f"{len(lost)} of {len(self.streams)} streams were dropped: {told}"
        assert not self.stayed_at_home, f"{self.stayed_at_home} found no place in the load generator"
