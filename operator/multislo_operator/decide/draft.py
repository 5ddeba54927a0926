"""The fleet while it is being planned: every action is carried out on this copy at once, so that what follows sees its effect and a
second look at the same fleet finds nothing left to do. Used by `scale` alone."""

from dataclasses import dataclass

from multislo_operator.decide.fleet import FleetSpec, InstanceObserved, InstanceState
from multislo_operator.decide.plan import (
    Action,
    CallOffDrain,
    Convert,
    Drain,
    Hold,
    HoldCause,
    Start,
    Stop,
    Terms,
)

STUCK_STARTUPS = 3.0
STUCK_EXTRA_S = 60.0
"""An instance that starts for longer than three start-up times and a minute does not come up (no accelerator, a wrong flag)."""


@dataclass(slots=True)
class Seat:
    """One instance of the draft: `InstanceObserved`, changeable."""

    id: str
    tier: str | None
    state: InstanceState
    load: float
    load_now: float
    calibration: float
    requests: int | None
    since_s: float
    ever_ready: bool
    batch_tokens: int

    def seen(self) -> InstanceObserved:
        return InstanceObserved(**{name: getattr(self, name) for name in Seat.__slots__})


def _seat(seen: InstanceObserved) -> Seat:
    return Seat(**{name: getattr(seen, name) for name in Seat.__slots__})


class Draft:
    def __init__(self, spec: FleetSpec, instances: list[InstanceObserved]) -> None:
        self.spec = spec
        self.seats = [_seat(seen) for seen in sorted(instances, key=lambda seen: seen.id)]
        self.actions: list[Action] = []
        self.holds: list[Hold] = []

    def seen(self) -> list[InstanceObserved]:
        """The fleet as an actuator would see it, had it done all actions so far."""
        return [seat.seen() for seat in self.seats]

    # -- what there is -------------------------------------------------------------------------------------------------

    def of(self, tier: str | None, *states: InstanceState) -> list[Seat]:
        return [seat for seat in self.seats if seat.tier == tier and seat.state in states]

    def ready(self, tier: str | None) -> list[Seat]:
        return self.of(tier, InstanceState.READY)

    def draining(self) -> list[Seat]:
        return [seat for seat in self.seats if seat.state is InstanceState.DRAINING]

    def live(self, tier: str | None) -> int:
        """Supply: ready ones, those that start, and those that have never come up (a second one would not either)."""
        return sum(1 for seat in self.seats if seat.tier == tier and _is_supply(seat))

    def used(self) -> int:
        """Instances that hold accelerators."""
        return len(self.seats)

    def has_place(self) -> bool:
        return self.spec.instances_max is None or self.used() < self.spec.instances_max

    def is_stuck(self, seat: Seat) -> bool:
        if seat.state is InstanceState.FAILED:
            return not seat.ever_ready
        limit = STUCK_STARTUPS * self.spec.startup_s + STUCK_EXTRA_S
        return seat.state is InstanceState.STARTING and seat.since_s > limit

    def starting(self) -> list[Seat]:
        """Those that will come: what does not come up keeps nothing waiting."""
        return [seat for seat in self.seats if seat.state is InstanceState.STARTING and not self.is_stuck(seat)]

    # -- what is done --------------------------------------------------------------------------------------------------

    def start(self, tier: str | None, reason: str, terms: Terms) -> None:
        batch_tokens = next((t.batch_tokens for t in self.spec.tiers if t.name == tier), 0)
        name = f"(new {sum(isinstance(action, Start) for action in self.actions)})"
        new = InstanceObserved(name, tier, InstanceState.STARTING, ever_ready=False, batch_tokens=batch_tokens)
        self.seats.append(_seat(new))
        self.actions.append(Start(tier, reason, terms))

    def convert(self, seat: Seat, tier: str | None, reason: str, terms: Terms) -> None:
        seat.tier = tier
        seat.since_s = 0.0
        self.actions.append(Convert(seat.id, tier, reason, terms))

    def drain(self, seat: Seat, reason: str, terms: Terms) -> None:
        seat.state = InstanceState.DRAINING
        seat.since_s = 0.0
        seat.requests = None
        self.actions.append(Drain(seat.id, reason, terms))

    def call_off(self, seat: Seat, reason: str, terms: Terms) -> None:
        seat.state = InstanceState.READY
        seat.since_s = 0.0
        self.actions.append(CallOffDrain(seat.id, reason, terms))

    def stop(self, seat: Seat, reason: str, terms: Terms) -> None:
        self.seats.remove(seat)
        self.actions.append(Stop(seat.id, reason, terms))

    def hold(self, cause: HoldCause, reason: str, tier: str | None = None) -> None:
        self.holds.append(Hold(cause, reason, tier))


def _is_supply(seat: Seat) -> bool:
    if seat.state is InstanceState.FAILED:
        return not seat.ever_ready
    return seat.state is not InstanceState.DRAINING


def least_loaded(seat: Seat) -> tuple[bool, float, str]:
    """Sort key: empty ones first."""
    return seat.requests != 0, seat.load, seat.id
