"""What the operator reads out of pods, Deployments and ReplicaSets, odd ones among them."""

from datetime import timedelta

import pytest
from as_seen import AT, NOON, Json, deployment, engine, owned_by, pod, replica_set, workload

from multislo_operator.decide.fleet import InstanceState
from multislo_operator.kubernetes import names
from multislo_operator.kubernetes.pods import NODE_LOST_S, as_of, engine_pods, router_pods, unix
from multislo_operator.kubernetes.workloads import replicas_owner, workloads


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (engine(ready=False, serving=False), InstanceState.STARTING),
        (engine(serving=False), InstanceState.READY),
        (engine(ready=False), InstanceState.FAILED),
        (engine(annotations={names.DRAINING_SINCE: NOON}), InstanceState.DRAINING),
        (engine(ready=False, annotations={names.DRAINING_SINCE: NOON}), InstanceState.DRAINING),
    ],
)
def test_the_state_of_an_instance_is_read_from_its_pod(seen: object, state: InstanceState) -> None:
    assert getattr(seen, "state") is state  # noqa: B009 - parametrize tells no type.


def test_a_pod_whose_image_cannot_be_pulled_does_not_come_up() -> None:
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}, "restartCount": 0}
    seen = engine(ready=False, serving=False, status={"containerStatuses": [waiting]})
    assert seen.hopeless
    assert seen.state is InstanceState.FAILED
    assert not seen.served
    assert (seen.waiting, seen.waiting_message) == ("ImagePullBackOff", "no such tag")


def test_a_pod_that_is_only_being_created_may_still_come_up() -> None:
    creating = {"state": {"waiting": {"reason": "ContainerCreating"}}}
    assert not engine(ready=False, serving=False, status={"containerStatuses": [creating]}).hopeless


def test_an_engine_that_ends_again_and_again_does_not_come_up() -> None:
    ended = {"state": {"running": {}}, "restartCount": 3}
    assert engine(ready=False, serving=False, status={"containerStatuses": [ended]}).hopeless


def test_annotations_that_somebody_wrote_by_hand_are_no_reason_to_fall_over() -> None:
    odd = {names.DRAINING_SINCE: "yesterday", names.BATCH_TOKENS: "many", names.DELETION_COST: ""}
    seen = engine(annotations=odd)
    assert (seen.draining_at, seen.batch_tokens, seen.deletion_cost) == (None, 0, 0)


def test_a_pod_with_next_to_nothing_in_it_is_read_too() -> None:
    bare = {
        "metadata": {
            "name": "p",
            "uid": "u",
            "creationTimestamp": NOON,
            "labels": {names.COMPONENT: names.ENGINE},
            "annotations": None,
        },
        "spec": {"schedulingGates": None},
    }
    (seen,) = engine_pods([bare])
    assert (seen.tier, seen.ip, seen.url, seen.gated, seen.state) == ("", None, None, False, InstanceState.STARTING)


def test_pods_without_labels_are_nobodys() -> None:
    stranger = {"metadata": {"name": "x", "labels": None}, "spec": {}}
    assert engine_pods([stranger]) == []
    assert router_pods([stranger]) == []


def test_an_address_of_six_words_stands_in_brackets() -> None:
    assert engine(status={"podIP": "fd00::7"}).url == "http://[fd00::7]:8000"


def test_an_instance_is_in_its_tier_since_it_came_there() -> None:
    moved = engine(annotations={names.TIER_SINCE: NOON})
    assert moved.since == unix(NOON)


def test_why_no_node_takes_a_pod_is_told_and_a_gate_is_no_such_reason() -> None:
    def scheduled(reason: str) -> dict[str, object]:
        return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": reason, "message": "0/3 nodes"}]}

    assert engine(status=scheduled("Unschedulable")).unschedulable == "0/3 nodes"
    assert engine(status=scheduled("SchedulingGated"), gated=True).unschedulable is None


# -- replicas ----------------------------------------------------------------------------------------------------------


def test_replicas_belong_to_who_wrote_them_last() -> None:
    earlier = owned_by("multislo-operator", "2026-11-01T11:00:00Z")
    assert replicas_owner([*earlier, *owned_by("kubectl-edit")]) == ("kubectl-edit", unix(NOON))
    assert replicas_owner([{"manager": "multislo-operator", "operation": "Apply", "fieldsV1": {"f:spec": {}}}]) == (
        None,
        0.0,
    )


def test_replicas_that_nobody_has_set_are_a_default_and_count_as_none() -> None:
    fresh = workload(replicas=1, managed=[])
    assert (fresh.never_scaled, fresh.replicas, fresh.to_come, fresh.outside) == (True, 0, 0, None)


def test_what_somebody_else_has_set_is_kept_for_ten_minutes() -> None:
    assert not workload().kept_outside(AT)
    assert workload(managed=owned_by("hpa", "2026-11-01T11:50:01Z")).kept_outside(AT)
    assert not workload(managed=owned_by("hpa", "2026-11-01T11:50:00Z")).kept_outside(AT)


def test_the_template_is_that_of_the_present_revision() -> None:
    sets = {"a": replica_set(hash="old", revision="1"), "b": replica_set(hash="new", revision="2")}
    found = workloads({"llama-batch": deployment()}, sets, engine_pods([pod("a", hash="old"), pod("b")]))["batch"]
    assert found.settled
    assert [one.name for one in found.outdated] == ["a"]
    assert found.rolling


def test_before_its_controller_has_seen_a_template_nothing_is_outdated() -> None:
    found = workload(pod("a", hash="old"), seen=2)
    assert not found.settled
    assert found.rolling
    assert found.outdated == []
    assert found.room == 0


def test_a_running_pod_is_adopted_only_where_the_controller_has_made_room() -> None:
    busy = [pod("a"), pod("b")]
    assert workload(*busy, replicas=3, places=2).room == 0
    assert workload(*busy, replicas=3, places=3).room == 1
    late = replica_set(replicas=3, acted=False)
    found = workloads({"llama-batch": deployment(replicas=3)}, {"r": late}, engine_pods(busy))["batch"]
    assert found.room == 0


def test_replicas_can_be_lowered_by_as_many_gated_pods_as_there_are() -> None:
    running, gated = pod("a"), pod("b", gated=True, ready=False, serving=False)
    assert workload(running, gated).droppable == 1
    assert workload(running, gated, replicas=1).droppable == 0, "that one goes already"
    assert workload(running).droppable == 0, "the controller has not offered one yet"
    assert workload(gated).droppable == 2, "nothing runs"
    assert workload(pod("c", hash="old"), gated).droppable == 0, "a roll-out would share the loss out among old and new"


def test_an_instance_that_is_to_be_replaced_is_counted_as_its_successor() -> None:
    found = workload(pod("a", hash="old", annotations={names.REPLACED: "true"}), pod("b"))
    assert [one.name for one in found.instances] == ["b"]
    assert found.to_come == 1


def test_an_instance_whose_template_is_back_is_not_to_be_replaced() -> None:
    assert workload(pod("a", annotations={names.REPLACED: "true"}), pod("b")).to_come == 0


def test_pods_that_have_ended_or_are_being_deleted_are_no_instances() -> None:
    going = pod("a", metadata={"deletionTimestamp": NOON})
    ended = pod("b", status={"phase": "Failed"})
    assert workload(going, ended).running == []


# -- what is lost, and what was taken out ------------------------------------------------------------------------------------------

READY_SILENT = [
    {"type": "ContainersReady", "status": "True"},
    {"type": names.SERVING, "status": "True"},
    {"type": "Ready", "status": "False", "lastTransitionTime": NOON},
]


def on_a_node(**more: Json) -> Json:
    found = pod("a", **more)
    found["spec"]["nodeName"] = "gpu-1"
    return found


def lost_after(seen: Json, seconds: float) -> bool:
    (found,) = as_of(engine_pods([seen]), AT + timedelta(seconds=seconds))
    return found.lost


def test_a_pod_whose_node_is_silent_fails_at_once_and_is_lost_after_a_minute() -> None:
    silent = on_a_node(status={"conditions": READY_SILENT})
    (now,) = engine_pods([silent])
    assert (now.state, now.holds_place, now.alive) == (InstanceState.FAILED, True, True)
    assert not lost_after(silent, NODE_LOST_S - 1)
    assert lost_after(silent, NODE_LOST_S)
    (then,) = as_of([now], AT + timedelta(seconds=NODE_LOST_S))
    assert (then.holds_place, then.alive) == (False, False)


@pytest.mark.parametrize("reason", ["ReadinessGatesNotReady", "ContainersNotReady", "PodFailed"])
def test_a_pod_that_its_kubelet_calls_unready_is_not_lost(reason: str) -> None:
    told = [*READY_SILENT[:2], {**READY_SILENT[2], "reason": reason}]
    assert not lost_after(on_a_node(status={"conditions": told}), 3600)


def test_a_pod_that_outlives_its_deletion_is_lost_and_one_within_its_grace_period_is_not() -> None:
    deleted = on_a_node(metadata={"deletionTimestamp": NOON})
    assert not lost_after(deleted, -600)
    assert not lost_after(deleted, NODE_LOST_S - 1)
    assert lost_after(deleted, NODE_LOST_S)


def test_what_no_node_has_taken_or_what_is_over_is_not_lost() -> None:
    assert not lost_after(pod("a", status={"conditions": READY_SILENT}), 3600)
    assert not lost_after(on_a_node(metadata={"deletionTimestamp": NOON}, status={"phase": "Failed"}), 3600)


@pytest.mark.parametrize("label", [names.TIER, names.TEMPLATE_HASH])
def test_a_pod_that_lost_its_label_is_in_no_tier(label: str) -> None:
    taken_out = pod("a", hash="new")
    del taken_out["metadata"]["labels"][label]
    found = workloads({"llama-batch": deployment()}, {"r": replica_set()}, engine_pods([taken_out, pod("b")]))
    assert [member.name for member in found["batch"].pods] == ["b"]
