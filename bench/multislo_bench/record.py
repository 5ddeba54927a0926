"""The result of one request of a replay: written by the client token by token, read by the report."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a request ended, as its client saw it. Only the first can meet an SLO."""

    COMPLETED = "completed"
    TRUNCATED = "truncated"
    """The stream ended well formed, with fewer tokens than asked for."""
    REFUSED = "refused"
    """429 or 503."""
    FAILED = "failed"
    """Any other error: status, connection, or an error event in the stream."""
    TIMED_OUT = "timed_out"
    UNFINISHED = "unfinished"
    """Still running when the replay ended."""
    NOT_SENT = "not_sent"
    """Due while as many requests as the client may hold were in flight, or after the run was stopped."""


@dataclass(slots=True)
class Record:
    """One request. Times in seconds: `*_s` of the schedule count from the replay's start, durations from the request's sending.

    Tokens that arrive in one network read get the same time. Token i is due at `ttft_slo_s + i * tpot_slo_s`.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    tier: str | None
    ttft_slo_s: float | None
    tpot_slo_s: float | None

    outcome: Outcome = Outcome.UNFINISHED
    sent_late_s: float = 0.0
    """How long after its time the client began to send it."""
    tokens: int = 0
    tokens_met: int = 0
    first_s: float | None = None
    last_s: float | None = None
    late_max_s: float | None = None
    """The largest lateness over all its tokens; at most 0 where each was in time. None without tokens or without an SLO."""
    cause: str | None = None
    """Why it was refused or failed: the server's error code, or what happened to the connection."""

    def received(self, at_s: float, tokens: int) -> None:
        """`tokens` more tokens at `at_s` after sending."""
        index = self.tokens
        self.tokens = index + tokens
        if index == 0:
            self.first_s = at_s
        self.last_s = at_s
        if self.ttft_slo_s is None or self.tpot_slo_s is None:
            return
        late_s = at_s - self.ttft_slo_s - index * self.tpot_slo_s
        if self.late_max_s is None or late_s > self.late_max_s:
            self.late_max_s = late_s
        if late_s <= 0.0:
            self.tokens_met += tokens
        else:
            for later in range(1, tokens):
                self.tokens_met += late_s - later * self.tpot_slo_s <= 0.0

    @property
    def met(self) -> bool | None:
        """Whether every token met its deadline; None where the request has no SLO."""
        if self.ttft_slo_s is None or self.tpot_slo_s is None:
            return None
        return self.outcome is Outcome.COMPLETED and self.late_max_s is not None and self.late_max_s <= 0.0
