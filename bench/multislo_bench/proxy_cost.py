"""The cost of a request and of a streamed token in our router and in vllm-router (round robin), on one core each, in one run:
`multislo bench proxy`. wrk loads nginx through both in turns; a paced back end streams through both in turns."""

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from multislo_bench.processes import CannotMeasure, cpu_s, free_ports, multislo, need, put_json, running, wait_for
from multislo_bench.record import Outcome
from multislo_bench.replay import Limits, Progress, Target, replay
from multislo_router.build import build
from multislo_sim.workloads.request import Request

VLLM_ROUTER = "vllm-router==0.1.17"
BACK_ENDS = 8
ROUTER_CORE, LOAD_CORE = 0, 1
# 40 tokens a second a stream, as an engine with a TPOT of 25 ms.
TOKEN_PERIOD_S = 0.025
STREAMS_START_S = 1.0
# Counted once every stream is under way, and not while they end.
SETTLED_S = 1.5

MANIFEST = """
apiVersion: multislo.dev/v1alpha1
kind: MultiSLOServing
metadata: {name: bench}
spec:
  model: {name: m}
  profile: llama-3.1-8b-h100-tp1
  tiers:
    - {name: realtime, slo: {ttft: 300ms, tpot: 20ms}}
    - {name: interactive, slo: {ttft: 500ms, tpot: 50ms}}
    - {name: batch, slo: {ttft: 1s, tpot: 100ms}}
  defaultTier: interactive
  scaling: {acceleratorsMax: 8}
"""

ANSWER = (
    '{"id":"cmpl-1","object":"text_completion","created":1763700000,"model":"m","choices":[{"index":0,"text":" hello",'
    '"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":16,"completion_tokens":1,"total_tokens":17}}'
)

NGINX = """
worker_processes 1; daemon off; pid %(folder)s/nginx.pid; error_log %(folder)s/error.log;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s;
  client_body_temp_path %(folder)s/a; proxy_temp_path %(folder)s/b; fastcgi_temp_path %(folder)s/c;
  uwsgi_temp_path %(folder)s/d; scgi_temp_path %(folder)s/e;
  server {
    %(listen)s
    default_type application/json;
    location = /v1/models { return 200 '{"object":"list","data":[{"id":"m","object":"model"}]}'; }
    location /v1/ { return 200 '%(answer)s'; }
    location / { return 200 '{}'; }
  }
}
"""

WRK = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["x-slo-tier"] = "batch"
wrk.body = '{"model":"m","prompt":"the sun has set and one old man can see how far the sea may run","max_tokens":1}'
"""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Router:
    name: str
    url: str
    pid: int


@dataclass(frozen=True, slots=True)
class Load:
    """One run of wrk through one router."""

    requests_per_s: float
    p99_ms: float
    cpu_us_per_request: float


def measure(seconds: float, rounds: int, streams: int, binary: Path, folder: Path, say: Say) -> dict[str, Any]:
    """Alternating runs, medians over `rounds`. The document that `--json` prints."""
    if len(os.sched_getaffinity(0)) < 2:
        raise CannotMeasure("two cores are needed: one for the router, one for its load")
    os.sched_setaffinity(0, {LOAD_CORE})
    document: dict[str, Any] = {"build": build(), "concurrency": {}}
    with fixed_answers(folder) as ports, both_routers(ports, binary, folder) as routers:
        for connections in (32, 256):
            loads: dict[str, list[Load]] = {router.name: [] for router in routers}
            for number in range(rounds):
                for router in routers:
                    load = wrk(router, connections, seconds, folder)
                    say(
                        f"{connections} connections, round {number + 1}: {router.name} {load.requests_per_s:.0f} req/s, "
                        f"p99 {load.p99_ms:.2f} ms, {load.cpu_us_per_request:.1f} us CPU a request"
                    )
                    loads[router.name].append(load)
            document["concurrency"][str(connections)] = _compared(loads)
    with paced_streams(folder) as ports, both_routers(ports, binary, folder) as routers:
        costs: dict[str, list[float]] = {router.name: [] for router in routers}
        for number in range(rounds):
            for router in routers:
                cost = token_cost_us(router, streams, max(4.0, seconds))
                say(f"{streams} streams, round {number + 1}: {router.name} {cost:.1f} us CPU a token")
                costs[router.name].append(cost)
        document["us_per_token"] = {name: round(median(values), 2) for name, values in costs.items()}
    return document


def _compared(loads: dict[str, list[Load]]) -> dict[str, Any]:
    """Medians of each router, and ours over theirs (throughput: more is better; p99: less is better)."""
    middle = {
        name: {
            "requests_per_s": round(median(load.requests_per_s for load in runs), 1),
            "p99_ms": round(median(load.p99_ms for load in runs), 3),
            "cpu_us_per_request": round(median(load.cpu_us_per_request for load in runs), 2),
        }
        for name, runs in loads.items()
    }
    ours, theirs = middle["ours"], middle["vllm_router"]
    return {
        "ratio_vllm_router": round(ours["requests_per_s"] / theirs["requests_per_s"], 3),
        "p99_ratio": round(ours["p99_ms"] / theirs["p99_ms"], 3),
        **middle,
    }


@contextmanager
def fixed_answers(folder: Path) -> Iterator[list[int]]:
    """nginx on several ports, as so many engines that answer at once."""
    nginx = need("nginx", "nginx-light")
    need("wrk", "wrk")
    ports = free_ports(BACK_ENDS)
    listen = " ".join(f"listen 127.0.0.1:{port} backlog=4096;" for port in ports)
    config = folder / "nginx.conf"
    config.write_text(NGINX % {"folder": folder, "listen": listen, "answer": ANSWER}, encoding="utf-8")
    log = folder / "nginx.log"
    with running("nginx", [nginx, "-c", str(config), "-p", str(folder)], log, LOAD_CORE) as process:
        wait_for(f"http://127.0.0.1:{ports[0]}/v1/models", process, log)
        yield ports


@contextmanager
def paced_streams(folder: Path) -> Iterator[list[int]]:
    """As many engines that stream, in one process."""
    ports = free_ports(BACK_ENDS)
    log = folder / "paced.log"
    command = [sys.executable, "-m", "multislo_bench.paced_server", str(TOKEN_PERIOD_S), *map(str, ports)]
    with running("the paced back end", command, log, LOAD_CORE) as process:
        wait_for(f"http://127.0.0.1:{ports[0]}/v1/models", process, log)
        yield ports


@contextmanager
def both_routers(ports: Sequence[int], binary: Path, folder: Path) -> Iterator[list[Router]]:
    """Both, started and ready; the one that is not loaded sleeps."""
    workers = [f"http://127.0.0.1:{port}" for port in ports]
    port, admin, theirs, metrics = free_ports(4)
    manifest = folder / "manifest.yaml"
    manifest.write_text(MANIFEST, encoding="utf-8")
    own = multislo("router", "-f", str(manifest), "--port", str(port), "--admin-port", str(admin))
    other = [str(binary), "--host", "127.0.0.1", "--port", str(theirs), "--worker-urls", *workers]
    other += ["--policy", "round_robin", "--prometheus-port", str(metrics), "--log-level", "error"]
    own_log, other_log = folder / "router.log", folder / "vllm-router.log"
    with (
        running("our router", own, own_log, ROUTER_CORE) as first,
        running("vllm-router", other, other_log, ROUTER_CORE) as second,
    ):
        wait_for(f"http://127.0.0.1:{admin}/healthz", first, own_log)
        tiers = ("realtime", "interactive", "batch")
        entries = [
            {"id": f"engine-{index}", "url": url, "tier": tiers[index % len(tiers)]}
            for index, url in enumerate(workers)
        ]
        put_json(f"http://127.0.0.1:{admin}/instances", json.dumps({"version": 1, "instances": entries}).encode())
        wait_for(f"http://127.0.0.1:{theirs}/health", second, other_log)
        yield [
            Router("ours", f"http://127.0.0.1:{port}", first.pid),
            Router("vllm_router", f"http://127.0.0.1:{theirs}", second.pid),
        ]


def wrk(router: Router, connections: int, seconds: float, folder: Path) -> Load:
    """One run. Raises CannotMeasure where an answer was not 200: its rate would mean nothing."""
    script = folder / "completion.lua"
    script.write_text(WRK, encoding="utf-8")
    before_s = cpu_s(router.pid)
    command = [
        need("wrk", "wrk"),
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
        "-s",
        str(script),
    ]
    run = subprocess.run(
        [*command, f"{router.url}/v1/completions"], capture_output=True, text=True, timeout=seconds + 60.0, check=False
    )
    spent_s = cpu_s(router.pid) - before_s
    rate = re.search(r"Requests/sec:\s+([\d.]+)", run.stdout)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s|m)\b", run.stdout)
    total = re.search(r"(\d+) requests in", run.stdout)
    if rate is None or p99 is None or total is None or int(total[1]) == 0:
        raise CannotMeasure(f"wrk against {router.name} told nothing: {(run.stderr or run.stdout)[-300:]}")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", run.stdout)
    if bad is not None:
        raise CannotMeasure(f"{router.name} answered {bad[1]} of {total[1]} requests with an error")
    unit_ms = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[p99[2]]
    return Load(float(rate[1]), float(p99[1]) * unit_ms, spent_s / int(total[1]) * 1e6)


def token_cost_us(router: Router, streams: int, seconds: float) -> float:
    """CPU microseconds of the router for each token that it relays, with so many paced streams through it."""
    tokens = int((seconds + SETTLED_S + 1.0) / TOKEN_PERIOD_S)
    requests = [Request(index / streams * STREAMS_START_S, 16, tokens, "batch", 30.0, 1.0) for index in range(streams)]
    seen: list[tuple[float, float, int]] = []

    def look(moment: Progress) -> None:
        if SETTLED_S <= moment.elapsed_s <= SETTLED_S + seconds:
            seen.append((moment.elapsed_s, cpu_s(router.pid), moment.tokens))

    target = Target(router.url, "m")
    limits = Limits(in_flight_max=streams, drain_s=seconds + 30.0)
    done = uvloop.run(replay(requests, target, limits, on_progress=look))
    failed = [record for record in done.records if record.outcome is not Outcome.COMPLETED]
    if failed:
        raise CannotMeasure(f"{router.name}: {len(failed)} of {streams} streams {failed[0].outcome}: {failed[0].cause}")
    (_, first_s, first_tokens), (_, last_s, last_tokens) = seen[0], seen[-1]
    return (last_s - first_s) / (last_tokens - first_tokens) * 1e6


def vllm_router_binary(say: Say) -> Path:
    """vllm-router in an environment of its own, outside of any checkout; made on the first call."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multislo"
    folder = cache / VLLM_ROUTER.replace("==", "-")
    binary = folder / "bin" / "vllm-router"
    if binary.exists():
        return binary
    say(f"installing {VLLM_ROUTER} into {folder}")
    venv.create(folder, with_pip=True, clear=True)
    command = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        VLLM_ROUTER,
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600.0, check=False)
    if run.returncode != 0 or not binary.exists():
        raise CannotMeasure(f"{VLLM_ROUTER} could not be installed: {run.stderr[-400:]}")
    return binary
