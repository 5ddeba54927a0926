"""A user's own traffic: a trace's requests by their own stamps, with a factor on the number of users, each with a tier; and the slices
of a long trace that represent the whole. Called by the what-if and by `multislo plan`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from multislo_sim.whatif.case import Case
from multislo_sim.workloads.request import Request, WorkloadInvalid
from multislo_sim.workloads.tiers import TierShare, with_tiers

# Each draw has a seed of its own, made from the user's.
COPIES_SEED = 0x5EED_0101
TIERS_SEED = 0x5EED_0002
COPY_SPREAD_S = 30.0
"""A copy of a request arrives within this of it: another user's, at about the same time of the day."""
FACTOR_MAX = 10_000.0
REQUESTS_MOST = 20_000_000
SLICE_S = 600.0
SLICE_LEAST_S = 180.0
SLICES_LEAST = 3
WARMUP_S = 120.0
"""Before a slice counts: longer than an instance takes to start, and as long as the usual stabilisation of scaling down."""
AFTER_S = 20.0
"""Load goes on for so long after what counts: a fleet that could rest then would look better than it is."""
SPAN_LEAST_S = 30.0
"""A trace must be this long: what a shorter one says is chance."""


def denser(requests: Sequence[Request], factor: float, seed: int) -> list[Request]:
    """The same time with `factor` times as many users: copies of each request near its own stamp, or a share of the requests.

    Time is not compressed, as it would be by dividing the stamps: an autoscaler has as long for a rise as it had.
    """
    if not 0.0 < factor <= FACTOR_MAX:
        raise WorkloadInvalid(f"rate-factor: {factor:g} must be greater than 0 and at most {FACTOR_MAX:g}")
    if factor * len(requests) > REQUESTS_MOST:
        raise WorkloadInvalid(
            f"rate-factor: {factor:g} times {len(requests)} requests is more than {REQUESTS_MOST}; take a part of the trace"
        )
    if factor == 1.0 or not requests:
        return list(requests)
    dice = Random(seed + COPIES_SEED)
    last_s = requests[-1].at_s
    whole, part = divmod(factor, 1.0)
    made = []
    for request in requests:
        copies = int(whole) + (dice.random() < part)
        if copies:
            made.append(request)
        for _ in range(copies - 1):
            # Thrown back at the trace's ends, so that they are as dense as the rest.
            at_s = abs(request.at_s + dice.uniform(-COPY_SPREAD_S, COPY_SPREAD_S))
            at_s = at_s if at_s <= last_s else max(0.0, 2.0 * last_s - at_s)
            made.append(replace(request, at_s=at_s))
    made.sort(key=lambda request: request.at_s)
    return made


def shares_of(text: str) -> dict[str, float]:
    """`NAME=SHARE,...`, any positive scale."""
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, equals, number = item.strip().partition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not name or not equals or not 0.0 <= share < 1e9:
            raise WorkloadInvalid(
                f"shares: {item.strip()!r} must be TIER=SHARE with a share of at least 0, such as realtime=10"
            )
        if name in shares:
            raise WorkloadInvalid(f"shares: {name!r} is named twice")
        shares[name] = share
    return shares


def assigned(case: Case, requests: Sequence[Request], shares: Mapping[str, float] | None, seed: int) -> list[Request]:
    """Every request with a tier of the manifest and that tier's SLO: the tier that it names, the default one where the manifest has no
    such tier, or one drawn by the shares (None: all alike) where it names none."""
    given = dict.fromkeys(case.tiers, 1.0) if shares is None else shares
    for name in given:
        if name not in case.tiers:
            raise WorkloadInvalid(f"shares: {name!r} must be a tier of the manifest: {', '.join(case.tiers)}")
    tiers = [TierShare(name, given.get(name, 0.0), *case.slo(name)) for name in case.tiers]
    if not sum(tier.share for tier in tiers) > 0.0:
        raise WorkloadInvalid("shares: all are 0, at least one must be greater")
    default = case.manifest.spec.default_tier
    known = [r if r.tier is None or r.tier in case.tiers else replace(r, tier=default) for r in requests]
    return with_tiers(known, tiers, seed + TIERS_SEED)


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of the trace that is played: [start_s, start_s + length_s) counts, the `warmup_s` before and the `after_s` after it are
    load that does not count. It represents `weight` times its length."""

    start_s: float
    length_s: float
    warmup_s: float
    after_s: float
    weight: float = 1.0

    @property
    def span_s(self) -> float:
        return self.warmup_s + self.length_s + self.after_s

    def of(self, requests: Sequence[Request]) -> list[Request]:
        """What arrives in it, times from the beginning of the warm-up on."""
        zero_s = self.start_s - self.warmup_s
        end_s = self.start_s + self.length_s + self.after_s
        return [replace(r, at_s=r.at_s - zero_s) for r in requests if zero_s <= r.at_s <= end_s]


def slices(requests: Sequence[Request], work_s: Sequence[float], requests_max: float) -> list[Slice]:
    """The whole, where that is at most `requests_max` requests; else slices of it, the busiest always among them.

    The others are the medians of classes of slices with about the same load (`work_s`: what each request takes), so that together they
    represent the whole. If not even three fit, only the busiest is played, and it represents only itself.
    """
    total_s = requests[-1].at_s
    played_s = total_s * requests_max / len(requests)
    if played_s >= total_s:
        return [_whole(total_s)]
    count = int(played_s / (SLICE_S + WARMUP_S + AFTER_S))
    length_s = SLICE_S
    if count < SLICES_LEAST:
        count = SLICES_LEAST
        length_s = played_s / count - WARMUP_S - AFTER_S
    whole = int(total_s / length_s) if length_s >= SLICE_LEAST_S else 0
    if whole <= count:
        return [busiest(requests, work_s, requests_max)]
    loads = [0.0] * whole
    for request, took_s in zip(requests, work_s, strict=True):
        number = int(request.at_s / length_s)
        if number < whole:
            loads[number] += took_s
    # The first has no warm-up before it.
    order = sorted(range(1, whole), key=lambda number: loads[number])
    chosen = [Slice(order[-1] * length_s, length_s, WARMUP_S, AFTER_S)]
    rest = order[:-1]
    classes = min(count - 1, len(rest))
    for number in range(classes):
        members = rest[number * len(rest) // classes : (number + 1) * len(rest) // classes]
        middle = members[len(members) // 2]
        chosen.append(Slice(middle * length_s, length_s, WARMUP_S, AFTER_S, float(len(members))))
    return sorted(chosen, key=lambda part: part.start_s)


def busiest(requests: Sequence[Request], work_s: Sequence[float], requests_max: float) -> Slice:
    """The part of the trace with the most work that has about `requests_max` requests, warm-up included; the whole where that is less."""
    total_s = requests[-1].at_s
    span_s = total_s * requests_max / len(requests)
    if span_s >= total_s:
        return _whole(total_s)
    warmup_s, after_s = min(WARMUP_S, 0.4 * span_s), min(AFTER_S, 0.1 * span_s)
    length_s = span_s - warmup_s - after_s
    # Windows begin on a grid of tenths of their length.
    step_s = length_s / 10.0
    loads = [0.0] * (int(total_s / step_s) + 1)
    for request, took_s in zip(requests, work_s, strict=True):
        loads[int(request.at_s / step_s)] += took_s
    first = int(warmup_s / step_s) + 1
    last = max(first, int((total_s - length_s - after_s) / step_s))
    best = max(range(first, last + 1), key=lambda number: sum(loads[number : number + 10]))
    return Slice(best * step_s, length_s, warmup_s, after_s)


def _whole(total_s: float) -> Slice:
    warmup_s, after_s = min(WARMUP_S, 0.1 * total_s), min(AFTER_S, 0.05 * total_s)
    return Slice(warmup_s, total_s - warmup_s - after_s, warmup_s, after_s)
