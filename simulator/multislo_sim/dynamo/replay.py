"""Runs NVIDIA's replay as a subprocess of another interpreter on requests of ours, and reads the result. Called by the experiment
`dynamo`."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from multislo_perf.profile import Profile
from multislo_sim.dynamo.engine import Mismatch, Usual, mismatch, passes_told, write_profile
from multislo_sim.workloads.request import Request

DRIVER = Path(__file__).with_name("driver.py")
TRACE_BLOCK_TOKENS = 512
"""A Mooncake line has a hash for each so many tokens."""
KV_BLOCK_TOKENS = 16
SEQS_MAX = 1024
SAID_OF_ERROR = 2000


class ReplayFailed(RuntimeError):
    """Their replay could not be run, or printed something unexpected."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One run: the SLO that the planner is told, and its other settings."""

    name: str
    ttft_s: float
    tpot_s: float
    reactive: bool
    """Load-based scaling beside the predictive one."""
    batch_tokens: int
    router_mode: str = "kv_router"
    predictor: str = "kalman"
    predictive_s: int = 60
    reactive_s: int = 5

    def planner(self) -> dict[str, Any]:
        return {
            "mode": "agg",
            "optimization_target": "sla",
            "ttft_ms": 1000.0 * self.ttft_s,
            "itl_ms": 1000.0 * self.tpot_s,
            "enable_throughput_scaling": True,
            "enable_load_scaling": self.reactive,
            "throughput_adjustment_interval_seconds": self.predictive_s,
            "load_adjustment_interval_seconds": self.reactive_s,
            "load_predictor": self.predictor,
            "pre_deployment_sweeping_mode": "none",
            "prefill_engine_num_gpu": 1,
            "decode_engine_num_gpu": 1,
            "max_gpu_budget": 100_000,
            "report_interval_hours": None,
            "live_dashboard_port": 0,
        }


@dataclass(frozen=True, slots=True)
class Served:
    """The result of one request: seconds from its arrival to its first and to its last token; infinite where there is none."""

    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """A run of theirs. `worker_s` from each worker's start to its end, start-up and draining included."""

    name: str
    served: tuple[Served, ...]
    """In the order of the requests."""
    worker_s: float
    workers_most: int
    scalings: int
    mismatch: dict[str, Mismatch]


def write_trace(path: Path, requests: Sequence[Request]) -> None:
    """Mooncake JSONL; no prompt shares a block with another."""
    used = 0
    with path.open("w", encoding="utf-8") as lines:
        for request in requests:
            blocks = -(-request.prompt_tokens // TRACE_BLOCK_TOKENS)
            line = {
                "timestamp": round(1000.0 * request.at_s, 6),
                "input_length": request.prompt_tokens,
                "output_length": request.output_tokens,
                "hash_ids": list(range(used, used + blocks)),
            }
            used += blocks
            lines.write(json.dumps(line) + "\n")


def replayed(
    python: Path,
    profile: Profile,
    requests: Sequence[Request],
    workers: int,
    startup_s: float,
    usual: Usual,
    runs: Sequence[Asked],
) -> Iterator[Replayed]:
    """Each run in turn, all in one process of theirs. Raises ReplayFailed."""
    with TemporaryDirectory(prefix="multislo-dynamo-") as name, TemporaryFile("w+", encoding="utf-8") as errors:
        folder = Path(name)
        write_trace(folder / "trace.jsonl", requests)
        write_profile(folder / "engine.npz", profile.latency, profile.kv_tokens_max, usual)
        (folder / "plan.json").write_text(
            json.dumps(_plan(folder, profile, workers, startup_s, runs)), encoding="utf-8"
        )
        command = [str(python), str(DRIVER), str(folder / "plan.json")]
        env = {**os.environ, "DYN_LOG": "error", "PYTHONUNBUFFERED": "1"}
        try:
            process = subprocess.Popen(
                command, cwd=folder, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        except OSError as error:
            raise ReplayFailed(f"{python}: cannot be run: {error.strerror}") from error
        assert process.stdin is not None
        assert process.stdout is not None
        done = 0
        try:
            for line in process.stdout:
                if not line.startswith("{"):
                    continue
                rows = json.loads((folder / "requests.json").read_text(encoding="utf-8"))
                yield read_run(json.loads(line), rows, requests, profile)
                done += 1
                process.stdin.write("\n")
                process.stdin.flush()
            process.wait()
        finally:
            process.kill()
            process.communicate()
        if done < len(runs):
            errors.seek(0)
            raise ReplayFailed(f"{python}: run {done + 1} of {len(runs)} failed:\n{errors.read()[-SAID_OF_ERROR:]}")


def _plan(folder: Path, profile: Profile, workers: int, startup_s: float, runs: Sequence[Asked]) -> dict[str, Any]:
    return {
        "trace": str(folder / "trace.jsonl"),
        "requests": str(folder / "requests.json"),
        "engine": {
            "num_gpu_blocks": profile.kv_tokens_max // KV_BLOCK_TOKENS,
            "block_size": KV_BLOCK_TOKENS,
            "max_num_seqs": SEQS_MAX,
            "enable_prefix_caching": False,
            "startup_time": startup_s,
            "planner_profile_data": str(folder / "engine.npz"),
        },
        "passes": passes_told(profile.latency, max(run.batch_tokens for run in runs)),
        "runs": [
            {
                "name": run.name,
                "planner": run.planner(),
                "workers": workers,
                "router_mode": run.router_mode,
                "batch_tokens": run.batch_tokens,
            }
            for run in runs
        ],
    }


def read_run(
    said: dict[str, Any], rows: Sequence[Sequence[Any]], requests: Sequence[Request], profile: Profile
) -> Replayed:
    """What the driver prints of a run, with its requests' rows. Raises ReplayFailed where they are not the requests that were sent."""
    name = said["name"]
    if len(rows) != len(requests):
        raise ReplayFailed(f"{name}: {len(rows)} requests came back of {len(requests)}")
    start_s = requests[0].at_s
    served = []
    for request, (arrival_ms, first_ms, last_ms, tokens) in zip(requests, rows, strict=True):
        at_s = start_s + arrival_ms / 1000.0
        if abs(at_s - request.at_s) > 0.001:
            raise ReplayFailed(f"{name}: a request came at {at_s:.4f} s, must have come at {request.at_s:.4f} s")
        whole = tokens == request.output_tokens
        first_s = (first_ms - arrival_ms) / 1000.0 if first_ms is not None else float("inf")
        served.append(Served(first_s, (last_ms - arrival_ms) / 1000.0 if whole else float("inf")))
    return Replayed(
        name,
        tuple(served),
        float(said["report"]["decode_worker_seconds"]),
        int(max(count for _, count in said["workers"])),
        len(said["events"]),
        mismatch(profile.latency, said["passes"]),
    )
