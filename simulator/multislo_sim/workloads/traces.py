"""Reads request traces from a path that the user names: CSV with a header (Azure, BurstGPT) or JSON lines (Mooncake, Bailian), plain or
gzip. A line that is no request is skipped and counted; a file that is no trace is an error."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from math import inf
from pathlib import Path
from typing import Any

from multislo_sim.workloads.request import Request
from multislo_sim.workloads.time_unit import TimeUnit, unit_of
from multislo_sim.workloads.trace_file import TraceInvalid, numbered_lines
from multislo_sim.workloads.trace_format import (
    FormatUnknown,
    LineSkipped,
    dated,
    format_of,
    microseconds,
    number,
    tokens,
)

__all__ = ["WHOLE", "Part", "TimeUnit", "Trace", "TraceInvalid", "read_trace"]

PEEKED = 10_000
"""So many requests are looked at to tell the unit, the first stamp and whether they are in order."""
OUT_OF_ORDER_S = 60.0
"""Lines may be out of order by this much: reading goes on for so long behind the end of a part."""
REQUESTS_MAX = 10_000_000
"""Kept in memory, 180 bytes each. More is for a part."""
TIER_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?")
Row = tuple[int, float, Any]
"""A line's number, its stamp in the file's unit, and its record, which is looked at only in the part that is read."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of a trace is read, and the unit of its stamps where the user names it."""

    from_s: float = 0.0
    """From the first request's stamp on."""
    duration_s: float = inf
    unit: TimeUnit | None = None

    @property
    def end_s(self) -> float:
        return self.from_s + self.duration_s

    @property
    def bounded(self) -> bool:
        return self.from_s > 0.0 or self.duration_s < inf


WHOLE = Part()


@dataclass(slots=True)
class Trace:
    """What was read: requests in order of arrival, and what the user should know of how they were read."""

    requests: list[Request]
    notes: list[str] = field(default_factory=list)


def read_trace(
    path: Path,
    part: Part = WHOLE,
    *,
    lengths_only: bool = False,
    tiers: Sequence[str] | None = None,
    requests_max: int | None = None,
) -> Trace:
    """The requests of a part of the file, the first `requests_max` of them where that is given. Times count from the part's beginning.

    `lengths_only`: the caller does not look at the times, so that their unit is asked for only where the part depends on it.
    `tiers`: the names that a line's `tier` may have; None: any legal name.
    """
    reader = _Reader(path, tiers)
    rows = reader.rows()
    first = list(islice(rows, PEEKED))
    if not first:
        raise TraceInvalid(f"{path}: holds no request; {reader.skips() or 'at least 1 is needed'}")
    stamps = [stamp for _, stamp, _ in first]
    unit = reader.unit(part, stamps, not lengths_only or part.bounded)
    origin = min(stamps)
    begin, end = origin + part.from_s * unit.per_second, origin + part.end_s * unit.per_second
    tolerance = OUT_OF_ORDER_S * unit.per_second
    latest, ordered = 0.0, _in_order(stamps, tolerance)
    requests: list[Request] = []
    for line_number, stamp, record in chain(first, rows):
        if stamp > latest:
            latest = stamp
        elif stamp < latest - tolerance:
            ordered = False
        if part.bounded and not begin <= stamp < end:
            if stamp >= end + tolerance and ordered:
                reader.said.append(
                    f"{path.name}: read up to line {line_number}, {OUT_OF_ORDER_S:g} s behind the end of the part"
                )
                break
            continue
        if (request := reader.request(line_number, record, (stamp - origin) / unit.per_second)) is not None:
            requests.append(request)
            if len(requests) == requests_max:
                break
            if len(requests) > REQUESTS_MAX:
                raise TraceInvalid(f"{path}: more than {REQUESTS_MAX} requests; read a part (--from, --duration)")
    if not requests:
        within = (
            f"from {part.from_s:g} to {part.end_s:g} s; its stamps come to {(latest - origin) / unit.per_second:g} s"
        )
        raise TraceInvalid(f"{path}: holds no request {within}{reader.skips('; ')}")
    requests.sort(key=lambda request: request.at_s)
    start_s = part.from_s or requests[0].at_s
    if start_s:
        requests = [Request(r.at_s - start_s, r.prompt_tokens, r.output_tokens, r.tier) for r in requests]
    return Trace(requests, reader.notes())


def _in_order(stamps: Sequence[float], tolerance: float) -> bool:
    return all(stamp >= latest - tolerance for stamp, latest in zip(stamps, accumulate(stamps, max), strict=True))


class _Reader:
    """One pass over a file: its format, and what is skipped and noted on the way."""

    def __init__(self, path: Path, tiers: Sequence[str] | None) -> None:
        self.said: list[str] = []
        self._path = path
        self._tiers = tiers
        self._lines = numbered_lines(path)
        number, first = next(self._lines, (0, ""))
        if not number:
            raise TraceInvalid(f"{path}: is empty")
        try:
            self._format = format_of(first)
        except FormatUnknown as error:
            raise TraceInvalid(f"{path}:{number}: {error}") from None
        if not self._format.header:
            self._lines = chain(((number, first),), self._lines)
        self._dated = False
        self._count = 0
        self._images = 0
        self._skipped: dict[str, tuple[int, int]] = {}
        """Reason: how many lines, and the first one's number."""

    def rows(self) -> Iterator[Row]:
        """The lines that have a stamp. All stamps are of the first one's kind: dates, as microseconds, or numbers."""
        record_of, get, key = self._format.record_of, self._format.get, self._format.stamp
        known = False
        for line_number, line in self._lines:
            self._count += 1
            try:
                record = record_of(line)
                stamp = get(record, key)
                is_date = dated(stamp)
                value = microseconds(stamp) if is_date else number(stamp)
                if known and is_date != self._dated:
                    raise LineSkipped("with a stamp of another kind (date or number) than the first one's")
            except LineSkipped as reason:
                self._skip(str(reason), line_number)
                continue
            except RecursionError:
                where = f"{self._path}:{line_number}"
                raise TraceInvalid(f"{where}: nested too deeply; a request is a flat JSON object") from None
            known, self._dated = True, is_date
            yield line_number, value, record

    def unit(self, part: Part, stamps: Sequence[float], matters: bool) -> TimeUnit:
        """The unit of the stamps: what the user says, else the format, else what they tell themselves. Notes what was assumed."""
        if self._dated:
            if part.unit is None:
                return TimeUnit.MICROSECONDS
            raise TraceInvalid(f"{self._path}: its stamps are dates, which have no time unit (--time-unit {part.unit})")
        if part.unit is not None:
            return part.unit
        name = self._path.name
        if self._format.seconds is not None:
            self.said.append(f"{name}: its stamps are seconds ({self._format.seconds})")
            return TimeUnit.SECONDS
        unit, why = unit_of(stamps, len(stamps) < PEEKED)
        if not matters:
            return unit or TimeUnit.MILLISECONDS
        if unit is None:
            either = f"milliseconds or seconds? ({why}): name the unit by --time-unit ms or --time-unit s"
            raise TraceInvalid(f"{self._path}: timestamp: {either}")
        if len(stamps) > 1:
            self.said.append(f"{name}: its stamps are taken as {unit.name.lower()} ({why}); --time-unit says otherwise")
        return unit

    def request(self, line_number: int, record: Any, at_s: float) -> Request | None:
        """None where the line is skipped."""
        get, keys = self._format.get, self._format
        try:
            prompt, output = tokens("prompt", get(record, keys.prompt)), tokens("output", get(record, keys.output))
        except LineSkipped as reason:
            self._skip(str(reason), line_number)
            return None
        if keys.images is not None and get(record, keys.images).strip() not in ("", "0"):
            self._images += 1
        tier = get(record, keys.tier) if keys.tier is not None else None
        return Request(at_s, prompt, output, self._tier(line_number, tier) if tier else None)

    def _tier(self, line_number: int, tier: object) -> str:
        where = f"{self._path}:{line_number}: tier"
        if not isinstance(tier, str) or not TIER_NAME.fullmatch(tier := tier.strip()):
            raise TraceInvalid(f"{where}: {str(tier)[:40]!r} is no name of a tier")
        if self._tiers is not None and tier not in self._tiers:
            raise TraceInvalid(f"{where}: {tier!r} must be a tier of the manifest: {', '.join(self._tiers)}")
        return tier

    def _skip(self, reason: str, line_number: int) -> None:
        count, first = self._skipped.get(reason, (0, line_number))
        self._skipped[reason] = (count + 1, first)

    def skips(self, before: str = "") -> str:
        """In words what was skipped and why; empty where nothing was."""
        if not self._skipped:
            return ""
        count = sum(count for count, _ in self._skipped.values())
        reasons = ", ".join(f"{n} {reason} (first: line {first})" for reason, (n, first) in self._skipped.items())
        return f"{before}{count} of {self._count} lines skipped: {reasons}"

    def notes(self) -> list[str]:
        name = self._path.name
        said = list(self.said)
        if self._skipped:
            said.append(f"{name}: {self.skips()}")
        if self._images:
            said.append(f"{name}: {self._images} requests have images; only their context tokens are counted")
        return said
