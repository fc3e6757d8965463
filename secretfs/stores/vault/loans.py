"""Saves what the server has lent a store whenever that changes, and goes on with what the process before had saved."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from secretfs.store import Expiry
from secretfs.stores.vault.renewal import Clock, Lease, LeaseTerm
from secretfs.stores.vault.state import Loans, StateCodec
from secretfs.stores.vault.token import Session

log = logging.getLogger(__name__)


class SavedLoans:
    """The tokens of a session, if the store logs in, and the leases of ``leases``. Safe for threads.

    ``given`` returns the term of a token that somebody else has made, if there is one and its term is known.
    """

    def __init__(
        self,
        component: str,
        codec: StateCodec,
        session: Session | None,
        given: Callable[[], LeaseTerm | None] = lambda: None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._component = component
        self._given = given
        self._clock = clock
        self._codec = codec
        self._session = session
        self._save: Callable[[bytes], None] | None = None
        self._leases: Callable[[], Iterable[tuple[str, Lease]]] = lambda: ()
        self._lock = threading.Lock()

    def resume(
        self,
        state: bytes,
        save: Callable[[bytes], None],
        leases: Callable[[], Iterable[tuple[str, Lease]]] = lambda: (),
    ) -> tuple[tuple[str, Lease], ...]:
        """Take over the tokens in a state, and return its leases. From now on ``save`` what becomes of them.

        The caller calls `changed` when it has taken over the leases. A state that is not ours is ignored.
        """
        loans = Loans()
        if state:
            try:
                loans = self._codec.decode(state)
            except ValueError as error:
                log.info("%s: what the process before was lent ends by itself: %s", self._component, error)
        if self._session is not None:
            self._session.adopt(loans.tokens)
        self._save, self._leases = save, leases
        return loans.leases

    def changed(self) -> None:
        """Save what there is now."""
        with self._lock:
            if self._save is not None:
                tokens = self._session.tokens if self._session else ()
                self._save(self._codec.encode(Loans(tokens, tuple(self._leases()))))

    def expiry(self, leases: Sequence[LeaseTerm] = ()) -> Expiry:
        """Return when our token ends, and the first of the leases."""
        tokens = self._session.tokens if self._session else ()
        return Expiry(
            self._ends(tokens[-1].term if tokens else self._given()),
            len(leases),
            self._ends(min(leases, key=lambda term: term.expires, default=None)),
        )

    def _ends(self, term: LeaseTerm | None) -> float | None:
        """Return when a term ends, in seconds since the epoch; None if it does not."""
        return None if term is None or math.isinf(term.ttl) else time.time() + term.expires - self._clock()

    def hand_over(self) -> None:
        """Save no more, and leave the tokens to a successor."""
        with self._lock:
            self._save = None
        if self._session is not None:
            self._session.hand_over()
