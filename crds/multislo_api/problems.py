"""What can be wrong with a manifest, in words: one line a problem, all of them at once. `load_manifest` raises them; every
program that takes a manifest prints them with `problems_text`, so they read the same everywhere.

    Exception
      ManifestInvalid        the user's: the file says something that is not legal
        ManifestUnreadable   the user's: there is no such file, or it may not be read
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_MAX = 80
"""Characters of a wrong value that a problem repeats: enough to find it, and one line stays one line."""

Path = tuple[str | int, ...]
"""Where a value is in the document: `("spec", "tiers", 2, "slo", "tpot")`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `text` names the value and what is legal; an empty path means the whole file."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{path_text(self.path)}: {self.text}" if self.path else self.text


class ManifestInvalid(Exception):
    """Some manifest is not legal. `problems` is never empty; `str()` is what a terminal should show."""

    def __init__(self, problems: Sequence[str], source: str = "manifest") -> None:
        super().__init__(source, tuple(problems))
        self.source = source
        self.problems = list(problems)

    def __str__(self) -> str:
        return problems_text(self.source, self.problems)


class ManifestUnreadable(ManifestInvalid):
    """The file itself is out of reach: absent, a folder, or not ours to read."""


def problems_text(source: str, problems: Sequence[str]) -> str:
    """What a program prints on a wrong manifest: the file and the count, then a line for each problem."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{printable(source)}: {count}", *(f"  {problem}" for problem in problems)])


def path_text(path: Path) -> str:
    """`spec.tiers[2].slo.tpot`; a key that is not a plain word stands in quotes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,62}", part):
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text


def shown(value: object) -> str:
    """The value as one short printable line, as JSON writes it."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (
        TypeError,
        ValueError,
        RecursionError,
    ):  # Not from a document: an integer too long to print, a tuple as a key.
        text = f"a {type(value).__name__}"
    if not text.isprintable():
        text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}..."


def printable(text: str) -> str:
    """The text itself, or its escaped form where a terminal could not show it as one line."""
    return text if text.isprintable() else ascii(text)[1:-1]
