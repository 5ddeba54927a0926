"""The protocol by which a simulated fleet asks how many instances it should have. `ours` is the production law, `rivals` are the
published ones."""

from collections.abc import Sequence
from typing import Protocol

from multislo_operator.decide.fleet import FleetObserved
from multislo_operator.decide.plan import Action
from multislo_router.core.status import CoreStatus


class Scaler(Protocol):
    """One per run; it may have state. The simulator asks every `every_s` seconds and carries the actions out at once. A started
    instance serves after its start-up time. A draining one finishes its requests until a Stop."""

    every_s: float

    def actions(self, now: float, observed: FleetObserved, status: CoreStatus) -> Sequence[Action]:
        """What is to be done at `now`. `observed` is what the operator would see, `status` all that the router tells."""
        ...
