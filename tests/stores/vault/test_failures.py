"""``secretstores.hashicorp.vault`` when the server is down, slow, strange or somebody else."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.store import Names, SecretStore
from secretfs.stores._http.body import LARGEST_ANSWER
from tests.support.canary import CANARY, secret
from tests.support.failures import failure
from tests.support.opened import opened
from tests.support.servers.fake_vault import FakeVault
from tests.support.servers.openbao import OpenBao, openbao
from tests.support.vault_fixtures import Folder

TYPE = "secretstores.hashicorp.vault"


@pytest.fixture
def fake() -> Iterator[FakeVault]:
    with FakeVault() as server:
        yield server


@pytest.fixture
def store(fake: FakeVault) -> Iterator[SecretStore]:
    with opened(TYPE, {"vaultAddr": fake.address, "vaultToken": secret("token")}) as store:
        yield store


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OpenBao]:
    """Run a server that a test may hurt."""
    with openbao(tmp_path) as server:
        yield server


# --- a real server in trouble ---


def test_killed_and_back(own: OpenBao) -> None:
    folder = Folder(own, "dapr")
    folder.put("db", {"password": secret()})
    with opened(TYPE, folder.metadata()) as store:
        assert store.fetch("db").values == {"password": secret().encode()}
        own.kill()
        for _ in range(2):
            error = failure(store)
            assert type(error) is StoreUnavailable
            assert "cannot connect: Connection refused" in str(error)
        with pytest.raises(StoreUnavailable):
            store.names("")
        own.start()
        folder.put("db", {"password": secret("new")})
        assert store.fetch("db").values == {"password": secret("new").encode()}


def test_hanging_and_back(own: OpenBao) -> None:
    folder = Folder(own, "dapr")
    folder.put("db", {"password": secret()})
    with opened(TYPE, folder.metadata(), deadline=2.0) as store:
        store.fetch("db")
        with own.hanging():
            started = time.monotonic()
            assert type(failure(store)) is DeadlineExceeded
            assert time.monotonic() - started > 1.9
        assert store.fetch("db").values == {"password": secret().encode()}


def test_sealed(own: OpenBao) -> None:
    folder = Folder(own, "dapr")
    folder.put("db", {"password": secret()})
    with opened(TYPE, folder.metadata()) as store:
        own.call("PUT", "sys/seal")
        for call in (lambda: store.fetch("db"), lambda: store.names(""), store.check):
            with pytest.raises(StoreUnavailable, match=r"Vault is sealed \(503\)"):
                call()


def test_a_host_that_does_not_resolve() -> None:
    with opened(TYPE, {"vaultAddr": "http://no-such-host.invalid", "vaultToken": secret("token")}) as store:
        error = failure(store)
    assert type(error) is StoreUnavailable
    assert "http://no-such-host.invalid: the host name cannot be resolved" in str(error)


def test_a_host_that_takes_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)  # noqa: FBT003
            client.connect_ex(address)
        with opened(
            TYPE, {"vaultAddr": f"http://127.0.0.1:{address[1]}", "vaultToken": secret("token")}, deadline=0.3
        ) as s:
            assert type(failure(s)) is DeadlineExceeded
        for client in waiting:
            client.close()


# --- statuses ---


@pytest.mark.parametrize(
    ("status", "body", "error", "text"),
    [
        (400, b"", SecretNotFound, "the server takes no such name (400)"),
        (400, b'{"errors":["bad"]}', MalformedAnswer, "unexpected status (400)"),
        (400, b'{"errors":["Upgrading from non-versioned to versioned data."]}', StoreUnavailable, "being upgraded"),
        (400, b"Client sent an HTTP request to an HTTPS server.\n", MalformedAnswer, "must start with https://"),
        (401, b"", AccessDenied, "permission denied (401)"),
        (403, b'{"errors":["permission denied"]}', AccessDenied, "permission denied (403)"),
        (404, b'{"errors":[]}', SecretNotFound, "not found (404)"),
        (404, b'{"errors":["namespace not found"]}', AccessDenied, "there is no such namespace (404)"),
        (404, b'{"errors":["no handler for route"]}', AccessDenied, "no engine is mounted there (404)"),
        (405, b"", MalformedAnswer, "unexpected status (405)"),
        (412, b"", StoreUnavailable, "precondition failed (412)"),
        (429, b"", StoreUnavailable, "too many requests (429)"),
        (500, b"", StoreUnavailable, "internal server error (500)"),
        (502, b"", StoreUnavailable, "bad gateway (502)"),
        (503, b"", StoreUnavailable, "service unavailable (503)"),
        (504, b"", StoreUnavailable, "gateway timeout (504)"),
        (599, b"", StoreUnavailable, "server error (599)"),
        (204, b"", MalformedAnswer, "unexpected status (204)"),
    ],
)
def test_statuses(
    fake: FakeVault, store: SecretStore, status: int, body: bytes, error: type[StoreError], text: str
) -> None:
    fake.respond(status, body + CANARY.encode() if body else b"")
    raised = failure(store)
    assert type(raised) is error
    assert text in str(raised)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(fake: FakeVault, store: SecretStore, status: int) -> None:
    with FakeVault() as elsewhere:
        fake.respond(status, b"", f"Location: {elsewhere.address}/v1/secret/data/dapr/db")
        error = failure(store)
    assert type(error) is StoreUnavailable
    assert f"a token does not follow redirects ({status})" in str(error)
    assert elsewhere.heads == []


# --- answers that are none ---


@pytest.mark.parametrize(
    "body",
    [
        b"",
        CANARY.encode(),
        b"[]",
        b"null",
        b"{}",
        b'{"data": null}',
        b'{"data": []}',
        b'{"data": {}}',
        b'{"data": {"data": null, "metadata": {}}}',
        b'{"data": {"data": ["%s"], "metadata": {}}}' % CANARY.encode(),
        b'{"data": {"data": {"a": "%s"}}}' % CANARY.encode(),
        b'{"data": {"data": {"a": "%s\\ud800"}, "metadata": {}}}' % CANARY.encode(),
        b'{"data": {"data": {"%s\\udfff": "b"}, "metadata": {}}}' % CANARY.encode(),
        b'{"data": "%s\xff"}' % CANARY.encode(),
        b'{"data": "%s' % CANARY.encode(),
        b"[" * 100_000,
    ],
)
def test_answers_that_are_not_vaults(fake: FakeVault, store: SecretStore, body: bytes) -> None:
    fake.respond(200, body)
    assert type(failure(store)) is MalformedAnswer


@pytest.mark.parametrize("body", [b'{"data": {}}', b'{"data": {"keys": "ab"}}', b'{"data": {"keys": [1]}}'])
def test_lists_that_are_not_vaults(fake: FakeVault, store: SecretStore, body: bytes) -> None:
    fake.respond(200, body)
    with pytest.raises(MalformedAnswer, match="folder /: the answer has no list of keys"):
        store.names("")


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (b"", StoreUnavailable, "the connection broke"),
        (CANARY.encode() + b" not http\r\n\r\n", MalformedAnswer, "the answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + CANARY.encode(), StoreUnavailable, "the connection broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + CANARY.encode(), MalformedAnswer, "compressed"),
        (b"HTTP/1.1 200 OK\r\nno header " + CANARY.encode() + b"\r\n\r\n", MalformedAnswer, "not JSON"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CANARY.encode(), StoreUnavailable, "broke"),
    ],
)
def test_answers_that_are_not_http(
    fake: FakeVault, store: SecretStore, answer: bytes, error: type[StoreError], text: str
) -> None:
    fake.answer = answer
    raised = failure(store)
    assert type(raised) is error
    assert text in str(raised)


def test_an_answer_without_end(fake: FakeVault, store: SecretStore) -> None:
    fake.answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + CANARY.encode() + b"x" * LARGEST_ANSWER
    error = failure(store)
    assert isinstance(error, MalformedAnswer)
    assert "larger than 16 MiB" in str(error)


def test_what_is_sent(fake: FakeVault, store: SecretStore) -> None:
    fake.respond(404, b"")
    with pytest.raises(SecretNotFound):
        store.fetch("team/a b?c#d%2F")
    assert store.names("te?m") == Names()
    asked, read, listed = (head.split("\r\n") for head in fake.heads)
    assert asked[0] == "GET /v1/sys/internal/ui/mounts/secret HTTP/1.1"
    assert read[0] == "GET /v1/secret/data/dapr/team/a%20b%3Fc%23d%252F HTTP/1.1"
    assert listed[0] == "LIST /v1/secret/metadata/dapr/te%3Fm HTTP/1.1"
    for head in (asked, read, listed):
        assert f"X-Vault-Token: {secret('token')}" in head
        assert "X-Vault-Request: true" in head


def test_an_address_with_a_path(fake: FakeVault) -> None:
    fake.respond(404, b"")
    with opened(TYPE, {"vaultAddr": f"{fake.address}/behind/", "vaultToken": secret("token")}) as store:
        failure(store)
    assert fake.heads[-1].startswith("GET /behind/v1/secret/data/dapr/db HTTP/1.1\r\n")


def test_a_server_that_does_not_tell_the_version_is_asked_again_later(
    fake: FakeVault, store: SecretStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("secretfs.stores.vault.store.time", type("Clock", (), {"monotonic": staticmethod(lambda: now)}))
    fake.tells_version = False
    fake.respond(403, b"")

    def asked() -> int:
        return sum("/ui/mounts/" in head for head in fake.heads)

    for _ in range(3):
        assert type(failure(store)) is AccessDenied
    assert asked() == 1
    assert fake.heads[-1].startswith("GET /v1/secret/data/dapr/db ")
    now += 61
    failure(store)
    assert asked() == 2


def test_an_outage_is_not_waited_for_twice(fake: FakeVault, store: SecretStore) -> None:
    fake.tells_version = False
    fake.respond(503, b"")
    assert type(failure(store)) is StoreUnavailable
    assert len(fake.heads) == 1
