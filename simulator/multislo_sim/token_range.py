"""The command-line type of a range of tokens. Used by the commands that take uniform lengths: the experiments and `multislo replay`."""

from typing import Any

import click


class TokenRange(click.ParamType[tuple[int, int]]):
    """`LOW-HIGH`, or one number for both."""

    name = "LOW-HIGH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        low, _, high = str(value).partition("-")
        try:
            return int(low), int(high or low)
        except ValueError:
            self.fail(f"{value!r} must be LOW-HIGH, such as 100-2000", param, ctx)
