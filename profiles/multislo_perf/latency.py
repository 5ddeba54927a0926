"""The latency model: how long one iteration of an engine takes, and the inverse questions. Pure; the router's core, the
planners and the engine model all ask it, several times a request, so every answer is closed-form arithmetic on floats.

    T = fixed + max(weights + weights_per_token*n, gemm + gemm_per_token*n) + per_decode*B + per_kv_token*KV
          + sum over prefill chunks (per_chunk_token*c + per_attention_pair*((p + c)^2 - p^2))

with B decodes, chunks of c tokens behind p tokens of the same prompt that are in the cache already, n = B + sum of c, and KV
the tokens in the cache of the B decodes. The max is physics: reading the weights hides behind compute once the batch is large
enough (about 220 tokens for an 8B model), and a law linear in n errs by 10 % there.
"""

from dataclasses import dataclass, replace
from math import ceil, sqrt

# Tokens; more than the rounding of an inverse (about 1e-9 of a million tokens), far less than the one it answers in.
_NEAR = 1e-6


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Iteration time of one engine: coefficients in seconds (per token, per request, per token pair)."""

    fixed_s: float
    weights_s: float
    weights_per_token_s: float
    gemm_s: float
    gemm_per_token_s: float
    per_decode_s: float
    per_kv_token_s: float
    per_chunk_token_s: float
    per_attention_pair_s: float

    def iteration_s(self, chunk_tokens: int, chunk_context: int, decodes: int, kv_tokens: float) -> float:
        """Seconds of an iteration with one prefill chunk (or none: 0 tokens) beside `decodes` requests over `kv_tokens`.

        `chunk_context` is what the chunk's own prompt has in the cache already. For several chunks there is `batch_s`.
        """
        return self.mixed_s(chunk_tokens, self.attention_s(chunk_tokens, chunk_context), decodes, kv_tokens)

    def batch_s(self, chunks: list[tuple[int, int]], decodes: int, kv_tokens: int) -> float:
        """Seconds of an iteration with any number of prefill chunks, each `(tokens, context)`."""
        total = 0
        attention = 0.0
        for tokens, context in chunks:
            total += tokens
            attention += self.attention_s(tokens, context)
        return self.mixed_s(total, attention, decodes, kv_tokens)

    def mixed_s(self, prompt_tokens: int, attention_s: float, decodes: int, kv_tokens: float) -> float:
        """Seconds of an iteration of `prompt_tokens` whose attention takes `attention_s`, beside `decodes` over `kv_tokens`: the law."""
        linear = self.weights_s + self.weights_per_token_s * (decodes + prompt_tokens)
        gemm = self.gemm_s + self.gemm_per_token_s * (decodes + prompt_tokens)
        return (
            self.fixed_s
            + (linear if linear > gemm else gemm)
            + self.per_decode_s * decodes
            + self.per_kv_token_s * kv_tokens
            + attention_s
        )

    def tokens_s(self, tokens: int) -> float:
        """The part of an iteration that depends on nothing but its number of tokens, the fixed part included."""
        linear = self.weights_s + self.weights_per_token_s * tokens
        gemm = self.gemm_s + self.gemm_per_token_s * tokens
        return self.fixed_s + (linear if linear > gemm else gemm)

    def attention_s(self, tokens: int, context: int) -> float:
        """Attention of `tokens` prompt tokens behind `context` cached ones. Adds up over chunks, however they are cut."""
        return tokens * (self.per_chunk_token_s + self.per_attention_pair_s * (tokens + 2 * context))

    def chunk_max(self, budget_s: float, chunk_context: int, decodes: int, kv_tokens: int) -> int:
        """The largest chunk whose iteration takes at most `budget_s`; 0 where not even one token fits."""
        rest = budget_s - self.fixed_s - self.per_decode_s * decodes - self.per_kv_token_s * kv_tokens
        pair = self.per_attention_pair_s
        slope = self.per_chunk_token_s + 2.0 * pair * chunk_context
        tokens = min(
            _largest_root(
                pair, slope + self.weights_per_token_s, rest - self.weights_s - self.weights_per_token_s * decodes
            ),
            _largest_root(pair, slope + self.gemm_per_token_s, rest - self.gemm_s - self.gemm_per_token_s * decodes),
        )
        whole = int(tokens + _NEAR)
        if whole < 1:
            return 0
        # On the very edge rounding decides; ask the law itself, so that the answer is its exact inverse.
        if abs(tokens - whole) < _NEAR and self.iteration_s(whole, chunk_context, decodes, kv_tokens) > budget_s:
            return whole - 1
        return whole

    def decodes_max(self, budget_s: float, kv_tokens_each: float) -> int:
        """The largest pure-decode batch, each request with `kv_tokens_each` in the cache, that takes at most `budget_s`."""
        rest = budget_s - self.fixed_s
        each = self.per_decode_s + self.per_kv_token_s * kv_tokens_each
        batch = min(
            _largest_root(0.0, self.weights_per_token_s + each, rest - self.weights_s),
            _largest_root(0.0, self.gemm_per_token_s + each, rest - self.gemm_s),
        )
        whole = int(batch + _NEAR)
        if whole < 1:
            return 0
        if abs(batch - whole) < _NEAR and self.iteration_s(0, 0, whole, kv_tokens_each * whole) > budget_s:
            return whole - 1
        return whole

    def prefill_s(self, prompt_tokens: int, context: int, batch_tokens: int, decodes: int, kv_tokens: int) -> float:
        """Seconds to prefill `prompt_tokens` behind `context` in iterations of `batch_tokens` shared with `decodes`.

        The decodes take their places first, as in vLLM, so a chunk is `batch_tokens - decodes` tokens (at least 1).
        """
        chunk = max(1, batch_tokens - decodes)
        iterations = ceil(prompt_tokens / chunk)
        last = prompt_tokens - (iterations - 1) * chunk
        return (
            (iterations - 1) * self.tokens_s(chunk + decodes)
            + self.tokens_s(last + decodes)
            + iterations * (self.per_decode_s * decodes + self.per_kv_token_s * kv_tokens)
            + self.attention_s(prompt_tokens, context)
        )

    def slower(self, factor: float) -> "LatencyModel":
        """The same law on an engine that takes `factor` times as long for everything."""
        return replace(self, **{name: getattr(self, name) * factor for name in self.__dataclass_fields__})


def _largest_root(a: float, b: float, c: float) -> float:
    """The largest x with a*x^2 + b*x <= c, for a, b >= 0; negative where there is none."""
    if c <= 0.0:
        return -1.0
    if a <= 0.0:
        return c / b if b > 0.0 else float("inf")
    # The stable form: no difference of nearly equal numbers when a is tiny, as it is here (1e-10).
    return 2.0 * c / (b + sqrt(b * b + 4.0 * a * c))
