"""What a stock engine computes now and how far its prompts have come: vLLM's scheduler followed from outside, by the tokens that come back.
Kept by `Instance`, read by `stock_walk`, which tells what it will compute next.

A stock engine gives every decode a token an iteration and fills what its token budget leaves with prompts, first come first served (or by
priority), so that what it does is known but for the time that it takes: the prompts are one row of tokens that is computed from its head.
"""

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multislo_router.core.instance import Instance
    from multislo_router.core.stock_reckoning import Reckoned
    from multislo_router.core.stock_walk import Lead

CHUNK_LEAST = 16
"""What an iteration is believed to compute of prompts at least, however many decode."""
SAME_S = 1e-4
"""First tokens and decode tokens this close come from one iteration."""


class StockQueue:
    """The iteration under way and how far the prompts have come."""

    __slots__ = (
        "before_at",
        "began_at",
        "began_seen",
        "computed",
        "done_before",
        "done_now",
        "ends_at",
        "lead",
        "long_before_at",
        "reckoned",
        "taken",
        "taken_before",
    )

    def __init__(self, now: float) -> None:
        self.computed = 0
        """Tokens of the row of prompts, from its head, that are computed before the iteration under way."""
        self.taken = -1
        """Tokens that the iteration under way computes; -1: nobody has asked yet, nothing has come since it began."""
        self.began_at = now
        self.ends_at = now
        self.began_seen = False
        """The iteration before it was seen to end, not only believed to."""
        self.before_at = self.long_before_at = -inf
        """When the last iteration that ended had begun, and the one before it; -inf where that was not seen."""
        self.done_now = self.done_before = 0
        """Tokens of the prompts whose first tokens came of these two."""
        self.taken_before = 0
        """Tokens of prompts that the last one is believed to have computed."""
        self.lead: Lead | None = None
        """What `walk` keeps from one request to the next; None: the row has changed since."""
        self.reckoned: Reckoned | None = None
        """What `reckon` keeps from one question to the next of the same instant."""

    def forget(self) -> None:
        """The row has changed, or who of it is lost."""
        self.lead = None
        self.reckoned = None

    def boundary(self, instance: "Instance", now: float) -> None:
        """An iteration has been seen to end, and the next begins."""
        if now - self.began_at <= SAME_S:
            return
        if instance.prefills:
            if instance.lag_s:
                self.mend(instance, self.began_at + 2 * SAME_S)
            self.catch_up(instance, now)
            self.computed += self.taken
            self.taken_before = self.taken
        self.taken = -1
        self.long_before_at = self.before_at
        self.before_at = self.began_at if self.began_seen else -inf
        self.done_before = self.done_now
        self.done_now = 0
        self.began_seen = True
        self.began_at = now

    def before_admission(self, instance: "Instance", now: float) -> None:
        """A request is about to join: it has no part in the iteration under way, or an idle engine begins one with it."""
        if not instance.prefills and not instance.decodes:
            self.computed = 0
            self.taken = -1
            self.began_at = self.ends_at = now + instance.lag_s
            self.began_seen = False
        elif self.taken < 0:
            self.settle(instance)

    def left_head(self, prompt_tokens: int) -> None:
        """The first prompt has its first token, or is gone."""
        self.computed = self.computed - prompt_tokens if self.computed > prompt_tokens else 0

    def settle(self, instance: "Instance") -> None:
        """Fix what the iteration under way computes: what is in the row now."""
        latency = instance.latency
        decodes = len(instance.decodes)
        free = instance.batch_tokens - decodes
        if free < CHUNK_LEAST:
            free = CHUNK_LEAST
        taken = 0
        attention_s = 0.0
        if instance.prefills:
            token_s, pair_s = latency.per_chunk_token_s, latency.per_attention_pair_s
            skip = self.computed
            lagging = instance.lag_s > 0.0
            for other in instance.prefills.values():
                if lagging and other.joins_at > self.began_at:
                    break
                tokens = other.prompt_tokens
                if skip >= tokens:
                    skip -= tokens
                    continue
                take = tokens - skip
                if take > free:
                    take = free
                attention_s += take * (token_s + pair_s * (take + 2 * skip))
                skip = 0
                taken += take
                free -= take
                if not free:
                    break
        self.taken = taken
        self.forget()
        self.ends_at = self.began_at + instance.calibration * (
            latency.tokens_s(taken + decodes)
            + latency.per_decode_s * decodes
            + latency.per_kv_token_s * instance.kv_decode_tokens
            + attention_s
        )

    def mend(self, instance: "Instance", now: float) -> None:
        """The first prompt is believed to be through but has no token: it joined an iteration later than believed."""
        if instance.prefills and now - self.began_at > SAME_S:
            head = next(iter(instance.prefills.values())).prompt_tokens
            if self.computed >= head:
                self.computed = max(0, min(self.computed - self.taken_before, head - 1))
                self.settle(instance)

    def catch_up(self, instance: "Instance", now: float) -> None:
        """Believe of an engine without decodes, which shows nothing before a prompt is through, that its iterations ended as predicted."""
        if self.taken < 0:
            self.settle(instance)
        if instance.decodes or not instance.prefills:
            return
        head = next(iter(instance.prefills.values())).prompt_tokens
        while self.ends_at <= now and self.computed + self.taken < head:
            self.computed += self.taken
            self.taken_before = self.taken
            self.began_at = self.ends_at
            self.began_seen = False
            self.settle(instance)
