"""What keeps the changes of a resource from being carried out: written by `apply`, said by `conditions` in the next look. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

TOLD_MAX = 4
"""Refusals that are spelled out; of more it says how many."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One change that the API server does not take."""

    what: str
    """Kind and name."""
    words: str
    """The API server's own."""
    of_child: bool
    """Of an object that the manifest asks for; else of a pod or a count, which scaling asks for."""
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.words}"


@dataclass(frozen=True, slots=True)
class Obstacles:
    taken: Mapping[str, str] = field(default_factory=dict)
    """Children that could not be made, "Kind name", since somebody else has an object of that name, and who."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Children that somebody keeps changing back, "Kind name", and who; "": it is not known."""
    refused: tuple[Refusal, ...] = ()


def in_words(refusals: Iterable[Refusal]) -> str:
    """What has the same cause is named together."""
    names: dict[str, list[str]] = {}
    for refusal in refusals:
        names.setdefault(refusal.words, []).append(refusal.what)
    told = [f"{_some(what, ', ')}: {words}" for words, what in names.items()]
    return _some(told, "; ")


def _some(parts: list[str], between: str) -> str:
    more = len(parts) - TOLD_MAX
    return between.join(parts[:TOLD_MAX]) + (f"{between}and {more} more" if more > 0 else "")
