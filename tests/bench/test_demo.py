"""The demo's parts: what it replays, what it counts, what it shows. The whole of it is run by `make demo`."""

import json
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from multislo_api.manifest import load_manifest
from multislo_bench.demo import Run, Story, profile_for, requests_of, rival_fleet, rival_instances, save_report
from multislo_bench.demo_view import print_demo, save_picture
from multislo_bench.fleet_watch import FleetWatch, Sample, lag_quantile
from multislo_bench.record import Outcome, Record
from multislo_bench.replay import Limits, Replayed, Target, Timing, replay
from multislo_bench.report import Window, report
from multislo_sim.workloads.request import Request

MANIFEST = Path(__file__).parents[2] / "examples" / "demo.yaml"


def sample(at_s: float, gold: int, draining: int = 0) -> Sample:
    return Sample(at_s, {"gold": gold}, {"ready": gold - draining, "draining": draining})


def run_of(samples: list[Sample], instance_seconds: float) -> Run:
    records = [Record(float(index), 5, 1, "gold", 1.0, 0.1) for index in range(10)]
    for record in records:
        record.received(0.5, 1)
        record.outcome = Outcome.COMPLETED
    watch = FleetWatch("http://admin", samples=samples)
    made = report(records, Timing([0.0], [0.0], 0.1, 10.0), Window(0.0, 10.0))
    return Run(made, Replayed(records, Timing()), watch, instance_seconds, 10.0, 0.5)


def test_the_demo_replays_one_seed_in_the_papers_shares() -> None:
    manifest = load_manifest(MANIFEST)
    profile = profile_for(manifest)
    story = Story(200.0, 10.0, 30.0, seed=3)

    requests, notes = requests_of(story, manifest, profile)

    assert (requests, notes) == requests_of(story, manifest, profile)
    tiers = Counter(request.tier for request in requests)
    # Requests that are too long for a tight tier count in a looser one.
    assert [tiers[tier.name] / len(requests) for tier in manifest.spec.tiers] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4], abs=0.05
    )


def test_instance_seconds_count_every_state_from_the_first_second_on() -> None:
    watch = FleetWatch("http://admin", samples=[sample(1.0, 2), sample(3.0, 4, draining=1), sample(5.0, 1)])

    # The first sample holds back to 0: 2 for 3 s, 4 for 2 s, 1 for 5 s.
    assert watch.instance_seconds(10.0) == pytest.approx(2 * 3 + 4 * 2 + 1 * 5)
    assert watch.instance_seconds(4.0) == pytest.approx(2 * 3 + 4 * 1)


def test_the_rival_never_has_fewer_instance_seconds() -> None:
    assert rival_instances(run_of([], instance_seconds=41.0)) == 5
    assert rival_instances(run_of([], instance_seconds=40.0)) == 4


def test_the_emulators_lag_is_the_bucket_of_all_their_tokens() -> None:
    inf = float("inf")
    lags = {"a": {0.001: 90.0, 0.01: 99.0, inf: 100.0}, "b": {0.001: 100.0, 0.01: 100.0, inf: 100.0}}

    assert lag_quantile(lags, 0.5) == 0.001
    assert lag_quantile(lags, 0.99) == 0.01
    assert lag_quantile(lags, 1.0) == inf
    assert lag_quantile({}, 0.5) is None


def test_the_report_keeps_its_shape_and_the_end_shows_both(tmp_path: Path) -> None:
    ours, rival = run_of([sample(0.0, 2), sample(5.0, 4)], 30.0), run_of([], 30.0)
    console = Console(record=True, width=140, file=StringIO())

    save_report(tmp_path / "report.json", {"multislo": ours, "round_robin": rival})
    save_picture(tmp_path / "demo.png", ours, rival, "round_robin")
    print_demo(console, ours, rival, "round_robin", 3)

    document = json.loads((tmp_path / "report.json").read_text())
    assert document["multislo"]["tiers"]["gold"]["attainment"] == 1.0
    assert document["multislo"]["instance_seconds"] == 30.0
    assert document["round_robin"]["tiers"]["gold"]["attainment"] == 1.0
    assert "3 instances all the time" in console.export_text()
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


async def test_round_robin_serves_each_engine_in_its_turn(tmp_path: Path) -> None:
    manifest = load_manifest(MANIFEST)
    requests = [Request(index * 0.02, 20, 3, "batch", 20.0, 20.0) for index in range(12)]

    with rival_fleet(MANIFEST, manifest, 3, "round_robin", tmp_path) as (url, engines):
        done = await replay(requests, Target(url, manifest.spec.model.served_names[0]), Limits(drain_s=30.0))
        watch = FleetWatch(None, engines)
        await watch.last_look()

    assert [record.outcome for record in done.records] == [Outcome.COMPLETED] * 12
    assert [buckets[float("inf")] for buckets in watch.lags.values()] == [12.0] * 3
