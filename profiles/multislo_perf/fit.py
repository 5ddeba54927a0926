"""Makes a profile: fits the latency model to measured kernel times, or scales a profile to a smaller accelerator. Called by `multislo
profile fit` and `derive`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from pydantic.alias_generators import to_camel
from scipy.optimize import least_squares

from multislo_perf.kernels import Floats, Iterations, KernelTables, compose, held_out, ranges, read_tables
from multislo_perf.profile import (
    SLOPE_US_MIN,
    Engine,
    Fit,
    GroupError,
    LatencyCoefficients,
    ProfileDocument,
    Source,
    validate_document,
)

HELD_OUT_SHARE = 0.25  # of the measured rows
MIXED_FITTED = 600  # composed iterations of each mixed kind; more do not change the coefficients
MIXED_HELD_OUT = 300
COEFFICIENTS = tuple(to_camel(field) for field in LatencyCoefficients.model_fields)
# What grows when an accelerator's memory is slower, and what when its cores are.
READING = ("weightsMs", "weightsUsPerToken", "kvNsPerToken")
COMPUTING = ("gemmMs", "gemmUsPerToken", "decodeUsPerRequest", "chunkUsPerToken", "attentionPsPerPair")
DIGITS = 4  # of a printed coefficient; the errors are those of the printed ones


@dataclass(frozen=True, slots=True)
class Recipe:
    """The contents of a profile besides the tables: names, memory, assumptions."""

    tables: str
    model: str
    accelerator: str
    tensor_parallel: int
    memory_gb: float
    weights_gb: float
    kv_bytes_per_token: int
    engine: Engine
    measured: str


# bf16: 8.03e9 parameters of 2 bytes; keys and values of 8 heads of 128 in 32 layers.
_LLAMA_8B_WEIGHTS_GB = 16.06
_LLAMA_8B_KV_BYTES = 2 * 32 * 8 * 128 * 2
_MEASURED = (
    "Kernel latencies of Llama-3.1-8B (bf16) in vLLM 0.24 on one {gpu}, from the silicon measurements that NVIDIA's aiconfigurator "
    "publishes (Apache-2.0), summed over the 32 layers; three of the five GEMM shapes are scaled by FLOPs from the nearest measured shape."
)


def _llama_8b(gpu: str, accelerator: str, memory_gb: float) -> Recipe:
    return Recipe(
        tables=f"llama-3.1-8b-{gpu}-tp1",
        model="meta-llama/Llama-3.1-8B-Instruct",
        accelerator=accelerator,
        tensor_parallel=1,
        memory_gb=memory_gb,
        weights_gb=_LLAMA_8B_WEIGHTS_GB,
        kv_bytes_per_token=_LLAMA_8B_KV_BYTES,
        engine=Engine(name="vLLM", version="0.24"),
        measured=_MEASURED.format(gpu=accelerator),
    )


RECIPES = {
    "h100": _llama_8b("h100", "NVIDIA H100 SXM 80 GB", 80.0),
    "h200": _llama_8b("h200", "NVIDIA H200 SXM 141 GB", 141.0),
}


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Values that no table contains."""

    # An independent public figure for H100 and this model is 6.96 + 0.042 B ms at 0.6k context, B decodes. It is 1.1 ms more than
    # the kernels alone at 32 decodes (0.9 at 1, 1.3 at 64).
    overhead_ms: float = 1.1
    startup_s: float = 90.0
    memory_utilisation: float = 0.9
    tokens_max: int = 4096
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """A profile and the held-out iterations that its errors were taken on."""

    document: ProfileDocument
    errors: Fit
    held_out: Iterations
    predicted_ms: Floats


def fit_profile(folder: Path, recipe: Recipe, assumed: Assumptions) -> Fitted:
    """Fits the law to a share of the rows in `folder` and measures it on the others. Raises ProfileInvalid."""
    tables = read_tables(folder, recipe.tables)
    kv_tokens_max = kv_capacity(recipe, assumed.memory_utilisation)
    valid = ranges(tables, assumed.tokens_max, kv_tokens_max)
    dice = Random(assumed.seed)
    kept, out = held_out(tables, HELD_OUT_SHARE, dice)
    fitted_to = compose(kept, kept, valid, MIXED_FITTED, dice)
    tested_on = compose(out, tables, valid, MIXED_HELD_OUT, dice)
    law = fit_law(kept, fitted_to, assumed.tokens_max)
    predicted = law_ms(law, tested_on)
    errors = _errors(tested_on, predicted, len(fitted_to), assumed.seed)
    latency = dict(zip(COEFFICIENTS, law.tolist(), strict=True))
    latency["fixedMs"] = _rounded(latency["fixedMs"] + assumed.overhead_ms)
    content = {
        "version": 1,
        "name": recipe.tables,
        "model": recipe.model,
        "accelerator": recipe.accelerator,
        "tensorParallel": recipe.tensor_parallel,
        "engine": recipe.engine,
        "latency": latency,
        "valid": valid,
        "kvTokensMax": kv_tokens_max,
        "startupS": assumed.startup_s,
        "source": _source(recipe, assumed),
        "fit": errors,
    }
    return Fitted(validate_document(content, recipe.tables), errors, tested_on, predicted)


def kv_capacity(recipe: Recipe, memory_utilisation: float) -> int:
    """Tokens of KV cache that fit beside the weights, in thousands."""
    free = recipe.memory_gb * recipe.tensor_parallel * memory_utilisation - recipe.weights_gb
    return int(free * 1e9 / recipe.kv_bytes_per_token) // 1000 * 1000


def law_ms(law: Floats, rows: Iterations) -> Floats:
    """The law over many iterations at once; its coefficients as COEFFICIENTS names them."""
    fixed, weights, weights_each, gemm, gemm_each, decode, kv, chunk, pair = law
    tokens = rows.chunk_tokens + rows.decodes
    total: Floats = (
        fixed
        + np.maximum(weights + weights_each * tokens / 1e3, gemm + gemm_each * tokens / 1e3)
        + decode * rows.decodes / 1e3
        + kv * rows.kv_tokens / 1e6
        + chunk * rows.chunk_tokens / 1e3
        + pair * rows.pairs / 1e9
    )
    return total


def fit_law(tables: KernelTables, rows: Iterations, tokens_max: int) -> Floats:
    """The law's COEFFICIENTS for the kernels alone, least squares of relative errors.

    In two steps, each from its own data: the two lines under the max from the GEMM rows, all else from whole iterations. In one
    step the law has two directions without effect (from fixed into both lines, from both slopes into decodes and chunks), and
    what the coefficients mean would be left to chance.
    """
    gemm = tables.gemm[tables.gemm[:, 0] <= tokens_max]
    tokens = gemm[:, 0] / 1e3

    def gemm_residuals(x: Floats) -> Floats:
        relative: Floats = np.maximum(x[0] + x[1] * tokens, x[2] + x[3] * tokens) / gemm[:, 1] - 1
        return relative

    slope = 1e3 * gemm[-1, 1] / gemm[-1, 0]
    least = np.array([0.0, SLOPE_US_MIN, 0.0, SLOPE_US_MIN])
    lines = _least_squares(gemm_residuals, np.array([gemm[0, 1], slope / 4, 0.1, slope]), least)

    def law(rest: Floats) -> Floats:
        return np.concatenate([rest[:1], lines, rest[1:]])

    def residuals(x: Floats) -> Floats:
        return law_ms(law(x), rows) / rows.measured_ms - 1

    rest = _least_squares(residuals, np.array([1.0, slope / 4, 30.0, slope / 10, 400.0]), np.zeros(5))
    return np.array([_rounded(x) for x in law(rest)])


def _least_squares(residuals: Callable[[Floats], Floats], start: Floats, least: Floats) -> Floats:
    found = least_squares(
        residuals,
        start,
        bounds=(least, np.inf),
        x_scale=start,
        xtol=1e-13,
        ftol=1e-13,
        gtol=1e-13,
        max_nfev=2000,
    )
    solution: Floats = found.x
    return solution


def derive_profile(
    base: ProfileDocument, *, name: str, accelerator: str, compute: float, bandwidth: float, kv_share: float
) -> ProfileDocument:
    """`base` on a smaller accelerator, by scaling: what computes takes `compute` times as long, what reads memory `bandwidth` times.

    The overhead that `base` assumes is the host's and stays. Tokens in the KV cache come down to `kv_share`.
    """
    content = base.model_dump(by_alias=True)
    law = content["latency"]
    overhead_ms = min(base.source.overhead_assumed_ms, base.latency.fixed_ms)
    # Beside the overhead, the fixed part reads: the LM head and the floor of attention.
    law["fixedMs"] = _rounded((law["fixedMs"] - overhead_ms) * bandwidth + overhead_ms)
    for field in READING:
        law[field] = _rounded(law[field] * bandwidth)
    for field in COMPUTING:
        law[field] = _rounded(law[field] * compute)
    kv_tokens_max = int(base.kv_tokens_max * kv_share) // 1000 * 1000
    content["valid"]["kvTokens"]["max"] = min(base.valid.kv_tokens.max, kv_tokens_max)
    source = {
        "measured": f"Nothing on this accelerator. {base.name} was measured: {base.source.measured}",
        "derivedFrom": base.name,
        "overheadAssumedMs": overhead_ms,
        "method": [
            f"Derived by scaling, not measured: computing takes {compute:g} times as long ({', '.join(COMPUTING)}), reading memory "
            f"{bandwidth:g} times ({', '.join(READING)}, and fixedMs but for its {overhead_ms:g} ms of overhead, which are the host's).",
            f"The KV cache holds {kv_share:.3g} of {base.name}'s tokens.",
        ],
        "lacks": [*base.source.lacks, "Any measurement on this accelerator: the error of the law here is unknown."],
    }
    content |= {"name": name, "accelerator": accelerator, "kvTokensMax": kv_tokens_max, "source": source, "fit": None}
    return validate_document(content, name)


def _source(recipe: Recipe, assumed: Assumptions) -> Source:
    return Source(
        measured=recipe.measured,
        overhead_assumed_ms=assumed.overhead_ms,
        method=[
            "Whole iterations are composed of the kernels: GEMMs and LM head interpolated at the iteration's tokens and sampled rows, "
            "attention added up over the requests, its launch floor once. A chunk that continues a prompt costs the difference of two "
            "measured prompts.",
            f"{HELD_OUT_SHARE:.0%} of the measured rows were held out of the fit; the errors below are those of iterations composed of "
            "held-out attention rows. They are errors on the kernels' time, without the overhead.",
            f"kvTokensMax: ({recipe.memory_gb:g} GB x {recipe.tensor_parallel} x {assumed.memory_utilisation:g} - {recipe.weights_gb:g} GB "
            f"of weights) / {recipe.kv_bytes_per_token} bytes a token; activations and CUDA graphs would take a few per cent of it.",
            "startupS is usual (60 to 150 s from launch to ready, weights on local disk), not measured.",
        ],
        lacks=[
            "Norms, rotary embedding, sampling and launch overhead. fixedMs holds "
            f"{assumed.overhead_ms:g} ms for them, assumed: what an independent public figure for H100 and Llama-3.1-8B (6.96 + 0.042 B ms "
            "for B decodes at 0.6k context) says more than its kernels.",
            "Chunks measured behind a cached prefix, speculation, LoRA, quantisation, prefix-cache look-ups, more than one GPU.",
        ],
    )


def _errors(rows: Iterations, predicted_ms: Floats, fitted_rows: int, seed: int) -> Fit:
    error = 100 * np.abs(predicted_ms / rows.measured_ms - 1)
    spread = ((rows.measured_ms - rows.measured_ms.mean()) ** 2).sum()
    groups = np.array(rows.groups)
    return Fit(
        rows=fitted_rows,
        held_out=len(rows),
        seed=seed,
        mape_percent=round(float(error.mean()), 2),
        max_percent=round(float(error.max()), 1),
        r2=round(float(1 - ((rows.measured_ms - predicted_ms) ** 2).sum() / spread), 4),
        groups={
            group: GroupError(
                held_out=int((groups == group).sum()),
                mape_percent=round(float(error[groups == group].mean()), 2),
                max_percent=round(float(error[groups == group].max()), 1),
            )
            for group in dict.fromkeys(rows.groups)
        },
    )


def _rounded(x: float) -> float:
    return float(f"{x:.{DIGITS}g}")
