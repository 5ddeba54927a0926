"""The type of a command's option that is a number in a range."""

from math import isnan
from typing import Any

import click


class Number(click.FloatRange):
    """NaN is in no range, though no comparison with a bound finds that out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number
