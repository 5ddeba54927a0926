"""What several routers say together, what they are told, and what can be read of a resource."""

import random
from typing import Any

import pytest
from as_seen import AT, pod, workload
from cluster_life import MANIFEST
from cluster_model import copied
from router_model import Router

from multislo_api.fleet import InstanceEntry, InstanceList
from multislo_operator.kubernetes.answers import together
from multislo_operator.kubernetes.draft import Draft
from multislo_operator.kubernetes.listed import instance_lists
from multislo_operator.kubernetes.pods import RouterPod
from multislo_operator.kubernetes.seen import RouterSeen, Seen
from multislo_operator.kubernetes.wanted import Unusable, Wanted, read
from multislo_perf.profile import load_document


def door(name: str, ready: bool = True, terminating: bool = False) -> RouterPod:
    return RouterPod(name, "10.0.0.9", ready, terminating, "hash", 9090)


def heard(
    name: str, at: float = 100.0, state: str = "ready", requests: int = 0, tiers: tuple[str, ...] = ("batch",)
) -> RouterSeen:
    router = Router(random.Random(1), tiers, 0.0)
    router.tell(InstanceList(instances=[InstanceEntry(id="p", url="http://10.0.0.1:8000", tier="batch", state=state)]))  # type: ignore[arg-type]
    router.held["p"] = [200.0] * requests
    router.rates["batch"] = 2.0
    return RouterSeen(name, router.snapshot(at), at)


def test_the_load_is_the_sum_over_the_routers() -> None:
    answers = together([door("a"), door("b")], {"a": heard("a", requests=2), "b": heard("b", requests=3)}, 100.5)
    assert answers.snapshot is not None
    assert answers.snapshot.tiers[0].arrival_rate == 4.0
    assert answers.snapshot.instances[0].requests == 5
    assert (answers.complete, answers.silent) == (True, ())


def test_an_instance_drains_only_when_every_router_knows() -> None:
    answers = together([door("a"), door("b")], {"a": heard("a", state="draining"), "b": heard("b")}, 100.5)
    assert answers.snapshot is not None
    assert answers.snapshot.instances[0].state == "ready"


def test_a_router_that_has_never_answered_makes_the_load_unknown() -> None:
    answers = together([door("a"), door("b")], {"a": heard("a"), "b": RouterSeen("b")}, 100.5)
    assert answers.snapshot is None
    assert not answers.complete
    assert answers.silent == ("b",)


def test_a_router_that_stops_silently_may_still_hold_streams() -> None:
    pods = [door("a"), door("b", terminating=True)]
    answers = together(pods, {"a": heard("a"), "b": heard("b", at=90.0, requests=4)}, 100.5)
    assert answers.snapshot is not None
    assert answers.snapshot.instances[0].requests == 0
    assert not answers.complete


def test_a_router_that_does_not_know_a_tier_gets_its_instances_as_warm() -> None:
    found = workload(pod("p"))
    draft = Draft({"batch": found}, AT)
    routers = {"a": heard("a"), "b": heard("b", tiers=("fast",)), "c": RouterSeen("c")}
    lists = instance_lists(found.running, draft, routers, [door("a"), door("b"), door("c")])
    assert {name: told.instances[0].tier for name, told in lists.items()} == {"a": "batch", "b": None}


def test_a_drain_is_told_in_the_round_that_begins_it() -> None:
    found = workload(pod("p"))
    draft = Draft({"batch": found}, AT)
    (one,) = found.running
    draft.drain(one, "why")
    (entry,) = instance_lists([one], draft, {"a": heard("a")}, [door("a")])["a"].instances
    assert entry.state == "draining"


def wanted(**spec: Any) -> Wanted | Unusable:
    resource = copied(MANIFEST)
    resource["spec"] |= spec
    return read(Seen(resource))


def test_a_shipped_profile_and_a_sound_manifest_can_be_used() -> None:
    found = wanted()
    assert isinstance(found, Wanted)
    assert not found.external


def test_fields_of_a_newer_crd_and_a_newer_profile_are_ignored_and_named() -> None:
    resource = copied(MANIFEST)
    resource["spec"] |= {"later": 1, "profile": {"configMap": "mine", "later": 1}}
    resource["spec"]["tiers"][0]["slo"]["later"] = None
    profile = load_document("llama-3.1-8b-h200-tp1").text().replace("latency:\n", "latency:\n  laterMs: 1\n")

    found = read(Seen(resource, profile_text=profile))

    assert isinstance(found, Wanted)
    assert sorted(found.ignored) == [
        "latency.laterMs in ConfigMap mine",
        "spec.later",
        "spec.profile.later",
        "spec.tiers[0].slo.later",
    ]


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"profile": {"configMap": "mine"}}, "ProfileMissing", '"mine"'),
        ({"profile": {"file": "/tmp/p.yaml"}}, "ProfileMissing", "spec.profile.file"),
        ({"tiers": []}, "ManifestInvalid", "tiers"),
    ],
)
def test_what_cannot_be_used_says_why(spec: dict[str, Any], reason: str, words: str) -> None:
    found = wanted(**spec)
    assert isinstance(found, Unusable)
    assert found.reason == reason
    assert words in found.message
