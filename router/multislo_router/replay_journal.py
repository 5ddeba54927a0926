"""`multislo replay-journal`: the command. Whatever the build, it plays the core from its sources: objects of compiled classes cannot be
made from a state, and both builds decide the same to the last bit."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import IO, Final

import click

COMPILED: Final = ("multislo_router.core.", "multislo_perf.")
"""Packages of which some modules may be compiled."""


class _Sources(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(COMPILED):
            return None
        files = [Path(folder) / f"{name.rpartition('.')[2]}.py" for folder in path or ()]
        return next((spec_from_file_location(name, file) for file in files if file.exists()), None)


@contextmanager
def _sources_preferred() -> Iterator[None]:
    finder = _Sources()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@click.command(
    "replay-journal",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: curl -s 'http://127.0.0.1:9090/debug/journal?seconds=60' | multislo replay-journal -",
)
@click.argument("file", metavar="FILE", type=click.File("rb"))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, and no decisions.")
@click.option("--choices", is_flag=True, help="Succeed if each request gets the same place, even by other figures.")
def replay_journal(file: IO[bytes], as_json: bool, choices: bool) -> None:
    """Play a router's journal through this version's core, and compare each decision with the recorded one.

    FILE is what GET /debug/journal on a router's admin port answered; - is standard input.

    Exit codes: 0 every decision is the same to the last digit, 1 some are not, 2 the file is no whole journal.
    """
    with _sources_preferred():
        from multislo_router.replay import Replay, plain, text_of, told
    replay = Replay(file)
    for compared in replay:
        if not as_json:
            click.echo(text_of(compared))
    summary = replay.summary
    if as_json:
        first = summary.first_difference
        shown = asdict(summary) | {"first_difference": None if first is None else plain(first)}
        click.echo(json.dumps(shown, indent=2))
    else:
        click.echo("\n".join(["", *told(summary)]))
    sys.exit(1 if summary.different or (summary.other_figures and not choices) else 0)
