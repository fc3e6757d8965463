"""Text as parts of other formats: for a shell, for YAML and for Java's properties. Pure.

Each function returns text that a reader of the format turns back into exactly what went in.
"""

import json
import re
from typing import Final

_NOT_IN_A_SHELL_NAME: Final = re.compile(r"[^A-Za-z0-9_]")
_json: Final = json.JSONEncoder(ensure_ascii=False).encode

_NOT_IN_YAML: Final = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""What JSON leaves as it is, and YAML 1.1 or 1.2 allows only as an escape, or reads as the end of a line."""
_LONGEST_YAML_KEY: Final = 1024
"""Characters of a key that needs no question mark before it (YAML 1.2.2, section 7.4.2)."""

_PROPERTY_ESCAPES: Final = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\f": "\\f"}
_IN_A_PROPERTY_KEY: Final = re.compile(r"[\\\t\n\r\f =:#!]|[^\x20-\x7e]")
_IN_A_PROPERTY: Final = re.compile(r"\A +|[\\\t\n\r\f]|[^\x20-\x7e]")


def shell_name(name: str) -> str:
    """Turn a name into one that a shell variable can have. Two names may get the same one."""
    safe = _NOT_IN_A_SHELL_NAME.sub("_", name)
    return f"_{safe}" if not safe or safe[0].isdigit() else safe


def shell_word(value: bytes) -> bytes:
    """Quote a value as one word of a shell. There must be no NUL byte in it."""
    return b"'%s'" % value.replace(b"'", b"'\\''")


def yaml_string(text: str) -> str:
    """Return a string of YAML, on one line."""
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", _json(text))


def yaml_key(text: str) -> str:
    """Return the key of a block mapping of YAML, with its colon; for a long one that is two lines."""
    quoted = yaml_string(text)
    return f"{quoted}:" if len(quoted) < _LONGEST_YAML_KEY else f"? {quoted}\n:"


def property_key(text: str) -> str:
    """Return a key of a properties file, in ASCII (java.util.Properties, ``load``)."""
    return _IN_A_PROPERTY_KEY.sub(_property_escape, text)


def property_value(text: str) -> str:
    """Return a value of a properties file, in ASCII."""
    return _IN_A_PROPERTY.sub(_property_escape, text)


def _property_escape(match: re.Match[str]) -> str:
    text = match[0]
    if text.startswith(" "):  # spaces before a value are skipped
        return "\\ " * len(text)
    if text in _PROPERTY_ESCAPES:
        return _PROPERTY_ESCAPES[text]
    if text.isascii() and text.isprintable():
        return f"\\{text}"
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
