"""What a field of the manifest is: found by its path, with what is legal for it in words. Asked by the problems
(`multislo_api.manifest`), the rules and the reference, so that all of them say the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

from multislo_api.duration import Duration, format_duration
from multislo_api.kind import MultiSLOServing
from multislo_api.problems import Path
from multislo_api.scalars import Legal


@dataclass(frozen=True, slots=True)
class Shape:
    """One place in the manifest: its type without wrapping, the bounds on it, and its field (None for a list's item)."""

    type: Any
    bounds: tuple[Any, ...]
    field: FieldInfo | None

    @property
    def default(self) -> object:
        """The value of a field that was left out, as the document would write it; None where that is nothing or computed."""
        if self.field is None or self.field.is_required() or self.field.default_factory is not None:
            return None
        value: object = self.field.default
        if isinstance(value, float) and any(isinstance(bound, Duration) for bound in self.bounds):
            return format_duration(value)
        return value


ROOT = Shape(MultiSLOServing, (), None)


def located(location: Path) -> tuple[Path, Shape | None]:
    """The document's path and the shape at a path or a pydantic error's location (which also names the choice taken in a
    union). The shape is None from the first unknown field on."""
    path: Path = ()
    shape: Shape | None = ROOT
    for part in location:
        if shape is not None and get_origin(shape.type) in (Union, UnionType):
            shape = _choice(shape, part)
            continue
        path = (*path, part)
        shape = _below(shape, part) if shape is not None else None
    return path, shape


def field_names(model: type[BaseModel]) -> list[str]:
    """The names of its fields as the document writes them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def legal(shape: Shape) -> str:
    """What may stand there, in words that follow "must be"."""
    for bound in shape.bounds:
        if isinstance(bound, Legal):
            return bound.text
        if isinstance(bound, Duration):
            return bound.legal
    if get_origin(shape.type) is Literal:
        values = get_args(shape.type)
        return f'"{values[0]}"' if len(values) == 1 else f"one of {', '.join(values)}"
    if shape.type in (int, float):
        kind = "an integer" if shape.type is int else "a number"
        return f"{kind} from {_bound(shape, Ge, 'ge'):.12g} to {_bound(shape, Le, 'le'):.12g}"
    if get_origin(shape.type) is list:
        least = _bound(shape, MinLen, "min_length") or 0
        item = _unwrapped(get_args(shape.type)[0], (), None)
        each = "a mapping" if _is_model(item.type) else legal(item)
        return f"a list of {least} to {_bound(shape, MaxLen, 'max_length')} items, each {each}"
    if _is_model(shape.type):
        names = field_names(shape.type)
        return (
            f"a mapping with {', '.join(names[:-1])} and {names[-1]}"
            if len(names) > 1
            else f"a mapping with {names[0]}"
        )
    if get_origin(shape.type) is dict:
        most = _bound(shape, MaxLen, "max_length")
        return f"a mapping of at most {most} texts" if most else "a mapping"
    return "text"


def meant(model: type[BaseModel], path: Path, name: str) -> str:
    """The field that a misspelt or misplaced one at `path` was probably meant to be: a name beside it, a path below it or one
    from the root. Empty where none is near."""
    names = field_names(model)
    near = {known.lower(): known for known in names}
    found = get_close_matches(name.lower().replace("_", "").replace("-", ""), near, n=1, cutoff=0.7)
    if found:
        return near[found[0]]
    here = tuple("[]" if isinstance(part, int) else part for part in path)
    places = [place for place in _everywhere() if place[-1] == name]
    below = [place[len(here) :] for place in places if place[: len(here)] == here]
    return ".".join([*below, *places][0]).replace(".[]", "[]") if places else ""


@cache
def _everywhere() -> list[tuple[str, ...]]:
    return [tuple(str(part) for part in path) for path, _ in fields(MultiSLOServing, ())]


def fields(model: type[BaseModel], path: Path) -> Iterator[tuple[Path, Shape]]:
    """Every field of a model and of the models in it, in order; a list's items stand at `[]`."""
    for name, field in model.model_fields.items():
        here = (*path, field.alias or name)
        shape = _unwrapped(field.annotation, tuple(field.metadata), field)
        yield here, shape
        for inner, suffix in _models_in(shape):
            yield from fields(inner, (*here, *suffix))


def _models_in(shape: Shape) -> Iterator[tuple[type[BaseModel], Path]]:
    if _is_model(shape.type):
        yield shape.type, ()
    elif get_origin(shape.type) is list:
        item = _unwrapped(get_args(shape.type)[0], (), None)
        if _is_model(item.type):
            yield item.type, ("[]",)
    elif get_origin(shape.type) in (Union, UnionType):
        for member in get_args(shape.type):
            choice = _unwrapped(member, (), None)
            if _is_model(choice.type):
                yield choice.type, ()


def _below(shape: Shape, part: str | int) -> Shape | None:
    if isinstance(part, int):
        return _unwrapped(get_args(shape.type)[0], (), None) if get_origin(shape.type) is list else None
    if _is_model(shape.type):
        for name, field in shape.type.model_fields.items():
            if part == (field.alias or name):
                return _unwrapped(field.annotation, tuple(field.metadata), field)
    if get_origin(shape.type) is dict:
        return _unwrapped(get_args(shape.type)[1], (), None)
    return None


def _choice(shape: Shape, tag: str | int) -> Shape:
    for member in get_args(shape.type):
        choice = _unwrapped(member, (), shape.field)
        # A choice that is no mapping has no path of its own: what is legal there is the whole choice.
        if _is_model(choice.type) and any(isinstance(bound, Tag) and bound.tag == tag for bound in choice.bounds):
            return choice
    return shape


def _unwrapped(annotation: Any, bounds: tuple[Any, ...], field: FieldInfo | None) -> Shape:
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            bounds += tuple(more)
        elif (
            get_origin(annotation) in (Union, UnionType)
            and len(rest := [a for a in get_args(annotation) if a is not type(None)]) == 1
        ):
            annotation = rest[0]
        else:
            # Bounds given by Field() inside Annotated are one level down.
            flat = [
                inner for bound in bounds for inner in (bound.metadata if isinstance(bound, FieldInfo) else [bound])
            ]
            return Shape(annotation, tuple(flat), field)


def _bound(shape: Shape, kind: type, attribute: str) -> Any:
    return next((getattr(bound, attribute) for bound in shape.bounds if isinstance(bound, kind)), None)


def _is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
