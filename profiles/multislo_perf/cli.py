"""`multislo profile`: shows the latency profiles and makes new ones."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from multislo_perf.bench import bench_predict
from multislo_perf.latency import LatencyModel
from multislo_perf.profile import ProfileDocument, ProfileInvalid, load_document, load_profile, shipped_profiles
from multislo_perf.sizing import batch_tokens, idle_tpot_s, idle_ttft_s, prefill_rate

TPOT_SHOWN_S = (0.020, 0.050, 0.100)
CONTEXT_SHOWN = 1024  # tokens of a decode, and of a prompt, where `show` needs some


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def profile() -> None:
    """Show latency profiles and make new ones.

    A profile says how long an iteration of one engine takes, how many tokens its KV cache holds, how long it needs to start, and
    where those numbers came from.

    \b
    Example:
      multislo profile show llama-3.1-8b-h200-tp1
    """


@profile.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the names as a JSON list.")
def list_profiles(as_json: bool) -> None:
    """List the profiles that come with multislo.

    \b
    Example:
      multislo profile list
    """
    if as_json:
        click.echo(json.dumps(shipped_profiles()))
        return
    table = Table(box=box.SIMPLE)
    table.add_column("name", no_wrap=True)
    table.add_column("accelerator")
    table.add_column("KV tokens", justify="right")
    table.add_column("held-out error")
    for name in shipped_profiles():
        document = load_document(name)
        error = f"{document.fit.mape_percent:g} %" if document.fit else "derived"
        table.add_row(name, document.accelerator, f"{document.kv_tokens_max:,}", error)
    _print(table)


@profile.command()
@click.argument("name_or_path")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print the profile's file, as a start for your own.")
def show(name_or_path: str, as_json: bool, as_yaml: bool) -> None:
    """Show a profile, by name or path, and what follows from it for tiers of 20, 50 and 100 ms.

    \b
    Example:
      multislo profile show llama-3.1-8b-h100-tp1
    """
    with _problems_told():
        document = load_document(name_or_path)
    if as_json and as_yaml:
        raise click.UsageError("--json and --yaml cannot go together")
    if as_yaml:
        click.echo(document.text(), nl=False)
        return
    latency = document.latency.model()
    tiers = [_tier(latency, document.kv_tokens_max, tpot_s) for tpot_s in TPOT_SHOWN_S]
    if as_json:
        shown = {**document.model_dump(by_alias=True, exclude_none=True), "tiers": tiers}
        click.echo(json.dumps(shown, indent=2))
        return
    _show_document(document)
    _show_tiers(tiers, latency)


def _tier(latency: LatencyModel, kv_tokens_max: int, tpot_s: float) -> dict[str, float]:
    """What an instance of a tier of this TPOT does: one row of `show`."""
    budget = batch_tokens(latency, tpot_s)
    return {
        "tpotMs": round(1e3 * tpot_s, 3),
        "batchTokens": budget,
        "decodesMax": min(latency.decodes_max(tpot_s, CONTEXT_SHOWN), kv_tokens_max // CONTEXT_SHOWN),
        "prefillTokensPerSecond": round(prefill_rate(latency, budget)),
        "idleTtftMs": round(1e3 * idle_ttft_s(latency, CONTEXT_SHOWN, budget), 2),
    }


def _show_document(document: ProfileDocument) -> None:
    head = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    head.add_row("profile", f"{document.name} (version {document.version})")
    head.add_row(
        "model", f"{document.model}, {document.engine.name} {document.engine.version}, TP {document.tensor_parallel}"
    )
    head.add_row("accelerator", document.accelerator)
    head.add_row("KV cache", f"{document.kv_tokens_max:,} tokens")
    head.add_row("start-up", f"{document.startup_s:g} s")
    head.add_row("measured", document.source.measured)
    for line, lacking in enumerate(document.source.lacks):
        head.add_row("" if line else "lacks", lacking)
    if document.fit:
        fit = document.fit
        groups = ", ".join(f"{group} {error.mape_percent:g} %" for group, error in fit.groups.items())
        head.add_row(
            "held-out error",
            f"{fit.mape_percent:g} % mean, {fit.max_percent:g} % max, R2 {fit.r2:g}, {fit.held_out} iterations ({groups})",
        )
    else:
        head.add_row("held-out error", "unknown: " + " ".join(document.source.method))
    _print(head)
    law = Table("coefficient", "value", title="iteration time", box=box.SIMPLE, title_justify="left")
    for field, value in document.latency.model_dump(by_alias=True).items():
        law.add_row(field, f"{value:g}")
    _print(law)
    valid = Table("valid for", "from", "to", box=box.SIMPLE)
    for field, ends in document.valid.model_dump(by_alias=True).items():
        valid.add_row(field, f"{ends['min']:,}", f"{ends['max']:,}")
    _print(valid)


def _show_tiers(tiers: list[dict[str, float]], latency: LatencyModel) -> None:
    table = Table(
        "TPOT",
        "batch tokens",
        f"decodes at {CONTEXT_SHOWN:,}",
        "prefill tokens/s",
        f"idle TTFT of {CONTEXT_SHOWN:,}",
        title="an instance of a tier",
        title_justify="left",
        box=box.SIMPLE,
    )
    for tier in tiers:
        table.add_row(
            f"{tier['tpotMs']:g} ms",
            f"{tier['batchTokens']:,}",
            f"{tier['decodesMax']:,}",
            f"{tier['prefillTokensPerSecond']:,}",
            f"{tier['idleTtftMs']:g} ms",
        )
    _print(table)
    _print(f"An idle decode at {CONTEXT_SHOWN:,} tokens takes {1e3 * idle_tpot_s(latency, CONTEXT_SHOWN):.2f} ms.")


@profile.command()
@click.option(
    "--sources",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the measured tables: NAME-gemm.csv, NAME-decode-attention.csv, NAME-prefill-attention.csv.",
)
@click.option("--gpu", required=True, type=click.Choice(["h100", "h200"]), help="Default for all values below.")
@click.option("--name", help="Name of the tables and of the profile.  [default: llama-3.1-8b-GPU-tp1]")
@click.option("--model", help="Model that the engine loads.")
@click.option("--accelerator", help="In words.")
@click.option("--measured", help="What was measured, on what and by whom; written into the profile's source.")
@click.option("--engine-version", help="Version of the vLLM whose kernels were measured.")
@click.option("--tensor-parallel", type=click.IntRange(1, 1024), help="GPUs of one engine.")
@click.option("--memory-gb", type=click.FloatRange(1, 10_000), help="Memory of one GPU.")
@click.option("--weights-gb", type=click.FloatRange(0, 10_000), help="Size of the model's weights.")
@click.option("--kv-bytes-per-token", type=click.IntRange(1, 10**9), help="Size of keys and values of all layers.")
@click.option(
    "--overhead-ms",
    type=click.FloatRange(0, 1000),
    default=1.1,
    show_default=True,
    help="Overhead per iteration outside of the kernels.",
)
@click.option(
    "--startup-s", type=click.FloatRange(0, 3600), default=90.0, show_default=True, help="Time from launch to ready."
)
@click.option(
    "--utilisation",
    type=click.FloatRange(0.1, 1),
    default=0.9,
    show_default=True,
    help="Share of the memory that the engine uses.",
)
@click.option(
    "--tokens-max",
    type=click.IntRange(512, 16384),
    default=4096,
    show_default=True,
    help="Largest iteration to fit to.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the held-out rows and of the composed iterations."
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the profile. Default: standard output."
)
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw predicted against measured times.")
def fit(
    sources: Path,
    gpu: str,
    name: str | None,
    engine_version: str | None,
    overhead_ms: float,
    startup_s: float,
    utilisation: float,
    tokens_max: int,
    seed: int,
    out: Path | None,
    png: Path | None,
    **given: str | float | None,
) -> None:
    """Make a profile from measured kernel times.

    A quarter of the measured rows is held out of the fit; the error on them is printed and written into the profile.

    \b
    Example:
      multislo profile fit --sources profile-sources --gpu h200 --out llama-3.1-8b-h200-tp1.yaml
    """
    from multislo_perf.fit import RECIPES, Assumptions, fit_profile

    recipe = RECIPES[gpu]
    changes: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    if name:
        changes = {"tables": name, "measured": f"Kernel tables {name}; nobody said where they came from.", **changes}
    if engine_version:
        changes["engine"] = recipe.engine.model_copy(update={"version": engine_version})
    recipe = replace(recipe, **changes)
    assumed = Assumptions(
        overhead_ms=overhead_ms, startup_s=startup_s, memory_utilisation=utilisation, tokens_max=tokens_max, seed=seed
    )
    with _problems_told():
        fitted = fit_profile(sources, recipe, assumed)
    errors = fitted.errors
    _say(f"{fitted.document.name}: fitted to {errors.rows} iterations, held out {errors.held_out}:")
    _say(f"  mean error {errors.mape_percent:g} %, max {errors.max_percent:g} %, R2 {errors.r2:g}")
    for group, error in errors.groups.items():
        _say(f"  {group}: {error.held_out} iterations, {error.mape_percent:g} %, max {error.max_percent:g} %")
    if png:
        from multislo_perf.plot import plot_fit

        plot_fit(fitted, png)
        _say(f"wrote {png}")
    _write(fitted.document, out)


@profile.command()
@click.argument("base")
@click.option("--name", required=True, help="Of the new profile.")
@click.option("--accelerator", required=True, help="In words.")
@click.option("--compute", type=click.FloatRange(0.01, 1000), required=True, help="Factor on the time of computing.")
@click.option(
    "--bandwidth", type=click.FloatRange(0.01, 1000), required=True, help="Factor on the time of reading memory."
)
@click.option(
    "--kv-share", type=click.FloatRange(0.001, 1000), required=True, help="Its KV tokens as a share of the base's."
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the profile. Default: standard output."
)
def derive(
    base: str, name: str, accelerator: str, compute: float, bandwidth: float, kv_share: float, out: Path | None
) -> None:
    """Make a profile of another accelerator by scaling the profile BASE (name or path). The new profile says that nothing was measured.

    \b
    Example:
      multislo profile derive llama-3.1-8b-h100-tp1 --name llama-3.1-8b-h100-third-tp1 \\
          --accelerator "a third of an NVIDIA H100 SXM 80 GB" --compute 3 --bandwidth 2 --kv-share 0.333
    """
    from multislo_perf.fit import derive_profile

    with _problems_told():
        derived = derive_profile(
            load_document(base),
            name=name,
            accelerator=accelerator,
            compute=compute,
            bandwidth=bandwidth,
            kv_share=kv_share,
        )
    _write(derived, out)


@profile.command()
@click.option("--profile", "name_or_path", default="llama-3.1-8b-h200-tp1", show_default=True, help="Name or path.")
@click.option("--json", "as_json", is_flag=True, help="Print microseconds per formula as JSON.")
def bench(name_or_path: str, as_json: bool) -> None:
    """Measure the time of one prediction on this machine (goal: under 2 us).

    \b
    Example:
      multislo profile bench --json
    """
    with _problems_told():
        latency = load_profile(name_or_path).latency
    costs = bench_predict(latency)
    if as_json:
        click.echo(json.dumps({cost.question: round(cost.us, 3) for cost in costs}))
        return
    table = Table("prediction", "us", box=box.SIMPLE)
    for cost in costs:
        table.add_row(cost.question, f"{cost.us:.2f}")
    _print(table)


@contextmanager
def _problems_told() -> Iterator[None]:
    """A profile that cannot be used is wrong use: every problem on standard error, exit code 2."""
    try:
        yield
    except ProfileInvalid as error:
        click.echo(str(error), err=True)
        sys.exit(2)


def _write(document: ProfileDocument, out: Path | None) -> None:
    if out is None:
        click.echo(document.text(), nl=False)
        return
    try:
        out.write_text(document.text(), encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(out), error.strerror) from None
    _say(f"wrote {out}")


def _say(line: str) -> None:
    click.echo(line, err=True)


def _print(what: Table | str) -> None:
    Console(highlight=False).print(what)
