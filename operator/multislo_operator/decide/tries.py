"""Starts that failed, and when they are tried again. An instance that does not come up is no capacity; while it is there, whoever runs it
(Kubernetes, `multislo up`) tries it again in its place. `decide` replaces it after a wait that doubles each time. Used by `draft`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from multislo_operator.decide.fleet import FAILED_EXTRA_S, FleetSpec

DOUBLINGS_MAX = 5
"""Of the wait: 48 minutes where an instance starts in a minute. Whoever mends the cause seldom waits longer than that for a new try, and
a tier that nothing helps costs thirty tries a day."""


@dataclass(frozen=True, slots=True)
class Tries:
    """A tier's failed starts."""

    since: float
    """When the present wait began."""
    failed: int = 0
    """Given up so far. Each doubles the wait."""
    given_up: int = 0
    """Stopped in this wait without another in their place: so many are not started before it is over."""

    def wait_s(self, spec: FleetSpec) -> float:
        return (spec.startup_s + FAILED_EXTRA_S) * (1 << min(self.failed, DOUBLINGS_MAX))

    def are_due(self, spec: FleetSpec, now: float) -> bool:
        return now - self.since >= self.wait_s(spec)

    def given_up_more(self, now: float) -> "Tries":
        """Several may be given up at once: that is one failure."""
        return Tries(now, self.failed + (now > self.since), self.given_up + 1)

    def tried_again(self, now: float) -> "Tries":
        return Tries(now, self.failed + 1, self.given_up)


def tries_now(
    spec: FleetSpec, tries: Mapping[str | None, Tries], failing: Collection[str | None], now: float
) -> dict[str | None, Tries]:
    """The tries of each tier (None: the warm pool) at `now`. `failing`: the tiers that have a failed start. Where there is none any more,
    they are forgotten after twice the wait."""
    answer = {}
    for tier in (*tries, *(tier for tier in failing if tier not in tries)):
        known = tries.get(tier, Tries(now))
        if tier not in failing and now - known.since > 2.0 * known.wait_s(spec):
            continue
        # The wait of those that were given up is over: the try that comes now has a wait of its own.
        answer[tier] = replace(known, since=now, given_up=0) if known.given_up and known.are_due(spec, now) else known
    return answer
