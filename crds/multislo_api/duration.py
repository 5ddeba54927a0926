"""Durations as Kubernetes writes them ("300ms", "1m30s", "2h"): text outside, float seconds inside. The manifest's fields use the
annotation `Duration`; programs that print seconds for a manifest use `format_duration`."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from multislo_api.cel import DURATION, duration_rules

_UNITS_MS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
LENGTH_MAX = 44
"""Characters of the longest text that DURATION matches: four terms of 5 + 1 + 3 + 2."""
MARK = "x-duration"
"""Under this a field's JSON Schema tells that it is one."""


def parse_duration_s(text: str) -> float:
    """Seconds of a duration such as "300ms" or "1m30s". Raises ValueError on any other text."""
    if len(text) > LENGTH_MAX or not re.fullmatch(DURATION[1:-1], text):
        raise ValueError('must be a duration such as "300ms", "1s", "1m30s" or "2h"')
    # Decimal, so that "0.1s" and "100ms" are the same float.
    terms = re.findall(r"([0-9.]+)(ms|h|m|s)", text)
    return float(sum(Decimal(number) * _UNITS_MS[unit] for number, unit in terms) / 1000)


def format_duration(seconds: float) -> str:
    """The shortest usual text of a duration, to the microsecond: 90.0 is "1m30s", 0.0125 is "12.5ms", 0.0 is "0s"."""
    whole, micros = divmod(round(seconds * 1e6), 1_000_000)
    if not whole and micros:
        return f"{Decimal(micros) / 1000:f}ms"
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "") + (f"{whole}s" if whole else "")
    if micros:
        text += f"{Decimal(micros) / 1000:f}ms"
    return text or "0s"


@dataclass(frozen=True, slots=True)
class Duration:
    """Annotation of a float of seconds that is a duration in the document, with its bounds (`above` is exclusive)."""

    most_s: float
    least_s: float = 0.0
    above: bool = False

    @property
    def bounds(self) -> str:
        """The legal range in words."""
        least = format_duration(self.least_s) if self.least_s else "0"
        if self.above:
            return f"greater than {least} and at most {format_duration(self.most_s)}"
        return f"from {format_duration(self.least_s)} to {format_duration(self.most_s)}"

    @property
    def within(self) -> str:
        """The same, in words that follow "must be"."""
        return self.bounds if self.above else f"a duration {self.bounds}"

    @property
    def legal(self) -> str:
        """What may be written, in words."""
        return f'a duration such as "300ms", "1s" or "1m30s", {self.bounds}'

    def parse(self, value: object) -> float:
        """Seconds; PydanticCustomError `duration` where it is none, `duration_range` where it is out of bounds."""
        try:
            if not isinstance(value, str):
                raise ValueError("not text")
            seconds = parse_duration_s(value)
        except ValueError:
            raise PydanticCustomError("duration", "not a duration") from None
        if not self.least_s <= seconds <= self.most_s or (self.above and seconds == self.least_s):
            raise PydanticCustomError("duration_range", "out of bounds")
        return seconds

    def __get_pydantic_core_schema__(self, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse, serialization=core_schema.plain_serializer_function_ser_schema(format_duration)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        least, most = format_duration(self.least_s), format_duration(self.most_s)
        rules = duration_rules(least=least, most=most, above=self.above, legal=self.legal, within=self.within)
        return {"type": "string", "maxLength": LENGTH_MAX, MARK: True, "x-kubernetes-validations": rules}
