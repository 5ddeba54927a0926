"""The whole state of a core as plain values, and back: what a journal begins with. It knows no class by name, so nothing is forgotten here
when the core learns to remember something new; a state is for the version that wrote it.

Each object is written once, as `[kind, content]`, in a list. Inside another one stands `[index]` for it, numbers and words stand for
themselves, and `["inf"]` for what JSON has no number for.
"""

from collections import OrderedDict, deque
from enum import Enum
from importlib import import_module
from math import isfinite
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final

from multislo_router.core.machine import RouterCore

ROOMS: Final = ("multislo_router.core.", "multislo_perf.latency")
"""Classes and functions of these, and no others, may be in a state."""
_CONTAINERS: Final[dict[str, type]] = {kind.__name__: kind for kind in (list, tuple, set, deque, dict, OrderedDict)}


class WrongState(ValueError):
    """It is not the state of a core of this version."""


def state_of(core: RouterCore) -> list[Any]:
    """All that can be reached from the core, which is the first. O(requests), some 80 us each."""
    found: list[Any] = [core]
    index_of = {id(core): 0}

    def value(thing: Any) -> Any:
        if thing is None or type(thing) in (int, str, bool):
            return thing
        if type(thing) is float:
            return thing if isfinite(thing) else [str(thing)]
        if id(thing) not in index_of:
            index_of[id(thing)] = len(found)
            found.append(thing)
        return [index_of[id(thing)]]

    names: dict[type, tuple[str, list[str]]] = {}
    written: list[Any] = []
    for thing in found:  # grows on the way
        kind = type(thing)
        if kind in (dict, OrderedDict):
            written.append([kind.__name__, [[value(key), value(held)] for key, held in thing.items()]])
        elif kind.__name__ in _CONTAINERS:
            content = [value(held) for held in thing]
            written.append([kind.__name__, content, thing.maxlen] if kind is deque else [kind.__name__, content])
        elif isinstance(thing, Enum):
            written.append(["enum", _name(kind), thing.value])
        elif isinstance(thing, type | FunctionType | BuiltinFunctionType):
            written.append(["global", _name(thing)])
        else:
            if kind not in names:
                names[kind] = (_name(kind), _slots(kind))
            name, slots = names[kind]
            fields = [field for field in (*getattr(thing, "__dict__", ()), *slots) if hasattr(thing, field)]
            written.append([name, {field: value(getattr(thing, field)) for field in fields}])
    return written


def core_of(state: list[Any]) -> RouterCore:
    """The same core once more, in the pure build (no object of a compiled class can be made without its parts). Raises `WrongState`."""
    try:
        return _restored(state)
    except (WrongState, TypeError, ValueError, LookupError, AttributeError, ImportError) as error:
        raise WrongState(f"state: not of a core of this version: {error}") from None


def _restored(state: list[Any]) -> RouterCore:
    made: dict[int, Any] = {}

    def value(written: Any) -> Any:
        if not isinstance(written, list):
            return written
        [index] = written
        return thing(index) if isinstance(index, int) else float(index)

    def thing(index: int) -> Any:
        """As long as it is not filled, what refers to it can be made already."""
        if index not in made:
            kind, content, *more = state[index]
            if kind == "tuple":
                made[index] = tuple([value(held) for held in content])
            elif kind == "enum":
                made[index] = _found(content)(*more)
            elif kind == "global":
                made[index] = _found(content)
            elif kind == "deque":
                made[index] = deque(maxlen=more[0])
            elif kind in _CONTAINERS:
                made[index] = _CONTAINERS[kind]()
            else:
                made[index] = object.__new__(_found(kind))
        return made[index]

    core = thing(0)
    if not isinstance(core, RouterCore):
        raise WrongState("its first object is none")
    for index, (kind, content, *_) in enumerate(state):
        if kind not in (*_CONTAINERS, "enum", "global"):
            for name, held in content.items():
                object.__setattr__(thing(index), name, value(held))
    for index, (kind, content, *_) in enumerate(state):  # Keys of dicts are whole by now.
        if kind in ("dict", "OrderedDict"):
            thing(index).update((value(key), value(held)) for key, held in content)
        elif kind in ("list", "deque"):
            thing(index).extend([value(held) for held in content])
        elif kind == "set":
            thing(index).update([value(held) for held in content])
    return core


def _slots(kind: type) -> list[str]:
    """Attributes that are in no `__dict__`: those of compiled classes, and those with slots."""
    names: list[str] = []
    for base in kind.__mro__:
        names += [*vars(base).get("__mypyc_attrs__", ()), *vars(base).get("__slots__", ())]
    return [name for name in dict.fromkeys(names) if not name.startswith("__")]


def _name(thing: Any) -> str:
    name = f"{thing.__module__}:{thing.__qualname__}"
    _found(name)
    return name


def _found(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not module.startswith(ROOMS):
        raise WrongState(f"{name} is no part of a core")
    return getattr(import_module(module), attribute)
