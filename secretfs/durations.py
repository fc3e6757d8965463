"""Durations as Go writes them: ``30s``, ``1h30m``, ``1.5ms`` (``time.ParseDuration``)."""

import re
from typing import Final

_NANOSECONDS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, micro sign
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM: Final = re.compile(r"(?=\.?[0-9])0*([0-9]{0,19})(?:\.([0-9]*))?([^0-9.]+)")
_LONGEST: Final = (1 << 63) - 1


def parse_duration(text: str) -> float:
    """Return the seconds that ``text`` means. Raises ValueError, whose message does not repeat the text."""
    sign, unsigned = (text[0], text[1:]) if text[:1] in ("+", "-") else ("+", text)
    if unsigned == "0":
        return 0.0
    nanoseconds, position = 0, 0
    while match := _TERM.match(unsigned, position):
        nanoseconds += _term(*match.groups(default=""))
        position = match.end()
    if not unsigned or position < len(unsigned):
        raise ValueError("not a duration such as 30s, 5m or 1h30m")
    # Go counts in an int64, which reaches one nanosecond further below zero.
    if nanoseconds > _LONGEST + (sign == "-"):
        raise ValueError("a duration longer than 292 years")
    return (-nanoseconds if sign == "-" else nanoseconds) / 1e9


def show_duration(seconds: float) -> str:
    """Write a duration as `parse_duration` reads it, in whole milliseconds: ``250ms``, ``1.5s``, ``1h30m``."""
    milliseconds = round(abs(seconds) * 1000)
    if milliseconds < 1000:
        text = f"{milliseconds}ms" if milliseconds else "0s"
    else:
        minutes, rest = divmod(milliseconds, 60_000)
        terms = ((minutes // 60, "h"), (minutes % 60, "m"), (rest / 1000, "s"))
        text = "".join(f"{number:g}{unit}" for number, unit in terms if number)
    return f"-{text}" if seconds < 0 and milliseconds else text


def _term(whole: str, fraction: str, unit: str) -> int:
    if unit not in _NANOSECONDS:
        raise ValueError("not a duration: the units are ns, us, ms, s, m and h")
    # Nineteen digits are as many as can matter: the largest unit has 13. The fraction is a float, as in Go.
    digits = fraction[:19]
    nanoseconds = float(digits or "0") * (_NANOSECONDS[unit] / 10 ** len(digits))
    return int(whole or "0") * _NANOSECONDS[unit] + int(nanoseconds)
