"""What engines with `--scheduling-policy priority` are told, by one router and by several."""

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from multislo_router.core.config import EngineLimits
from multislo_router.core.events import Scheduler
from multislo_router.shell import engine, exchange, fleet, gateway

INT64_MAX = 2**63 - 1
"""vLLM takes no more; others read JSON's numbers as doubles, which are exact up to 2^53."""


async def priorities(kit: Any, *tiers: str) -> list[int]:
    """As one router's engine gets them, of requests that are sent now."""
    core = replace(kit.CORE, engine=EngineLimits(400_000, scheduler=Scheduler.PRIORITY))
    stage = await kit.stage(core=core)
    client = await stage.client()
    for tier in tiers:
        await client.ask(kit.CHAT, headers=f"x-slo-tier: {tier}\r\n")
    return [asked.json["priority"] for asked in stage.engines[0].asked]


async def test_the_earlier_deadline_has_the_lower_priority(kit: Any) -> None:
    before = time.time()
    realtime, interactive, batch = await priorities(kit, "realtime", "interactive", "batch")

    assert realtime < interactive < batch < 2**53 < INT64_MAX
    assert 1000 * before + 200 <= realtime <= 1000 * time.time() + 400
    assert batch - realtime >= 19_000


@pytest.mark.parametrize("uptime_s", [-40 * 86_400.0, 40 * 86_400.0])
async def test_routers_on_nodes_that_booted_at_other_times_say_the_same(
    kit: Any, monkeypatch: pytest.MonkeyPatch, uptime_s: float
) -> None:
    (here,) = await priorities(kit, "interactive")
    other_clock = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + uptime_s)
    with monkeypatch.context() as elsewhere:
        for module in (engine, exchange, fleet, gateway):
            elsewhere.setattr(module, "time", other_clock)
        (there,) = await priorities(kit, "interactive")

    assert 0 <= there - here < 60_000
