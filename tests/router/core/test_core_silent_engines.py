"""Engines that answer and compute nothing are suspect; what can still be moved goes elsewhere. What engines say of their size counts."""

import pytest

from multislo_router.core import decisions as d
from multislo_router.core import events as e


def report(fleet, name="a", tokens_total=None, kv_tokens_max=None):
    return fleet.send(e.InstanceReported(fleet.now, name, 1, 0, 100, kv_tokens_max, tokens_total))


def silent_for(fleet, seconds, **report_fields):
    """What the core makes of the reports of so long a time without a token."""
    made = []
    for _ in range(int(seconds)):
        fleet.wait(1.0)
        made += report(fleet, **report_fields)
    return made


def test_an_instance_that_gives_no_token_for_far_too_long_is_suspect_and_gets_nothing_more(small_fleet):
    fleet = small_fleet("middle", "middle")
    at = fleet.arrive().instance

    (suspect,) = silent_for(fleet, 8, name=at)

    assert isinstance(suspect, d.Suspect)
    assert (suspect.instance, suspect.silent_s) == (at, 3.0)
    assert "no token for 3.0 s" in suspect.reason
    assert fleet.instance(at).state == "failed"
    assert all(fleet.arrive().instance != at for _ in range(5))


def test_its_request_goes_elsewhere_once_and_then_stays(small_fleet):
    fleet = small_fleet("middle", "middle")
    first = fleet.arrive().instance
    silent_for(fleet, 6, name=first)

    made = [*fleet.send(e.Unanswered(fleet.now, 1)), *fleet.wait(1.0)]

    moved = made[-1]
    assert isinstance(moved, d.Place), "late, as its deadline is missed"
    assert moved.instance != first
    assert fleet.send(e.Unanswered(fleet.now, 1)) == []
    assert fleet.instance(moved.instance).requests == 1


def test_one_that_has_computed_a_token_for_the_probe_is_trusted_again(small_fleet):
    fleet = small_fleet("middle")
    fleet.arrive()
    silent_for(fleet, 6)
    fleet.send(e.InstanceRevived(fleet.now, "a"))

    assert isinstance(fleet.arrive(), d.Place)
    assert silent_for(fleet, 2) == [], "its silence counts anew"


@pytest.mark.parametrize("sign", ["tokens", "its own count", "no request", "it does not stream"])
def test_what_shows_progress_or_cannot_is_not_suspect(small_fleet, sign):
    fleet = small_fleet("middle")
    if sign != "no request":
        fleet.arrive(streaming=sign != "it does not stream")
    made = []
    for second in range(20):
        fleet.wait(1.0)
        if sign == "tokens":
            fleet.tokens(1)
        made += report(fleet, tokens_total=second if sign == "its own count" else None)
    assert made == []


def test_an_engine_whose_own_count_stands_still_is_suspect_though_nothing_streams(small_fleet):
    fleet = small_fleet("middle")
    fleet.arrive(streaming=False)
    assert len(silent_for(fleet, 7, tokens_total=1_000)) == 1


def test_a_long_prompt_is_given_the_time_that_it_takes(small_fleet):
    fleet = small_fleet("loose")
    fleet.arrive(prompt_tokens=120_000, tier="loose", ttft_s=100.0)  # half a minute of prefill
    assert silent_for(fleet, 30) == []


def test_an_engine_that_does_not_even_report_is_suspect_too(small_fleet):
    fleet = small_fleet("middle")
    fleet.arrive()
    fleet.wait(6.0)
    (suspect,) = fleet.send(e.InstanceUnreported(fleet.now, "a"))
    assert isinstance(suspect, d.Suspect)


def test_what_an_engine_says_of_its_size_counts_and_not_the_profile(small_fleet):
    fleet = small_fleet("middle", "middle", kv_tokens_max=400_000)
    report(fleet, "a", kv_tokens_max=8_192)

    assert fleet.instance("a").kv_tokens_max == 8_192
    assert fleet.core.length_max == 400_000, "the other one holds more"
    report(fleet, "b", kv_tokens_max=16_384)
    assert fleet.core.length_max == 16_384
    assert fleet.arrive(prompt_tokens=7_000, ttft_s=5.0).instance == "a"
    assert fleet.arrive(prompt_tokens=7_000, ttft_s=5.0).instance == "b", "by the profile, a would hold both"
    refused = fleet.arrive(prompt_tokens=20_000)
    assert isinstance(refused, d.Refuse)
    assert refused.cause is d.Cause.TOO_LONG
