"""A real core behind the seam where the gateway stands, on a clock that the test moves, and the admin listener served over it."""

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp.test_utils import TestServer
from multislo_api.fleet import InstanceList
from multislo_perf.latency import LatencyModel
from multislo_router.core.config import CoreConfig, EngineLimits, Overload, TierConfig
from multislo_router.core.decisions import Decision, Place
from multislo_router.core.events import (
    Event,
    FleetChanged,
    InstanceFailed,
    InstanceReported,
    InstanceSpec,
    InstanceState,
    Outcome,
    RequestArrived,
    RequestEnded,
    TokensReceived,
)
from multislo_router.core.machine import RouterCore
from multislo_router.core.status import Histogram
from multislo_router.shell.admin import Admin
from multislo_router.shell.metrics import DECISION_EDGES

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
class Seam:
    """Stands where the gateway stands: the real core, no sockets."""

    core: RouterCore = field(
        default_factory=lambda: RouterCore(
            CoreConfig(TIERS, "interactive", LATENCY, EngineLimits(kv_tokens_max=100_000))
        )
    )
    now: float = 1000.0
    closing: bool = False
    decision_seconds: Histogram = field(default_factory=lambda: Histogram(DECISION_EDGES))
    recent_decisions: deque[tuple[float, Decision]] = field(default_factory=lambda: deque(maxlen=1000))
    urls: dict[str, str] = field(default_factory=dict)
    requests: int = 0

    def clock(self) -> float:
        return self.now

    def handle(self, event: Event) -> list[Decision]:
        made = list(self.core.handle(event))
        self.core.check()
        self.decision_seconds.observe(2e-5)
        self.recent_decisions.extend((1.7e9 + self.now, decision) for decision in made)
        return made

    def set_fleet(self, fleet: InstanceList) -> None:
        self.urls = {entry.id: entry.url for entry in fleet.instances}
        specs = [
            InstanceSpec(e.id, e.tier, InstanceState(e.state), e.batch_tokens, epoch=e.epoch) for e in fleet.instances
        ]
        self.handle(FleetChanged(self.now, specs))

    def instance_url(self, id: str) -> str:
        return self.urls[id]

    def serve(self, tier: str, *, tokens: int = 20, late: bool = False) -> None:
        """A whole request from its arrival to its last token."""
        request = self.ask(tier)
        tpot_s = self.core.tier_by_name[tier].tpot_s
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
def seam() -> Seam:
    """A router that has just started."""
    return Seam()


@pytest.fixture
def busy(seam: Seam) -> Seam:
    """A router with a day's work behind it and some before it: instances in every state, requests met, missed and under way."""
    seam.set_fleet(FLEET)
    for tier in ("realtime", "interactive", "batch"):
        for n in range(12):
            seam.serve(tier, late=tier == "interactive" and n == 5)
    for _ in range(6):
        for tier in ("realtime", "interactive", "batch"):
            request = seam.ask(tier)
            if any(isinstance(d, Place) and d.request == request for _, d in seam.recent_decisions):
                seam.handle(TokensReceived(seam.now + 0.02, request))
    seam.handle(InstanceReported(seam.now, "realtime-0", running=6, waiting=0, kv_tokens=2_500))
    seam.handle(InstanceFailed(seam.now, "batch-2"))
    return seam


@pytest.fixture
async def served(busy: Seam) -> AsyncIterator[TestServer]:
    """The admin listener of the busy router, on a real socket."""
    async with TestServer(Admin(busy, model="llama", placement="Pack", clock=busy.clock).application()) as server:
        yield server


@pytest.fixture
async def fresh(seam: Seam) -> AsyncIterator[TestServer]:
    """The admin listener of a router without a fleet."""
    async with TestServer(Admin(seam, model="llama", placement="Pack", clock=seam.clock).application()) as server:
        yield server
