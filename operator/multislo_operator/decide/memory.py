"""What `decide` remembers from one moment to the next, and how that fades. Used by `need`, `pressure` and `scale`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp

from multislo_operator.decide.fleet import FleetSpec
from multislo_operator.decide.tries import Tries

WEIGHT_STEP = 1.15
WEIGHT_MAX = 2.0
WEIGHT_FORGOTTEN_S = 1200.0
"""Each instance that is started because a tier's requests wait or are late raises the tier's weight by a step; it falls back to 1 with
this time constant."""
PEAK_BUCKETS = 24
PATIENCE_MAX = 8
"""Each time that what was taken away is wanted back soon, the stabilisation time doubles, up to this many times itself; it halves again
with each time that nothing is regretted. So a load on the edge between two sizes costs a few changes and then none."""
REGRET_SPANS = 5.0
"""Soon: within this many stabilisation times."""
REGRET_GROWTH = 1.15
"""With more than this many times the work there was, what was taken away is wanted for new work, and nothing was wrong with taking it."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What `decide` remembers. Start with `Memory()`; losing it costs one stabilisation time without shrinking, nothing else."""

    tiers: tuple[str, ...] = ()
    recent: tuple[tuple[float, tuple[float, ...]], ...] = ()
    """(time, quota per prefix) of the last CONFIRM_S."""
    peaks: tuple[tuple[float, tuple[float, ...]], ...] = ()
    """(start of a bucket, highest need per prefix in it) over the stabilisation time."""
    known_since: float | None = None
    known_at: float | None = None
    pressed_since: Mapping[str, float] = field(default_factory=dict)
    turned_away: Mapping[str, int] = field(default_factory=dict)
    turned_away_rate: Mapping[str, float] = field(default_factory=dict)
    calm_since: float | None = None
    """Since when, within the last CALM_MAX_S, everything that was wanted has been there."""
    calm_counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """(met, missed) of each tier at that time."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """What a tier's work costs over what the router figures; 1 where absent. Learnt from requests that wait or are late though all of
    it should fit: a tight tier cannot fill its instances as far as a loose one, and nobody knows how far before."""
    weights_next: Mapping[str, float] = field(default_factory=dict)
    """The same from the next moment on."""
    tries: Mapping[str | None, Tries] = field(default_factory=dict)
    """Of tiers (None: the warm pool) where something has not come up."""
    patience: int = 1
    """Multiple of the stabilisation time that shrinking waits for."""
    shrunk_at: float | None = None
    """When something was last taken away, while that may yet be regretted."""
    shrunk_work: float = 0.0
    """All tiers' work at that time, in instances."""


def recalled(spec: FleetSpec, memory: Memory, now: float) -> Memory:
    """The memory as it is at a later moment, before anything is seen."""
    names = tuple(tier.name for tier in spec.tightest_first)
    if memory.tiers != names:
        memory = Memory(tiers=names)
    memory = _with_weights(memory, now)
    return _without_regret(memory, spec, now)


def with_peak(memory: Memory, spec: FleetSpec, now: float, needed: Sequence[float]) -> Memory:
    """The memory that so many instances per prefix were needed now."""
    width = max(spec.stabilization_s / PEAK_BUCKETS, 0.1)
    kept = [(at, peak) for at, peak in memory.peaks if now - at <= PATIENCE_MAX * spec.stabilization_s + width]
    if kept and now - kept[-1][0] < width:
        at, peak = kept.pop()
        return replace(memory, peaks=(*kept, (at, tuple(map(max, peak, needed)))))
    return replace(memory, peaks=(*kept, (now, tuple(needed))))


def with_regret(memory: Memory, work: float, now: float, grew: bool, shrank: bool) -> Memory:
    """The memory of what a plan did to the size of the fleet, and all tiers' work at the time."""
    if shrank:
        return replace(memory, shrunk_at=now, shrunk_work=work)
    if not grew or memory.shrunk_at is None:
        return memory
    regretted = work <= REGRET_GROWTH * memory.shrunk_work
    patience = min(PATIENCE_MAX, 2 * memory.patience) if regretted else memory.patience
    return replace(memory, patience=patience, shrunk_at=None)


def _without_regret(memory: Memory, spec: FleetSpec, now: float) -> Memory:
    if memory.shrunk_at is None or now - memory.shrunk_at <= REGRET_SPANS * memory.patience * spec.stabilization_s:
        return memory
    return replace(memory, patience=max(1, memory.patience // 2), shrunk_at=None)


def with_lack(memory: Memory, tiers: Sequence[str]) -> Memory:
    """The memory that these tiers lacked an instance though, by the figures, all should have fitted."""
    weights = dict(memory.weights)
    for name in tiers:
        weights[name] = min(WEIGHT_STEP * weights.get(name, 1.0), WEIGHT_MAX)
    return replace(memory, weights_next={**memory.weights_next, **{name: weights[name] for name in tiers}})


def _with_weights(memory: Memory, now: float) -> Memory:
    if memory.known_at is None or now <= memory.known_at:
        return memory
    kept = exp((memory.known_at - now) / WEIGHT_FORGOTTEN_S)
    weights = {name: 1.0 + (weight - 1.0) * kept for name, weight in {**memory.weights, **memory.weights_next}.items()}
    return replace(memory, weights={name: w for name, w in weights.items() if w > 1.01}, weights_next={})
