"""`multislo demo`: one fleet under a load that rises and falls, then the same requests under round robin on as many instances. The
router, its core, the scaling and the HTTP are the product; only the engines are emulated."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import monotonic, perf_counter, sleep
from urllib.error import URLError
from urllib.request import urlopen

from multislo_api.fleet import FleetSnapshot
from multislo_api.manifest import MultiSLOServing
from multislo_api.tolerant import read_json
from multislo_bench.fleet_watch import FleetWatch
from multislo_bench.processes import CannotMeasure, free_ports, multislo, running, tail, wait_for
from multislo_bench.replay import Limits, Progress, Replayed, Target, replay
from multislo_bench.report import Report, Window, report
from multislo_perf.profile import Profile
from multislo_perf.sizing import batch_tokens
from multislo_router.from_manifest import profile_of
from multislo_sim.trace_options import AskedTrace
from multislo_sim.workloads.arrivals import rise_and_fall
from multislo_sim.workloads.build import built_in, from_trace
from multislo_sim.workloads.request import Request, with_lengths_at_most
from multislo_sim.workloads.tiers import TierShare, idle_can_meet, with_tiers

# PolyServe's shares (arXiv 2507.17769), from the tightest tier to the loosest; another number of tiers shares alike.
SHARES = (0.1, 0.2, 0.3, 0.4)
READY_WITHIN_S = 60.0
UP_PATIENCE_S = 30.0
DRAIN_S = 30.0
# One budget for all of round robin's engines, tuned for it: with five engines at 40 requests a second 512 attained 92.5 %, 256
# 91.9 %, 1,024 90.6 %, 2,048 (vLLM's default on small GPUs) 88.9 %.
RIVAL_BATCH_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Story:
    """The load that is replayed twice."""

    duration_s: float
    low: float
    peak: float
    seed: int
    trace: AskedTrace | None = None
    """Replayed by its own stamps instead of the built-in workload along the curve."""
    rate_factor: float = 1.0


@dataclass(slots=True)
class Run:
    """One of the two."""

    report: Report
    replayed: Replayed
    watch: FleetWatch
    instance_seconds: float
    seconds: float
    first_token_s: float | None


def requests_of(story: Story, manifest: MultiSLOServing, profile: Profile) -> tuple[list[Request], list[str]]:
    """The built-in workload along the curve, or a trace by its own stamps; and what the user should know of how it was read.

    A prompt that an idle instance of its tier could not serve in time goes to the next looser tier, because no policy could attain it.
    """
    notes: list[str] = []
    if story.trace is None:
        curve = rise_and_fall(story.low, story.peak, story.duration_s)
        arriving = built_in("azure-like", story.duration_s, story.seed, curve=curve)
    else:
        names = [tier.name for tier in manifest.spec.tiers]
        read = from_trace(
            story.trace.path, story.trace.part, story.duration_s, story.seed, story.rate_factor, tiers=names
        )
        arriving, notes = read.requests, read.notes
    longest = manifest.spec.model.max_length or profile.kv_tokens_max
    requests, too_long = with_lengths_at_most(arriving, longest)
    if too_long:
        notes.append(f"{too_long} requests are longer than {longest} tokens and left out")
    ordered = sorted(manifest.spec.tiers, key=lambda tier: tier.slo.tpot_s)
    shares = SHARES if len(ordered) == len(SHARES) else (1.0,) * len(ordered)
    tiers = [
        TierShare(tier.name, share, tier.slo.ttft_s, tier.slo.tpot_s)
        for tier, share in zip(ordered, shares, strict=True)
    ]

    def attainable(request: Request, tier: TierShare) -> bool:
        assert tier.ttft_s is not None
        assert tier.tpot_s is not None
        budget = batch_tokens(profile.latency, tier.tpot_s)
        return idle_can_meet(profile.latency, budget, request, tier.ttft_s, tier.tpot_s)

    return with_tiers(requests, tiers, story.seed, attainable=attainable), notes


@contextmanager
def our_fleet(manifest_path: Path, manifest: MultiSLOServing, folder: Path) -> Iterator[tuple[str, str]]:
    """`multislo up` and everything that it starts; ready when no instance is starting any more. Yields both URLs."""
    url = f"http://127.0.0.1:{manifest.spec.router.port}"
    admin = f"http://127.0.0.1:{manifest.spec.router.admin_port}"
    log = folder / "up.log"
    command = multislo("up", "-f", str(manifest_path), "--log-dir", str(folder))
    with running("multislo up", command, log, patience_s=UP_PATIENCE_S) as process:
        wait_for(f"{admin}/healthz", process, log)
        until = monotonic() + READY_WITHIN_S
        while not _all_ready(admin):
            if process.poll() is not None or monotonic() > until:
                raise CannotMeasure(f"the fleet was not ready within {READY_WITHIN_S:.0f} s:\n{tail(log)}")
            sleep(0.1)
        yield url, admin


def _all_ready(admin: str) -> bool:
    with suppress(URLError, OSError, ValueError), urlopen(f"{admin}/fleet", timeout=2.0) as response:
        instances = read_json(FleetSnapshot, response.read())[0].instances
        return bool(instances) and all(instance.state == "ready" for instance in instances)
    return False


@contextmanager
def rival_fleet(
    manifest_path: Path, manifest: MultiSLOServing, count: int, policy: str, folder: Path
) -> Iterator[tuple[str, list[str]]]:
    """The rival policy and so many engines, all ready. Yields the router's URL and the engines'."""
    port, *ports = free_ports(count + 1)
    engines = [f"http://127.0.0.1:{engine}" for engine in ports]
    model, emulation = manifest.spec.model, manifest.spec.engine.emulation
    profile = manifest.spec.profile
    with ExitStack() as stack:
        started = []
        for number, engine in enumerate(ports):
            log = folder / f"{policy}-engine-{number}.log"
            command = multislo("emulate", "--port", str(engine), "--model", model.name, "--seed", str(number))
            command += ["--profile", profile if isinstance(profile, str) else str(getattr(profile, "file", ""))]
            command += ["--max-num-batched-tokens", str(RIVAL_BATCH_TOKENS), "--slow-down", str(emulation.slow_down)]
            command += ["--jitter", str(emulation.jitter), "--scheduler", "fcfs"]
            for name in model.served_names:
                command += ["--served-name", name]
            if model.max_length is not None:
                command += ["--max-model-len", str(model.max_length)]
            started.append((engine, stack.enter_context(running("an engine", command, log)), log))
        for engine, process, log in started:
            wait_for(f"http://127.0.0.1:{engine}/v1/models", process, log)
        log = folder / f"{policy}.log"
        command = multislo_module("multislo_bench.round_robin", "-f", str(manifest_path), "--port", str(port))
        command += ["--policy", policy, *(part for engine in engines for part in ("--engine", engine))]
        process = stack.enter_context(running(policy, command, log))
        wait_for(f"http://127.0.0.1:{port}/v1/models", process, log)
        yield f"http://127.0.0.1:{port}", engines


def multislo_module(module: str, *args: str) -> list[str]:
    """The command line of one of our modules in this very environment."""
    return [multislo()[0], "-m", module, *args]


async def watched(
    requests: list[Request],
    url: str,
    model: str,
    watch: FleetWatch,
    story: Story,
    show: Callable[[Progress], None],
    stop: asyncio.Event,
) -> Run:
    """Replays with the fleet under watch."""
    first_token_s: float | None = None
    started_at = perf_counter()

    def look(moment: Progress) -> None:
        nonlocal first_token_s
        if first_token_s is None and moment.tokens:
            first_token_s = moment.elapsed_s
        show(moment)

    watching = asyncio.create_task(watch.run())
    try:
        done = await replay(requests, Target(url, model), Limits(drain_s=DRAIN_S), story.seed, look, stop)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    await watch.last_look()
    seconds = perf_counter() - started_at
    result = report(done.records, done.timing, Window(0.0, story.duration_s))
    fixed = len(watch.engines) * seconds
    used = watch.instance_seconds(seconds) if watch.admin_url is not None else fixed
    return Run(result, done, watch, used, seconds, first_token_s)


def rival_instances(ours: Run) -> int:
    """As many as we used on the average, rounded up: the rival never has less."""
    return max(1, ceil(ours.instance_seconds / ours.seconds - 1e-9))


def profile_for(manifest: MultiSLOServing) -> Profile:
    return profile_of(manifest.spec)


def save_report(path: Path, runs: dict[str, Run]) -> None:
    """Machine-readable; its shape is kept stable: `{"multislo": {"tiers": {NAME: {"attainment"}}, "instance_seconds"}, ...}`."""
    document = {
        name: run.report.document()
        | {
            "instance_seconds": round(run.instance_seconds, 1),
            "instances": [
                {"at_s": round(sample.at_s, 1), "tiers": sample.tiers, "states": sample.states}
                for sample in run.watch.samples
            ],
        }
        for name, run in runs.items()
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
