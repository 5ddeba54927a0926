"""YAML text to plain values (dict, list, str, int, float, bool, None), with every mistake of the text itself as a problem: syntax,
keys given twice, values that have no place in a manifest. Called by `multislo_api.manifest` before any field is looked at.

Scalars resolve as an API server's YAML reader does, but for times and base 60 ("1:30" and "2026-01-01" are text).
"""

import math
import re
from typing import Any

import yaml

from multislo_api.problems import Path, Problem, printable, shown

BYTES_MAX = 1 << 20
"""Bytes of one file. An API server takes at most 1.5 MiB of one object; a manifest is a few KB."""
VALUES_MAX = 10_000
"""Values of one file after its aliases are written out: a few nested aliases can stand for billions."""
DEPTH_MAX = 64
"""Levels of nesting; a pod template has about ten. An alias within itself ends here too."""

_TAG = "tag:yaml.org,2002:"
_INT = r"[-+]?(?:0|[1-9][0-9_]*|0o?[0-7]+|0x[0-9a-fA-F]+)"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_TRUE = ("yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON")
_FALSE = ("no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF")
_SCALARS: list[tuple[str, str, str]] = [
    ("bool", "|".join(_TRUE + _FALSE), "yYnNtTfFoO"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", "~|null|Null|NULL|", "~nN"),
    ("merge", "<<", "<"),
]


class _Loader(yaml.SafeLoader):
    """Resolves scalars by `_SCALARS` alone, and stops at too many brackets while it still scans quickly (a thousand take seconds)."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > DEPTH_MAX:
            raise _Refused(_too_deep())
        super().fetch_flow_collection_start(TokenClass)


class _Dumper(yaml.SafeDumper):
    """Writes in quotes whatever `_Loader` would take for something else than text."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Other styles lose some line breaks (U+0085); this one escapes whatever it must.
        return self.represent_scalar(f"{_TAG}str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


for _side in (_Loader, _Dumper):
    _side.yaml_implicit_resolvers = {}
    for _name, _pattern, _first in _SCALARS:
        _starts = [*_first, ""] if _name == "null" else [*_first]
        _side.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _starts)


class _Refused(Exception):
    """The document as a whole is refused; no value of it is worth looking at."""


def read_documents(text: str) -> tuple[list[object], list[Problem]]:
    """The documents of a YAML text (empty ones left out), and the problems of the text. Never raises."""
    reader = _Reader()
    documents = []
    try:
        for node in yaml.compose_all(text, Loader=_Loader):
            document = reader.value(node, ())
            if document is not None:
                documents.append(document)
    except _Refused as refused:
        return [], [Problem((), str(refused))]
    except RecursionError:
        return [], [Problem((), _too_deep())]
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        return [], [Problem((), _syntax(error))]
    return documents, reader.problems


def write_document(document: dict[str, Any]) -> str:
    """YAML text that `read_documents` reads as the same values."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


class _Reader:
    """Nodes to values. A value that cannot be used becomes a problem and None."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._values = 0

    def value(self, node: yaml.Node, path: Path, depth: int = 0) -> object:
        self._values += 1
        if self._values > VALUES_MAX:
            raise _Refused(
                f"the file holds more than {VALUES_MAX} values once its aliases are written out; a manifest has some hundred"
            )
        if depth > DEPTH_MAX:
            raise _Refused(_too_deep())
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        return self._problem(path, f"the tag {_tag(node)} has no place in a manifest; leave it out")

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        merged: list[object] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                source = self.value(value_node, path, depth + 1)
                merged += source if isinstance(source, list) else [source]
                continue
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) and key_node.tag == f"{_TAG}str" else None
            if key is None or not _is_unicode(key):
                line = f"line {key_node.start_mark.line + 1}"
                what = shown(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                self._problem(
                    path, f"{line}: the key {what} must be text" + ("; write it in quotes" if key is None else "")
                )
            elif key in values:
                self._problem(
                    (*path, key), f"given twice, again on line {key_node.start_mark.line + 1}; a key may be given once"
                )
            else:
                values[key] = self.value(value_node, (*path, key), depth + 1)
        for source in merged:
            if isinstance(source, dict):
                values = source | values
            else:
                self._problem(path, f'"<<": {shown(source)} must be a mapping, or a list of mappings, to merge')
        return values

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> object:
        text: str = node.value
        match node.tag.removeprefix(_TAG):
            case "str" | "merge":
                return text if _is_unicode(text) else self._problem(path, f"{shown(text)} must be valid Unicode text")
            case "null":
                return None
            case "bool" if text in _TRUE or text in _FALSE:
                return text in _TRUE
            case "int" if re.fullmatch(_INT, text):
                number = _integer(text)
                if -(1 << 63) <= number < 1 << 63:
                    return number
                return self._problem(path, f"{_cut(text)} must be an integer of at most 64 bits")
            case "float" if re.fullmatch(_FLOAT, text):
                real = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
                return real if math.isfinite(real) else self._problem(path, f"{_cut(text)} must be a finite number")
            case "bool" | "int" | "float" as name:
                return self._problem(path, f"{shown(text)} must be what its tag !!{name} says")
            case _:
                return self._problem(path, f"the tag {_tag(node)} has no place in a manifest; leave it out")

    def _problem(self, path: Path, text: str) -> object:
        self.problems.append(Problem(path, text))
        return None


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    if len(digits) > 70:  # Longer than 64 bits in any base, and than int() takes.
        return 1 << 64
    bare = digits.lstrip("+-")
    base = 16 if bare.startswith("0x") else 8 if bare.startswith("0") else 10
    if base == 8:
        digits = digits.replace("o", "")
    return int(digits, base)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _tag(node: yaml.Node) -> str:
    tag = str(node.tag)
    return _cut(printable(f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) else tag))


def _too_deep() -> str:
    return f"the file nests values deeper than {DEPTH_MAX} levels (or an alias holds itself); a manifest has about ten levels"


def _syntax(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = error.problem or error.context or "syntax error"
        return f"{where}the file must be YAML: {printable(what)}"
    return f"the file must be YAML: {printable(' '.join(str(error).split()))[:200]}"
