"""The demo's output: both runs side by side, instances over time, and a picture of both."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import matplotlib
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from multislo_bench.demo import Run
from multislo_bench.fleet_watch import Sample, lag_quantile
from multislo_bench.plots import BINS, COLOURS
from multislo_bench.record import Outcome
from multislo_bench.report import TierReport
from multislo_bench.tables import milliseconds, share

BARS = " ▁▂▃▄▅▆▇█"
BARS_MAX = 72
LAG_SUSPECT_S = 0.010


def print_demo(console: Console, ours: Run, rival: Run, rival_name: str, rival_instances: int) -> None:
    """Both tables in one, then what was spent, and how far the figures can be trusted."""
    console.print(_table(ours, rival, rival_name))
    console.print(
        f"instance-seconds: multislo {ours.instance_seconds:.0f} (scaling with the load), {rival_name} "
        f"{rival.instance_seconds:.0f} ({rival_instances} instances all the time)",
        highlight=False,
    )
    for line in _instances(ours.watch.samples):
        console.print(line)
    for name, run in (("multislo", ours), (rival_name, rival)):
        console.print(_trust(name, run))


def _table(ours: Run, rival: Run, rival_name: str) -> RenderableType:
    grid = Table(title="the same requests, twice", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    grid.add_column("tier", no_wrap=True)
    headings = ["requests", "SLO ms"]
    for name in ("multislo", rival_name):
        headings += [f"{name}\nattained", "TTFT ms\np50 / p99", "TPOT ms\np50 / p99"]
    for heading in headings:
        grid.add_column(heading, justify="right", no_wrap=True)
    for name, tier in ours.report.tiers.items():
        grid.add_row(name, *_cells(tier, rival.report.tiers.get(name)))
    grid.add_section()
    grid.add_row("all", *_cells(ours.report.total, rival.report.total), style="bold")
    return grid


def _cells(ours: TierReport, rival: TierReport | None) -> list[RenderableType]:
    slo = "-"
    if ours.ttft_slo_s is not None and ours.tpot_slo_s is not None:
        slo = f"{ours.ttft_slo_s * 1000:g} / {ours.tpot_slo_s * 1000:g}"
    cells: list[RenderableType] = [str(ours.requests), slo]
    for tier in (ours, rival):
        if tier is None:
            cells += ["-", "-", "-"]
            continue
        cells += [
            share(tier.attainment),
            f"{milliseconds(tier.ttft_s.p50)} / {milliseconds(tier.ttft_s.p99)}",
            f"{milliseconds(tier.tpot_s.p50)} / {milliseconds(tier.tpot_s.p99)}",
        ]
    return cells


def _instances(samples: Sequence[Sample]) -> list[Text]:
    """A line of bars for each tier, in the order of their first sight, and one for all."""
    if not samples:
        return []
    names = list(dict.fromkeys(name for sample in samples for name in sample.tiers))
    most = max(sample.instances for sample in samples)
    step = ceil(len(samples) / BARS_MAX)
    lines = [Text("instances over time", style="bold")]
    for name in [*names, "all"]:
        counts = [sample.instances if name == "all" else sample.tiers.get(name, 0) for sample in samples[::step]]
        bars = "".join(BARS[min(8, round(count / most * 8))] for count in counts)
        lines.append(Text(f"  {name:<12} {bars} {min(counts)} to {max(counts)}", no_wrap=True))
    return lines


def _trust(name: str, run: Run) -> Text:
    """Whether the machine kept the emulated schedule; if not, what looks like a missed SLO may be the machine's."""
    lag_s = lag_quantile(run.watch.lags, 0.99)
    client = run.report.client
    failed = sum(
        run.report.total.outcomes[outcome] for outcome in Outcome if outcome not in (Outcome.COMPLETED, Outcome.REFUSED)
    )
    text = (
        f"{name}: emulators' lag p99 <= {milliseconds(lag_s)} ms, client sent late p99 "
        f"{milliseconds(client.sent_late_s.p99)} ms, event loop late p99 {milliseconds(client.loop_lag_s.p99)} ms; "
        f"{run.report.total.outcomes[Outcome.REFUSED]} refused, {failed} failed or unfinished"
    )
    if (lag_s or 0.0) > LAG_SUSPECT_S or not client.kept_schedule:
        return Text(
            f"{text}. This machine was too slow for the tail: part of what is missed is its own.", style="yellow"
        )
    return Text(text, style="dim")


def save_picture(path: Path, ours: Run, rival: Run, rival_name: str) -> None:
    """Attainment over time of both, and instances by tier under the load."""
    figure, (top, middle, bottom) = pyplot.subplots(3, 1, figsize=(10, 9), layout="constrained", sharex=True)
    for axes, run, name in ((top, ours, "multislo"), (middle, rival, rival_name)):
        _attainment(axes, run)
        axes.set(title=f"attainment by time of arrival: {name}", ylabel="share met", ylim=(-0.03, 1.03))
        axes.legend(loc="lower left", fontsize="small", ncols=4)
    _stack(bottom, ours.watch.samples)
    fixed = rival.instance_seconds / rival.seconds
    bottom.axhline(fixed, color="#000000", linestyle="--", linewidth=0.8, label=f"{rival_name}: {fixed:.0f}")
    bottom.set(title="multislo's instances by home tier", xlabel="s", ylabel="instances", ylim=(0, None))
    bottom.legend(loc="upper left", fontsize="small", ncols=3)
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _attainment(axes: Axes, run: Run) -> None:
    edges = np.linspace(run.report.window.start_s, run.report.window.end_s, BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2.0
    for number, name in enumerate(run.report.tiers):
        mine = [record for record in run.replayed.records if record.tier == name]
        counts = np.histogram([record.at_s for record in mine], edges)[0]
        met = np.histogram([record.at_s for record in mine if record.met], edges)[0]
        some = counts > 0
        axes.plot(centres[some], met[some] / counts[some], color=COLOURS[number], marker=".", label=name)


def _stack(axes: Axes, samples: Sequence[Sample]) -> None:
    if not samples:
        return
    names = list(dict.fromkeys(name for sample in samples for name in sample.tiers))
    moments = [sample.at_s for sample in samples]
    counts = [[sample.tiers.get(name, 0) for sample in samples] for name in names]
    axes.stackplot(moments, counts, labels=names, colors=COLOURS, step="post", alpha=0.8)
