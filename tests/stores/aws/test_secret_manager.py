"""``secretstores.aws.secretmanager``: settings, names, values and batches, with the unmodified SDK and moto."""

import json
from collections.abc import Iterator, Mapping
from typing import ClassVar

import pytest

from secretfs.errors import AccessDenied, MalformedAnswer, SecretNotFound, StoreUnavailable
from secretfs.settings import Property, decode
from secretfs.store import BatchingStore, ClockedStore, Names, Secret, SecretStore
from secretfs.stores.aws.secret_manager import Settings
from secretfs.testing import Seed
from tests.support.aws_contract import AwsContract
from tests.support.aws_fixtures import SECRETS, aws, moto_server, opened
from tests.support.canary import secret
from tests.support.servers.aws import REGION, Aws, failing
from tests.support.servers.http_server import saying

__all__ = ["aws", "moto_server"]


@pytest.fixture
def store(aws: Aws) -> Iterator[SecretStore]:
    with opened(SECRETS, aws.login()) as store:
        yield store


@pytest.fixture
def multi(aws: Aws) -> Iterator[SecretStore]:
    with opened(SECRETS, aws.login(multipleKeyValuesPerSecret="true")) as store:
        yield store


class TestContract(AwsContract):
    type = SECRETS
    reading = ("GetSecretValue", "BatchGetSecretValue")
    punctuation = "/_+=.@-"

    def put(self, aws: Aws, name: str, value: str) -> str:
        aws.put_secret(name, value)
        return name

    @pytest.fixture
    def seed(self, aws: Aws) -> Seed:
        def seed(name: str, values: Mapping[str, bytes]) -> None:
            try:
                aws.put_secret(name, values[name].decode())
            except UnicodeDecodeError:
                aws.put_secret(name, values[name])

        return seed


class TestMultiValuedContract(TestContract):
    properties: ClassVar = {"multipleKeyValuesPerSecret": "true"}
    multi_valued = True
    can_be_empty = True
    binary_values = False  # a value is a string of JSON

    @pytest.fixture
    def seed(self, aws: Aws) -> Seed:
        return lambda name, values: aws.put_secret(
            name, json.dumps({key: value.decode() for key, value in values.items()})
        )


def test_every_property() -> None:
    given = {
        "REGION": "r", "accessKey": "a", "secretkey": "s", "sessionToken": "t", "endpoint": "e",
        "trustAnchorArn": "anchor", "trustProfileArn": "2", "assumeRoleArn": "3", "multipleKeyValuesPerSecret": "Yes",
    }  # fmt: skip
    settings, notices = decode(Settings, [Property(name, value) for name, value in given.items()])
    assert settings == Settings("r", "a", "s", "t", "e", "anchor", "2", "3", multi_valued=True)
    assert notices == []
    assert [notice.message for notice in decode(Settings, [Property("awsRegion", "x")])[1]] == [
        "unknown property awsRegion is ignored (did you mean region?): region has its default"
    ]
    assert "anchor" not in repr(settings)


def test_a_version_has_its_id_its_time_and_its_stages(aws: Aws, store: SecretStore) -> None:
    aws.put_secret("db", secret("1"))
    first = store.fetch("db")
    assert (len(first.version), first.stages) == (36, ("AWSCURRENT",))
    aws.put_secret("db", secret("2"))
    second = store.fetch("db")
    assert second.values == {"db": secret("2").encode()}
    assert second.version != first.version
    assert isinstance(store, BatchingStore)
    assert store.fetch_many(("db", "other"))["db"] == second


def test_a_listing_has_all_pages_and_nothing_that_is_marked_for_deletion(aws: Aws, store: SecretStore) -> None:
    for number in range(201):
        aws.put_secret(f"team/{number}", secret())
    aws.put_secret("gone", secret())
    aws.call("secretsmanager.DeleteSecret", SecretId="gone")
    assert store.names("") == Names(frozenset(f"team/{number}" for number in range(201)))
    assert aws.requests == {"ListSecrets": 3}
    with pytest.raises(SecretNotFound, match=r"^secret gone: secretsmanager.eu-central-1: it is marked for deletion"):
        store.fetch("gone")


def test_a_secret_without_a_value_is_not_found(aws: Aws, store: SecretStore) -> None:
    aws.call("secretsmanager.CreateSecret", Name="empty")
    with pytest.raises(SecretNotFound):
        store.fetch("empty")


def test_an_arn_is_a_name(aws: Aws, store: SecretStore) -> None:
    aws.put_secret("db", secret("db"))
    arn = aws.call("secretsmanager.DescribeSecret", SecretId="db")["ARN"]
    assert store.fetch(arn).values == {arn: secret("db").encode()}


@pytest.mark.parametrize("name", ["db-AbCdEf", "other"])
def test_an_answer_about_another_secret_is_not_given(aws: Aws, store: SecretStore, name: str) -> None:
    aws.faults.append(saying(b'{"Name": "db", "SecretString": "x", "VersionId": "1"}'))
    with pytest.raises(MalformedAnswer, match="not about this secret"):
        store.fetch(name)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"a": "1", "b": {"z": [1.0, "<&>"], "c": 2}}', {"a": "1", "b": '{"c":2,"z":[1,"\\u003c\\u0026\\u003e"]}'}),
        (
            '{"n": 1e21, "small": 1e-7, "big": 12345678901234567890}',
            {"n": "1e+21", "small": "1e-7", "big": "12345678901234567000"},
        ),
        ('{"t": true, "null": null, "e": ""}', {"t": "true", "null": "null", "e": ""}),
        ('{"twice": 1, "twice": 2}', {"twice": "2"}),
        ('{"half": "\\ud800x"}', {"half": "\N{REPLACEMENT CHARACTER}x"}),
        ("{}", {}),
        ("null", {}),
        ("plain", {"db": "plain"}),
        ("[1]", {"db": "[1]"}),
        ("1", {"db": "1"}),
        ('{"a": 1} x', {"db": '{"a": 1} x'}),
        ('{"a": NaN}', {"db": '{"a": NaN}'}),
        ('{"a": 1e999}', {"db": '{"a": 1e999}'}),
        ("[" * 20_000, {"db": "[" * 20_000}),
    ],
    ids=lambda it: it[:30] if isinstance(it, str) else "",
)
def test_keys_are_the_members_of_an_object_as_dapr_renders_them(
    aws: Aws, multi: SecretStore, text: str, values: dict[str, str]
) -> None:
    aws.put_secret("db", text)
    assert multi.fetch("db").values == {key: value.encode() for key, value in values.items()}


def test_a_binary_secret_of_a_multi_valued_store_has_one_key(aws: Aws, multi: SecretStore) -> None:
    aws.put_secret("keystore", b"\x00\xff" + secret().encode())
    assert multi.fetch("keystore").values == {"keystore": b"\x00\xff" + secret().encode()}


# --- batches ---


def test_a_batch_is_one_request(aws: Aws, store: SecretStore) -> None:
    names = tuple(f"s{number}" for number in range(20))
    for name in names:
        aws.put_secret(name, secret(name))
    aws.put_secret("s3", b"\x00" + secret().encode())
    aws.denied["s4"] = "AccessDeniedException"
    aws.denied["s5"] = "DecryptionFailure"
    assert isinstance(store, BatchingStore)
    assert store.largest_batch == 20
    found = store.fetch_many((*names[:18], "missing", "\0"))
    assert aws.requests == {"BatchGetSecretValue": 1}
    assert {type(it) for name, it in found.items() if name not in ("s4", "s5", "missing")} == {Secret}
    assert isinstance(found["s3"], Secret)
    assert found["s3"].values == {"s3": b"\x00" + secret().encode()}
    assert isinstance(found["s4"], AccessDenied)
    assert isinstance(found["s5"], AccessDenied)
    assert str(found["s5"]) == "secret s5: secretsmanager.eu-central-1: the KMS key cannot be used (DecryptionFailure)"
    assert isinstance(found["missing"], SecretNotFound)
    assert "\0" not in found


def test_batches_that_are_forbidden_are_not_tried_again(aws: Aws, store: SecretStore) -> None:
    """The right to read single secrets does not imply that to read batches."""
    for name in ("a", "b"):
        aws.put_secret(name, secret(name))
    aws.denies["BatchGetSecretValue"] = "AccessDeniedException"
    assert isinstance(store, BatchingStore)
    assert store.fetch_many(("a", "b")) == {}
    assert store.largest_batch == 1
    assert store.fetch("a").values == {"a": secret("a").encode()}


@pytest.mark.parametrize("code", ["ValidationException", "DecryptionFailure", "UnknownOperationException"])
def test_a_batch_that_fails_as_a_whole_is_read_one_by_one(aws: Aws, store: SecretStore, code: str) -> None:
    aws.faults.append(failing(code))
    assert isinstance(store, BatchingStore)
    assert store.fetch_many(("a", "b")) == {}


def test_an_outage_of_a_batch_is_one(aws: Aws, store: SecretStore) -> None:
    aws.faults.append(failing("InternalServiceError", status=500))
    assert isinstance(store, BatchingStore)
    with pytest.raises(StoreUnavailable, match=r"^batch of secrets: "):
        store.fetch_many(("a", "b"))
    assert store.largest_batch == 20


def test_arns_are_read_alone(aws: Aws, store: SecretStore) -> None:
    aws.put_secret("db", secret("db"))
    arn = aws.call("secretsmanager.DescribeSecret", SecretId="db")["ARN"]
    assert isinstance(store, BatchingStore)
    assert list(store.fetch_many(("db", arn))) == ["db"]
    assert store.fetch_many((arn, arn)) == {}


# --- the rest ---


def test_check_accepts_who_may_not_list(aws: Aws, store: SecretStore) -> None:
    store.check()
    aws.denies["ListSecrets"] = "AccessDeniedException"
    store.check()
    with pytest.raises(AccessDenied, match="no policy lets this identity do that"):
        store.names("")


def test_the_clock_of_aws_is_known(aws: Aws, store: SecretStore) -> None:
    assert isinstance(store, ClockedStore)
    assert store.clock_skew() is None
    aws.clock = 120
    store.check()
    skew = store.clock_skew()
    assert skew is not None
    assert 60 < skew < 180


def test_opening_sends_nothing(aws: Aws) -> None:
    with opened(SECRETS, {"region": REGION, "endpoint": aws.address}):
        pass
    assert aws.requests == {}
    assert aws.signers == []
