"""An API of JSON whose requests are signed: sending, parsing, and what its errors mean.

The stores say how a request is signed and which codes there are. Codes are shown when they are known; the texts of
answers are never shown, because they could hold anything.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import quote

from secretfs.errors import (
    ConfigurationError,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.store import StoreContext
from secretfs.stores._http.address import endpoint
from secretfs.stores._http.exchange import Exchange
from secretfs.stores._http.failures import LacksRight, NotKnown
from secretfs.stores._http.trust import system_trust

Meaning = tuple[type[StoreError], str]

NOT_FOUND: Final[Meaning] = (SecretNotFound, "not found")
NO_NAME: Final[Meaning] = (SecretNotFound, "no name that the store takes")
THROTTLED: Final[Meaning] = (StoreUnavailable, "too many requests")
SERVER_ERROR: Final[Meaning] = (StoreUnavailable, "server error")


KEYS_REFUSED: Final[Meaning] = (NotKnown, "the access keys are refused")
OUR_CLOCK: Final[Meaning] = (NotKnown, "the clock of this machine is wrong: the time of the signature is refused")
NO_RIGHT: Final[Meaning] = (LacksRight, "no policy lets this identity do that")

_REGION: Final = re.compile(r"[a-z0-9-]{1,63}")


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is to be signed."""

    method: str
    host: str
    path: str = "/"
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    """By lower-case name."""
    body: bytes = b""

    @property
    def target(self) -> str:
        """Path and query."""
        return f"{self.path}?{canonical_query(self.query)}" if self.query else self.path


Sign = Callable[[Request], Mapping[str, str]]
"""Returns the headers of a request, signed."""


class Api:
    """Sends signed requests within the deadline of a store."""

    def __init__(self, context: StoreContext, sign: Sign, codes: Mapping[str, Meaning]) -> None:
        self.exchange = Exchange(context.deadline, system_trust(context.component))
        self._sign = sign
        self._codes = codes
        self._endpoint = endpoint(context.annotations, "https://api.example.com")

    def send(self, request: Request) -> tuple[int, Any]:
        """Send a request. Returns status and parsed answer; None for one that is not JSON. Raises `StoreError`."""
        address = self._endpoint or f"https://{request.host}"
        if self._endpoint:
            host = self._endpoint.partition("//")[2]
            request = replace(request, host=host)
        headers = {"accept": "application/json", "host": request.host, **self._sign(request)}
        answer = self.exchange.send(request.method, address + request.target, headers, request.body or None)
        return answer.status, answer.json()

    def refusal(self, where: str, status: int, code: Any) -> StoreError:
        """Turn an error in an answer into one of ours: by its code, by what comes before its dots, then by status."""
        text = code if isinstance(code, str) else ""
        known = text
        while known and known not in self._codes:
            known = known.rpartition(".")[0]
        if known:
            kind, reason = self._codes[known]
            return kind(f"{where}: {reason} ({known})")
        kind, reason = _by_status(status)
        return kind(f"{where}: {reason} ({status})")


def _by_status(status: int) -> Meaning:
    if status == 429:
        return THROTTLED
    if status >= 500:
        return SERVER_ERROR
    if status in (401, 403):
        return NO_RIGHT
    return MalformedAnswer, "an answer that is not known"


def require_region(name: str, region: str) -> None:
    """Raise `ConfigurationError` for what is no region: it becomes a part of a host name."""
    if not _REGION.fullmatch(region):
        raise ConfigurationError(f"{name} is not the name of a region")


# --- what signatures are made of ---


def canonical(request: Request, headers: Mapping[str, str], path: str = "") -> tuple[str, str]:
    """Return the names of the headers that are signed, and what the clouds call the canonical request."""
    names = ";".join(sorted(headers))
    lines = (request.method, path or request.path, canonical_query(request.query), _canonical_headers(headers))
    return names, "\n".join((*lines, names, digest(request.body)))


def canonical_query(query: Mapping[str, str]) -> str:
    """Write a query: sorted, percent-encoded as RFC 3986 says."""
    return "&".join(f"{quote(name, safe='~')}={quote(query[name], safe='~')}" for name in sorted(query))


def _canonical_headers(headers: Mapping[str, str]) -> str:
    """Write headers, which have lower-case names: sorted, one on a line."""
    return "".join(f"{name}:{headers[name].strip()}\n" for name in sorted(headers))


def digest(data: bytes | str) -> str:
    """Return the hexadecimal SHA-256 of bytes or text."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def keyed(key: bytes, text: str) -> bytes:
    """Return the HMAC-SHA-256 of a text."""
    return hmac.digest(key, text.encode(), "sha256")
