"""`Bookings`: what was admitted to one engine server and is not over. The sums and earliest deadlines that the room tests read.
Changed by `Instance` alone."""

from math import exp, inf
from typing import Final

from multislo_router.core.request import DECODE, OVER, PREFILL, Request

PREFILL_WINDOW_S: Final = 2.0
"""The window of the moving mean of prefill work: a few prompts long, and short against a decode's life."""
DECAY_STEP_S: Final = 0.01
"""Moving means decay in steps of at least this: an exponential at every event would be most of the event's cost."""


class PrefillShare:
    """Share of its time that the prompts sent to an instance take: a moving mean of their prefill work, by the profile."""

    __slots__ = ("at", "lost", "mean", "variance")

    def __init__(self, now: float) -> None:
        self.at = now
        self.mean = 0.0
        self.variance = 0.0
        """Squared error of that mean: shot noise of the few prompts that make it up."""
        self.lost = 0.0
        """The part of the mean that was lost already when it was sent."""

    def copy(self) -> "PrefillShare":
        made = PrefillShare(self.at)
        made.mean, made.variance, made.lost = self.mean, self.variance, self.lost
        return made

    def sent(self, request: Request, now: float) -> None:
        self.decay(now)
        share = request.prefill_work_s / PREFILL_WINDOW_S
        self.mean += share
        self.variance += share * share
        if request.lost:
            self.lost += share

    def decay(self, now: float) -> None:
        elapsed = now - self.at
        if elapsed > DECAY_STEP_S:
            left = exp(-elapsed / PREFILL_WINDOW_S)
            self.mean *= left
            self.variance *= left * left
            self.lost *= left
            self.at = now


class Bookings:
    """The ledger of one instance. Tokens are KV tokens; lists are by tier, tightest first."""

    __slots__ = (
        "decodes",
        "due_least",
        "empty_since",
        "kv_decode_tokens",
        "kv_foreign",
        "kv_reported",
        "kv_reserved",
        "prefill_share",
        "prefills",
        "requests",
        "tier_counts",
        "tpot_counts",
        "tpot_tightest_s",
        "tpots",
    )

    def __init__(self, tpots: list[float], now: float) -> None:
        self.tpots = tpots
        self.requests = 0
        self.prefills = 0
        """Of these, how many have no first token yet; `EngineQueue.row` has them in order."""
        self.decodes: dict[int, Request] = {}
        self.kv_reserved = 0
        """What everything placed here will probably need."""
        self.kv_decode_tokens = 0
        """What the decodes hold now."""
        self.kv_foreign = 0
        """Reported by the engine beyond what was placed from here."""
        self.kv_reported: int | None = None
        self.tier_counts = [0] * len(tpots)
        """Requests here, prefills too."""
        self.due_least = [inf] * len(tpots)
        """The earliest deadline of a decode's next token that can still be met. Exact when recounted, never too late between."""
        self.tpot_counts: dict[float, int] = {}
        """Requests here that are not lost, by TPOT."""
        self.tpot_tightest_s = inf
        """The least of these."""
        self.prefill_share = PrefillShare(now)
        self.empty_since: float | None = now

    def anew(self, now: float) -> "Bookings":
        """Empty books of the same instance."""
        return Bookings(self.tpots, now)

    def admit(self, request: Request, now: float) -> None:
        """Book a request that is sent there now; it is a prefill until `began_to_decode`."""
        request.stage = PREFILL
        request.kv_reserved = request.kv_tokens_expected()
        self.kv_reserved += request.kv_reserved
        self.requests += request.sequences
        self.prefills += 1
        self.tier_counts[request.tier.index] += request.sequences
        self.empty_since = None
        if not request.lost:
            self._count_tpot(request.tpot_s)
        if not request.prefilled:
            self.prefill_share.sent(request, now)

    def began_to_decode(self, request: Request) -> None:
        self.prefills -= 1
        self._decodes(request)
        if request.shares:
            self._part(request)

    def _part(self, request: Request) -> None:
        """Its prompt is through: its other choices decode by themselves from here on."""
        for share in request.shares:
            share.is_late_like(request)
            share.first_token_at = request.first_token_at
            share.kv_reserved = share.output_tokens_expected
            request.kv_reserved -= share.kv_reserved
            if not share.lost:
                self._count_tpot(share.tpot_s)
            self._decodes(share)
        request.shares = []
        request.sequences = 1

    def _decodes(self, request: Request) -> None:
        request.stage = DECODE
        self.decodes[request.id] = request
        self.kv_decode_tokens += request.prompt_tokens + request.tokens
        if not request.lost:
            index = request.tier.index
            due = request.next_due()
            if due < self.due_least[index]:
                self.due_least[index] = due

    def received(self, request: Request, tokens: int, now: float) -> None:
        """A decode got `tokens` more."""
        request.tokens += tokens
        request.last_token_at = now
        self.kv_decode_tokens += tokens

    def missed(self, request: Request) -> None:
        """The deadline that it is planned by is missed. Once it is lost it limits no other request."""
        if not request.lost:
            request.miss()
            if request.lost:
                self._uncount_tpot(request.tpot_s)

    def measured(self, request: Request, prompt_tokens: int) -> None:
        """The engine told the true length of its prompt."""
        difference = prompt_tokens - request.prompt_tokens
        request.prompt_tokens = prompt_tokens
        request.kv_reserved += difference
        self.kv_reserved += difference
        if request.stage is DECODE:
            self.kv_decode_tokens += difference

    def release(self, request: Request, now: float) -> None:
        """Forget a request, at whatever stage it is."""
        if request.stage is PREFILL:
            self.prefills -= 1
        else:
            del self.decodes[request.id]
            self.kv_decode_tokens -= request.prompt_tokens + request.tokens
        if not request.lost:
            self._uncount_tpot(request.tpot_s)
        self.kv_reserved -= request.kv_reserved
        self.requests -= request.sequences
        self.tier_counts[request.tier.index] -= request.sequences
        request.stage = OVER
        if not self.requests:
            self.empty_since = now

    def recount_dues(self, now: float, at_boundary: bool) -> None:
        """`due_least` anew. `at_boundary`: an iteration ended just now, so decodes without its token will get it at once. O(decodes)."""
        due_least = [inf] * len(self.tpots)
        for request in self.decodes.values():
            if not request.lost:
                tokens = request.tokens + 1 if at_boundary and request.last_token_at < now else request.tokens
                due = request.due + tokens * request.tpot_s
                index = request.tier.index
                if due < due_least[index]:
                    due_least[index] = due
        self.due_least = due_least

    def kv_held(self) -> int:
        """`kv_decode_tokens`, counted anew: for the invariants."""
        return sum([request.prompt_tokens + request.tokens for request in self.decodes.values()])

    def _count_tpot(self, tpot_s: float) -> None:
        self.tpot_counts[tpot_s] = self.tpot_counts.get(tpot_s, 0) + 1
        if tpot_s < self.tpot_tightest_s:
            self.tpot_tightest_s = tpot_s

    def _uncount_tpot(self, tpot_s: float) -> None:
        counts = self.tpot_counts
        left = counts[tpot_s] - 1
        if left:
            counts[tpot_s] = left
            return
        del counts[tpot_s]
        if tpot_s <= self.tpot_tightest_s:
            self.tpot_tightest_s = min(counts, default=inf)
