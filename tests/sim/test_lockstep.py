"""An iteration told in one event says the same as its tokens told one by one."""

import pytest
from h200_law import LAW
from hypothesis import example, given, settings
from hypothesis import strategies as st

from multislo_router.core import events as e
from multislo_router.core.config import CoreConfig, EngineLimits, TierConfig
from multislo_router.core.instance import Instance
from multislo_router.core.machine import RouterCore
from multislo_sim.lockstep import IterationSeen, LockstepCore

STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.012, 0.02, 0.031, 0.08]),  # how long the iteration took
        st.sets(st.integers(1, 8), max_size=4),  # what was left out of it
        st.sampled_from(["", "", "arrive", "end", "look", "first"]),  # what happened beside
        st.integers(1, 8),
    ),
    min_size=1,
    max_size=40,
)
TIERS = (TierConfig("tight", 0.15, 0.02), TierConfig("middle", 0.3, 0.05), TierConfig("loose", 1.0, 0.1))
CONFIG = CoreConfig(TIERS, "middle", LAW, EngineLimits(400_000, 64))


SECOND_MISSED = [
    (0.012, set(), "arrive", 3),
    *[(0.012, set(), "", 1)] * 9,
    (0.031, set(), "", 1),
    (0.012, set(), "first", 1),
]
"""Its first token is a millisecond late; its second deadline is missed while it decodes."""


def booked(instance: Instance) -> dict[int, tuple[int, int, bool]]:
    instance.refresh(instance.refreshed_at)
    return {r.id: (r.tokens, r.tokens_met, r.lost) for r in instance.bookings.decodes.values()}


@settings(max_examples=300)
@given(STEPS)
@example([*SECOND_MISSED, *[(0.08, set(), "", 1)] * 5])
def test_an_iteration_in_one_event_books_what_its_tokens_book(steps) -> None:
    whole, single = LockstepCore(CONFIG), RouterCore(CONFIG)
    now, arrivals = 1.0, 0
    decoding: set[int] = set()

    def tell(event: e.Event) -> None:
        for core in (whole, single):
            core.handle(event)
            core.check()

    tell(e.FleetChanged(now, [e.InstanceSpec("a", "tight", e.InstanceState.READY)]))
    for gap_s, left_out, beside, number in steps:
        now += gap_s
        tell(e.Tick(now))
        took_part = decoding - left_out
        if took_part:
            whole.iteration_seen(IterationSeen(now, "a", sorted(left_out)))
            for id in sorted(took_part):
                single.handle(e.TokensReceived(now, id))
        if beside == "arrive" and arrivals < 8:
            arrivals += 1
            tell(e.RequestArrived(now, arrivals, 100, tier=TIERS[number % 3].name))
        elif beside == "first" and number in whole.places and number not in decoding:
            tell(e.TokensReceived(now, number))
            decoding.add(number)
        elif beside == "end" and number in took_part:
            tell(e.RequestEnded(now, number, e.Outcome.COMPLETED))
        elif beside == "look":
            whole.status(now)
            single.status(now)
        decoding &= whole.requests.keys()
        one, other = (core.instances["a"].bookings for core in (whole, single))
        assert one.kv_decode_tokens == other.kv_decode_tokens
        assert one.tpot_tightest_s == other.tpot_tightest_s
    one, other = (core.instances["a"] for core in (whole, single))
    assert booked(one) == booked(other)
    assert one.bookings.due_least == pytest.approx(other.bookings.due_least)
    assert [(t.tokens_met, t.tokens_missed) for t in whole.status(now).tiers] == [
        (t.tokens_met, t.tokens_missed) for t in single.status(now).tiers
    ]
