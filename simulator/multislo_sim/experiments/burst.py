"""`multislo simulate burst`: one burst in which the tiers' shares are inverted, and how each policy copes with it."""

from collections.abc import Mapping, Sequence
from random import Random
from statistics import mean
from typing import Any

import click
from matplotlib.figure import Figure
from rich.table import Table

from multislo_api.number import Number
from multislo_perf.profile import Profile
from multislo_sim.bound import bound
from multislo_sim.contenders import CONTENDERS, contender_named
from multislo_sim.experiments.asked import Asked, experiment
from multislo_sim.experiments.show import COLOURS, run_each, show, table_of
from multislo_sim.trial import Window, classed, fleet_of, homes_of, play, tier_name
from multislo_sim.workloads.arrivals import Curve, stamps
from multislo_sim.workloads.request import Request
from multislo_sim.workloads.tiers import POLYSERVE_TPOT_S

POLICIES = ("multislo", "multislo_stock", "least_predicted_time", "static_partition", "qoserve", "polyserve")
BEFORE_S, BURST_S, AFTER_S, SETTLING_S = 60.0, 40.0, 60.0, 20.0
WARMUP_S = 20.0
BIN_S = 5.0
RECOVERED = 0.01
"""Less in time than before the burst by no more than this: recovered, however much that was."""


@click.command()
@experiment([contender.name for contender in CONTENDERS], POLICIES)
@click.option(
    "--load",
    type=Number(0.1, 1.0),
    default=0.75,
    show_default=True,
    help="Usual rate as a share of the fluid bound of the usual mix at 90 %.",
)
@click.option(
    "--factor",
    type=Number(0.5, 4.0),
    default=1.2,
    show_default=True,
    help="Rate of the burst relative to the usual one.",
)
def burst(asked: Asked, load: float, factor: float) -> None:
    """Simulate a burst of 40 s that inverts the tier mix (40 % in the tightest tier); print the share in time by arrival time.

    Example: multislo simulate burst --trace azure.csv --load 0.85
    """
    parts = {
        f"{policy}, seed {seed}": (asked.profile, asked.lengths, asked.instances, policy, seed, load, factor)
        for policy in asked.policies
        for seed in asked.seeds
    }
    found = run_each(in_time_by_bin, parts, asked.jobs)
    series, tightest = {}, {}
    for policy in asked.policies:
        trials = [found[f"{policy}, seed {seed}"] for seed in asked.seeds]
        series[policy] = [_mean_of([bins[index] for bins, _ in trials]) for index in range(_bins())]
        tightest[policy] = _mean_of([share for _, share in trials])
    report = {**asked.facts(), "load": load, "factor": factor, **burst_report(series, tightest)}
    for key in ("warmup_s", "measured_s"):
        del report[key]
    show(asked, report, [burst_table(report)], lambda figure: burst_figure(figure, report))


def burst_arrivals(requests: Sequence[Request], rate: float, factor: float, seed: int) -> list[Request]:
    """Poisson, the mix of the requests' tiers turned round while the burst lasts. A request keeps the SLO that it was given, since an
    idle instance can meet it: tiers are drawn, and then the next request of the tier is taken."""
    start_s, end_s = BEFORE_S, BEFORE_S + BURST_S
    total_s = end_s + AFTER_S + SETTLING_S
    knots = (
        (0.0, rate),
        (start_s, rate),
        (start_s, rate * factor),
        (end_s, rate * factor),
        (end_s, rate),
        (total_s, rate),
    )
    names = [tier_name(tpot_s) for tpot_s, _ in POLYSERVE_TPOT_S]
    pools = {name: [request for request in requests if request.tier == name] for name in names}
    names = [name for name in names if pools[name]]
    usual = [len(pools[name]) for name in names]
    taken = dict.fromkeys(names, 0)
    dice = Random(seed)
    made = []
    for at_s in stamps(Curve(knots), seed):
        weights = usual[::-1] if start_s <= at_s < end_s else usual
        name = dice.choices(names, weights)[0]
        of = pools[name][taken[name] % len(pools[name])]
        taken[name] += 1
        made.append(Request(at_s, of.prompt_tokens, of.output_tokens, of.tier, of.ttft_s, of.tpot_s))
    return made


def in_time_by_bin(
    profile: Profile, lengths: Sequence[Request], instances: int, policy: str, seed: int, load: float, factor: float
) -> tuple[list[float | None], float | None]:
    """The share in time of those that arrived in each `BIN_S` from the end of the warm-up on, and of the tightest tier's in the burst;
    None of none."""
    requests = classed(lengths, profile, seed)[0]
    rate = load * bound(requests, profile.latency, profile.kv_tokens_max, instances, 0.90)
    setup = contender_named(policy).setup(profile, seed)
    fleet = fleet_of(
        setup,
        profile,
        homes_of(instances, setup.home_shares),
        burst_arrivals(requests, rate, factor, seed),
    )
    play(fleet, Window(WARMUP_S, BEFORE_S + BURST_S + AFTER_S - WARMUP_S, SETTLING_S))
    late = fleet.late_now()
    met: list[list[bool]] = [[] for _ in range(_bins())]
    tightest: list[bool] = []
    tight = min(POLYSERVE_TPOT_S)[0]
    for number, record in enumerate(fleet.records):
        index = int((record.request.at_s - WARMUP_S) // BIN_S)
        if 0 <= index < len(met):
            in_time = number not in late and record.missed == 0 and record.refused is None
            met[index].append(in_time)
            if record.request.tpot_s == tight and BEFORE_S <= record.request.at_s < BEFORE_S + BURST_S:
                tightest.append(in_time)
    return [_share_of(bin) for bin in met], _share_of(tightest)


def _bins() -> int:
    return int((BEFORE_S + BURST_S + AFTER_S - WARMUP_S) / BIN_S)


def _share_of(met: Sequence[bool]) -> float | None:
    return sum(met) / len(met) if met else None


def _mean_of(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return mean(known) if known else None


def burst_report(
    series: Mapping[str, Sequence[float | None]], tightest: Mapping[str, float | None] | None = None
) -> dict[str, Any]:
    """`recovered_s`: from the burst's end until the share is for good what it was before, or hardly less; null: not in the time that was
    looked at. `tightest`: the share in time of the tightest tier's in the burst."""
    times = [WARMUP_S + index * BIN_S for index in range(_bins())]
    start, end = times.index(BEFORE_S), times.index(BEFORE_S + BURST_S)
    policies = {}
    for policy, shares in series.items():
        known = [1.0 if share is None else share for share in shares]
        before = mean(known[:start])
        below = [index for index in range(end, len(known)) if known[index] < before - RECOVERED]
        share = (tightest or {}).get(policy)
        recovered_s = 0.0 if not below else (below[-1] + 1 - end) * BIN_S
        policies[policy] = {
            "before": round(before, 4),
            "burst": round(mean(known[start:end]), 4),
            "tightest": None if share is None else round(share, 4),
            "after": round(mean(known[end:]), 4),
            "least": round(min(known), 4),
            "recovered_s": recovered_s if not below or below[-1] < len(known) - 1 else None,
            "in_time": [None if share is None else round(share, 4) for share in shares],
        }
    return {"burst_s": [BEFORE_S, BEFORE_S + BURST_S], "times_s": times, "policies": policies}


def burst_table(report: Mapping[str, Any]) -> Table:
    rows = [
        (policy, of["before"], of["burst"], of["tightest"], of["after"], of["least"], of["recovered_s"])
        for policy, of in report["policies"].items()
    ]
    title = f"share in time around a burst that inverts the mix, load {report['load']:g}, rate x{report['factor']:g}"
    return table_of(
        title, ("policy", "before", "burst", "its tightest", "after", f"least {BIN_S:g} s", "as before, s"), rows
    )


def burst_figure(figure: Figure, report: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for index, (policy, of) in enumerate(report["policies"].items()):
        shares = [float("nan") if share is None else share for share in of["in_time"]]
        width = max(1.0, 4.0 - 0.6 * index)  # those behind show beside those before
        axes.plot(report["times_s"], shares, label=policy, color=COLOURS[index % len(COLOURS)], linewidth=width)
    axes.axvspan(*report["burst_s"], color="#dddddd", zorder=0, label="mix inverted")
    axes.set_xlabel("seconds, by when the request arrived")
    axes.set_ylabel("share in time")
    axes.set_ylim(0.0, 1.03)
    axes.set_title(
        f"A burst that inverts the tier mix: load {report['load']:g} of the bound, rate x{report['factor']:g}"
    )
    axes.legend(fontsize=8, loc="lower left")
