"""``secretstores.kubernetes`` when the server is slow, strange or somebody else."""

import base64
import json
import socket
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
from secretfs.stores.kubernetes.store import KubernetesStore
from tests.support.canary import CANARY, secret
from tests.support.failures import failure
from tests.support.kube_fixtures import kubernetes, outside
from tests.support.servers.fake_vault import FakeVault
from tests.support.waiting import PATIENCE, wait_until

__all__ = ["outside"]

KUBECONFIG = """\
clusters: [{{name: c, cluster: {{server: "{address}"}}}}]
users: [{{name: u, user: {{token: {token}}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
"""


@pytest.fixture
def fake() -> Iterator[FakeVault]:
    """Run a server that answers what the test says. It knows HTTP, and nothing of Vault unless asked."""
    with FakeVault() as server:
        yield server


def properties(tmp_path: Path, address: str) -> dict[str, str]:
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG.format(address=address, token=secret("token")))
    return {"defaultNamespace": "shop", "kubeconfigPath": str(path)}


@pytest.fixture
def store(fake: FakeVault, tmp_path: Path) -> Iterator[KubernetesStore]:
    with kubernetes(properties(tmp_path, fake.address)) as store:
        yield store


def status(code: int, reason: str, **details: object) -> bytes:
    answer = {"kind": "Status", "code": code, "reason": reason, "message": secret("message"), "details": details}
    return json.dumps(answer).encode()


@pytest.mark.parametrize(
    ("code", "body", "kind", "text"),
    [
        (400, status(400, "BadRequest"), MalformedAnswer, "are the selectors right"),
        (401, status(401, "Unauthorized"), AccessDenied, "the credentials are not accepted"),
        (403, status(403, "Forbidden"), AccessDenied, "forbidden"),
        (404, status(404, "NotFound", kind="secrets", name="db"), SecretNotFound, "not found"),
        (404, f"default backend - 404 {secret()}".encode(), StoreUnavailable, "not a Kubernetes API server"),
        (404, b"\xff", StoreUnavailable, "not a Kubernetes API server"),
        (404, b"null", StoreUnavailable, "not a Kubernetes API server"),
        (410, status(410, "Expired"), StoreUnavailable, "too long ago"),
        (418, b"", MalformedAnswer, "unexpected status"),
        (429, secret().encode(), StoreUnavailable, "too many requests"),
        (500, status(500, "InternalError"), StoreUnavailable, "internal server error"),
        (503, b"\xff\xfe", StoreUnavailable, "service unavailable"),
        (307, b"", StoreUnavailable, "does not follow redirects"),
    ],
)
def test_what_a_status_means(
    fake: FakeVault, store: KubernetesStore, code: int, body: bytes, kind: type[StoreError], text: str
) -> None:
    fake.respond(code, body)
    error = failure(store)
    assert isinstance(error, kind)
    assert text in str(error)
    assert str(error).endswith(f"({code})")


def secret_object(**more: object) -> dict[str, object]:
    data = {"key": base64.b64encode(secret().encode()).decode()}
    return {
        "kind": "Secret",
        "metadata": {"name": "db", "namespace": "shop", "resourceVersion": "7"},
        "data": data,
        **more,
    }


@pytest.mark.parametrize(
    "answer",
    [
        secret().encode(),
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        json.dumps(secret_object(metadata={"name": "other", "resourceVersion": "7"})).encode(),
        json.dumps(secret_object(metadata={"name": "db"})).encode(),
        json.dumps(secret_object(metadata=7)).encode(),
        json.dumps(secret_object(data={"key": f"%{CANARY}"})).encode(),
        json.dumps(secret_object(data={"key": 7})).encode(),
        json.dumps(secret_object(data=[secret()])).encode(),
    ],
)
def test_an_answer_that_is_no_secret(fake: FakeVault, store: KubernetesStore, answer: bytes) -> None:
    fake.respond(200, answer)
    assert type(failure(store)) is MalformedAnswer


def test_a_server_that_keeps_no_record_of_who_wrote_tells_no_time(fake: FakeVault, store: KubernetesStore) -> None:
    fake.respond(200, json.dumps(secret_object()).encode())
    assert (store.fetch("db").version, store.fetch("db").modified) == ("7", None)


@pytest.mark.parametrize("answer", [b"{}", b'{"items": 7, "metadata": {}}', b'{"items": [7], "metadata": {}}'])
def test_an_answer_that_is_no_list(fake: FakeVault, store: KubernetesStore, answer: bytes) -> None:
    fake.respond(200, answer)
    with pytest.raises(MalformedAnswer):
        store.names("")


def test_the_head_of_a_request(fake: FakeVault, store: KubernetesStore) -> None:
    fake.respond(200, json.dumps(secret_object()).encode())
    store.fetch("db")
    (head,) = fake.heads
    assert head.startswith("GET /api/v1/namespaces/shop/secrets/db HTTP/1.1\r\n")
    assert "\r\nUser-Agent: secretfs/" in head
    assert f"\r\nauthorization: Bearer {secret('token')}\r\n" in head


def test_a_server_that_hangs_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with kubernetes(properties(tmp_path, address), deadline=2.0) as store:
            for call in (lambda: store.fetch("db"), lambda: store.names(""), store.check):
                with pytest.raises(DeadlineExceeded, match="no answer in time"):
                    call()
                server.settimeout(PATIENCE)
                server.accept()[0].close()
                server.settimeout(0)
                with pytest.raises(BlockingIOError):  # it has not been tried again
                    server.accept()


def test_a_host_without_an_address(tmp_path: Path) -> None:
    with kubernetes(properties(tmp_path, "https://nowhere.invalid")) as store:
        assert "the host name cannot be resolved" in str(failure(store))


def test_a_server_that_does_not_speak_tls(fake: FakeVault, tmp_path: Path) -> None:
    with kubernetes(properties(tmp_path, fake.address.replace("http:", "https:"))) as store:
        assert "TLS: " in str(failure(store))


def test_a_watch_that_sends_garbage_is_begun_anew(fake: FakeVault, tmp_path: Path) -> None:
    fake.respond(200, json.dumps({"items": [secret_object()], "metadata": {"resourceVersion": "7"}}).encode())
    with kubernetes(properties(tmp_path, fake.address)) as store:
        store.watch(lambda _: None)  # the list is no stream of events; what it holds must not be logged
        wait_until(lambda: len([head for head in fake.heads if "watch=true" in head]) >= 2)
