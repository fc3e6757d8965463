"""``secretstores.NAME`` of a plug-in: against one in Python and one in JavaScript, each in a process of its own."""

import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from secretfs.errors import AccessDenied, MalformedAnswer, SecretNotFound, StoreError, StoreUnavailable
from secretfs.store import Secret, SecretStore
from secretfs.stores.pluggable.store import PluggableStore
from secretfs.testing import Seed, StoreContract
from tests.support.canary import CANARY, secret
from tests.support.opened import opened
from tests.support.pluggable import LANGUAGES, MULTI_VALUED, PlugIn, plug_in, socket_folder

TYPE = "secretstores.example"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return socket_folder(tmp_path, monkeypatch)


@pytest.fixture(params=LANGUAGES)
def running(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[PlugIn]:
    """A multi-valued one that a test may kill."""
    with plug_in(request.param, folder, tmp_path / "plug-in", multi_valued=True) as running:
        yield running


class Contract(StoreContract):
    language: str
    mark = CANARY
    has_versions = False
    tells_modified = False
    binary_values = False  # the protocol has text only
    counts_reads = False  # a listing does read values: see test_a_listing_is_one_bulk_get

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlugIn]:
        scratch = tmp_path_factory.mktemp("pluggable")
        with pytest.MonkeyPatch.context() as patch:
            folder = socket_folder(scratch, patch)
            with plug_in(cls.language, folder, scratch / "plug-in", multi_valued=cls.multi_valued) as shared:
                yield shared

    @pytest.fixture
    def emptied(self, shared: PlugIn) -> PlugIn:
        shared.change(secrets={}, denied=[])
        return shared

    @pytest.fixture
    def store(self, emptied: PlugIn) -> Iterator[SecretStore]:
        with opened(TYPE, {}) as store:
            yield store

    @pytest.fixture
    def seed(self, emptied: PlugIn) -> Seed:
        return emptied.put

    @pytest.fixture
    def denied(self, emptied: PlugIn) -> Iterator[tuple[SecretStore, str]]:
        emptied.put("known", self.values("known"))
        emptied.change(denied=["known"])
        with opened(TYPE, {}) as store:
            yield store, "known"

    @pytest.fixture
    def unreachable(self, folder: Path) -> Iterator[SecretStore]:
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.bind(str(folder / "example.sock"))
            with opened(TYPE, {}, deadline=self.deadline) as store:
                yield store


class TestPython(Contract):
    language = "python"
    multi_valued = False


class TestJavaScript(Contract):
    language = "javascript"
    multi_valued = True


def fetched(store: SecretStore, name: str) -> Mapping[str, bytes]:
    return store.fetch(name).values


def test_it_is_told_its_properties_as_they_are_written(running: PlugIn) -> None:
    properties = {"vaultAddr": "http://x", "PASSWORD": secret("property"), "empty": "", "ünïcödé": "日本語"}
    with opened(TYPE, properties) as store:
        assert running.calls() == []  # nobody has used it yet
        store.check()
        store.check()
    assert [call["method"] for call in running.calls()] == ["Init", "Features", "Ping", "Ping"]
    assert running.calls("Init") == [{"method": "Init", "instance": "store", "properties": properties}]
    assert {call["instance"] for call in running.calls()} == {"store"}


def test_a_listing_is_one_bulk_get(running: PlugIn) -> None:
    running.put("a", {"k": b"1"})
    running.put("no values", {})
    with opened(TYPE, {}) as store:
        assert store.names("").secrets == {"a"}
        with pytest.raises(SecretNotFound, match="secret no values: not found: the answer has no value"):
            store.fetch("no values")
    assert len(running.calls("BulkGet")) == 1


def test_a_thousand_secrets_are_two_calls(running: PlugIn) -> None:
    names = tuple(f"secret-{number:04}" for number in range(1000))
    running.change(secrets={name: {"key": secret(name)} for name in names})
    with opened(TYPE, {}) as store:
        assert isinstance(store, PluggableStore)
        assert store.largest_batch == 1  # how many there are is not known before they are listed
        assert store.names("").secrets == set(names)
        assert store.largest_batch == 1000
        found = store.fetch_many(names)
    assert {name: one.values for name, one in found.items() if isinstance(one, Secret)} == {
        name: {"key": secret(name).encode()} for name in names
    }
    assert (len(running.calls("BulkGet")), len(running.calls("Get"))) == (2, 0)


def test_a_batch_of_a_few_of_many_reads_no_others(running: PlugIn) -> None:
    """A BulkGet reads all secrets: it is no way to read two of ten."""
    running.change(secrets={f"{number}": {"key": "value"} for number in range(10)})
    with opened(TYPE, {}) as store:
        assert isinstance(store, PluggableStore)
        store.names("")
        assert store.fetch_many(("1", "2")) == {}
        assert len(running.calls("BulkGet")) == 1
        assert store.fetch_many(("1", "2", "3", "4", "nowhere")).keys() == {"1", "2", "3", "4"}
        assert len(running.calls("BulkGet")) == 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_started_again_is_initialised_again(running: PlugIn, how: signal.Signals) -> None:
    running.put("a", {"k": b"1"})
    with opened(TYPE, {"some": "property"}) as store:
        assert fetched(store, "a") == {"k": b"1"}
        running.kill(how)
        for call in (store.check, lambda: store.fetch("a"), lambda: store.names("")):
            with pytest.raises(StoreUnavailable):
                call()
        running.start()
        running.put("a", {"k": b"2"})
        assert fetched(store, "a") == {"k": b"2"}
        assert fetched(store, "a") == {"k": b"2"}
    assert [call["properties"] for call in running.calls("Init")] == [{"some": "property"}] * 2


def test_one_that_is_started_again_between_two_calls_is_not_missed(running: PlugIn) -> None:
    """Nobody has seen that it was gone. gRPC would connect again without a word, and a plug-in refuses strangers."""
    running.put("a", {"k": b"1"})
    with opened(TYPE, {}) as store:
        for _ in range(3):
            assert fetched(store, "a") == {"k": b"1"}
            running.kill()
            running.start()
        assert fetched(store, "a") == {"k": b"1"}
    assert len(running.calls("Init")) == 4


def test_of_two_for_one_component_each_is_served_by_its_own_properties(running: PlugIn) -> None:
    """A component that has been edited is opened beside the old one, which goes on if the new one is refused."""
    running.put("a", {"k": b"old"})
    running.put("a", {"k": b"new"}, served="others")
    with opened(TYPE, {}) as old:
        assert fetched(old, "a") == {"k": b"old"}
        with opened(TYPE, {"set": "others"}) as new:
            assert fetched(new, "a") == {"k": b"new"}
            assert fetched(old, "a") == {"k": b"old"}
            assert fetched(new, "a") == {"k": b"new"}
        assert fetched(old, "a") == {"k": b"old"}


def test_another_kind_of_store_is_not_served_as_the_one_before(running: PlugIn) -> None:
    running.put("a", {"k": b"1"})
    with opened(TYPE, {}) as store:
        assert store.multi_valued
        running.kill()
        running.change(features=[])
        running.start()
        with pytest.raises(MalformedAnswer, match=f"{MULTI_VALUED} is not as it was: mount it again"):
            store.fetch("a")


def test_an_annotation_says_what_features_do_not(running: PlugIn) -> None:
    running.put("a", {"k": b"1", "l": b"2"})
    running.change(features=[])
    with opened(TYPE, {}) as store:
        assert not store.multi_valued
        with pytest.raises(MalformedAnswer, match=f"2 values, and Features do not have {MULTI_VALUED}"):
            store.fetch("a")
    with opened(TYPE, {}, annotations={"secretfs/multi-valued": "true"}) as store:
        assert store.multi_valued
        assert len(running.calls("Init")) == 1  # who says so need not ask
        assert fetched(store, "a") == {"k": b"1", "l": b"2"}
    running.put("a", {"k": b"1"})
    running.change(features=[MULTI_VALUED])
    with opened(TYPE, {}, annotations={"secretfs/multi-valued": "false"}) as store:
        assert not store.multi_valued
        assert fetched(store, "a") == {"a": b"1"}


@pytest.mark.parametrize(
    ("how", "error", "reason"),
    [
        ("denied", AccessDenied, "it refuses (PERMISSION_DENIED)"),
        ("broken", StoreUnavailable, "it failed (UNKNOWN)"),  # by an exception, or an Error
    ],
)
def test_what_an_error_says_is_not_shown(running: PlugIn, how: str, error: type[StoreError], reason: str) -> None:
    """Its details are everything that the plug-in knows."""
    running.put("a", {"k": secret("a").encode()})
    running.change(**{how: ["a"]})
    with opened(TYPE, {}) as store, pytest.raises(error) as caught:
        store.fetch("a")
    assert str(caught.value) == f"secret a: plug-in example.sock: Get: {reason}"
