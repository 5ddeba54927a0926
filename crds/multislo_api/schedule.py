"""The minima that a manifest's schedule sets for its tiers at a given time. Pure arithmetic on the calendar: the caller reads the
clock. Called by the operator's actuators before they ask for a plan.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

from multislo_api.kind import ScheduleEntry


def floors(schedule: Sequence[ScheduleEntry], at: datetime) -> dict[str, int]:
    """The least instances of each tier that has a floor at `at` (aware); the highest where several entries hold."""
    found: dict[str, int] = {}
    for entry in schedule:
        if holds(entry, at):
            found[entry.tier] = max(entry.min, found.get(entry.tier, 0))
    return found


def holds(entry: ScheduleEntry, at: datetime) -> bool:
    """Whether an entry's floor holds at `at`: from each time of its cron expression, for its duration."""
    local = at.astimezone(ZoneInfo(entry.timezone))
    # Backwards from the next whole minute, because the iterator leaves its own start out and looks at whole minutes.
    start = local.replace(second=0, microsecond=0) + timedelta(minutes=1)
    begun = next(CronSim(entry.cron, start, reverse=True), None)
    if begun is None:
        return False
    # In UTC: between two times of one zone Python subtracts what the clocks on the wall show, wrong when they change.
    return (at.astimezone(UTC) - begun.astimezone(UTC)).total_seconds() < entry.duration_s
