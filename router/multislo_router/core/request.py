"""One request as the core knows it, from its arrival to its end."""

from enum import Enum
from math import ceil
from typing import Final

from multislo_perf.latency import LatencyModel
from multislo_router.core.tier import Tier


class Stage(Enum):
    HELD = "held"
    PREFILL = "prefill"
    DECODE = "decode"
    OVER = "over"


HELD: Final = Stage.HELD
PREFILL: Final = Stage.PREFILL
DECODE: Final = Stage.DECODE
OVER: Final = Stage.OVER


class Request:
    """A plain record; the core's own functions change it. Times are on the core's clock."""

    __slots__ = (
        "arrived",
        "attempts",
        "attention_s",
        "avoid",
        "due",
        "first_token_at",
        "id",
        "iteration_predicted_s",
        "joins_at",
        "kv_reserved",
        "last_token_at",
        "lost",
        "output_tokens_expected",
        "output_tokens_max",
        "placed_at",
        "prefill_work_s",
        "prefilled",
        "prompt_tokens",
        "reserve_share",
        "stage",
        "streaming",
        "tier",
        "tokens",
        "tokens_met",
        "tpot_s",
        "ttft_predicted_at",
    )

    def __init__(
        self,
        id: int,
        tier: Tier,
        arrived: float,
        ttft_s: float,
        tpot_s: float,
        prompt_tokens: int,
        output_tokens_max: int | None,
        streaming: bool,
        prefilled: bool = False,
    ) -> None:
        self.id = id
        self.tier = tier
        self.arrived = arrived
        self.due = arrived + ttft_s
        """When its first token is due."""
        self.tpot_s = tpot_s
        self.prompt_tokens = prompt_tokens
        self.prefill_work_s = 0.0
        """Its prefill at the full batch's price, by the profile."""
        self.attention_s = 0.0
        """The attention's part of it."""
        self.reserve_share = 0.0
        """Share of its slack on an idle instance that it must leave unused; above 0 only where its tier refuses."""
        self.output_tokens_max = output_tokens_max
        self.output_tokens_expected = tier.output_tokens_expected(output_tokens_max)
        self.streaming = streaming
        self.prefilled = prefilled
        """It came with the KV of its prompt: no engine has to prefill it."""
        self.stage = HELD
        self.lost = False
        """One of its deadlines is missed, or certain to be. It is still served, but nothing is owed to its pace."""
        self.attempts = 0
        self.avoid: str | None = None
        """The instance that failed it: not asked again."""
        self.placed_at = arrived
        self.joins_at = arrived
        """When its engine has it, on the clock on which the engine's tokens are seen."""
        self.ttft_predicted_at = 0.0
        self.iteration_predicted_s = 0.0
        self.kv_reserved = 0
        self.first_token_at = 0.0
        self.last_token_at = 0.0
        self.tokens = 0
        self.tokens_met = 0

    def measure_prefill(self, latency: LatencyModel) -> None:
        """What its prefill takes, by the profile, and what its tier makes of that."""
        self.attention_s = latency.attention_s(self.prompt_tokens, 0)
        self.prefill_work_s = self.prompt_tokens * latency.gemm_per_token_s + self.attention_s
        if self.tier.refuses:
            self.reserve_share = self.tier.saw_prompt(self.prefill_work_s)

    def work_s(self) -> float:
        """Seconds of a full instance that it will probably need."""
        prompt_tokens = 0 if self.prefilled else self.prompt_tokens
        return self.tier.work_s(self.prefill_work_s, prompt_tokens, self.prompt_tokens, self.output_tokens_expected)

    def next_due(self) -> float:
        """When its next token is due."""
        return self.due + self.tokens * self.tpot_s

    def in_time(self, count: int, now: float) -> int:
        """How many of the next `count` tokens are in time, all received now."""
        due = self.next_due()
        if now <= due:
            return count
        if count == 1 or self.tpot_s <= 0.0:
            return 0
        late = ceil((now - due) / self.tpot_s)
        return count - late if late < count else 0
