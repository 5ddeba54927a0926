"""An iteration told in one event says the same as its tokens told one by one."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multislo_router.core import events as e
from multislo_router.core.instance import Instance

STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.012, 0.02, 0.031, 0.08]),  # how long the iteration took
        st.sets(st.integers(1, 8), max_size=4),  # who was left out of it
        st.sampled_from(["", "", "arrive", "end", "look", "first"]),  # what happened beside
        st.integers(1, 8),
    ),
    min_size=1,
    max_size=40,
)


def booked(instance: Instance) -> dict[int, tuple[int, int, bool]]:
    instance.refresh(instance.refreshed_at)
    return {r.id: (r.tokens, r.tokens_met, r.lost) for r in instance.decodes.values()}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_an_iteration_in_one_event_books_what_its_tokens_book(small_fleet, steps: list) -> None:
    whole, single = small_fleet("tight"), small_fleet("tight")
    fleets = (whole, single)
    decoding: set[int] = set()
    for gap_s, left_out, beside, number in steps:
        for fleet in fleets:
            fleet.wait(gap_s)
        took_part = decoding - left_out
        if took_part:
            whole.send(e.IterationSeen(whole.now, "a", [*sorted(left_out)]))
            for id in sorted(took_part):
                single.tokens(id)
        for fleet in fleets:
            if beside == "arrive" and fleet.arrivals < 8:
                tier = ("tight", "middle", "loose")[number % 3]
                fleet.send(e.RequestArrived(fleet.now, fleet.arrivals + 1, 100, tier=tier))
                fleet.arrivals += 1
            elif beside == "first" and number in fleet.core.requests and number not in decoding:
                fleet.tokens(number)
            elif beside == "end" and number in took_part:
                fleet.end(number)
            elif beside == "look":
                fleet.core.status(fleet.now)
        started = beside == "first" and number in whole.core.requests and whole.core.requests[number].tokens
        decoding = {id for id in decoding | ({number} if started else set()) if id in whole.core.requests}
        one, other = (fleet.core.instances["a"] for fleet in fleets)
        assert one.kv_decode_tokens == other.kv_decode_tokens
        assert one.tpot_tightest_s == other.tpot_tightest_s
    one, other = (fleet.core.instances["a"] for fleet in fleets)
    assert booked(one) == booked(other)
    assert one.due_least == pytest.approx(other.due_least)
    assert [(t.tokens_met, t.tokens_missed) for t in whole.core.status(whole.now).tiers] == [
        (t.tokens_met, t.tokens_missed) for t in single.core.status(single.now).tiers
    ]
