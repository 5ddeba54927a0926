"""Reads what another version of multislo wrote. Fields that this version does not know are left out and named, so that the caller can
warn of them; all else is checked as ever. Called by `manifest` for objects of an API server and files of the operator, and by those who
read the documents of `fleet`. What a person wrote is read without it: there an unknown field is a mistake.

An unknown value of a known field stays a mistake, except where the field says what to take for it (`Otherwise`): nobody may guess how a
fleet is to be run, or whether an instance takes requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from multislo_api.problems import Path, path_text, shown

VARIABLE = "MULTISLO_UNKNOWN_FIELDS"
"""With the value "ignore", a program reads the files that it is given as another version's. The operator sets it for its pods: an older
image passes over a variable, and would stop at an option."""
NAMED_MAX = 20
"""Fields named in a warning. A list of a thousand instances has an unknown field a thousand times."""

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Otherwise:
    """Annotation of a field: what to take for a value that only a newer version knows."""

    value: str


def read_json(model: type[Model], body: bytes | str) -> tuple[Model, list[str]]:
    """The document, and what was passed over. Raises pydantic's ValidationError for all other mistakes."""
    try:
        return model.model_validate_json(body), []
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
    if found[0]["type"] == "json_invalid":
        return model.model_validate_json(body), []  # Raises again.
    document = from_json(body)
    passed = pass_over(model, document, found)
    return model.model_validate(document), passed


def pass_over(
    model: type[BaseModel],
    document: Any,
    mistakes: Sequence[ErrorDetails],
    path_of: Callable[[tuple[int | str, ...]], Path] = tuple,
) -> list[str]:
    """Takes out of the document what pydantic found unknown in it: the paths, with the value where that is what is unknown. `path_of`:
    from pydantic's location to the document's path."""
    passed = []
    for mistake in mistakes:
        path = path_of(mistake["loc"])
        if mistake["type"] == "extra_forbidden":
            del _at(document, path[:-1])[path[-1]]
            passed.append(path_text(path))
        elif (known := _otherwise(model, mistake)) is not None:
            _at(document, path[:-1])[path[-1]] = known
            passed.append(f"{path_text(path)} {shown(mistake['input'])} (taken for {known})")
    return passed


def warning(source: str, passed: Sequence[str]) -> str:
    """What to tell of it, in one line however many they are."""
    more = len(passed) - NAMED_MAX
    named = ", ".join(passed[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
    return f"{source}: ignored, since this version of multislo does not know it: {named}"


def _at(document: Any, path: Path) -> Any:
    for part in path:
        document = document[part]
    return document


def _otherwise(model: type[BaseModel], mistake: ErrorDetails) -> str | None:
    """What the field says to take for an unknown value; None where it says nothing."""
    if mistake["type"] != "literal_error" or not isinstance(mistake["input"], str):
        return None
    here: Any = model
    said = None
    for part in mistake["loc"]:
        said = None
        if isinstance(part, int):
            here = get_args(here)[0] if get_origin(here) is list else None
        elif isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            field = here.model_fields[part]
            here, said = field.annotation, next((m.value for m in field.metadata if isinstance(m, Otherwise)), None)
        else:
            return None
    return said
