"""The figures of a replay, per tier and in total: pure arithmetic over its records, written as JSON by `Report.document`."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from multislo_bench.record import Outcome, Record
from multislo_bench.replay import Timing

# Above these the client itself is suspect: a twentieth of the tightest usual TPOT (20 ms), and half of it.
SENT_LATE_P99_S = 0.005
LOOP_LAG_P99_S = 0.010


@dataclass(frozen=True, slots=True)
class Window:
    """Requests that arrive in [start_s, end_s) are counted: the rest warm the fleet up, or cool it down."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    def holds(self, record: Record) -> bool:
        return self.start_s <= record.at_s < self.end_s


@dataclass(frozen=True, slots=True)
class Quantiles:
    mean: float | None
    p50: float | None
    p99: float | None
    max: float | None

    @staticmethod
    def of(values: Iterable[float]) -> "Quantiles":
        array = np.fromiter(values, dtype=float)
        if not array.size:
            return Quantiles(None, None, None, None)
        p50, p99 = np.percentile(array, (50.0, 99.0))
        return Quantiles(float(array.mean()), float(p50), float(p99), float(array.max()))


@dataclass(frozen=True, slots=True)
class TierReport:
    """One tier's figures. Attainment is None if its requests have no SLO or there are none.

    `tpot_s` is over the requests' mean seconds per token after the first; goodput counts what met its SLO (without an SLO: what
    completed), per second of the window.
    """

    requests: int
    attainment: float | None
    ttft_attainment: float | None
    token_attainment: float | None
    ttft_slo_s: float | None
    tpot_slo_s: float | None
    ttft_s: Quantiles
    tpot_s: Quantiles
    late_s: Quantiles
    goodput_requests_per_s: float
    goodput_tokens_per_s: float
    outcomes: dict[str, int]
    causes: dict[str, int]


@dataclass(frozen=True, slots=True)
class ClientReport:
    """The reliability of the client itself."""

    sent_late_s: Quantiles
    loop_lag_s: Quantiles
    tokens: int
    cpu_us_per_token: float | None
    kept_schedule: bool


@dataclass(frozen=True, slots=True)
class Report:
    window: Window
    tiers: dict[str, TierReport]
    total: TierReport
    client: ClientReport
    notes: list[str]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def report(records: Sequence[Record], timing: Timing, window: Window) -> Report:
    """All figures of the requests that arrive in the window. Tiers in the order of their TPOT, then by name."""
    counted = [record for record in records if window.holds(record)]
    names = {record.tier or "all": (record.tpot_slo_s or float("inf"), record.tier or "all") for record in counted}
    tiers = {
        name: _tier([record for record in counted if (record.tier or "all") == name], window)
        for name in sorted(names, key=lambda name: names[name])
    }
    client = _client(records, timing)
    total = _tier(counted, window)
    return Report(window, tiers, total, client, _notes(records, counted, total, client))


def _tier(records: Sequence[Record], window: Window) -> TierReport:
    with_slo = [record for record in records if record.met is not None]
    slos = {(record.ttft_slo_s, record.tpot_slo_s) for record in records}
    ttft_slo_s, tpot_slo_s = slos.pop() if len(slos) == 1 else (None, None)
    good = [record for record in records if record.met or (record.met is None and record.outcome is Outcome.COMPLETED)]
    asked = sum(record.output_tokens for record in with_slo)
    first_met = sum(
        record.first_s is not None and record.ttft_slo_s is not None and record.first_s <= record.ttft_slo_s
        for record in with_slo
    )
    causes = Counter(record.cause for record in records if record.cause is not None)
    return TierReport(
        requests=len(records),
        attainment=_share(sum(record.met is True for record in with_slo), len(with_slo)),
        ttft_attainment=_share(first_met, len(with_slo)),
        token_attainment=_share(sum(min(r.tokens_met, r.output_tokens) for r in with_slo), asked),
        ttft_slo_s=ttft_slo_s,
        tpot_slo_s=tpot_slo_s,
        ttft_s=Quantiles.of(record.first_s for record in records if record.first_s is not None),
        tpot_s=Quantiles.of(_tpots(records)),
        late_s=Quantiles.of(max(0.0, record.late_max_s) for record in records if record.late_max_s is not None),
        goodput_requests_per_s=len(good) / window.seconds,
        goodput_tokens_per_s=sum(record.tokens for record in good) / window.seconds,
        outcomes={str(outcome): sum(record.outcome is outcome for record in records) for outcome in Outcome},
        causes=dict(causes.most_common(20)),
    )


def _tpots(records: Iterable[Record]) -> Iterable[float]:
    for record in records:
        if record.tokens > 1 and record.first_s is not None and record.last_s is not None:
            yield (record.last_s - record.first_s) / (record.tokens - 1)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _client(records: Sequence[Record], timing: Timing) -> ClientReport:
    tokens = sum(record.tokens for record in records)
    sent_late_s, loop_lag_s = Quantiles.of(timing.sent_late_s), Quantiles.of(timing.loop_lag_s)
    return ClientReport(
        sent_late_s,
        loop_lag_s,
        tokens,
        timing.cpu_s / tokens * 1e6 if tokens else None,
        (sent_late_s.p99 or 0.0) <= SENT_LATE_P99_S and (loop_lag_s.p99 or 0.0) <= LOOP_LAG_P99_S,
    )


def _notes(records: Sequence[Record], counted: Sequence[Record], total: TierReport, client: ClientReport) -> list[str]:
    """What a reader of the table must know before believing it."""
    notes = []
    if len(counted) < len(records):
        notes.append(f"{len(records) - len(counted)} requests arrived outside the measured window and are not counted.")
    said = {
        Outcome.UNFINISHED: "were unfinished at the end and count as missed",
        Outcome.TIMED_OUT: "ran into --timeout and count as missed",
        Outcome.NOT_SENT: "were not sent (--max-in-flight, or stopped) and count as missed",
        Outcome.TRUNCATED: "ended with fewer tokens than asked for and count as missed "
        "(--allow-short where the server does not know ignore_eos)",
    }
    for outcome, sentence in said.items():
        count = total.outcomes[outcome]
        if count:
            notes.append(f"{count} requests {sentence}.")
    if not client.kept_schedule:
        notes.append(
            f"This client was late itself (sending p99 {_ms(client.sent_late_s.p99)}, event loop p99 "
            f"{_ms(client.loop_lag_s.p99)}): the machine is too busy to trust the tail."
        )
    return notes


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"
