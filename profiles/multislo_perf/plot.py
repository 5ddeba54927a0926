"""The picture of a fit: predicted over measured time of the held-out iterations. Called by `multislo profile fit --png`."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from multislo_perf.fit import Fitted


def plot_fit(fitted: Fitted, path: Path) -> None:
    """Writes a PNG: predicted against measured, and the relative error, both by kind of iteration."""
    rows = fitted.held_out
    errors = fitted.errors
    error = 100 * (fitted.predicted_ms / rows.measured_ms - 1)
    groups = np.array(rows.groups)
    figure = Figure(figsize=(11, 5), layout="constrained")
    against, relative = figure.subplots(1, 2)
    ends = [rows.measured_ms.min() * 0.9, rows.measured_ms.max() * 1.1]
    against.plot(ends, ends, color="grey", linewidth=0.8)
    relative.axhline(0, color="grey", linewidth=0.8)
    for group in dict.fromkeys(rows.groups):
        those = groups == group
        against.scatter(rows.measured_ms[those], fitted.predicted_ms[those], s=9, alpha=0.7, label=group)
        relative.scatter(rows.measured_ms[those], error[those], s=9, alpha=0.7, label=group)
    against.set(
        xscale="log", yscale="log", xlabel="measured kernels, ms", ylabel="predicted, ms", title=fitted.document.name
    )
    relative.set(xscale="log", xlabel="measured kernels, ms", ylabel="error, %")
    relative.set_title(
        f"held out: {errors.held_out} iterations, MAPE {errors.mape_percent:g} %, max {errors.max_percent:g} %"
    )
    for axis in (against.xaxis, against.yaxis, relative.xaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    against.legend(title="iteration")
    figure.savefig(path, dpi=120)
