"""YAML nodes as JSON, the way Dapr turns component YAML into Go structs.

Dapr reads a component as YAML, converts it to JSON (sigs.k8s.io/yaml) and decodes that (encoding/json). Three things a
user can see follow from it: field names match without regard to case, numbers and booleans become text where a field is
a plain string, and a ``value`` may be anything and arrives as its JSON text.

A `Field` is one place in a document; it names itself and its line when it is not what the reader asked for. It never
says what its value is.
"""

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from secretfs.dapr.goyaml import MappingNode, Node, ScalarNode, SequenceNode, Value, is_merge, merged_maps, resolve
from secretfs.dapr.yaml_field import YamlField, join
from secretfs.errors import ConfigurationError, Notice, Source
from secretfs.gojson import float_text, quoted
from secretfs.settings import nearest

Scalar = str | int | float | bool

_NOWHERE = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class Field(YamlField):
    """A field of a document, there or not. What is missing and what is null are one thing, as in encoding/json."""

    def string(self) -> str:
        """Read a string. Numbers and booleans become text, as they do for a string field of a Go struct."""
        value = self._scalar("a string")
        return "" if value is None else _coerced(value)

    def strict_string(self) -> str:
        """Read a string that must be one: sigs.k8s.io/yaml does not coerce fields of embedded structs."""
        value = self._scalar("a string")
        if not isinstance(value, str | None):
            raise self._mismatch("a string")
        return value or ""

    def boolean(self) -> bool:
        """Read a boolean. ``"true"`` in quotes is not one."""
        value = self._scalar("a boolean")
        if not isinstance(value, bool | None):
            raise self._mismatch("a boolean")
        return bool(value)

    def elements(self) -> tuple["Field", ...]:
        """Read a list."""
        if self.is_null():
            return ()
        if not isinstance(self.node, SequenceNode):
            raise self._mismatch("a list")
        return tuple(Field(f"{self.path}[{index}]", item.source, item) for index, item in enumerate(self.node.items))

    def members(self) -> "Object":
        """Read a map as the struct it is decoded into."""
        if self.is_null():
            return Object(self.path, self.source)
        if not isinstance(self.node, MappingNode):
            raise self._mismatch("a map")
        members = _members(self.node, self.path)
        return Object(self.path, self.source, {name: members[name] for name in sorted(members)})

    def json(self, strings: re.Pattern[str] = _NOWHERE) -> str:
        """Convert to the JSON text Dapr would have made: compact, keys sorted.

        ``strings`` matches the paths of fields that are strings in the Go struct, where every scalar becomes text.
        """
        return "null" if self.node is None else _json(self.node, self.path, strings)

    def property_text(self) -> str | None:
        """Read a property's value, which may be anything: a string as it is, all else as JSON; None for no value."""
        if self.is_null():
            return None
        value = resolve(self.node) if isinstance(self.node, ScalarNode) else None
        return value if isinstance(value, str) else self.json()

    def _scalar(self, wanted: str) -> Value:
        if self.node is None:
            return None
        if not isinstance(self.node, ScalarNode):
            raise self._mismatch(wanted)
        return resolve(self.node)

    def _mismatch(self, wanted: str) -> ConfigurationError:
        return self.mismatch(wanted, _describe(self.node))


@dataclass(frozen=True, slots=True)
class Object:
    """The fields of a map under the names they were written with, in the order encoding/json meets them."""

    path: str
    source: Source
    fields: Mapping[str, Field] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Field:
        """Find a field without regard to case. Raises `ConfigurationError` for one that is there in two spellings.

        Dapr merges the two, or lets one of them win, by rules that nobody knows by heart. A null counts as not there.
        """
        found = [member for spelling, member in self.fields.items() if spelling.casefold() == name.casefold()]
        given = [member for member in found if not member.is_null()]
        if len(given) > 1:
            first, second = sorted(given[:2], key=lambda member: member.source.line)
            message = f"{second.path} is the same field as {first.path} at line {first.source.line}"
            raise ConfigurationError(f"{message}: leave one of them out", second.source)
        return (given or found or [Field(join(self.path, name), self.source)])[-1]

    def unknown(self, known: Iterable[str]) -> list[Notice]:
        """Write a notice for each field that is none of ``known``."""
        names = tuple(known)
        folded = {name.casefold() for name in names}
        return [
            Notice(f"unknown field {member.path} is ignored{nearest(spelling, names)}", member.source)
            for spelling, member in self.fields.items()
            if spelling.casefold() not in folded
        ]


def _members(node: MappingNode, path: str) -> dict[str, Field]:
    """Index a map by its keys as JSON would spell them. The last of two equal keys counts."""
    return {name: Field(join(path, name), key.source, value) for name, key, value in _entries(node, path)}


def _entries(node: MappingNode, path: str) -> Iterator[tuple[str, Node, Node]]:
    """Yield keys and values with merge keys expanded where they stand: go-yaml v2 lets a later ``<<`` win."""
    for key, value in node.entries:
        if is_merge(key):
            for merged in reversed(merged_maps(value)):
                yield from _entries(merged, path)
        else:
            yield _key_text(key, path), key, value


def _key_text(key: Node, path: str) -> str:
    value = resolve(key) if isinstance(key, ScalarNode) else None
    if value is None or (type(value) is int and value >= 1 << 63):
        where = path or "the document"
        raise ConfigurationError(f"a key in {where} is {_describe(key)}: JSON has no such key", key.source)
    text = _coerced(value)
    return {"+Inf": ".inf", "-Inf": "-.inf", "NaN": ".nan"}.get(text, text) if isinstance(value, float) else text


def _describe(node: Node | None) -> str:
    if isinstance(node, SequenceNode):
        return "a list"
    if isinstance(node, MappingNode):
        return "a map"
    value = resolve(node) if node else None
    if value is None:
        return "null"
    return "a string" if isinstance(value, str) else "a boolean" if isinstance(value, bool) else "a number"


def _coerced(value: Scalar) -> str:
    """Turn a scalar into text as sigs.k8s.io/yaml does for string fields and map keys."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else float32_text(value)


def _json(node: Node, path: str, strings: re.Pattern[str]) -> str:
    if isinstance(node, MappingNode):
        members = _members(node, path)
        return "{" + ",".join(f"{quoted(name)}:{members[name].json(strings)}" for name in sorted(members)) + "}"
    if isinstance(node, SequenceNode):
        items = (_json(item, f"{path}[{index}]", strings) for index, item in enumerate(node.items))
        return "[" + ",".join(items) + "]"
    value = resolve(node)
    if value is not None and strings.fullmatch(path):
        value = _coerced(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            where = path or "the document"
            raise ConfigurationError(f"{where} is infinite or not a number: JSON has no such value", node.source)
        return float_text(value)
    return json.dumps(value)


def float32_text(value: float) -> str:
    """Write a float as Go's ``FormatFloat(v, 'g', -1, 32)``, which is what sigs.k8s.io/yaml does with one."""
    if math.isnan(value):
        return "NaN"
    single = _float32(value)
    if math.isinf(single):
        return "+Inf" if single > 0 else "-Inf"
    text = next(text for text in (f"{single:.{n}e}" for n in range(17)) if _float32(float(text)) == single)
    _, exponent = text.split("e")
    return text if single and not -4 <= int(exponent) < 6 else float_text(float(text))


def _float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)
