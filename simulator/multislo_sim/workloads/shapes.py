"""Built-in workloads, shaped to figures of public traces: lengths by their quantiles, arrivals by rate and variation.
Nothing of the traces themselves is shipped."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from multislo_sim.workloads.request import Request, WorkloadInvalid

QUANTILES = (0.01, 0.10, 0.25, 0.50, 0.75, 0.90, 0.99)
# Beyond the outer quantiles the logarithm goes on straight to the shortest and the longest length, put where one
# request in 30,000 lies, about the traces' own size.
OUTERMOST = 4.0


@dataclass(frozen=True, slots=True)
class LengthShape:
    """A distribution of lengths in tokens: the shortest, the lengths at `QUANTILES`, the longest.

    Between them the logarithm of the length is linear in a normal deviate: a log-normal in pieces. One log-normal
    cannot hold these facts: fitted to p50 and p90 of Azure's prompts it has a p99 of 6,100 tokens instead of 4,142.
    """

    lengths: tuple[float, ...]

    def draw(self, count: int, dice: np.random.Generator) -> NDArray[np.int64]:
        normal = NormalDist()
        deviates = [-OUTERMOST, *(normal.inv_cdf(quantile) for quantile in QUANTILES), OUTERMOST]
        logs = np.interp(dice.standard_normal(count), deviates, np.log(self.lengths))
        return np.maximum(np.rint(np.exp(logs)), 1.0).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Shape:
    """A built-in workload: lengths, and arrivals by mean rate and coefficient of variation of the gaps between them."""

    name: str
    rate: float
    arrival_cv: float
    prompt: LengthShape
    output: LengthShape


def _shape_of(p50: float, p90: float, p99: float, shortest: float, longest: float) -> LengthShape:
    """From what is published of most traces: the upper quantiles, mirrored at the median."""
    lower, upper = [p50 * p50 / quantile for quantile in (p99, p90)], [p90, p99]
    quarter = NormalDist().inv_cdf(0.75) / NormalDist().inv_cdf(0.90)
    step = (p90 / p50) ** quarter
    return LengthShape((min(shortest, lower[0]), *lower, p50 / step, p50, p50 * step, *upper, longest))


# Azure LLM inference trace 2023, conversation (Patel et al., ISCA 2024; CC-BY-4.0), and Mooncake's conversation trace
# (FAST'25; Apache-2.0): rate, variation and quantiles as measured over the whole files. The other three are shaped to
# what is published: p50, p90 and p99 of Azure's 2023 code trace and of Mooncake's synthetic trace, p50 and p90 of
# ShareGPT as multi-turn context (QoServe, ASPLOS'26, table 2; its p99 is a log-normal's).
SHAPES = {
    "azure-like": Shape(
        "azure-like",
        rate=5.53,
        arrival_cv=1.09,
        prompt=LengthShape((2, 29, 207, 396, 1020, 1189, 2734, 4142, 14_050)),
        output=LengthShape((7, 16, 54, 85, 129, 395, 424, 601, 1_000)),
    ),
    "mooncake-like": Shape(
        "mooncake-like",
        rate=3.40,
        arrival_cv=3.0,
        prompt=LengthShape((891, 894, 964, 2306, 6909, 15_367, 27_367, 85_400, 126_195)),
        output=LengthShape((1, 3, 24, 156, 350, 472, 597, 1_119, 2_000)),
    ),
    "code-like": Shape(
        "code-like",
        rate=2.57,
        arrival_cv=13.2,
        prompt=_shape_of(1469, 5188, 7436, 32, 8_000),
        output=_shape_of(13, 55, 251, 1, 1_000),
    ),
    "mooncake-synthetic-like": Shape(
        "mooncake-synthetic-like",
        rate=3.40,
        arrival_cv=1.0,
        prompt=_shape_of(11_587, 38_611, 66_456, 900, 126_195),
        output=_shape_of(69, 389, 768, 1, 2_000),
    ),
    "sharegpt-like": Shape(
        "sharegpt-like",
        rate=5.0,
        arrival_cv=1.0,
        prompt=_shape_of(1730, 5696, 15_050, 32, 32_000),
        output=_shape_of(415, 834, 1_474, 8, 4_000),
    ),
}


def shape_named(name: str) -> Shape:
    if name not in SHAPES:
        raise WorkloadInvalid(f"workload: {name!r} must be one of {', '.join(SHAPES)}")
    return SHAPES[name]


def shaped_lengths(shape: Shape, count: int, seed: int) -> list[Request]:
    """`count` requests at time 0 with the shape's lengths, prompt and output drawn independently."""
    dice = np.random.default_rng(seed)
    prompts = shape.prompt.draw(count, dice).tolist()
    outputs = shape.output.draw(count, dice).tolist()
    return [Request(0.0, prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]


def uniform_lengths(count: int, prompt: tuple[int, int], output: tuple[int, int], seed: int) -> list[Request]:
    """`count` requests at time 0 with lengths uniform over the two closed ranges."""
    for field, (low, high) in (("prompt", prompt), ("output", output)):
        if not 1 <= low <= high:
            raise WorkloadInvalid(f"{field}: range {low}-{high} must rise from at least 1")
    dice = np.random.default_rng(seed)
    prompts = dice.integers(prompt[0], prompt[1], count, endpoint=True).tolist()
    outputs = dice.integers(output[0], output[1], count, endpoint=True).tolist()
    return [Request(0.0, tokens, length) for tokens, length in zip(prompts, outputs, strict=True)]
