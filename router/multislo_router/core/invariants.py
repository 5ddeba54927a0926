"""What must always hold in the router's core, stated once. `RouterCore.check()` runs it; tests and the simulator after every event."""

from math import inf
from typing import TYPE_CHECKING

from multislo_router.core.instance import Instance
from multislo_router.core.ladder import bucket_of
from multislo_router.core.load import CALIBRATION_MAX, CALIBRATION_MIN
from multislo_router.core.request import Stage

if TYPE_CHECKING:
    from multislo_router.core.machine import RouterCore


def check(core: "RouterCore") -> None:
    """Raise AssertionError with the first invariant that is broken."""
    requests = core.requests.values()
    held = [r for r in requests if r.stage is Stage.HELD]
    placed = [r for r in requests if r.instance is not None]
    assert len(held) + len(placed) == len(core.requests), "a request is held or placed"
    assert core.pending.count == len(held), f"pending counts {core.pending.count}, held are {len(held)}"
    assert {r.id for r in core.pending} == {r.id for r in held}, "the queue holds exactly the held requests"
    assert not held or core.wake_at is not None, "something held will be looked at again"
    for tier in core.tiers:
        assert tier.pending == sum(r.tier is tier for r in held), f"tier {tier.name}: pending"
        assert tier.in_flight == sum(r.tier is tier for r in placed), f"tier {tier.name}: in flight"
        ended = sum(tier.outcomes.values()) + sum(tier.refusals.values())
        assert tier.arrived == ended + tier.pending + tier.in_flight, f"tier {tier.name}: arrivals"
    instances = {id(r.instance): r.instance for r in placed if r.instance is not None}
    instances.update({id(i): i for i in core.instances.values()})
    for instance in instances.values():
        _check_instance(instance, core)


def _check_instance(instance: Instance, core: "RouterCore") -> None:
    name = instance.id
    here = [r for r in core.requests.values() if r.instance is instance]
    assert {r.id for r in here} == {*instance.prefills, *instance.decodes}, f"{name}: its requests are the core's"
    assert all(r.stage is Stage.PREFILL for r in instance.prefills.values()), f"{name}: stages of prefills"
    assert all(r.stage is Stage.DECODE for r in instance.decodes.values()), f"{name}: stages of decodes"
    assert instance.kv_reserved == sum(r.kv_reserved for r in here), f"{name}: KV reserved"
    decoding = sum(r.prompt_tokens + r.tokens + instance.ahead - r.behind for r in instance.decodes.values())
    assert instance.kv_decode_tokens == decoding, f"{name}: KV of decodes {instance.kv_decode_tokens}, not {decoding}"
    assert instance.lost == {r.id: r for r in instance.decodes.values() if r.lost}, (
        f"{name}: the lost among its decodes"
    )
    assert sum(instance.tpot_counts.values()) == sum(not r.lost for r in here), f"{name}: counts by TPOT"
    tightest = min((r.tpot_s for r in here if not r.lost), default=inf)
    assert instance.tpot_tightest_s == tightest, f"{name}: tightest TPOT {instance.tpot_tightest_s}, not {tightest}"
    for index, count in enumerate(instance.tier_counts):
        assert count == sum(r.tier.index == index for r in here), f"{name}: count of tier {index}"
    assert (instance.empty_since is None) == bool(here), f"{name}: empty or not"
    assert CALIBRATION_MIN <= instance.calibration <= CALIBRATION_MAX, f"{name}: calibration {instance.calibration}"
    assert 0.0 <= instance.load < inf, f"{name}: load {instance.load}"
    listed = instance.bucket >= 0
    assert listed == (instance.placeable and core.instances.get(name) is instance), f"{name}: listed iff placeable"
    if listed:
        assert instance.bucket == bucket_of(instance.load), f"{name}: in the bucket of its load"
