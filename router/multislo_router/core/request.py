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
        "late",
        "late_most_s",
        "latest",
        "lost",
        "members",
        "output_tokens_expected",
        "output_tokens_max",
        "parts",
        "placed_at",
        "prefill_work_s",
        "prefilled",
        "prompt_tokens",
        "queued",
        "reserve_share",
        "second_due",
        "sequences",
        "shares",
        "slo_due",
        "stage",
        "streaming",
        "tier",
        "tokens",
        "tokens_met",
        "tpot_s",
        "tried_at",
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
        self.slo_due = arrived + ttft_s
        """When its first token is due."""
        self.second_due = arrived + tier.second * ttft_s
        """The deadline that it is planned by once the first is out of reach."""
        self.latest = arrived + tier.latest * ttft_s
        """When it has waited for as long as its tier lets a request wait."""
        self.due = self.slo_due
        """The one of these that it is planned by now."""
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
        self.late = False
        """One of its deadlines is missed, or certain to be: it is planned by its second deadline."""
        self.late_most_s = 0.0
        """By how much its latest token has missed its SLO."""
        self.lost = False
        """That one is missed too. It is still served, but nothing is owed to its pace."""
        self.attempts = 0
        self.queued = 0
        """How often the router has queued it."""
        self.avoid: str | None = None
        """The instance that failed it: not asked again."""
        self.placed_at = arrived
        self.tried_at = arrived
        """When a place was last looked for, if it is held and has several prompts."""
        self.joins_at = arrived
        """When its engine has it, on the clock on which the engine's tokens are seen."""
        self.ttft_predicted_at = 0.0
        self.iteration_predicted_s = 0.0
        self.kv_reserved = 0
        self.first_token_at = 0.0
        self.last_token_at = 0.0
        self.tokens = 0
        self.tokens_met = 0
        self.sequences = 1
        """Those of several prompts or choices that it stands for, while they are not on the books by themselves."""
        self.parts: list[Request] = []
        """Of one with several sequences: one a prompt. See `sequences`."""
        self.shares: list[Request] = []
        """Of a prompt that is not through: its other choices."""
        self.members: list[Request] = []
        """Of one with several sequences: each of them, in the order of their indices."""

    def measure_prefill(self, latency: LatencyModel) -> None:
        """What its prefill takes, by the profile, and what its tier makes of that."""
        self.attention_s = latency.attention_s(self.prompt_tokens, 0)
        self.prefill_work_s = self.prompt_tokens * latency.gemm_per_token_s + self.attention_s
        if self.tier.refuses:
            self.reserve_share = self.tier.saw_prompt(self.prefill_work_s)

    def work_s(self) -> float:
        """Seconds of a full instance that it will probably need."""
        if self.parts:
            return sum([part.work_s() for part in self.parts])
        tier, tokens, output_tokens = self.tier, self.prompt_tokens, self.output_tokens_expected
        work_s = tier.work_s(self.prefill_work_s, 0 if self.prefilled else tokens, tokens, output_tokens)
        return work_s + len(self.shares) * tier.work_s(0.0, 0, tokens, output_tokens) if self.shares else work_s

    def kv_tokens_expected(self) -> int:
        """What it will probably hold in the end; choices share their prompt."""
        return self.prompt_tokens + self.sequences * self.output_tokens_expected

    def context_tokens(self) -> int:
        """What its decodes read in an iteration, at first: each choice reads the prompt."""
        if self.parts:
            return sum([part.context_tokens() for part in self.parts])
        return self.sequences * self.prompt_tokens

    def token_gaps(self) -> tuple[float, int]:
        """Seconds from its first token to its last, and the tokens after the first; summed over its sequences."""
        if not self.members:
            return self.last_token_at - self.first_token_at, self.tokens - 1
        gaps = [sequence.token_gaps() for sequence in self.members if sequence.tokens]
        return sum([gap[0] for gap in gaps]), sum([gap[1] for gap in gaps])

    def next_due(self) -> float:
        """The deadline of its next token that it is planned by."""
        return self.due + self.tokens * self.tpot_s

    def miss(self) -> None:
        """The deadline that it is planned by is missed, or certain to be: the second one counts, or, where that is missed too or it has
        begun to decode, nothing more is owed to it."""
        self.late = True
        if self.tokens or self.due >= self.second_due:
            self.lost = True
        else:
            self.due = self.second_due

    def is_late_like(self, other: "Request") -> None:
        """It is planned by the same of its deadlines as the other one."""
        self.late, self.lost, self.due = other.late, other.lost, other.due

    def judge(self, count: int, now: float) -> None:
        """Count those of the next `count` tokens that are in time, all received now; the first of them is the latest."""
        late_s = now - (self.slo_due + self.tokens * self.tpot_s)
        if late_s <= 0.0:
            self.tokens_met += count
            return
        if late_s > self.late_most_s:
            self.late_most_s = late_s
        if count > 1 and self.tpot_s > 0.0:
            late = ceil(late_s / self.tpot_s)
            if late < count:
                self.tokens_met += count - late
