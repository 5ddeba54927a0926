"""Single stories on the toy cluster: what a user does, and what becomes of the instances."""

import cluster_model as model
import pytest
from cluster_life import Life
from cluster_model import BROKEN, is_gated, is_terminating

from multislo_operator.kubernetes import cache as caches
from multislo_operator.kubernetes import names


@pytest.fixture
def life() -> Life:
    """Two tiers of two instances each, at rest, with light traffic."""
    life = Life(7)
    spec = life.spec
    for tier in spec["tiers"]:
        tier["instances"] = {"min": 2, "max": 4}
    life.edit(spec)
    life.converge(120)
    life.rates = {"realtime": 0.8, "batch": 0.8}
    life.run(15)
    return life


def uids(life: Life) -> set[str]:
    return {pod["metadata"]["uid"] for pod in life.engines()}


def scaled(life: Life, **least: int) -> None:
    spec = life.spec
    for tier in spec["tiers"]:
        if tier["name"] in least:
            tier["instances"]["min"] = least[tier["name"]]
    life.edit(spec)


def test_a_move_between_tiers_restarts_nothing_and_starts_no_third_instance(life: Life) -> None:
    spec = life.spec
    spec["scaling"]["acceleratorsMax"] = 4
    life.edit(spec)
    before = uids(life)
    let_go = []
    scaled(life, realtime=3, batch=1)
    for _ in range(200):
        life.step()
        let_go.append(sum(not is_gated(pod) for pod in life.engines()))
    life.converge(120)
    assert len(life.ready("realtime")) == 3
    assert uids(life) == before
    assert max(let_go) == 4


def test_a_busy_instance_that_scaling_takes_away_is_drained_first(life: Life) -> None:
    life.rates = {"realtime": 0.0, "batch": 2.0}
    life.run(100)
    before = uids(life)
    life.rates = {}
    spec = life.spec
    for tier in spec["tiers"]:
        tier["instances"] = {"min": 1, "max": 1}
    spec["scaling"]["acceleratorsMax"] = 2
    life.edit(spec)
    life.converge(200)
    assert len(uids(life)) == 2
    assert uids(life) < before


def test_a_new_template_is_rolled_out_instance_by_instance(life: Life) -> None:
    before = uids(life)
    life.set_template(**{"test/image": "2"})
    fewest = 4
    while not before.isdisjoint(uids(life)):
        life.step()
        fewest = min(fewest, len(life.ready("realtime")) + len(life.ready("batch")))
        assert life.cluster.now < 400
    life.converge(200)
    assert fewest == 4, "there was an accelerator to spare"
    assert len(uids(life)) == 4


def test_without_an_accelerator_to_spare_a_roll_out_makes_room_one_at_a_time(life: Life) -> None:
    spec = life.spec
    spec["scaling"]["acceleratorsMax"] = 4
    life.edit(spec)
    before = uids(life)
    life.set_template(**{"test/image": "2"})
    fewest = 4
    while not before.isdisjoint(uids(life)):
        life.step()
        fewest = min(fewest, len(life.ready("realtime")) + len(life.ready("batch")))
        assert life.cluster.now < 400
    life.converge(200)
    assert fewest == 3


@pytest.mark.parametrize("budget", [4, 5])
def test_an_image_that_does_not_come_up_costs_one_instance_at_most(life: Life, budget: int) -> None:
    spec = life.spec
    spec["scaling"]["acceleratorsMax"] = budget
    life.edit(spec)
    old = uids(life)
    life.set_template(**{BROKEN: "yes"})
    for _ in range(400):
        life.step()
        serving = [pod for pod in life.engines() if model.is_true(pod, "ContainersReady")]
        serving = [pod for pod in serving if names.DRAINING_SINCE not in pod["metadata"]["annotations"]]
        assert len(serving) >= (4 if budget == 5 else 3), life.scene()
    assert life.outcome is not None
    workloads = next(c for c in life.outcome.status["conditions"] if c["type"] == "WorkloadsReady")
    assert (workloads["status"], workloads["reason"]) == ("False", "RolloutStuck")
    assert "ImagePullBackOff" in workloads["message"]
    spec = life.spec
    spec["engine"].pop("podTemplate")
    life.edit(spec)
    life.converge(300)
    assert len(uids(life) & old) >= 3, "those that served on are left as they are"


def test_a_tier_that_leaves_the_manifest_is_drained_and_its_deployment_goes(life: Life) -> None:
    spec = life.spec
    spec["tiers"].pop()
    life.edit(spec)
    life.converge(200)
    assert "llama-batch" not in life.cluster.objects["Deployment"]
    assert "llama-batch" not in life.cluster.objects["PodDisruptionBudget"]
    assert life.engines("batch") == []


def test_replicas_that_somebody_else_sets_are_kept_for_ten_minutes(life: Life) -> None:
    life.set_outside("llama-batch", 3)
    life.converge(100)
    assert len(life.ready("batch")) == 3
    assert life.outcome is not None
    scaling = next(c for c in life.outcome.status["conditions"] if c["type"] == "ScalingReady")
    assert scaling["reason"] == "ReplicasEditedOutside"
    life.cluster.now += 540.0
    life.run(100)
    life.converge(200)
    assert len(life.ready("batch")) == 2


def test_without_a_router_that_answers_nothing_is_taken_away_and_the_minima_are_kept(life: Life) -> None:
    life.routers.clear()
    life.cluster.told = lambda pod: False
    before = uids(life)
    life.heard.clear()
    for pod in life.cluster.all("Pod"):
        if model.component(pod) == names.ROUTER:
            life.cluster.crash_container(pod["metadata"]["name"])
    life.rates = {}
    life.run(60)
    assert uids(life) == before


def test_an_operator_that_dies_during_a_roll_out_goes_on_with_it(life: Life) -> None:
    life.crash_share = 0.2
    before = uids(life)
    life.set_template(**{"test/image": "2"})
    life.run(120)
    life.converge(300)
    assert before.isdisjoint(uids(life))
    assert len(uids(life)) == 4


def test_a_field_of_a_newer_crd_is_told_and_changes_nothing_that_runs(life: Life) -> None:
    before, spec = uids(life), life.spec
    spec["later"] = {"deep": 1}
    for tier in spec["tiers"]:
        tier["later"] = "default"
    life.resource = {**life.resource, "spec": spec}  # Filled in by the API server, which raises no generation.
    life.cache.put(caches.RESOURCE, life.resource)

    first = life.look()
    again = life.look()

    (note,) = [note for note in first.notes if note.reason == "UnknownFields"]
    assert note.warning
    assert "tiers[0].later" in note.message
    assert not again.notes
    life.run(30)
    assert uids(life) == before
    status = life.outcome.status if life.outcome else {}
    assert {c["type"]: c["status"] for c in status["conditions"]}["Ready"] == "True"
    assert status["notes"] == [note.message]


def test_while_the_manifest_cannot_be_used_the_tiers_stay_told_though_an_older_crd_drops_a_field_of_them(
    life: Life,
) -> None:
    spec = life.spec
    spec["tiers"][0]["slo"]["tpot"] = "never"
    assert life.outcome is not None
    rows = [{k: v for k, v in row.items() if k != "starting"} for row in life.outcome.status["tiers"]]
    life.resource["status"] = {"tiers": rows}
    life.edit(spec)

    status = life.look().status

    assert judged(life, "Ready")["reason"] == "ManifestInvalid"
    assert status["tiers"] == rows


# -- what the API server refuses -----------------------------------------------------------------------------------------------


def judged(life: Life, type: str) -> dict[str, str]:
    assert life.outcome is not None
    return next(c for c in life.outcome.status["conditions"] if c["type"] == type)


def test_while_its_new_template_is_refused_a_fleet_is_scaled_and_its_losses_are_put_back(life: Life) -> None:
    before = uids(life)
    life.api.policy = lambda object: "cpu request exceeds its limit" if "too-much" in str(object) else None
    life.set_template(**{"test/cpu": "too-much"})
    life.run(5)
    assert judged(life, "ChangeRefused")["status"] == "True"
    assert "Deployment llama-batch: cpu request exceeds its limit" in judged(life, "ChangeRefused")["message"]
    assert (judged(life, "Ready")["status"], judged(life, "Ready")["reason"]) == ("False", "ChangeRefused")
    assert uids(life) == before

    life.cluster.delete(model.POD, sorted(life.ready("realtime"))[0], "outside")
    scaled(life, batch=3)
    life.converge(200)
    assert len(life.ready("realtime")) == 2
    assert len(life.ready("batch")) == 3
    assert len(uids(life) & before) == 3, "nothing else was touched"

    life.set_template(**{"test/cpu": "enough"})
    life.converge(400)
    assert judged(life, "ChangeRefused")["status"] == "False"
    assert judged(life, "Ready")["status"] == "True"
    assert uids(life).isdisjoint(before)


def test_while_pods_of_a_new_template_are_refused_what_the_old_one_loses_is_put_back(life: Life) -> None:
    """The dry run did not see it: a quota came afterwards, or the operator may not try pods."""
    before = uids(life)
    life.cluster.quota = lambda pod: (
        "exceeded quota" if "test/large" in (pod["metadata"].get("annotations") or {}) else None
    )
    life.set_template(**{"test/large": "yes"})
    life.run(10)
    assert judged(life, "WorkloadsReady")["reason"] == "RolloutStuck"
    assert "exceeded quota" in judged(life, "WorkloadsReady")["message"]
    life.cluster.delete(model.POD, sorted(life.ready("realtime"))[0], "outside")
    life.run(60)
    assert len(life.ready("realtime")) == 2
    assert len(uids(life) & before) == 3

    life.cluster.quota = lambda pod: None
    life.run(45)
    life.converge(400)
    assert uids(life).isdisjoint(before)


def test_a_quota_that_is_raised_is_noticed_within_half_a_minute(life: Life) -> None:
    life.cluster.quota = lambda pod: "exceeded quota"
    scaled(life, realtime=3)
    written = len(life.api.writes)
    life.run(300)
    assert judged(life, "WorkloadsReady")["reason"] == "QuotaExceeded"
    asked = [write for write in life.api.writes[written:] if "asked-again-at" in write]
    assert 8 <= len(asked) <= 11, asked

    life.cluster.quota = lambda pod: None
    life.run(45)
    assert len(life.ready("realtime")) == 3
    written = len(life.api.writes)
    life.run(60)
    assert not [write for write in life.api.writes[written:] if "asked-again-at" in write]


# -- lost nodes ----------------------------------------------------------------------------------------------------------------


def one_accelerator(life: Life) -> str:
    """A fleet of one tier, one instance and a budget of one; its pod."""
    spec = life.spec
    spec["tiers"] = [{**spec["tiers"][0], "instances": {"min": 1, "max": 1}}]
    spec["scaling"]["acceleratorsMax"] = 1
    life.rates = {}
    life.edit(spec)
    life.converge(300)
    (name,) = life.ready("realtime")
    return name


def row(life: Life, tier: str) -> dict[str, object]:
    assert life.outcome is not None
    return next(row for row in life.outcome.status["tiers"] if row["name"] == tier)


def test_a_lost_nodes_pod_holds_its_place_for_a_minute_and_says_so_and_no_longer(life: Life) -> None:
    lost = one_accelerator(life)
    life.cluster.lose(lost)
    life.run(40)
    assert [pod["metadata"]["name"] for pod in life.engines() if not is_gated(pod)] == [lost]
    assert judged(life, "Ready")["reason"] == "NodeLost"
    assert lost in judged(life, "WorkloadsReady")["message"]
    assert "node" in str(row(life, "realtime")["reason"])
    assert lost in str(row(life, "realtime")["reason"])
    assert life.outcome is not None
    assert life.outcome.status["accelerators"]["used"] == 1

    life.run(60)
    assert len(life.ready("realtime")) == 1
    assert lost not in life.ready("realtime")
    assert is_terminating(life.cluster.get(model.POD, lost)), "it ends when its node is back"
    assert life.outcome.status["accelerators"]["used"] == 1
    assert judged(life, "Ready")["status"] == "True"
    assert any(lost in note for note in life.outcome.status["notes"])

    life.cluster.find(lost)
    life.converge(120)
    assert len(life.engines()) == 1
    assert not life.outcome.status["notes"]


def test_a_node_that_is_back_within_the_minute_keeps_its_pod(life: Life) -> None:
    name = one_accelerator(life)
    life.cluster.lose(name)
    life.run(30)
    life.cluster.find(name)
    life.converge(120)
    assert life.ready("realtime") == [name]


def test_a_pod_that_is_being_deleted_on_a_lost_node_is_lost_too(life: Life) -> None:
    lost = one_accelerator(life)
    life.cluster.delete(model.POD, lost, "outside")
    life.cluster.lose(lost)
    life.run(100)
    assert len(life.ready("realtime")) == 1
    assert lost not in life.ready("realtime")


# -- quarantine ----------------------------------------------------------------------------------------------------------------


def test_a_pod_whose_tier_label_is_removed_gets_no_request_and_is_replaced_within_the_budget(life: Life) -> None:
    spec = life.spec
    spec["scaling"]["acceleratorsMax"] = 4
    life.edit(spec)
    life.run(5)
    out = sorted(life.ready("realtime"))[0]
    life.cluster.write(model.POD, out, lambda pod: pod["metadata"]["labels"].pop(names.TIER))
    life.run(30)
    told = next(iter(life.routers.values()))
    assert out not in told.fleet or told.fleet[out].state == "draining"
    assert len(life.ready("realtime")) == 1, "it holds its accelerator, and the budget has no other"
    assert any(out in note for note in life.outcome.status["notes"])  # type: ignore[union-attr]
    counted = {
        name: life.cluster.get("Deployment", name)["spec"]["replicas"] for name in ("llama-realtime", "llama-batch")
    }
    said = len(life.notes)
    for _ in range(10):
        life.run(60)
        assert (judged(life, "WorkloadsReady")["status"], judged(life, "WorkloadsReady")["reason"]) == (
            "False",
            "BudgetHeld",
        )
        assert f"realtime 1 of 2. {out} is out of the fleet" in judged(life, "WorkloadsReady")["message"]
        assert "realtime waits for a place" in judged(life, "ScalingReady")["message"]
    assert {name: life.cluster.get("Deployment", name)["spec"]["replicas"] for name in counted} == counted
    assert not life.notes[said:], "what waits for a place is not tried again and again"

    spec["scaling"]["acceleratorsMax"] = 5
    life.edit(spec)
    life.run(60)
    assert len(life.ready("realtime")) == 2
    assert out not in told.fleet, "its requests have ended"
    assert not is_terminating(life.cluster.get(model.POD, out)), "whoever took it out may look at it"
