"""The CRD: what of pydantic's JSON Schema an API server refuses is said in another way or not at all, and the committed file is current.
Whether a real API server takes it, and what it then refuses, is in e2e/test_crd.py."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from cronsim import CronSim, CronSimError
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Discriminator, Field, Tag

from multislo_api import rules
from multislo_api.cel import CRON, RULES
from multislo_api.crd import NotStructural, chart_template, crd, crd_yaml, nodes, schema_of, structural
from multislo_api.duration import Duration
from multislo_api.scalars import Legal
from multislo_api.status import Status

ROOT = Path(__file__).parents[2]


class Inner(BaseModel):
    """What the class says."""

    size: int = Field(default=3, description="Size. Default: 3.")


class OneKey(BaseModel):
    file: str = Field(max_length=9, description="A path.")


class Constructs(BaseModel):
    """A field for each construct of pydantic's that an API server does not take as it is."""

    reference: Inner = Field(default=Inner(), description="What the field says.")
    nothing: int | None = Field(default=None, ge=1, description="May be null.")
    above: float = Field(gt=0, lt=5, description="Open bounds.")
    unique: set[str] = Field(default=set(), description="Each once.")
    constant: Literal["only"] = Field(description="One word.")
    pair: tuple[int, int] = Field(description="Two numbers.")
    free: dict[str, Any] = Field(default={}, description="Anything.")
    texts: dict[str, str] = Field(default={}, description="Texts.")
    either: Annotated[
        Annotated[str, Tag("text")] | Annotated[OneKey, Tag("map")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "map"),
    ] = Field(description="Text or mapping.")
    patterned: Annotated[str, Field(pattern="^a$"), Legal('the letter "a"')] = Field(description="In words.")
    wait_s: Annotated[float, Duration(most_s=60)] = Field(default=2.5, description="A duration. Default: 2.5s.")
    title: str = Field(default="", description="A field of this name is none of JSON Schema's titles.")


def of(field: str) -> dict[str, Any]:
    found: dict[str, Any] = schema_of(Constructs)["properties"][field]
    return found


def test_a_reference_is_written_out_and_the_fields_own_words_win() -> None:
    assert of("reference") == {
        "type": "object",
        "description": "What the field says.",
        "properties": {"size": {"type": "integer", "default": 3, "description": "Size. Default: 3."}},
        "default": {"size": 3},
    }


def test_a_field_that_may_be_null_is_one_that_may_be_left_out() -> None:
    assert of("nothing") == {"type": "integer", "minimum": 1, "description": "May be null."}
    assert "nothing" not in schema_of(Constructs)["required"]


def test_an_open_bound_is_a_bound_and_a_flag() -> None:
    bounds = {"minimum": 0, "exclusiveMinimum": True, "maximum": 5, "exclusiveMaximum": True}

    assert bounds.items() <= of("above").items()


def test_unique_items_are_a_list_of_type_set() -> None:
    assert of("unique")["x-kubernetes-list-type"] == "set"
    assert "uniqueItems" not in of("unique")


def test_a_constant_is_an_enum_of_one() -> None:
    assert of("constant") == {"type": "string", "enum": ["only"], "description": "One word."}


def test_a_tuple_of_one_kind_is_a_list_of_that_length() -> None:
    pair = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}

    assert pair.items() <= of("pair").items()


def test_an_open_mapping_keeps_what_is_unknown() -> None:
    assert of("free") == {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "description": "Anything."}


def test_a_mapping_of_texts_stays_one() -> None:
    assert of("texts") == {"type": "object", "additionalProperties": {"type": "string"}, "description": "Texts."}


def test_text_or_mapping_is_a_node_without_type_that_only_the_two_pass() -> None:
    either = of("either")

    assert "type" not in either
    assert "oneOf" not in either
    assert "discriminator" not in either
    assert either["x-kubernetes-preserve-unknown-fields"] is True
    assert either["properties"] == {"file": {"type": "string", "maxLength": 9, "description": "A path."}}
    assert either["anyOf"] == [{"required": ["file"]}]


def test_a_pattern_with_words_is_a_rule_that_says_the_words() -> None:
    [rule] = of("patterned")["x-kubernetes-validations"]

    assert rule["rule"] == 'self.matches("^a$")'
    assert rule["message"] == 'must be the letter "a"'
    assert "pattern" not in of("patterned")


def test_a_duration_is_text_with_its_bounds_as_a_rule_and_its_default_as_text() -> None:
    shape, bounds = of("wait_s")["x-kubernetes-validations"]

    assert of("wait_s")["type"] == "string"
    assert of("wait_s")["default"] == "2s500ms"
    assert shape["message"] == 'must be a duration such as "300ms", "1s" or "1m30s", from 0s to 1m'
    assert bounds["rule"].endswith("(duration(self) >= duration('0s') && duration(self) <= duration('1m'))")


def test_no_title_is_left_but_a_field_of_that_name_is() -> None:
    schema = schema_of(Constructs)

    assert all("title" not in node for _, node in nodes(schema))
    assert schema["properties"]["title"]["type"] == "string"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "patternProperties": {}},
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}},
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
        {"oneOf": [{"type": "string"}, {"type": "integer"}], "description": ""},
        {},
    ],
)
def test_what_no_structural_schema_can_say_is_refused_here_and_not_by_the_api_server(schema: dict[str, Any]) -> None:
    with pytest.raises(NotStructural):
        structural(schema, {}, "here")


def openapi() -> dict[str, Any]:
    schema: dict[str, Any] = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def test_every_field_has_a_description_and_every_list_and_text_an_end() -> None:
    found = dict(nodes(openapi()))

    undescribed = [path for path, node in found.items() if path and "description" not in node and path[-2:] != "[]"]
    endless = [path for path, node in found.items() if node.get("type") == "array" and "maxItems" not in node]
    unbounded = [
        path
        for path, node in found.items()
        if node.get("type") == "string" and not node.keys() & {"maxLength", "enum", "format"}
    ]

    assert undescribed == ["metadata"]
    assert endless == []
    assert unbounded == ["apiVersion", "kind"]


def test_every_field_of_the_spec_tells_its_default() -> None:
    required = {"spec"} | {
        f"spec.{part}.podTemplate.{key}" for part in ("engine", "router") for key in ("metadata", "spec")
    }
    for path, node in nodes(openapi()):
        required |= {f"{path}.{name}" for name in node.get("required", [])}
        required |= {f"{path}.{name}" for choice in node.get("anyOf", []) for name in choice["required"]}

    silent = [
        path
        for path, node in nodes(openapi())
        if path.startswith("spec.")
        and path not in required
        and path[-2:] != "[]"
        and ".podTemplate." not in path
        and "Default: " not in node["description"]
    ]

    assert silent == []


def test_every_rule_of_the_loader_has_its_twin() -> None:
    twins = {
        "_tier_names_are_unique": "spec.tiers",  # The list's keys.
        "_no_tier_has_a_reserved_name": "spec.tiers[].name",
        "_no_two_tiers_have_one_tpot": "spec.tiers",
        "_served_names_are_unique": "spec.model.servedNames",  # A set.
        "_adapters_have_names_of_their_own": "spec",
        "_minima_are_not_over_maxima": "spec.tiers[].instances",
        "_the_default_tier_exists": "spec",
        "_service_tiers_name_tiers": "spec",
        "_schedules_fit_their_tiers": "spec",
        "_the_minima_fit_the_accelerators": "spec",
        "_the_ports_differ": "spec.router",
        "_api_keys_come_from_one_place": "spec.router.apiKeys",
        "_a_path_of_the_router_is_not_passed_on": "spec.router.paths",
        "_a_pod_template_is_one": "spec.engine.podTemplate",  # Its properties.
    }
    schema = dict(nodes(openapi()))

    assert [rule.__name__ for rule in rules.RULES] == list(twins)
    assert RULES.keys() <= schema.keys()
    assert schema["spec.tiers"]["x-kubernetes-list-map-keys"] == ["name"]
    assert schema["spec.model.servedNames"]["x-kubernetes-list-type"] == "set"
    for part in ("engine", "router"):
        assert schema[f"spec.{part}.podTemplate"]["properties"].keys() == {"metadata", "spec"}


def test_conditions_and_tiers_of_the_status_are_merged_by_their_key() -> None:
    status = schema_of(Status)["properties"]

    assert status["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
    assert status["tiers"]["x-kubernetes-list-map-keys"] == ["name"]


CRON_TERMS = st.sampled_from(
    [
        "*",
        "0",
        "7",
        "59",
        "60",
        "05",
        "1-5",
        "5-1",
        "*/15",
        "1-5/2",
        "3/4",
        "*/0",
        "MON",
        "mon-fri",
        "L",
        "LW",
        "5L",
        "1#2",
        "JAN",
        "31",
        "",
    ]
)
CRON_FIELDS = st.lists(CRON_TERMS, min_size=1, max_size=2).map(",".join)


@given(st.lists(CRON_FIELDS, min_size=4, max_size=6).map(" ".join))
@example("30 8 * * MON-FRI")
@example("0 0 L * *")
@example("0 0 L/2 * 5L")
@example(" 0  0 1,15 JAN-DEC/2 SUN#2 ")
def test_no_cron_expression_that_the_loader_takes_is_refused_by_the_pattern(expression: str) -> None:
    try:
        CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC))
    except (CronSimError, ValueError):
        return
    taken = re.search(CRON.replace("[[:space:]]", r"\s"), expression)

    assert bool(taken) == (len(expression.split()) == 5)


@pytest.mark.parametrize(
    "wrong", ["0 25 * * *", "* * * * * *", "* * * *", "60 * * * *", "0 0 32 * *", "0 0 * 13 *", "0 0 * * 8", "@daily"]
)
def test_the_pattern_refuses_what_is_no_cron_expression(wrong: str) -> None:
    assert not re.search(CRON.replace("[[:space:]]", r"\s"), wrong)


def test_the_committed_files_are_current() -> None:
    assert (ROOT / "crds" / "multisloservings.yaml").read_text(encoding="utf-8") == crd_yaml()
    template = ROOT / "charts" / "multislo-crds" / "templates" / "multisloservings.yaml"
    assert template.read_text(encoding="utf-8") == chart_template()
    assert yaml.safe_load(crd_yaml()) == crd()
