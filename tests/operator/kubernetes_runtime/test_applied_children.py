"""When a child is applied again, and when an edit war is left alone. Real values, a clock handed in."""

from typing import Any

from multislo_operator.kubernetes.applied import (
    EDITS_MAX,
    HOLD_FIRST_S,
    HOLD_MAX_S,
    UNWATCHED_AGAIN_S,
    Child,
    Due,
    rival,
)

DESIRED: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "fleet-chat", "labels": {"a": "1"}},
    "spec": {"template": {"spec": {"containers": [{"name": "engine", "image": "x"}]}}},
}


def live(version: int = 1, image: str = "x", **spec: Any) -> dict[str, Any]:
    """As the API server has it: with its defaults, an owner, and fields that are none of ours."""
    container = {"name": "engine", "image": image, "imagePullPolicy": "Always"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "fleet-chat",
            "uid": "u1",
            "resourceVersion": str(version),
            "generation": version,
            "labels": {"a": "1", "theirs": "2"},
            "managedFields": [
                {"manager": "multislo-operator", "operation": "Apply", "time": "2026-01-01T00:00:09Z"},
                {"manager": "kube-controller-manager", "subresource": "status", "time": "2026-01-01T00:00:08Z"},
                {"manager": "somebody", "operation": "Update", "time": "2026-01-01T00:00:03Z"},
                {"manager": "earlier", "operation": "Update", "time": "2026-01-01T00:00:01Z"},
            ],
        },
        "spec": {"replicas": 1, "template": {"spec": {"containers": [container]}}, **spec},
        "status": {"replicas": 1},
    }


def applied(now: float = 0.0, whole: bool = True) -> Child:
    child = Child(whole)
    assert child.due(DESIRED, None, True, now) is Due.APPLY
    child.applied(DESIRED, live(), now)
    return child


def test_what_is_as_it_was_applied_is_left_alone() -> None:
    child = applied()
    assert child.due(DESIRED, live(), True, 1.0) is Due.NO
    assert child.due({**DESIRED}, live(), True, 2.0) is Due.NO


def test_a_new_wish_is_applied() -> None:
    child = applied()
    wish = {**DESIRED, "spec": {"template": {"spec": {"containers": [{"name": "engine", "image": "y"}]}}}}
    assert child.due(wish, live(), True, 1.0) is Due.APPLY


def test_another_count_of_replicas_and_another_status_are_none_of_it() -> None:
    child = applied()
    assert child.due(DESIRED, live(version=2, replicas=7), True, 1.0) is Due.NO


def test_a_changed_field_of_ours_a_new_object_of_the_name_and_a_missing_one_are_applied() -> None:
    assert applied().due(DESIRED, live(2, image="z"), True, 1.0) is Due.APPLY
    other = live(2)
    other["metadata"]["uid"] = "u2"
    assert applied().due(DESIRED, other, True, 1.0) is Due.APPLY
    assert applied().due(DESIRED, None, True, 1.0) is Due.APPLY


def test_where_only_metadata_are_watched_their_generation_tells() -> None:
    child = applied(whole=False)

    def metadata_only(version: str, generation: int) -> dict[str, Any]:
        return {"metadata": {**live()["metadata"], "resourceVersion": version, "generation": generation}}

    assert child.due(DESIRED, metadata_only("1", 1), True, 1.0) is Due.NO
    # A PodDisruptionBudget's status, say.
    assert child.due(DESIRED, metadata_only("2", 1), True, 2.0) is Due.NO
    assert child.due(DESIRED, metadata_only("3", 2), True, 3.0) is Due.APPLY


def test_an_unwatched_child_is_applied_again_now_and_then() -> None:
    child = applied()
    assert child.due(DESIRED, None, False, UNWATCHED_AGAIN_S - 1.0) is Due.NO
    assert child.due(DESIRED, None, False, UNWATCHED_AGAIN_S) is Due.APPLY


def fight(child: Child, until: float, every_s: float = 0.5) -> list[float]:
    """Somebody rewrites it each time; when it was applied again."""
    applies, now, version = [], 1.0, 2
    while now < until:
        version += 1
        if child.due(DESIRED, live(version, image="theirs"), True, now) is Due.APPLY:
            applies.append(now)
            child.applied(DESIRED, live(version + 1), now)
        now += every_s
    return applies


def test_an_edit_war_is_fought_three_times_and_then_ever_more_rarely() -> None:
    child = applied()
    applies = fight(child, 3 * 3600.0)
    assert len([at for at in applies if at < HOLD_FIRST_S]) == EDITS_MAX
    gaps = [later - earlier for earlier, later in zip(applies[EDITS_MAX - 1 :], applies[EDITS_MAX:], strict=False)]
    assert gaps == sorted(gaps)
    assert HOLD_FIRST_S <= gaps[0] <= HOLD_FIRST_S + 2.0
    assert HOLD_MAX_S <= gaps[-1] <= HOLD_MAX_S + 2.0
    assert len(applies) < 30
    assert child.rival == "somebody"


def test_an_edit_a_day_is_no_war() -> None:
    child = applied()
    applies = fight(child, 30 * 86400.0, 86400.0)
    assert len(applies) == 30


def test_after_a_long_peace_a_war_begins_anew() -> None:
    child = applied()
    fight(child, 120.0)
    assert child.holds > 1
    calm = child.held_until + 2 * HOLD_MAX_S
    assert child.due(DESIRED, live(900, image="theirs"), True, calm) is Due.APPLY
    assert child.holds == 0


def test_the_rival_is_the_last_writer_besides_us_and_the_controllers() -> None:
    assert rival(live()) == "somebody"
    assert rival(None) == ""
