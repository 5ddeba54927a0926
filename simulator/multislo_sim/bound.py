"""The fluid bound: a rate that no policy can serve at an attainment, on so many engines of one latency model. Derived in
docs/fluid-bound.md; called by the experiments, and by the property test that tries to exceed it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from multislo_perf.latency import LatencyModel
from multislo_sim.workloads.request import Request

PRICES = np.linspace(0.0, 1.0, 41)
"""Prices of memory against time that are tried; each gives a bound, and the least of them is taken."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Needs:
    """The least cost of each request, one element each."""

    work_s: Floats
    """Instance-seconds of its tokens, in the fullest batches."""
    spread: Floats
    """(Sum of the square roots of its iterations' work) squared: what iterations of a bounded total length cost beyond the work."""
    tokens: Floats
    time_s: Floats
    """From its arrival to the last deadline."""
    prompt: Floats


def needs(requests: Sequence[Request], law: LatencyModel) -> Needs:
    prompt = np.array([float(request.prompt_tokens) for request in requests])
    output = np.array([float(request.output_tokens) for request in requests])
    ttft_s = np.array([np.inf if request.ttft_s is None else request.ttft_s for request in requests])
    tpot_s = np.array([np.inf if request.tpot_s is None else request.tpot_s for request in requests])
    later = output - 1.0
    prefill = prompt * (law.gemm_per_token_s + law.per_chunk_token_s) + law.per_attention_pair_s * prompt * prompt
    token_s = law.gemm_per_token_s + law.per_decode_s
    first = token_s + law.per_kv_token_s * (prompt + 1.0)
    last = token_s + law.per_kv_token_s * (prompt + np.maximum(later, 1.0))
    # The square root is concave: its mean over the decodes is at least that of the two ends.
    roots = np.sqrt(prefill) + later * 0.5 * (np.sqrt(first) + np.sqrt(last))
    with np.errstate(invalid="ignore"):
        time_s = ttft_s + np.where(later > 0.0, later * tpot_s, 0.0)
    return Needs(prefill + later * 0.5 * (first + last), roots * roots, output, time_s, prompt)


def costs(need: Needs, law: LatencyModel, kv_tokens_max: int, price: float, in_time: bool) -> Floats:
    """The least of (1 - price) x instance-seconds + price x seconds of a whole KV cache that each request takes, in time or late."""
    fixed_s = law.fixed_s + law.gemm_s
    most = need.time_s - need.tokens * fixed_s if in_time else np.full_like(need.work_s, np.inf)
    most = np.maximum(most, 1e-9)
    waste = (1.0 - price) * fixed_s * need.spread
    rent = price * need.prompt / kv_tokens_max
    with np.errstate(divide="ignore", invalid="ignore"):
        at_most = np.where(np.isinf(most), 0.0, waste / most + rent * most)
        extra = np.where(np.sqrt(waste / rent) <= most, 2.0 * np.sqrt(waste * rent), at_most)
    return (1.0 - price) * need.work_s + extra + rent * need.tokens * fixed_s


def bound(
    requests: Sequence[Request],
    law: LatencyModel,
    kv_tokens_max: int,
    instances: int,
    attainment: float,
    rejecting: bool = False,
) -> float:
    """Requests a second of such a mix. All are served, the others late; with `rejecting` the costliest are not served at all."""
    return _rate(needs(requests, law), law, kv_tokens_max, instances, attainment, rejecting)


def stage_needs(requests: Sequence[Request], law: LatencyModel, transfer_s: float) -> tuple[Needs, Needs]:
    """The same of prefills and decodes apart, where the KV of a prompt token takes `transfer_s` to be carried over: a prefill has the
    time to the first token, the decodes have what the shortest prefill and the transfer leave."""
    prefill = needs([replace(request, output_tokens=1) for request in requests], law)
    whole = needs(requests, law)
    later = whole.tokens - 1.0
    shortest_s = law.fixed_s + law.gemm_s + prefill.work_s
    left_s = whole.time_s - shortest_s - transfer_s * whole.prompt
    roots = np.sqrt(whole.spread) - np.sqrt(prefill.spread)
    return prefill, Needs(whole.work_s - prefill.work_s, roots * roots, later, left_s, whole.prompt)


def stage_bounds(
    requests: Sequence[Request], law: LatencyModel, kv_tokens_max: int, transfer_s: float, instances: int, level: float
) -> list[float]:
    """Requests a second with 1, 2, ... of the instances prefilling and the others decoding, all served."""
    prefill, decode = stage_needs(requests, law, transfer_s)
    first = _rate(prefill, law, kv_tokens_max, 1, level)
    second = _rate(decode, law, kv_tokens_max, 1, level)
    return [min(count * first, (instances - count) * second) for count in range(1, instances)]


def _rate(
    need: Needs, law: LatencyModel, kv_tokens_max: int, instances: int, attainment: float, rejecting: bool = False
) -> float:
    count = len(need.work_s)
    spared = int(np.floor((1.0 - attainment) * count + 1e-9))
    least = np.inf
    for price in PRICES.tolist():
        met = costs(need, law, kv_tokens_max, price, in_time=True)
        saved = met if rejecting else met - costs(need, law, kv_tokens_max, price, in_time=False)
        total = float(met.sum()) - float(np.sort(saved)[count - spared :].sum())
        if total > 0.0:
            least = min(least, instances * count / total)
    return float(least)
