"""`multislo check`, and `manifest_at`, with which every other command takes a manifest."""

import json
import sys
from pathlib import Path
from typing import IO, Any

import click

from multislo_api.manifest import Instances, ManifestInvalid, ManifestUnreadable, MultiSLOServing, load_manifest
from multislo_api.problems import printable


class WrongManifest(click.ClickException):
    """A manifest that a program was given is not legal: its problems on stderr, exit code 2 (wrong use)."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file=file, err=file is None)


def manifest_at(path: str | Path, ignored: list[str] | None = None) -> MultiSLOServing:
    """`load_manifest` for a click command: a wrong manifest ends the command as WrongManifest does."""
    try:
        return load_manifest(path, ignored)
    except ManifestInvalid as error:
        raise WrongManifest(str(error)) from None


@click.command(
    "check",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: multislo check examples/llama-h200.yaml",
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with an object for each file.")
def check(files: tuple[Path, ...], as_json: bool) -> None:
    """Check manifests and print every mistake in them.

    Exit codes: 0 all are legal, 1 some are not, 2 some cannot be read.
    """
    code = 0
    results: list[dict[str, object]] = []
    for file in files:
        source = printable(str(file))
        try:
            manifest = load_manifest(file)
        except ManifestInvalid as error:
            code = max(code, 2 if isinstance(error, ManifestUnreadable) else 1)
            results.append({"file": source, "valid": False, "problems": error.problems})
            text = str(error)
        else:
            results.append({"file": source, "valid": True, "problems": [], "summary": summary(manifest)})
            text = f"{source}: {summary(manifest)}"
        if not as_json:
            click.echo(text)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    sys.exit(code)


def summary(manifest: MultiSLOServing) -> str:
    """One line: what this fleet is."""
    spec = manifest.spec
    tiers = ", ".join(
        f"{tier.name} {_range(tier.instances)}" + (" (default)" if tier.name == spec.default_tier else "")
        for tier in spec.tiers
    )
    return (
        f"{manifest.metadata.namespace}/{manifest.metadata.name} serves {spec.model.name} on {spec.engine.type} engines, "
        f"{spec.placement}, at most {spec.scaling.accelerators_max} accelerators; instances: {tiers}"
    )


def _range(instances: Instances) -> str:
    if "max" not in instances.model_fields_set:
        return f"{instances.min} or more"
    return f"{instances.min} to {instances.max}"
