"""What a refusal of Vault means, as an error that shows nothing of the answer."""

import http.client

from secretfs.errors import AccessDenied, MalformedAnswer, SecretNotFound, StoreError, StoreUnavailable
from secretfs.stores._http.failures import SPEAKS_TLS, wants_tls


def refusal(where: str, method: str, status: int, body: bytes) -> StoreError:
    """Say what a status means. ``body`` is searched for known phrases and never shown."""
    kind: type[StoreError] = StoreUnavailable
    match status:
        case 400 | 404 | 405:
            kind, reason = _objection(method, status, body)
        case 401 | 403:
            kind, reason = AccessDenied, _denial(body)
        case 429:
            reason = "too many requests"
        case 503 if b"sealed" in body:
            reason = "Vault is sealed"
        case 301 | 302 | 303 | 307 | 308:
            reason = "it sends us elsewhere, and a token does not follow redirects"
        case 500 if b"cannot renew" in body:  # past its longest life
            kind, reason = AccessDenied, "not renewed"
        case _ if status == 412 or status >= 500:
            reason = http.client.responses.get(status, "server error").lower()
        case _:
            kind, reason = MalformedAnswer, "unexpected status"
    return kind(f"{where}: {reason} ({status})")


def _objection(method: str, status: int, body: bytes) -> tuple[type[StoreError], str]:
    """Say what is wrong with the request."""
    if method == "LIST" and (status == 405 or b"unsupported path" in body):
        return AccessDenied, "the engine lists no names there"
    match status:
        case 404 if b"namespace not found" in body:
            what: tuple[type[StoreError], str] = AccessDenied, "there is no such namespace"
        case 404 if b"no handler for route" in body:  # said only to a token that has rights there
            what = AccessDenied, "no engine is mounted there"  # "not found" would be an empty folder
        case 404:
            what = SecretNotFound, "not found"
        case 400 if wants_tls(status, body):
            what = MalformedAnswer, SPEAKS_TLS
        case 400 if not body:  # go-cleanhttp's PrintablePathCheckHandler, which guards every path of the server
            what = SecretNotFound, "the server takes no such name"
        case 400 if b"Upgrading from non-versioned" in body:
            what = StoreUnavailable, "the engine is being upgraded to KV version 2"
        case 400 if method in ("POST", "PUT"):  # credentials that are wrong, a lease that is over
            what = AccessDenied, "refused"
        case _:
            what = MalformedAnswer, "unexpected status"
    return what


def _denial(body: bytes) -> str:
    # Vault gives one status to both, so that nobody without rights learns which engines there are.
    if b"preflight capability check" in body:
        return "no such engine, or the token has no rights in it"
    return "permission denied"
