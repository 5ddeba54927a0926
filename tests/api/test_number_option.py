"""Numbers on command lines."""

import ast
from pathlib import Path

import click
import pytest

from multislo_api.number import Number

ROOT = Path(__file__).parents[2]


def test_nan_is_in_no_range() -> None:
    with pytest.raises(click.BadParameter, match="'nan' is not a number"):
        Number(0.0, 1.0).convert("nan", None, None)
    assert Number(0.0, 1.0).convert("0.5", None, None) == 0.5


@pytest.mark.parametrize("package", ["bench", "cli", "crds", "engine", "operator", "router", "simulator"])
def test_no_option_takes_a_range_that_nan_is_in(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        if path.name != "number.py":
            names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            assert "FloatRange" not in names, path
