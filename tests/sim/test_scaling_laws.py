"""The rivals' laws of scaling, each on a group seen a few times; and all of them, and the production law, on a small simulated fleet."""

import pytest

from multislo_operator.decide.fleet import FleetObserved, InstanceObserved, InstanceState
from multislo_operator.decide.plan import Drain, Start, Stop
from multislo_perf.profile import load_profile
from multislo_router.core.status import CoreStatus, InstanceStatus, TierStatus
from multislo_sim.experiments.asked import Asked
from multislo_sim.experiments.cost import cost_report, cost_table
from multislo_sim.experiments.day import day_figure, day_report, day_tables
from multislo_sim.experiments.show import show
from multislo_sim.scaling.contenders import SCALED, scaled_named
from multislo_sim.scaling.rivals import Deployments, Group, Hpa, OnPending, Saturation, concurrency, queue, work
from multislo_sim.scaling.search import Found, Ground, Tried, between, leanest
from multislo_sim.scaling.trial import Bin, Run, least_instance_s, load_of, play_scaled
from multislo_sim.trial import fleet_of, homes_of
from multislo_sim.workloads.day import Burst, Day
from multislo_sim.workloads.shapes import shape_named, shaped_lengths

PROFILE = load_profile("llama-3.1-8b-h200-tp1")
LENGTHS = tuple(shaped_lengths(shape_named("mooncake-like"), 300, 1))
READY, STARTING, DRAINING = InstanceState.READY, InstanceState.STARTING, InstanceState.DRAINING


def status() -> CoreStatus:
    """Of a real core with four idle instances, one a tier: to be filled in."""
    fleet = fleet_of(scaled_named("hpa_work").setup(PROFILE, 1), PROFILE, homes_of(4), ())
    fleet.run(until=1.0)
    return fleet.core.status(1.0)


def tier(work_rate: float = 0.0, pending: int = 0) -> TierStatus:
    made = status().tiers[0]
    made.work_rate, made.pending = work_rate, pending
    return made


def instance(id: str, requests: int = 3, prefills: int = 0, kv_share: float = 0.1) -> InstanceStatus:
    made = status().instances[0]
    made.id, made.requests, made.prefills = id, requests, prefills
    made.kv_tokens = int(kv_share * made.kv_tokens_max)
    return made


def group(of: TierStatus, ready: int, starting: int = 0, **what) -> Group:
    live = [InstanceObserved(f"i{n}", of.name, READY if n < ready else STARTING) for n in range(ready + starting)]
    return Group((of,), tuple(live), tuple(instance(f"i{n}", **what) for n in range(ready)))


@pytest.mark.parametrize(
    ("work_rate", "replicas", "desired"),
    [(2.1, 4, 4), (2.3, 4, 5), (9.0, 4, 8), (30.0, 8, 16), (1.0, 4, 2), (0.0, 4, 1)],
)
def test_the_hpa_divides_tolerates_a_tenth_and_at_most_doubles_or_adds_four(work_rate, replicas, desired):
    assert Hpa(work, 0.5, 0.0).desired(0.0, group(tier(work_rate), replicas)) == desired


def test_the_hpa_comes_down_to_the_highest_recommendation_of_its_window():
    law = Hpa(work, 0.5, 300.0)
    seen = [law.desired(at, group(tier(work_rate), 8)) for at, work_rate in ((0.0, 3.0), (100.0, 1.0), (350.0, 1.0))]
    assert seen == [6, 6, 2]


def test_queue_and_concurrency_count_what_the_router_holds():
    seen = group(tier(pending=2), 2, requests=5, prefills=3)
    assert queue(seen) == 2 * (3 - 1) + 2
    assert concurrency(seen) == 2 * 5 + 2


def test_llm_d_grows_by_one_at_little_spare_and_shrinks_where_one_fewer_would_keep_it():
    assert Saturation(look_s=0.0).desired(60.0, group(tier(), 3, kv_share=0.75)) == 4
    assert Saturation(look_s=0.0).desired(60.0, group(tier(), 3, starting=1, kv_share=0.75)) == 4
    assert Saturation(look_s=0.0).desired(60.0, group(tier(), 3, kv_share=0.5)) == 3
    assert Saturation(look_s=0.0).desired(60.0, group(tier(), 3, kv_share=0.4)) == 2
    assert Saturation(look_s=0.0).desired(60.0, group(tier(), 3, kv_share=0.9)) == 4


def test_llm_d_remembers_a_minutes_peak():
    law = Saturation(look_s=0.0)
    assert law.desired(0.0, group(tier(), 3, kv_share=0.75)) == 4
    assert law.desired(45.0, group(tier(), 3)) == 4
    assert law.desired(75.0, group(tier(), 3)) == 2


def test_polyserve_adds_one_on_pending_and_gives_an_empty_one_back():
    assert OnPending().desired(0.0, group(tier(pending=1), 2)) == 3
    assert OnPending().desired(0.0, group(tier(pending=1), 2, starting=1)) == 3
    assert OnPending(waits_for_start=False).desired(0.0, group(tier(pending=1), 2, starting=1)) == 4
    assert OnPending().desired(0.0, group(tier(), 2, requests=0)) == 1
    assert OnPending().desired(0.0, group(tier(), 1, requests=0)) == 1


def test_a_deployment_drops_what_starts_first_then_drains_the_least_loaded_and_stops_what_is_empty():
    seen = status()
    name = seen.tiers[0].name
    observed = FleetObserved(
        [
            InstanceObserved("busy", name, READY, load=0.9),
            InstanceObserved("idle", name, READY, load=0.1),
            InstanceObserved("young", name, STARTING),
            InstanceObserved("gone", name, DRAINING, requests=0),
            InstanceObserved("going", name, DRAINING, requests=1),
        ],
        [],
    )
    actions = Deployments([[name]], [Hpa(work, 0.5, 0.0)]).actions(0.0, observed, seen)
    assert [(type(action), action.instance) for action in actions if not isinstance(action, Start)] == [
        (Stop, "gone"),
        (Stop, "young"),
        (Drain, "idle"),
    ]


def test_new_instances_of_a_shared_pool_go_where_the_work_is():
    seen = status()
    for of, work_rate in zip(seen.tiers, (0.1, 0.1, 2.0, 0.8), strict=True):
        of.work_rate = work_rate
    names = [of.name for of in seen.tiers]
    actions = Deployments([names], [Hpa(work, 1.0)]).actions(0.0, FleetObserved([], []), seen)
    homes = [action.tier for action in actions if isinstance(action, Start)]
    assert (len(homes), homes.count(names[2])) == (3, 2)


SMALL = Day(3.0, 140.0, 0.5, (Burst(0.2, 30.0, 1.5, True),))


@pytest.mark.parametrize("name", ["multislo", "multislo_stock", "hpa_work", "llm_d", "polyserve"])
def test_each_law_keeps_a_fleet_alive_through_a_small_day(name: str) -> None:
    load = load_of(PROFILE, LENGTHS, SMALL, 1, 20.0)
    scaled = scaled_named(name)
    setup = scaled.setup(PROFILE, 1)
    run = play_scaled(setup, load, scaled.scaler(setup, PROFILE, scaled.settings[-1]), (5.0, 10.0))
    assert run.attained["all"] > 0.5
    assert run.instance_s > least_instance_s(load, 0.98)
    assert run.instances_most >= 1
    assert len(run.bins) == 1


def test_a_run_with_a_seed_is_reproducible() -> None:
    load = load_of(PROFILE, LENGTHS, SMALL, 1, 20.0)
    scaled = scaled_named("multislo")
    setup = scaled.setup(PROFILE, 1)
    runs = [play_scaled(setup, load, scaled.scaler(setup, PROFILE, scaled.settings[2])) for _ in range(2)]
    assert runs[0] == runs[1]


def test_the_search_finds_the_leanest_setting_that_reaches_a_level_and_says_where_none_does() -> None:
    ground = Ground(PROFILE, LENGTHS, Day(2.0, 90.0, 1.0, ()), (1,), (0.5, 1.01), 10.0)
    found: Found = leanest(ground, "polyserve")
    assert found.best[1.01] is None
    best = found.best[0.5]
    assert best is not None
    assert best.hours == min(each.hours for each in found.tried if each.attained >= 0.5)


def test_hours_at_just_a_level_lie_between_the_two_settings_around_it() -> None:
    def tried(attained: float, hours: float) -> Tried:
        return Tried({"target": 0.5}, attained, hours, Run({"all": attained}, 3600.0 * hours, 5, 100, 7))

    lean, roomy = tried(0.96, 5.0), tried(0.99, 6.5)
    assert between(Found("hpa_work", {0.98: roomy}, (lean, roomy)), 0.98) == pytest.approx(6.0)
    assert between(Found("hpa_work", {0.98: roomy}, (roomy,)), 0.98) is None
    assert between(Found("hpa_work", {0.98: None}, (lean,)), 0.98) is None


def test_every_scaled_contender_builds_its_scaler_from_each_setting() -> None:
    for scaled in SCALED:
        setup = scaled.setup(PROFILE, 1)
        for setting in scaled.settings:
            assert scaled.scaler(setup, PROFILE, setting).every_s > 0.0


def test_the_report_of_a_day_compares_hours_at_equal_attainment(tmp_path) -> None:
    bins = tuple(Bin(60.0 * n, 4.0, 3.0 + n, 0.99) for n in range(3))

    def found(policy: str, hours: float | None) -> Found:
        tried = Tried(
            {"target": 0.5}, 0.985, hours or 9.0, Run({"all": 0.985}, 3600.0 * (hours or 9.0), 5, 100, 7, bins)
        )
        return Found(policy, {0.95: tried, 0.98: tried if hours else None}, (tried,))

    asked = Asked(PROFILE, LENGTHS, "shape", (), False, 4, (1,), True, 1, True, tmp_path / "day.png")
    ground = Ground(PROFILE, LENGTHS, Day(2.0, 420.0, 1.0, ()), (1,), (0.95, 0.98))
    runs = {
        name: found(name, hours)
        for name, hours in (("multislo", 5.0), ("hpa_work_shared", 5.5), ("hpa_work", 10.0), ("polyserve", None))
    }
    report = day_report(asked, ground, runs)
    assert report["ratio"]["p98"] == {"best_static": 0.5, "hpa_same_router": round(5.0 / 5.5, 4)}
    assert report["policies"]["polyserve"]["p98_hours"] is None
    show(asked, report, day_tables(report), lambda figure: day_figure(figure, runs, 3.0))
    assert (tmp_path / "day.png").stat().st_size > 10_000
    costs = cost_report(asked, Ground(PROFILE, LENGTHS, Day(2.0, 420.0, 1.0, ()), (1,), (0.99,)), {})
    assert cost_table(costs).row_count == 1
