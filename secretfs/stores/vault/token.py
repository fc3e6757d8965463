"""The life of a token: renewed in the background, replaced by logging in again, given back at the end.

Any number of threads may use a token while one of them renews or replaces it. A thread that needs a token that is not
there logs in; the others wait for that, no longer than they may.
"""

import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from secretfs.errors import AccessDenied, DeadlineExceeded, MalformedAnswer, StoreError, StoreUnavailable
from secretfs.stores.vault.http import PoolAdapter
from secretfs.stores.vault.renewal import Clock, LeaseTerm, Scheduler, Token, retry_at

LOOKUP_INTERVAL = 1.0
"""Seconds between two looks whether a token is dead or was rightly refused, and between two refused logins."""
LOOKUP_INTERVAL_IF_YOUNG = 30.0
"""The same, for tokens that may not look themselves up: they seem dead while they are `YOUNG`."""
YOUNG = 5.0
FIRST_LOOKUP = 5.0
"""Seconds after its first use until a given token is looked at: a program that is as short-lived needs no renewal."""
CLOSE_TIMEOUT = 2.0
"""Seconds that giving everything back may take."""

_MOST_TARGETS = 10_000

T = TypeVar("T")

log = logging.getLogger(__name__)


class Session:
    """The token of a store that logs in: a `Credential`. The first request logs in."""

    revokes_at_close = True

    def __init__(
        self,
        component: str,
        login: Callable[[PoolAdapter], Mapping[str, Any]],
        adapter: PoolAdapter,
        scheduler: Scheduler,
        *,
        changed: Callable[[str], None],
        lent: Callable[[], None],
        clock: Clock = time.monotonic,
    ) -> None:
        """Call ``changed`` with each new token, as soon as all threads get it, and ``lent`` when `tokens` has changed.

        Any thread may call them, from the first request on.
        """
        self._component = component
        self._login = login
        self._adapter = adapter
        self._scheduler = scheduler
        self._clock = clock
        self._lock = threading.Lock()
        self._current: Token | None = None
        self._previous: list[Token] = []
        self._refused: tuple[float, StoreError] | None = None
        self._looked_up = -math.inf
        self._dead = ""
        self._lookup_interval = LOOKUP_INTERVAL
        self._targets: set[str] = set()
        self._closed = threading.Event()
        self._changed = changed
        self._lent = lent

    @property
    def tokens(self) -> tuple[Token, ...]:
        """All tokens that are to be given back at the end, the current one last."""
        current = self._current
        return (*self._previous, *([current] if current else []))

    def adopt(self, tokens: Sequence[Token]) -> None:
        """Go on with the tokens of a predecessor, unless we have logged in already. A dead one is found out in use."""
        if self._current is None and tokens:
            *self._previous, current = tokens
            self._install(current)
        else:
            self._previous += tokens

    def hand_over(self) -> None:
        """Leave our tokens to a successor."""
        self._closed.set()
        self._scheduler.close()

    def __call__(self) -> str:
        """Return the token, logging in when there is none that lives. Raises `StoreError`."""
        token = self._current
        if token is None or self._clock() >= token.term.expires:
            with self._exclusively():
                other = self._current
                token = self._log_in() if other is None or other is token else other
        return token.value

    def accepted(self, target: str) -> None:
        """Remember what tokens of this login may do, so that a refusal of it is worth a look at any time."""
        if target not in self._targets:
            if len(self._targets) >= _MOST_TARGETS:
                self._targets.clear()
            self._targets.add(target)

    def replaced(self, token: str, target: str) -> bool:
        """After a refusal: look whether the token is dead, and then log in.

        What was never allowed is probably refused by a policy: that is worth one look a second in all.
        """
        with self._exclusively():
            if self._current is None or self._current.value != token:
                return True
            now = self._clock()
            if token != self._dead:
                if target not in self._targets and now < self._looked_up + self._lookup_interval:
                    return False
                lives = now < self._current.term.expires and self._is_alive(token)
                self._looked_up = now
                self._targets.discard(target)
                if lives:
                    return False
                self._dead = token
            if now < self._current.term.since + YOUNG:
                self._lookup_interval = LOOKUP_INTERVAL_IF_YOUNG
            self._log_in()
            return True

    def close(self) -> None:
        """Give our tokens back, in a bounded time, and as far as the server answers."""
        self._closed.set()
        self._scheduler.close()
        with self._adapter.connections.within(CLOSE_TIMEOUT), suppress(StoreError), self._exclusively():
            ours = [*self._previous, *([self._current] if self._current else [])]
            self._current, self._previous = None, []
            for token in ours:
                if self._clock() < token.term.expires:
                    self._revoke(token.value)

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=self._adapter.connections.remaining()):
            raise DeadlineExceeded("no login in time")
        try:
            yield
        finally:
            self._lock.release()

    def _log_in(self) -> Token:
        """Get another token. The server's "no" is not asked for again at once."""
        if self._closed.is_set():
            raise StoreUnavailable("the store is closed")
        if self._refused is not None and self._clock() < self._refused[0] + LOOKUP_INTERVAL:
            raise copy.copy(self._refused[1])
        since = self._clock()
        try:
            auth = self._login(self._adapter)
            token = Token(
                auth["client_token"], LeaseTerm.lent(since, auth.get("lease_duration"), auth.get("renewable"))
            )
        except (AccessDenied, MalformedAnswer) as error:
            self._refused = self._clock(), copy.copy(error)
            raise
        self._refused = None
        if self._closed.is_set():
            self._revoke(token.value)
            raise StoreUnavailable("the store is closed")
        if self._current is not None:
            # Not given back now: others may be using it, and it takes all leases along.
            self._previous = [old for old in self._previous if since < old.term.expires] + [self._current]
        self._install(token)
        self._changed(token.value)
        log.debug("%s: logged in", self._component)
        return token

    def _install(self, token: Token) -> None:
        self._current = token
        self._scheduler.at(token.term.due, self, self._renew_in_background)
        self._lent()

    def _renew_in_background(self) -> None:
        """Renew the token, or get another one while this one still lives. Runs in the background."""
        with self._adapter.connections.within():
            try:
                with self._exclusively():
                    self._renew()
            except StoreError as error:
                log.info("%s: the token is not renewed: %s", self._component, error)
                again = retry_at(self._clock(), self._current.term) if self._current else None
                if again is not None:  # else it has ended, and the next reader logs in
                    self._scheduler.at(again, self, self._renew_in_background)

    def _renew(self) -> None:
        token = self._current
        if token is None or self._clock() < token.term.due:
            return  # somebody else was faster
        if not token.term.last:
            try:
                self._install(Token(token.value, renewed(self._adapter.bearing(token.value), token.term, self._clock)))
            except AccessDenied:
                log.debug("%s: the server does not renew the token", self._component)
            except StoreError:
                if self._clock() < token.term.expires - token.term.ttl / 3:
                    raise
            else:
                return
        self._log_in()

    def _is_alive(self, token: str) -> bool:
        try:
            self._adapter.bearing(token).get("/v1/auth/token/lookup-self")
        except AccessDenied:
            return False
        self._lookup_interval = LOOKUP_INTERVAL
        return True

    def _revoke(self, token: str) -> None:
        with suppress(StoreError):
            self._adapter.bearing(token).post("/v1/auth/token/revoke-self", json={})


class StaticToken:
    """A token that somebody else has made: a `Credential` that is renewed as long as it can be, and never revoked."""

    revokes_at_close = False

    def __init__(
        self, component: str, token: str, adapter: PoolAdapter, scheduler: Scheduler, clock: Clock = time.monotonic
    ) -> None:
        self._component = component
        self._token = token
        self._adapter = adapter.bearing(token)
        self._scheduler = scheduler
        self._clock = clock
        self._begun = False
        self.term: LeaseTerm | None = None
        """How long it lives, as far as that is known."""

    def __call__(self) -> str:
        """Return the token."""
        if not self._begun:
            self._begun = True
            self._scheduler.at(self._clock() + FIRST_LOOKUP, self, self._look)
        return self._token

    def accepted(self, target: str) -> None:
        """`Credential.accepted`."""

    def replaced(self, token: str, target: str) -> bool:
        """Say that there is no other."""
        return False

    def close(self) -> None:
        """Leave the token as it is."""
        self._scheduler.close()

    def _look(self) -> None:
        since = self._clock()
        try:
            data = self._adapter.get("/v1/auth/token/lookup-self").data
            full = data.get("period") or data.get("creation_ttl")
            if data.get("expire_time") is None:
                return  # it lives for ever; a ttl of 0 may also be less than a second
            term = LeaseTerm.lent(
                since, data.get("ttl"), data.get("renewable"), full if isinstance(full, int) else None
            )
        except (AccessDenied, MalformedAnswer):
            log.debug("%s: the token does not say how long it lives", self._component)
        except StoreError:
            self._scheduler.at(since + 30.0, self, self._look)
        else:
            self.term = term
            if term.renewable:
                self._scheduler.at(term.due, self, lambda: self._renew(term))

    def _renew(self, term: LeaseTerm) -> None:
        try:
            longer = renewed(self._adapter, term, self._clock)
        except AccessDenied:
            self._warn(term)
        except StoreError:
            again = retry_at(self._clock(), term)
            if again is not None:
                self._scheduler.at(again, self, lambda: self._renew(term))
        else:
            self.term = longer
            if longer.last:
                self._warn(longer)
            else:
                self._scheduler.at(longer.due, self, lambda: self._renew(longer))

    def _warn(self, term: LeaseTerm) -> None:
        left = max(0, round(term.expires - self._clock()))
        log.warning("%s: vaultToken ends in %d s and cannot be renewed any more", self._component, left)


class FileToken:
    """A token in a file, which somebody else renews and replaces: a `Credential`."""

    revokes_at_close = False

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read

    def __call__(self) -> str:
        """Return the token as it is now."""
        return self._read()

    def accepted(self, target: str) -> None:
        """`Credential.accepted`."""

    def replaced(self, token: str, target: str) -> bool:
        """Say whether the file has another token by now."""
        return self._read() != token

    def close(self) -> None:
        """Leave the token as it is."""


def explained(adapter: PoolAdapter, token: Callable[[], str], origin: str, call: Callable[[], T]) -> T:
    """Call, and let a refusal say where the token comes from, and what to do, if it is the token that is refused.

    ``origin`` is empty for a token that we have logged in for: a refused login speaks for itself.
    """
    try:
        return call()
    except AccessDenied as error:
        if origin:
            try:
                adapter.bearing(token()).get("/v1/auth/token/lookup-self")
            except AccessDenied:
                raise AccessDenied(f"{error}; the server does not accept {origin}") from None
            except StoreError:
                log.debug("the server does not say whether it accepts %s", origin)
        raise


def renewed(adapter: PoolAdapter, term: LeaseTerm, clock: Clock) -> LeaseTerm:
    """Renew the token that ``adapter`` bears. Raises `AccessDenied` when the server does not want to."""
    since = clock()
    auth = adapter.post("/v1/auth/token/renew-self", json={}).auth
    return LeaseTerm.lent(since, auth.get("lease_duration"), auth.get("renewable"), term.full)
