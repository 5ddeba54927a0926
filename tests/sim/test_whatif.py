"""`multislo simulate --manifest`: what a manifest's fleet takes for a trace, and what a change of it would."""

import json
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner, Result

from multislo_api.manifest import MultiSLOServing, manifest_from, manifest_yaml
from multislo_perf.profile import ProfileInvalid
from multislo_sim.bound import needs
from multislo_sim.cli import simulate
from multislo_sim.whatif.answer import Question, requests_of, row
from multislo_sim.whatif.case import case_of, with_profile
from multislo_sim.whatif.play import play_fixed
from multislo_sim.whatif.search import Limits, in_the_way, least_fleet, split
from multislo_sim.whatif.traffic import Slice, busiest, denser, shares_of, slices
from multislo_sim.whatif.vary import VaryInvalid, varied
from multislo_sim.workloads.request import Request, WorkloadInvalid


def fleet(accelerators_max: int = 8, **engine: object) -> MultiSLOServing:
    return manifest_from(
        {
            "apiVersion": "multislo.dev/v1alpha1",
            "kind": "MultiSLOServing",
            "metadata": {"name": "llama"},
            "spec": {
                "model": {"name": "m", "maxLength": 16384},
                "profile": "llama-3.1-8b-h200-tp1",
                "engine": {"scheduler": "SLOAware", **engine},
                "tiers": [
                    {"name": "chat", "slo": {"ttft": "500ms", "tpot": "30ms"}},
                    {"name": "batch", "slo": {"ttft": "1s", "tpot": "100ms"}, "instances": {"min": 0}},
                ],
                "scaling": {"acceleratorsMax": accelerators_max},
            },
        }
    )


def traffic(rate: float, span_s: float, prompt: int = 800, output: int = 60) -> list[Request]:
    dice = Random(7)
    stamps = sorted(dice.uniform(0.0, span_s) for _ in range(round(rate * span_s)))
    return [Request(at_s - stamps[0], prompt, output) for at_s in stamps]


def written(folder: Path, requests: list[Request], manifest: MultiSLOServing) -> list[str]:
    lines = [
        json.dumps(
            {"timestamp": round(r.at_s * 1000), "input_length": r.prompt_tokens, "output_length": r.output_tokens}
        )
        for r in requests
    ]
    (folder / "trace.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "fleet.yaml").write_text(manifest_yaml(manifest))
    return ["--manifest", str(folder / "fleet.yaml"), "--trace", str(folder / "trace.jsonl"), "--jobs", "1"]


def asked(arguments: list[str]) -> Result:
    return CliRunner().invoke(simulate, arguments)


def test_more_users_come_at_the_same_times_of_the_day() -> None:
    requests = traffic(5.0, 200.0)
    more = denser(requests, 2.5, 1)
    assert len(more) == pytest.approx(2.5 * len(requests), rel=0.05)
    assert more[-1].at_s <= requests[-1].at_s
    assert len([r for r in more if r.at_s < 100.0]) == pytest.approx(len(more) / 2, rel=0.1)
    assert [r.at_s for r in more] == sorted(r.at_s for r in more)
    assert len(denser(requests, 0.1, 1)) == pytest.approx(100, abs=30)
    with pytest.raises(WorkloadInvalid, match="rate-factor: 0 must be greater than 0 and at most 10000"):
        denser(requests, 0.0, 1)


def test_a_long_trace_is_sampled_with_its_busiest_part_and_the_slices_stand_for_the_whole() -> None:
    requests = traffic(0.2, 40_000.0) + [Request(20_000.0 + n, 800, 60) for n in range(600)]
    requests.sort(key=lambda request: request.at_s)
    chosen = slices(requests, [1.0] * len(requests), len(requests) / 8)
    assert any(part.start_s <= 20_300.0 < part.start_s + part.length_s for part in chosen)
    assert sum(part.weight * part.length_s for part in chosen) == pytest.approx(40_000.0, rel=0.05)
    few = slices(requests, [1.0] * len(requests), 150)
    assert len(few) == 1
    assert 20_000.0 - few[0].length_s < few[0].start_s < 20_600.0
    assert slices(requests, [1.0] * len(requests), len(requests))[0].weight == 1.0


def test_what_counts_of_a_part_comes_after_its_warmup() -> None:
    requests = traffic(2.0, 1000.0)
    part = busiest(requests, needs(requests, case_of("x", fleet()).truth).work_s.tolist(), 400)
    inside = part.of(requests)
    assert part.start_s >= part.warmup_s
    assert inside[0].at_s >= 0.0
    assert inside[-1].at_s <= part.span_s


def test_the_least_fleet_attains_and_one_instance_less_does_not() -> None:
    case = case_of("x", fleet())
    part = Slice(4.0, 9.0, 4.0, 3.0)
    requests, _ = requests_of(case, Question("x", case.manifest, 1.0, None, 1), traffic(60.0, 16.0))
    found = least_fleet(case, requests, part, 0.99)
    assert found.counts is not None
    assert found.played.holds(0.99)
    assert sum(found.counts.values()) >= found.total_bound
    for name in found.counts:
        fewer = {**found.counts, name: found.counts[name] - 1}
        if fewer[name] >= (name == "chat"):
            assert not play_fixed(case, requests, part, fewer, 0.99).holds(0.99), fewer


def test_instances_go_where_the_most_work_is_within_the_limits() -> None:
    limits = Limits({"chat": 1, "batch": 0}, {"chat": 2, "batch": 9}, 6)
    assert split(3, {"chat": 2.0, "batch": 1.0}, limits) == {"chat": 2, "batch": 1}
    assert split(6, {"chat": 9.0, "batch": 1.0}, limits) == {"chat": 2, "batch": 4}
    case = case_of("x", fleet(accelerators_max=3))
    assert in_the_way(case, {"chat": 2, "batch": 1}) is None
    assert in_the_way(case, {"chat": 2, "batch": 2}) == "scaling.acceleratorsMax is 3; 4 are needed"


def test_a_request_that_even_an_idle_instance_would_miss_is_told_apart() -> None:
    case = case_of("x", fleet())
    long = [Request(0.5 * n, 16_000, 20) for n in range(60)]
    requests, _ = requests_of(case, Question("x", case.manifest, 1.0, {"chat": 1.0}, 1), long)
    tightened = varied(case.manifest, "tiers.chat.slo.ttft=100ms").manifest
    answer = row(Question("x", tightened, 1.0, {"chat": 1.0}, 1), [(Slice(5.0, 20.0, 5.0, 4.0), long)], 30.0, None)
    assert not case.beyond(requests[0])
    tally = answer.played[0].tiers["chat"]
    assert tally.beyond == tally.counted
    assert tally.met == 0
    assert tally.holds(0.99)


def test_a_change_is_made_below_the_spec_and_a_tier_is_named() -> None:
    changed = varied(fleet(), "tiers.chat.slo.tpot=20ms; spec.profile=llama-3.1-8b-h100-tp1; rate-factor=2")
    assert [tier.slo.tpot_s for tier in changed.manifest.spec.tiers] == [0.02, 0.1]
    assert changed.manifest.spec.profile == "llama-3.1-8b-h100-tp1"
    assert changed.rate_factor == 2.0
    added = varied(fleet(), "tiers.gold={slo: {ttft: 200ms, tpot: 15ms}}; shares.gold=3")
    assert [tier.name for tier in added.manifest.spec.tiers] == ["chat", "batch", "gold"]
    assert added.shares == {"gold": 3.0}
    assert [tier.name for tier in varied(fleet(), "tiers.chat=null").manifest.spec.tiers] == ["batch"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("tiers.gold.slo.tpot=20ms", "'gold' must be a tier of the manifest (chat, batch)"),
        ("tiers.chat.slo.tpot=20", '20 must be a duration such as "300ms"'),
        ("tiers.chat.slo.tpto=20ms", 'did you mean "tpot"?'),
        ("profile", "must be PATH=VALUE"),
        ("rate-factor=many", "'many' must be a number"),
        ("profile.name=x", "has no name"),
        ("engine.scheduler=stock", 'did you mean "Stock"?'),
    ],
)
def test_a_change_that_cannot_be_made_is_told_with_what_is_legal(change: str, said: str) -> None:
    with pytest.raises(VaryInvalid) as raised:
        varied(fleet(), change)
    assert said in str(raised.value)


def test_a_profile_in_a_cluster_is_replaced_by_hand() -> None:
    document = fleet().model_dump(mode="json", by_alias=True, exclude_unset=True)
    document["spec"]["profile"] = {"configMap": "ours"}
    manifest = manifest_from(document)
    with pytest.raises(ProfileInvalid, match='"ours" is in a cluster; give --profile NAME'):
        case_of("x", manifest)
    assert case_of("x", with_profile(manifest, "llama-3.1-8b-h100-tp1")).profile.name == "llama-3.1-8b-h100-tp1"


def test_shares_are_read_and_wrong_ones_named() -> None:
    assert shares_of("chat=10, batch=90") == {"chat": 10.0, "batch": 90.0}
    for wrong, said in (
        ("chat", "'chat' must be TIER=SHARE"),
        ("chat=-1", "at least 0"),
        ("a=1,a=2", "'a' is named twice"),
    ):
        with pytest.raises(WorkloadInvalid, match=said):
            shares_of(wrong)


def test_the_command_answers_with_a_row_for_each_change(tmp_path: Path) -> None:
    arguments = written(tmp_path, traffic(6.0, 90.0), fleet())
    png = tmp_path / "answer.png"
    result = asked([*arguments, "--vary", "profile=llama-3.1-8b-h100-tp1", "--json", "--png", str(png)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["profile"] for row in report["rows"]] == ["llama-3.1-8b-h200-tp1", "llama-3.1-8b-h100-tp1"]
    for answer in report["rows"]:
        assert answer["attained"]
        assert answer["accelerators"]["min"] <= answer["accelerators"]["mean"] <= answer["accelerators"]["max"] <= 8
        assert answer["accelerators"]["hours"] == pytest.approx(
            answer["accelerators"]["mean"] * report["span_s"] / 3600
        )
        assert sum(tier["requests_counted"] for tier in answer["tiers"].values()) == answer["requests_counted"]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "drawn over all tiers equally" in " ".join(result.stderr.split())


def test_tiers_that_the_trace_names_are_not_drawn(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 100 * n, "input_length": 300, "output_length": 20, "tier": "batch" if n % 4 else "chat"}
        for n in range(400)
    ]
    (tmp_path / "named.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    arguments = written(tmp_path, traffic(2.0, 60.0), fleet())
    arguments[3] = str(tmp_path / "named.jsonl")
    result = asked([*arguments, "--vary", "tiers.chat=null", "--json"])
    assert result.exit_code == 0, result.output
    base, without = (row["tiers"] for row in json.loads(result.stdout)["rows"])
    assert base["batch"]["requests_counted"] == pytest.approx(3 * base["chat"]["requests_counted"], abs=4)
    assert without["batch"]["requests_counted"] == base["batch"]["requests_counted"] + base["chat"]["requests_counted"]
    lines[7]["tier"] = "gold"
    (tmp_path / "named.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert "named.jsonl:8: tier: 'gold' must be a tier" in " ".join(asked(arguments).output.split())


def test_people_get_tables_and_the_least_fixed_fleet_where_they_ask_for_it(tmp_path: Path) -> None:
    arguments = written(tmp_path, traffic(6.0, 60.0), fleet())
    result = asked([*arguments, "--shares", "chat=1", "--fixed", "--rate-factor", "2"])
    assert result.exit_code == 0, result.output
    assert "GPU-hours" in result.stdout
    assert "500ms / 30ms" in result.stdout
    assert "alike" not in result.stderr


def test_wrong_use_names_the_option_or_the_field(tmp_path: Path) -> None:
    arguments = written(tmp_path, traffic(2.0, 60.0), fleet())
    for more, said in (
        (["--vary", "tiers.x.slo=1"], "'x' must be a tier of the manifest"),
        (["--shares", "gold=1"], "'gold' must be a tier of the manifest: chat, batch"),
        (["--rate-factor", "-1"], "rate-factor: -1 must be greater than 0"),
        (["--vary", "profile=nope"], "must be the path of a YAML file or one of the shipped profiles"),
        (["--workload", "azure-like"], "either --trace FILE or --workload NAME"),
        (["--shares", "chat=1", "--vary", "tiers.gold={slo: {ttft: 1s, tpot: 15ms}}"], "add ; shares.gold=10"),
        (["--vary", "placement=Pack", "--vary", "placement=Pack"], "is given twice"),
        (["--instances", "4"], "No such option"),
    ):
        result = asked([*arguments, *more])
        assert result.exit_code == 2, (more, result.output)
        assert said in " ".join(result.output.split()), result.output
    short = written(tmp_path, traffic(9.0, 5.0), fleet())
    assert "must be at least 30 s" in asked(short).output
