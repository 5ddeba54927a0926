"""Requests with several sequences: several prompts, or several answers (`n`) to one."""

from collections.abc import Callable

import pytest
from h200_law import LAW

from multislo_router.core import decisions as d
from multislo_router.core import events as e


def instance(fleet, name: str = "a"):
    return fleet.core.instances[name]


def tier(fleet, name: str = "middle"):
    return next(tier for tier in fleet.core.status(fleet.now).tiers if tier.name == name)


def test_each_of_n_answers_is_a_decode_and_the_prompt_is_prefilled_once(small_fleet: Callable) -> None:
    fleet = small_fleet("middle")
    fleet.arrive(prompt_tokens=1000, output_tokens_max=50, choices=8)
    there = instance(fleet)
    assert there.bookings.requests == 8
    assert sum(request.prompt_tokens for request in there.queue.row) == 1000
    assert there.bookings.kv_reserved == 1000 + 8 * 50

    fleet.now += 0.03
    fleet.send(e.TokensReceived(fleet.now, 1, sequence=3))

    assert fleet.instance("a").decodes == 8
    assert there.bookings.kv_reserved == 1000 + 8 * 50
    assert there.pace.iteration_s == pytest.approx(LAW.iteration_s(0, 0, 8, 8 * 1000 + 1))


def test_load_counts_every_answer_before_the_prompt_is_through(small_fleet: Callable) -> None:
    one, eight = small_fleet("tight"), small_fleet("tight")
    one.arrive("tight", choices=1)
    eight.arrive("tight", choices=8)
    assert eight.instance("a").load > one.instance("a").load
    assert eight.core.instances["a"].pace.steady_s == pytest.approx(LAW.iteration_s(0, 0, 8, 800))


def test_prompts_of_a_list_are_prefills_of_their_own(small_fleet: Callable) -> None:
    fleet = small_fleet("loose", length_max=8192)
    made = fleet.arrive("loose", prompt_tokens=20_000, output_tokens_max=10, prompts=(1000,) * 20)

    assert isinstance(made, d.Place)  # 20 prompts of 1,000, each far below the limit
    assert fleet.instance("a").prefills == 20
    assert made.ttft_predicted_s == pytest.approx(LAW.prefill_s(1000, 0, 2048, 0, 0) * 20, rel=0.5)

    for index in range(5):
        fleet.send(e.TokensReceived(fleet.now, 1, sequence=index))
    assert (fleet.instance("a").prefills, fleet.instance("a").decodes) == (15, 5)


def test_a_list_with_one_prompt_that_is_too_long_is_refused(small_fleet: Callable) -> None:
    fleet = small_fleet("loose", length_max=8192)
    made = fleet.arrive("loose", prompt_tokens=9000, output_tokens_max=100, prompts=(500, 8500))
    assert isinstance(made, d.Refuse)
    assert made.cause is d.Cause.TOO_LONG


def test_every_sequence_has_deadlines_of_its_own(small_fleet: Callable) -> None:
    fleet = small_fleet("middle")  # 300 ms, then 50 ms a token
    fleet.arrive(choices=2)
    fleet.now = 0.1
    for _ in range(4):
        fleet.send(e.TokensReceived(fleet.now, 1, sequence=0))
        fleet.now += 0.02
    fleet.now = 0.36  # the other's first token is late, whatever the first has got
    fleet.send(e.TokensReceived(fleet.now, 1, sequence=1))
    fleet.now = 0.54
    fleet.send(e.TokensReceived(fleet.now, 1, sequence=0))  # its fifth is due at 0.5
    fleet.end(1)

    assert (tier(fleet).tokens_met, tier(fleet).tokens_missed) == (4, 2)
    assert (tier(fleet).requests_met, tier(fleet).requests_missed) == (0, 1)


def test_time_per_output_token_is_that_of_a_sequence(small_fleet: Callable) -> None:
    fleet = small_fleet("middle")
    fleet.arrive(choices=8)
    fleet.now = 0.1
    for _ in range(11):
        for index in range(8):
            fleet.send(e.TokensReceived(fleet.now, 1, sequence=index))
        fleet.now += 0.02
    fleet.end(1)

    assert tier(fleet).recent.tpot_p50_s == pytest.approx(0.02)
    assert tier(fleet).tpot.sum == pytest.approx(0.02)
    assert tier(fleet).tokens_met == 88


def test_a_sequence_that_has_ended_makes_room_while_the_others_go_on(small_fleet: Callable) -> None:
    fleet = small_fleet("loose", seqs_max=4)
    fleet.arrive("loose", choices=4)
    for index in range(4):
        fleet.send(e.TokensReceived(fleet.now, 1, sequence=index))
    assert isinstance(fleet.arrive("loose"), d.Hold)

    placed = fleet.send(e.SequenceEnded(fleet.now, 1, 2))

    assert [made.request for made in placed] == [2]
    assert fleet.instance("a").requests == 4
    fleet.end(1)
    assert fleet.instance("a").requests == 1


def test_an_answer_that_has_ended_early_does_not_make_its_request_late(small_fleet: Callable) -> None:
    fleet = small_fleet("middle")
    fleet.arrive(choices=2)
    fleet.now = 0.1
    for index in range(2):
        fleet.send(e.TokensReceived(fleet.now, 1, sequence=index))
    fleet.send(e.SequenceEnded(fleet.now, 1, 0))
    for _ in range(40):
        fleet.now += 0.04
        fleet.send(e.TokensReceived(fleet.now, 1, sequence=1))
    assert not fleet.core.instances["a"].bookings.due_least[1] < fleet.now
    fleet.end(1)

    assert (tier(fleet).requests_met, tier(fleet).tokens_met) == (1, 42)


def test_an_answer_without_a_stream_is_judged_by_sequence(small_fleet: Callable) -> None:
    fleet = small_fleet("middle")
    fleet.arrive(choices=4, streaming=False)
    fleet.now = 0.78  # of each sequence's 20 tokens the first ten were due before
    fleet.end(1, tokens=80)

    assert (tier(fleet).tokens_met, tier(fleet).tokens_missed) == (40, 40)


def test_more_sequences_than_an_engine_runs_at_once_are_served_by_an_idle_one(small_fleet: Callable) -> None:
    fleet = small_fleet("loose", seqs_max=4)
    assert isinstance(fleet.arrive("loose", choices=9), d.Place)
    assert isinstance(fleet.arrive("loose"), d.Hold)


def test_several_sequences_come_back_together_from_an_engine_that_failed(small_fleet: Callable) -> None:
    fleet = small_fleet("middle", "middle")
    first = fleet.arrive(prompt_tokens=300, prompts=(100, 200), choices=3)

    (again,) = fleet.send(e.SendFailed(fleet.now, 1))

    assert isinstance(again, d.Place)
    assert again.instance != first.instance
    assert [fleet.instance(name).requests for name in (first.instance, again.instance)] == [0, 6]


def test_tokens_of_a_sequence_that_is_not_there_change_nothing(small_fleet: Callable) -> None:
    fleet = small_fleet("middle")
    fleet.arrive(choices=2)
    for index in (-1, 2, 70_000):
        assert fleet.send(e.TokensReceived(fleet.now, 1, sequence=index)) == []
        assert fleet.send(e.SequenceEnded(fleet.now, 1, index)) == []
    assert fleet.instance("a").requests == 2


def test_time_per_output_token_counts_tokens_that_came_several_in_an_event(small_fleet: Callable) -> None:
    fleet = small_fleet("middle")
    fleet.arrive(choices=2)
    for fleet.now in (0.1, 0.18, 0.26):
        for index in range(2):
            fleet.send(e.TokensReceived(fleet.now, 1, sequence=index))
    fleet.send(e.SequenceEnded(fleet.now, 1, 0))
    fleet.end(1, tokens=2 * 9)

    assert tier(fleet).tokens_met == 18
    assert tier(fleet).recent.tpot_p50_s == pytest.approx(0.02)


def test_time_to_first_token_is_told_once_a_request(small_fleet: Callable) -> None:
    fleet = small_fleet("middle")
    fleet.arrive(choices=3)
    for index in range(3):
        fleet.now = 0.1 + index / 100
        fleet.send(e.TokensReceived(fleet.now, 1, sequence=index))
    fleet.end(1)

    assert (sum(tier(fleet).ttft.counts), tier(fleet).ttft.sum) == (1, pytest.approx(0.12))


def test_more_than_an_engine_holds_is_placed_on_one_that_is_never_idle(small_fleet: Callable) -> None:
    fleet = small_fleet("loose", seqs_max=64)
    for _ in range(20):
        fleet.arrive("loose")
    assert isinstance(fleet.arrive("loose", choices=100), d.Place)
    assert isinstance(fleet.arrive("loose"), d.Hold)


def test_a_held_list_of_prompts_is_tried_again_the_more_seldom_the_longer_it_is(small_fleet: Callable) -> None:
    fleet = small_fleet("loose", seqs_max=4)
    for _ in range(4):
        fleet.arrive("loose")
    assert isinstance(fleet.arrive("loose", prompt_tokens=1000, prompts=(10,) * 100), d.Hold)

    fleet.now = 0.05
    assert [fleet.end(request) for request in (1, 2, 3)] == [[], [], []]
    fleet.now = 0.11

    (placed,) = fleet.send(e.Tick(fleet.now))
    assert isinstance(placed, d.Place)
