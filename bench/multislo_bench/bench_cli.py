"""`multislo bench placement`, `proxy`, `chaos` and `planner`."""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from multislo_api.number import Number
from multislo_bench.tables import wide

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("bench")
def bench() -> None:
    """Measure the router's and the planners' own cost, and how requests end when engines fail."""


@bench.command(epilog="Example: multislo bench placement --sizes 20,1000 --json")
@click.option("--sizes", default="20,1000,10000", show_default=True, help="Sizes of the fleets in instances.")
@click.option(
    "--arrivals",
    type=click.IntRange(100, 1_000_000),
    default=4000,
    show_default=True,
    help="Measured arrivals per size.",
)
@click.option("--placement", type=click.Choice(["Pack", "Spread"]), default="Pack", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@JSON
def placement(sizes: str, arrivals: int, placement: str, seed: int, as_json: bool) -> None:
    """Time one placement in the router's core, with about 100 decodes and some prompts on each instance.

    Measures the CPU time of `RouterCore.handle` for arriving requests, and for events that place nothing (tokens, ends), whose
    cost must not grow with the fleet. Once with stock engines and once with SLO-aware ones (in JSON under `slo_aware` of each
    size). 10,000 instances take about 3 GB and two minutes.
    """
    from multislo_bench.placement_cost import measure
    from multislo_router.build import build
    from multislo_router.core.config import Placement
    from multislo_router.core.events import Scheduler

    counts = _counts(sizes, 4, 100_000, "--sizes")
    err = Console(stderr=True)
    stock: dict[str, dict[str, float]] = {}
    slo_aware: dict[str, dict[str, float]] = {}
    for count in counts:
        for figures, scheduler in ((stock, Scheduler.FCFS), (slo_aware, Scheduler.SLO_AWARE)):
            with err.status(f"{count} instances"):
                figures[str(count)] = measure(count, arrivals, Placement(placement), seed, lambda _: None, scheduler)
    if as_json:
        report = {size: {"build": build(), **row, "slo_aware": slo_aware[size]} for size, row in stock.items()}
        click.echo(json.dumps(report, indent=2))
        return
    table = Table(
        title=f"us of RouterCore.handle, {placement}, {build()}",
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
    )
    table.add_column("engines")
    for heading in ("instances", "arrival p50", "p99", "token p50", "mean", "p99", "end p50", "p99", "load", "held"):
        table.add_column(heading, justify="right")
    names = ("p50_us", "p99_us", "token_p50_us", "token_mean_us", "token_p99_us", "end_p50_us", "end_p99_us")
    for engines, figures in (("stock", stock), ("SLO-aware", slo_aware)):
        for size, row in figures.items():
            cells = [f"{row[name]:.1f}" for name in names]
            table.add_row(engines, size, *cells, f"{row['load_mean']:.2f}", f"{row['held_share'] * 100:.1f} %")
    wide().print(table)


@bench.command(epilog="Example: multislo bench proxy --seconds 5 --rounds 3 --json")
@click.option("--seconds", type=Number(1, 120), default=5.0, show_default=True, help="Duration of one run.")
@click.option(
    "--rounds",
    type=click.IntRange(1, 50),
    default=3,
    show_default=True,
    help="Number of alternating runs; medians count.",
)
@click.option(
    "--streams",
    type=click.IntRange(1, 4096),
    default=256,
    show_default=True,
    help="Number of paced streams for the cost per token.",
)
@click.option(
    "--vllm-router", "binary", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The vllm-router program.  [default: installed from PyPI into an environment of its own in the user's cache]",
)  # fmt: skip
@JSON
def proxy(seconds: float, rounds: int, streams: int, binary: Path | None, as_json: bool) -> None:
    """Compare the router with vllm-router on one core: requests per second, and CPU time of a streamed token.

    The router under test has core 0; wrk and nginx (Debian packages wrk, nginx-light), or the paced back end and its client,
    share core 1. Both routers see the same eight back ends. Ratios are multislo over
    vllm-router: more is better for requests, less for p99.
    """
    from multislo_bench.processes import CannotMeasure
    from multislo_bench.proxy_cost import measure, vllm_router_binary

    err = Console(stderr=True)

    def say(line: str) -> None:
        err.print(line, highlight=False)

    try:
        with tempfile.TemporaryDirectory(prefix="multislo-bench-") as folder:
            path = Path(folder)
            # nginx's worker runs as another user.
            path.chmod(0o755)
            document = measure(seconds, rounds, streams, binary or vllm_router_binary(say), path, say)
    except CannotMeasure as error:
        err.print(f"error: {error}", style="red", highlight=False)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    _print_proxy(document)


def _print_proxy(document: dict[str, Any]) -> None:
    table = Table(
        title=f"through one core, median of the runs; ours is {document['build']}",
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
    )
    for heading in ("connections", "router", "req/s", "p99 ms", "us CPU/request", "ours / theirs"):
        table.add_column(heading, justify="right")
    for connections, row in document["concurrency"].items():
        for name in ("ours", "vllm_router"):
            figures = row[name]
            ratio = f"{row['ratio_vllm_router']:.2f}x, p99 {row['p99_ratio']:.2f}x" if name == "ours" else ""
            rate, cpu = f"{figures['requests_per_s']:.0f}", f"{figures['cpu_us_per_request']:.1f}"
            table.add_row(connections, name, rate, f"{figures['p99_ms']:.2f}", cpu, ratio)
    console = wide()
    console.print(table)
    tokens = document["us_per_token"]
    console.print(f"CPU of a streamed token: ours {tokens['ours']:.1f} us, vllm-router {tokens['vllm_router']:.1f} us")


@bench.command(epilog="Example: multislo bench chaos --seconds 60 --engines 6 --json")
@click.option("--seconds", type=Number(2, 3600), default=60.0, show_default=True, help="Duration of load and kills.")
@click.option(
    "--engines", type=click.IntRange(3, 200), default=6, show_default=True, help="Number of engines, in three tiers."
)
@click.option(
    "--rate",
    type=Number(0.0, 10_000.0, min_open=True),
    default=20.0,
    show_default=True,
    help="Requests a second.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@JSON
def chaos(seconds: float, engines: int, rate: float, seed: int, as_json: bool) -> None:
    """Kill a random engine every second (SIGKILL) under load.

    A whole fleet (`multislo up`, emulated engines that start in a second) on free ports. Every request must end in a complete
    answer or in one clear error; afterwards the router must hold nothing, and every engine must be ready again. Otherwise the
    exit code is 1.
    """
    from multislo_bench.chaos import measure
    from multislo_bench.processes import CannotMeasure

    err = Console(stderr=True)

    def say(line: str) -> None:
        err.print(line, highlight=False, markup=False)

    try:
        with tempfile.TemporaryDirectory(prefix="multislo-chaos-") as folder:
            result = asyncio.run(measure(seconds, engines, rate, seed, Path(folder), say))
    except CannotMeasure as error:
        err.print(f"error: {error}", style="red", highlight=False)
        sys.exit(1)
    document = result.document()
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        _print_chaos(document)
    sys.exit(0 if result.good else 1)


def _print_chaos(document: dict[str, Any]) -> None:
    table = Table(
        title=f"{document['requests']} requests, {document['kills']} kills, {document['restarts']} restarts",
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
    )
    table.add_column("a request's end, for its client")
    table.add_column("requests", justify="right")
    for cause, count in document["causes"].items():
        table.add_row(cause, str(count))
    console = wide()
    console.print(table)
    ready_s = document["all_ready_after_s"]
    console.print(f"unclear: {document['unclear']}; errors of the router's own: {document['router_errors']}")
    console.print(f"left in the router: {', '.join(document['left_over']) or 'nothing'}")
    console.print("not every engine came back" if ready_s is None else f"every engine ready again after {ready_s} s")


@bench.command(epilog="Example: multislo bench planner --running 16,64,256 --json")
@click.option("--running", default="16,64,256", show_default=True, help="Running requests of the engine.")
@click.option(
    "--calls", type=click.IntRange(100, 1_000_000), default=2000, show_default=True, help="Measured plans of each."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@JSON
def planner(running: str, calls: int, seed: int, as_json: bool) -> None:
    """Time one plan of an engine's next iteration, by planner, and what the vLLM plug-in takes of an iteration.

    Four of the running requests prefill, 16 more wait.
    """
    from multislo_bench.planner_cost import measure
    from multislo_router.build import build

    counts = _counts(running, 5, 10_000, "--running")
    figures = {str(count): measure(count, calls, seed) for count in counts}
    if as_json:
        click.echo(json.dumps({"build": build(), "running": figures}, indent=2))
        return
    table = Table(title=f"us of a plan, {build()}", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    table.add_column("planner")
    for count in counts:
        table.add_column(f"{count} running, p50", justify="right")
        table.add_column("p99", justify="right")
    for name in figures[str(counts[0])]:
        rows = [figures[str(count)][name] for count in counts]
        table.add_row(name, *[f"{row[key]:.0f}" for row in rows for key in ("p50_us", "p99_us")])
    wide().print(table)


def _counts(text: str, least: int, most: int, option: str) -> list[int]:
    """Numbers between commas."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or not all(least <= count <= most for count in counts):
        raise click.BadParameter(f"{text!r} must be numbers from {least} to {most} between commas", param_hint=option)
    return counts
