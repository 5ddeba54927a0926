"""The time of one call of the latency model. Called by `multislo profile bench`; its goal is under 2 us a prediction, because the
router asks several times a request and a planner several times an iteration."""

from collections.abc import Callable
from dataclasses import dataclass
from timeit import repeat

from multislo_perf.latency import LatencyModel

CALLS = 50_000
ROUNDS = 7


@dataclass(frozen=True, slots=True)
class PredictCost:
    """Microseconds of one call, the best of several rounds: in the others the machine did other work."""

    question: str
    us: float


def bench_predict(latency: LatencyModel, calls: int = CALLS) -> list[PredictCost]:
    """Times each question on a busy instance's numbers."""
    questions: dict[str, Callable[[], object]] = {
        "iteration_s": lambda: latency.iteration_s(512, 1024, 60, 90_000),
        "batch_s (2 chunks)": lambda: latency.batch_s([(256, 1024), (256, 0)], 60, 90_000),
        "chunk_max": lambda: latency.chunk_max(0.035, 1024, 60, 90_000),
        "decodes_max": lambda: latency.decodes_max(0.035, 1500.0),
        "prefill_s": lambda: latency.prefill_s(6000, 0, 1024, 60, 90_000),
    }
    return [
        PredictCost(name, 1e6 * min(repeat(question, number=calls, repeat=ROUNDS)) / calls)
        for name, question in questions.items()
    ]
