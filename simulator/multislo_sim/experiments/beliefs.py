"""`multislo simulate beliefs`: the cost of wrong beliefs: a wrong profile, a slow instance, late reports, wrong output lengths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any, NamedTuple

import click
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from multislo_api.number import Number
from multislo_perf.profile import Profile
from multislo_sim.ablated import expecting, place_of
from multislo_sim.bound import bound
from multislo_sim.contenders import CONTENDERS, contender_named
from multislo_sim.experiments.asked import Asked, experiment
from multislo_sim.experiments.show import COLOURS, run_each, show, table_of
from multislo_sim.fleet import SimulatedFleet
from multislo_sim.trial import BACKLOG_MAX_S, Window, arriving, classed, homes_of, play, scenario_of
from multislo_sim.workloads.request import Request

POLICIES = ("multislo", "multislo_stock", "least_predicted_time", "qoserve", "polyserve")
QUICKLY = ("right", "profile -20 %", "profile +20 %", "one twice as slow", "reports 200 ms late", "outputs x0.25")


@dataclass(frozen=True, slots=True)
class Wrong:
    """How belief and truth differ. All engines but a slow one follow the profile; router and planners may believe otherwise."""

    believed: float = 1.0
    """Believed over true iteration times, in the router and in the engines' planners."""
    slow: float = 1.0
    """Factor on the times of one instance."""
    report_delay_s: float = 0.0
    output_factor: float | None = None
    """Every output is believed to have this many times the mean length, whatever is observed; None: the router learns it."""


WRONGS: dict[str, Wrong] = {
    "right": Wrong(),
    **{f"profile {off:+d} %": Wrong(believed=1.0 + off / 100.0) for off in (-30, -20, -10, 10, 20, 30)},
    "one twice as slow": Wrong(slow=2.0),
    **{f"reports {late} ms late": Wrong(report_delay_s=late / 1000.0) for late in (50, 100, 200, 500, 1000)},
    **{f"outputs x{factor:g}": Wrong(output_factor=factor) for factor in (0.25, 1.0, 4.0)},
}


@click.command()
@experiment([contender.name for contender in CONTENDERS], POLICIES)
@click.option(
    "--load",
    type=Number(0.05, 1.0),
    default=0.85,
    show_default=True,
    help="Rate as a share of the fluid bound at 90 %.",
)
def beliefs(asked: Asked, load: float) -> None:
    """Simulate wrong beliefs at one rate: a profile too fast (-) or too slow (+), one instance twice as slow as the others, late reports
    from engines, wrong output lengths.

    Example: multislo simulate beliefs --trace azure.csv --load 0.8
    """
    names = QUICKLY if asked.quick else tuple(WRONGS)
    parts = {
        f"{policy}, {name}, seed {seed}": (
            asked.profile,
            asked.lengths,
            asked.instances,
            policy,
            seed,
            load,
            asked.window,
            name,
        )
        for policy in asked.policies
        for name in names
        for seed in asked.seeds
    }
    found = run_each(share_believing, parts, asked.jobs)
    report = {**asked.facts(), "load": load, **beliefs_report(asked.policies, names, asked.seeds, found)}
    show(asked, report, [beliefs_table(report)], lambda figure: beliefs_figure(figure, report))


class Kept(NamedTuple):
    """What one trial came to."""

    attained: float
    """Of the requests that count, those in time."""
    growing: bool
    """A queue was growing: with more time, less would have been in time."""

    @property
    def share(self) -> float:
        return 0.0 if self.growing else self.attained


def share_believing(
    profile: Profile,
    lengths: Sequence[Request],
    instances: int,
    policy: str,
    seed: int,
    load: float,
    window: Window,
    name: str,
) -> Kept:
    """One trial."""
    wrong = WRONGS[name]
    requests = classed(lengths, profile, seed)[0]
    rate = load * bound(requests, profile.latency, profile.kv_tokens_max, instances, 0.90)
    believed = replace(profile, latency=profile.latency.slower(wrong.believed))
    setup = contender_named(policy).setup(believed, seed)
    if wrong.output_factor is not None:
        tokens = max(1, round(wrong.output_factor * mean(request.output_tokens for request in requests)))
        setup = replace(setup, place_by=expecting(place_of(setup), lambda _: tokens))
    scenario = replace(
        scenario_of(setup, believed, homes_of(instances, setup.home_shares)),
        truth=profile.latency,
        truths={instances // 2: profile.latency.slower(wrong.slow)} if wrong.slow != 1.0 else {},
        report_delay_s=wrong.report_delay_s,
    )
    played = play(SimulatedFleet(scenario, arriving(requests, rate, window.total_s, seed)), window)
    return Kept(played.attained["all"], played.backlog_s > BACKLOG_MAX_S)


def beliefs_report(
    policies: Sequence[str], names: Sequence[str], seeds: Sequence[int], found: Mapping[str, Kept]
) -> dict[str, Any]:
    """By belief and policy: `in_time`, where a growing queue counts as nothing, and the same without that (`attained`), both as means
    over the seeds; `growing`: with how many seeds a queue grew."""

    def over_seeds(of: Callable[[list[Kept]], float]) -> dict[str, dict[str, float]]:
        return {
            name: {policy: of([found[f"{policy}, {name}, seed {seed}"] for seed in seeds]) for policy in policies}
            for name in names
        }

    return {
        "in_time": over_seeds(lambda trials: round(mean(kept.share for kept in trials), 4)),
        "attained": over_seeds(lambda trials: round(mean(kept.attained for kept in trials), 4)),
        "growing": over_seeds(lambda trials: sum(kept.growing for kept in trials)),
    }


def beliefs_table(report: Mapping[str, Any]) -> Table:
    seeds = len(report["seeds"])
    policies = list(next(iter(report["attained"].values())))

    def said(name: str, policy: str) -> str:
        growing = report["growing"][name][policy]
        return f"{report['attained'][name][policy]:.3f}" + (f", {growing} of {seeds} grew" if growing else "")

    rows = [(name, *(said(name, policy) for policy in policies)) for name in report["attained"]]
    title = f"share in time at {report['load']:g} of the bound, {report['instances']} instances (grew: a queue did)"
    return table_of(title, ("what is believed", *policies), rows)


def beliefs_figure(figure: Figure, report: Mapping[str, Any]) -> None:
    """Three panels: the profile's error, the reports' delay, the rest as bars."""
    shares = report["attained"]
    profile = sorted(
        (WRONGS[name].believed, name) for name in shares if name == "right" or WRONGS[name].believed != 1.0
    )
    delay = sorted(
        (WRONGS[name].report_delay_s, name) for name in shares if name == "right" or WRONGS[name].report_delay_s
    )
    shown = {name for _, name in (*profile, *delay)}
    others = ["right", *(name for name in shares if name not in shown)]
    left, middle, right = figure.subplots(1, 3, sharey=True)
    policies = list(shares["right"])
    _lines(left, [100.0 * (at - 1.0) for at, _ in profile], [shares[name] for _, name in profile], policies)
    left.set_xlabel("profile, % off")
    _lines(middle, [1000.0 * at for at, _ in delay], [shares[name] for _, name in delay], policies)
    middle.set_xlabel("reports late by, ms")
    width = 0.8 / len(policies)
    for index, policy in enumerate(policies):
        at = [place + width * (index - (len(policies) - 1) / 2.0) for place in range(len(others))]
        right.bar(at, [shares[name][policy] for name in others], width, color=COLOURS[index % len(COLOURS)])
    right.set_xticks(range(len(others)), others, rotation=30, ha="right", fontsize=8)
    left.set_ylabel("share in time")
    left.set_ylim(0.0, 1.03)
    left.legend(fontsize=8, loc="lower left")
    figure.suptitle(f"Wrong beliefs at {report['load']:g} of the fluid bound")


def _lines(axes: Axes, at: Sequence[float], shares: Sequence[Mapping[str, float]], policies: Sequence[str]) -> None:
    for index, policy in enumerate(policies):
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(at, [one[policy] for one in shares], marker="o", markersize=3, label=policy, color=colour)
