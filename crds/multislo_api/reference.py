"""Writes docs/manifest.md from the models: `python -m multislo_api.reference [FILE]` (stdout without FILE). `make gen` calls it."""

import sys
from pathlib import Path

from multislo_api.fields import fields, legal
from multislo_api.kind import API_VERSION, KIND, MultiSLOServing

INTRODUCTION = f"""\
# The manifest

Generated from `crds/multislo_api/kind.py` by `make gen`; change it there.

One `{KIND}` (`{API_VERSION}`) describes one fleet. The same file drives one machine (`multislo up -f FILE`) and a
cluster. `multislo check FILE` prints all mistakes in it.

- Fields without "required" may be left out. An empty field (`field:`) is a mistake, and so is an unknown one.
- A duration is one to four numbers, each with a unit (`h`, `m`, `s` or `ms`): `300ms`, `1.5s`, `1m30s`, `2h`.
- Paths are relative to the manifest's folder.
- A file may hold other Kubernetes objects beside the manifest. They are ignored, and so are `status` and the fields that an API server
  writes into `metadata`.

Some rules concern several fields:

- tiers have unique names, none of them `router` or `warm`, and no two of them the same `tpot`;
- `min` is at most `max`, for a tier's instances and for the warm pool; a schedule's `min` is at most its tier's `max`;
- `defaultTier`, `serviceTiers` and a schedule's `tier` name a tier;
- `scaling.acceleratorsMax` is at least the sum of all minima, the warm pool's included, times `engine.accelerator.perInstance`;
- `router.port` and `router.adminPort` differ;
- `router.apiKeys` has exactly one of its fields; `model.servedNames` has no duplicates;
- `engine.adapters` have names of their own: none twice, none that is the model's or among `model.servedNames`;
- `router.paths` has no duplicates and no path that the router answers itself;
- `engine.podTemplate` and `router.podTemplate` have only the keys `metadata` and `spec`.
"""


def reference() -> str:
    """The whole page."""
    sections: dict[str, list[str]] = {}
    for path, shape in fields(MultiSLOServing, ()):
        *parents, name = [str(part) for part in path]
        required = shape.field is not None and shape.field.is_required()
        meaning = (shape.field.description or "") if shape.field is not None else ""
        rows = sections.setdefault(".".join(parents).replace(".[]", "[]"), [])
        rows.append(f"| `{name}` | {_cell(legal(shape))} | {'**required.** ' if required else ''}{_cell(meaning)} |")
    lines = [INTRODUCTION]
    for section, rows in sections.items():
        title = f"## `{section}`" if section else "## The document"
        lines += [title, "", "| field | must be | meaning |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
    else:
        sys.stdout.write(reference())
