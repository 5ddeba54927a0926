"""A replay's report as a picture: attainment over time, TTFT and TPOT against their SLO, per tier."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from multislo_bench.record import Record
from multislo_bench.report import Window

# Okabe and Ito's palette: told apart by most colour-blind readers.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#000000")
BINS = 24


def save_plot(path: Path, records: Sequence[Record], window: Window, title: str) -> None:
    """Writes a PNG of four panels. Tiers in the order of their TPOT."""
    names = sorted({record.tier or "all": record.tpot_slo_s or float("inf") for record in records}.items(), key=_second)
    figure, ((over_time, arrivals), (first, rest)) = pyplot.subplots(2, 2, figsize=(12, 7.5), layout="constrained")
    figure.suptitle(title)
    for number, (name, _) in enumerate(names):
        mine = [record for record in records if (record.tier or "all") == name]
        colour = COLOURS[number % len(COLOURS)]
        _over_time(over_time, arrivals, mine, name, colour)
        _distribution(first, [record.first_s for record in mine if record.first_s], mine[0].ttft_slo_s, name, colour)
        tpots = [(r.last_s - r.first_s) / (r.tokens - 1) for r in mine if r.tokens > 1 and r.first_s and r.last_s]
        _distribution(rest, tpots, mine[0].tpot_slo_s, name, colour)
    over_time.axvspan(window.start_s, window.end_s, color="#000000", alpha=0.05, label="measured")
    over_time.set(title="attainment by time of arrival", xlabel="s", ylabel="share met", ylim=(-0.03, 1.03))
    arrivals.set(title="requests arriving", xlabel="s", ylabel="1/s", ylim=(0, None))
    first.set(title="TTFT (dashed: SLO)", xlabel="s", ylabel="share of requests", xscale="log")
    rest.set(title="mean TPOT (dashed: SLO)", xlabel="s", ylabel="share of requests", xscale="log")
    for axes in (over_time, arrivals, first, rest):
        axes.grid(alpha=0.3)
    over_time.legend(loc="lower left", fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _second(pair: tuple[str, float]) -> tuple[float, str]:
    return pair[1], pair[0]


def _over_time(attained: Axes, arrivals: Axes, records: Sequence[Record], name: str, colour: str) -> None:
    moments = np.array([record.at_s for record in records])
    met = np.array([bool(record.met) for record in records])
    edges = np.linspace(0.0, max(1e-9, moments.max()), BINS + 1)
    counts = np.histogram(moments, edges)[0]
    centres = (edges[1:] + edges[:-1]) / 2.0
    some = counts > 0
    if any(record.met is not None for record in records):
        shares = np.histogram(moments[met], edges)[0][some] / counts[some]
        attained.plot(centres[some], shares, color=colour, marker=".", label=name)
    arrivals.plot(centres, counts / np.diff(edges), color=colour, label=name)


def _distribution(axes: Axes, values: Sequence[float], slo_s: float | None, name: str, colour: str) -> None:
    if values:
        # From 0 to 1, a little beyond the outermost values: equal values alone would leave the axis without a width.
        ordered = np.concatenate(([min(values) * 0.9], np.sort(values), [max(values) * 1.1]))
        shares = np.concatenate(([0.0], (np.arange(len(values)) + 1) / len(values), [1.0]))
        axes.step(ordered, shares, where="post", color=colour, label=name)
    if slo_s is not None:
        axes.axvline(slo_s, color=colour, linestyle="--", linewidth=0.8)
