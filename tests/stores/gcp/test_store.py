"""``secretstores.gcp.secretmanager``: settings, names, values and failures, on a server that keeps to its REST API."""

from collections.abc import Callable, Iterator

import pytest

from secretfs.errors import (
    AccessDenied,
    ConfigurationError,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.settings import Property, decode
from secretfs.store import ClockedStore, Names, SecretStore
from secretfs.stores.gcp import store as gcp_store
from secretfs.stores.gcp.store import Settings
from secretfs.testing import Seed, StoreContract
from tests.support import opened as support
from tests.support.canary import CANARY, secret
from tests.support.failures import GARBAGE, BrokenConnections, failure
from tests.support.gcp_fixtures import TYPE, gcp, opened
from tests.support.servers.gcp import EMAIL, NUMBER, PROJECT, Gcp, failing
from tests.support.servers.http_server import Fault, saying

__all__ = ["gcp"]


@pytest.fixture
def store(gcp: Gcp) -> Iterator[SecretStore]:
    with opened(gcp, gcp.login()) as store:
        yield store


class TestContract(StoreContract):
    multi_valued = False
    deadline = support.DEADLINE
    has_folders = False  # an id takes no "/"
    tells_modified = False  # the answer has no time
    mark = CANARY

    @pytest.fixture
    def store(self, gcp: Gcp) -> Iterator[SecretStore]:
        with opened(gcp, gcp.login()) as store:
            yield store

    @pytest.fixture
    def seed(self, gcp: Gcp) -> Seed:
        return lambda name, values: gcp.put(name, values[name])

    @pytest.fixture
    def denied(self, gcp: Gcp, store: SecretStore) -> tuple[SecretStore, str]:
        gcp.put("denied", secret().encode())
        gcp.denied.add("denied")
        return store, "denied"

    @pytest.fixture
    def unreachable(self, gcp: Gcp) -> Iterator[SecretStore]:
        with opened(gcp, gcp.login(), endpoint="http://127.0.0.1:1") as store:
            yield store

    @pytest.fixture
    def reads(self, gcp: Gcp) -> Callable[[], int]:
        return lambda: gcp.requests["access"]

    def can_hold(self, name: str) -> bool:
        return gcp_store._ID.fullmatch(name) is not None


# --- settings ---


def test_every_name_of_every_property(gcp: Gcp) -> None:
    snake = list(gcp.login().items())
    names = (
        "type", "PROJECTID", "privateKeyID", "privatekey", "clientEmail", "clientID", "authURI", "tokenURI",
        "authProviderX509CertURL", "clientX509CertURL",
    )  # fmt: skip
    camel = [(name, value) for name, (_, value) in zip(names, snake, strict=True)]
    found = [decode(Settings, [Property(*item) for item in given]) for given in (snake, camel)]
    assert found[0] == found[1]
    assert found[0][1] == []
    assert CANARY not in repr(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": ""}, "store: missing property `type` in metadata"),
        ({"private_key": ""}, "store: missing property `private_key` in metadata"),
        ({"client_email": ""}, "store: missing property `client_email` in metadata"),
        ({"type": "authorized_user"}, "store: type is not service_account"),
        ({"private_key": secret("no key")}, "store: privateKey: it is no RSA key in PEM"),
        ({"project_id": "a/b"}, "store: projectID is neither the id of a project nor its number"),
    ],
)
def test_what_can_never_work_stops_the_mount(gcp: Gcp, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught, opened(gcp, gcp.login(**changes)):
        pass
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"secretfs/location": "a/b"}, "secretfs/location is not the name of a region"),
        ({"secretfs/endpoint": "localhost"}, "secretfs/endpoint is not a URL"),
        ({"secretfs/endpoint": "https://host/path"}, "secretfs/endpoint is not a URL"),
    ],
)
def test_annotations_that_can_never_work(gcp: Gcp, annotations: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message), support.opened(TYPE, gcp.login(), annotations=annotations):
        pass


@pytest.mark.parametrize(
    ("location", "address", "parent"),
    [
        ("", "https://secretmanager.googleapis.com", "projects/p"),
        ("europe-west1", "https://secretmanager.europe-west1.rep.googleapis.com", "projects/p/locations/europe-west1"),
    ],
)
def test_each_location_has_its_endpoint(location: str, address: str, parent: str) -> None:
    annotations = {"secretfs/location": location} if location else {}
    assert gcp_store._place("p", annotations) == gcp_store.Place(address, parent)


def test_opening_sends_nothing(gcp: Gcp) -> None:
    with opened(gcp, gcp.login()), opened(gcp, {"projectID": PROJECT}):
        pass
    assert gcp.requests == {}


# --- names and values ---


def test_names_are_short_ids_of_all_pages(gcp: Gcp, store: SecretStore) -> None:
    names = {f"secret_{number}" for number in range(25)}
    for name in names:
        gcp.put(name, secret(name).encode())
    gcp.page = 10
    assert store.names("") == Names(frozenset(names))
    assert gcp.requests == {"list": 3}
    assert gcp.pages == [5000, 5000, 5000]


def test_a_project_without_secrets(gcp: Gcp, store: SecretStore) -> None:
    assert store.names("") == Names()


@pytest.mark.parametrize("project", [PROJECT, NUMBER, "another-spelling"])
def test_a_full_resource_name_is_a_name(gcp: Gcp, store: SecretStore, project: str) -> None:
    """Dapr's bulk response, and so somebody's scope, has those."""
    gcp.put("db", secret("db").encode())
    name = f"projects/{project}/secrets/db"
    assert store.fetch(name).values == {name: secret("db").encode()}
    with pytest.raises(SecretNotFound, match="it is in another location"):
        store.fetch("projects/p/locations/europe-west1/secrets/db")


def test_regional_secrets(gcp: Gcp) -> None:
    gcp.location = "europe-west1"
    gcp.put("db", secret("db").encode())
    with opened(gcp, gcp.login(), location="europe-west1") as store:
        assert store.names("").secrets == {"db"}
        assert store.fetch("db").values == {"db": secret("db").encode()}
        name = f"projects/{NUMBER}/locations/europe-west1/secrets/db"
        assert store.fetch(name).values == {name: secret("db").encode()}


def test_versions_are_numbers(gcp: Gcp, store: SecretStore) -> None:
    gcp.put("db", secret("1").encode())
    gcp.put("db", secret("2").encode())
    assert store.fetch("db").version == "2"


def test_a_disabled_latest_version_is_an_error_that_says_so(gcp: Gcp, store: SecretStore) -> None:
    """There is no older one instead: somebody has switched it off, and no cached value is served either."""
    gcp.put("db", secret("1").encode())
    gcp.put("db", secret("2").encode())
    gcp.change("db", "DISABLED")
    error = failure(store)
    assert isinstance(error, AccessDenied)
    assert "its latest version is disabled; enable it, or add a version (400)" in str(error)
    gcp.change("db", "ENABLED")
    assert store.fetch("db").values == {"db": secret("2").encode()}


def test_a_destroyed_latest_version_is_not_found(gcp: Gcp, store: SecretStore) -> None:
    gcp.put("db", secret("1").encode())
    gcp.change("db", "DESTROYED")
    error = failure(store)
    assert isinstance(error, SecretNotFound)
    assert "its latest version is destroyed" in str(error)


def test_a_secret_without_a_version_is_not_found(gcp: Gcp, store: SecretStore) -> None:
    gcp.create("db")
    assert isinstance(failure(store), SecretNotFound)


def test_check_accepts_who_may_not_list(gcp: Gcp, store: SecretStore) -> None:
    store.check()
    assert gcp.pages == [1]
    assert gcp.callers == [EMAIL]
    gcp.may_list = False
    store.check()
    with pytest.raises(AccessDenied, match="no role lets this identity do that"):
        store.names("")


# --- failures ---


ERRORS = [
    (400, "INVALID_ARGUMENT", (), SecretNotFound, "no name that Secret Manager takes"),
    (400, "FAILED_PRECONDITION", (), AccessDenied, "the state of the secret, or of its key, forbids it"),
    (400, "SOMETHING", (), MalformedAnswer, "unexpected status"),
    (403, "PERMISSION_DENIED", (), AccessDenied, "no role lets this identity do that"),
    (403, "PERMISSION_DENIED", ("SERVICE_DISABLED",), AccessDenied, "the Secret Manager API is not enabled"),
    (403, "PERMISSION_DENIED", ("BILLING_DISABLED",), AccessDenied, "the project has no billing account"),
    (404, "NOT_FOUND", (), SecretNotFound, "not found, or it has no version"),
    (404, "", (), MalformedAnswer, "unexpected status"),
    (429, "RESOURCE_EXHAUSTED", (), StoreUnavailable, "too many requests"),
    (500, "INTERNAL", (), StoreUnavailable, "server error"),
    (503, "UNAVAILABLE", (), StoreUnavailable, "server error"),
    (504, "DEADLINE_EXCEEDED", (), DeadlineExceeded, "no answer in time"),
    (302, "", (), StoreUnavailable, "it sends us elsewhere"),
]


@pytest.mark.parametrize(("status", "code", "reasons", "kind", "reason"), ERRORS)
def test_what_an_error_means(
    gcp: Gcp, store: SecretStore, status: int, code: str, reasons: tuple[str, ...], kind: type[StoreError], reason: str
) -> None:
    gcp.always = failing(status, code, secret("text"), *reasons)
    error = failure(store)
    assert isinstance(error, kind)
    assert f": 127.0.0.1:{gcp.address.rpartition(':')[2]}: {reason}" in str(error)
    assert str(error).endswith(f"({status})")


MALFORMED = GARBAGE | {
    "no payload": saying(b'{"name": "x"}'),
    "a number for a text": saying(b'{"payload": {"data": 1}}'),
    "no base64": saying(b'{"payload": {"data": "?"}}'),
    "not UTF-8": saying(b"\xff"),
}


@pytest.mark.parametrize("fault", MALFORMED.values(), ids=MALFORMED.keys())
def test_garbage_is_malformed(gcp: Gcp, store: SecretStore, fault: Fault) -> None:
    gcp.always = fault
    assert isinstance(failure(store), MalformedAnswer)


@pytest.mark.parametrize(
    "body", [b'{"secrets": 1}', b'{"secrets": [1]}', b'{"secrets": [{"name": "db"}]}', b'{"nextPageToken": "0"}', b"-"]
)
def test_a_listing_that_is_none(gcp: Gcp, store: SecretStore, body: bytes) -> None:
    gcp.always = saying(body)
    with pytest.raises(MalformedAnswer, match=r"^list of secrets: "):
        store.names("")


class TestBrokenConnections(BrokenConnections):
    @pytest.fixture
    def server(self, gcp: Gcp) -> Gcp:
        gcp.put("db", secret("db").encode())
        return gcp

    @pytest.fixture
    def store(self, server: Gcp) -> Iterator[SecretStore]:
        with opened(server, server.login()) as store:
            yield store

    @pytest.fixture
    def impatient(self, server: Gcp) -> Iterator[SecretStore]:
        with opened(server, server.login(), deadline=self.short) as store:
            yield store


def test_our_clock_is_named_when_it_is_wrong(gcp: Gcp, store: SecretStore) -> None:
    gcp.clock = 7200
    error = failure(store)
    assert isinstance(error, AccessDenied)
    assert "the token is refused (401): the clock of this machine is 7" in str(error)
    assert str(error).endswith("s behind")
    assert isinstance(store, ClockedStore)
    skew = store.clock_skew()
    assert skew is not None
    assert 7100 < skew < 7300
