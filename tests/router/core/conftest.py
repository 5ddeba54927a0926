"""A small fleet before the core, for stories: what happens is one call, and what the core decided comes back."""

from collections.abc import Callable

import pytest
from h200_law import LAW

from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.config import CoreConfig, EngineLimits, Overload, Placement, TierConfig
from multislo_router.core.machine import RouterCore
from multislo_router.core.status import InstanceStatus, TierStatus


class SmallFleet:
    """Instances a, b, c... with the given homes. The tiers: tight (150 ms, 20 ms), middle (300 ms, 50 ms), loose (1 s, 100 ms)."""

    def __init__(
        self,
        *homes: str | None,
        placement: Placement = Placement.PACK,
        scheduler: e.Scheduler = e.Scheduler.FCFS,
        overload: Overload = Overload.QUEUE,
        kv_tokens_max: int = 400_000,
        seqs_max: int = 64,
        length_max: int | None = None,
        pending_max: int = 100,
    ) -> None:
        slos = (("tight", 0.15, 0.02, 512), ("middle", 0.3, 0.05, 1024), ("loose", 1.0, 0.1, 2048))
        self.core = RouterCore(
            CoreConfig(
                tiers=tuple(TierConfig(name, ttft, tpot, overload, batch) for name, ttft, tpot, batch in slos),
                default_tier="middle",
                latency=LAW,
                engine=EngineLimits(kv_tokens_max, seqs_max, scheduler),
                placement=placement,
                length_max=length_max,
                pending_max=pending_max,
            )
        )
        self.now = 0.0
        self.arrivals = 0
        self.specs = {
            name: e.InstanceSpec(name, home, e.InstanceState.READY)
            for name, home in zip("abcdefgh"[: len(homes)], homes, strict=True)
        }
        self.tell_fleet()

    def send(self, event: e.Event) -> list[d.Decision]:
        made = list(self.core.handle(event))
        self.core.check()
        return made

    def tell_fleet(self) -> list[d.Decision]:
        return self.send(e.FleetChanged(self.now, list(self.specs.values())))

    def change(self, name: str, tier: str | None, state: e.InstanceState, epoch: int = 0) -> list[d.Decision]:
        self.specs[name] = e.InstanceSpec(name, tier, state, epoch=epoch)
        return self.tell_fleet()

    def arrive(self, tier: str | None = None, prompt_tokens: int = 100, **terms) -> d.Decision:
        """One more request; the first is number 1."""
        self.arrivals += 1
        (made,) = self.send(e.RequestArrived(self.now, self.arrivals, prompt_tokens, tier=tier, **terms))
        return made

    def tokens(self, request: int, tokens: int = 1) -> list[d.Decision]:
        return self.send(e.TokensReceived(self.now, request, tokens))

    def end(self, request: int, outcome: e.Outcome = e.Outcome.COMPLETED, tokens: int = 0) -> list[d.Decision]:
        return self.send(e.RequestEnded(self.now, request, outcome, tokens))

    def wait(self, seconds: float) -> list[d.Decision]:
        """Time passes, with a tick whenever the core asked for one."""
        until = self.now + seconds
        made = []
        while self.core.wake_at is not None and self.core.wake_at <= until:
            self.now = max(self.now, self.core.wake_at)
            made += self.send(e.Tick(self.now))
        self.now = until
        return made

    def tier(self, name: str) -> TierStatus:
        (found,) = [tier for tier in self.core.status(self.now).tiers if tier.name == name]
        return found

    def instance(self, name: str) -> InstanceStatus:
        (found,) = [instance for instance in self.core.status(self.now).instances if instance.id == name]
        return found


@pytest.fixture
def small_fleet() -> Callable[..., SmallFleet]:
    return SmallFleet
