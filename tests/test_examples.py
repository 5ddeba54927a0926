"""Which random examples `make test` tries."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def test_make_test_tries_the_same_examples_whatever_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert settings.get_current_profile_name() == "fixed"

    def tried() -> list[tuple[int, float]]:
        found: list[tuple[int, float]] = []

        @given(st.integers(), st.floats(allow_nan=False))
        def collect(whole: int, real: float) -> None:
            found.append((whole, real))

        collect()
        return found

    before = tried()
    path = tmp_path / "one_more.py"
    path.write_text(f"NUMBERS = {list(range(70_000, 70_200))}, {[n / 7 for n in range(200)]}\n")
    module = ModuleType("one_more")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "one_more", module)
    assert tried() == before
