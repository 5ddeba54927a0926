"""docs/manifest.md, made from the models: `python -m multislo_api.reference [FILE]` (stdout without FILE). `make gen` calls it."""

import sys
from pathlib import Path

from multislo_api.fields import fields, legal
from multislo_api.kind import API_VERSION, KIND, MultiSLOServing

INTRODUCTION = f"""\
# The manifest

Generated from `crds/multislo_api/kind.py` by `make gen`; change it there.

One `{KIND}` (`{API_VERSION}`) describes one fleet. The same file drives one machine (`multislo up -f FILE`) and a
cluster. `multislo check FILE` prints every mistake in it.

- A field without "required" may be left out; left empty (`field:`), it is a mistake. Unknown fields are mistakes.
- A duration is a number and a unit, `h`, `m`, `s` or `ms`, and up to four of them: `300ms`, `1.5s`, `1m30s`, `2h`.
- Paths are relative to the manifest's folder.
- A file may hold other Kubernetes objects beside the one manifest; they are not looked at. Neither is `status`, nor what an
  API server writes into `metadata`.

Beyond its single fields, a manifest must keep these rules:

- tiers have unique names, none of them `router` or `warm`, and no two of them the same `tpot`;
- `min` is not over `max`, of a tier's instances and of the warm pool; a schedule's `min` is not over its tier's `max`;
- `defaultTier` and a schedule's `tier` name a tier;
- `scaling.acceleratorsMax` holds all minima, the warm pool's too, times `engine.accelerator.perInstance`;
- `router.port` and `router.adminPort` differ;
- `router.apiKeys` has exactly one of its fields; `model.servedNames` has no name twice;
- `router.paths` has each path once, and none that the router answers itself;
- `engine.podTemplate` and `router.podTemplate` have no other keys than `metadata` and `spec`.
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
