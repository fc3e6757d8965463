"""The login of the Key Vault store: a chain of credential sources, of which the first that works is kept.

The chain is Dapr's (azidentity's ``ChainedTokenCredential``): after an unavailable source the next one is tried; a
refusal ends the chain. Beyond Dapr: when a token is refused or cannot be renewed, its credential is created again once,
so that a rotated certificate, token file or key causes no error.

`Login` is the token credential that the SDK's client gets. Safe to use from several threads; only one logs in.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from azure.core.credentials import AccessTokenInfo, TokenRequestOptions

from secretfs.errors import AccessDenied, ConfigurationError, DeadlineExceeded, StoreError, StoreUnavailable
from secretfs.stores.azure.transport import DeadlineTransport, Outcome

logger = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds for which a failed login is the answer for the next callers, too
_PAUSE_WITH_TOKEN = 30.0  # the same while the old token is still good
_RENEW_BEFORE = 300  # seconds before its end that a token is renewed


class Unavailable(Exception):
    """A credential source is not available here; the next one may be."""


class Credential(Protocol):
    """A credential of azure-identity."""

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        """Return a token, from a cache or from the authority."""


Explain = Callable[[Exception, Outcome], Exception]
"""Turns a failure of the SDK into a `StoreError`, or into `Unavailable`."""


class CredentialSource:
    """One way to log in. ``make`` creates its credential; ``explain`` turns failures of the SDK into errors.

    The vault names its tenant. Only a source that can choose, like the Azure CLI (``any_tenant``), gets that name.
    """

    def __init__(
        self, name: str, make: Callable[[], Credential], explain: Explain, *, any_tenant: bool = False
    ) -> None:
        self.name = name
        self._make = make
        self._explain = explain
        self._any_tenant = any_tenant
        self._credential: Credential | None = None

    def token(self, transport: DeadlineTransport, scope: str, options: TokenRequestOptions) -> AccessTokenInfo:
        """Return a token. A credential that worked before and now fails is created again, once."""
        credential, self._credential = self._credential, None
        if credential is not None:
            try:
                token = self._ask(credential, transport, scope, options)
            except (AccessDenied, Unavailable):
                pass  # what it was made of may have changed
            else:
                self._credential = credential
                return token
        credential = self._made()
        token = self._ask(credential, transport, scope, options)
        self._credential = credential
        return token

    def forget(self) -> None:
        """Drop the credential with all tokens that it has cached."""
        self._credential = None

    def try_inputs(self) -> None:
        """Raise what making the credential raises: ValueError, or `ConfigurationError`."""
        self._make()

    def _made(self) -> Credential:
        try:
            return self._make()
        except ConfigurationError as error:  # a certificate that could be read when the store was opened
            raise StoreUnavailable(str(error)) from None

    def _ask(
        self, credential: Credential, transport: DeadlineTransport, scope: str, options: TokenRequestOptions
    ) -> AccessTokenInfo:
        if not self._any_tenant:
            options = options.copy()
            options.pop("tenant_id", None)
        transport.forget()
        try:
            return credential.get_token_info(scope, options=options)
        except (StoreError, Unavailable):
            raise
        except Exception as error:  # noqa: BLE001 - azure-identity lets those of msal, requests and json through
            failure = self._explain(error, transport.outcome)
        raise failure  # not from the error, whose text may quote an answer


class Login:
    """The token credential of one store: tries the sources in order until one works, and keeps that one."""

    def __init__(self, component: str, sources: Sequence[CredentialSource], transport: DeadlineTransport) -> None:
        self.generation = 0
        """The number of tokens received so far."""
        self._component = component
        self._sources = sources
        self._transport = transport
        self._chosen: CredentialSource | None = None
        self._lock = threading.Lock()
        self._token: tuple[str, AccessTokenInfo, float] | None = None
        self._failed: tuple[StoreError, float] | None = None

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        """Return a token for one scope. Raises `StoreError`."""
        (scope,) = scopes
        if not self._lock.acquire(timeout=self._transport.time.remaining()):
            raise DeadlineExceeded("the login takes too long")
        try:
            return self._given(scope, options or {})
        finally:
            self._lock.release()

    def forget(self, generation: int) -> None:
        """Drop the token of this generation, which the vault refuses, and its credential. A newer token stays."""
        if not self._lock.acquire(timeout=self._transport.time.left()):
            return  # its holder is logging in
        try:
            if generation == self.generation:
                self._token = self._failed = None
                if self._chosen is not None:
                    self._chosen.forget()
        finally:
            self._lock.release()

    def _given(self, scope: str, options: TokenRequestOptions) -> AccessTokenInfo:
        now = time.time()
        known, renew_at = None, 0.0
        if self._token is not None and self._token[0] == scope and not options.get("claims"):
            _, known, renew_at = self._token
            if now < renew_at:
                return known
        try:
            token = self._got(scope, options, now, 0.0 if known is None else known.expires_on - now)
        except StoreError:
            if known is None or known.expires_on <= now:
                raise
            return known
        renew_before = min(_RENEW_BEFORE, (token.expires_on - now) / 2)
        self._token = scope, token, min(token.expires_on - renew_before, token.refresh_on or token.expires_on)
        self.generation += 1
        return token

    def _got(self, scope: str, options: TokenRequestOptions, now: float, old_is_good_for: float) -> AccessTokenInfo:
        if self._failed is not None and now < self._failed[1]:
            error = self._failed[0]
            raise type(error)(str(error))
        try:
            token = self._log_in(scope, options)
        except StoreError as error:
            pause = _PAUSE_WITH_TOKEN if old_is_good_for > _PAUSE_WITH_TOKEN else _PAUSE
            if old_is_good_for > 0:
                text = "%s: the token cannot be renewed, and is good for %d s more: %s"
                logger.warning(text, self._component, old_is_good_for, error)
            self._failed = error, time.time() + pause
            raise
        self._failed = None
        return token

    def _log_in(self, scope: str, options: TokenRequestOptions) -> AccessTokenInfo:
        reasons = []
        # Once a source has worked no other is tried: it might be another identity.
        for source in self._sources if self._chosen is None else [self._chosen]:
            try:
                token = source.token(self._transport, scope, options)
            except Unavailable as error:
                reasons.append(f"{source.name}: {error}")
                continue
            if self._chosen is None:
                logger.info("%s: logged in with %s", self._component, source.name)
            self._chosen = source
            return token
        raise StoreUnavailable(f"there is no way to log in: {'; '.join(reasons)}")
