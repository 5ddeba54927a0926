"""The compressed day: its curve, its bursts, and the mix of tiers within them."""

import pytest

from multislo_sim.workloads.day import Burst, Day, over_a_day
from multislo_sim.workloads.request import Request, WorkloadInvalid

MIX = [Request(0.0, 10, 5, f"{tpot_s}", 0.5, tpot_s) for tpot_s in (0.02, 0.1, 0.1, 0.1, 0.1)]


def test_a_day_rises_to_its_peak_and_ends_as_it_began():
    calm = Day(10.0, 1000.0, 0.2, ())
    assert calm.rate_at(0.0) == pytest.approx(2.0)
    assert calm.rate_at(500.0) == pytest.approx(10.0)
    assert calm.rate_at(1000.0) == pytest.approx(2.0)
    requests = over_a_day(MIX, calm, 1)
    assert len(requests) == pytest.approx(6000, rel=0.05)


def test_a_burst_has_more_and_turns_the_mix_round():
    day = Day(10.0, 1000.0, 1.0, (Burst(0.5, 200.0, 1.5, True),))
    requests = over_a_day(MIX, day, 1)
    within = [request for request in requests if 540.0 <= request.at_s < 700.0]
    before = [request for request in requests if request.at_s < 480.0]
    assert len(within) / 160.0 == pytest.approx(15.0, rel=0.1)
    assert sum(request.tpot_s == 0.02 for request in before) / len(before) == pytest.approx(0.2, abs=0.01)
    assert sum(request.tpot_s == 0.02 for request in within) / len(within) == pytest.approx(0.8, abs=0.04)


def test_the_same_seed_gives_the_same_day():
    day = Day(5.0, 300.0, 0.5, ())
    assert over_a_day(MIX, day, 7) == over_a_day(MIX, day, 7)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"peak": 0.0}, "peak"),
        ({"low": 1.5}, "low"),
        ({"bursts": (Burst(0.9, 300.0, 2.0, False),)}, "burst"),
        ({"bursts": (Burst(0.5, 100.0, 2.0, False), Burst(0.5, 100.0, 2.0, False))}, "burst"),
    ],
)
def test_a_day_that_cannot_be_is_refused_by_name(more, word):
    with pytest.raises(WorkloadInvalid, match=word):
        Day(**{"peak": 10.0, "duration_s": 1000.0, **more})
