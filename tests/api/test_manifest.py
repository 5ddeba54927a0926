"""Legal manifests: what they mean in Python, their defaults, and that writing and reading change nothing. And whatever is written,
it is a manifest or it is told what is wrong with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multislo_api.fields import fields
from multislo_api.kind import MultiSLOServing
from multislo_api.manifest import (
    ManifestInvalid,
    ProfileConfigMap,
    ProfileFile,
    load_manifest,
    manifest_from,
    manifest_yaml,
    parse_manifest,
)

EXAMPLES = Path(__file__).parents[2] / "examples"


def minimal() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((EXAMPLES / "minimal.yaml").read_text())
    return loaded


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_an_example_is_legal_and_survives_writing_and_reading(name: str) -> None:
    manifest = load_manifest(EXAMPLES / name)

    assert parse_manifest(manifest_yaml(manifest)) == manifest


def test_the_document_of_the_product_is_what_programs_see() -> None:
    manifest = load_manifest(EXAMPLES / "llama-h200.yaml")
    spec = manifest.spec

    assert (manifest.metadata.name, manifest.metadata.namespace) == ("llama", "serving")
    assert (spec.model.served_names, spec.model.max_length, spec.model.tokenizer) == (["llama-3.1-8b"], 16384, None)
    assert spec.profile == "llama-3.1-8b-h200-tp1"
    assert [
        (tier.name, tier.slo.ttft_s, tier.slo.tpot_s, tier.instances.min, tier.instances.max, tier.overload)
        for tier in spec.tiers
    ] == [
        ("realtime", 0.3, 0.02, 1, 8, "Reject"),
        ("interactive", 0.5, 0.05, 1, 12, "Queue"),
        ("batch", 1.0, 0.1, 0, 12, "BestEffort"),
    ]
    assert (spec.default_tier, spec.placement) == ("interactive", "Spread")
    assert (spec.scaling.attainment, spec.scaling.accelerators_max) == (0.99, 20)
    assert (spec.scaling.scale_down.stabilization_s, spec.scaling.scale_down.drain_timeout_s) == (120.0, 900.0)
    assert spec.scaling.schedule[0].duration_s == 9 * 3600
    assert spec.router.api_keys is not None
    assert spec.router.api_keys.secret == "llama-api-keys"


def test_what_is_left_out_has_the_defaults_of_the_reference() -> None:
    spec = load_manifest(EXAMPLES / "minimal.yaml").spec

    assert spec.model.served_names == ["meta-llama/Llama-3.1-8B-Instruct"]
    assert spec.default_tier == "batch"  # The loosest.
    assert spec.placement == "Pack"
    assert (spec.engine.type, spec.engine.scheduler, spec.engine.command) == ("VLLM", "Stock", None)
    assert (spec.engine.emulation.slow_down, spec.engine.emulation.startup_s, spec.engine.emulation.jitter) == (
        1.0,
        None,
        0.0,
    )
    assert (spec.engine.accelerator.resource, spec.engine.accelerator.per_instance) == ("nvidia.com/gpu", 1)
    assert (spec.tiers[0].instances.min, spec.tiers[0].overload) == (1, "Queue")
    assert (spec.scaling.warm_pool.min, spec.scaling.warm_pool.max) == (0, 2)
    assert (spec.router.replicas, spec.router.port, spec.router.admin_port, spec.router.api_keys) == (
        1,
        8000,
        9090,
        None,
    )


def test_a_profile_may_come_from_a_file_or_a_config_map() -> None:
    by_file, by_config_map = minimal(), minimal()
    by_file["spec"]["profile"] = {"file": "mine.yaml"}
    by_config_map["spec"]["profile"] = {"configMap": "mine"}

    assert manifest_from(by_file).spec.profile == ProfileFile(file="mine.yaml")
    assert manifest_from(by_config_map).spec.profile == ProfileConfigMap(config_map="mine")


def test_paths_are_relative_to_the_manifests_folder(tmp_path: Path) -> None:
    written = minimal()
    written["spec"]["profile"] = {"file": "profiles/mine.yaml"}
    written["spec"]["model"]["tokenizer"] = "/models/tokenizer.json"
    written["spec"]["router"] = {"apiKeys": {"file": "keys"}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(written))

    spec = load_manifest(tmp_path / "m.yaml").spec

    assert spec.profile == ProfileFile(file=str(tmp_path / "profiles/mine.yaml"))
    assert spec.model.tokenizer == "/models/tokenizer.json"
    assert spec.router.api_keys is not None
    assert spec.router.api_keys.file == str(tmp_path / "keys")


def test_an_object_exported_from_a_cluster_is_a_manifest() -> None:
    exported = minimal()
    exported["metadata"] |= {"uid": "1", "resourceVersion": "2", "creationTimestamp": None, "managedFields": [{}]}
    exported["status"] = {"url": "http://llama", "conditions": None}

    assert manifest_from(exported) == manifest_from(minimal())


def test_a_manifest_may_share_its_file_with_other_objects() -> None:
    text = "kind: Secret\nstringData: {keys: a}\n---\n" + (EXAMPLES / "minimal.yaml").read_text() + "---\n"

    assert parse_manifest(text) == load_manifest(EXAMPLES / "minimal.yaml")


def test_aliases_and_merges_are_written_out() -> None:
    text = (EXAMPLES / "minimal.yaml").read_text()
    before = "    - name: interactive\n      slo: {ttft: 500ms, tpot: 50ms}\n"
    assert before in text
    shared = "    - &usual\n      name: interactive\n      slo: {ttft: 500ms, tpot: 50ms}\n      overload: Reject\n"

    tiers = parse_manifest(
        text.replace(before, shared).replace("    - name: batch", "    - <<: *usual\n      name: batch")
    ).spec.tiers

    assert [(tier.name, tier.slo.tpot_s, tier.overload) for tier in tiers] == [
        ("interactive", 0.05, "Reject"),
        ("batch", 0.1, "Reject"),
    ]


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_text((EXAMPLES / "minimal.yaml").read_text(), encoding="utf-8-sig")

    assert load_manifest(tmp_path / "bom.yaml") == load_manifest(EXAMPLES / "minimal.yaml")


def test_every_field_is_described_with_its_default() -> None:
    for path, shape in fields(MultiSLOServing, ()):
        assert shape.field is not None
        description = shape.field.description or ""
        assert description.endswith("."), path
        assert ("Default: " in description) == (not shape.field.is_required()), path
        if isinstance(shape.default, int | float | str):
            shown = f"{shape.default:g}" if isinstance(shape.default, float) else str(shape.default)
            assert f"Default: {shown}" in description, path


def test_every_list_text_and_number_is_bounded() -> None:
    def unbounded(schema: dict[str, Any], path: str) -> list[str]:
        found = []
        if schema.get("type") == "string" and not ({"maxLength", "enum", "const"} & schema.keys()):
            found.append(path)
        if schema.get("type") in ("integer", "number") and not {"minimum", "maximum"} <= schema.keys():
            found.append(path)
        if schema.get("type") == "array":
            found += [path] if "maxItems" not in schema else []
            found += unbounded(schema["items"], f"{path}[]")
        for name, inner in [*schema.get("properties", {}).items(), *schema.get("$defs", {}).items()]:
            found += unbounded(inner, f"{path}.{name}")
        for inner in [*schema.get("anyOf", []), *schema.get("oneOf", [])]:
            found += unbounded(inner, path)
        return found

    assert unbounded(MultiSLOServing.model_json_schema(), "") == []


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from(["300ms", "0s", "Queue", "realtime", "1e3", "017", "no", "2026-01-01", "<<", "~", "* * * * *"])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def manifest_or_problems(read: Callable[[Any], MultiSLOServing], written: object) -> None:
    """The one thing that must hold of anything: a manifest that survives writing, or problems, and no other exception."""
    try:
        manifest = read(written)
    except ManifestInvalid as error:
        problems = error.problems
    else:
        assert parse_manifest(manifest_yaml(manifest)) == manifest
        return
    assert problems
    assert all(problem and problem.isprintable() for problem in problems)


@given(TREES)
def test_any_document_is_a_manifest_or_has_problems(tree: object) -> None:
    manifest_or_problems(manifest_from, tree)


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")) | TREES.map(yaml.safe_dump))
def test_any_text_is_a_manifest_or_has_problems(text: str) -> None:
    manifest_or_problems(parse_manifest, text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary())
def test_any_file_is_a_manifest_or_has_problems(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "any.yaml").write_bytes(content)

    manifest_or_problems(load_manifest, tmp_path / "any.yaml")


@settings(max_examples=200)
@given(st.integers(0, 2000), st.integers(0, 20), st.text("[]{}:,&*!<>|-?'\"\\%@# \n\ta0.~") | st.text(max_size=5))
def test_a_manifest_with_any_text_spliced_in_is_a_manifest_or_has_problems(at: int, cut: int, text: str) -> None:
    example = (EXAMPLES / "llama-h200.yaml").read_text()

    manifest_or_problems(parse_manifest, example[:at] + text + example[at + cut :])


@settings(max_examples=300)
@given(st.data())
def test_a_manifest_with_anything_anywhere_is_a_manifest_or_has_problems(data: st.DataObject) -> None:
    changed: Any = yaml.safe_load((EXAMPLES / "llama-h200.yaml").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = changed
        while True:
            key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            if not (isinstance(place[key], dict | list) and place[key]) or data.draw(st.booleans()):
                break
            place = place[key]
        place[key] = data.draw(TREES)

    manifest_or_problems(manifest_from, changed)


@given(TREES, st.integers(1, 64), st.integers(1, 99_999), st.integers(1, 60_000), st.integers(0, 1024))
def test_a_written_manifest_reads_as_the_same_manifest(
    tree: object, each: int, ttft_ms: int, tpot_ms: int, least: int
) -> None:
    written = minimal()
    written["spec"]["engine"] = {"podTemplate": {"spec": {"any": tree}}, "accelerator": {"perInstance": each}}
    slo = {"ttft": f"{ttft_ms}ms", "tpot": f"{tpot_ms}ms"}
    written["spec"]["tiers"] = [{"name": "a", "slo": slo, "instances": {"min": least}}]
    written["spec"]["scaling"]["acceleratorsMax"] = 65_536

    manifest = manifest_from(written)

    assert parse_manifest(manifest_yaml(manifest)) == manifest
    assert manifest.spec.engine.pod_template == {"spec": {"any": tree}}
