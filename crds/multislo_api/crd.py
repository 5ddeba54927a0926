"""crds/multisloservings.yaml, made from the models: `python -m multislo_api.crd [FILE [CHART_TEMPLATE]]` (stdout without FILE). `make gen`
calls it. `structural` turns the JSON Schema that pydantic writes into the structural one that an API server takes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from multislo_api.cel import pattern_rule, rules_at
from multislo_api.document import write_document
from multislo_api.duration import MARK, format_duration
from multislo_api.kind import API_VERSION, KIND, MultiSLOServing
from multislo_api.scalars import LEGAL
from multislo_api.status import Status

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "multisloservings"
NAME = f"{PLURAL}.{GROUP}"

Schema = dict[str, Any]

KEPT = {
    "default",
    "description",
    "enum",
    "format",
    "maximum",
    "maxItems",
    "maxLength",
    "maxProperties",
    "minimum",
    "minItems",
    "minLength",
    "minProperties",
    "pattern",
    "required",
    "type",
}
"""Keywords that mean the same in both schemas. Besides them: `x-kubernetes-*`, and those that `structural` rewrites."""
DROPPED = {
    "$defs",
    "title",
    "discriminator",
    "examples",
    "uniqueItems",
    "const",
    "prefixItems",
    "additionalProperties",
    LEGAL,
    MARK,
}
"""Keywords that say nothing to an API server, or that `structural` has said in another way."""
HEADER = "# Generated from crds/multislo_api by `make gen`; change it there.\n"


class NotStructural(Exception):
    """A model has something that no structural schema can say; `str()` names the place."""


def crd() -> Schema:
    """The CustomResourceDefinition."""
    schema = schema_of(MultiSLOServing)
    # The API server has its own word on metadata; a CRD may only narrow the name, and by no rule.
    name = {**MultiSLOServing.model_json_schema()["$defs"]["Metadata"]["properties"]["name"]}
    del name["title"], name[LEGAL]
    schema["properties"]["metadata"] = {"type": "object", "properties": {"name": name}}
    for given in ("apiVersion", "kind"):
        schema["properties"][given].pop("enum")
    schema["required"] = ["spec"]
    # Else the server would drop `apiKeys:` with nothing behind it, and everybody could come in. So it is stored, and the operator,
    # whose loader refuses a null, says so in a condition.
    schema["properties"]["spec"]["properties"]["router"]["properties"]["apiKeys"]["nullable"] = True
    schema["properties"]["status"] = schema_of(Status) | {"description": "What is; written by the operator."}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "multislo"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["mslo"],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": COLUMNS,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _column(name: str, path: str, description: str, **more: Any) -> Schema:
    return {"name": name, "type": "string", "jsonPath": path, "description": description} | more


COLUMNS = [
    _column("Ready", '.status.conditions[?(@.type=="Ready")].status', "Whether the fleet serves as wanted."),
    _column("Reason", '.status.conditions[?(@.type=="Ready")].reason', "Why, in one word."),
    _column("URL", ".status.url", "Base URL of the OpenAI API inside the cluster."),
    _column("Instances", ".status.instances", "Ready and all engine instances."),
    _column("Age", ".metadata.creationTimestamp", "Since its creation.", type="date"),
    _column("Model", ".spec.model.name", "What the engines load.", priority=1),
    _column("Accelerators", ".status.accelerators.used", "Accelerators in use.", type="integer", priority=1),
    _column("Message", '.status.conditions[?(@.type=="Ready")].message', "Why, in words.", priority=1),
    _column(
        "Scaling",
        '.status.conditions[?(@.type=="ScalingReady")].message',
        "Whether the load gets its instances.",
        priority=1,
    ),
]


def schema_of(model: type[BaseModel]) -> Schema:
    """The structural schema of a model, with the CEL rules of each place in it."""
    raw = model.model_json_schema(by_alias=True)
    schema = structural(raw, raw.get("$defs", {}))
    if model is MultiSLOServing:
        for path, node in nodes(schema):
            if rules := rules_at(path):
                node["x-kubernetes-validations"] = [*rules, *node.get("x-kubernetes-validations", [])]
    return schema


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema in a structural one with its path, a list's items at `[]`: `spec.tiers[].slo`."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def structural(schema: Schema, defs: dict[str, Schema], path: str = "") -> Schema:
    """The same schema as an API server takes it. Raises NotStructural for what it could not say; nothing is passed on unknown."""
    schema = _resolved(schema, defs, path)
    if "oneOf" in schema:
        return _text_or_mapping(schema, defs, path)
    out: Schema = {}
    for keyword, value in schema.items():
        if keyword in KEPT or keyword.startswith("x-kubernetes-"):
            out[keyword] = value
        elif keyword in ("exclusiveMinimum", "exclusiveMaximum"):
            # JSON Schema gives the bound, OpenAPI v3.0 says of `minimum` that it is one.
            out |= {keyword.removeprefix("exclusive").lower(): value, keyword: True}
        elif keyword == "properties":
            out[keyword] = {name: structural(inner, defs, f"{path}.{name}") for name, inner in value.items()}
        elif keyword == "items":
            out[keyword] = structural(value, defs, f"{path}[]")
        elif keyword not in DROPPED:
            raise NotStructural(f"{path}: {keyword} has no place in a structural schema")
    if "const" in schema:
        out["enum"] = [schema["const"]]
    if "prefixItems" in schema:
        out["items"] = _one_kind_of_item(schema["prefixItems"], defs, path)
    if schema.get("uniqueItems"):
        out["x-kubernetes-list-type"] = "set"
    elif out.get("type") == "array":
        out.setdefault("x-kubernetes-list-type", "atomic")
    if "pattern" in out and LEGAL in schema:
        out["x-kubernetes-validations"] = [pattern_rule(out.pop("pattern"), schema[LEGAL])]
    _open_mapping(schema, out, defs, path)
    _default(out, is_duration=MARK in schema)
    if "type" not in out and "x-kubernetes-preserve-unknown-fields" not in out:
        raise NotStructural(f"{path}: a schema must have a type")
    return out


def _resolved(schema: Schema, defs: dict[str, Schema], path: str) -> Schema:
    """Without `$ref`, a single `allOf`, and `anyOf` with null: what stands beside them wins."""
    while True:
        beside = dict(schema)
        if "$ref" in schema:
            inner = defs[beside.pop("$ref").rpartition("/")[2]]
        elif "allOf" in schema and len(schema["allOf"]) == 1:
            inner = beside.pop("allOf")[0]
        elif "anyOf" in schema:
            some = [choice for choice in beside.pop("anyOf") if choice != {"type": "null"}]
            if len(some) != 1:
                raise NotStructural(f"{path}: anyOf may only be one schema or null")
            inner = some[0]
        else:
            return schema
        schema = inner | beside


def _open_mapping(schema: Schema, out: Schema, defs: dict[str, Schema], path: str) -> None:
    more = schema.get("additionalProperties", False)
    if more is False or "x-kubernetes-preserve-unknown-fields" in out:
        return  # Beside properties it is forbidden; an API server prunes or refuses what is unknown by itself.
    if "properties" in schema:
        raise NotStructural(f"{path}: additionalProperties beside properties")
    if more is True:
        out["x-kubernetes-preserve-unknown-fields"] = True
    else:
        out["additionalProperties"] = structural(more, defs, f"{path}{{}}")


def _default(out: Schema, is_duration: bool) -> None:
    """A default of None is no default, and an empty one only makes objects longer; a duration's is text, as the document has it."""
    value = _without_none(out.pop("default", None))
    if isinstance(value, float) and is_duration:
        value = format_duration(value)
    if value not in (None, {}, []):
        out["default"] = value


def _without_none(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {key: _without_none(each) for key, each in value.items()}
    return {key: each for key, each in inner.items() if each not in (None, {}, [])}


def _one_kind_of_item(items: list[Schema], defs: dict[str, Schema], path: str) -> Schema:
    kinds = [structural(item, defs, f"{path}[]") for item in items]
    if any(kind != kinds[0] for kind in kinds):
        raise NotStructural(f"{path}: prefixItems of different kinds")
    return kinds[0]


def _text_or_mapping(schema: Schema, defs: dict[str, Schema], path: str) -> Schema:
    """A union of one text and mappings of one key each. A structural schema has no type for it and an untyped node no CEL, but
    each bound speaks of one type only: of text the pattern, of mappings the properties; of every other type one that nothing meets."""
    # No rules below an untyped node: patterns stay patterns.
    choices = [structural(_without(LEGAL, choice), _without(LEGAL, defs), path) for choice in schema["oneOf"]]
    texts = [choice for choice in choices if choice.get("type") == "string"]
    mappings = [choice for choice in choices if choice.get("type") == "object"]
    if len(texts) != 1 or len(texts) + len(mappings) != len(choices):
        raise NotStructural(f"{path}: oneOf may only be a text and mappings")
    keys = [key for choice in mappings for key in choice["properties"]]
    if any(
        choice.get("required") != list(choice["properties"]) or len(choice["properties"]) != 1 for choice in mappings
    ):
        raise NotStructural(f"{path}: each mapping of a union must have one required key")
    return {
        "description": schema["description"],
        "x-kubernetes-preserve-unknown-fields": True,
        **{keyword: texts[0][keyword] for keyword in ("minLength", "maxLength", "pattern") if keyword in texts[0]},
        "maxProperties": 1,
        "properties": {key: value for choice in mappings for key, value in choice["properties"].items()},
        "anyOf": [{"required": [key]} for key in keys],
        "maxItems": 0,
        "minItems": 1,
        "not": {"enum": [True, False]},
        "minimum": 1,
        "maximum": 0,
    }


def _without(keyword: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(keyword, inner) for key, inner in value.items() if key != keyword}
    return value


def crd_yaml() -> str:
    """The file."""
    return HEADER + write_document(crd())


def chart_template() -> str:
    """The file as a Helm template: whether an uninstall keeps the CRD, and with it every fleet, is the user's choice."""
    text = crd_yaml()
    if "{{" in text:
        raise NotStructural('"{{" in a text would be taken for a template')
    labels = "  labels:\n"
    values = (
        "{{- if or .Values.keep .Values.annotations }}\n  annotations:\n"
        "    {{- if .Values.keep }}\n    helm.sh/resource-policy: keep\n    {{- end }}\n"
        "    {{- with .Values.annotations }}\n    {{- toYaml . | nindent 4 }}\n    {{- end }}\n  {{- end }}\n"
    )
    return text.replace(labels, f'  {values}{labels}    {{{{- include "multislo-crds.labels" . | nindent 4 }}}}\n', 1)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.stdout.write(crd_yaml())
    for given, text in zip(sys.argv[1:], (crd_yaml, chart_template), strict=False):
        Path(given).write_text(text(), encoding="utf-8")
