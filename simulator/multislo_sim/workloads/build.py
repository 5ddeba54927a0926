"""The usual workloads in one call each: a built-in shape, or a trace, over a rate or a curve."""

from multislo_sim.workloads.arrivals import Curve, stamps, steady
from multislo_sim.workloads.request import Request, WorkloadInvalid, faster, with_arrivals, within
from multislo_sim.workloads.shapes import shape_named, shaped_lengths

# Seeds of independent draws must differ, and one seed must make a run: these are added to it.
ARRIVALS_SEED = 0x5EED_0001


def built_in(
    name: str, duration_s: float, seed: int, rate_factor: float = 1.0, curve: Curve | None = None
) -> list[Request]:
    """A shape's lengths, arriving with its own variation at its own rate times `rate_factor`; or as Poisson along `curve`."""
    shape = shape_named(name)
    cv = 1.0 if curve else shape.arrival_cv
    if curve is None:
        if not duration_s > 0.0:
            raise WorkloadInvalid(f"duration: {duration_s} s must be greater than 0")
        if not rate_factor > 0.0:
            raise WorkloadInvalid(f"rate factor: {rate_factor} must be greater than 0")
        curve = steady(shape.rate * rate_factor, duration_s)
    moments = stamps(curve, seed + ARRIVALS_SEED, cv)
    return with_arrivals(shaped_lengths(shape, max(1, len(moments)), seed), moments)


def from_trace(
    trace: list[Request], duration_s: float, seed: int, rate_factor: float = 1.0, curve: Curve | None = None
) -> list[Request]:
    """What arrives within `duration_s` of a trace by its own stamps, `rate_factor` times as dense.

    With a `curve`: the trace's lengths in order, arriving as Poisson along it.
    """
    if curve is not None:
        return with_arrivals(trace, stamps(curve, seed + ARRIVALS_SEED))
    return within(faster(trace, rate_factor), 0.0, duration_s)
