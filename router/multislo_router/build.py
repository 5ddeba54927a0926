"""Which build this is. Called by `multislo --version`, and by whatever prints a figure that depends on it."""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec


def build() -> str:
    """`compiled` where the router's core runs as machine code, else `pure`. Decisions are the same, speed is not."""
    spec = find_spec("multislo_router.core.machine")
    origin = (spec.origin if spec is not None else None) or ""
    return "compiled" if origin.endswith(tuple(EXTENSION_SUFFIXES)) else "pure"
