"""Whole lives of a fleet on a toy cluster: what must hold does, at every moment and with whatever happens."""

import os

import pytest
from cluster_life import BULK, Life
from cluster_model import BROKEN

LIVES = int(os.environ.get("MULTISLO_LIVES", "5"))


def test_a_new_resource_gets_its_instances_and_then_rests() -> None:
    life = Life(1)
    life.converge(60)
    assert len(life.ready("realtime")) == len(life.ready("batch")) == 1


def random_life(seed: int) -> Life:
    """Two hundred seconds of everything, then rest."""
    life = Life(seed)
    dice = life.dice
    life.crash_share = dice.choice((0.0, 0.0, 0.02, 0.1))
    life.failure_share = dice.choice((0.0, 0.0, 0.03))
    life.cluster.eagerness = dice.choice((0.3, 0.6, 0.9))
    life.cluster.accelerators = dice.choice((16, 16, 5))
    if dice.random() < 0.5:
        spec = life.spec
        spec["scaling"]["warmPool"] = {"min": dice.choice((0, 1)), "max": 2}
        spec["router"]["replicas"] = dice.choice((1, 2))
        spec["tiers"][1]["instances"]["min"] = dice.choice((0, 1, 2))
        life.edit(spec)
    happenings = [*HAPPENINGS]
    dice.shuffle(happenings)
    happenings = happenings[: dice.randint(2, len(happenings))]
    while life.cluster.now < 200.0:
        life.step()
        if dice.random() < 0.02:
            happen = dice.choice(happenings)
            happen(life)
    quiet(life)
    return life


def quiet(life: Life) -> None:
    spec = life.spec
    spec["engine"].pop("podTemplate", None)
    if life.cluster.accelerators < spec["scaling"]["acceleratorsMax"]:
        life.cluster.accelerators = 16
    life.edit(spec)
    for stream in life.cluster.streams.values():
        stream.lag_s = 0.05
    life.rates = {tier: min(rate, 1.0) for tier, rate in life.rates.items()}
    life.converge(700.0)


def load_changes(life: Life) -> None:
    for tier in ("realtime", "batch", "bulk"):
        life.rates[tier] = life.dice.choice((0.0, 0.5, 2.0, 5.0, 8.0))
    life.say(f"load: {life.rates}")


def engine_killed(life: Life) -> None:
    if life.engines():
        life.cluster.delete("Pod", life.dice.choice(life.engines())["metadata"]["name"], "outside")


def engine_crashes(life: Life) -> None:
    running = [pod for pod in life.engines() if "podIP" in pod["status"] and "deletionTimestamp" not in pod["metadata"]]
    if running:
        name = life.dice.choice(running)["metadata"]["name"]
        life.say(f"{name} crashes")
        life.cluster.crash_container(name)


def router_killed(life: Life) -> None:
    if life.routers:
        life.cluster.delete("Pod", life.dice.choice(sorted(life.routers)), "outside")


def second_router(life: Life) -> None:
    spec = life.spec
    spec["router"]["replicas"] = life.dice.choice((1, 2))
    life.edit(spec)


def limits_change(life: Life) -> None:
    spec = life.spec
    for tier in spec["tiers"]:
        tier["instances"] = {"min": life.dice.choice((0, 1, 2)), "max": life.dice.choice((2, 4))}
    spec["scaling"]["acceleratorsMax"] = life.dice.choice((6, 6, 8))
    life.edit(spec)


def tier_comes_or_goes(life: Life) -> None:
    spec = life.spec
    if len(spec["tiers"]) == 3:
        spec["tiers"].pop()
    else:
        spec["tiers"].append(BULK)
    life.edit(spec)


def new_image(life: Life) -> None:
    life.set_template(**{"test/image": str(life.dice.randint(0, 3))})


def broken_image(life: Life) -> None:
    life.set_template(**{BROKEN: "yes"})


def outside_edit(life: Life) -> None:
    tiers = [tier["name"] for tier in life.spec["tiers"]]
    name = f"llama-{life.dice.choice(tiers)}"
    if name in life.cluster.objects.get("Deployment", {}) and not life.pinned:
        life.set_outside(name, life.dice.randint(1, 3))


def watches_lag(life: Life) -> None:
    for stream in life.cluster.streams.values():
        stream.lag_s = life.dice.choice((0.02, 0.1, 0.5, 2.0, 4.0))


def nodes_change(life: Life) -> None:
    life.cluster.accelerators = life.dice.choice((4, 6, 16))


HAPPENINGS = (
    load_changes, load_changes, engine_killed, engine_crashes, router_killed, second_router, limits_change, tier_comes_or_goes,
    new_image, broken_image, outside_edit, watches_lag, nodes_change,
)  # fmt: skip


FOUND = (22, 122, 236, 241, 530, 5030, 5093)
"""Lives in which something once broke: the budget by what a vanished tier left, a superseded template, a move without its raise, an
instance that the controller took for unready, the older of two old templates, a move into a Deployment whose first
count failed, a template that comes back amid its roll-out."""


@pytest.mark.parametrize("seed", sorted({*range(LIVES), *FOUND}))
def test_a_random_life_breaks_nothing_and_comes_to_rest(seed: int) -> None:
    random_life(seed)
