"""Profiles as files: what is shipped can be loaded, and what is wrong in one is named with its path, its value and what is legal."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from multislo_perf.profile import ProfileInvalid, load_document, load_profile, parse_document, shipped_profiles

H200 = "llama-3.1-8b-h200-tp1"


def _changed(path: str, value: object) -> str:
    """The H200 profile with one field set (`a.b.c`), or taken out where the value is Ellipsis."""
    content: dict[str, Any] = yaml.safe_load(load_document(H200).text())
    *steps, last = path.split(".")
    place = content
    for step in steps:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return yaml.safe_dump(content)


def test_every_shipped_profile_loads_under_its_own_name() -> None:
    assert shipped_profiles() == ["llama-3.1-8b-h100-third-tp1", "llama-3.1-8b-h100-tp1", H200]
    for name in shipped_profiles():
        profile = load_profile(name)
        assert profile.name == name
        assert profile.tensor_parallel == 1
        assert profile.startup_s == 90.0


def test_a_profile_is_in_seconds_inside_and_in_readable_units_in_its_file() -> None:
    document, latency = load_document(H200), load_profile(H200).latency
    assert latency.weights_s == pytest.approx(document.latency.weights_ms * 1e-3)
    assert latency.gemm_per_token_s == pytest.approx(document.latency.gemm_us_per_token * 1e-6)
    assert latency.per_kv_token_s == pytest.approx(document.latency.kv_ns_per_token * 1e-9)
    assert latency.per_attention_pair_s == pytest.approx(document.latency.attention_ps_per_pair * 1e-12)
    assert latency.iteration_s(0, 0, 1, 600) == pytest.approx(5.7e-3, rel=0.05)
    assert latency.iteration_s(1024, 0, 0, 0) == pytest.approx(21e-3, rel=0.05)


def test_a_profile_written_out_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for name in shipped_profiles():
        path.write_text(load_document(name).text())
        assert load_document(path) == load_document(name)
        assert load_profile(str(path)) == load_profile(name)


def test_the_capacity_is_what_fits_beside_the_weights() -> None:
    assert load_profile(H200).kv_tokens_max == pytest.approx(850_000, rel=0.01)
    assert load_profile("llama-3.1-8b-h100-tp1").kv_tokens_max == pytest.approx(430_000, rel=0.01)
    assert load_profile("llama-3.1-8b-h100-third-tp1").kv_tokens_max == pytest.approx(140_000, rel=0.02)


def test_the_h100_agrees_with_a_public_figure_that_it_was_not_fitted_to() -> None:
    """6.96 + 0.042 B ms at about 0.6k context; the assumed overhead comes from it, the rest does not."""
    latency = load_profile("llama-3.1-8b-h100-tp1").latency
    for batch in (1, 8, 16, 32, 64, 128):
        public_s = 6.96e-3 + 0.042e-3 * batch
        assert latency.iteration_s(0, 0, batch, 600 * batch) == pytest.approx(public_s, rel=0.06)


def test_the_error_on_held_out_iterations_is_stated_and_under_four_per_cent() -> None:
    for name in (H200, "llama-3.1-8b-h100-tp1"):
        fit = load_document(name).fit
        assert fit is not None
        assert fit.mape_percent < 4
        assert fit.held_out >= 500
        assert set(fit.groups) == {"decode", "prefill", "mixed", "continued"}


def test_a_derived_profile_claims_no_error_and_says_where_it_is_from() -> None:
    document = load_document("llama-3.1-8b-h100-third-tp1")
    assert document.fit is None
    assert document.source.derived_from == "llama-3.1-8b-h100-tp1"
    assert document.source.measured.startswith("Nothing on this accelerator.")


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("version", 2, "version: 2 must be 1"),
        ("version", ..., "version: is missing"),
        ("name", "Llama 8B", 'name: "Llama 8B" must be lower-case letters, digits, dots and dashes'),
        ("model", "", 'model: "" must not be empty'),
        ("tensorParallel", 0, "tensorParallel: 0 must be between 1 and 1024"),
        ("tensorParallel", 1.5, "tensorParallel: 1.5 must be a whole number"),
        ("engine.version", 0.24, "engine.version: 0.24 must be text (in quotes where it looks like a number)"),
        ("engine", None, "engine: null must be a mapping"),
        ("latency.fixedMs", -1, "latency.fixedMs: -1 must be between 0 and 100000"),
        ("latency.fixedMs", "2ms", 'latency.fixedMs: "2ms" must be a number'),
        ("latency.fixedMs", True, "latency.fixedMs: true must be a number"),
        ("latency.fixedMs", float("nan"), "latency.fixedMs: nan must be a finite number"),
        ("latency.gemmUsPerToken", 0, "latency.gemmUsPerToken: 0 must be between 0.001 and 100000"),
        ("latency.gemmUsPerToken", ..., "latency.gemmUsPerToken: is missing"),
        ("latency.gemmNsPerToken", 17, "latency.gemmNsPerToken: is not a field of a profile"),
        ("valid.tokens", {"min": 9, "max": 1}, "valid.tokens: min 9 must be at most max 1"),
        ("kvTokensMax", 100, "kvTokensMax: 100 must be between 1024 and 1000000000"),
        ("startupS", 9999, "startupS: 9999 must be between 0 and 3600"),
        ("source.lacks", "nothing", 'source.lacks: "nothing" must be a list'),
        ("source.lacks", ["norms", 3], "source.lacks[1]: 3 must be text (in quotes where it looks like a number)"),
        ("fit.groups.decode.mapePercent", -2, "fit.groups.decode.mapePercent: -2 must be between 0 and 1000"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_legal(path: str, value: object, problem: str) -> None:
    with pytest.raises(ProfileInvalid) as raised:
        parse_document(_changed(path, value), "mine.yaml")
    assert raised.value.problems == [problem]
    assert str(raised.value) == f"mine.yaml: {problem}"


def test_all_mistakes_are_told_at_once() -> None:
    text = _changed("kvTokensMax", 1).replace("fixedMs:", "fxedMs:")
    with pytest.raises(ProfileInvalid) as raised:
        parse_document(text, "mine.yaml")
    assert sorted(raised.value.problems) == [
        "kvTokensMax: 1 must be between 1024 and 1000000000",
        "latency.fixedMs: is missing",
        "latency.fxedMs: is not a field of a profile",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file must be a mapping that opens with `version: 1`"),
        (b"- 1\n", "the file must be a mapping that opens with `version: 1`"),
        (b"a: [1\nb: 2\n", "line 2, column 2: not YAML: expected ',' or ']', but got ':'"),
        (b"\xff\xfe\x00", "the file must be UTF-8 text; byte 0 is not"),
        (b"a" * 1_000_001, "the file must have at most 1000000 bytes"),
    ],
)
def test_what_is_no_profile_at_all_is_told_in_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ProfileInvalid) as raised:
        load_profile(path)
    assert raised.value.problems == [problem]


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ProfileInvalid) as raised:
        load_profile("llama-3.1-8b-h300-tp1")
    (problem,) = raised.value.problems
    assert problem.startswith('"llama-3.1-8b-h300-tp1" must be')
    assert all(name in problem for name in shipped_profiles())


def test_a_missing_file_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ProfileInvalid, match=r"absent.yaml: the file cannot be read: No such file"):
        load_profile(tmp_path / "absent.yaml")
