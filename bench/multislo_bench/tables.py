"""A replay's report for the terminal."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from multislo_bench.record import Outcome
from multislo_bench.report import Report, TierReport

GOOD, FAIR = 0.99, 0.90


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f}" if seconds >= 0.1 else f"{seconds * 1000:.1f}"


def share(value: float | None) -> Text:
    if value is None:
        return Text("-")
    return Text(f"{value * 100:.1f} %", style="green" if value >= GOOD else "yellow" if value >= FAIR else "red")


def table(report: Report, title: str) -> RenderableType:
    """Per tier: attainment, TTFT and TPOT against the SLO, what went wrong, goodput."""
    grid = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    grid.add_column("tier", no_wrap=True)
    for heading in (
        "requests",
        "SLO ms\nTTFT/TPOT",
        "attained",
        "TTFT ms\np50 / p99",
        "TPOT ms\np50 / p99",
        "refused",
        "failed",
        "goodput\nreq/s",
        "tokens/s",
    ):
        grid.add_column(heading, justify="right", no_wrap=True)
    for name, tier in report.tiers.items():
        grid.add_row(name, *_cells(tier))
    if len(report.tiers) > 1:
        grid.add_section()
        grid.add_row("all", *_cells(report.total), style="bold")
    return Group(grid, *_lines(report))


def wide(stderr: bool = False) -> Console:
    """The terminal, or 120 columns where there is none."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=120)


def print_report(console: Console, report: Report, title: str) -> None:
    console.print(table(report, title))


def _cells(tier: TierReport) -> Iterable[RenderableType]:
    slo = "-"
    if tier.ttft_slo_s is not None and tier.tpot_slo_s is not None:
        slo = f"{tier.ttft_slo_s * 1000:g}/{tier.tpot_slo_s * 1000:g}"
    failed = sum(
        tier.outcomes[outcome]
        for outcome in Outcome
        if outcome not in (Outcome.COMPLETED, Outcome.REFUSED, Outcome.TRUNCATED)
    )
    return (
        str(tier.requests),
        slo,
        share(tier.attainment),
        f"{milliseconds(tier.ttft_s.p50)} / {milliseconds(tier.ttft_s.p99)}",
        f"{milliseconds(tier.tpot_s.p50)} / {milliseconds(tier.tpot_s.p99)}",
        str(tier.outcomes[Outcome.REFUSED]),
        str(failed),
        f"{tier.goodput_requests_per_s:.2f}",
        f"{tier.goodput_tokens_per_s:.0f}",
    )


def _lines(report: Report) -> Iterable[Text]:
    client = report.client
    cost = "-" if client.cpu_us_per_token is None else f"{client.cpu_us_per_token:.1f}"
    yield Text(
        f"measured {report.window.start_s:g} to {report.window.end_s:g} s; this client: sent late p99 "
        f"{milliseconds(client.sent_late_s.p99)} ms (max {milliseconds(client.sent_late_s.max)}), event loop late p99 "
        f"{milliseconds(client.loop_lag_s.p99)} ms (max {milliseconds(client.loop_lag_s.max)}), "
        f"{client.tokens} tokens at {cost} us CPU each",
        style="dim",
    )
    for note in report.notes:
        yield Text(note, style="yellow")
    for cause, count in report.total.causes.items():
        yield Text(f"{count} x {cause}", style="yellow")
