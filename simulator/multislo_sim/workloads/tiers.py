"""The tier or the own SLO of each request: drawn by shares and a seed, or from the SLO classes of PolyServe's evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from multislo_perf.latency import LatencyModel
from multislo_sim.workloads.request import Request, WorkloadInvalid


@dataclass(frozen=True, slots=True)
class TierShare:
    """A tier's part of the traffic (any positive scale; shares are divided by their sum) and its SLO, where it is
    known."""

    name: str
    share: float
    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class MixChange:
    """From `at_s` on, the tiers' shares are these, in the order of the tiers."""

    at_s: float
    shares: tuple[float, ...]


def with_tiers(
    requests: Sequence[Request],
    tiers: Sequence[TierShare],
    seed: int,
    changes: Sequence[MixChange] = (),
    attainable: Callable[[Request, TierShare], bool] | None = None,
) -> list[Request]:
    """Every request with the tier that it names, else one drawn by the shares, and that tier's SLO.

    With `attainable`, a drawn request that its tier could not serve in time even when idle goes to the next tier in order that could,
    and to the last one where none could.
    """
    if not tiers:
        raise WorkloadInvalid("tiers: none given, at least 1 is needed")
    base = tuple(tier.share for tier in tiers)
    for shares in (base, *(change.shares for change in changes)):
        if len(shares) != len(tiers) or any(not share >= 0.0 for share in shares) or not sum(shares) > 0.0:
            raise WorkloadInvalid(
                f"shares: {shares} must be {len(tiers)} numbers of at least 0 with a sum greater than 0"
            )
    named = {tier.name: tier for tier in tiers}
    dice = Random(seed)
    ordered = sorted(changes, key=lambda change: change.at_s)
    assigned = []
    for request in requests:
        shares = base
        for change in ordered:
            if request.at_s >= change.at_s:
                shares = change.shares
        index = dice.choices(range(len(tiers)), weights=shares)[0]
        if attainable is not None:
            while index < len(tiers) - 1 and not attainable(request, tiers[index]):
                index += 1
        tier = named.get(request.tier or "", tiers[index])
        assigned.append(replace(request, tier=tier.name, ttft_s=tier.ttft_s, tpot_s=tier.tpot_s))
    return assigned


def inverted(tiers: Sequence[TierShare], start_s: float, end_s: float) -> list[MixChange]:
    """A burst that inverts the mix: between the two times the first tier has the last one's share, and so on."""
    shares = tuple(tier.share for tier in tiers)
    return [MixChange(start_s, shares[::-1]), MixChange(end_s, shares)]


# PolyServe (arXiv 2507.17769), evaluation: TTFT uniform over three values, TPOT over four with these shares.
POLYSERVE_TTFT_S = (0.3, 0.5, 1.0)
POLYSERVE_TPOT_S = ((0.020, 0.10), (0.030, 0.20), (0.050, 0.30), (0.100, 0.40))


def with_polyserve_classes(
    requests: Sequence[Request], latency: LatencyModel, batch_tokens: Callable[[float], int], seed: int
) -> tuple[list[Request], int]:
    """Every request with an SLO of its own that an idle instance could meet, and how many requests have none and are
    left out.

    `batch_tokens(tpot_s)` is the token budget of an iteration on an instance for that TPOT. The TPOT is drawn first;
    where the drawn pair cannot be met, the TTFT is drawn among those that can, and where there is none, the next looser
    TPOT is taken.
    """
    dice = Random(seed)
    tpots = [tpot_s for tpot_s, _ in POLYSERVE_TPOT_S]
    weights = [share for _, share in POLYSERVE_TPOT_S]
    assigned: list[Request] = []
    for request in requests:
        drawn_s = dice.choices(tpots, weights)[0]
        ttft_s = dice.choice(POLYSERVE_TTFT_S)
        for tpot_s in tpots[tpots.index(drawn_s) :]:
            legal = [t for t in POLYSERVE_TTFT_S if idle_can_meet(latency, batch_tokens(tpot_s), request, t, tpot_s)]
            if legal:
                ttft_s = ttft_s if ttft_s in legal else dice.choice(legal)
                assigned.append(replace(request, tier=f"{tpot_s * 1000:.0f}ms", ttft_s=ttft_s, tpot_s=tpot_s))
                break
    return assigned, len(requests) - len(assigned)


def idle_can_meet(latency: LatencyModel, batch_tokens: int, request: Request, ttft_s: float, tpot_s: float) -> bool:
    """Whether an instance with nothing else to do would meet the SLO, by the latency model.

    Its first token comes with the last chunk of its prompt; its slowest decode is the last, over the whole context.
    """
    first_s = latency.prefill_s(request.prompt_tokens, 0, batch_tokens, 0, 0)
    slowest_s = latency.iteration_s(0, 0, 1, request.prompt_tokens + request.output_tokens)
    return first_s <= ttft_s and slowest_s <= tpot_s
