"""Plays a trace through NVIDIA's planner and mocker: a script for an interpreter that has ai-dynamo 1.4, run by `replay`; imports nothing
of ours. Beside what `python -m dynamo.replay` does, it lets the planner begin with a profile of the engine (the command has one only from
AIConfigurator's tables) and keeps each request's times (the command does so only without a planner).

    PYTHON driver.py PLAN.json

PLAN: {"trace", "engine", "passes", "requests", "runs": [{"name", "planner", "workers", "router_mode", "batch_tokens"}]}. Prints a line of
JSON for each run; before it, `requests` holds what became of each request of that run.
"""

import importlib
import json
import os
import sys
from typing import Any

TIMES = ("arrival_time_ms", "first_token_ms", "last_token_ms", "output_length")
PASS = (
    "num_prefill_requests",
    "sum_prefill_tokens",
    "sum_prefill_kv_tokens",
    "num_decode_requests",
    "sum_decode_kv_tokens",
    "wall_time",
)


class Watched:
    """Their scaling policy as their runtime calls it; keeps what the runtime tells it."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter
        self.passes: list[list[float]] = []
        """Each worker's last pass before each tick."""
        self.workers: list[list[float]] = []

    def initial_tick_ms(self) -> float:
        return float(self._adapter.initial_tick_ms())

    def on_tick(self, seen: dict[str, Any]) -> Any:
        self.passes += [[each[name] for name in PASS] for each in seen["decode_fpm_snapshots"]]
        self.workers.append([seen["now_ms"] / 1000.0, seen["active_decode_count"]])
        return self._adapter.on_tick(seen)


def planner_of(engine: Any, planner: dict[str, Any], passes: list[list[float]]) -> Any:
    """Their planner; its model of the engine is given passes of [prefill tokens, decodes, KV tokens, seconds]."""
    metrics = importlib.import_module("dynamo.common.forward_pass_metrics")
    main = importlib.import_module("dynamo.replay.main")
    adapter = main._prepare_planner_replay(engine, None, None, json.dumps(planner))
    observed = [
        metrics.ForwardPassMetrics(
            wall_time=wall_s,
            scheduled_requests=metrics.ScheduledRequestMetrics(
                num_prefill_requests=1 if prefill else 0,
                sum_prefill_tokens=int(prefill),
                num_decode_requests=int(decodes),
                sum_decode_kv_tokens=int(kv),
            ),
        )
        for prefill, decodes, kv, wall_s in passes
    ]
    adapter.install_benchmark_fpms(agg_fpms=observed)
    return adapter


def play(plan: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    core = importlib.import_module("dynamo._core")
    engine = core.MockEngineArgs.from_json(
        json.dumps({**plan["engine"], "max_num_batched_tokens": run["batch_tokens"]})
    )
    lines_path = plan["requests"] + "l"
    with planner_of(engine, run["planner"], plan["passes"]) as adapter:
        watched = Watched(adapter)
        report = core.run_mocker_trace_replay(
            [plan["trace"]],
            extra_engine_args=engine,
            num_workers=run["workers"],
            replay_mode="offline",
            router_mode=run["router_mode"],
            trace_format="mooncake",
            report_jsonl_path=lines_path,
            scaling_policy=watched,
        )
        events = adapter.finalize(report).scaling_events
    with open(lines_path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    os.remove(lines_path)
    with open(plan["requests"], "w", encoding="utf-8") as requests:
        json.dump([[row[name] for name in TIMES] for row in rows], requests)
    return {
        "name": run["name"],
        "report": report,
        "events": [[event.at_s, event.from_count, event.to_count] for event in events],
        "workers": watched.workers,
        "passes": watched.passes,
    }


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        plan = json.load(file)
    for run in plan["runs"]:
        print(json.dumps(play(plan, run)), flush=True)
        sys.stdin.readline()  # the reader has taken the requests


if __name__ == "__main__":
    main(sys.argv[1])
