"""`Pace`: how fast one engine server is. The profile's law, times a calibration factor that is measured from the server's own iterations.
Changed by `Instance` alone."""

from typing import Final

from multislo_perf.latency import LatencyModel

CALIBRATION_MIN: Final = 0.5
CALIBRATION_MAX: Final = 4.0
"""Bounds of measured over predicted time: beyond them the profile is wrong, not the instance slow."""
CALIBRATION_WEIGHT: Final = 0.05
PREFILL_ITERATIONS_LEAST: Final = 3.0
"""A prefill shorter than this many decode iterations says nothing of the speed: where in an iteration it came in weighs too much."""


class Pace:
    """Times in seconds, calibrated unless they say otherwise."""

    __slots__ = ("boundary_at", "calibration", "iteration_s", "latency", "prefill_ended_at", "steady_s")

    def __init__(self, latency: LatencyModel, now: float) -> None:
        self.latency = latency
        self.calibration = 1.0
        """Measured over predicted time."""
        self.boundary_at = now
        """When an iteration was last seen to end."""
        self.prefill_ended_at = now
        """When a prompt last left the instance's queue."""
        self.iteration_s = latency.tokens_s(0)
        """The iteration of the decodes alone, as they are now."""
        self.steady_s = self.iteration_s
        """The same once the prefills here decode too."""

    def batch_s(self, prompt_tokens: int, attention_s: float, decodes: int, kv_tokens: float) -> float:
        """An iteration of `prompt_tokens` whose attention takes `attention_s` by the profile, beside `decodes` over `kv_tokens`."""
        return self.calibration * self.latency.mixed_s(prompt_tokens, attention_s, decodes, kv_tokens)

    def steady_with_s(self, decodes: int, kv_tokens: int) -> float:
        """The steady iteration with so many decodes more, over so many tokens of KV."""
        latency = self.latency
        more_s = decodes * (latency.gemm_per_token_s + latency.per_decode_s) + latency.per_kv_token_s * kv_tokens
        return self.steady_s + self.calibration * more_s

    def saw_decodes(self, gap_s: float) -> None:
        """Two iterations of decodes alone ended `gap_s` apart."""
        self._calibrate(gap_s, self.iteration_s)

    def saw_prefill(self, took_s: float, predicted_s: float) -> None:
        """A prompt that was alone in the queue took this long, half an iteration of waiting left out. `predicted_s`: calibrated."""
        if predicted_s > PREFILL_ITERATIONS_LEAST * self.iteration_s:
            self._calibrate(took_s - 0.5 * self.iteration_s, predicted_s)

    def _calibrate(self, measured_s: float, predicted_s: float) -> None:
        if predicted_s > 0.0:
            ratio = self.calibration * measured_s / predicted_s
            ratio = min(max(ratio, CALIBRATION_MIN), CALIBRATION_MAX)
            self.calibration += CALIBRATION_WEIGHT * (ratio - self.calibration)
