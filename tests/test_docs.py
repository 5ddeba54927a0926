"""The pages tell the truth about themselves: links lead somewhere, and commands have the options that are shown."""

import re
import shlex
from pathlib import Path

import click
import pytest

from multislo.command import main
from multislo_sim.whatif.cli import what_if

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("charts/*/README.md")),
    ROOT / "e2e" / "README.md",
]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_to_a_page_and_a_heading_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def commands(page: Path) -> list[str]:
    """The lines that begin with `multislo`, in code blocks and indented ones."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"^(?: {4}\$ |\$ | {4})?(multislo [a-z].*)$", "\n".join(FENCED.findall(text)), re.MULTILINE) + (
        re.findall(r"^ {4}(?:\$ )?(multislo [a-z].*)$", FENCED.sub("", text), re.MULTILINE)
    )


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_on_the_page_exist_with_their_options(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line, comments=True)[1:]
        command: click.Command = main
        while words and isinstance(command, click.Group) and not words[0].startswith("-"):
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, line
            command = found
        if command.name == "simulate" and {"-f", "--manifest"} & set(words):
            command = what_if
        known = {option for parameter in command.params for option in parameter.opts} | {"-h", "--help", "--version"}
        unknown = [word for word in words if word.startswith("-") and word != "-" and word.split("=")[0] not in known]
        assert not unknown, line


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
