"""What failures of AWS, of networks and of clocks are to the reader of a secret. Both stores have this code."""

from collections.abc import Iterator

import pytest

from secretfs.errors import (
    AccessDenied,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.store import SecretStore
from tests.support.aws_fixtures import SECRETS, aws, moto_server, opened
from tests.support.canary import secret
from tests.support.failures import GARBAGE, BrokenConnections, failure
from tests.support.servers.aws import KEY, Aws, Key, failing
from tests.support.servers.http_server import Fault, saying

__all__ = ["aws", "moto_server"]

WHERE = "secretsmanager.eu-central-1"


@pytest.fixture
def store(aws: Aws) -> Iterator[SecretStore]:
    aws.put_secret("db", secret("db"))
    with opened(SECRETS, aws.login()) as store:
        yield store


ERRORS = [
    ("ResourceNotFoundException", 400, SecretNotFound, "not found"),
    ("InvalidRequestException", 400, SecretNotFound, "it is marked for deletion"),
    ("InvalidParameterException", 400, SecretNotFound, "no name that AWS takes"),
    ("ValidationException", 400, SecretNotFound, "no name that AWS takes"),
    ("AccessDeniedException", 400, AccessDenied, "no policy lets this identity do that"),
    ("DecryptionFailure", 400, AccessDenied, "the KMS key cannot be used"),
    ("UnrecognizedClientException", 400, AccessDenied, "the access key is not known"),
    ("InvalidSignatureException", 400, AccessDenied, "the secret key is wrong"),
    ("ExpiredTokenException", 400, AccessDenied, "the session token has expired"),
    ("ThrottlingException", 400, StoreUnavailable, "too many requests"),
    ("LimitExceededException", 400, StoreUnavailable, "too many requests"),
    ("InternalServiceError", 500, StoreUnavailable, "server error"),
    ("SomethingNew", 500, StoreUnavailable, "server error (500)"),
    ("SomethingNew", 429, StoreUnavailable, "too many requests (429)"),
    ("SomethingNew", 403, AccessDenied, "no policy lets this identity do that (403)"),
    ("SomethingNew", 400, MalformedAnswer, "an error that is not known (400)"),
]


@pytest.mark.parametrize(("code", "status", "kind", "reason"), ERRORS)
def test_the_code_decides_what_an_error_means(
    aws: Aws, store: SecretStore, code: str, status: int, kind: type[StoreError], reason: str
) -> None:
    aws.always = failing(code, secret("text"), status)
    error = failure(store)
    assert isinstance(error, kind)
    assert str(error).startswith(f"secret db: {WHERE}: {reason}")
    aws.always = None
    assert store.fetch("db").values == {"db": secret("db").encode()}


MALFORMED = GARBAGE | {
    "another object": saying(b'{"secret": "x"}'),
    "a number for a text": saying(b'{"Name": "db", "SecretString": 1, "VersionId": "1"}'),
    "a wrong date": saying(b'{"Name": "db", "SecretString": "x", "CreatedDate": "never"}'),
    "no value": saying(b'{"Name": "db", "VersionId": "1"}'),
    "an error without a code": saying(b"{}", 400),
}


@pytest.mark.parametrize("fault", MALFORMED.values(), ids=MALFORMED.keys())
def test_garbage_is_malformed(aws: Aws, store: SecretStore, fault: Fault) -> None:
    aws.always = fault
    assert isinstance(failure(store), MalformedAnswer)


def test_a_page_of_a_load_balancer_is_an_outage(aws: Aws, store: SecretStore) -> None:
    aws.always = saying(b"<html>" + secret().encode(), 503, {"Content-Type": "text/html"})
    assert isinstance(failure(store), StoreUnavailable)


def test_an_answer_that_is_too_large_is_not_read(aws: Aws, store: SecretStore) -> None:
    aws.always = saying(b" " * (17 << 20))
    error = failure(store)
    assert isinstance(error, MalformedAnswer)
    assert "larger than 16 MiB" in str(error)


def test_a_listing_that_leads_to_itself_ends(aws: Aws, store: SecretStore) -> None:
    aws.always = saying(b'{"SecretList": [], "NextToken": "again"}')
    with pytest.raises(MalformedAnswer, match=r"^list of secrets: .*a page leads to itself"):
        store.names("")


@pytest.mark.parametrize("body", [b'{"SecretList": 1}', b'{"SecretList": ["db"]}', b"nothing"])
def test_a_listing_that_is_none(aws: Aws, store: SecretStore, body: bytes) -> None:
    aws.always = saying(body)
    with pytest.raises(MalformedAnswer, match=r"^list of secrets: "):
        store.names("")


def test_a_listing_that_aws_does_not_take_is_malformed(aws: Aws, store: SecretStore) -> None:
    aws.always = failing("InvalidParameterException")
    with pytest.raises(MalformedAnswer):
        store.names("")


class TestBrokenConnections(BrokenConnections):
    @pytest.fixture
    def server(self, aws: Aws) -> Aws:
        aws.put_secret("db", secret("db"))
        return aws

    @pytest.fixture
    def store(self, server: Aws) -> Iterator[SecretStore]:
        with opened(SECRETS, server.login()) as store:
            yield store

    @pytest.fixture
    def impatient(self, server: Aws) -> Iterator[SecretStore]:
        with opened(SECRETS, server.login(), deadline=self.short) as store:
            yield store


def test_our_clock_is_named_when_it_is_wrong(aws: Aws, store: SecretStore) -> None:
    aws.clock = 3600
    error = failure(store)
    assert isinstance(error, AccessDenied)
    assert (
        str(error) == f"secret db: {WHERE}: the clock of this machine is wrong: AWS refuses the time of the signature"
    )


def test_a_wrong_key_is_refused(aws: Aws) -> None:
    with opened(SECRETS, aws.login(secretKey=secret("wrong"))) as store:
        assert "the secret key is wrong (InvalidSignatureException)" in str(failure(store))
    with opened(SECRETS, aws.login(accessKey="AKIANOBODY")) as store:
        assert "the access key is not known (UnrecognizedClientException)" in str(failure(store))


def test_session_tokens_are_sent_and_expire(aws: Aws) -> None:
    aws.put_secret("db", secret("db"))
    aws.keys[KEY] = Key(secret("secret-key"), secret("session"))
    with opened(SECRETS, aws.login(sessionToken=secret("session"))) as store:
        assert store.fetch("db").values == {"db": secret("db").encode()}
        aws.keys[KEY] = Key(secret("secret-key"), secret("session"), expires=0)
        assert "the session token has expired (ExpiredTokenException)" in str(failure(store))


def test_a_proxy_that_is_none_is_an_outage(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with opened(SECRETS, aws.login(endpoint="https://aws.invalid")) as store:
        assert "the proxy does not connect us" in str(failure(store))
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with opened(SECRETS, aws.login(endpoint="https://aws.invalid")) as store:
        assert "no HTTP proxy" in str(failure(store))


def test_a_host_that_is_not_there(aws: Aws) -> None:
    with opened(SECRETS, aws.login(endpoint="https://aws.invalid")) as store:
        assert isinstance(failure(store), StoreUnavailable)
