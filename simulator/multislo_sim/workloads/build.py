"""The usual workloads in one call each: a built-in shape, or a trace, over a rate or a curve."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from multislo_sim.workloads.arrivals import Curve, stamps, steady
from multislo_sim.workloads.request import Request, WorkloadInvalid, faster, with_arrivals, within
from multislo_sim.workloads.shapes import shape_named, shaped_lengths
from multislo_sim.workloads.traces import Part, Trace, read_trace

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


def along(curve: Curve, lengths: list[Request], seed: int) -> list[Request]:
    """Lengths in order, from the start again when they run out, arriving as Poisson along a curve."""
    return with_arrivals(lengths, stamps(curve, seed + ARRIVALS_SEED))


def from_trace(
    path: Path,
    part: Part,
    duration_s: float,
    seed: int,
    rate_factor: float = 1.0,
    curve: Curve | None = None,
    tiers: Sequence[str] | None = None,
) -> Trace:
    """What `duration_s` seconds of a replay take from a trace by its own stamps, `rate_factor` times as dense; with a `curve` its
    lengths along it. No more of the file is read than that takes."""
    if curve is None:
        needed = replace(part, duration_s=min(part.duration_s, duration_s * rate_factor))
        read = read_trace(path, needed, tiers=tiers)
        return replace(read, requests=within(faster(read.requests, rate_factor), 0.0, duration_s))
    moments = stamps(curve, seed + ARRIVALS_SEED)
    read = read_trace(path, part, lengths_only=True, tiers=tiers, requests_max=max(1, len(moments)))
    return replace(read, requests=with_arrivals(read.requests, moments))
