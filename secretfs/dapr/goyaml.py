"""YAML as Dapr's YAML libraries read it: nodes that know their line, and go-yaml's resolution of scalars.

PyYAML finds the structure; what a plain scalar means is decided here by the rules of go-yaml (``resolve.go``), which
are not PyYAML's: ``y`` is true, ``12:30`` is a string, ``08`` is eight. go-yaml is a translation of libyaml, so
libyaml's parser is used where PyYAML has it.

The size, the depth and the expansion of aliases are bounded, so no text costs much time or memory. This module knows
nothing of components or configurations, and no message of it quotes the text it reads: a password that begins with
``*`` is an alias to a parser.
"""

import base64
import binascii
import codecs
import math
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

import yaml

from secretfs.errors import ConfigurationError, Source
from secretfs.gojson import unicode

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 100
MAX_NODES: Final = 100_000
"""Counted with every alias expanded, as go-yaml counts its "excessive aliasing"."""

_TAG = "tag:yaml.org,2002:"
STRING_TAG: Final = _TAG + "str"
_BINARY, _MERGE = _TAG + "binary", _TAG + "merge"
_BOOL, _INT, _FLOAT, _NULL, _TIMESTAMP = (_TAG + kind for kind in ("bool", "int", "float", "null", "timestamp"))

_BARE_TAG = re.compile(r"(?:&[^\s,\[\]{}]+\s+)?!(?:<!>)?(?=[\s,\]}]|$)")
_SURROGATE = re.compile("[\ud800-\udfff]")

Value = str | int | float | bool | None
"""What a scalar resolves to."""


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A text, and how it was written. The text may be a credential."""

    text: str = field(repr=False)
    source: Source
    tag: str | None = None
    """The explicit tag, in full."""
    plain: bool = True
    """Written without quotes, so that go-yaml gives it a type."""

    size: ClassVar[int] = 1
    height: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """A list."""

    items: tuple["Node", ...]
    source: Source
    size: int
    height: int


@dataclass(frozen=True, slots=True)
class MappingNode:
    """A map, with every pair in the order written: duplicates and merge keys included."""

    entries: tuple[tuple["Node", "Node"], ...]
    source: Source
    size: int
    height: int


Node = ScalarNode | SequenceNode | MappingNode


def read_text(path: Path) -> str:
    """Read a file of YAML. Raises `ConfigurationError` when it cannot be read or is too big.

    It is UTF-8, or UTF-16 with a byte order mark, such as a Windows shell writes. Bytes that are not UTF-8 are left to
    `parse`, which refuses them: by then it is known which document they are in.
    """
    source = Source(str(path))
    try:
        # A FIFO that is called x.yaml would keep us waiting for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigurationError("not a regular file", source)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}", source) from None
    if len(data) > MAX_BYTES:
        raise ConfigurationError(f"larger than {MAX_BYTES} bytes", source)
    if not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-8-sig", "surrogateescape")
    try:
        return data.decode("utf-16")
    except UnicodeDecodeError:
        raise ConfigurationError("not UTF-16 text, as it begins", source) from None


def split_documents(text: str) -> Iterator[tuple[int, str]]:
    r"""Yield first line and text of each document, split where Dapr splits: at ``\n---`` to the end of that line.

    The cut is textual and comes before any YAML (dapr ``loader/disk/manifest.go`` splitYamlDoc). Dapr loses the
    document before a last line like ``--- # end`` that has no newline; we keep it.
    """
    start, line = 0, 1
    while (cut := text.find("\n---", start)) >= 0:
        yield line, text[start:cut]
        line += text.count("\n", start, cut) + 2
        start = text.find("\n", cut + 1) + 1
        if not start:
            return
    if start < len(text):
        yield line, text[start:]


def parse(text: str, path: str, first_line: int = 1, *, bare_tag: str | None = STRING_TAG) -> Node | None:
    """Read the first YAML document of ``text``; None when there is none. ``first_line`` is where it is in its file.

    ``bare_tag`` is what the tag ``!`` means: a string to go-yaml v2, nothing (None) to v3. Raises `ConfigurationError`.
    """
    if bad := _SURROGATE.search(text):
        raise ConfigurationError("not UTF-8 text", Source(path, first_line + text.count("\n", 0, bad.start())))
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    composer = _Composer(yaml.parse(text, Loader=loader), path, first_line, _BareTags(text, bare_tag))
    try:
        return composer.document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + first_line if mark else composer.line
        raise ConfigurationError(f"not valid YAML: {_unquoted(error.problem)}", Source(path, line)) from None
    except yaml.reader.ReaderError as error:
        line = first_line + text.count("\n", 0, error.position)
        raise ConfigurationError("not valid YAML: a character that YAML does not allow", Source(path, line)) from None
    except (ValueError, OverflowError):
        # PyYAML's own parser on "\UFFFFFFFF" and on %YAML directives with thousands of digits.
        source = Source(path, composer.line)
        raise ConfigurationError("not valid YAML: a character or a number out of range", source) from None


def _unquoted(problem: str | None) -> str:
    return re.sub(r"(tag handle) .*", r"\1", problem or "unexpected text", flags=re.DOTALL)


class _BareTags:
    """Finds the scalars whose tag is only ``!``, which libyaml forgets, and says what that means."""

    def __init__(self, text: str, meaning: str | None) -> None:
        self._text = text
        self.meaning = meaning

    def has(self, event: yaml.ScalarEvent) -> bool:
        if event.tag not in (None, "!") or event.start_mark is None:
            return False
        return _BARE_TAG.match(self._text, event.start_mark.index) is not None


class _Composer:
    """Builds the nodes of one document from PyYAML's events."""

    def __init__(self, events: Iterator[yaml.Event], path: str, first_line: int, bare_tags: "_BareTags") -> None:
        self._events = events
        self._bare_tags = bare_tags
        self._path = path
        self._first_line = first_line
        self._anchors: dict[str, Node | None] = {}
        self.line = first_line

    def document(self) -> Node | None:
        self._next()  # the start of the stream
        if isinstance(self._next(), yaml.StreamEndEvent):
            return None
        return self._node(self._next(), 1)

    def _next(self) -> yaml.Event:
        event = next(self._events)
        self.line = event.start_mark.line + self._first_line if event.start_mark else self.line
        return event

    def _node(self, event: yaml.Event, depth: int) -> Node:
        source = Source(self._path, self.line)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth, source)
        if depth > MAX_DEPTH:
            raise ConfigurationError(f"nested deeper than {MAX_DEPTH} levels", source)
        anchor = getattr(event, "anchor", None)
        if anchor:
            self._anchors[anchor] = None
        node = self._content(event, depth, source)
        if anchor:
            self._anchors[anchor] = node
        return node

    def _content(self, event: yaml.Event, depth: int, source: Source) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, source)
        if isinstance(event, yaml.SequenceStartEvent):
            items = tuple(self._children(yaml.SequenceEndEvent, depth))
            return SequenceNode(items, source, *_measure(items))
        children = tuple(self._children(yaml.MappingEndEvent, depth))
        pairs = tuple(zip(children[::2], children[1::2], strict=True))
        return MappingNode(pairs, source, *_measure(children))

    def _scalar(self, event: yaml.ScalarEvent, source: Source) -> ScalarNode:
        if _SURROGATE.search(event.value):
            raise ConfigurationError("not valid YAML: an escape that is not a Unicode character", source)
        tag = self._bare_tags.meaning if self._bare_tags.has(event) else event.tag
        return ScalarNode(event.value, source, tag, plain=not event.style)

    def _children(self, end: type[yaml.Event], depth: int) -> Iterator[Node]:
        size = 0
        while not isinstance(event := self._next(), end):
            child = self._node(event, depth + 1)
            size += child.size
            if size > MAX_NODES:
                raise ConfigurationError(f"more than {MAX_NODES} values once aliases are expanded", child.source)
            yield child

    def _alias(self, event: yaml.AliasEvent, depth: int, source: Source) -> Node:
        if event.anchor not in self._anchors:
            raise ConfigurationError("not valid YAML: unknown anchor (a value that begins with * needs quotes)", source)
        node = self._anchors[event.anchor]
        if node is None:
            raise ConfigurationError("an anchor's value contains itself", source)
        if depth + node.height - 1 > MAX_DEPTH:
            raise ConfigurationError(f"nested deeper than {MAX_DEPTH} levels", source)
        return node


def _measure(children: tuple[Node, ...]) -> tuple[int, int]:
    return 1 + sum(child.size for child in children), 1 + max((child.height for child in children), default=0)


def _implicit(node: ScalarNode) -> bool:
    return node.tag is None and node.plain


def is_merge(key: Node) -> bool:
    """Tell whether a key of a map is YAML's merge key, ``<<`` without quotes."""
    return isinstance(key, ScalarNode) and key.text == "<<" and (_implicit(key) or key.tag == _MERGE)


def merged_maps(value: Node) -> tuple[MappingNode, ...]:
    """Return the maps that the value of a merge key names, in the order written: the first is the most important."""
    named = value.items if isinstance(value, SequenceNode) else (value,)
    maps = tuple(node for node in named if isinstance(node, MappingNode))
    if len(maps) < len(named):
        raise ConfigurationError("a merge key (<<) takes a map or a list of maps", value.source)
    return maps


# --- resolution of scalars, go-yaml v2.4 resolve.go; v3 does the same to every text that v2 resolves ---

_WORDS: Final[dict[str, Value]] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_HEX_OCTAL_BINARY = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F]+)|0[oO]?([0-7]+)|0[bB]([01]+))")
_DECIMAL = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,19})")
_SIGNED_BINARY = re.compile(r"0b([+-][01]+)")
_DECIMAL_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_POINT_FLOAT = re.compile(r"\.[0-9](?:_?[0-9])*(?:[eE][-+]?[0-9](?:_?[0-9])*)?")
_CLOCK = r"\d\d?:\d\d?:\d\d?(?:\.\d+)?"
_TIME = re.compile(rf"\d{{4}}-\d\d?-\d\d?(?:[Tt]{_CLOCK}(?:Z|[+-]\d\d:\d\d)| {_CLOCK})?", re.ASCII)


def resolve(node: ScalarNode) -> Value:
    """Give a scalar the value go-yaml gives it. A timestamp stays the text it is."""
    if node.tag == _BINARY:
        return _decode_binary(node)
    if _implicit(node):
        return _resolve_plain(node.text)
    if node.tag not in {_BOOL, _INT, _FLOAT, _NULL, _TIMESTAMP}:
        return node.text
    value = _resolve_plain(node.text)
    if node.tag == _FLOAT and type(value) is int and -(1 << 63) <= value < 1 << 63:
        return float(value)
    if not _fits(node.tag, value):
        raise ConfigurationError(f"the value is not a !!{node.tag.removeprefix(_TAG)}", node.source)
    return value


def _fits(tag: str, value: Value) -> bool:
    if tag == _TIMESTAMP:
        return isinstance(value, str) and _TIME.fullmatch(value) is not None
    return type(value) is {_BOOL: bool, _INT: int, _FLOAT: float, _NULL: type(None)}[tag]


def _decode_binary(node: ScalarNode) -> str:
    try:
        data = base64.b64decode(re.sub(r"[\r\n]", "", node.text), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError("the !!binary value is not valid base64", node.source) from None
    # encoding/json writes U+FFFD for each byte that is not UTF-8.
    return unicode(data.decode("utf-8", "surrogateescape"))


def _resolve_plain(text: str) -> Value:
    if text in _WORDS:
        return _WORDS[text]
    if text[0] in "+-0123456789":
        return _resolve_number(text)
    if _POINT_FLOAT.fullmatch(text):
        return _finite(text)
    return text


def _resolve_number(text: str) -> Value:
    plain = text.replace("_", "")
    integer = _parse_int(plain)
    if integer is not None:
        return integer
    if _DECIMAL_FLOAT.fullmatch(plain):
        return _finite(text)
    return text


def _finite(text: str) -> float | str:
    value = float(text.replace("_", ""))
    return text if math.isinf(value) else value


def _parse_int(plain: str) -> int | None:
    """Go's ``ParseInt(s, 0, 64)``, then ``ParseUint``, which takes no sign; and go-yaml's own ``0b-11``."""
    if match := _HEX_OCTAL_BINARY.fullmatch(plain):
        sign, *digits = match.groups()
        value = next(int(sign + text, base) for text, base in zip(digits, (16, 8, 2), strict=True) if text)
    elif _DECIMAL.fullmatch(plain):
        sign, value = plain[0].strip("0123456789"), int(plain)
    elif match := _SIGNED_BINARY.fullmatch(plain):
        sign, value = "+", int(match[1], 2)
    else:
        return None
    return value if -(1 << 63) <= value < (1 << 63 if sign else 1 << 64) else None
