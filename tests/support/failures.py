"""What every store makes of broken answers and connections. Import what you use, and inherit `BrokenConnections`."""

import gzip
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest

from secretfs.errors import DeadlineExceeded, StoreError, StoreUnavailable
from secretfs.store import SecretStore
from tests.support.canary import secret
from tests.support.servers.http_server import Fault, HttpServer, dropped, saying
from tests.support.servers.keep_alive import End, close, drip, half_close, reset


def failure(store: SecretStore) -> StoreError:
    """Fetch, and return the error, which names the secret and shows nothing of the answer."""
    with pytest.raises(StoreError) as caught:
        store.fetch("db")
    assert str(caught.value).startswith("secret db: ")
    assert caught.value.__cause__ is None
    return caught.value


GARBAGE: dict[str, Fault] = {
    "no JSON": saying(secret().encode()),
    "no object": saying(b"[1]"),
    "compressed": saying(gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"}),
    "deeply nested": saying(b"[" * 100_000),
    "an error that is no JSON": saying(secret().encode(), 400),
}
"""Answers that are malformed, whoever was asked for a secret."""


class BrokenConnections:
    """What a store owes its readers when connections break or hang. A subclass provides the fixtures."""

    short: ClassVar[float] = 3.0
    """Seconds: the deadline of `impatient`."""

    @pytest.fixture
    def server(self) -> HttpServer:
        """Give the server; its secret ``db`` has the value ``secret("db")``."""
        raise NotImplementedError("provide a fixture `server`")

    @pytest.fixture
    def store(self, server: HttpServer) -> Iterator[SecretStore]:
        """Open a store that reads from the server."""
        raise NotImplementedError("provide a fixture `store`")

    @pytest.fixture
    def impatient(self, server: HttpServer) -> Iterator[SecretStore]:
        """Open one with the deadline `short`."""
        raise NotImplementedError("provide a fixture `impatient`")

    @pytest.mark.parametrize("end", [close, reset, half_close])
    def test_a_connection_that_breaks_all_the_time_is_an_outage(
        self, server: HttpServer, store: SecretStore, end: End
    ) -> None:
        server.ends, server.always = end, dropped
        assert isinstance(failure(store), StoreUnavailable)

    def test_a_connection_that_died_while_it_was_idle_costs_nobody_an_error(
        self, server: HttpServer, store: SecretStore
    ) -> None:
        """A read is sent again, whatever its method."""
        store.fetch("db")
        server.faults.append(dropped)
        assert store.fetch("db").values == {"db": secret("db").encode()}
        server.drop_connections()
        assert store.fetch("db").values == {"db": secret("db").encode()}

    @pytest.mark.parametrize("drips", [False, True], ids=["hangs", "drips"])
    def test_an_answer_that_does_not_end_is_given_up_at_the_deadline(
        self, server: HttpServer, impatient: SecretStore, *, drips: bool
    ) -> None:
        """No wait for a byte of a drip is long; their sum is. botocore alone would wait for ever."""
        impatient.check()
        server.ends = drip
        server.always = dropped if drips else server.hang
        began = time.monotonic()
        assert isinstance(failure(impatient), DeadlineExceeded)
        assert time.monotonic() - began >= self.short - 1  # it did wait
