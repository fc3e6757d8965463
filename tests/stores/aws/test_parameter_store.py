"""``secretstores.aws.parameterstore``: settings, names, values and batches, with the unmodified SDK and moto."""

from collections.abc import Iterator
from typing import ClassVar

import pytest

from secretfs.errors import AccessDenied, MalformedAnswer, SecretNotFound
from secretfs.settings import Property, decode
from secretfs.store import BatchingStore, Names, Secret, SecretStore
from secretfs.stores.aws.parameter_store import Settings
from secretfs.testing import Seed
from tests.support.aws_contract import AwsContract
from tests.support.aws_fixtures import PARAMETERS, aws, moto_server, opened
from tests.support.canary import secret
from tests.support.servers.aws import Aws, failing
from tests.support.servers.http_server import saying

__all__ = ["aws", "moto_server"]

PREFIX = "/app/"


@pytest.fixture
def store(aws: Aws) -> Iterator[SecretStore]:
    with opened(PARAMETERS, aws.login(prefix=PREFIX)) as store:
        yield store


class TestContract(AwsContract):
    type = PARAMETERS
    properties: ClassVar = {"prefix": PREFIX}
    reading = ("GetParameter", "GetParameters")
    punctuation = "/_.-"
    binary_values = False  # a value is text

    def put(self, aws: Aws, name: str, value: str) -> str:
        aws.put_parameter(PREFIX + name, value)
        return PREFIX + name

    @pytest.fixture
    def seed(self, aws: Aws) -> Seed:
        return lambda name, values: aws.put_parameter(PREFIX + name, values[name].decode())


def test_every_property() -> None:
    given = {"awsRegion": "r", "accesskey": "a", "secretKey": "s", "sessionToken": "t", "Endpoint": "e", "PREFIX": "p"}
    settings, notices = decode(Settings, [Property(name, value) for name, value in given.items()])
    assert settings == Settings("r", "a", "s", "t", "e", prefix="p")
    assert notices == []


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("", {"/app/db", "/app/team/key", "/application/x", "flat", "flat.two"}),
        ("/", {"app/db", "app/team/key", "application/x"}),
        ("/app", {"/db", "/team/key", "lication/x"}),
        ("/app/", {"db", "team/key"}),
        ("/app/db", set()),
        ("flat", {".two"}),
        ("nothing", set()),
    ],
)
def test_a_prefix_is_text_that_is_put_before_every_name(aws: Aws, prefix: str, names: set[str]) -> None:
    for name in ("/app/db", "/app/team/key", "/application/x", "flat", "flat.two"):
        aws.put_parameter(name, secret(name))
    with opened(PARAMETERS, aws.login(prefix=prefix)) as store:
        assert store.names("").secrets == names
        for name in names:
            assert store.fetch(name).values == {name: secret(prefix + name).encode()}


@pytest.mark.parametrize("type_", ["String", "StringList", "SecureString"])
def test_parameters_of_every_type(aws: Aws, store: SecretStore, type_: str) -> None:
    aws.put_parameter("/app/db", f"{secret()},b", type_)
    assert store.fetch("db").values == {"db": f"{secret()},b".encode()}


def test_versions_are_numbers(aws: Aws, store: SecretStore) -> None:
    aws.put_parameter("/app/db", secret("1"))
    aws.put_parameter("/app/db", secret("2"))
    assert store.fetch("db").version == "2"
    with pytest.raises(SecretNotFound, match="no name that AWS takes"):
        store.fetch("db:1")


def test_a_listing_has_all_pages(aws: Aws, store: SecretStore) -> None:
    for number in range(101):
        aws.put_parameter(f"/app/{number:03}", secret())
    assert store.names("") == Names(frozenset(f"{number:03}" for number in range(101)))
    assert aws.requests == {"DescribeParameters": 11}  # moto's pages have ten names, whatever is asked for


def test_who_may_not_list_all_lists_a_path(aws: Aws, store: SecretStore) -> None:
    for name in ("/app/db", "/app/team/key", "/other/db"):
        aws.put_parameter(name, secret(name))
    aws.denies["DescribeParameters"] = "AccessDeniedException"
    store.check()
    assert store.names("").secrets == {"db", "team/key"}
    aws.denies["GetParametersByPath"] = "AccessDeniedException"
    with pytest.raises(AccessDenied):
        store.names("")
    with opened(PARAMETERS, aws.login(prefix="app")) as other, pytest.raises(AccessDenied):
        other.names("")  # this prefix is no path


def test_a_batch_is_one_request(aws: Aws, store: SecretStore) -> None:
    names = tuple(f"p{number}" for number in range(9))
    for name in names:
        aws.put_parameter(PREFIX + name, secret(name))
    assert isinstance(store, BatchingStore)
    assert store.largest_batch == 10
    found = store.fetch_many((*names, "missing"))
    assert aws.requests == {"GetParameters": 1}
    assert [it.values for it in map(found.get, names) if isinstance(it, Secret)] == [
        {name: secret(name).encode()} for name in names
    ]
    assert isinstance(found["missing"], SecretNotFound)


@pytest.mark.parametrize("code", ["AccessDeniedException", "InvalidKeyId", "ValidationException"])
def test_a_batch_that_is_refused_is_read_one_by_one(aws: Aws, store: SecretStore, code: str) -> None:
    """AWS refuses it as a whole when one of its parameters is refused."""
    aws.denied["/app/b"] = code
    assert isinstance(store, BatchingStore)
    assert store.fetch_many(("a", "b")) == {}
    assert store.largest_batch == 1


@pytest.mark.parametrize(
    "body", [b"{}", b'{"Parameter": []}', b'{"Parameter": {"Name": "/app/other", "Value": "x"}}', b"{", b"[]"]
)
def test_an_answer_that_is_none(aws: Aws, store: SecretStore, body: bytes) -> None:
    aws.always = saying(body)
    with pytest.raises(MalformedAnswer, match=r"^secret db: "):
        store.fetch("db")


@pytest.mark.parametrize("code", ["ParameterNotFound", "ParameterVersionNotFound"])
def test_what_is_not_there(aws: Aws, store: SecretStore, code: str) -> None:
    aws.always = failing(code)
    with pytest.raises(SecretNotFound, match=rf"^secret db: ssm.eu-central-1: not found \({code}\)$"):
        store.fetch("db")
