"""What the cache believes when watches, lists and our own writes come in any order."""

from typing import Any

import pytest

from multislo_operator.kubernetes.cache import CONFIG_MAP, DEPLOYMENT, POD, RESOURCE, Cache
from multislo_operator.kubernetes.names import COMPONENT, INSTANCE, ROUTER, TIER, Key

KEY = Key("ns", "fleet")


def thing(name: str, version: int, uid: str = "", created: str = "2026-01-01T00:00:00Z", **more: Any) -> dict[str, Any]:
    metadata = {
        "namespace": "ns",
        "name": name,
        "uid": uid or name,
        "resourceVersion": str(version),
        "creationTimestamp": created,
    }
    return {"metadata": {**metadata, "labels": {INSTANCE: "fleet"}}, **more}


def resource(version: int = 1, profile: object = "shipped") -> dict[str, Any]:
    return thing("fleet", version, spec={"profile": profile})


def pods(cache: Cache) -> dict[str, str]:
    seen = cache.seen(KEY)
    assert seen is not None
    return {name: pod["metadata"]["resourceVersion"] for name, pod in seen.pods.items()}


def test_a_change_wakes_its_resource_and_shows() -> None:
    woken: list[Key] = []
    cache = Cache(wake=woken.append)
    assert cache.seen(KEY) is None
    cache.put(RESOURCE, resource())
    cache.put(POD, thing("p", 2))
    assert woken == [KEY, KEY]
    assert pods(cache) == {"p": "2"}


def test_a_watch_that_lags_behind_our_own_write_undoes_nothing() -> None:
    cache = Cache()
    cache.put(RESOURCE, resource())
    cache.put(POD, thing("p", 12))
    cache.put(POD, thing("p", 9))
    assert pods(cache) == {"p": "12"}


def test_the_deletion_of_a_predecessor_does_not_remove_its_successor() -> None:
    cache = Cache()
    cache.put(RESOURCE, resource())
    cache.put(POD, thing("p", 5, uid="old"))
    cache.put(POD, thing("p", 9, uid="new", created="2026-01-01T00:01:00Z"))
    cache.drop(POD, thing("p", 8, uid="old"))
    cache.put(POD, thing("p", 7, uid="old"))
    assert pods(cache) == {"p": "9"}


def test_a_count_drops_what_has_vanished_and_leaves_what_came_after_it() -> None:
    woken: list[Key] = []
    cache = Cache()
    cache.put(RESOURCE, resource())
    cache.put(POD, thing("gone", 2))
    cache.put(POD, thing("stays", 3))
    cache.put(POD, thing("newer", 11))
    cache.wake = woken.append
    cache.prune(POD, "elsewhere", [], "10")
    assert not woken
    cache.prune(POD, "ns", {"stays"}, "10")
    assert pods(cache) == {"stays": "3", "newer": "11"}
    assert cache.versions(POD) == {"stays": "3", "newer": "11"}
    assert woken == [KEY]
    cache.prune(RESOURCE, None, [], "10")
    assert cache.seen(KEY) is None


def test_a_new_list_drops_what_has_vanished_of_that_kind_and_namespace() -> None:
    woken: list[Key] = []
    cache = Cache()
    cache.put(RESOURCE, resource())
    cache.put(POD, thing("gone", 2))
    cache.put(POD, thing("stays", 3))
    cache.put(DEPLOYMENT, thing("fleet-warm", 4, spec={}))
    cache.wake = woken.append
    cache.replace(POD, "elsewhere", [])
    assert pods(cache) == {"gone": "2", "stays": "3"}
    cache.replace(POD, None, [thing("stays", 3), thing("new", 5)])
    assert pods(cache) == {"stays": "3", "new": "5"}
    assert set(woken) == {KEY}
    seen = cache.seen(KEY)
    assert seen is not None
    assert list(seen.deployments) == ["fleet-warm"]


def test_a_resource_that_has_vanished_is_gone_with_its_last_child() -> None:
    cache = Cache()
    cache.put(RESOURCE, resource())
    cache.put(POD, thing("p", 2))
    cache.replace(RESOURCE, None, [])
    assert cache.seen(KEY) is None
    cache.drop(POD, thing("p", 2))
    assert not cache.children


def test_objects_of_nobody_are_left_aside() -> None:
    cache = Cache()
    stranger = thing("x", 1)
    stranger["metadata"]["labels"] = None
    cache.put(CONFIG_MAP, stranger)
    cache.drop(CONFIG_MAP, stranger)
    assert not cache.children


def test_a_profile_wakes_those_that_name_it() -> None:
    woken: list[Key] = []
    cache = Cache()
    cache.put(RESOURCE, resource(profile={"configMap": "measured"}))
    cache.wake = woken.append
    cache.set_profile("ns", "other", "x")
    assert woken == []
    cache.set_profile("ns", "measured", "text")
    cache.set_profile("ns", "measured", "text")
    assert woken == [KEY]
    seen = cache.seen(KEY)
    assert seen is not None
    assert seen.profile_text == "text"


def test_an_edit_without_a_time_keeps_the_one_at_which_its_count_was_first_seen() -> None:
    def deployment(version: int, replicas: int, time: str | None = None) -> dict[str, Any]:
        entry = {
            "manager": "kubectl",
            "operation": "Update",
            "subresource": "scale",
            **({"time": time} if time else {}),
        }
        made = thing("d", version, spec={"replicas": replicas})
        made["metadata"]["managedFields"] = [entry]
        return made

    def time_of(cache: Cache) -> str:
        found = cache.child(KEY, DEPLOYMENT, "d")
        assert found is not None
        return str(found["metadata"]["managedFields"][0]["time"])

    cache = Cache()
    cache.put(DEPLOYMENT, deployment(1, 3, "2020-01-01T00:00:00Z"))
    cache.put(DEPLOYMENT, deployment(2, 3))
    assert time_of(cache) == "2020-01-01T00:00:00Z"
    cache.put(DEPLOYMENT, deployment(3, 4))
    assert time_of(cache) > "2026"


def test_what_nobody_reads_of_an_object_is_not_kept() -> None:
    cache = Cache()
    cache.put(RESOURCE, resource())
    theirs = {"kubectl.kubernetes.io/last-applied-configuration": "x" * 100_000, "multislo.dev/scaling": "External"}
    container = {"name": "engine", "ports": [{"containerPort": 8000}], "env": [{"name": "A", "value": "x" * 100_000}]}
    pod = thing("p", 2, spec={"nodeName": "n", "containers": [container], "volumes": [{}]}, status={"phase": "Running"})
    pod["metadata"] |= {"annotations": theirs, "managedFields": [{"manager": "x", "fieldsV1": {"f:spec": {}}}]}
    kept = cache.put(POD, pod)
    assert kept["metadata"]["annotations"] == {"multislo.dev/scaling": "External"}
    assert "managedFields" not in kept["metadata"]
    assert kept["spec"] == {"nodeName": "n", "containers": [{"name": "engine", "ports": [{"containerPort": 8000}]}]}
    assert kept["status"] == {"phase": "Running"}

    written = {"manager": "hpa", "operation": "Update", "time": "2026-01-01T00:00:00Z"}
    fields = {"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {}}}}
    config = thing("c", 3)
    config["metadata"] |= {"annotations": theirs, "managedFields": [{**written, "fieldsV1": fields}]}
    metadata = cache.put(CONFIG_MAP, config)["metadata"]
    assert metadata["annotations"] == {"multislo.dev/scaling": "External"}
    assert metadata["managedFields"] == [{**written, "fieldsV1": {"f:spec": {"f:replicas": {}}}}]


@pytest.mark.parametrize("labels", [{}, {INSTANCE: "other"}])
def test_a_child_whose_label_is_changed_leaves_its_resource(labels: dict[str, str]) -> None:
    woken: list[Key] = []
    cache = Cache(wake=woken.append)
    cache.put(RESOURCE, resource())
    cache.put(POD, thing("p", 2))
    woken.clear()
    relabelled = thing("p", 3)
    relabelled["metadata"]["labels"] = labels
    cache.put(POD, relabelled)
    assert pods(cache) == {}
    assert KEY in woken
    cache.put(POD, thing("p", 4))
    assert pods(cache) == {"p": "4"}
    cache.drop(POD, thing("p", 4))
    assert pods(cache) == {}
    assert not cache.homes


def test_a_copy_of_a_deployment_under_another_name_is_not_the_resources() -> None:
    cache = Cache()
    cache.put(RESOURCE, resource())
    for name, version in (("fleet-chat", 2), ("fleet-a-copy", 3), ("fleet-warm", 4), ("fleet-router", 5)):
        found = thing(name, version)
        found["metadata"]["labels"] |= {
            "fleet-warm": {TIER: "warm"},
            "fleet-router": {COMPONENT: ROUTER},
        }.get(name, {TIER: "chat"})
        cache.put(DEPLOYMENT, found)
    seen = cache.seen(KEY)
    assert seen is not None
    assert set(seen.deployments) == {"fleet-chat", "fleet-warm", "fleet-router"}
