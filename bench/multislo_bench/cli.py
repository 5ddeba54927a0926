"""`multislo replay`, `multislo demo` and `multislo bench`: the measuring instruments' command lines."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from multislo_api.number import Number
from multislo_bench import options
from multislo_bench.bench_cli import bench
from multislo_bench.fleet_watch import FleetWatch
from multislo_bench.options import Wanted
from multislo_bench.record import Outcome
from multislo_bench.replay import Limits, Replayed, ReplayImpossible, Target, served_model
from multislo_bench.replay import Progress as Moment
from multislo_bench.replay import replay as send_all
from multislo_bench.report import Window, report
from multislo_bench.tables import print_report, wide
from multislo_sim.token_range import TokenRange
from multislo_sim.trace_options import AskedTrace, trace_options

__all__ = ["bench", "demo", "replay"]

FILE = click.Path(dir_okay=False, path_type=Path)


class _Floats(click.ParamType[tuple[float, ...]]):
    """A fixed number of numbers between slashes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._count = name.count("/") + 1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in str(value).split("/"))
        except ValueError:
            numbers = ()
        if len(numbers) != self._count or not all(0.0 <= number < 1e9 for number in numbers):
            self.fail(f"{value!r} must be {self.name}, numbers of at least 0", param, ctx)
        return numbers


POSITIVE = Number(min=0.0, min_open=True, max=1e9)
NOT_NEGATIVE = Number(min=0.0, max=1e9)


@click.command(
    "replay",
    epilog="Example: multislo replay --url http://127.0.0.1:8000 --workload azure-like --rate-factor 3 "
    "--tiers realtime=0.1:300ms/20ms,batch=0.9:1s/100ms --duration 120 --json out.json --png out.png",
)
@click.option("--url", required=True, help="Any OpenAI-compatible server, such as http://127.0.0.1:8000.")
@trace_options("--duration and --rate-factor decide how much of it", None)
@click.option("--workload", type=click.Choice(options.WORKLOADS), help="A built-in workload instead of a trace.")
@click.option(
    "--prompt-tokens", type=TokenRange(), default="100-2000", show_default=True, help="Range for --workload uniform."
)
@click.option(
    "--output-tokens", type=TokenRange(), default="50-400", show_default=True, help="Range for --workload uniform."
)
@click.option(
    "--rate-factor",
    type=POSITIVE,
    default=1.0,
    show_default=True,
    help="Factor on the density of the workload's arrivals.",
)
@click.option("--rate", type=POSITIVE, help="Poisson arrivals at this many requests per second instead.")
@click.option("--peak", type=POSITIVE, help="Rise from --rate to this rate and fall again, once.")
@click.option(
    "--burst", type=_Floats("FACTOR/EVERY_S/LENGTH_S"), help="Multiply --rate by FACTOR for LENGTH_S in each EVERY_S."
)
@click.option("--duration", "duration_s", type=POSITIVE, default=120.0, show_default=True, help="Seconds of arrivals.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Same seed, same requests.")
@click.option("--tiers", help="NAME=SHARE[:TTFT/TPOT],... such as realtime=0.1:300ms/20ms,batch=0.9:1s/100ms.")
@click.option(
    "-f", "--manifest", type=FILE, help="Take the tiers, or the SLOs of --tiers, from a MultiSLOServing manifest."
)
@click.option("--invert-mix", type=_Floats("FROM_S/TO_S"), help="Invert the tiers' shares between two times.")
@click.option("--slo", help="TTFT/TPOT of every request, sent as headers, if there are no tiers.")
@click.option(
    "--slo-classes", type=click.Choice(["polyserve"]), help="Each request has its own SLO from PolyServe's mix."
)
@click.option("--profile", help="Latency profile (shipped name or path): assign only SLOs that an idle engine meets.")
@click.option("--model", help="Model name. Default: the first that the server lists.")
@click.option("--chat", is_flag=True, help="Use /v1/chat/completions (default: /v1/completions).")
@click.option(
    "--token-ids", is_flag=True, help="Send prompts as lists of token ids, for exact lengths on a real engine."
)
@click.option("--api-key-file", type=FILE, help="File with the bearer key to send.")
@click.option(
    "--warmup", type=NOT_NEGATIVE, default=0.0, show_default=True, help="Seconds at the start that do not count."
)
@click.option(
    "--cooldown",
    type=NOT_NEGATIVE,
    default=0.0,
    show_default=True,
    help="Seconds of arrivals at the end that do not count.",
)
@click.option(
    "--drain",
    type=NOT_NEGATIVE,
    default=60.0,
    show_default=True,
    help="Seconds to wait for answers after the last arrival.",
)
@click.option("--timeout", type=POSITIVE, default=300.0, show_default=True, help="Seconds until a request is given up.")
@click.option("--max-in-flight", type=click.IntRange(1, 60_000), default=4096, show_default=True)
@click.option("--max-requests", type=click.IntRange(1, 10_000_000), default=1_000_000, show_default=True)
@click.option(
    "--allow-short",
    is_flag=True,
    help="Count an answer that is shorter than requested as complete, for servers without ignore_eos.",
)
@click.option("--require", type=Number(0.0, 1.0), help="Exit with 1 if a tier attains less than this share.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write the report as JSON; - for stdout.",
)
@click.option("--png", "png_file", type=FILE, help="Plot attainment over time, TTFT and TPOT against the SLO.")
def replay(url: str, **given: Any) -> None:
    """Replay a trace against any OpenAI URL (open loop) and report per tier.

    Requests are sent at their times, whatever the answers take, with exactly the workload's prompt and output lengths. Token i (from
    0) is due at sending + TTFT + i x TPOT. A request attains its SLO if every token is in time. Refused, failed and unfinished
    requests count as missed. The client measures and prints its own delay.
    """
    err = Console(stderr=True)
    tiers = options.parse_tiers(given["tiers"], given["manifest"])
    wanted = Wanted(
        trace=given["trace"],
        workload=given["workload"],
        prompt_range=given["prompt_tokens"],
        output_range=given["output_tokens"],
        rate_factor=given["rate_factor"],
        rate=given["rate"],
        peak=given["peak"],
        burst=given["burst"],
        duration_s=given["duration_s"],
        seed=given["seed"],
        tiers=tiers,
        invert=given["invert_mix"],
        slo_classes=given["slo_classes"],
        profile=given["profile"],
        requests_max=given["max_requests"],
    )
    for option, file in (("--json", given["json_file"]), ("--png", given["png_file"])):
        _writable(file, option)
    requests, notes = options.build(wanted)
    own_slo = given["slo_classes"] is not None
    if given["slo"]:
        if tiers or own_slo:
            raise click.UsageError("--slo is for requests without tiers; give a tier's SLO in --tiers")
        ttft_s, tpot_s = options.parse_slo(given["slo"])
        requests = [changed(request, ttft_s=ttft_s, tpot_s=tpot_s) for request in requests]
        own_slo = True
    last_s = min(given["duration_s"], requests[-1].at_s + 1e-6)
    window = Window(given["warmup"], last_s - given["cooldown"])
    if window.seconds <= 0.0:
        raise click.UsageError(f"--warmup and --cooldown leave nothing of the {last_s:.1f} s of arrivals")
    for note in notes:
        err.print(note, style="yellow", highlight=False, markup=False)
    limits = Limits(given["max_in_flight"], given["timeout"], given["drain"])
    key = _api_key(given["api_key_file"])
    try:
        model = given["model"] or uvloop.run(served_model(url, key))
        target = Target(url, model, key, given["chat"], given["token_ids"], own_slo)
        done = run_with_progress(
            err,
            f"replaying {len(requests)} requests",
            last_s,
            lambda show, stop: send_all(requests, target, limits, given["seed"], show, stop),
        )
    except (ReplayImpossible, ValueError) as error:
        err.print(f"error: {error}", style="red", highlight=False)
        sys.exit(1)
    if given["allow_short"]:
        for record in done.records:
            if record.outcome is Outcome.TRUNCATED:
                record.outcome = Outcome.COMPLETED
    result = report(done.records, done.timing, window)
    to_stdout = str(given["json_file"]) == "-"
    name = given["trace"].path.name if given["trace"] else given["workload"]
    print_report(wide(stderr=to_stdout), result, f"{name} against {url}")
    document = {"url": url, "workload": name, "seed": given["seed"], "started_unix_s": done.started_unix_s}
    if given["json_file"]:
        text = json.dumps(document | result.document(), indent=2)
        if to_stdout:
            click.echo(text)
        else:
            given["json_file"].write_text(text + "\n", encoding="utf-8")
    if given["png_file"]:
        # matplotlib takes half a second to import: only where a picture is asked for.
        from multislo_bench.plots import save_plot

        save_plot(given["png_file"], done.records, window, f"{name} against {url}")
    required = given["require"]
    if required is not None and any((tier.attainment or 0.0) < required for tier in result.tiers.values()):
        sys.exit(1)


def _writable(path: Path | None, option: str) -> None:
    """Before the replay: a result that cannot be written would be lost."""
    if path is None or str(path) == "-":
        return
    try:
        path.open("a").close()
    except OSError as error:
        raise click.BadParameter(f"{path} cannot be written: {error.strerror}", param_hint=option) from None


def _api_key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError as error:
        raise click.BadParameter(f"{path} cannot be read: {error.strerror}", param_hint="--api-key-file") from None
    except UnicodeDecodeError:
        raise click.BadParameter(f"{path} is not UTF-8 text", param_hint="--api-key-file") from None


def run_with_progress(
    err: Console,
    label: str,
    last_s: float,
    start: Callable[[Callable[[Moment], None], asyncio.Event], Any],
) -> Replayed:
    """Runs a replay under uvloop with a progress bar on stderr; Ctrl-C stops sending, a second one gives up."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
        console=err,
        # A refresh takes a millisecond of the very loop that stamps tokens: it is done in the sweep, four times a second.
        auto_refresh=False,
        transient=True,
        disable=not err.is_terminal,
    )

    async def run() -> Replayed:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            stop.set()
            loop.remove_signal_handler(signal.SIGINT)

        loop.add_signal_handler(signal.SIGINT, interrupt)
        task = bar.add_task(label, total=last_s, state="")

        def show(moment: Moment) -> None:
            state = f"{moment.sent} sent, {moment.in_flight} in flight"
            bar.update(task, completed=min(moment.elapsed_s, last_s), state=state)
            bar.refresh()

        done: Replayed = await start(show, stop)
        return done

    with bar:
        return uvloop.run(run())


@click.command("demo", epilog="Example: multislo demo --duration 100 --out demo")
@click.option("-f", "--file", "manifest_path", type=FILE, default="examples/demo.yaml", show_default=True)
@click.option(
    "--duration",
    "duration_s",
    type=Number(20, 3600),
    default=100.0,
    show_default=True,
    help="Seconds of arrivals in each of the two runs.",
)
@click.option(
    "--low", type=POSITIVE, default=3.0, show_default=True, help="Requests per second at the start and the end."
)
@click.option("--peak", type=POSITIVE, default=32.0, show_default=True, help="Requests per second at the peak.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=7, show_default=True)
@trace_options("played by its own stamps instead of the built-in curve", None)
@click.option(
    "--rate-factor", type=POSITIVE, default=1.0, show_default=True, help="Factor on the density of the trace."
)
@click.option("--rival", type=click.Choice(["round_robin", "least_requests"]), default="round_robin", show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="demo",
    show_default=True,
    help="Folder for report.json, demo.png and logs.",
)
def demo(
    manifest_path: Path,
    duration_s: float,
    low: float,
    peak: float,
    seed: int,
    trace: AskedTrace | None,
    rate_factor: float,
    rival: str,
    out: Path,
) -> None:
    """Compare a scaled fleet with round robin under a load that rises and falls.

    Starts `multislo up` with emulated engines on this machine and replays a built-in workload shaped to a public trace. Then sends
    the same requests through round robin on as many instances and prints both runs. Takes about four minutes.
    """
    from multislo_api.cli import manifest_at
    from multislo_bench import demo as story_of
    from multislo_bench.demo_view import print_demo, save_picture
    from multislo_bench.processes import CannotMeasure
    from multislo_sim.workloads.traces import TraceInvalid

    err = Console(stderr=True)
    began = perf_counter()
    manifest = manifest_at(manifest_path)
    story = story_of.Story(duration_s, low, peak, seed, trace, rate_factor)
    try:
        requests, notes = story_of.requests_of(story, manifest, story_of.profile_for(manifest))
    except TraceInvalid as error:
        raise click.UsageError(f"--trace: {error}") from error
    if not requests:
        raise click.UsageError("no request is short enough for the manifest's engines")
    for note in notes:
        err.print(note, style="yellow", highlight=False, markup=False)
    model = manifest.spec.model.served_names[0]
    out.mkdir(parents=True, exist_ok=True)

    def run(label: str, url: str, watch: FleetWatch) -> story_of.Run:
        runs: list[story_of.Run] = []

        async def start(show: Callable[[Moment], None], stop: asyncio.Event) -> Replayed:
            runs.append(await story_of.watched(requests, url, model, watch, story, show, stop))
            return runs[0].replayed

        run_with_progress(err, label, duration_s, start)
        return runs[0]

    try:
        load = f"{trace.path.name}, {rate_factor:g} times as dense" if trace else f"{low:g} to {peak:g} a second"
        err.print(f"{len(requests)} requests over {duration_s:g} s, {load}; starting the fleet", highlight=False)
        with story_of.our_fleet(manifest_path, manifest, out) as (url, admin):
            ready_s = perf_counter() - began
            err.print(f"ready after {ready_s:.1f} s; live page: {admin}/", style="bold", highlight=False)
            ours = run("multislo", url, FleetWatch(admin))
        if ours.first_token_s is not None:
            err.print(f"first token served {ready_s + ours.first_token_s:.1f} s after the start", highlight=False)
        count = story_of.rival_instances(ours)
        err.print(f"the same requests under {rival}, on {count} instances all the time", highlight=False)
        with story_of.rival_fleet(manifest_path, manifest, count, rival, out) as (url, engines):
            other = run(rival, url, FleetWatch(None, engines))
    except CannotMeasure as error:
        err.print(f"error: {error}", style="red", highlight=False)
        sys.exit(1)
    print_demo(wide(), ours, other, rival, count)
    story_of.save_report(out / "report.json", {"multislo": ours, rival: other})
    save_picture(out / "demo.png", ours, other, rival)
    err.print(f"written: {out}/report.json, {out}/demo.png", highlight=False)
