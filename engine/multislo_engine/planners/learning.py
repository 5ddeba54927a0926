"""An engine's whole law learned while it runs, for one whose profile may be another engine's: the vLLM plug-in. Pure.

`Calibration` has one factor, which cannot carry a law whose fixed part is wrong. Here each part of the law has a factor of its own:
least squares over the last few hundred iterations, each relative to its predicted time, drawn to the factor of the whole where they do
not tell the parts apart."""

from dataclasses import dataclass, replace

from multislo_engine.planners.planner import Planner
from multislo_engine.planners.slo_aware import SloAware
from multislo_engine.planners.view import EngineView, Plan
from multislo_perf.latency import LatencyModel

FORGET = 0.995
"""What an iteration counts for after the next one: some 200 are remembered, a few seconds."""
RATIO_MIN, RATIO_MAX = 0.25, 4.0
"""Bounds of one iteration's measured over predicted time. Beyond them something has stalled (a compilation, another program)."""
FACTOR_MIN, FACTOR_MAX = 0.02, 50.0
"""Bounds of each part's factor: from an H200's profile to a small model on it, or to a CPU."""
DRAWN = 0.2
"""How strongly a part's factor is drawn to that of the whole: as much as so many iterations that are that part alone."""
EVERY = 8
"""Iterations between two solutions: one costs some 30 us."""
SWEEPS = 6
"""Of Gauss-Seidel, from the last solution on."""
STEP = 0.01
"""The planner is changed when a factor or the error has moved by this much."""
PARTS = 4


@dataclass(slots=True)
class Batch:
    """What an iteration was made of."""

    tokens: int
    """Its decodes' (drafts included) and its chunks'."""
    decodes: int
    kv_tokens: int
    attention_s: float
    """Of its chunks, by the law that was believed at first."""


def batch_of(law: LatencyModel, view: EngineView, plan: Plan) -> Batch:
    """The batch of a plan, for an engine that does exactly as planned."""
    slots = plan.decodes
    decodes = len(view.decodes) if slots is None else len(slots)
    kv_tokens = view.decode_kv_tokens if slots is None else view.decodes.kv_tokens(slots)
    chunks = plan.chunks
    attention_s = sum([law.attention_s(tokens, job.context) for job, tokens in chunks])
    return Batch(decodes + sum([tokens for _, tokens in chunks]), decodes, kv_tokens, attention_s)


class LawLearner:
    """Of one engine. `planner` is what to plan with now; `error`: how far iterations lie from its law, as a share, in the mean."""

    __slots__ = ("_a", "_b", "_factor", "_first", "_given", "_used", "error", "factors", "observed", "planner")

    def __init__(self, planner: SloAware) -> None:
        self.planner: Planner = planner
        self.error = 0.0
        self.factors = [1.0] * PARTS
        """Of the fixed part, of each token, of the decodes, of the chunks' attention."""
        self.observed = 0
        self._given = planner
        self._first = planner.latency
        self._factor = 1.0
        self._a = [[0.0] * PARTS for _ in range(PARTS)]
        self._b = [0.0] * PARTS
        self._used = [*self.factors, 0.0]

    @property
    def first(self) -> LatencyModel:
        """The law that was believed at first."""
        return self._first

    def parts_s(self, batch: Batch) -> list[float]:
        """An iteration's parts by the first law; weights or GEMM, whichever takes longer by the factors of now."""
        law = self._first
        each, token = self.factors[0], self.factors[1]
        tokens = batch.tokens
        by_weights = each * law.weights_s + token * law.weights_per_token_s * tokens
        by_gemm = each * law.gemm_s + token * law.gemm_per_token_s * tokens
        decode_s = law.per_decode_s * batch.decodes + law.per_kv_token_s * batch.kv_tokens
        if by_weights > by_gemm:
            return [law.fixed_s + law.weights_s, law.weights_per_token_s * tokens, decode_s, batch.attention_s]
        return [law.fixed_s + law.gemm_s, law.gemm_per_token_s * tokens, decode_s, batch.attention_s]

    def observe(self, measured_s: float, batch: Batch) -> None:
        """An iteration has ended."""
        parts = self.parts_s(batch)
        factors = self.factors
        predicted_s = sum([factors[i] * parts[i] for i in range(PARTS)])
        whole_s = sum(parts)
        if predicted_s <= 0.0 or whole_s <= 0.0 or measured_s <= 0.0:
            return
        ratio = min(max(measured_s / predicted_s, RATIO_MIN), RATIO_MAX)
        away = abs(ratio - 1.0)
        self.observed += 1
        fresh = max(1.0 - FORGET, 1.0 / self.observed)
        self.error += fresh * (away - self.error)
        self._factor += fresh * (ratio * predicted_s / whole_s - self._factor)
        # An outlier counts less, but if all are outliers they still decide.
        weight = 1.0 if away <= 1.0 else 1.0 / (away * away)
        row = [part / predicted_s for part in parts]
        for i in range(PARTS):
            share = weight * row[i]
            line = self._a[i]
            for j in range(PARTS):
                line[j] = FORGET * line[j] + share * row[j]
            self._b[i] = FORGET * self._b[i] + share * ratio
        if self.observed % EVERY == 0:
            self._solve(predicted_s / whole_s)

    def _solve(self, scale: float) -> None:
        """Factors within their bounds that fit best, and the planner that believes them."""
        factors = self.factors
        drawn = DRAWN / (scale * scale)
        for _ in range(SWEEPS):
            for i in range(PARTS):
                line = self._a[i]
                rest = self._b[i] - sum([line[j] * factors[j] for j in range(PARTS) if j != i])
                factor = (rest + drawn * self._factor) / (line[i] + drawn)
                factors[i] = min(max(factor, FACTOR_MIN), FACTOR_MAX)
        now = [*factors, self.error]
        if any([abs(new - old) > STEP * max(old, STEP) for new, old in zip(now, self._used, strict=True)]):
            self._used = now
            self.planner = replace(self._given, latency=self.law).calibrated(1.0, self.error)

    @property
    def law(self) -> LatencyModel:
        """The law as learned so far."""
        law = self._first
        each, token, decode, attention = self.factors
        return LatencyModel(
            fixed_s=law.fixed_s * each,
            weights_s=law.weights_s * each,
            weights_per_token_s=law.weights_per_token_s * token,
            gemm_s=law.gemm_s * each,
            gemm_per_token_s=law.gemm_per_token_s * token,
            per_decode_s=law.per_decode_s * decode,
            per_kv_token_s=law.per_kv_token_s * decode,
            per_chunk_token_s=law.per_chunk_token_s * attention,
            per_attention_pair_s=law.per_attention_pair_s * attention,
        )
