"""The bodies of answers: read to a limit, and parsed so that other threads can run meanwhile.

Python's JSON parser in C holds the interpreter lock until it is done. How long that takes depends on the number of
values: a string of 16 MiB takes some 20 ms, five million empty lists take seconds, in which no other store can be read.
A text that may have many values is therefore parsed by the parser in Python, which gives way every few milliseconds.
Only one such text is parsed at a time: several parsers would compete with the readers, and need memory at once.
"""

import http.client
import json
import threading
from json.decoder import JSONArray, JSONObject  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any, Final

from urllib3.exceptions import HTTPError

from secretfs.errors import DeadlineExceeded, MalformedAnswer
from secretfs.stores._http.failures import transport_error

LARGEST_ANSWER: Final = 16 << 20
"""Bytes. Larger than any value that Vault's or Kubernetes' own storage takes, and than a list of 100,000 names."""

MOST_VALUES: Final = 500_000
"""Strings, numbers, lists and objects in one answer."""

_AT_ONCE = 20_000  # values, which the parser in C reads within 5 ms
_LONGEST_WAIT = 30.0  # seconds for the large answers of others


class TooLarge(MalformedAnswer):
    """The answer has more bytes than are read."""


def read_body(where: str, response: Any, largest: int = LARGEST_ANSWER) -> bytes:
    """Read the answer of a urllib3 response, and give the connection back.

    Raises `TooLarge`, for an answer that says so before the first byte is read, and what `transport_error` returns.
    """
    try:
        announced = response.length_remaining
        body = b""
        if announced is None or announced <= largest:
            # Nothing is encoded; with this urllib3 reads on until there is as much as was announced.
            body = response.read(largest + 1, decode_content=True)
    except (HTTPError, http.client.HTTPException, OSError) as error:
        response.close()  # a connection with unread bytes is of no further use
        raise transport_error(where, error) from None  # some of these errors quote the answer
    except BaseException:
        response.close()
        raise
    if len(body) > largest or (announced or 0) > largest:
        response.close()
        raise TooLarge(f"{where}: the answer is larger than {largest >> 20} MiB")
    response.release_conn()
    return body


class _GivingWay(json.JSONDecoder):
    """Decodes with the scanner that is written in Python, and counts values. For one text."""

    def __init__(self) -> None:
        super().__init__()
        self.parse_object = self._object
        self.parse_array = self._array
        self.scan_once = self._scan = py_make_scanner(self)
        self._values = 0

    def _object(self, text_and_end: Any, strict: Any, _: Any, *hooks: Any) -> Any:
        return JSONObject(text_and_end, strict, self._count, *hooks)

    def _array(self, text_and_end: Any, _: Any) -> Any:
        return JSONArray(text_and_end, self._count)

    def _count(self, text: str, at: int) -> Any:
        self._values += 1
        if self._values > MOST_VALUES:
            raise ValueError("too many values")
        return self._scan(text, at)


_ONE_AT_A_TIME = threading.Lock()


def parse_json(text: str) -> Any:
    """Parse JSON text. Raises ValueError or RecursionError; the first may carry the text."""
    if text.count(",") + text.count("[") + text.count("{") <= _AT_ONCE:
        return json.loads(text)
    if not _ONE_AT_A_TIME.acquire(timeout=_LONGEST_WAIT):
        raise DeadlineExceeded("other large answers are being read")
    try:
        return _GivingWay().decode(text)
    finally:
        _ONE_AT_A_TIME.release()
