"""What the plug-in counts, in Prometheus' default registry. The scheduler runs in the engine's own process: vLLM's /metrics shows it only
where `PROMETHEUS_MULTIPROC_DIR` names an empty folder when vLLM starts (docs/vllm-plugin.md)."""

from dataclasses import dataclass

from prometheus_client import Counter, Gauge

ITERATIONS = Counter(
    "multislo_scheduler_iterations", "Iterations, by who formed the batch: the planner or vLLM.", ["by"]
)
LEFT_OUT = Counter("multislo_scheduler_decodes_left_out", "Decodes that the planner left out of an iteration, in all.")
ERRORS = Counter("multislo_scheduler_errors", "Exceptions in the planner; their iterations were vLLM's.")
SECONDS = Counter("multislo_scheduler_seconds", "Time spent planning.")
FACTOR = Gauge(
    "multislo_scheduler_law_factor",
    "Learned over given latency law, by part.",
    ["part"],
    multiprocess_mode="mostrecent",
)
ERROR = Gauge(
    "multislo_scheduler_law_error", "Mean error of the learned law, as a share.", multiprocess_mode="mostrecent"
)
PARTS = ("fixed", "tokens", "decodes", "attention")


@dataclass(slots=True)
class Counts:
    """Since the start of the engine."""

    planned: int = 0
    stock: int = 0
    left_out: int = 0
    errors: int = 0
    seconds: float = 0.0

    def publish(self, before: "Counts", factors: list[float], error: float) -> None:
        ITERATIONS.labels("planner").inc(self.planned - before.planned)
        ITERATIONS.labels("vllm").inc(self.stock - before.stock)
        LEFT_OUT.inc(self.left_out - before.left_out)
        ERRORS.inc(self.errors - before.errors)
        SECONDS.inc(self.seconds - before.seconds)
        for part, factor in zip(PARTS, factors, strict=True):
            FACTOR.labels(part).set(factor)
        ERROR.set(error)
