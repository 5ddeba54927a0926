"""An exception in the middle of an event, wherever in the core it is raised: the books are made anew from the requests, and the core goes
on as if nothing had been."""

from pathlib import Path

import pytest
from faults import Fault, Injected
from h200_law import LAW
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import multislo_router.core
from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.config import CoreConfig, EngineLimits, Overload, TierConfig
from multislo_router.core.machine import RouterCore
from multislo_router.core.request import Stage

CORE = Path(multislo_router.core.__file__).parent
TIERS = (
    TierConfig("tight", 0.15, 0.02, Overload.REJECT, 512),
    TierConfig("middle", 0.3, 0.05, Overload.QUEUE, 1024),
    TierConfig("loose", 1.0, 0.1, Overload.BEST_EFFORT, 2048),
)


class Router:
    """The core, and the least that a shell does: it sends what is placed, and after an exception ends what it never sent."""

    def __init__(self, scheduler: e.Scheduler, number: int = -1) -> None:
        self.fault = Fault(number, CORE)
        self.core = RouterCore(CoreConfig(TIERS, "middle", LAW, EngineLimits(20_000, 64, scheduler)))
        self.sent: set[int] = set()
        self.waiting: set[int] = set()
        self.failures = 0
        self.now = 50.0

    def tell(self, event: e.Event) -> None:
        if isinstance(event, e.RequestArrived):
            self.waiting.add(event.request)
        if isinstance(event, e.RequestEnded):
            self.sent.discard(event.request)
            self.waiting.discard(event.request)
        if isinstance(event, e.SendFailed):
            self.sent.discard(event.request)
            self.waiting.add(event.request)
        try:
            with self.fault:
                made = self.core.handle(event)
        except Injected:
            self.failures += 1
            self.core.recover(self.now)
            self.core.check()
            self.end_what_is_nowhere()
            return
        self.core.check()
        for decision in made:
            if isinstance(decision, d.Place):
                self.waiting.discard(decision.request)
                self.sent.add(decision.request)
            elif isinstance(decision, d.Refuse):
                self.waiting.discard(decision.request)

    def end_what_is_nowhere(self) -> None:
        for id in sorted(self.waiting):
            if self.core.stage_of(id) is not Stage.HELD:
                self.waiting.discard(id)
        for id in sorted(self.core.requests.keys() - self.sent - self.waiting):
            self.tell(e.RequestEnded(self.now, id, e.Outcome.ROUTER_FAILED))
        for id in sorted(self.sent):
            assert self.core.stage_of(id) in (Stage.PREFILL, Stage.DECODE), "what runs is still booked"


def a_busy_minute(router: Router) -> None:
    """Arrivals, tokens, ends, failures, a fleet that changes, and a queue."""
    tell = router.tell
    specs = [e.InstanceSpec(name, tier, e.InstanceState.READY) for name, tier in (("a", "tight"), ("b", "middle"))]
    tell(e.FleetChanged(router.now, specs))
    for id in range(14):
        router.now += 0.004
        tell(e.RequestArrived(router.now, id, 300 + 250 * id, 20, TIERS[id % 3].name, streaming=id % 4 != 0))
    for _ in range(4):
        router.now += 0.03
        for id in sorted(router.sent):
            if id % 4:
                tell(e.TokensReceived(router.now, id))
    for id in sorted(router.sent)[:2]:
        tell(e.SendFailed(router.now, id))
    tell(e.InstanceFailed(router.now, "a"))
    tell(e.InstanceReported(router.now, "b", 3, 0, 900))
    for id in sorted(router.sent)[-2:]:
        tell(e.PromptMeasured(router.now, id, 777))
        tell(e.RequestEnded(router.now, id, e.Outcome.COMPLETED, 5))
    specs = [e.InstanceSpec("b", "loose", e.InstanceState.READY), e.InstanceSpec("c", None, e.InstanceState.READY)]
    tell(e.FleetChanged(router.now, specs))
    tell(e.InstanceRevived(router.now, "a"))
    for _ in range(3):
        router.now += 0.2
        tell(e.Tick(router.now))


def the_end_of_it(router: Router) -> None:
    for _ in range(200):
        for id in sorted(router.sent):
            router.tell(e.RequestEnded(router.now, id, e.Outcome.COMPLETED, 3))
        router.now += 0.2
        router.tell(e.Tick(router.now))
        if not router.core.requests:
            return
    raise AssertionError(f"waiting for ever: {router.core.requests}")


@pytest.mark.parametrize("scheduler", list(e.Scheduler))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 12_000))
def test_an_exception_anywhere_in_the_core_costs_one_event_and_not_the_books(
    scheduler: e.Scheduler, number: int
) -> None:
    router = Router(scheduler, number)
    a_busy_minute(router)
    the_end_of_it(router)

    assert router.failures == (router.fault.at is not None)
    assert not router.sent
    assert not router.waiting
    status = router.core.status(router.now)
    for tier in status.tiers:
        assert (tier.pending, tier.in_flight) == (0, 0)
        assert tier.arrived == sum(tier.outcomes.values()) + sum(tier.refusals.values())
    for bookings in [instance.bookings for instance in router.core.instances.values()]:
        assert (bookings.kv_reserved, bookings.kv_decode_tokens, bookings.requests) == (0, 0, 0)


def test_a_request_that_nobody_broke_keeps_its_place_through_a_recovery() -> None:
    router = Router(e.Scheduler.FCFS)
    router.tell(e.FleetChanged(50.0, [e.InstanceSpec("a", "middle", e.InstanceState.READY)]))
    for id in range(3):
        router.tell(e.RequestArrived(50.0, id, 500, 20))
    router.tell(e.TokensReceived(50.1, 0))
    before = router.core.status(50.1)

    router.core.recover(50.1)

    after = router.core.status(50.1)
    assert [(i.requests, i.prefills, i.decodes, i.kv_tokens) for i in after.instances] == [
        (i.requests, i.prefills, i.decodes, i.kv_tokens) for i in before.instances
    ]
    assert [t.in_flight for t in after.tiers] == [t.in_flight for t in before.tiers]
