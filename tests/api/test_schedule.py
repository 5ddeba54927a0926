"""The schedule's floors: when they hold."""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from multislo_api.kind import ScheduleEntry
from multislo_api.schedule import floors

BERLIN = ZoneInfo("Europe/Berlin")


def entry(**changes: Any) -> ScheduleEntry:
    return ScheduleEntry.model_validate(
        {"cron": "0 8 * * MON-FRI", "duration": "2h", "timezone": "Europe/Berlin", "tier": "chat", "min": 3} | changes
    )


@pytest.mark.parametrize(
    ("at", "holds"),
    [
        (datetime(2026, 11, 20, 7, 59, 59, 999999, BERLIN), False),
        (datetime(2026, 11, 20, 8, 0, 0, 0, BERLIN), True),
        (datetime(2026, 11, 20, 8, 0, 0, 1, BERLIN), True),
        (datetime(2026, 11, 20, 9, 59, 59, 0, BERLIN), True),
        (datetime(2026, 11, 20, 10, 0, 0, 0, BERLIN), False),
        (datetime(2026, 11, 21, 8, 30, 0, 0, BERLIN), False),  # A Saturday.
        (datetime(2026, 7, 20, 6, 30, 0, 0, UTC), True),  # 8:30 in Berlin's summer.
        (datetime(2026, 11, 20, 6, 30, 0, 0, UTC), False),  # 7:30 in its winter.
    ],
)
def test_a_floor_holds_from_its_time_for_its_duration(at: datetime, holds: bool) -> None:
    assert floors([entry()], at) == ({"chat": 3} if holds else {})


def test_the_highest_of_several_floors_holds() -> None:
    at = datetime(2026, 11, 20, 9, 0, tzinfo=BERLIN)

    assert floors([entry(min=2), entry(min=5), entry(tier="batch", min=1), entry(cron="0 20 * * *", min=9)], at) == {
        "chat": 5,
        "batch": 1,
    }


def test_a_floor_holds_through_the_night_the_clocks_change() -> None:
    night = entry(cron="0 23 * * *", duration="8h")

    # 28 March 2027: the clock jumps from 2 to 3, so eight hours after 23:00 it is 8:00.
    assert floors([night], datetime(2027, 3, 28, 7, 59, tzinfo=BERLIN)) == {"chat": 3}
    assert floors([night], datetime(2027, 3, 28, 8, 0, tzinfo=BERLIN)) == {}
