"""From what is wanted of a tier to its replicas and its pods' labels, over the looks that it takes."""

from dataclasses import replace

from as_seen import AT, pod, workload

from multislo_operator.kubernetes import ledger, names
from multislo_operator.kubernetes.changes import PatchPod, Scale
from multislo_operator.kubernetes.draft import Draft
from multislo_operator.kubernetes.ledger import Count, Ledger
from multislo_operator.kubernetes.pods import engine_pods
from multislo_operator.kubernetes.workloads import Workload

GATED = pod("g", gated=True, ready=False, serving=False)


def drafted(*found: Workload) -> Draft:
    return Draft({one.tier: one for one in found}, AT)


def test_replicas_go_up_at_once_and_rest_on_the_version_that_was_seen() -> None:
    draft = drafted(workload(pod("a"), pod("b")))
    draft.gains["batch"] += 2
    assert draft.changes() == [Scale("llama-batch", 4, "77")]


def test_replicas_go_down_only_when_the_gated_successor_is_there() -> None:
    draft = drafted(workload(pod("a"), pod("b")))
    draft.losses["batch"] += 1
    assert draft.changes() == []
    left = ledger.kept(draft)
    assert left.counts["batch"] == Count(1, (2, 2))

    later, _ = ledger.as_planned({"batch": workload(pod("a"), GATED)}, left, AT)
    assert later["batch"].to_come == 0, "the gated one is not let go"
    assert Draft(later, AT).changes() == [Scale("llama-batch", 1, "77")]


def test_a_loss_that_shows_late_is_not_counted_twice() -> None:
    draft = drafted(workload(pod("a"), pod("b")))
    draft.losses["batch"] += 1
    again, _ = ledger.as_planned({"batch": workload(pod("a"), pod("b"))}, ledger.kept(draft), AT)
    draft = Draft(again, AT)
    draft.losses["batch"] += 1
    assert draft.target(again["batch"]) == 1


def test_a_count_that_somebody_else_has_changed_owes_nothing() -> None:
    owed = Ledger(counts={"batch": Count(1, (2, 2))})
    now, _ = ledger.as_planned({"batch": workload(pod("a"), replicas=4)}, owed, AT)
    assert now["batch"].owed == 0


def test_a_deployment_that_nobody_has_scaled_is_scaled_even_to_what_it_has() -> None:
    draft = drafted(workload(replicas=1, managed=[]))
    assert draft.changes() == [Scale("llama-batch", 0, "77")]


def test_a_move_waits_for_its_place_and_is_planned_with_as_if_done() -> None:
    home = workload(pod("a", tier="batch"), pod("b", tier="batch"))
    draft = drafted(home, workload(pod("c", tier="fast"), tier="fast", replicas=1))
    draft.gains["fast"] += 1
    draft.losses["batch"] += 1
    draft.moving["b"] = "fast"
    ledger.move(draft, home.running)
    assert draft.changes() == [Scale("llama-fast", 2, "77")]

    raised = workload(pod("c", tier="fast"), tier="fast", replicas=2)
    found, moving = ledger.as_planned({"batch": home, "fast": raised}, ledger.kept(draft), AT)
    assert [one.name for one in found["fast"].instances] == ["c", "b"] or len(found["fast"].instances) == 2
    assert (found["fast"].to_come, found["batch"].to_come) == (0, 0)
    draft = Draft(found, AT, moving=moving)
    ledger.move(draft, home.running)
    (patch,) = draft.changes()
    assert isinstance(patch, PatchPod)
    assert patch.labels == {names.TIER: "fast", names.TEMPLATE_HASH: "new"}


def test_a_move_ends_where_its_pod_has_arrived_or_a_roll_out_has_come_between() -> None:
    on_the_way = Ledger(moving={"b": "fast"})
    fast = workload(pod("b", tier="fast"), tier="fast", replicas=1)
    assert ledger.as_planned({"fast": fast, "batch": workload()}, on_the_way, AT)[1] == {}
    to = workload(tier="fast", replicas=1)
    rolling = replace(workload(pod("b")), template_hash="newer")
    assert ledger.as_planned({"fast": to, "batch": rolling}, on_the_way, AT)[1] == {}


def test_a_move_waits_while_a_controller_has_not_seen_the_count_that_was_raised_for_it() -> None:
    on_the_way = Ledger(moving={"b": "fast"})
    home, to = workload(pod("a"), pod("b")), workload(tier="fast", replicas=1)
    for unseen in (
        {"fast": replace(to, settled=False), "batch": home},
        {"fast": to, "batch": replace(home, settled=False)},
    ):
        found, moving = ledger.as_planned(unseen, on_the_way, AT)
        assert moving == {"b": "fast"}
        assert found["fast"].to_come == 0, "else another one is started in its place"
        draft = Draft(found, AT, moving=moving)
        ledger.move(draft, home.running)
        assert [change for change in draft.changes() if isinstance(change, PatchPod)] == []
        assert ledger.kept(draft).moving == on_the_way.moving


def test_what_is_still_to_be_lowered_is_not_forgotten_while_a_controller_has_not_seen_a_count() -> None:
    owing = Ledger(counts={"batch": Count(1, (2, 2))})
    unseen = replace(workload(pod("a")), settled=False)
    found, _ = ledger.as_planned({"batch": unseen}, owing, AT)
    assert (found["batch"].owed, found["batch"].to_come) == (1, 0)
    assert ledger.kept(Draft(found, AT)).counts["batch"].target == 1


def test_an_old_instance_on_its_way_into_the_warm_pool_is_new_there() -> None:
    home, pool = workload(pod("a"), pod("b")), workload(tier=names.WARM, replicas=0)
    found, _ = ledger.as_planned({"batch": home, names.WARM: pool}, Ledger(moving={"b": names.WARM}), AT)
    (arrived,) = found[names.WARM].instances
    assert (arrived.name, arrived.since) == ("b", AT.timestamp()), "else it is stopped as one that was idle for an hour"


def test_a_pod_that_is_let_go_in_this_round_is_no_gated_one_any_more() -> None:
    found = workload(pod("a"), GATED)
    draft = drafted(found)
    (gated,) = engine_pods([GATED])
    draft.ungate(gated)
    draft.losses["batch"] += 1
    assert [change for change in draft.changes() if isinstance(change, Scale)] == []
