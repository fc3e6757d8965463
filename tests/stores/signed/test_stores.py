"""Settings, listings, batches and failures of the stores of clouds with signed requests."""

from collections.abc import Iterator

import pytest

from secretfs.errors import (
    AccessDenied,
    ConfigurationError,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.store import BatchingStore, ClockedStore, SecretStore
from tests.support import opened as support
from tests.support.canary import CANARY, secret
from tests.support.failures import BrokenConnections, failure
from tests.support.servers.http_server import saying
from tests.support.servers.signed_clouds import Clouds
from tests.support.signed_fixtures import ALIBABA, HUAWEI, KINDS, TENCENT, Kind, clouds, opened

__all__ = ["clouds"]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.type.split(".")[1])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def store(kind: Kind, clouds: Clouds) -> Iterator[SecretStore]:
    clouds.put("db", secret("db").encode())
    with opened(kind, clouds) as store:
        yield store


def test_what_can_never_work_stops_the_mount(kind: Kind, clouds: Clouds) -> None:
    def refused(properties: dict[str, str], endpoint: str, message: str) -> None:
        annotations = {"secretfs/endpoint": endpoint}
        opening = support.opened(kind.type, properties, annotations=annotations)
        with pytest.raises(ConfigurationError, match=message), opening:
            pass

    for name in (kind.region, kind.key_id, kind.key_secret):
        refused(kind.properties(**{name: ""}), clouds.address, f"{name} is required")
    wrong = kind.properties(**{kind.region: "a.b/c"})
    refused(wrong, clouds.address, f"store: {kind.region} is not the name of a region")
    refused(kind.properties(), "localhost", "store: secretfs/endpoint is not a URL")


def test_settings_have_no_repr(kind: Kind, clouds: Clouds) -> None:
    with opened(kind, clouds) as store:
        assert CANARY not in repr(store)
    assert clouds.requests == {}  # opening sends nothing


def test_a_listing_has_all_pages(kind: Kind, clouds: Clouds, store: SecretStore) -> None:
    names = {f"secret{number:03}" for number in range(205)}
    for name in names:
        clouds.put(name, b"x")
    assert store.names("").secrets == names | {"db"}


def test_a_new_version_is_the_newest(clouds: Clouds, store: SecretStore) -> None:
    first = store.fetch("db")
    clouds.put("db", secret("2").encode())
    second = store.fetch("db")
    assert second.values == {"db": secret("2").encode()}
    assert (first.version.strip("v"), second.version.strip("v")) == ("1", "2")
    assert first.modified is not None
    assert second.modified is not None
    assert first.modified < second.modified


def test_wrong_keys_are_refused(kind: Kind, clouds: Clouds) -> None:
    for name in (kind.key_id, kind.key_secret):
        with opened(kind, clouds, kind.properties(**{name: "WRONG"})) as store:
            error = failure(store)
        assert isinstance(error, AccessDenied)
        assert "the access keys are refused (" in str(error)


@pytest.mark.parametrize(("kind_", "name"), [(ALIBABA, "securityToken"), (TENCENT, "token")])
def test_tokens_of_temporary_keys(clouds: Clouds, kind_: Kind, name: str) -> None:
    clouds.put("db", secret("db").encode())
    clouds.token = secret("token")
    with opened(kind_, clouds, kind_.properties(**{name: secret("token")})) as store:
        assert store.fetch("db").values == {"db": secret("db").encode()}
        clouds.token = secret("another")
        assert isinstance(failure(store), AccessDenied)


def test_a_clock_that_is_wrong(kind: Kind, clouds: Clouds, store: SecretStore) -> None:
    clouds.clock = 3600
    error = failure(store)
    assert isinstance(error, AccessDenied)
    if kind is not HUAWEI:  # which does not say what is wrong with a signature
        assert "the clock of this machine is wrong" in str(error)
    assert isinstance(store, ClockedStore)
    assert store.clock_skew() == pytest.approx(3600, abs=60)


def test_check_accepts_who_may_not_list(kind: Kind, clouds: Clouds, store: SecretStore) -> None:
    store.check()
    clouds.denied |= {"ListSecretParameters", "list", "ListSecrets"}
    store.check()
    with pytest.raises(AccessDenied, match="no policy lets this identity do that"):
        store.names("")


ERRORS: list[tuple[Kind, int, str, type[StoreError]]] = [
    (ALIBABA, 404, '{"Code": "EntityNotExists.Parameter"}', SecretNotFound),
    (ALIBABA, 404, '{"Code": "InvalidAccessKeyId.NotFound"}', AccessDenied),
    (ALIBABA, 400, '{"Code": "Throttling.User"}', StoreUnavailable),
    (ALIBABA, 403, '{"Code": "Forbidden.RAM"}', AccessDenied),
    (ALIBABA, 400, '{"Code": "InvalidSecurityToken.Expired"}', AccessDenied),
    (ALIBABA, 500, '{"Code": "InternalError"}', StoreUnavailable),
    (ALIBABA, 400, '{"Code": "New.Thing"}', MalformedAnswer),
    (ALIBABA, 200, '{"Parameter": {"Name": "other", "Value": "x"}}', MalformedAnswer),
    (ALIBABA, 200, '{"Parameter": {"Name": "db"}}', MalformedAnswer),
    (HUAWEI, 400, '{"error_code": "CSMS.0106"}', SecretNotFound),
    (HUAWEI, 400, '{"error_code": "CSMS.0103"}', SecretNotFound),
    (HUAWEI, 401, '{"error_code": "APIGW.0301"}', AccessDenied),
    (HUAWEI, 403, '{"error_code": "CSMS.0999"}', AccessDenied),
    (HUAWEI, 429, '{"error_code": "APIGW.0308"}', StoreUnavailable),
    (HUAWEI, 200, '{"version": {"secret_binary": "?"}}', MalformedAnswer),
    (HUAWEI, 200, '{"version": null}', MalformedAnswer),
    (TENCENT, 200, '{"Response": {"Error": {"Code": "ResourceNotFound.SecretNotExist"}}}', SecretNotFound),
    (TENCENT, 200, '{"Response": {"Error": {"Code": "ResourceUnavailable.ResourceDisabled"}}}', AccessDenied),
    (TENCENT, 200, '{"Response": {"Error": {"Code": "ResourceUnavailable.ResourcePendingDeleted"}}}', SecretNotFound),
    (TENCENT, 200, '{"Response": {"Error": {"Code": "AuthFailure.TokenFailure"}}}', AccessDenied),
    (TENCENT, 200, '{"Response": {"Error": {"Code": "RequestLimitExceeded"}}}', StoreUnavailable),
    (TENCENT, 200, '{"Response": {"Error": {"Code": "New.Thing"}}}', MalformedAnswer),
    (TENCENT, 200, '{"Response": {"Versions": []}}', SecretNotFound),
    (TENCENT, 200, '{"Response": 1}', MalformedAnswer),
    *((kind, 503, "<html>", StoreUnavailable) for kind in KINDS),
    *((kind, 429, "<html>", StoreUnavailable) for kind in KINDS),
    *((kind, 200, secret(), MalformedAnswer) for kind in KINDS),
    *((kind, 200, "[1]", MalformedAnswer) for kind in KINDS),
    *((kind, 200, "[" * 100_000, MalformedAnswer) for kind in KINDS),
]


@pytest.mark.parametrize(
    ("kind_", "status", "body", "expected"), ERRORS, ids=lambda it: getattr(it, "type", str(it))[:60]
)
def test_what_an_answer_means(clouds: Clouds, kind_: Kind, status: int, body: str, expected: type[StoreError]) -> None:
    clouds.put("db", secret("db").encode())
    with opened(kind_, clouds) as store:
        store.check()  # Huawei's project is known then
        clouds.always = saying(body.encode(), status)
        assert isinstance(failure(store), expected)
        clouds.always = None
        assert store.fetch("db").values == {"db": secret("db").encode()}


@pytest.mark.parametrize(
    "body", ["{}", '{"secrets": 1, "Parameters": 1, "Response": {"SecretMetadatas": 1}}', "[]", '{"Response": {}}', "-"]
)
def test_a_listing_that_is_none(clouds: Clouds, store: SecretStore, body: str) -> None:
    store.check()
    clouds.always = saying(body.encode())
    with pytest.raises(MalformedAnswer, match=r"^list of "):
        store.names("")


@pytest.mark.parametrize(
    ("kind_", "body"),
    [
        (ALIBABA, '{"Parameters": [], "NextToken": "again"}'),
        (HUAWEI, '{"secrets": [], "page_info": {"next_marker": "again"}}'),
    ],
)
def test_a_listing_that_leads_to_itself_ends(clouds: Clouds, kind_: Kind, body: str) -> None:
    with opened(kind_, clouds) as store:
        store.check()
        clouds.always = saying(body.encode())
        with pytest.raises(MalformedAnswer, match="a page leads to itself"):
            store.names("")


def test_text_that_is_no_unicode_is_what_go_makes_of_it(clouds: Clouds) -> None:
    with opened(ALIBABA, clouds) as store:
        clouds.always = saying(b'{"Parameter": {"Name": "db", "Value": "a\\ud800"}}')
        assert store.fetch("db").values == {"db": "a\N{REPLACEMENT CHARACTER}".encode()}


def test_keys_without_a_project_are_refused(clouds: Clouds) -> None:
    clouds.faults.append(saying(b'{"projects": []}'))
    with opened(HUAWEI, clouds) as store:
        assert "these keys have no project in the region" in str(failure(store))
        assert isinstance(failure(store), SecretNotFound)  # it is asked for again


class TestBrokenConnections(BrokenConnections):
    short = 2.0

    @pytest.fixture
    def server(self, clouds: Clouds) -> Clouds:
        clouds.put("db", secret("db").encode())
        return clouds

    @pytest.fixture
    def store(self, kind: Kind, server: Clouds) -> Iterator[SecretStore]:
        with opened(kind, server) as store:
            yield store

    @pytest.fixture
    def impatient(self, kind: Kind, server: Clouds) -> Iterator[SecretStore]:
        with opened(kind, server, deadline=self.short) as store:
            yield store


def test_alibaba_reads_ten_with_one_request(clouds: Clouds) -> None:
    names = tuple(f"p{number}" for number in range(9))
    for name in names:
        clouds.put(name, secret(name).encode())
    with opened(ALIBABA, clouds) as store:
        assert isinstance(store, BatchingStore)
        found = store.fetch_many((*names, "missing"))
        assert clouds.requests == {"GetSecretParameters": 1}
        assert found[names[3]] == store.fetch(names[3])
        assert isinstance(found["missing"], SecretNotFound)
        clouds.denied.add("p4")
        assert store.fetch_many(names) == {}
        assert store.largest_batch == 1
