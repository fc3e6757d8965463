"""JSON as Go's encoding/json reads and writes it: what Dapr makes of strings, and of values that are none."""

import json
import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
_HTML_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def unicode(text: str) -> str:
    """Replace halves of surrogate pairs by U+FFFD, also those that Python makes of bytes that are not UTF-8."""
    if text.isascii():  # known to Python without a look at the text, which may be large
        return text
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def float_text(value: float) -> str:
    """Write a finite float: shortest digits, an exponent only below 1e-6 and from 1e21."""
    if value and not 1e-6 <= abs(value) < 1e21:
        return repr(value).replace("e-0", "e-")
    from decimal import Decimal  # noqa: PLC0415 - hardly any secret is a number

    digits = f"{Decimal(repr(value)):f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def quoted(text: str) -> str:
    """Write a string."""
    return json.dumps(text, ensure_ascii=False).translate(_HTML_ESCAPES)


def compact(value: Any) -> str:
    """Write a value that was parsed from JSON: no white space, members sorted. Every number is a float, as in Go.

    Raises OverflowError for a number that no float can be.
    """
    match value:
        case str():
            return quoted(value)
        case dict():
            return "{" + ",".join(f"{quoted(name)}:{compact(value[name])}" for name in sorted(value)) + "}"
        case list():
            return "[" + ",".join(map(compact, value)) + "]"
        case bool() | None:
            return json.dumps(value)
    return float_text(float(value))
