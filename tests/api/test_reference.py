"""docs/manifest.md is what the models say."""

import subprocess
import sys
from pathlib import Path

from multislo_api.reference import reference


def test_the_committed_reference_is_current() -> None:
    committed = Path(__file__).parents[2] / "docs" / "manifest.md"

    assert committed.read_text(encoding="utf-8") == reference(), "run `make gen`"


def test_the_reference_is_written_where_it_is_told(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "multislo_api.reference", str(tmp_path / "manifest.md")], check=True)

    assert (tmp_path / "manifest.md").read_text(encoding="utf-8") == reference()
