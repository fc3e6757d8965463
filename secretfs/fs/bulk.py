"""A whole store in one file. Pure: secrets in, bytes out.

The JSON form is Dapr's bulk response, byte for byte where Dapr can express it: keys sorted, no white space, ``<``,
``>`` and ``&`` escaped as Go's encoder does, a newline at the end. Any sh can source the shell form, whatever the
values are.

Both are made secret by secret. They are made in a thread, and one long call in C would hold the interpreter, and with
it the loop, until it ends.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping

from secretfs.errors import AmbiguousNames, NotRepresentable
from secretfs.fs.keys import Bulk
from secretfs.store import Secret

_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode
_GO_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
_NOT_IN_A_SHELL_NAME = re.compile(r"[^A-Za-z0-9_]")


def render_json(secrets: Mapping[str, Secret]) -> bytes:
    """Render ``{name: {key: value}}``. A value that is not UTF-8 becomes ``{"base64": "..."}``."""
    return b"{" + b",".join(_dump(name) + b":" + _dump(_plain(secrets[name])) for name in sorted(secrets)) + b"}\n"


def render_secret(secret: Secret, form: Bulk) -> bytes:
    """Render one secret: ``{key: value}`` as Dapr answers it, or ``KEY='value'`` lines."""
    if form is Bulk.JSON:
        return _dump(_plain(secret)) + b"\n"
    return render_env({key: Secret({key: value}) for key, value in secret.values.items()}, multi_valued=False)


def _plain(secret: Secret) -> dict[str, str | dict[str, str]]:
    return {key: _text(value) for key, value in secret.values.items()}


def _dump(plain: object) -> bytes:
    text = _encode(plain).translate(_GO_ESCAPES)
    # A name that is not UTF-8 (an environment variable may have one) holds lone surrogates: JSON can escape those.
    return text.encode("utf-8", "backslashreplace")


def render_env(secrets: Mapping[str, Secret], *, multi_valued: bool) -> bytes:
    """Render ``NAME='value'`` lines; ``secret_key`` names the values of a multi-valued store.

    Raises `AmbiguousNames` if two values get the same name, and `NotRepresentable` if a value contains a NUL byte: the
    file never lacks a value.
    """
    lines: dict[str, bytes] = {}
    origins: dict[str, str] = {}
    for origin, wanted, value in _variables(secrets, multi_valued=multi_valued):
        name = shell_name(wanted)
        if name in origins:
            raise AmbiguousNames(f"{origins[name]} and {origin} are both {name} in .bulk.env")
        if b"\0" in value:
            raise NotRepresentable(f"{origin} holds a NUL byte, which no shell variable can")
        origins[name] = origin
        lines[name] = b"%s='%s'\n" % (name.encode(), value.replace(b"'", b"'\\''"))
    return b"".join(lines[name] for name in sorted(lines))


def shell_name(name: str) -> str:
    """Turn a name into one that a shell variable can have."""
    safe = _NOT_IN_A_SHELL_NAME.sub("_", name)
    return f"_{safe}" if not safe or safe[0].isdigit() else safe


def _variables(secrets: Mapping[str, Secret], *, multi_valued: bool) -> Iterator[tuple[str, str, bytes]]:
    for name, secret in sorted(secrets.items()):
        for key, value in sorted(secret.values.items()):
            yield (f"{name}/{key}", f"{name}_{key}", value) if multi_valued else (name, name, value)


def _text(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
