"""Who decides how many instances a simulated fleet has: the protocol that the simulator asks. `ours` is the production law, `rivals`
are the published ones."""

from collections.abc import Sequence
from typing import Protocol

from multislo_operator.decide.fleet import FleetObserved
from multislo_operator.decide.plan import Action
from multislo_router.core.status import CoreStatus


class Scaler(Protocol):
    """One for each run: it may remember. The simulator asks every `every_s` seconds and carries the actions out at once; a started
    instance serves after its start-up time, a drained one goes on with what it holds until a Stop."""

    every_s: float

    def actions(self, now: float, observed: FleetObserved, status: CoreStatus) -> Sequence[Action]:
        """What is to be done at `now`. `observed` is what the operator would see, `status` all that the router tells."""
        ...
