"""``secretstores.secretfs.keyring``: against GNOME Keyring on a session bus of its own."""

import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from secretfs.errors import AccessDenied, DeadlineExceeded, SecretNotFound, StoreUnavailable
from secretfs.store import SecretStore, StoreContext
from secretfs.stores.keyring import Settings, open_store
from secretfs.testing import Seed, StoreContract
from tests.support.canary import CANARY, secret
from tests.support.opened import opened
from tests.support.secret_service import SecretService, secret_service
from tests.support.shell import stop
from tests.support.waiting import wait_until

TYPE = "secretstores.secretfs.keyring"


def keyring(**properties: str) -> AbstractContextManager[SecretStore]:
    return opened(TYPE, properties)


@pytest.fixture(scope="module")
def running() -> Iterator[SecretService]:
    with tempfile.TemporaryDirectory(prefix="kr-") as directory, secret_service(Path(directory)) as service:
        yield service


@pytest.fixture
def service(running: SecretService, monkeypatch: pytest.MonkeyPatch) -> SecretService:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", running.address)
    running.clear()
    return running


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[SecretService]:
    """A keyring that a test may lock."""
    with tempfile.TemporaryDirectory(prefix="kr-") as directory, secret_service(Path(directory)) as service:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", service.address)
        yield service


class TestContract(StoreContract):
    multi_valued = False
    mark = CANARY
    has_versions = False
    counts_reads = False  # the service tells nobody

    @pytest.fixture
    def store(self, service: SecretService) -> Iterator[SecretStore]:
        with keyring() as store:
            yield store

    @pytest.fixture
    def seed(self, service: SecretService) -> Seed:
        def seed(name: str, values: Mapping[str, bytes]) -> None:
            service.put(name, values[name])

        return seed

    @pytest.fixture
    def denied(self, other: SecretService) -> Iterator[tuple[SecretStore, str]]:
        other.put("known", secret("locked").encode())
        other.lock()
        with keyring() as store:
            yield store, "known"

    @pytest.fixture
    def unreachable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SecretStore]:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/nowhere")
        with keyring() as store:
            yield store


def test_attributes_make_names(service: SecretService) -> None:
    """As python-keyring and many programs store: a service and a user."""
    service.put("Password for 'me' on 'shop'", secret("shop").encode(), service="shop", username="me")
    service.put("another", b"x", service="alone")
    with keyring(nameAttributes="service, username") as store:
        assert store.names("").secrets == {"shop/me"}
        assert store.fetch("shop/me").values == {"shop/me": secret("shop").encode()}
        with pytest.raises(SecretNotFound):
            store.fetch("another")


def test_of_two_items_of_one_name_the_newest_counts(service: SecretService) -> None:
    service.put("twice", b"first", n="1")
    service.put("twice", b"second", n="2")
    with keyring() as store:
        changed = store.fetch("twice").modified
        assert changed is not None
        wait_until(lambda: time.time() >= changed + 1)  # the service counts whole seconds
        service.put("twice", b"newest", n="1")
        assert store.names("").secrets == {"twice"}
        assert store.fetch("twice").values == {"twice": b"newest"}


def test_a_keyring_by_its_name(service: SecretService) -> None:
    service.put("a", b"x")
    with keyring(collection="Login") as store:
        assert store.fetch("a").values == {"a": b"x"}
    with keyring(collection="no such keyring") as store:
        for call in (store.check, lambda: store.names(""), lambda: store.fetch("a")):
            with pytest.raises(StoreUnavailable, match="keyring no such keyring: there is none"):
                call()


def test_a_locked_keyring_is_refused_and_nobody_is_asked(other: SecretService) -> None:
    other.put("a", secret("a").encode())
    other.lock()
    with keyring() as store:
        for call in (store.check, lambda: store.names(""), lambda: store.fetch("a")):
            with pytest.raises(AccessDenied, match="default keyring: it is locked"):
                call()


def test_calls_share_one_connection(service: SecretService) -> None:
    """GNOME Keyring aborts when many connections come and go at once, and the desktop's keyring is locked then."""
    for index in range(8):
        service.put(f"n{index}", secret(f"n{index}").encode())
    before = service.connections()
    with keyring() as store, ThreadPoolExecutor(8) as pool:
        for name, fetched in zip(
            names := [f"n{index % 8}" for index in range(64)], pool.map(store.fetch, names), strict=True
        ):
            assert fetched.values == {name: secret(name).encode()}
    assert service.connections() == before + 2  # one, and the one that counted


def test_a_service_and_a_bus_may_be_restarted(other: SecretService) -> None:
    other.put("a", secret("a").encode())
    with keyring() as store:
        assert store.fetch("a").values == {"a": secret("a").encode()}
        other.stop_keyring()
        with pytest.raises(StoreUnavailable, match="nothing on the session bus offers the Secret Service"):
            store.fetch("a")
        other.start_keyring()
        assert store.fetch("a").values == {"a": secret("a").encode()}
        other.stop_bus()
        with pytest.raises(StoreUnavailable, match="the session bus cannot be reached"):
            store.fetch("a")
        other.start_bus()
        assert store.fetch("a").values == {"a": secret("a").encode()}


def test_a_call_waits_for_the_one_before_no_longer_than_its_deadline(other: SecretService) -> None:
    other.put("a", secret("a").encode())
    store = open_store(Settings(), StoreContext("k", deadline=0.2))
    stop(other.keyring.pid)
    with closing(store), ThreadPoolExecutor(4) as pool:
        for call in [pool.submit(store.fetch, "a") for _ in range(4)]:
            with pytest.raises(DeadlineExceeded, match="default keyring: no answer in time"):
                call.result()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (None, "there is no session bus"),
        ("nonsense", "there is no session bus"),
        ("tcp:host=localhost,port=1", "there is no session bus"),
        ("unix:path=/nowhere/bus", "cannot be reached: No such file or directory"),
    ],
)
def test_no_session_bus(monkeypatch: pytest.MonkeyPatch, address: str | None, reason: str) -> None:
    if address is None:
        monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    with keyring() as store, pytest.raises(StoreUnavailable, match=reason):
        store.check()


def test_a_bus_that_hangs_is_left_when_the_deadline_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="kr-") as directory, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{directory}/bus")
        silent.listen()
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={directory}/bus")
        store = open_store(Settings(), StoreContext("k", deadline=0.2))
        with pytest.raises(DeadlineExceeded, match="default keyring: no answer in time"):
            store.check()
