"""A tier inside the core: its SLO and what its traffic is expected to need. A tier is PolyServe's bin: requests are binned by TPOT.
What happened to its requests is counted in `counts`."""

from math import inf
from typing import Final

from multislo_perf.latency import LatencyModel
from multislo_router.core.config import Overload, TierConfig

OUTPUT_TOKENS_PRIOR: Final = 200.0
"""Mean output length believed before the first request has ended (the published chat traces have 211 and 343)."""
MEAN_WEIGHT: Final = 0.02
"""Of one more request in the means of output length and prefill time."""
ITERATION_LEAST: Final = 2.0
"""No engine keeps a TPOT below this many times an iteration's fixed cost under load, whatever its work."""
SECOND_DEADLINE: Final = 2.5
"""A late request is planned by this many times its TTFT. Without it late ones wait for what the others leave: in a full fleet, for ever."""
RESERVE_HALF_AT: Final = 3.0
"""A prompt that takes so many times the mean must leave half of its slack, where its tier refuses; one of twice that, four fifths."""


class Tier:
    """Every instance and request points at one; `index` is its place from the tightest TPOT (0) to the loosest."""

    __slots__ = (
        "_budget_s",
        "_kv_tokens_max",
        "_latency",
        "_overhead_s",
        "_prefill_mean_s",
        "config",
        "index",
        "latest",
        "name",
        "output_tokens_mean",
        "refuses",
        "second",
        "tpot_s",
        "ttft_s",
    )

    def __init__(self, config: TierConfig, index: int, latency: LatencyModel, kv_tokens_max: int) -> None:
        self.name = config.name
        self.config = config
        self.index = index
        self.refuses = config.overload is Overload.REJECT
        """Whether a request that cannot be in time is refused."""
        queues = config.overload is Overload.QUEUE
        self.second = min(SECOND_DEADLINE, config.latest) if queues else 1.0
        """The second deadline of a request whose first is out of reach, as a multiple of its TTFT; 1: it has none."""
        self.latest = config.latest if queues else inf
        """For how many times its TTFT a request is held at most."""
        self.ttft_s = config.ttft_s
        self.tpot_s = config.tpot_s
        self.output_tokens_mean = OUTPUT_TOKENS_PRIOR
        self._prefill_mean_s = 0.0
        batch = config.batch_tokens
        self._latency = latency
        self._kv_tokens_max = kv_tokens_max
        self._overhead_s = latency.fixed_s + latency.gemm_s
        self._budget_s = max(0.0, latency.tokens_s(batch) - batch * latency.gemm_per_token_s) / batch

    def output_tokens_expected(self, output_tokens_max: int | None) -> int:
        """How many tokens a request will probably bring: the tier's mean, at most what its client allows."""
        expected = int(self.output_tokens_mean)
        return expected if output_tokens_max is None or output_tokens_max > expected else output_tokens_max

    def saw_output(self, tokens: int) -> None:
        """A request has completed with so many tokens, as its engine says. More than fit into its memory are none."""
        self.output_tokens_mean += MEAN_WEIGHT * (min(tokens, self._kv_tokens_max) - self.output_tokens_mean)

    def saw_prompt(self, prefill_s: float) -> float:
        """Count a prompt's prefill time, and return the share of its slack that it must leave unused.

        A prompt much longer than the mean is refused before the many short ones that would have to go for it.
        """
        if self._prefill_mean_s <= 0.0:
            self._prefill_mean_s = prefill_s
        self._prefill_mean_s += MEAN_WEIGHT * (prefill_s - self._prefill_mean_s)
        if not prefill_s > 0.0:
            return 0.0
        times = prefill_s / (RESERVE_HALF_AT * self._prefill_mean_s)
        return times * times / (1.0 + times * times)

    def work_s(self, prefill_s: float, prefill_tokens: int, context_tokens: int, output_tokens: int) -> float:
        """Seconds of one full instance that a request needs: its prefill (time and tokens to compute), a token an iteration behind its
        context, the readings of its KV, and its part of the fixed cost of iterations.

        Longer iterations share that cost among more tokens. They are no longer than the tier's TPOT, than its token budget allows, or than
        memory allows: a request that gets a token an iteration keeps its KV that much longer, and time and memory run out together.
        """
        latency = self._latency
        output_tokens = max(1, output_tokens)
        kv_tokens = context_tokens + 0.5 * output_tokens
        work_s = output_tokens * (latency.gemm_per_token_s + latency.per_decode_s + latency.per_kv_token_s * kv_tokens)
        work_s += prefill_s
        overhead_s = self._overhead_s
        by_memory_s = overhead_s + work_s * self._kv_tokens_max / (output_tokens * kv_tokens)
        iteration_s = max(min(self.tpot_s, by_memory_s), ITERATION_LEAST * overhead_s)
        by_time_s = work_s * overhead_s / (iteration_s - overhead_s) if iteration_s > overhead_s else 0.0
        return work_s + max(by_time_s, (prefill_tokens + output_tokens) * self._budget_s)
