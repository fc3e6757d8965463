"""The login of the Secret Manager store: one token for all its requests, renewed before its end.

When a token is refused, or cannot be renewed, the credentials are made again, so that a rotated file causes no error.
Safe to use from several threads; only one logs in.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC
from typing import Any, Final

from google.auth import exceptions
from google.auth import transport as google_transport

from secretfs.errors import AccessDenied, DeadlineExceeded, StoreError, StoreUnavailable
from secretfs.stores._http.exchange import Answer, Exchange
from secretfs.stores.gcp.credentials import Credentials, NoCredentials

logger = logging.getLogger(__name__)

SDK_ERRORS: Final = (
    StoreError, exceptions.GoogleAuthError, OSError, ValueError, TypeError, LookupError, AttributeError,
)  # fmt: skip
"""What a refresh of google-auth raises."""
PAUSE: Final = 1.0
"""Seconds for which a failed login is the answer for the next callers, too."""
_PAUSE_WITH_TOKEN: Final = 30.0
_RENEW_BEFORE: Final = 225.0  # seconds before its end that a token is renewed, as Google's libraries do


class _Token:
    def __init__(self, text: str, ends: float, credentials: Credentials) -> None:
        self.text = text
        self.ends = ends
        self.credentials = credentials
        self.renew_at = ends - min(_RENEW_BEFORE, (ends - time.time()) / 2)


class Login:
    """Gives the token of one store. ``make`` makes the credentials, of what files and environment say now."""

    def __init__(self, component: str, make: Callable[[], Credentials], exchange: Exchange) -> None:
        self._component = component
        self._make = make
        self._exchange = exchange
        self._lock = threading.Lock()
        self._token: _Token | None = None
        self._failure: StoreError | None = None
        self._try_at = 0.0

    def token(self) -> str:
        """Return a token. Raises `StoreError`."""
        if not self._lock.acquire(timeout=self._exchange.time.remaining()):
            raise DeadlineExceeded("the login takes too long")
        try:
            return self._given()
        finally:
            self._lock.release()

    def forget(self, token: str) -> None:
        """Drop a token that is refused, and the credentials that it comes from. A newer one stays."""
        with self._lock:
            if self._token is not None and self._token.text == token:
                self._token = None

    def _given(self) -> str:
        now = time.time()
        if self._token is not None and now < self._token.renew_at:
            return self._token.text
        good = self._token is not None and now < self._token.ends
        if self._failure is None or now >= self._try_at:
            try:
                self._token, self._failure, good = self._renewed(self._token), None, True
            except StoreError as error:
                self._failure, self._try_at = error, now + (_PAUSE_WITH_TOKEN if good else PAUSE)
                if good:
                    logger.warning("%s: the token cannot be renewed yet: %s", self._component, error)
        if self._token is not None and good:
            return self._token.text
        failure = self._failure or StoreUnavailable("there is no token")
        raise type(failure)(str(failure))

    def _renewed(self, known: _Token | None) -> _Token:
        if known is not None:
            try:
                return self._ask(known.credentials)
            except AccessDenied:
                pass  # what the credentials were made of may have changed
        try:
            credentials = self._make()
        except NoCredentials as error:
            reason = str(error)
        else:
            return self._ask(credentials)
        raise AccessDenied(reason)

    def _ask(self, credentials: Credentials) -> _Token:
        try:
            credentials.refresh(Transport(self._exchange))
            ends = credentials.expiry.replace(tzinfo=UTC).timestamp() if credentials.expiry else time.time() + 60
            return _Token(str(credentials.token), ends, credentials)
        except SDK_ERRORS as error:
            failure = meaning(error)
        if type(credentials).__module__.startswith("google.auth.compute_engine"):
            failure = type(failure)(f"no other credentials than those of the metadata server: {failure}")
        raise failure  # here, where no error is being handled whose text may quote an answer


class _Response(google_transport.Response):  # type: ignore[misc]  # google-auth has no types
    """An answer, as google-auth reads one."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> Any:
        return self._answer.headers

    @property
    def data(self) -> bytes:
        return self._answer.body


class Transport(google_transport.Request):  # type: ignore[misc]
    """What google-auth sends requests with. It raises `StoreError`: google-auth knows none, and retries nothing."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __call__(
        self, url: str, method: str = "GET", body: Any = None, headers: Any = None, timeout: Any = None, **_: object
    ) -> _Response:
        """Send a request of google-auth."""
        data = body.encode() if isinstance(body, str) else body
        answer = self._exchange.send(method, url, dict(headers or {}), data, timeout)
        if answer.status in (408, 429) or answer.status >= 500:
            host = url.split("/")[2]
            raise StoreUnavailable(f"{host}: the login is not possible now ({answer.status})")
        return _Response(answer)


def meaning(error: Exception) -> StoreError:
    """Turn what a refresh of google-auth raised into an error."""
    match error:
        case StoreError():
            return type(error)(str(error))
        case exceptions.RefreshError() if error.retryable:
            return StoreUnavailable("the login is not possible now")
        case exceptions.TransportError():
            return StoreUnavailable("the metadata server gives no token")
        case OSError():
            return AccessDenied(f"{error.filename}: {error.strerror}" if error.filename else "a file cannot be read")
    return AccessDenied(f"the login is refused ({_reason(error)})")


_REASONS: Final = (
    "invalid_grant",
    "invalid_client",
    "invalid_target",
    "invalid_request",
    "unauthorized_client",
    "access_denied",
)


def _reason(error: Exception) -> str:
    """Return the code of OAuth in an error, if it is a known one, or the kind of the error."""
    text = str(error)
    return next((reason for reason in _REASONS if reason in text), type(error).__name__)
