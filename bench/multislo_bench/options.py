"""Turns the options of `multislo replay` into requests: tiers with their shares and SLOs, rates, curves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from multislo_api.duration import parse_duration_s
from multislo_api.manifest import ManifestInvalid, load_manifest
from multislo_perf.latency import LatencyModel
from multislo_perf.profile import ProfileInvalid, load_profile
from multislo_perf.sizing import batch_tokens
from multislo_sim.trace_options import AskedTrace
from multislo_sim.workloads.arrivals import ARRIVALS_MAX, Curve, bursts, rise_and_fall, steady
from multislo_sim.workloads.build import along, built_in, from_trace
from multislo_sim.workloads.request import Request, WorkloadInvalid
from multislo_sim.workloads.shapes import SHAPES, uniform_lengths
from multislo_sim.workloads.tiers import TierShare, idle_can_meet, inverted, with_polyserve_classes, with_tiers
from multislo_sim.workloads.traces import TraceInvalid

# Each draw of one run has a seed of its own, made from the one that the user gave.
TIERS_SEED = 0x5EED_0002


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options that shape the workload, as click gave them."""

    trace: AskedTrace | None
    workload: str | None
    prompt_range: tuple[int, int]
    output_range: tuple[int, int]
    rate_factor: float
    rate: float | None
    peak: float | None
    burst: tuple[float, float, float] | None
    duration_s: float
    seed: int
    tiers: list[TierShare]
    invert: tuple[float, float] | None
    slo_classes: str | None
    profile: str | None
    requests_max: int


def build(wanted: Wanted) -> tuple[list[Request], list[str]]:
    """The requests in order of arrival, and what the user should know of them. Raises click.UsageError."""
    if (wanted.trace is None) == (wanted.workload is None):
        raise click.UsageError("give either --trace PATH or --workload NAME")
    try:
        requests, notes = _timed(wanted)
        if len(requests) > wanted.requests_max:
            notes.append(f"{len(requests)} requests, cut to the first {wanted.requests_max} by --max-requests")
            requests = requests[: wanted.requests_max]
        if not requests:
            raise click.UsageError("no request arrives within --duration: raise it, or the rate")
        if wanted.slo_classes is not None:
            requests, dropped = with_polyserve_classes(requests, *_engine(wanted), wanted.seed + TIERS_SEED)
            if dropped:
                notes.append(f"{dropped} requests left out: an idle instance could meet none of the classes")
        elif wanted.tiers:
            changes = inverted(wanted.tiers, *wanted.invert) if wanted.invert else ()
            fits = _attainable(*_engine(wanted)) if wanted.profile is not None else None
            requests = with_tiers(requests, wanted.tiers, wanted.seed + TIERS_SEED, changes, fits)
        return requests, notes
    except (WorkloadInvalid, TraceInvalid) as error:
        raise click.UsageError(str(error)) from None


def _timed(wanted: Wanted) -> tuple[list[Request], list[str]]:
    curve = _curve(wanted)
    if wanted.trace is not None:
        path, part = wanted.trace.path, wanted.trace.part
        tiers = [tier.name for tier in wanted.tiers] or None
        read = from_trace(path, part, wanted.duration_s, wanted.seed, wanted.rate_factor, curve, tiers)
        return read.requests, read.notes
    if wanted.workload == "uniform":
        if curve is None:
            raise click.UsageError("--workload uniform has no rate of its own: give --rate")
        lengths = uniform_lengths(
            min(wanted.requests_max, 100_000), wanted.prompt_range, wanted.output_range, wanted.seed
        )
        return along(curve, lengths, wanted.seed), []
    return built_in(str(wanted.workload), wanted.duration_s, wanted.seed, wanted.rate_factor, curve), []


def _curve(wanted: Wanted) -> Curve | None:
    """The arrival rate over time, where the user gave one; else the workload's own stamps or rate count."""
    if wanted.rate is None:
        if wanted.peak is not None or wanted.burst is not None:
            raise click.UsageError("--peak and --burst change a rate: give --rate")
        return None
    if wanted.rate * wanted.duration_s > ARRIVALS_MAX:
        raise click.UsageError(f"--rate: {wanted.rate} over {wanted.duration_s} s is more than {ARRIVALS_MAX} requests")
    if wanted.peak is not None:
        return rise_and_fall(wanted.rate, wanted.peak, wanted.duration_s)
    if wanted.burst is not None:
        return bursts(wanted.rate, *wanted.burst, wanted.duration_s)
    return steady(wanted.rate, wanted.duration_s)


def _engine(wanted: Wanted) -> tuple[LatencyModel, Callable[[float], int]]:
    if wanted.profile is None:
        raise click.UsageError(
            "--slo-classes polyserve needs --profile: a class is given only if an idle engine meets it"
        )
    try:
        profile = load_profile(wanted.profile)
    except ProfileInvalid as error:
        raise click.UsageError(str(error)) from None
    return profile.latency, lambda tpot_s: batch_tokens(profile.latency, tpot_s)


def _attainable(latency: LatencyModel, budget: Callable[[float], int]) -> Callable[[Request, TierShare], bool]:
    """Whether an idle instance of a tier meets the tier's SLO; a tier without one takes everything."""

    def attainable(request: Request, tier: TierShare) -> bool:
        if tier.ttft_s is None or tier.tpot_s is None:
            return True
        return idle_can_meet(latency, budget(tier.tpot_s), request, tier.ttft_s, tier.tpot_s)

    return attainable


def parse_tiers(text: str | None, manifest: Path | None) -> list[TierShare]:
    """`NAME=SHARE[:TTFT/TPOT],...`; what has no SLO of its own takes that of the manifest's tier of its name."""
    slos: dict[str, tuple[float, float]] = {}
    if manifest is not None:
        try:
            slos = {tier.name: (tier.slo.ttft_s, tier.slo.tpot_s) for tier in load_manifest(manifest).spec.tiers}
        except ManifestInvalid as error:
            raise click.UsageError("\n".join(error.problems)) from None
    if text is None:
        return [TierShare(name, 1.0, *slo) for name, slo in slos.items()]
    tiers = []
    for item in text.split(","):
        name, _, rest = item.strip().partition("=")
        share, _, slo = rest.partition(":")
        try:
            number = float(share)
        except ValueError:
            number = -1.0
        if not name or not 0.0 <= number < float("inf"):
            raise click.BadParameter(f"{item!r} must be NAME=SHARE or NAME=SHARE:TTFT/TPOT, with a share of at least 0")
        if slo:
            slos[name] = parse_slo(slo)
        elif manifest is not None and name not in slos:
            raise click.BadParameter(f"{name!r} is no tier of {manifest}: {', '.join(slos)}")
        tiers.append(TierShare(name, number, *slos.get(name, (None, None))))
    return tiers


def parse_slo(text: str) -> tuple[float, float]:
    """`TTFT/TPOT` as durations, such as 300ms/20ms."""
    ttft, _, tpot = text.partition("/")
    try:
        slo = parse_duration_s(ttft), parse_duration_s(tpot)
    except ValueError:
        slo = (0.0, 0.0)
    if min(slo) <= 0.0:
        raise click.BadParameter(f"{text!r} must be TTFT/TPOT, two durations above 0 such as 300ms/20ms")
    return slo


WORKLOADS = [*SHAPES, "uniform"]
