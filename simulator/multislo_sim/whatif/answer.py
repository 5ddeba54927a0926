"""One row of the what-if: a case on the trace's slices with the autoscaler and, if requested, on the smallest fixed fleet; and its
report. `row` runs in separate processes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from multislo_api.manifest import MultiSLOServing
from multislo_sim.whatif.case import Case, case_of, fitting
from multislo_sim.whatif.play import Moment, Played, Tally, play_scaled
from multislo_sim.whatif.search import Found, least_fleet
from multislo_sim.whatif.traffic import Slice, assigned, denser
from multislo_sim.workloads.request import Request

POINTS_MAX = 400
"""Of a fleet over time, as reported."""


@dataclass(frozen=True, slots=True)
class Question:
    """The input of a row."""

    name: str
    manifest: MultiSLOServing
    rate_factor: float
    shares: Mapping[str, float] | None
    """None: all tiers alike."""
    seed: int


@dataclass(frozen=True, slots=True)
class Row:
    """The result of a row."""

    question: Question
    played: Sequence[Played]
    too_long: float
    """Share of the requests that the router would refuse because of their length; they are not played."""
    fixed: Found | None
    span_s: float
    """Of the whole trace, or of what is played where it stands for nothing but itself."""


def row(
    question: Question,
    parts: Sequence[tuple[Slice, Sequence[Request]]],
    span_s: float,
    fixed_on: tuple[Slice, Sequence[Request]] | None,
) -> Row:
    """`parts`: slices with the trace's requests in them (times from the slice's beginning), as they are in the trace."""
    case = case_of(question.name, question.manifest)
    too_long = given = 0
    played = []
    for part, raw in parts:
        requests, refused = requests_of(case, question, raw)
        too_long += refused
        given += refused + len(requests)
        played.append(play_scaled(case, requests, part, question.seed))
    found = None
    if fixed_on is not None:
        part, raw = fixed_on
        found = least_fleet(case, requests_of(case, question, raw)[0], part, case.manifest.spec.scaling.attainment)
    return Row(question, played, too_long / max(1, given), found, span_s)


def requests_of(case: Case, question: Question, raw: Sequence[Request]) -> tuple[list[Request], int]:
    """A slice's requests as the question has them: so many times as many, those that fit, each with a tier; and how many do not fit."""
    kept, too_long = fitting(case, denser(raw, question.rate_factor, question.seed))
    return assigned(case, kept, question.shares, question.seed), too_long


def reported(answer: Row) -> dict[str, Any]:
    """The row in JSON's terms; units are in the names. The slices are weighted by what each stands for."""
    case = case_of(answer.question.name, answer.question.manifest)
    spec = case.manifest.spec
    total = scaled(answer, None)
    scaling = spec.scaling
    tiers = {name: _tier(case, answer, name) for name in case.tiers}
    at_max = _mean(answer, lambda m: float(_accelerators(case, m) >= _instances_max(case) * case.per_instance))
    return {
        "name": case.name,
        "profile": case.profile.name,
        "accelerator": case.profile.accelerator,
        "scheduler": spec.engine.scheduler,
        "rate_factor": answer.question.rate_factor,
        "rate_rps": _rate(answer),
        "requests_counted": total.counted,
        "too_long": answer.too_long,
        "accelerators": {
            "min": min(_accelerators(case, m) for played in answer.played for m in played.moments),
            "mean": (mean := _mean(answer, lambda m: _accelerators(case, m))),
            "max": max(_accelerators(case, m) for played in answer.played for m in played.moments),
            "hours": mean * answer.span_s / 3600.0,
        },
        "accelerators_max": scaling.accelerators_max,
        "time_at_accelerators_max": at_max,
        "attainment": total.attainment,
        "goal": scaling.attainment,
        "attained": all(scaled(answer, name).holds(scaling.attainment) for name in case.tiers),
        "tiers": tiers,
        "warm_pool": _instances(answer, None),
        "fixed": None if answer.fixed is None else fixed_report(case, answer.fixed),
        "over_time": [_point(case, m) for m in _thin([m for p in answer.played for m in p.moments])],
    }


def fixed_report(case: Case, found: Found) -> dict[str, Any]:
    """What a search for the least fixed fleet found, in JSON's terms."""
    counts = found.counts
    total = None if counts is None else sum(counts.values())
    return {
        "accelerators": None if total is None else total * case.per_instance,
        "instances": counts,
        "attainment": {name: tally.attainment for name, tally in found.played.tiers.items()},
        "beyond": {
            name: tally.beyond / tally.counted if tally.counted else 0.0 for name, tally in found.played.tiers.items()
        },
        "requests_counted": {name: tally.counted for name, tally in found.played.tiers.items()},
        "instances_by_bound": found.total_bound,
        "share_of_bound": found.total_bound / total if total else None,
        "short": found.short,
        "simulations": found.tried,
    }


def scaled(answer: Row, tier: str | None) -> Tally:
    """A tier's requests (None: all), each slice by its weight."""
    total = Tally()
    for played in answer.played:
        for name, tally in played.tiers.items():
            if tier in (None, name):
                weight = played.part.weight
                total.counted += round(weight * tally.counted)
                total.met += round(weight * tally.met)
                total.beyond += round(weight * tally.beyond)
    return total


def _tier(case: Case, answer: Row, name: str) -> dict[str, Any]:
    tally = scaled(answer, name)
    ttft_s, tpot_s = case.slo(name)
    return {
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "requests_counted": tally.counted,
        "attainment": tally.attainment,
        "beyond": tally.beyond / tally.counted if tally.counted else 0.0,
        "instances": _instances(answer, name),
    }


def _instances(answer: Row, tier: str | None) -> dict[str, float]:
    counts = [m.instances.get(tier, 0) for played in answer.played for m in played.moments]
    return {"min": min(counts), "mean": _mean(answer, lambda m: m.instances.get(tier, 0)), "max": max(counts)}


def _mean(answer: Row, value: Any) -> float:
    """Over time, each slice by its weight."""
    total = weights = 0.0
    for played in answer.played:
        weight = played.part.weight * played.part.length_s
        total += weight * sum(value(m) for m in played.moments) / len(played.moments)
        weights += weight
    return total / weights


def _rate(answer: Row) -> float:
    seconds = sum(played.part.weight * played.part.length_s for played in answer.played)
    return scaled(answer, None).counted / seconds


def _instances_max(case: Case) -> int:
    return case.manifest.spec.scaling.accelerators_max // case.per_instance


def _accelerators(case: Case, moment: Moment) -> int:
    return sum(moment.instances.values()) * case.per_instance


def _point(case: Case, moment: Moment) -> dict[str, Any]:
    return {
        "at_s": moment.at_s,
        "accelerators": _accelerators(case, moment),
        "instances": {name: moment.instances.get(name, 0) for name in case.tiers},
        "warm_pool": moment.instances.get(None, 0),
        "ready": moment.ready,
    }


def _thin(moments: Sequence[Moment]) -> Sequence[Moment]:
    step = -(-len(moments) // POINTS_MAX) if moments else 1
    return moments[::step]
