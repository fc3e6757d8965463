"""What failures of AWS, of networks and of clocks are to the reader of a secret. Both stores have this code."""

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.store import SecretStore
from tests.support.aws_fixtures import SECRETS, aws, moto_server, opened
from tests.support.canary import secret
from tests.support.servers.aws import KEY, Aws, Fault, Key, dropped, failing, saying
from tests.support.servers.keep_alive import half_close, reset

__all__ = ["aws", "moto_server"]

WHERE = "secretsmanager.eu-central-1"


@pytest.fixture
def store(aws: Aws) -> Iterator[SecretStore]:
    aws.put_secret("db", secret("db"))
    with opened(SECRETS, aws.login()) as store:
        yield store


def failure(store: SecretStore) -> StoreError:
    """Fetch, and return the error, which names the secret and shows nothing of the answer."""
    with pytest.raises(StoreError) as caught:
        store.fetch("db")
    assert str(caught.value).startswith("secret db: ")
    assert caught.value.__cause__ is None
    return caught.value


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


GARBAGE: dict[str, Fault] = {
    "no JSON": saying(secret().encode()),
    "another object": saying(b'{"secret": "x"}'),
    "no object": saying(b"[1]"),
    "a number for a text": saying(b'{"Name": "db", "SecretString": 1, "VersionId": "1"}'),
    "a wrong date": saying(b'{"Name": "db", "SecretString": "x", "CreatedDate": "never"}'),
    "no value": saying(b'{"Name": "db", "VersionId": "1"}'),
    "compressed": saying(gzip.compress(b"{}"), encoding="gzip"),
    "deeply nested": saying(b"[" * 100_000),
    "an error without a code": saying(b"{}", 400),
    "an error that is no JSON": saying(secret().encode(), 400),
}


@pytest.mark.parametrize("fault", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_malformed(aws: Aws, store: SecretStore, fault: Fault) -> None:
    aws.always = fault
    assert isinstance(failure(store), MalformedAnswer)


def test_a_page_of_a_load_balancer_is_an_outage(aws: Aws, store: SecretStore) -> None:
    aws.always = saying(b"<html>" + secret().encode(), 503, "text/html")
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


@pytest.mark.parametrize("end", [reset, half_close, lambda _: False], ids=["reset", "half closed", "closed"])
def test_a_connection_that_breaks_all_the_time_is_an_outage(
    aws: Aws, store: SecretStore, end: Callable[[socket.socket], bool]
) -> None:
    aws.ends, aws.always = end, dropped
    assert isinstance(failure(store), StoreUnavailable)


def test_a_connection_that_died_while_it_was_idle_costs_nobody_an_error(aws: Aws, store: SecretStore) -> None:
    """A read is sent again, whatever its method."""
    store.fetch("db")
    aws.faults.append(dropped)
    assert store.fetch("db").values == {"db": secret("db").encode()}
    aws.drop_connections()
    assert store.fetch("db").values == {"db": secret("db").encode()}


def test_a_server_that_hangs_is_given_up_at_the_deadline(aws: Aws) -> None:
    aws.put_secret("db", secret("db"))
    with opened(SECRETS, aws.login(), deadline=3) as store:
        store.check()
        aws.always = aws.hang
        began = time.monotonic()
        assert isinstance(failure(store), DeadlineExceeded)
        assert time.monotonic() - began >= 2  # it did wait


def test_an_answer_that_drips_is_given_up_at_the_deadline(aws: Aws) -> None:
    """No wait for a byte is long; their sum is. botocore alone would wait for ever."""
    aws.put_secret("db", secret("db"))
    stop = threading.Event()

    def drip(connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{")
        while not stop.wait(0.05):
            connection.sendall(b" ")
        return False

    with opened(SECRETS, aws.login(), deadline=3) as store:
        store.check()
        aws.ends, aws.always = drip, dropped
        try:
            assert isinstance(failure(store), DeadlineExceeded)
        finally:
            stop.set()


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
