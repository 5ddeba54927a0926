"""The answer of `multislo simulate disaggregated`: the shape that programs read."""

from multislo_perf.profile import load_profile
from multislo_sim.experiments.disaggregated import disaggregated_report, disaggregated_tables, stages_goodput
from multislo_sim.goodput import Arena
from multislo_sim.trial import Window
from multislo_sim.workloads.shapes import shape_named, shaped_lengths

PROFILE = load_profile("llama-3.1-8b-h200-tp1")


def test_the_report_has_every_policy_at_its_best_split_and_ratios_to_the_best_of_each_group() -> None:
    lengths = tuple(shaped_lengths(shape_named("azure-like"), 500, 1))
    arena = Arena(PROFILE, lengths, 6, (1,), Window(0.5, 1.0, 0.5), 0.1)
    names = ("least_predicted_time", "multislo")
    found = {(name, more): stages_goodput(arena, name, {"more_prefill": more}) for name in names for more in (0, 1)}

    report = disaggregated_report(arena, names, found)

    for key in ("p90", "p99"):
        best = max(of.rates[0.9 if key == "p90" else 0.99] for (name, _), of in found.items() if name == "multislo")
        assert report["policies"]["multislo"][f"{key}_rps"] == round(best, 3) > 0.0
        assert 0.3 < report["share_of_bound"][key] <= 1.0
        assert report["ratio"][key]["best_naive"] > 0.0
        assert report["ratio"][key]["polyserve"] is None
    assert len(disaggregated_tables(report)) == 3
