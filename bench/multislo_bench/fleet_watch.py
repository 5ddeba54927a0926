"""Watches a fleet during a replay: the number of instances by tier and state, and how far the emulated engines are behind their own
schedule. The demo runs one beside each replay."""

import asyncio
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter

import aiohttp
from pydantic import ValidationError

from multislo_api.fleet import FleetSnapshot
from multislo_api.tolerant import read_json

FLEET_EVERY_S = 1.0
LAG_EVERY_S = 5.0
LAG_BUCKET = re.compile(r'multislo_emulator_lag_seconds_bucket\{.*?le="([^"]+)".*?\} ([\d.e+]+)')


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at `at_s` after the watch began: instances by home tier ("warm pool" without one) and by state."""

    at_s: float
    tiers: dict[str, int]
    states: dict[str, int]

    @property
    def instances(self) -> int:
        return sum(self.states.values())


@dataclass(slots=True)
class FleetWatch:
    """Samples a router's `/fleet`, or a fixed set of engines if `admin_url` is None."""

    admin_url: str | None
    engines: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    lags: dict[str, dict[float, float]] = field(default_factory=dict)
    """Engine URL to its last lag histogram: cumulative counts of tokens by upper edge in seconds."""
    started_at: float = field(default_factory=perf_counter)

    async def run(self) -> None:
        """Until cancelled. What cannot be read now is read the next time."""
        self.started_at = perf_counter()
        turn = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
            while True:
                if self.admin_url is not None:
                    with suppress(aiohttp.ClientError, TimeoutError, ValidationError):
                        await self._sample(session)
                if turn % round(LAG_EVERY_S / FLEET_EVERY_S) == 0:
                    for url in self.engines:
                        with suppress(aiohttp.ClientError, TimeoutError):
                            await self._lag(session, url)
                turn += 1
                await asyncio.sleep(FLEET_EVERY_S)

    async def last_look(self) -> None:
        """The engines' lag over the whole run."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
            for url in self.engines:
                with suppress(aiohttp.ClientError, TimeoutError):
                    await self._lag(session, url)

    async def _sample(self, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{self.admin_url}/fleet") as response:
            snapshot = read_json(FleetSnapshot, await response.read())[0]
        tiers = Counter(instance.tier or "warm pool" for instance in snapshot.instances)
        states = Counter(instance.state for instance in snapshot.instances)
        self.samples.append(
            Sample(perf_counter() - self.started_at, dict(tiers), {str(k): v for k, v in states.items()})
        )
        self.engines = [instance.url for instance in snapshot.instances if instance.state != "starting"]

    async def _lag(self, session: aiohttp.ClientSession, url: str) -> None:
        async with session.get(f"{url}/metrics") as response:
            text = await response.text()
        buckets = {float(edge): float(count) for edge, count in LAG_BUCKET.findall(text)}
        if buckets:
            self.lags[url] = buckets

    def instance_seconds(self, until_s: float) -> float:
        """Instances of every state, starting and draining ones too, integrated from the start to `until_s`."""
        total = 0.0
        before_s = 0.0
        for index, sample in enumerate(self.samples):
            next_s = self.samples[index + 1].at_s if index + 1 < len(self.samples) else until_s
            total += sample.instances * max(0.0, min(next_s, until_s) - before_s)
            before_s = min(next_s, until_s)
        return total


def lag_quantile(lags: Mapping[str, Mapping[float, float]], share: float) -> float | None:
    """The upper edge of the bucket in which the quantile of all tokens' lag lies; None without tokens."""
    total: Counter[float] = Counter()
    for buckets in lags.values():
        total.update(buckets)
    count = total.get(float("inf"), 0.0)
    if not count:
        return None
    return min(edge for edge, cumulative in total.items() if cumulative >= share * count)
