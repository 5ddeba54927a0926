"""The published routers: what each prefers, on the core's own state."""

import pytest

from multislo_perf.profile import load_profile
from multislo_router.core import events as e
from multislo_router.core.config import CoreConfig, EngineLimits, TierConfig
from multislo_router.core.decisions import Hold, Place
from multislo_router.core.machine import RouterCore
from multislo_router.core.placement import OfferBy, PlaceBy, offered
from multislo_sim.rivals import (
    at_random,
    headroom,
    least,
    lmetric,
    polyserve,
    power_of_two,
    requests_in_flight,
    within_own_tier,
)

LAW = load_profile("llama-3.1-8b-h200-tp1").latency
TIERS = (TierConfig("tight", 0.3, 0.02), TierConfig("loose", 1.0, 0.1))


def core_with(place: PlaceBy, *homes: str, offer: OfferBy = offered, kv_tokens_max: int = 400_000) -> RouterCore:
    core = RouterCore(CoreConfig(TIERS, "loose", LAW, EngineLimits(kv_tokens_max)), place, offer)
    specs = [e.InstanceSpec(f"i{n}", home, e.InstanceState.READY) for n, home in enumerate(homes)]
    core.handle(e.FleetChanged(0.0, specs))
    return core


def placed(core: RouterCore, request: int, prompt: int, tier: str = "loose", at: float = 0.0) -> str:
    (made,) = core.handle(e.RequestArrived(at, request, prompt, tier=tier))
    core.check()
    assert isinstance(made, Place), made
    return made.instance


def test_lmetric_weighs_queued_tokens_by_the_batch() -> None:
    core = core_with(least(lmetric), "loose", "loose")
    assert placed(core, 1, 5000) == "i0"
    assert placed(core, 2, 100) == "i1"
    assert placed(core, 3, 100) == "i1"  # 200 x 2 against 5,100 x 2


def test_the_least_headroom_packs_and_the_most_spreads() -> None:
    packing, spreading = (core_with(least(headroom(most=most)), "loose", "loose") for most in (False, True))
    assert [placed(packing, n, 800) for n in range(3)] == ["i0", "i0", "i0"]
    assert [placed(spreading, n, 800) for n in range(3)] == ["i0", "i1", "i0"]


def test_where_headroom_is_gone_the_smallest_deficit_is_taken() -> None:
    core = core_with(least(headroom()), "loose", "loose")
    assert placed(core, 1, 60_000) == "i0"
    assert placed(core, 2, 30_000) == "i1"
    assert placed(core, 3, 20_000) == "i1"


def test_the_static_partition_never_leaves_its_tier() -> None:
    core = core_with(within_own_tier(requests_in_flight), "tight", "loose")
    assert [placed(core, n, 3000, "tight") for n in range(4)] == ["i0"] * 4


def test_dice_are_a_seeds() -> None:
    for policy in (at_random, lambda seed: power_of_two(requests_in_flight, seed)):
        runs = [[placed(core_with(policy(3), *["loose"] * 5), n, 100) for n in range(9)] for _ in range(2)]
        assert runs[0] == runs[1]


def test_polyserve_packs_its_own_tier_then_promotes_to_a_tighter_one_and_never_to_a_looser() -> None:
    place, offer = polyserve()
    core = core_with(place, "tight", "loose", offer=offer)
    assert [placed(core, n, 3000, "loose") for n in range(12)] == ["i1"] * 12
    later = [core.handle(e.RequestArrived(0.0, n, 3000, tier="loose"))[0] for n in range(12, 40)]
    assert {made.instance for made in later if isinstance(made, Place)} == {"i1", "i0"}
    assert isinstance(later[-1], Hold)
    (tight,) = core_with(place, "loose", offer=offer).handle(e.RequestArrived(0.0, 1, 100, tier="tight"))
    assert isinstance(tight, Hold)


def test_polyserve_gives_held_work_to_whoever_frees_up() -> None:
    place, offer = polyserve()
    core = core_with(place, "tight", offer=offer)
    made = [core.handle(e.RequestArrived(0.0, n, 4000, tier="tight"))[0] for n in range(6)]
    assert isinstance(made[0], Place)
    assert isinstance(made[-1], Hold)
    core.handle(e.TokensReceived(0.09, 0))
    later = core.handle(e.RequestEnded(0.1, 0, e.Outcome.COMPLETED))
    assert all(isinstance(decision, Place) for decision in later)


@pytest.mark.parametrize("policy", [least(requests_in_flight), least(lmetric), least(headroom())])
def test_where_one_has_memory_for_it_the_full_one_is_not_asked(policy: PlaceBy) -> None:
    core = core_with(policy, "loose", "loose", kv_tokens_max=10_000)
    first = placed(core, 1, 9000)
    assert {placed(core, 2, 5000), first} == {"i0", "i1"}
