"""Fitting: the law is found again in tables made from it, and the shipped profiles are what the measured tables give."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from multislo_perf.fit import RECIPES, Assumptions, derive_profile, fit_profile, kv_capacity
from multislo_perf.profile import ProfileInvalid, load_document

ROOT = Path(__file__).resolve().parents[2]


def _sources() -> Path:
    """Where the measured tables are; they are not part of the repository."""
    given = os.environ.get("MULTISLO_PROFILE_SOURCES")
    found = Path(given) if given else next(ROOT.parent.glob("*/profile-sources"), None)
    if found is None:
        pytest.skip(
            "no measured tables: set MULTISLO_PROFILE_SOURCES, or put profile-sources into a folder beside the checkout"
        )
    return found


def test_a_law_is_found_again_in_the_kernel_times_that_it_made(kernel_tables: Path) -> None:
    document = fit_profile(kernel_tables, RECIPES["h200"], Assumptions()).document
    law = document.latency
    assert law.weights_ms == pytest.approx(4.0, rel=0.02)
    assert law.gemm_us_per_token == pytest.approx(18, rel=0.02)
    assert law.decode_us_per_request == pytest.approx(6, rel=0.05)
    assert law.kv_ns_per_token == pytest.approx(30, rel=0.02)
    assert law.attention_ps_per_pair == pytest.approx(350, rel=0.02)
    assert law.fixed_ms == pytest.approx(1.1 + 0.3 + 0.4, rel=0.05)  # overhead, LM head, launching attention
    assert document.fit is not None
    assert document.fit.mape_percent < 0.5


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_the_shipped_profile_is_what_the_measured_tables_give(gpu: str) -> None:
    fitted = fit_profile(_sources(), RECIPES[gpu], Assumptions()).document
    _assert_same(yaml.safe_load(fitted.text()), yaml.safe_load(load_document(fitted.name).text()))


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_the_error_stays_under_four_per_cent_whichever_rows_are_held_out(gpu: str) -> None:
    sources = _sources()
    for seed in range(1, 5):
        fit = fit_profile(sources, RECIPES[gpu], Assumptions(seed=seed)).document.fit
        assert fit is not None
        assert fit.mape_percent < 4


def test_the_shipped_third_of_an_h100_is_what_derive_gives() -> None:
    shipped = load_document("llama-3.1-8b-h100-third-tp1")
    derived = derive_profile(
        load_document("llama-3.1-8b-h100-tp1"),
        name=shipped.name,
        accelerator=shipped.accelerator,
        compute=3,
        bandwidth=2,
        kv_share=0.333,
    )
    assert derived == shipped


def test_scaling_leaves_the_hosts_overhead_as_it_is() -> None:
    base = load_document("llama-3.1-8b-h100-tp1")
    derived = derive_profile(base, name="x", accelerator="x", compute=3, bandwidth=2, kv_share=0.5)
    overhead_ms = base.source.overhead_assumed_ms
    assert derived.latency.fixed_ms - overhead_ms == pytest.approx(2 * (base.latency.fixed_ms - overhead_ms), rel=1e-3)
    assert derived.latency.weights_ms == pytest.approx(2 * base.latency.weights_ms, rel=1e-3)
    assert derived.latency.gemm_us_per_token == pytest.approx(3 * base.latency.gemm_us_per_token, rel=1e-3)
    assert derived.kv_tokens_max == 213_000
    assert derived.valid.kv_tokens.max == 213_000


def test_the_kv_cache_gets_what_the_weights_leave_of_the_memory() -> None:
    assert kv_capacity(RECIPES["h100"], 0.9) == 426_000
    assert kv_capacity(RECIPES["h100"], 0.5) < kv_capacity(RECIPES["h100"], 0.9) < kv_capacity(RECIPES["h200"], 0.9)


def test_every_table_that_is_missing_or_broken_is_named(kernel_tables: Path) -> None:
    prefix = kernel_tables / "llama-3.1-8b-h200-tp1"
    Path(f"{prefix}-gemm.csv").unlink()
    Path(f"{prefix}-decode-attention.csv").write_text("batch_size,context,ms\n1,2,3\n")
    prefill = Path(f"{prefix}-prefill-attention.csv")
    prefill.write_text(prefill.read_text() + "1,sixteen,0,0.4\n")
    with pytest.raises(ProfileInvalid) as raised:
        fit_profile(kernel_tables, RECIPES["h200"], Assumptions())
    assert raised.value.problems == [
        "llama-3.1-8b-h200-tp1-gemm.csv: cannot be read: No such file or directory",
        "llama-3.1-8b-h200-tp1-decode-attention.csv: the columns must be batch_size,context,attention_ms",
        "llama-3.1-8b-h200-tp1-prefill-attention.csv: line 42: must have a number in every column",
    ]


def _assert_same(fitted: Any, shipped: Any, path: str = "") -> None:
    """Equal, but that another version of the optimiser may round the last digit differently."""
    if isinstance(fitted, dict):
        assert fitted.keys() == shipped.keys(), path
        for field in fitted:
            _assert_same(fitted[field], shipped[field], f"{path}.{field}")
    elif isinstance(fitted, float):
        assert fitted == pytest.approx(shipped, rel=2e-3, abs=0.02), path
    else:
        assert fitted == shipped, path
