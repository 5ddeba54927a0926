"""The user's podTemplate over ours."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multislo_operator.kubernetes.objects.overlay import overlaid

OURS: dict[str, Any] = {
    "metadata": {
        "labels": {"app.kubernetes.io/instance": "llama"},
        "annotations": {"multislo.dev/batch-tokens": "512"},
    },
    "spec": {
        "schedulingGates": [{"name": "multislo.dev/start"}],
        "readinessGates": [{"conditionType": "multislo.dev/serving"}],
        "terminationGracePeriodSeconds": 920,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 2000},
        "volumes": [{"name": "cache", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
        "containers": [
            {
                "name": "engine",
                "image": "engine:1",
                "args": ["model", "--flag"],
                "env": [{"name": "HOME", "value": "/cache"}],
                "ports": [{"name": "http", "containerPort": 8000}],
                "resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"cpu": "1"}},
                "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
            }
        ],
    },
}


def laid(**spec: Any) -> dict[str, Any]:
    merged, problems = overlaid(OURS, {"spec": spec})
    assert problems == ()
    result: dict[str, Any] = merged["spec"]
    return result


def on_engine(**container: Any) -> dict[str, Any]:
    (engine,) = laid(containers=[{"name": "engine", **container}])["containers"]
    return engine  # type: ignore[no-any-return]


def test_nothing_over_it_leaves_it_as_it_is() -> None:
    assert overlaid(OURS, {}) == (OURS, ())


def test_ours_is_not_changed_in_place() -> None:
    before = json.dumps(OURS)
    overlaid(OURS, {"spec": {"containers": [{"name": "engine", "env": [{"name": "HOME", "value": "/tmp"}]}]}})
    assert json.dumps(OURS) == before


def test_maps_are_merged_and_null_removes_a_key() -> None:
    spec = laid(securityContext={"runAsUser": None, "fsGroup": 5}, nodeSelector={"gpu": "h200"})
    assert spec["securityContext"] == {"runAsNonRoot": True, "fsGroup": 5}
    assert spec["nodeSelector"] == {"gpu": "h200"}


def test_containers_are_met_by_name_and_others_stand_beside_them() -> None:
    spec = laid(
        containers=[
            {"name": "engine", "resources": {"requests": {"memory": "64Gi"}}},
            {"name": "agent", "image": "a:1"},
        ],
        initContainers=[{"name": "fetch", "image": "f:1"}],
    )
    engine, agent = spec["containers"]
    assert engine["resources"] == {"limits": {"nvidia.com/gpu": "1"}, "requests": {"cpu": "1", "memory": "64Gi"}}
    assert engine["image"] == "engine:1"
    assert agent == {"name": "agent", "image": "a:1"}
    assert spec["initContainers"] == [{"name": "fetch", "image": "f:1"}]


def test_a_variable_changes_its_source_whole() -> None:
    secret = {"secretKeyRef": {"name": "s", "key": "k"}}
    engine = on_engine(env=[{"name": "HOME", "valueFrom": secret}, {"name": "HF_TOKEN", "value": "x"}])
    assert engine["env"] == [{"name": "HOME", "valueFrom": secret}, {"name": "HF_TOKEN", "value": "x"}]


def test_a_volume_changes_its_source_whole() -> None:
    claim = {"claimName": "models"}
    assert laid(volumes=[{"name": "cache", "persistentVolumeClaim": claim}])["volumes"] == [
        {"name": "cache", "persistentVolumeClaim": claim},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]


def test_mounts_are_met_by_their_path() -> None:
    engine = on_engine(volumeMounts=[{"name": "models", "mountPath": "/cache"}, {"name": "data", "mountPath": "/data"}])
    assert [(mount["name"], mount["mountPath"]) for mount in engine["volumeMounts"]] == [
        ("models", "/cache"),
        ("data", "/data"),
    ]


def test_an_item_of_a_named_list_can_be_removed() -> None:
    assert on_engine(env=[{"name": "HOME", "$patch": "delete"}])["env"] == []


def test_a_map_can_be_replaced_and_a_field_removed_without_null() -> None:
    assert laid(securityContext={"$patch": "replace", "fsGroup": 5})["securityContext"] == {"fsGroup": 5}
    assert "resources" not in on_engine(resources={"$patch": "delete"})
    assert on_engine(env=[{"name": "NEW", "$patch": "replace", "value": "x"}])["env"][1] == {
        "name": "NEW",
        "value": "x",
    }


def test_tolerations_are_added_and_lists_without_names_replaced() -> None:
    ours = {**OURS, "spec": {**OURS["spec"], "tolerations": [{"key": "a"}]}}
    merged, problems = overlaid(ours, {"spec": {"tolerations": [{"key": "b"}, {"key": "a"}]}})
    assert problems == ()
    assert merged["spec"]["tolerations"] == [{"key": "a"}, {"key": "b"}]
    assert on_engine(command=["/wrapper", "vllm"])["command"] == ["/wrapper", "vllm"]


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"spec": {"schedulingGates": None}}, "spec.schedulingGates: multislo.dev/start must stay"),
        (
            {"spec": {"schedulingGates": [{"name": "multislo.dev/start", "$patch": "delete"}]}},
            "spec.schedulingGates: multislo.dev/start must stay",
        ),
        ({"spec": {"readinessGates": None}}, "spec.readinessGates: multislo.dev/serving must stay"),
        ({"metadata": {"labels": {"app.kubernetes.io/instance": "x"}}}, "metadata.labels.app.kubernetes.io/instance"),
        ({"metadata": {"labels": None}}, "metadata.labels.app.kubernetes.io/instance"),
        ({"metadata": {"annotations": {"multislo.dev/draining-since": "now"}}}, "metadata.annotations.multislo.dev/dr"),
        (
            {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "9"}}},
            "metadata.annotations.controller.kubernetes.io/pod-deletion-cost",
        ),
        ({"spec": {"containers": None}}, "the container 'engine' must stay"),
        ({"spec": {"containers": [{"name": "engine", "args": ["--x"]}]}}, "more flags go into spec.engine.args"),
        ({"spec": {"containers": [{"name": "engine", "ports": None}]}}, "ports: 8000 must stay"),
        ({"spec": {"containers": {"name": "engine"}}}, "spec.containers: {'name': 'engine'} must be a list"),
        ({"spec": {"containers": [{"image": "x"}]}}, "spec.containers[0]: {'image': 'x'} must be a mapping with name"),
        ({"spec": {"securityContext": 5}}, "spec.securityContext: 5 must be a mapping"),
        ({"spec": {"volumes": [{"name": "cache", "$patch": "move"}]}}, "$patch: 'move' must be delete or replace"),
        ({"spec": {"restartPolicy": "Never"}}, "spec.restartPolicy: 'Never' must be Always"),
        ({"spec": {"$patch": "move"}}, "spec.$patch: 'move' must be delete or replace"),
    ],
)  # fmt: skip
def test_what_the_operator_rests_on_stays(over: dict[str, Any], told: str) -> None:
    _, problems = overlaid(OURS, over)
    assert len(problems) == 1
    assert problems[0].startswith("spec.engine.podTemplate.")
    assert told in problems[0]


# -- properties ------------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.integers(0, 9) | st.text("ab", max_size=2)
FREE_KEYS = st.sampled_from(["nodeSelector", "affinity", "priorityClassName", "dnsConfig", "x"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3) | st.lists(inner, max_size=2)
)
NAMED = st.lists(
    st.dictionaries(st.sampled_from(["value", "valueFrom"]), VALUES).flatmap(
        lambda body: st.sampled_from(["HOME", "A", "B"]).map(lambda name: {"name": name, **body})
    ),
    unique_by=lambda item: item["name"],
    max_size=3,
)
OVERS = st.builds(
    lambda free, env: {"spec": {**free, "containers": [{"name": "engine", "env": env}]}},
    st.dictionaries(FREE_KEYS, VALUES, max_size=4),
    NAMED,
)


def has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(inner is None or has_null(inner) for inner in value.values())
    return isinstance(value, list) and any(has_null(inner) for inner in value)


@given(OVERS)
def test_laying_the_same_over_it_again_changes_nothing(over: dict[str, Any]) -> None:
    once, problems = overlaid(OURS, over)
    assert problems == ()
    assert overlaid(once, over) == (once, ())


@given(OVERS)
def test_nothing_is_null_and_what_is_ours_is_there(over: dict[str, Any]) -> None:
    merged, _ = overlaid(OURS, over)
    assert not has_null(merged)
    assert merged["metadata"] == OURS["metadata"]
    for gate in ("schedulingGates", "readinessGates"):
        assert merged["spec"][gate] == OURS["spec"][gate]
    assert merged["spec"]["containers"][0]["args"] == OURS["spec"]["containers"][0]["args"]


@given(VALUES)
def test_whatever_is_written_is_merged_or_told(value: Any) -> None:
    for over in ({"metadata": value}, {"spec": value}, {"spec": {"containers": value}}, {"spec": {"volumes": [value]}}):
        _, problems = overlaid(OURS, over)
        assert all(problem.startswith("spec.engine.podTemplate.") for problem in problems)
