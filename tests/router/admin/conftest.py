"""The real gateway, its data port closed and its core on a clock that the test moves, and the admin listener served over it."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp.test_utils import TestServer

from multislo_api.fleet import InstanceList
from multislo_perf.latency import LatencyModel
from multislo_router.core.config import CoreConfig, EngineLimits, Overload, TierConfig
from multislo_router.core.decisions import Place
from multislo_router.core.events import (
    Event,
    InstanceFailed,
    InstanceReported,
    Outcome,
    RequestArrived,
    RequestEnded,
    TokensReceived,
)
from multislo_router.shell.admin import Admin
from multislo_router.shell.gateway import Gateway
from multislo_router.shell.settings import ShellSettings

LATENCY = LatencyModel(
    fixed_s=0.0005,
    weights_s=0.004,
    weights_per_token_s=1e-6,
    gemm_s=0.0005,
    gemm_per_token_s=2e-5,
    per_decode_s=1e-5,
    per_kv_token_s=3e-9,
    per_chunk_token_s=1e-7,
    per_attention_pair_s=1e-10,
)
TIERS = (
    TierConfig("realtime", 0.3, 0.02, Overload.REJECT),
    TierConfig("interactive", 0.5, 0.05),
    TierConfig("batch", 1.0, 0.1, Overload.BEST_EFFORT),
)


@dataclass
class Story:
    """Tells the gateway's core what its clients and engines would do."""

    gateway: Gateway = field(
        default_factory=lambda: Gateway(
            CoreConfig(TIERS, "interactive", LATENCY, EngineLimits(kv_tokens_max=100_000)),
            ShellSettings(served_names=("llama",)),
        )
    )
    now: float = field(default_factory=time.monotonic)
    requests: int = 0

    def clock(self) -> float:
        return self.now

    def handle(self, event: Event) -> None:
        self.gateway.tell(event)
        self.gateway.core.check()

    def serve(self, tier: str, *, tokens: int = 20, late: bool = False) -> None:
        """A whole request from its arrival to its last token."""
        request = self.ask(tier)
        tpot_s = self.gateway.core.tier_by_name[tier].tpot_s
        self.now += 2.0 if late else 0.05
        for _ in range(tokens):
            self.handle(TokensReceived(self.now, request))
            self.now += tpot_s / 2
        self.handle(RequestEnded(self.now, request, Outcome.COMPLETED))

    def ask(self, tier: str, *, prompt_tokens: int = 400) -> int:
        """A request arrives, and is under way or held afterwards; its number."""
        self.requests += 1
        self.handle(RequestArrived(self.now, self.requests, prompt_tokens, 200, tier))
        return self.requests


FLEET = InstanceList.model_validate(
    {
        "instances": [
            {"id": "realtime-0", "url": "http://127.0.0.1:8100", "tier": "realtime"},
            {"id": "interactive-0", "url": "http://127.0.0.1:8110", "tier": "interactive"},
            {"id": "interactive-1", "url": "http://127.0.0.1:8111", "tier": "interactive"},
            {"id": "interactive-2", "url": "http://127.0.0.1:8112", "tier": "interactive", "state": "starting"},
            {"id": "batch-0", "url": "http://127.0.0.1:8120", "tier": "batch"},
            {"id": "batch-1", "url": "http://127.0.0.1:8121", "tier": "batch", "state": "draining"},
            {"id": "batch-2", "url": "http://127.0.0.1:8122", "tier": "batch"},
            {"id": "spare-0", "url": "http://127.0.0.1:8130", "tier": None},
        ]
    }
)


@pytest.fixture
def story() -> Story:
    """A router that has just started."""
    return Story()


@pytest.fixture
def busy(story: Story) -> Story:
    """A router with a day's work behind it and some before it: instances in every state, requests met, missed and under way."""
    story.gateway.set_fleet(FLEET)
    story.now = time.monotonic()
    for tier in ("realtime", "interactive", "batch"):
        for n in range(12):
            story.serve(tier, late=tier == "interactive" and n == 5)
    for _ in range(6):
        for tier in ("realtime", "interactive", "batch"):
            request = story.ask(tier)
            if any(isinstance(d, Place) and d.request == request for _, d in story.gateway.recent_decisions):
                story.handle(TokensReceived(story.now + 0.02, request))
    story.handle(InstanceReported(story.now, "realtime-0", running=6, waiting=0, kv_tokens=2_500))
    story.handle(InstanceFailed(story.now, "batch-2"))
    return story


@pytest.fixture
async def served(busy: Story) -> AsyncIterator[TestServer]:
    """The admin listener of the busy router, on a real socket."""
    async with TestServer(
        Admin(busy.gateway, model="llama", placement="Pack", clock=busy.clock).application()
    ) as server:
        yield server


@pytest.fixture
async def fresh(story: Story) -> AsyncIterator[TestServer]:
    """The admin listener of a router without a fleet."""
    async with TestServer(
        Admin(story.gateway, model="llama", placement="Pack", clock=story.clock).application()
    ) as server:
        yield server
