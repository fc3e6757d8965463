"""A whole store in one file. Pure: secrets in, bytes out.

The JSON form is Dapr's bulk response, byte for byte where Dapr can express it: keys sorted, no white space, ``<``,
``>`` and ``&`` escaped as Go's encoder does, a newline at the end. Any sh can source the shell forms, whatever the
values are. The YAML form is the same map as the JSON form; the properties form is for Java.

All are made secret by secret. They are made in a thread, and one long call in C would hold the interpreter, and with
it the loop, until it ends.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from secretfs.errors import AmbiguousNames, NotRepresentable
from secretfs.fs.keys import Bulk
from secretfs.quoting import property_key, property_value, shell_name, shell_word, yaml_key, yaml_string
from secretfs.store import Secret

_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode
_GO_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def render(secrets: Mapping[str, Secret], form: Bulk, *, multi_valued: bool) -> bytes:
    """Render all secrets of a store. Raises as `render_lines` does."""
    if form is Bulk.JSON:
        return render_json(secrets)
    if form is Bulk.YAML:
        return render_yaml(secrets)
    return render_lines(secrets, form, multi_valued=multi_valued)


def render_json(secrets: Mapping[str, Secret]) -> bytes:
    """Render ``{name: {key: value}}``. A value that is not UTF-8 becomes ``{"base64": "..."}``."""
    return b"{" + b",".join(_dump(name) + b":" + _dump(_plain(secrets[name])) for name in sorted(secrets)) + b"}\n"


def render_yaml(secrets: Mapping[str, Secret]) -> bytes:
    """Render the same as YAML, in block style. A value that is not UTF-8 is ``!!binary``."""
    if not secrets:
        return b"{}\n"
    return b"".join(_yaml_of(name, secrets[name]) for name in sorted(secrets))


def render_secret(secret: Secret, form: Bulk) -> bytes:
    """Render one secret: ``{key: value}`` as Dapr answers it or in YAML, or a line for each key."""
    if form is Bulk.JSON:
        return _dump(_plain(secret)) + b"\n"
    if form is Bulk.YAML:
        return _to_bytes("".join(_yaml_lines(secret))) or b"{}\n"
    return render_lines({key: Secret({key: value}) for key, value in secret.values.items()}, form, multi_valued=False)


def _plain(secret: Secret) -> dict[str, str | dict[str, str]]:
    return {key: _text(value) for key, value in secret.values.items()}


def _dump(plain: object) -> bytes:
    return _to_bytes(_encode(plain).translate(_GO_ESCAPES))


def _to_bytes(text: str) -> bytes:
    # A name that is not UTF-8 (an environment variable may have one) holds lone surrogates: JSON can escape those.
    return text.encode("utf-8", "backslashreplace")


def _yaml_of(name: str, secret: Secret) -> bytes:
    lines = "".join(_yaml_lines(secret, "  "))
    return _to_bytes(f"{yaml_key(name)}\n{lines}" if lines else f"{yaml_key(name)} {{}}\n")


def _yaml_lines(secret: Secret, indent: str = "") -> Iterator[str]:
    for key, value in sorted(secret.values.items()):
        text = _text(value)
        shown = yaml_string(text) if isinstance(text, str) else f'!!binary "{text["base64"]}"'
        yield indent + yaml_key(key).replace("\n", f"\n{indent}") + f" {shown}\n"


class _Lines(NamedTuple):
    """A format with a line for each value."""

    name: Callable[[str], str]
    """Makes a name out of that of a value, whose parts are joined by ``joint``."""
    joint: str
    line: Callable[[str, bytes], bytes]
    """Raises ValueError, with the reason, for a value that cannot be in such a file."""


def _shell_line(name: str, value: bytes) -> bytes:
    if b"\0" in value:
        raise ValueError("holds a NUL byte, which no shell variable can")
    return b"%s=%s\n" % (name.encode(), shell_word(value))


def _property_line(name: str, value: bytes) -> bytes:
    try:
        return f"{property_key(name)}={property_value(value.decode())}\n".encode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8, and properties are text") from None


_LINES: Mapping[Bulk, _Lines] = {
    Bulk.ENV: _Lines(shell_name, "_", _shell_line),
    Bulk.EXPORT: _Lines(shell_name, "_", lambda name, value: b"export " + _shell_line(name, value)),
    Bulk.PROPERTIES: _Lines(lambda name: name.replace("/", "."), ".", _property_line),
}


def render_lines(secrets: Mapping[str, Secret], form: Bulk, *, multi_valued: bool) -> bytes:
    """Render a line for each value, sorted; secret and key name the values of a multi-valued store.

    Raises `AmbiguousNames` if two values get the same name, and `NotRepresentable` if the format cannot have a value:
    the file never lacks one.
    """
    lines: dict[str, bytes] = {}
    origins: dict[str, str] = {}
    make, where = _LINES[form], f".bulk.{form.value}"
    for origin, wanted, value in _values(secrets, make.joint, multi_valued=multi_valued):
        name = make.name(wanted)
        if name in origins:
            raise AmbiguousNames(f"{origins[name]} and {origin} are both {name} in {where}")
        try:
            lines[name] = make.line(name, value)
        except ValueError as error:
            raise NotRepresentable(f"{where}: {origin} {error}") from None
        origins[name] = origin
    return b"".join(lines[name] for name in sorted(lines))


def _values(secrets: Mapping[str, Secret], joint: str, *, multi_valued: bool) -> Iterator[tuple[str, str, bytes]]:
    for name, secret in sorted(secrets.items()):
        for key, value in sorted(secret.values.items()):
            yield (f"{name}/{key}", f"{name}{joint}{key}", value) if multi_valued else (name, name, value)


def _text(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
