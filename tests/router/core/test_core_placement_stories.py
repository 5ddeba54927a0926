"""Where a request goes: tiers that help each other, memory, overload, instances that leave, die, come back or are slow."""

import pytest

from multislo_router.core import decisions as d
from multislo_router.core import events as e
from multislo_router.core.config import Overload, Placement

BOTH = pytest.mark.parametrize("placement", list(Placement))
DRAINING, READY, STARTING = e.InstanceState.DRAINING, e.InstanceState.READY, e.InstanceState.STARTING


@BOTH
@pytest.mark.parametrize(("tier", "instance"), [("tight", "a"), ("middle", "b"), ("loose", "c"), (None, "b")])
def test_a_request_goes_to_its_own_tier_first(small_fleet, placement, tier, instance):
    fleet = small_fleet("tight", "middle", "loose", None, placement=placement)

    made = fleet.arrive(tier)

    assert (made.instance, made.kind) == (instance, d.Kind.OWN_TIER)


def test_packing_promotes_only_when_the_own_tier_has_no_room(small_fleet):
    fleet = small_fleet("loose", "tight", seqs_max=2)

    placed = [fleet.arrive("loose") for _ in range(3)]

    assert [made.instance for made in placed] == ["a", "a", "b"]
    assert [made.kind for made in placed] == [d.Kind.OWN_TIER, d.Kind.OWN_TIER, d.Kind.PROMOTED]


@BOTH
def test_a_request_whose_own_tier_is_full_finds_room_in_a_looser_one(small_fleet, placement):
    fleet = small_fleet("tight", "loose", seqs_max=1, placement=placement)
    fleet.arrive("tight")

    made = fleet.arrive("tight")

    assert (made.instance, made.kind) == ("b", d.Kind.DEMOTED)


@BOTH
def test_a_full_tier_overflows_into_the_warm_pool(small_fleet, placement):
    fleet = small_fleet("tight", None, seqs_max=1, placement=placement)
    fleet.arrive("tight")

    made = fleet.arrive("tight")

    assert (made.instance, made.kind) == ("b", d.Kind.WARM_POOL)


def test_packing_fills_one_instance_where_spreading_takes_turns(small_fleet):
    used = {}
    for placement in Placement:
        fleet = small_fleet("middle", "middle", "middle", placement=placement)
        used[placement] = {fleet.arrive("middle").instance for _ in range(3)}

    assert len(used[Placement.PACK]) == 1
    assert len(used[Placement.SPREAD]) == 3


@BOTH
def test_a_held_request_gets_the_place_that_becomes_free(small_fleet, placement):
    fleet = small_fleet("middle", seqs_max=1, placement=placement)
    fleet.arrive()
    held = fleet.arrive()

    made = fleet.end(1)

    assert isinstance(held, d.Hold)
    assert [(decision.request, decision.instance) for decision in made] == [(2, "a")]


def test_a_held_request_gets_the_instance_that_comes(small_fleet):
    fleet = small_fleet()
    assert isinstance(fleet.arrive(), d.Hold)

    made = fleet.change("a", "middle", READY)

    assert [(decision.request, decision.instance) for decision in made] == [(1, "a")]


def test_the_most_urgent_of_the_held_goes_first(small_fleet):
    fleet = small_fleet("middle", seqs_max=1)
    fleet.arrive()
    fleet.arrive("loose")
    fleet.arrive("tight")

    made = fleet.end(1)

    assert [decision.request for decision in made] == [3]


@BOTH
@pytest.mark.parametrize("overload", [Overload.QUEUE, Overload.BEST_EFFORT])
def test_a_deadline_that_is_lost_is_served_late_where_the_tier_does_not_reject(small_fleet, placement, overload):
    fleet = small_fleet("middle", seqs_max=1, placement=placement, overload=overload)
    fleet.arrive()
    fleet.arrive()
    waited = fleet.wait(10.0)

    (made,) = fleet.end(1)

    assert waited == []
    assert (made.request, made.kind) == (2, d.Kind.LATE if overload is Overload.QUEUE else d.Kind.BEST_EFFORT)
    assert made.ttft_predicted_s > 10.0


@BOTH
def test_a_deadline_that_is_lost_is_refused_where_the_tier_rejects(small_fleet, placement):
    fleet = small_fleet("middle", seqs_max=1, placement=placement, overload=Overload.REJECT)
    fleet.arrive()
    fleet.arrive()

    (made,) = fleet.wait(0.3)

    assert (made.request, made.cause) == (2, d.Cause.DEADLINE)
    assert made.retry_after_s >= 1.0


@pytest.mark.parametrize("scheduler", [e.Scheduler.FCFS, e.Scheduler.SLO_AWARE])
def test_a_prompt_predicted_a_little_late_is_served_unless_its_tier_rejects(small_fleet, scheduler):
    tokens = 13_000  # some 0.31 s on an idle instance, where 0.3 s are promised

    served = small_fleet("middle", placement=Placement.SPREAD, scheduler=scheduler)
    first = served.arrive(prompt_tokens=tokens)
    placed = [first] if isinstance(first, d.Place) else served.wait(0.1)
    rejecting = small_fleet("middle", placement=Placement.SPREAD, scheduler=scheduler, overload=Overload.REJECT)
    rejecting.arrive(prompt_tokens=tokens)
    (refused,) = rejecting.wait(0.1)

    assert 0.3 < placed[0].ttft_predicted_s < 0.33
    assert refused.cause is d.Cause.DEADLINE


@pytest.mark.parametrize(
    ("tokens", "waited_s", "held"), [(100, 0.1, (1, 0, 0)), (100, 10.0, (0, 1, 0)), (60_000, 0.1, (0, 1, 1))]
)
def test_the_status_tells_who_is_still_in_time_given_up_or_out_of_any_instances_reach(
    small_fleet, tokens, waited_s, held
):
    fleet = small_fleet("middle", seqs_max=1)
    fleet.arrive()
    fleet.arrive(prompt_tokens=tokens)
    fleet.wait(waited_s)

    (tier,) = [tier for tier in fleet.core.status(fleet.now).tiers if tier.name == "middle"]

    assert tier.pending == 1
    assert tier.pending_oldest_s == pytest.approx(waited_s)
    assert tier.pending_in_time_oldest_s == pytest.approx(waited_s if held[0] else 0.0)
    assert (tier.pending_in_time, tier.given_up, tier.out_of_reach) == held


def test_without_any_instance_a_tier_that_rejects_says_so(small_fleet):
    fleet = small_fleet(overload=Overload.REJECT)
    fleet.arrive()

    (made,) = fleet.wait(1.0)

    assert made.cause is d.Cause.NO_INSTANCE


def test_a_lost_request_waits_behind_one_that_can_still_be_in_time(small_fleet):
    fleet = small_fleet("middle", seqs_max=1)
    fleet.arrive()
    fleet.arrive("tight")
    fleet.wait(0.5)
    fleet.arrive("loose")

    first, then = fleet.end(1), fleet.end(3)

    assert [(made.request, made.kind) for made in first] == [(3, d.Kind.PROMOTED)]
    assert [(made.request, made.kind) for made in then] == [(2, d.Kind.LATE)]


def test_a_late_request_is_planned_by_its_second_deadline(small_fleet):
    fleet = small_fleet("middle", seqs_max=1)
    fleet.arrive()
    fleet.arrive("middle")
    fleet.wait(0.5)
    fleet.arrive("loose")

    (first,), (then,) = fleet.end(1), fleet.end(2)

    assert (first.request, first.kind, first.ttft_due, first.second_due) == (2, d.Kind.LATE, 0.3, 0.75)
    assert (then.request, then.kind) == (3, d.Kind.PROMOTED)


def test_only_so_long_is_a_request_held_for_the_sake_of_others(small_fleet):
    fleet = small_fleet("middle")
    fleet.arrive(prompt_tokens=100_000)
    fleet.wait(1.0)
    fleet.arrive(prompt_tokens=5_000)

    assert fleet.wait(1.3) == []
    (made,) = fleet.wait(0.2)

    assert (made.request, made.kind) == (2, d.Kind.LATE)
    assert made.room_s < 0.0


def test_best_effort_is_held_for_as_long_as_it_would_make_others_late(small_fleet):
    fleet = small_fleet("middle", overload=Overload.BEST_EFFORT)
    fleet.arrive(prompt_tokens=100_000)
    fleet.wait(1.0)
    fleet.arrive(prompt_tokens=5_000)

    assert fleet.wait(1.5) == []


def test_a_lost_prompt_in_an_engine_that_plans_by_deadlines_takes_no_room_from_those_in_time(small_fleet):
    fleet = small_fleet("middle", scheduler=e.Scheduler.SLO_AWARE)
    fleet.arrive(prompt_tokens=10_000)
    fleet.arrive(prompt_tokens=12_000)
    (lost,) = fleet.wait(0.8) + fleet.tokens(1)

    made = fleet.arrive(prompt_tokens=7_000)

    assert (lost.request, lost.kind) == (2, d.Kind.LATE)
    assert made.kind is d.Kind.OWN_TIER
    assert made.room_s >= 0.0


def test_a_lost_request_that_fits_nowhere_does_not_hold_up_others(small_fleet):
    fleet = small_fleet("middle", kv_tokens_max=10_000)
    fleet.arrive(prompt_tokens=5_000, tier="loose", output_tokens_max=10)
    fleet.arrive(prompt_tokens=9_000, tier="loose", output_tokens_max=10)
    fleet.wait(2.0)
    fleet.tokens(1)

    made = fleet.arrive(prompt_tokens=100, output_tokens_max=10)

    assert isinstance(made, d.Place)


@BOTH
def test_memory_admits_no_more_than_the_cache_holds(small_fleet, placement):
    fleet = small_fleet("middle", kv_tokens_max=10_000, placement=placement)
    fleet.arrive(prompt_tokens=3_000, tier="loose", output_tokens_max=3_000)
    fleet.wait(1.0)
    fleet.tokens(1)

    made = [fleet.arrive(prompt_tokens=tokens, tier="loose", output_tokens_max=10) for tokens in (7_000, 1_000)]

    assert [type(decision) for decision in made] == [d.Hold, d.Place]


def test_a_report_of_memory_that_others_hold_shrinks_the_room(small_fleet):
    fleet = small_fleet("middle", "middle", kv_tokens_max=10_000)
    fleet.send(e.InstanceReported(fleet.now, "a", 3, 0, 9_500))

    made = fleet.arrive(prompt_tokens=1_000)

    assert made.instance == "b"


def test_what_can_never_fit_is_refused_at_once(small_fleet):
    fleet = small_fleet("middle", kv_tokens_max=10_000, length_max=4_000)

    fits = fleet.arrive("loose", prompt_tokens=3_000, output_tokens_max=1_000)
    made = fleet.arrive("loose", prompt_tokens=3_000, output_tokens_max=1_001)

    assert isinstance(fits, d.Place)
    assert (made.cause, made.retry_after_s) == (d.Cause.TOO_LONG, None)
    assert "4001" in made.reason


def test_a_full_queue_refuses(small_fleet):
    fleet = small_fleet(pending_max=2)

    made = [fleet.arrive() for _ in range(3)]

    assert [type(decision) for decision in made] == [d.Hold, d.Hold, d.Refuse]
    assert made[2].cause is d.Cause.QUEUE_FULL
    assert made[2].retry_after_s >= 1.0


@BOTH
@pytest.mark.parametrize("state", [DRAINING, STARTING])
def test_an_instance_that_is_not_ready_gets_nothing_new_and_keeps_what_it_has(small_fleet, placement, state):
    fleet = small_fleet("middle", "loose", placement=placement)
    fleet.arrive()
    fleet.change("a", "middle", state)

    made = fleet.arrive()

    assert made.instance == "b"
    assert fleet.instance("a").requests == 1
    assert fleet.instance("a").state == state


@BOTH
def test_a_dead_instance_gets_nothing_until_it_is_revived(small_fleet, placement):
    fleet = small_fleet("middle", placement=placement)
    fleet.send(e.InstanceFailed(fleet.now, "a"))
    assert isinstance(fleet.arrive(), d.Hold)

    made = fleet.send(e.InstanceRevived(fleet.now, "a"))

    assert [(decision.request, decision.instance) for decision in made] == [(1, "a")]


def test_a_restarted_instance_is_empty_and_what_ran_there_ends_in_peace(small_fleet):
    fleet = small_fleet("middle", kv_tokens_max=10_000)
    fleet.arrive(prompt_tokens=9_000, tier="loose")
    fleet.send(e.InstanceFailed(fleet.now, "a"))

    fleet.change("a", "middle", READY, epoch=1)
    again = fleet.arrive(prompt_tokens=9_000, tier="loose")
    fleet.end(1, e.Outcome.ENGINE_FAILED)

    assert again.instance == "a"
    assert (fleet.instance("a").state, fleet.instance("a").requests) == ("ready", 1)


def test_a_warm_instance_that_joins_a_tier_takes_its_work_along(small_fleet):
    fleet = small_fleet(None)
    fleet.arrive("tight")

    fleet.change("a", "tight", READY)
    made = fleet.arrive("tight")

    assert (made.instance, made.kind) == ("a", d.Kind.OWN_TIER)
    assert fleet.instance("a").requests == 2


def test_a_slower_instance_is_calibrated_within_bounds_and_gets_less(small_fleet):
    fleet = small_fleet("middle", "middle", placement=Placement.SPREAD)
    for _ in range(2):
        fleet.arrive()
    slow, fast = (fleet.core.places[id].id for id in (1, 2))
    iteration_s = fleet.instance(slow).iteration_predicted_s
    for step in range(600):
        fleet.now += iteration_s
        fleet.tokens(2)
        if step % 3 == 0:
            fleet.tokens(1)

    placed = [fleet.arrive().instance for _ in range(10)]

    assert fleet.instance(fast).calibration == pytest.approx(1.0, abs=0.1)
    assert 2.5 < fleet.instance(slow).calibration <= 4.0
    assert placed.count(slow) < placed.count(fast)


def test_an_instance_that_stalls_for_long_is_not_believed_to_be_slower_than_the_bound(small_fleet):
    fleet = small_fleet("loose")
    fleet.arrive("loose")

    for _ in range(400):
        fleet.now += 5.0
        fleet.tokens(1)

    assert 3.9 < fleet.instance("a").calibration <= 4.0


@pytest.mark.parametrize(("tokens", "expected"), [(1, d.Hold), (9, d.Place)])
def test_tokens_that_came_early_are_slack_for_a_prompt(small_fleet, tokens, expected):
    fleet = small_fleet("loose")  # whose iterations are longer than a tight decode's TPOT while a prompt runs
    fleet.arrive("tight")
    fleet.now = 0.01
    fleet.tokens(1)
    fleet.now = 0.145
    fleet.tokens(1, tokens)

    made = fleet.arrive("loose", prompt_tokens=6_000)

    assert isinstance(made, expected)


def test_an_idle_instance_forgets_the_prompts_that_it_has_done(small_fleet):
    fleet = small_fleet("loose")
    for id in range(1, 40):
        fleet.arrive("loose", prompt_tokens=4_000)
        fleet.wait(0.1)
        if id in fleet.core.requests:
            fleet.tokens(id)
            fleet.end(id)
    fleet.wait(100.0)

    made = fleet.arrive("loose", prompt_tokens=20_000)

    assert isinstance(made, d.Place)


def test_a_prompt_that_needs_nearly_all_of_its_ttft_goes_to_the_largest_budget(small_fleet):
    fleet = small_fleet("tight", "loose", "loose", placement=Placement.SPREAD)
    fleet.specs["c"] = e.InstanceSpec("c", "loose", e.InstanceState.READY, batch_tokens=8192, epoch=1)
    fleet.tell_fleet()
    fleet.arrive("loose", prompt_tokens=100)
    fleet.arrive("loose", prompt_tokens=100)
    fleet.now = 0.01
    fleet.tokens(1)
    fleet.tokens(2)

    made = fleet.arrive("loose", prompt_tokens=31_000)

    assert isinstance(made, d.Place)
    assert made.instance == "c"
    assert made.room_s > 0.0


@pytest.mark.parametrize(("prompt_tokens", "expected"), [(1_000, d.Place), (8_000, d.Hold)])
def test_a_prompt_waits_in_the_router_where_it_would_cost_a_queued_one_its_second_token(
    small_fleet, prompt_tokens, expected
):
    fleet = small_fleet("loose")
    fleet.specs["a"] = e.InstanceSpec("a", "loose", e.InstanceState.READY, batch_tokens=8192, epoch=1)
    fleet.tell_fleet()
    fleet.arrive("middle", prompt_tokens=12_000)  # its first token comes just in time, in 0.28 of 0.3 s

    made = fleet.arrive("loose", prompt_tokens=prompt_tokens)

    assert isinstance(made, expected)
