"""The emulator's metrics at /metrics: vLLM's names and labels, and its own lag. Counting is plain arithmetic; the Prometheus text is
made at a scrape.

Names and buckets are vLLM's (vllm/v1/metrics/loggers.py), so that dashboards and scalers made for vLLM can read them.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from multislo_engine.emulator.config import BLOCK_TOKENS, EmulatorConfig
from multislo_engine.model import EngineModel

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
COUNT_BUCKETS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
ITERATION_BUCKETS = tuple(float(2**power) for power in range(15) if power not in (1, 2))
LAG_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
LAG_WINDOW_S = 10
"""Seconds that the two lag gauges look back."""


class Tally:
    """A histogram that costs a bisection to feed."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        cumulative = 0
        rows = []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            cumulative += count
            rows.append(("+Inf" if bound == float("inf") else repr(bound), float(cumulative)))
        return rows


class EngineStats:
    """Everything counted while the engine runs."""

    def __init__(self) -> None:
        self.time_to_first_token = Tally(TTFT_BUCKETS)
        self.inter_token = Tally(TOKEN_BUCKETS)
        self.time_per_output_token = Tally(TOKEN_BUCKETS)
        self.request = Tally(REQUEST_BUCKETS)
        self.request_decode = Tally(REQUEST_BUCKETS)
        self.request_prompt_tokens = Tally(COUNT_BUCKETS)
        self.request_generation_tokens = Tally(COUNT_BUCKETS)
        self.iteration_tokens = Tally(ITERATION_BUCKETS)
        self.lag_seconds = Tally(LAG_BUCKETS)
        self.prompt_tokens = 0
        self.finished = {"stop": 0, "length": 0, "abort": 0}
        # One cell a second: (second, greatest, sum, tokens).
        self._lags: list[tuple[int, float, float, int]] = [(-1, 0.0, 0.0, 0)] * LAG_WINDOW_S

    def first_token(self, prompt_tokens: int, seconds: float) -> None:
        self.prompt_tokens += prompt_tokens
        self.time_to_first_token.observe(seconds)

    def ended(self, prompt_tokens: int, tokens: int, ttft_s: float, decode_s: float, reason: str) -> None:
        self.finished[reason] += 1
        self.request.observe(ttft_s + decode_s)
        self.request_decode.observe(decode_s)
        self.request_prompt_tokens.observe(prompt_tokens)
        self.request_generation_tokens.observe(tokens)
        if tokens > 1:
            self.time_per_output_token.observe(decode_s / (tokens - 1))

    def lag(self, now: float, seconds: float, tokens: int) -> None:
        self.lag_seconds.observe(seconds, tokens)
        second = int(now)
        cell = second % LAG_WINDOW_S
        of, greatest, total, count = self._lags[cell]
        if of != second:
            greatest, total, count = 0.0, 0.0, 0
        self._lags[cell] = (second, max(greatest, seconds), total + seconds * tokens, count + tokens)

    def lag_recent(self, now: float) -> tuple[float, float]:
        """The greatest and the mean lag of a token over the last ten seconds; zeros where there was none."""
        cells = [cell for cell in self._lags if 0 <= int(now) - cell[0] < LAG_WINDOW_S]
        tokens = sum(cell[3] for cell in cells)
        return max((cell[1] for cell in cells), default=0.0), sum(cell[2] for cell in cells) / tokens if tokens else 0.0


class EngineCollector(Collector):
    """Renders one engine for prometheus_client."""

    def __init__(self, config: EmulatorConfig, model: EngineModel, stats: EngineStats) -> None:
        self._config = config
        self._model = model
        self._stats = stats
        self._labels = {"model_name": config.names[0], "engine": "0"}
        self._now = 0.0

    def render(self, now: float) -> bytes:
        """The page, in Prometheus' text format 0.0.4."""
        registry = CollectorRegistry(auto_describe=False)
        self._now = now
        registry.register(self)
        return generate_latest(registry)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()
        yield from self._lag()

    def _gauges(self) -> Iterable[Metric]:
        model = self._model
        yield self._gauge("vllm:num_requests_running", "Requests in the running batch.", model.running)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait to be admitted.", model.waiting)
        yield self._gauge(
            "vllm:kv_cache_usage_perc", "KV cache in use; 1 is all of it.", model.kv_tokens / self._config.kv_tokens_max
        )
        info = GaugeMetricFamily("vllm:cache_config_info", "The KV cache.", labels=())
        blocks = self._config.kv_tokens_max // BLOCK_TOKENS
        labels = {"block_size": str(BLOCK_TOKENS), "num_gpu_blocks": str(blocks), "engine": "0"}
        info.add_sample("vllm:cache_config_info", labels, 1.0)
        yield info

    def _counters(self) -> Iterable[Metric]:
        model, stats = self._model, self._stats
        yield self._counter("vllm:num_preemptions", "Requests that lost their KV to others.", model.preemptions)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens prefilled.", stats.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Tokens generated.", model.output_tokens)
        yield self._counter("vllm:prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.prompt_tokens)
        yield self._counter("vllm:prefix_cache_hits", "Tokens found there (the emulator has none).", 0)
        success = CounterMetricFamily("vllm:request_success", "Requests that ended, by their finish reason.")
        for reason, count in stats.finished.items():
            success.add_sample("vllm:request_success_total", {**self._labels, "finished_reason": reason}, count)
        yield success

    def _histograms(self) -> Iterable[Metric]:
        stats = self._stats
        for name, text, tally in (
            ("time_to_first_token_seconds", "Arrival to first token.", stats.time_to_first_token),
            ("inter_token_latency_seconds", "Between a request's tokens.", stats.inter_token),
            ("request_time_per_output_token_seconds", "A request's mean per token.", stats.time_per_output_token),
            ("e2e_request_latency_seconds", "Arrival to last token.", stats.request),
            ("request_decode_time_seconds", "First token to last token.", stats.request_decode),
            ("request_prompt_tokens", "Prompt tokens of a request.", stats.request_prompt_tokens),
            ("request_generation_tokens", "Output tokens of a request.", stats.request_generation_tokens),
            ("iteration_tokens_total", "Tokens of an iteration.", stats.iteration_tokens),
        ):
            yield self._histogram(f"vllm:{name}", text, tally)

    def _lag(self) -> Iterable[Metric]:
        greatest, mean = self._stats.lag_recent(self._now)
        yield self._histogram(
            "multislo_emulator_lag_seconds",
            "Token written after its time by the engine model.",
            self._stats.lag_seconds,
        )
        yield self._gauge("multislo_emulator_lag_max_seconds", "Greatest lag of the last 10 seconds.", greatest)
        yield self._gauge("multislo_emulator_lag_mean_seconds", "Mean lag of the last 10 seconds.", mean)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text)
        family.add_sample(name, self._labels, value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text)
        family.add_sample(f"{name}_total", self._labels, value)
        return family

    def _histogram(self, name: str, text: str, tally: Tally) -> Metric:
        family = HistogramMetricFamily(name, text, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), tally.buckets(), tally.total)
        return family
