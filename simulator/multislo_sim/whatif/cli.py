"""`multislo simulate --manifest`: a manifest's fleet under a user's own traffic, and what other tiers, SLOs or accelerators would
change."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from multislo_api.cli import manifest_at
from multislo_perf.profile import ProfileInvalid
from multislo_router.build import build
from multislo_sim.bound import needs
from multislo_sim.experiments.show import run_each, save, told
from multislo_sim.trace_options import AskedTrace, trace_options
from multislo_sim.whatif.answer import Question, Row, reported, requests_of, row
from multislo_sim.whatif.case import Case, case_of, fitting, with_profile
from multislo_sim.whatif.show import SIZE, drawing, tables, wide
from multislo_sim.whatif.traffic import SPAN_LEAST_S, Slice, busiest, shares_of, slices
from multislo_sim.whatif.vary import VaryInvalid, varied
from multislo_sim.workloads.build import built_in
from multislo_sim.workloads.request import Request, WorkloadInvalid
from multislo_sim.workloads.shapes import SHAPES
from multislo_sim.workloads.traces import Trace, TraceInvalid

BASE = "as it is"
SHAPED_S = 3600.0
"""An hour of a built-in workload stands for a trace."""
FIXED_SHARE = 0.3
"""Of the requests that a row plays, those that the search for the least fixed fleet plays, several times."""
FILE = click.Path(path_type=Path, dir_okay=False)
WRONG = (VaryInvalid, WorkloadInvalid, TraceInvalid, ProfileInvalid)


class ByManifest(click.Group):
    """A group whose command line may name a manifest instead of a command: then `what-if` is meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = any(arg in ("-f", "--manifest") or arg.startswith("--manifest=") for arg in args)
        if named and not any(arg in self.commands for arg in args[:1]):
            args = [str(what_if.name), *args]
        return super().parse_args(ctx, args)


@click.command(
    "what-if",
    epilog="Example: multislo simulate --manifest examples/llama-h200.yaml --trace yesterday.csv "
    "--vary tiers.realtime.slo.tpot=30ms --vary profile=llama-3.1-8b-h100-tp1",
)
@click.option("-f", "--manifest", "path", type=FILE, required=True, help="The fleet: a MultiSLOServing manifest.")
@click.option("--profile", help="Latency profile (shipped name or path) instead of the manifest's.")
@trace_options("played by its own stamps")
@click.option("--workload", type=click.Choice(sorted(SHAPES)), help="An hour of a built-in shape instead of a trace.")
@click.option(
    "--rate-factor",
    type=float,
    default=1.0,
    show_default=True,
    help="Factor on the number of users, at the same times.",
)
@click.option("--shares", help="TIER=SHARE,...: shares of the tiers in requests that name none. Default: equal.")
@click.option(
    "--vary",
    "changes",
    multiple=True,
    help="Add a row: PATH=VALUE below the manifest's spec, tiers by name, several joined by ';'. Also rate-factor=X, shares.TIER=X.",
)
@click.option(
    "--fixed", is_flag=True, help="Also search the smallest fleet of fixed size for the busiest part (takes longer)."
)
@click.option(
    "--requests-max",
    type=click.IntRange(1000, 20_000_000),
    default=50_000,
    show_default=True,
    help="A longer trace is sampled, including its busiest part.",
)
@click.option("--seed", type=click.IntRange(0, 2**31), default=1, show_default=True, help="Same seed, same answer.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=os.cpu_count, help="Parallel processes. Default: one per CPU."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--png", type=FILE, help="Also write a plot to this file.")
def what_if(
    path: Path,
    profile: str | None,
    trace: AskedTrace | None,
    workload: str | None,
    rate_factor: float,
    shares: str | None,
    changes: Sequence[str],
    fixed: bool,
    requests_max: int,
    seed: int,
    jobs: int,
    as_json: bool,
    png: Path | None,
) -> None:
    """How many GPUs a manifest's fleet takes for a trace, and what it attains. Each --vary adds a row.

    Runs the production router and autoscaler on simulated engines, within the manifest's limits. A request is in time if every token
    is.
    """
    manifest = with_profile(manifest_at(path), profile)
    try:
        traffic = _traffic(trace, workload, seed, [tier.name for tier in manifest.spec.tiers])
        raw = traffic.requests
        questions = [Question(BASE, manifest, rate_factor, None if shares is None else shares_of(shares), seed)]
        questions += [_question(questions[0], change) for change in changes]
        cases = [case_of(question.name, question.manifest) for question in questions]
        _check(questions, cases, raw)
        parts, fixed_on = _parts(questions[0], cases[0], raw, requests_max)
    except WRONG as error:
        raise click.UsageError(str(error)) from None
    whole = len(parts) > 1 or parts[0].span_s >= raw[-1].at_s
    span_s = raw[-1].at_s if whole else parts[0].length_s
    said = traffic.notes + notes(questions, cases, raw, parts, whole, shares)
    for note in said:
        told(note)
    played = [(part, part.of(raw)) for part in parts]
    on = (fixed_on, fixed_on.of(raw)) if fixed else None
    found: dict[str, Row] = run_each(row, {q.name: (q, played, span_s, on) for q in questions}, jobs)
    report = {
        "manifest": f"{manifest.metadata.namespace}/{manifest.metadata.name}",
        "workload": trace.path.name if trace is not None else workload,
        "seed": seed,
        "span_s": span_s,
        "slices": [
            {"start_s": p.start_s, "length_s": p.length_s, "stands_for_s": p.weight * p.length_s} for p in parts
        ],
        "notes": said,
        "rows": [reported(found[question.name]) for question in questions],
    }
    _show(report, as_json, png)


def _traffic(trace: AskedTrace | None, workload: str | None, seed: int, tiers: Sequence[str]) -> Trace:
    if (trace is None) == (workload is None):
        raise click.UsageError("give either --trace FILE or --workload NAME")
    read = Trace(built_in(str(workload), SHAPED_S, seed)) if trace is None else trace.read(tiers=tiers)
    span_s = read.requests[-1].at_s if read.requests else 0.0
    if span_s < SPAN_LEAST_S:
        raise WorkloadInvalid(f"--trace: its requests span {span_s:g} s, must be at least {SPAN_LEAST_S:g} s")
    return read


def _question(base: Question, change: str) -> Question:
    changed = varied(base.manifest, change)
    names = [tier.name for tier in changed.manifest.spec.tiers]
    shares: Mapping[str, float] | None = None
    if base.shares is not None or changed.shares:
        usual = dict.fromkeys(names, 1.0) if base.shares is None else base.shares
        known = [tier.name for tier in base.manifest.spec.tiers]
        shares = {name: share for name, share in usual.items() if name in names or name not in known} | dict(
            changed.shares
        )
        for name in names:
            if name not in shares and name not in known:
                raise VaryInvalid(
                    f"--vary {change!r}: tier {name!r} has no share of the requests; add ; shares.{name}=10"
                )
    factor = base.rate_factor if changed.rate_factor is None else changed.rate_factor
    return Question(change.strip(), changed.manifest, factor, shares, base.seed)


def _check(questions: Sequence[Question], cases: Sequence[Case], raw: Sequence[Request]) -> None:
    """What would only come out in a process of its own."""
    names = [question.name for question in questions]
    for question, case in zip(questions, cases, strict=True):
        if names.count(question.name) > 1:
            raise VaryInvalid(f"--vary {question.name!r} is given twice")
        requests_of(case, question, raw[:10])
        if not fitting(case, raw)[0]:
            most = case.manifest.spec.model.max_length
            raise WorkloadInvalid(f"{question.name}: no request fits spec.model.maxLength ({most})")


def _parts(base: Question, case: Case, raw: Sequence[Request], requests_max: int) -> tuple[list[Slice], Slice]:
    """The slices that are played, and the one for the fixed fleet, by the work of the base row's requests."""
    work_s = needs(raw, case.truth).work_s.tolist()
    fixed_max = FIXED_SHARE * requests_max / base.rate_factor
    return slices(raw, work_s, requests_max / base.rate_factor), busiest(raw, work_s, fixed_max)


def notes(
    questions: Sequence[Question],
    cases: Sequence[Case],
    raw: Sequence[Request],
    parts: Sequence[Slice],
    whole: bool,
    shares: str | None,
) -> list[str]:
    """Remarks that a reader of the answer needs."""
    said = []
    unnamed = sum(request.tier is None for request in raw)
    if unnamed and shares is None and len(cases[0].tiers) > 1:
        which = "the requests" if unnamed == len(raw) else f"{unnamed} of {len(raw)} requests"
        said.append(f"tiers: {which} name none and are drawn over all tiers equally (--shares sets the shares)")
    span_s = raw[-1].at_s
    if len(parts) > 1:
        seconds = sum(part.length_s for part in parts)
        said.append(
            f"sampled: {len(parts)} slices, {seconds / 60:.0f} of {span_s / 60:.0f} min, represent the whole, the busiest among them "
            "(--requests-max plays more)"
        )
    elif not whole:
        part = parts[0]
        said.append(
            f"sampled: only the busiest {part.length_s / 60:.1f} of {span_s / 60:.0f} min, from {part.start_s / 60:.1f} min on, is played; "
            "it says nothing of the rest (--requests-max plays more)"
        )
    if cases[0].manifest.spec.scaling.schedule:
        said.append("scaling.schedule is ignored, because the trace does not tell the local time")
    return said


def _show(report: Mapping[str, Any], as_json: bool, png: Path | None) -> None:
    if as_json:
        click.echo(json.dumps({**report, "build": build()}))
    else:
        console = wide()
        for table in tables(report):
            console.print(table)
        for answer in report["rows"]:
            for line in remarks(answer):
                console.print(line, highlight=False)
    # Last: a path that cannot be written must not cost the result.
    if png is not None:
        save(png, drawing(report), SIZE)


def remarks(answer: Mapping[str, Any]) -> list[str]:
    """What a row's figures mean where they are not as wished."""
    name = answer["name"]
    said = []
    if answer["time_at_accelerators_max"] > 0.0:
        share = answer["time_at_accelerators_max"]
        said.append(f"{name}: at scaling.acceleratorsMax ({answer['accelerators_max']}) for {share:.0%} of the time")
    for tier, of in answer["tiers"].items():
        if of["beyond"] > 0.0:
            said.append(
                f"{name}: {of['beyond']:.2%} of {tier}'s requests are out of reach: even an idle instance would miss their SLO"
            )
    if answer["too_long"]:
        said.append(f"{name}: {answer['too_long']:.2%} of the requests are too long for the engines and left out")
    fixed = answer["fixed"]
    if fixed and fixed["short"]:
        said.append(f"{name}: the fixed fleet is over the manifest's limits: {fixed['short']}")
    return said
