"""What becomes of a request: tokens, ends, failures, deadlines as priorities; and what an event may cost."""

import sys

import pytest

from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.config import Overload, Placement


@pytest.mark.parametrize("tokens", [0, 5])
def test_a_client_that_goes_frees_its_place_before_its_first_token_and_after(small_fleet, tokens):
    fleet = small_fleet("middle")
    fleet.arrive(prompt_tokens=1_000)
    for _ in range(tokens):
        fleet.now += 0.01
        fleet.tokens(1)

    fleet.end(1, e.Outcome.CLIENT_GONE)

    gone = fleet.instance("a")
    assert (gone.requests, gone.kv_tokens, gone.load) == (0, 0, 0.0)
    tier = fleet.tier("middle")
    assert (tier.in_flight, tier.requests_met, tier.requests_missed) == (0, 0, 0)


def test_a_client_that_goes_while_it_is_held_leaves_the_queue(small_fleet):
    fleet = small_fleet("middle", seqs_max=1)
    fleet.arrive()
    fleet.arrive()

    fleet.end(2, e.Outcome.CLIENT_GONE)

    assert fleet.end(1) == []
    assert fleet.core.requests == {}
    assert fleet.tier("middle").pending == 0


def test_every_token_is_held_against_its_own_deadline(small_fleet):
    fleet = small_fleet("middle")
    fleet.arrive()  # due at 300 ms, then every 50 ms
    for at in (0.2, 0.34, 0.41, 0.44):
        fleet.now = at
        fleet.tokens(1)

    fleet.end(1)

    tier = fleet.tier("middle")
    assert (tier.tokens_met, tier.tokens_missed) == (3, 1)
    assert (tier.requests_met, tier.requests_missed) == (0, 1)


def test_an_answer_in_one_piece_is_late_by_its_tokens_that_were_due(small_fleet):
    fleet = small_fleet("middle")
    fleet.arrive(streaming=False)
    fleet.wait(1.0)

    fleet.end(1, tokens=20)  # tokens 0 to 13 were due by 950 ms, token 14 is due at 1 s

    tier = fleet.tier("middle")
    assert (tier.tokens_missed, tier.tokens_met) == (14, 6)


def test_a_request_that_shows_no_tokens_is_believed_to_decode_all_the_same(small_fleet):
    fleet = small_fleet("middle")
    fleet.arrive(prompt_tokens=1_000, streaming=False)

    fleet.wait(0.5)

    believed = fleet.instance("a")
    assert (believed.prefills, believed.decodes) == (0, 1)
    assert 1_050 < believed.kv_tokens < 1_100


@pytest.mark.parametrize("placement", list(Placement))
def test_a_request_whose_engine_failed_goes_elsewhere_once(small_fleet, placement):
    fleet = small_fleet("middle", "middle", "middle", placement=placement)
    first = fleet.arrive()

    (second,) = fleet.send(e.SendFailed(fleet.now, 1))
    (last,) = fleet.send(e.SendFailed(fleet.now, 1))

    assert second.instance != first.instance
    assert (last.request, last.cause) == (1, d.Cause.ENGINE_FAILED)
    assert fleet.core.requests == {}


def test_a_request_that_failed_on_the_only_instance_is_tried_there_again_before_its_deadline_is_lost(small_fleet):
    fleet = small_fleet("middle")
    fleet.arrive()
    (held,) = fleet.send(e.SendFailed(fleet.now, 1))

    made = fleet.wait(0.3)

    assert isinstance(held, d.Hold)
    assert [(decision.request, decision.instance, decision.kind) for decision in made] == [(1, "a", d.Kind.OWN_TIER)]


def test_a_failed_request_that_only_dead_instances_could_take_is_refused_in_time_where_the_tier_rejects(small_fleet):
    fleet = small_fleet("middle", overload=Overload.REJECT)
    fleet.arrive()
    fleet.send(e.InstanceFailed(fleet.now, "a"))
    fleet.send(e.SendFailed(fleet.now, 1))

    (made,) = fleet.wait(0.3)

    assert (made.request, made.cause) == (1, d.Cause.NO_INSTANCE)


@pytest.mark.parametrize("scheduler", list(e.Scheduler))
def test_only_engines_that_order_by_priority_get_one(small_fleet, scheduler):
    fleet = small_fleet("middle", scheduler=scheduler)

    made = fleet.arrive()

    assert (made.priority is not None) == (scheduler is e.Scheduler.PRIORITY)


def test_priorities_are_in_the_order_of_deadlines_and_late_ones_behind_all(small_fleet):
    fleet = small_fleet("middle", scheduler=e.Scheduler.PRIORITY)
    fleet.send(e.InstanceFailed(fleet.now, "a"))
    fleet.arrive()
    fleet.wait(5.0)
    (late,) = fleet.send(e.InstanceRevived(fleet.now, "a"))
    fleet.tokens(1)

    loose, tight = fleet.arrive("loose"), fleet.arrive("tight")

    assert late.kind is d.Kind.LATE
    assert tight.priority < loose.priority < late.priority


def test_a_prompt_that_was_longer_than_believed_takes_the_memory_that_it_takes(small_fleet):
    fleet = small_fleet("middle")
    fleet.arrive(prompt_tokens=100)
    fleet.tokens(1)

    fleet.send(e.PromptMeasured(fleet.now, 1, 700))

    assert fleet.instance("a").kv_tokens == 701


def test_a_prompt_that_the_engine_no_longer_reports_stops_counting_as_one(small_fleet):
    fleet = small_fleet("middle")
    fleet.arrive(prompt_tokens=2_000, tier="loose")
    fleet.wait(2.0)

    fleet.send(e.InstanceReported(fleet.now, "a", 0, 0, 0))

    assert fleet.instance("a").prefills == 0


def test_a_request_that_arrives_twice_is_an_error_of_the_caller(small_fleet):
    fleet = small_fleet("middle")
    fleet.arrive()

    with pytest.raises(ValueError, match="request 1 arrived twice"):
        fleet.send(e.RequestArrived(fleet.now, 1, 100))


def lines_run(fleet, event: e.Event) -> int:
    """Lines of Python that the core runs for an event: a cost without a clock.

    Lines of our own packages alone: a garbage collection may fall into any event and run callbacks that others have installed.
    """
    lines = 0

    def trace(frame, what, _):
        nonlocal lines
        if not frame.f_globals.get("__name__", "").startswith("multislo_"):
            return None
        lines += what == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        fleet.core.handle(event)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("placement", list(Placement))
def test_what_an_event_costs_does_not_grow_with_the_fleet(small_fleet, placement):
    costs = []
    for size in (20, 500):
        fleet = small_fleet(placement=placement)
        for number in range(size):
            fleet.specs[f"i{number}"] = e.InstanceSpec(f"i{number}", "middle", e.InstanceState.READY)
        fleet.tell_fleet()
        used = [fleet.arrive().instance for _ in range(3)]
        costs.append(
            [
                lines_run(fleet, event)
                for event in (
                    e.TokensReceived(0.02, 1),
                    e.TokensReceived(0.03, 1),
                    e.InstanceReported(0.03, used[0], 3, 0, 400),
                    e.PromptMeasured(0.03, 2, 150),
                    e.SendFailed(0.03, 2),
                    e.RequestEnded(0.04, 1, e.Outcome.COMPLETED),
                    e.InstanceFailed(0.05, used[0]),
                    e.InstanceRevived(0.05, used[0]),
                    e.RequestArrived(0.05, 1_000, 100),
                    e.Tick(0.06),
                )
            ]
        )

    small, large = costs
    assert large == small


def test_how_late_a_request_was_is_told_by_its_own_slo(small_fleet):
    fleet = small_fleet("middle")
    fleet.arrive(ttft_s=0.1, tpot_s=0.05)
    for fleet.now in (0.25, 0.26, 0.5):  # due at .1, .15 and .2
        fleet.tokens(1)
    fleet.end(1)
    fleet.arrive()
    for fleet.now in (0.6, 0.65):
        fleet.tokens(2)
    fleet.end(2)

    counts = fleet.tier("middle")
    assert counts.ttft_ratio.sum == pytest.approx(2.5 + 0.1 / 0.3)
    assert sum(counts.ttft_ratio.counts) == sum(counts.late_most.counts) == 2
    assert counts.late_most.sum == pytest.approx(0.3)
    assert counts.late_most.counts[0] == 1


@pytest.mark.parametrize("choices", [1, 3])
def test_an_answer_in_one_piece_is_as_late_as_its_first_token(small_fleet, choices):
    fleet = small_fleet("middle")
    fleet.arrive(ttft_s=0.1, tpot_s=0.05, streaming=False, choices=choices)
    fleet.now = 1.1
    fleet.end(1, tokens=4 * choices)

    counts = fleet.tier("middle")
    assert counts.late_most.sum == pytest.approx(1.0)
