"""YAML nodes as yaml.v3 decodes them into Go structs: how Dapr reads its Configuration files.

Unlike component manifests (`secretfs.dapr.component_yaml`) nothing passes through JSON: field names are case-sensitive,
a key given twice is an error, a string field takes any scalar by its source text, and in a list of strings a null
vanishes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from secretfs.dapr.goyaml import MappingNode, Node, ScalarNode, SequenceNode, is_merge, merged_maps, resolve
from secretfs.dapr.yaml_field import YamlField, join
from secretfs.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Field(YamlField):
    """A field of a document, which may be null."""

    def string(self) -> str:
        """Read a string: the text of any scalar as it is written."""
        if self.is_null():
            return ""
        if not isinstance(self.node, ScalarNode):
            raise self._mismatch("a string")
        return _text(self.node)

    def elements(self) -> tuple["Field", ...]:
        """Read a list without its nulls."""
        if self.is_null():
            return ()
        if not isinstance(self.node, SequenceNode):
            raise self._mismatch("a list")
        items = (Field(f"{self.path}[{index}]", item.source, item) for index, item in enumerate(self.node.items))
        return tuple(item for item in items if not item.is_null())

    def has_nulls(self) -> bool:
        """Tell whether a list has entries that `elements` leaves out."""
        return isinstance(self.node, SequenceNode) and len(self.elements()) < len(self.node.items)

    def members(self) -> Mapping[str, "Field"]:
        """Read a map as the struct it is decoded into."""
        members: dict[str, Field] = {}
        if not self.is_null():
            if not isinstance(self.node, MappingNode):
                raise self._mismatch("a map")
            self._add_members(self.node, members)
        return members

    def _add_members(self, node: MappingNode, members: dict[str, "Field"]) -> None:
        """Add what ``members`` does not have: a key that is written here comes before what ``<<`` brings in."""
        _refuse_duplicates(key for key, _ in node.entries)
        for key, value in node.entries:
            if not is_merge(key):
                named = Field(f"a key of {self.path or 'the document'}", key.source, key)
                if not named.is_null():
                    name = named.string()
                    members.setdefault(name, Field(join(self.path, name), key.source, value))
        for key, value in node.entries:
            if is_merge(key):
                for merged in merged_maps(value):
                    self._add_members(merged, members)

    def _mismatch(self, wanted: str) -> ConfigurationError:
        kind = {MappingNode: "a map", SequenceNode: "a list"}.get(type(self.node), "a single value")
        return self.mismatch(wanted, kind)


def _text(node: ScalarNode) -> str:
    value = resolve(node)
    return value if isinstance(value, str) else node.text


def _refuse_duplicates(keys: Iterable[Node]) -> None:
    lines: dict[str, int] = {}
    for key in keys:
        if isinstance(key, ScalarNode):
            if key.text in lines:
                # Without the key: variables are expanded before the text is YAML.
                raise ConfigurationError(f"mapping key already defined at line {lines[key.text]}", key.source)
            lines[key.text] = key.source.line
