"""The manifest's one door: a file, a text or a parsed document in, a checked MultiSLOServing out, or ManifestInvalid with every
problem in it. Called by every program that takes `-f manifest.yaml`.

What a person wrote is read strictly. With a list `ignored`, the document may come from a newer version (an API server with a newer CRD,
a newer operator): fields that this version does not know are left out, and their paths are added to the list.

The fields themselves are in `multislo_api.kind`, what joins several of them in `multislo_api.rules`.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path as FilePath
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from multislo_api.document import BYTES_MAX, read_documents, write_document
from multislo_api.duration import Duration
from multislo_api.fields import ROOT, Shape, field_names, legal, located, meant
from multislo_api.kind import (
    API_VERSION,
    KIND,
    Accelerator,
    Adapter,
    Cache,
    Emulation,
    Engine,
    Instances,
    Metadata,
    Model,
    MultiSLOServing,
    ProfileConfigMap,
    ProfileFile,
    ScaleDown,
    Scaling,
    ScheduleEntry,
    ServiceTiers,
    Slo,
    Spec,
    Tier,
    WarmPool,
)
from multislo_api.problems import ManifestInvalid, ManifestUnreadable, Path, Problem, path_text, problems_text, shown
from multislo_api.router import ApiKeys, Cors, PassedPath, Router
from multislo_api.rules import POD_TEMPLATE, broken
from multislo_api.tolerant import pass_over

__all__ = [
    "API_VERSION",
    "KIND",
    "Accelerator",
    "Adapter",
    "ApiKeys",
    "Cache",
    "Cors",
    "Emulation",
    "Engine",
    "Instances",
    "ManifestInvalid",
    "ManifestUnreadable",
    "Metadata",
    "Model",
    "MultiSLOServing",
    "PassedPath",
    "ProfileConfigMap",
    "ProfileFile",
    "Router",
    "ScaleDown",
    "Scaling",
    "ScheduleEntry",
    "ServiceTiers",
    "Slo",
    "Spec",
    "Tier",
    "WarmPool",
    "load_manifest",
    "manifest_from",
    "manifest_from_object",
    "manifest_yaml",
    "parse_manifest",
    "problems_text",
]

SERVER_METADATA = {
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
}
"""What an API server writes into metadata. Ignored, so that an exported object is a manifest too; `status` likewise."""

FREE: tuple[Path, ...] = (("spec", "engine", "podTemplate"), ("spec", "router", "podTemplate"))
"""The places where null has a meaning (a strategic merge deletes by it) and fields are not ours."""


def load_manifest(path: str | FilePath, ignored: list[str] | None = None) -> MultiSLOServing:
    """The manifest in a file; relative paths in it become relative to the file's folder. Raises ManifestInvalid."""
    source = str(path)
    try:
        with open(path, "rb") as file:
            content = file.read(BYTES_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ManifestUnreadable([f"the file cannot be read: {reason}"], source) from None
    if len(content) > BYTES_MAX:
        raise ManifestInvalid([f"the file is larger than {BYTES_MAX} bytes; a manifest is a few KB"], source)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} (0x{content[error.start]:02x}) is not UTF-8"
        raise ManifestInvalid([f"the file must be UTF-8 text: {wrong}"], source) from None
    return _with_paths_from(FilePath(path).parent, parse_manifest(text, source, ignored))


def parse_manifest(text: str, source: str = "manifest", ignored: list[str] | None = None) -> MultiSLOServing:
    """The manifest in a YAML text. Raises ManifestInvalid; `source` is what its message calls the text."""
    documents, problems = read_documents(text)
    chosen, more = _the_one(documents) if documents or not problems else (None, [])
    problems += more
    if chosen is None:
        raise ManifestInvalid([str(problem) for problem in problems], source)
    return _checked(chosen, problems, source, ignored)


def manifest_from(document: object, source: str = "manifest") -> MultiSLOServing:
    """The manifest in a parsed document, with the names of the YAML. Raises ManifestInvalid."""
    return _checked(document, [], source)


def manifest_from_object(document: Mapping[str, Any], ignored: list[str] | None = None) -> MultiSLOServing:
    """The manifest in an object from an API server: its spec under its name, without status, labels and annotations (a manifest that
    goes on to the router must not change with them). A newer CRD's fields are left out, and added to `ignored` where it is given.
    Raises ManifestInvalid, also for what the CRD's rules cannot tell."""
    metadata = document.get("metadata") or {}
    name, namespace = metadata.get("name", ""), metadata.get("namespace", "default")
    bare = {key: document[key] for key in ("apiVersion", "kind", "spec") if key in document}
    own = bare | {"metadata": {"name": name, "namespace": namespace}}
    return _checked(own, [], f"{namespace}/{name}", [] if ignored is None else ignored)


def manifest_yaml(manifest: MultiSLOServing) -> str:
    """The manifest as YAML text, every default written out. Reading it again gives an equal manifest."""
    return write_document(manifest.model_dump(mode="json", by_alias=True, exclude_none=True))


def _the_one(documents: list[object]) -> tuple[object, list[Problem]]:
    """The document that is the manifest: the only one, or the only MultiSLOServing beside other objects."""
    if not documents:
        return None, [Problem((), f"the file is empty; it must hold one {KIND} ({API_VERSION})")]
    if len(documents) == 1:
        return documents[0], []
    ours = [document for document in documents if isinstance(document, dict) and document.get("kind") == KIND]
    if len(ours) == 1:
        return ours[0], []
    held = f"the file holds {len(documents)} documents, {len(ours)} of kind {KIND}"
    return None, [Problem((), f"{held}; it must hold exactly one of that kind")]


def _checked(
    document: object, problems: list[Problem], source: str, ignored: list[str] | None = None
) -> MultiSLOServing:
    if not isinstance(document, dict):
        raise ManifestInvalid([f"the document is {shown(document)}; it must be {legal(ROOT)}"], source)
    document = _without_the_servers_part(document)
    kinds = [problem for problem in _field_problems(document) if problem.path in (("apiVersion",), ("kind",))]
    if _is_another_kind(document):
        # Its fields are not ours to judge.
        raise ManifestInvalid([str(problem) for problem in problems + kinds], source)
    if ignored is not None:
        document = deepcopy(document)
        ignored += _pass_over(document)
    bare = _without_nulls(document, ())
    told = {problem.path for problem in problems}  # A value that the text itself spoiled came out as null.
    nulls = [problem for problem in _nulls(document, ()) if problem.path not in told]
    told |= {problem.path for problem in nulls}
    found = [problem for problem in _field_problems(bare) if problem.path not in told]
    wrong = told | {problem.path for problem in found}
    problems = problems + nulls + found + broken(bare, wrong)
    if problems:
        raise ManifestInvalid([str(problem) for problem in problems], source)
    return MultiSLOServing.model_validate(bare, by_alias=True, by_name=False)


def _is_another_kind(document: dict[str, Any]) -> bool:
    """Some other object, not one of ours with a slip in its `kind`."""
    kind, version = document.get("kind"), document.get("apiVersion")
    ours = isinstance(version, str) and version.partition("/")[0] == API_VERSION.partition("/")[0]
    return isinstance(kind, str) and kind.lower() != KIND.lower() and not ours


def _without_the_servers_part(document: dict[str, Any]) -> dict[str, Any]:
    document = {key: value for key, value in document.items() if key != "status"}
    if isinstance(document.get("metadata"), dict):
        document["metadata"] = {key: value for key, value in document["metadata"].items() if key not in SERVER_METADATA}
    return document


def _without_nulls(value: Any, path: Path) -> Any:
    """The document without `field: null`, which `_nulls` reports."""
    if path in FREE:
        return value
    if isinstance(value, dict):
        return {key: _without_nulls(inner, (*path, key)) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner, (*path, index)) for index, inner in enumerate(value)]
    return value


def _nulls(value: Any, path: Path) -> Iterator[Problem]:
    """`apiKeys:` with nothing behind it is more often a slip than a wish for the default, and a costly one."""
    if path in FREE:
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        if inner is None and isinstance(value, dict):
            shape = located((*path, key))[1]
            if shape is not None:
                hint = (
                    ""
                    if shape.field is None or shape.field.is_required()
                    else ", or the field left out for its default"
                )
                yield Problem((*path, key), f"null (nothing) must be {legal(shape)}{hint}")
        else:
            yield from _nulls(inner, (*path, key))


def _pass_over(document: dict[str, Any]) -> list[str]:
    """Takes out of the document what this version does not know, and names it."""
    passed = pass_over(MultiSLOServing, document, _mistakes(document), lambda location: located(location)[0])
    for path in FREE:
        template: Any = document
        for part in path:
            template = template.get(part) if isinstance(template, dict) else None
        for key in set(template) - set(POD_TEMPLATE) if isinstance(template, dict) else ():
            passed.append(path_text((*path, key)))
            del template[key]
    return passed


def _mistakes(document: dict[str, Any]) -> list[ErrorDetails]:
    try:
        MultiSLOServing.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _field_problems(document: dict[str, Any]) -> list[Problem]:
    return [problem for mistake in _mistakes(document) if (problem := _problem(mistake)) is not None]


def _problem(detail: ErrorDetails) -> Problem | None:
    """pydantic's finding in the manifest's words."""
    path, shape = located(detail["loc"])
    value = detail["input"]
    match detail["type"]:
        case "default_factory_not_called":  # What it would be computed from is wrong, and reported.
            return None
        case "extra_forbidden":
            return Problem(path, _unknown(path, value))
        case "missing" if shape is not None:
            return Problem(path, f"missing; must be {legal(shape)}")
        case "duration_range" if shape is not None:
            within = next(bound for bound in shape.bounds if isinstance(bound, Duration)).within
            return Problem(path, f"{shown(value)} must be {within}")
        case "cron" if shape is not None:
            return Problem(path, f"{shown(value)} must be {legal(shape)} ({detail['msg']})")
        case _ if shape is not None:
            return Problem(path, f"{shown(value)} must be {legal(shape)}{_hint(shape, value)}")
        case _:
            return Problem(path, f"{shown(value)} is not legal here: {detail['msg']}")


def _unknown(path: Path, value: object) -> str:
    shape = located(path[:-1])[1]
    text = f"unknown field (with {shown(value)})"
    if shape is None or not (isinstance(shape.type, type) and issubclass(shape.type, BaseModel)):
        return text
    names = field_names(shape.type)
    near = meant(shape.type, path[:-1], str(path[-1]))
    return f"{text}; must be one of {', '.join(names)}" + (f'; did you mean "{near}"?' if near else "")


def _hint(shape: Shape, value: object) -> str:
    if get_origin(shape.type) is Literal and isinstance(value, str):
        choices = {str(choice).lower(): choice for choice in get_args(shape.type)}
        near = get_close_matches(value.lower(), choices, n=1, cutoff=0.5)
        return f'; did you mean "{choices[near[0]]}"?' if near and len(choices) > 1 else ""
    if shape.type is str and isinstance(value, bool | int | float):
        return "; write it in quotes"
    if shape.type is str and isinstance(value, str) and value != value.strip():
        return "; it begins or ends with a space"
    if (
        located(("spec", "profile"))[1] == shape
        and isinstance(value, str)
        and ("/" in value or value.endswith((".yaml", ".yml")))
    ):
        return f"; did you mean {{file: {shown(value)}}}?"
    return ""


def _with_paths_from(folder: FilePath, manifest: MultiSLOServing) -> MultiSLOServing:
    """Paths in the manifest are relative to it, not to wherever a program was started."""
    spec = manifest.spec
    model, router, profile = spec.model, spec.router, spec.profile
    if model.tokenizer is not None:
        model = model.model_copy(update={"tokenizer": str(folder / model.tokenizer)})
    if isinstance(profile, ProfileFile):
        profile = ProfileFile(file=str(folder / profile.file))
    if router.api_keys is not None and router.api_keys.file is not None:
        keys = router.api_keys.model_copy(update={"file": str(folder / router.api_keys.file)})
        router = router.model_copy(update={"api_keys": keys})
    return manifest.model_copy(
        update={"spec": spec.model_copy(update={"model": model, "router": router, "profile": profile})}
    )
