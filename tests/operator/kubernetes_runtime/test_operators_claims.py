"""Two installations of the operator over one namespace, each with its own clock of the same Lease."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from multislo_operator.kubernetes.claims import ASIDE_KEPT_S, DURATION_S, Claims
from multislo_operator.kubernetes.client import AlreadyExists, Api, Conflict, Kind, NotFound, Refused
from multislo_operator.kubernetes.own_key import KeyUnusable, own_key

Json = dict[str, Any]
NS = "serving"


@dataclass(slots=True)
class Store:
    """Objects by name, with versions; `refused`: every call is."""

    objects: dict[str, Json] = field(default_factory=dict)
    refused: bool = False
    version: int = 0

    def _judge(self) -> None:
        if self.refused:
            raise Refused(403, "Forbidden", "no right")

    def _keep(self, object: Mapping[str, Any]) -> Json:
        self.version += 1
        kept = copy.deepcopy(dict(object))
        kept["metadata"] |= {
            "resourceVersion": str(self.version),
            "uid": kept["metadata"].get("uid", f"u{self.version}"),
        }
        self.objects[kept["metadata"]["name"]] = kept
        return copy.deepcopy(kept)

    async def get(self, kind: Kind, namespace: str, name: str) -> Json:
        self._judge()
        if name not in self.objects:
            raise NotFound(404, "NotFound", name)
        return copy.deepcopy(self.objects[name])

    async def create(self, object: Mapping[str, Any]) -> Json:
        self._judge()
        if object["metadata"]["name"] in self.objects:
            raise AlreadyExists(409, "AlreadyExists", "it is there")
        return self._keep(object)

    async def replace(self, object: Mapping[str, Any]) -> Json:
        self._judge()
        live = self.objects.get(object["metadata"]["name"])
        if live is None:
            raise NotFound(404, "NotFound", "gone")
        if live["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", "it has moved on")
        return self._keep(object)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> Json:
        self._judge()
        return self.objects.pop(name)


@dataclass(slots=True)
class World:
    store: Store = field(default_factory=Store)
    now: float = 0.0

    def operator(self, name: str, **more: Any) -> Claims:
        return Claims(cast(Api, self.store), name, clock=lambda: self.now, **more)

    async def live(self, seconds: float, *operators: Claims) -> None:
        end = self.now + seconds
        while self.now < end:
            for operator in operators:
                await operator.look([NS])
            self.now += 1.0


@pytest.fixture
def world() -> World:
    return World()


async def test_the_first_goes_on_and_both_know_of_each_other(world: World) -> None:
    first, second = world.operator("one/multislo-operator"), world.operator("two/multislo-operator")
    await world.live(3, first)
    assert first.known(NS)
    await world.live(60, first, second)
    assert (first.rival(NS), second.rival(NS)) == ("", "one/multislo-operator")
    assert (first.aside(NS), second.aside(NS)) == ("two/multislo-operator", "")


async def test_whoever_begins_at_the_same_moment_only_one_goes_on(world: World) -> None:
    operators = [world.operator(name) for name in ("a", "b", "c")]
    await world.live(40, *operators)
    assert sum(not operator.rival(NS) for operator in operators) == 1


async def test_when_the_first_is_gone_the_other_takes_over(world: World) -> None:
    first, second = world.operator("one"), world.operator("two")
    await world.live(3, first)
    await world.live(60, first, second)
    await world.live(DURATION_S - 6, second)
    assert second.rival(NS) == "one"
    await world.live(15, second)
    assert second.rival(NS) == ""
    # The first was only away, and finds the other at work.
    await world.live(20, first, second)
    assert (first.rival(NS), second.rival(NS)) == ("two", "")


async def test_one_that_has_gone_for_good_is_spoken_of_no_longer(world: World) -> None:
    first, second = world.operator("one"), world.operator("two")
    await world.live(3, first)
    await world.live(30, first, second)
    assert first.aside(NS) == "two"
    await world.live(ASIDE_KEPT_S + 15, first)
    assert first.aside(NS) == ""


async def test_the_next_leader_of_an_installation_goes_on_at_once(world: World) -> None:
    await world.live(3, world.operator("one"))
    following = world.operator("one")
    await world.live(1, following)
    assert following.known(NS)
    assert following.rival(NS) == ""


async def test_one_without_replicas_lets_go_when_it_stops(world: World) -> None:
    alone = world.operator("one", lets_go=True)
    await world.live(3, alone)
    await alone.look([])
    assert not world.store.objects


async def test_without_the_right_to_leases_an_operator_goes_on(world: World) -> None:
    world.store.refused = True
    lone = world.operator("one")
    assert not lone.known(NS)
    await world.live(2, lone)
    assert lone.known(NS)
    assert lone.rival(NS) == ""


@pytest.mark.parametrize("spoiled", [{}, {"spec": None}, {"spec": {"holderIdentity": 3, "leaseDurationSeconds": "x"}}])
async def test_a_lease_that_somebody_spoiled_ends_nothing(world: World, spoiled: Json) -> None:
    world.store.objects["multislo-fleets"] = {
        "metadata": {"name": "multislo-fleets", "resourceVersion": "1"},
        **spoiled,
    }
    lone = world.operator("one")
    await world.live(60, lone)
    assert lone.known(NS)


# -- the key -----------------------------------------------------------------------------------------------------------------------


async def test_the_key_is_made_once_and_read_ever_after() -> None:
    store = Store()
    api = cast(Api, store)
    owner = {"kind": "Deployment", "name": "multislo", "uid": "u"}
    key = await own_key(api, "system", "multislo-key", [owner])
    assert len(key) == 32
    assert await own_key(api, "system", "multislo-key", []) == key
    assert store.objects["multislo-key"]["immutable"] is True
    assert store.objects["multislo-key"]["metadata"]["ownerReferences"] == [owner]


@pytest.mark.parametrize("data", [None, {}, {"key": ""}, {"key": "c2hvcnQ="}, {"key": "no base64!"}, {"key": 3}])
async def test_a_secret_without_a_key_is_told_in_words(data: object) -> None:
    store = Store()
    store.objects["k"] = {"metadata": {"namespace": "system", "name": "k"}, "data": data}
    with pytest.raises(KeyUnusable, match="Secret system/k"):
        await own_key(cast(Api, store), "system", "k", [])
