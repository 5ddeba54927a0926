"""An engine's learning of its own speed: a planner with a latency model gets one corrected by the measured time of its iterations.
Pure: the code that runs iterations reports each one's time and then plans with what `observe` returns."""

from multislo_engine.planners.planner import Believing, Planner
from multislo_engine.planners.view import EngineView, Plan
from multislo_perf.latency import LatencyModel

WINDOW_S = 1.0
"""Of iterations, predicted: what is remembered. Some thirty iterations, so that a spread of 10 % shakes the factor by 1 %."""
RATIO_MIN, RATIO_MAX = 0.25, 4.0
"""Bounds of one iteration's measured over predicted time: beyond them something has stalled, or the profile is another engine's."""
STEP = 0.01
"""The planner is changed when the factor or the error has moved by this much: less is rounding, and not worth a new latency model."""


class Calibration:
    """Of one engine. `factor`: measured over predicted iteration time, a mean weighted by predicted time; `error`: how far iterations
    lie from that, as a share of it."""

    __slots__ = ("_believed", "_error_used", "_factor_used", "error", "factor", "planner")

    def __init__(self, planner: Believing) -> None:
        self.factor = 1.0
        self.error = 0.0
        self.planner: Planner = planner
        """What to plan with now."""
        self._believed = planner
        self._factor_used = 1.0
        self._error_used = 0.0

    def predicted_s(self, view: EngineView, plan: Plan) -> float:
        """What an iteration takes by the uncorrected belief; asked before it runs."""
        return batch_s(self._believed.latency, view, plan)

    def observe(self, measured_s: float, predicted_s: float) -> Planner:
        """An iteration has ended: returns the planner of the next."""
        if predicted_s <= 0.0:
            return self.planner
        ratio = min(max(measured_s / predicted_s, RATIO_MIN), RATIO_MAX)
        weight = predicted_s / (predicted_s + WINDOW_S)
        self.error += weight * (abs(ratio / self.factor - 1.0) - self.error)
        self.factor += weight * (ratio - self.factor)
        if abs(self.factor / self._factor_used - 1.0) > STEP or abs(self.error - self._error_used) > STEP:
            self._factor_used, self._error_used = self.factor, self.error
            self.planner = self._believed.calibrated(self.factor, self.error)
        return self.planner


def batch_s(law: LatencyModel, view: EngineView, plan: Plan) -> float:
    """What the iteration that is planned takes by a latency model."""
    if plan.decodes is None:
        decodes, kv_tokens = len(view.decodes.jobs), view.decode_kv_tokens
    else:
        decodes, kv_tokens = len(plan.decodes), view.decodes.kv_tokens(plan.decodes)
    chunks = plan.chunks
    if not chunks:
        return law.iteration_s(0, 0, decodes, kv_tokens)
    if len(chunks) == 1:
        job, tokens = chunks[0]
        return law.iteration_s(tokens, job.context, decodes, kv_tokens)
    return law.batch_s([(tokens, job.context) for job, tokens in chunks], decodes, kv_tokens)
