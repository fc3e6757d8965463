"""Dynamic secrets: engines of Vault that make credentials when they are asked, and take them back when a lease ends.

One read issues one set of credentials. All readers get it while its lease lives; the lease is renewed as
long as somebody asks now and then, and revoked at the end. Before a lease ends that cannot be renewed any more, the
store notifies its watchers: they read again and get new credentials, while the old ones still work for a while.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.store import Expiry, Names, Secret, ignore_loan
from secretfs.stores._http.failures import about
from secretfs.stores.vault.engines import Engine
from secretfs.stores.vault.http import Credential, PoolAdapter
from secretfs.stores.vault.loans import SavedLoans
from secretfs.stores.vault.renewal import Clock, Lease, LeaseTerm, Scheduler, retry_at
from secretfs.stores.vault.response import Response, addressable
from secretfs.stores.vault.token import CLOSE_TIMEOUT

T = TypeVar("T")

log = logging.getLogger(__name__)

_STRIPES = 16


class DynamicStore:
    """Credentials that an engine issues: an `IssuingStore` and a `WatchingStore`."""

    def __init__(  # noqa: PLR0913 - a clock for each of the two times there are
        self,
        component: str,
        adapter: PoolAdapter,
        credential: Credential,
        scheduler: Scheduler,
        engine: Engine,
        loans: SavedLoans,
        explained: Callable[[Callable[[], Any]], Any],
        *,
        text: bool,
        tell: Callable[[str, str, str], None] = ignore_loan,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        self.multi_valued = not text
        self.reads_have_effects = engine.reads_have_effects
        self._component = component
        self._adapter = adapter
        self._credential = credential
        self._scheduler = scheduler
        self._engine = engine
        self._loans = loans
        self._explained = explained
        self._tell = tell
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._locks = [threading.Lock() for _ in range(_STRIPES)]
        self._leases: dict[str, Lease] = {}
        self._retired: list[Lease] = []
        self._closed = False
        self._changed: Callable[[frozenset[str]], None] = lambda _: None

    def check(self) -> None:
        """Ask for the engine, which needs a good token with some right in it, and makes nothing."""
        engine = self._engine
        self._ask(
            f"enginePath {engine.path}",
            lambda: engine.require(self._explained(lambda: self._adapter.mount(engine.path)).get("type")),
        )

    def names(self, folder: str) -> Names:
        """List what the engine can be asked for. Raises `AccessDenied` for an engine that has no such list."""
        if folder:
            return Names()
        return Names(self._ask("names", lambda: self._engine.names(self._adapter)))

    def fetch(self, name: str) -> Secret:
        """Return the credentials that there are, or have new ones made."""
        if not addressable(name):
            raise SecretNotFound(f"secret {name}: no such role")
        return self._ask(f"secret {name}", lambda: self._fetch(name))

    def watch(self, changed: Callable[[frozenset[str]], None]) -> None:
        """Tell of credentials that will end or have ended."""
        self._changed = changed

    def token_changed(self, token: str) -> None:
        """Take note of a new token: all that was taken with another one ends together with that."""
        with self._lock:
            names = [name for name, lease in self._leases.items() if lease.id and lease.token != token]
        self._retire(*names)

    def clock_skew(self) -> float | None:
        """Compare the date of the latest answer with our clock."""
        return self._adapter.connections.clock.skew

    def expiry(self) -> Expiry:
        """Return when our token ends, and the first of the leases."""
        return self._loans.expiry([lease.term for _, lease in self._all_leases()])

    def resume(self, state: bytes, save: Callable[[bytes], None]) -> None:
        """Go on with the leases of a predecessor, and renew them as our own."""
        leases = self._loans.resume(state, save, self._all_leases)
        with self._lock:
            for name, lease in leases:
                if lease.retired or name in self._leases:
                    self._retired.append(lease)
                else:
                    self._leases[name] = lease
                    self._plan(lease.term.due, name, lease)
        self._loans.changed()

    def hand_over(self) -> None:
        """Leave all leases to a successor."""
        self._closed = True
        self._scheduler.close()
        self._loans.hand_over()
        self._adapter.connections.close()

    def _all_leases(self) -> list[tuple[str, Lease]]:
        with self._lock:
            self._drop_expired()
            ending = [("", lease) for lease in self._retired]
            return [*self._leases.items(), *ending]

    def close(self) -> None:
        """Revoke all leases in a bounded time, as far as the server answers."""
        self._closed = True
        self._scheduler.close()
        with self._lock:
            names, leases = frozenset(self._leases), [*self._leases.values(), *self._retired]
            self._leases, self._retired = {}, []
        if names:
            self._changed(names)
        with self._adapter.connections.within(CLOSE_TIMEOUT):
            now = self._clock()
            self._revoke([lease for lease in leases if lease.id and now < lease.term.expires])
            self._adapter.close()

    # --- having credentials made ---

    def _fetch(self, name: str) -> Secret:
        with self._exclusively(name):
            lease = self._leases.get(name)
            if lease is None:
                return self._issue(name).secret
            lease.used = self._clock()
            try:
                if lease.used >= lease.term.due:
                    self._renew(name, lease)
                return lease.secret if self._is_valid(lease) else self._issue(name).secret
            except (DeadlineExceeded, StoreUnavailable):
                if self._clock() >= lease.term.expires:
                    raise
                return lease.secret

    def _is_valid(self, lease: Lease) -> bool:
        return (
            not lease.retired
            and self._clock() < lease.term.expires
            and (not lease.id or lease.token == self._credential())
        )

    def _issue(self, name: str) -> Lease:
        since = self._clock()
        request = self._engine.request(name)
        answer, token = self._adapter.ask(request.method, request.url, json=request.body, once=True)
        lease = Lease(*self._read(name, answer), token, self._term(answer, since), since)
        self._tell("issued", name, lease.id or lease.secret.version)
        with self._lock:
            self._drop_expired()
            replaced = self._leases.pop(name, None)
            if replaced is not None:
                self._retired.append(replaced)
            if lease.term.ttl:
                self._leases[name] = lease
        if self._closed:
            self._revoke([lease])
        elif lease.term.ttl:
            self._plan(lease.term.due, name, lease)
            self._loans.changed()
        return lease

    def _read(self, name: str, answer: Response) -> tuple[str, Secret]:
        lease_id = answer.top.get("lease_id") or ""
        if not isinstance(lease_id, str):
            raise MalformedAnswer("the answer has no lease")
        values = self._engine.values(answer)
        if not self.multi_valued:
            values = {name: answer.raw("data").encode()}
        version = lease_id or str(answer.data.get("serial_number") or "")
        return lease_id, Secret(values, version, self._wall() if version else None)

    def _term(self, answer: Response, since: float) -> LeaseTerm:
        """Tell how long the credentials live; for no time at all if nobody says."""
        if answer.top.get("lease_id"):
            return LeaseTerm.lent(since, answer.top.get("lease_duration"), answer.top.get("renewable"))
        expiration = answer.data.get("expiration")  # of a certificate for which the engine keeps no lease
        left = expiration - self._wall() if isinstance(expiration, int) else 0
        return LeaseTerm.lent(since, max(0, left), renewable=False, full=0)

    # --- keeping them alive ---

    def _plan(self, when: float, name: str, lease: Lease) -> None:
        self._scheduler.at(when, name, lambda: self._renew_in_background(name, lease))

    def _renew_in_background(self, name: str, lease: Lease) -> None:
        """Renew a lease, or announce its end. Runs in the background."""
        renewable = lease.id and not lease.term.last  # else its end is announced, which costs the server nothing
        if renewable and self._clock() > lease.used + self._engine.idle:
            log.debug("%s: the lease of %s is not renewed: nobody has asked for it", self._component, name)
            return
        with self._adapter.connections.within():
            try:
                with self._exclusively(name):
                    if self._leases.get(name) is lease and self._clock() >= lease.term.due:
                        self._renew(name, lease)
            except StoreError as error:
                log.info("%s: the lease of %s is not renewed: %s", self._component, name, error)
                again = retry_at(self._clock(), lease.term)
                if again is None:
                    self._retire(name)
                else:
                    self._plan(again, name, lease)

    def _renew(self, name: str, lease: Lease) -> None:
        """Make the lease longer, or retired. Raises `StoreError` when there is no telling."""
        if lease.retired or lease.term.last or not lease.id:
            self._retire(name)
            return
        since = self._clock()
        try:
            answer = self._adapter.put("/v1/sys/leases/renew", json={"lease_id": lease.id})
        except (AccessDenied, SecretNotFound) as error:
            log.debug("%s: the lease of %s is not renewed: %s", self._component, name, error)
            self._retire(name)
            return
        top = answer.top
        lease.term = LeaseTerm.lent(since, top.get("lease_duration"), top.get("renewable"), lease.term.full)
        self._plan(lease.term.due, name, lease)
        self._loans.changed()

    def _retire(self, *names: str) -> None:
        """Let watchers read other credentials."""
        with self._lock:
            ending = [name for name in names if name in self._leases and not self._leases[name].retired]
            for name in ending:
                self._leases[name].retired = True
                self._scheduler.cancel(name)
        if ending:
            self._loans.changed()
            log.info("%s: new credentials are due for: %s", self._component, ", ".join(sorted(ending)))
            self._changed(frozenset(ending))

    def _drop_expired(self) -> None:
        now = self._clock()
        self._retired = [lease for lease in self._retired if now < lease.term.expires]
        for name in [name for name, lease in self._leases.items() if now >= lease.term.expires]:
            del self._leases[name]

    def _revoke(self, leases: list[Lease]) -> None:
        failures: list[StoreError] = []
        for lease in leases:
            try:
                self._adapter.bearing(lease.token).put("/v1/sys/leases/revoke", json={"lease_id": lease.id})
            except StoreError as error:
                failures.append(error)
            else:
                self._tell("revoked", "", lease.id)
        if failures and not self._credential.revokes_at_close:
            log.warning(
                "%s: leases are left to end by themselves: %d; the last: %s",
                self._component,
                len(failures),
                failures[-1],
            )

    # --- one at a time ---

    @contextmanager
    def _exclusively(self, name: str) -> Iterator[None]:
        lock = self._locks[hash(name) % _STRIPES]
        if not lock.acquire(timeout=self._adapter.connections.remaining()):
            raise DeadlineExceeded("no answer in time")
        try:
            yield
        finally:
            lock.release()

    def _ask(self, subject: str, call: Callable[[], T]) -> T:
        with self._adapter.connections.within():
            return about(subject, call)
