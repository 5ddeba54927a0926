"""The fleet while it is being planned: every action is carried out on this copy at once, so that what follows sees its effect and a
second look at the same fleet finds nothing left to do. Used by `scale` and `goal`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

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
from multislo_operator.decide.tries import Tries, tries_now


class Draft:
    """`tier` None is the warm pool, everywhere."""

    def __init__(
        self, spec: FleetSpec, instances: Sequence[InstanceObserved], tries: Mapping[str | None, Tries], now: float
    ) -> None:
        self.spec = spec
        self.actions: list[Action] = []
        self.steps = 0
        """Done so far; a start that was called off makes two."""
        self.holds: list[Hold] = []
        self.tried_again = 0
        """Starts that only replace a failed one."""
        self._now = now
        self._started: dict[str, Start] = {}
        self._instances = {seen.id: seen for seen in sorted(instances, key=lambda seen: seen.id)}
        failing = {seen.tier for seen in instances if seen.has_failed_to_start(spec)}
        self._tries = tries_now(spec, tries, failing, now)

    # -- what there is -------------------------------------------------------------------------------------------------

    @property
    def instances(self) -> list[InstanceObserved]:
        """The fleet as an actuator would see it, had it done all actions so far."""
        return list(self._instances.values())

    @property
    def tries(self) -> Mapping[str | None, Tries]:
        return self._tries

    def of(self, tier: str | None, state: InstanceState) -> list[InstanceObserved]:
        return self._of(tier, lambda seen: seen.state is state)

    def ready(self, tier: str | None) -> list[InstanceObserved]:
        return self.of(tier, InstanceState.READY)

    def coming(self, tier: str | None) -> list[InstanceObserved]:
        """Those that start and are still expected; the latest first."""
        found = self._of(tier, lambda seen: seen.is_coming(self.spec))
        return sorted(found, key=lambda seen: (seen.since_s, seen.id))

    def failed_starts(self, tier: str | None) -> list[InstanceObserved]:
        """Those that have never been ready and are not expected any more; the longest first."""
        found = self._of(tier, lambda seen: seen.has_failed_to_start(self.spec))
        return sorted(found, key=lambda seen: (-seen.since_s, seen.id))

    def supply(self, tier: str | None) -> int:
        """Ready ones and those that come: what counts on the way up. On the way down only ready ones count."""
        return len(self.ready(tier)) + len(self.coming(tier))

    def held_back(self, tier: str | None) -> int:
        """How many are not started although they are wanted: so many starts have failed, and it is not time to try again."""
        tries = self._tries.get(tier)
        return len(self.failed_starts(tier)) + (tries.given_up if tries else 0)

    def lost(self, tier: str, count: int) -> int:
        """Of `count` instances that a tier shall have, those that it has not and that are held back."""
        return min(max(count - self.supply(tier), 0), self.held_back(tier))

    def draining(self) -> list[InstanceObserved]:
        return [seen for seen in self._instances.values() if seen.state is InstanceState.DRAINING]

    def starting(self) -> list[InstanceObserved]:
        """Those that come, in all tiers."""
        return [seen for seen in self._instances.values() if seen.is_coming(self.spec)]

    def used(self) -> int:
        """Instances that hold accelerators."""
        return len(self._instances)

    def has_place(self) -> bool:
        return self.spec.instances_max is None or self.used() < self.spec.instances_max

    def _of(self, tier: str | None, is_meant: Callable[[InstanceObserved], bool]) -> list[InstanceObserved]:
        return [seen for seen in self._instances.values() if seen.tier == tier and is_meant(seen)]

    # -- what is done --------------------------------------------------------------------------------------------------

    def start(self, tier: str | None, reason: str, terms: Terms) -> None:
        batch_tokens = next((t.batch_tokens for t in self.spec.tiers if t.name == tier), 0)
        name = f"(new {self.steps})"
        self._instances[name] = InstanceObserved(
            name, tier, InstanceState.STARTING, ever_ready=False, batch_tokens=batch_tokens
        )
        self._started[name] = Start(tier, reason, terms)
        self._do(self._started[name])

    def try_again(self, tier: str | None) -> bool:
        """Make room for a new try in the place of the one that has failed for longest, if it is time for that. What waits for a node is
        left waiting."""
        failed = [seen for seen in self.failed_starts(tier) if not seen.unplaced]
        tries = self._tries.get(tier)
        if not failed or tries is None or not tries.are_due(self.spec, self._now):
            return False
        seen = failed[0]
        self.stop(seen, f"has not come up in {seen.since_s:.0f} s; another is tried", {"since_s": seen.since_s})
        self._tries[tier] = tries.tried_again(self._now)
        self.tried_again += 1
        return True

    def give_up(self, seen: InstanceObserved, reason: str) -> None:
        """Stop one that has failed to start, with none in its place."""
        self.stop(seen, reason, {"since_s": seen.since_s})
        self._tries[seen.tier] = self._tries[seen.tier].given_up_more(self._now)

    def convert(self, seen: InstanceObserved, tier: str | None, reason: str, terms: Terms) -> None:
        self._change(seen, tier=tier, since_s=0.0)
        self._do(Convert(seen.id, tier, reason, terms))

    def drain(self, seen: InstanceObserved, reason: str, terms: Terms) -> None:
        self._change(seen, state=InstanceState.DRAINING, since_s=0.0, requests=None)
        self._do(Drain(seen.id, reason, terms))

    def call_off(self, seen: InstanceObserved, reason: str, terms: Terms) -> None:
        self._change(seen, state=InstanceState.READY, since_s=0.0)
        self._do(CallOffDrain(seen.id, reason, terms))

    def stop(self, seen: InstanceObserved, reason: str, terms: Terms) -> None:
        del self._instances[seen.id]
        if seen.id in self._started:
            self.actions.remove(self._started[seen.id])
            self.steps += 1
        else:
            self._do(Stop(seen.id, reason, terms))

    def hold(self, cause: HoldCause, reason: str, tier: str | None = None) -> None:
        self.holds.append(Hold(cause, reason, tier))

    def _do(self, action: Action) -> None:
        self.actions.append(action)
        self.steps += 1

    def _change(self, seen: InstanceObserved, **changes: object) -> None:
        self._instances[seen.id] = replace(self._instances[seen.id], **changes)  # type: ignore[arg-type]


def least_loaded(seen: InstanceObserved) -> tuple[bool, float, str]:
    """Sort key: empty ones first."""
    return seen.requests != 0, seen.load, seen.id
