"""The record of which every workload consists."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


class WorkloadInvalid(ValueError):
    """The requested workload cannot be built; the message names the field, the value and the legal range."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a workload. `at_s` counts from the workload's start; `prompt_tokens` and `output_tokens` are
    exact.

    `tier` and the SLO are None until they are assigned; a request may have either or both.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    tier: str | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    prefilled: bool = False
    """It arrives at a decoding instance, with the KV of its prompt except for the last token."""


def with_lengths_at_most(requests: Iterable[Request], length_max: int) -> tuple[list[Request], int]:
    """The requests whose prompt and output fit `length_max` tokens together, and how many did not."""
    fitting = []
    dropped = 0
    for request in requests:
        if request.prompt_tokens + request.output_tokens <= length_max:
            fitting.append(request)
        else:
            dropped += 1
    return fitting, dropped


def within(requests: Sequence[Request], start_s: float, duration_s: float) -> list[Request]:
    """The requests that arrive in [start_s, start_s + duration_s), with `start_s` as their new zero."""
    end_s = start_s + duration_s
    return [replace(request, at_s=request.at_s - start_s) for request in requests if start_s <= request.at_s < end_s]


def faster(requests: Sequence[Request], rate_factor: float) -> list[Request]:
    """The same requests in the same order, `rate_factor` times as dense."""
    if not rate_factor > 0.0:
        raise WorkloadInvalid(f"rate factor: {rate_factor} must be greater than 0")
    return [replace(request, at_s=request.at_s / rate_factor) for request in requests]


def with_arrivals(lengths: Sequence[Request], stamps: Sequence[float]) -> list[Request]:
    """One request for each stamp, with lengths taken in order from `lengths` and from the start again when they run
    out."""
    if not lengths:
        raise WorkloadInvalid("lengths: none given, at least 1 request is needed")
    count = len(lengths)
    return [replace(lengths[index % count], at_s=at_s) for index, at_s in enumerate(stamps)]
