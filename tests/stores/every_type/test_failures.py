"""The table of failures: what each store makes of each of eight failures. One class is a row, one method a cell.

Everything happens on the store's server. A cell that has no method says why the failure cannot occur there (`CANNOT`),
or which test has it (`ELSEWHERE`). A type without a row fails here, and so does a row that says nothing of a failure.
"""

import base64
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, ClassVar

import grpc
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
from secretfs.stores import BUILTIN
from tests.support import azure_fixtures, secret_service
from tests.support.aws_fixtures import PARAMETERS, SECRETS, aws, moto_server
from tests.support.azure_fixtures import azure
from tests.support.canary import CANARY, secret
from tests.support.gcp_fixtures import gcp
from tests.support.opened import DEADLINE, opened
from tests.support.pluggable import socket_folder
from tests.support.scripted_plug_in import ScriptedPlugIn, fails, pair, says, scripted_plug_in
from tests.support.servers import azure_keyvault
from tests.support.servers import gcp as gcp_server
from tests.support.servers.aws import KEY, Key, failing
from tests.support.servers.faulty import Faulty
from tests.support.servers.http_server import Answer, HttpServer, Request, dropped, saying
from tests.support.servers.keep_alive import reset
from tests.support.signed_fixtures import ALIBABA, HUAWEI, TENCENT, Kind, clouds
from tests.support.sops import SOPS, Encrypted, new_key
from tests.support.vault_fixtures import Folder, kv, openbao_server

__all__ = ["aws", "azure", "clouds", "gcp", "kv", "moto_server", "openbao_server"]

FAILURES: Mapping[str, type[StoreError]] = {
    "not_found": SecretNotFound,
    "denied": AccessDenied,
    "throttled": StoreUnavailable,
    "hang": DeadlineExceeded,
    "reset": StoreUnavailable,
    "garbage": MalformedAnswer,
    "expired_credential": AccessDenied,
    "clock_skew": AccessDenied,
}
"""Column to the error that a reader gets."""
IMPATIENT = 1.5
"""Seconds: the deadline of a store whose server hangs."""
STORES = Path(__file__).parents[1]

Give = Callable[[str], Any]
"""Returns the fixture of a name."""


class Row:
    """A store type on its server, which has the secret ``db``."""

    type: ClassVar[str]
    CANNOT: ClassVar[Mapping[str, str]] = {}
    """Failure to why it does not occur."""
    ELSEWHERE: ClassVar[Mapping[str, str]] = {}
    """Failure to the test that has it: ``file::name``, below tests/stores."""

    def __init__(self, give: Give) -> None:
        """Start the server, and put the secret there."""

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        """Open a store of this type."""
        raise NotImplementedError

    def not_found(self) -> None:
        """Do nothing: the test asks for a secret that is not there."""


class HttpRow(Row):
    """A store on one of our own HTTP servers."""

    server: HttpServer

    def hang(self) -> None:
        self.server.always = self.server.hang

    def reset(self) -> None:
        self.server.ends, self.server.always = reset, dropped

    def garbage(self) -> None:
        self.server.always = saying(secret().encode())


class SecretsManager(HttpRow):
    type = SECRETS

    def __init__(self, give: Give) -> None:
        self.server = self.aws = give("aws")
        self.aws.keys[KEY] = Key(secret("secret-key"), secret("session"))
        self.aws.put_secret("db", secret("db"))

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        return opened(self.type, self.aws.login(sessionToken=secret("session")), deadline=deadline)

    def denied(self) -> None:
        self.aws.denied["db"] = "AccessDeniedException"

    def throttled(self) -> None:
        self.aws.always = failing("ThrottlingException")

    def expired_credential(self) -> None:
        self.aws.keys[KEY] = Key(secret("secret-key"), secret("session"), expires=0)

    def clock_skew(self) -> None:
        self.aws.clock = 3600


class ParameterStore(SecretsManager):
    type = PARAMETERS

    def __init__(self, give: Give) -> None:
        super().__init__(give)
        self.aws.put_parameter("db", secret("db"))


class KeyVault(HttpRow):
    type = azure_fixtures.TYPE
    CANNOT: ClassVar = {
        "clock_skew": "a client secret is sent without a time; a token is judged by the clock of the vault"
    }

    def __init__(self, give: Give) -> None:
        self.server = self.azure = give("azure")
        self.azure.put("db", secret("db"))

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        return opened(self.type, azure_fixtures.login(), deadline=deadline)

    def denied(self) -> None:
        self.azure.denies = {"get": "ForbiddenByRbac"}

    def throttled(self) -> None:
        self.azure.always = azure_keyvault.throttled(Retry_After="60")

    def expired_credential(self) -> None:
        self.azure.expired_secrets.add(secret("client-secret"))
        self.azure.revoke()


class SecretManager(HttpRow):
    type = "secretstores.gcp.secretmanager"

    def __init__(self, give: Give) -> None:
        self.server = self.gcp = give("gcp")
        self.gcp.put("db", secret("db").encode())

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        annotations = {"secretfs/endpoint": self.gcp.address}
        return opened(self.type, self.gcp.login(), deadline=deadline, annotations=annotations)

    def denied(self) -> None:
        self.gcp.denied.add("db")

    def throttled(self) -> None:
        self.gcp.always = gcp_server.failing(429, "RESOURCE_EXHAUSTED")

    def expired_credential(self) -> None:
        """A key whose time is over is no longer known."""
        self.gcp.known_keys.clear()

    def clock_skew(self) -> None:
        self.gcp.clock = 7200


class SignedRow(HttpRow):
    kind: ClassVar[Kind]
    throttling: ClassVar[tuple[int, str]]
    expiry: ClassVar[tuple[int, str]]

    def __init__(self, give: Give) -> None:
        self.server = self.clouds = give("clouds")
        self.clouds.put("db", secret("db").encode())

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        annotations = {"secretfs/endpoint": self.clouds.address}
        return opened(self.type, self.kind.properties(), deadline=deadline, annotations=annotations)

    def denied(self) -> None:
        self.clouds.denied.add("db")

    def throttled(self) -> None:
        status, body = self.throttling
        self.clouds.always = saying(body.encode(), status)

    def expired_credential(self) -> None:
        status, body = self.expiry
        self.clouds.always = saying(body.encode(), status)

    def clock_skew(self) -> None:
        self.clouds.clock = 3600


class Alibaba(SignedRow):
    kind, type = ALIBABA, ALIBABA.type
    throttling = 400, '{"Code": "Throttling.User"}'
    expiry = 400, '{"Code": "InvalidSecurityToken.Expired"}'


class Huawei(SignedRow):
    kind, type = HUAWEI, HUAWEI.type
    throttling = 429, '{"error_code": "APIGW.0308"}'
    expiry = 401, '{"error_code": "APIGW.0301"}'


class Tencent(SignedRow):
    kind, type = TENCENT, TENCENT.type
    throttling = 200, '{"Response": {"Error": {"Code": "RequestLimitExceeded"}}}'
    expiry = 200, '{"Response": {"Error": {"Code": "AuthFailure.TokenFailure"}}}'


class Vault(Row):
    """A real OpenBao, behind a way to it that fails."""

    type = "secretstores.hashicorp.vault"
    CANNOT: ClassVar = {"clock_skew": "a token carries no time; the difference is measured (vault/test_clock.py)"}

    def __init__(self, give: Give) -> None:
        self.folder: Folder = give("kv")
        self.folder.put("db", {"password": secret("db")})
        path = f"secret/data/{self.folder.prefix}"
        self.token = self.folder.server.limited_token(**{f"{path}/*": "read"})
        self.way: Faulty = give("way")

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        properties = self.folder.metadata(vaultAddr=self.way.address, vaultToken=self.token)
        return opened(self.type, properties, deadline=deadline)

    def denied(self) -> None:
        """Take the policy away: the token lives."""
        call = self.folder.server.call
        known = call("POST", "auth/token/lookup", {"token": self.token})["data"]["policies"]
        for policy in set(known) - {"default"}:
            call("DELETE", f"sys/policies/acl/{policy}")

    def throttled(self) -> None:
        self.way.answer(429)

    def hang(self) -> None:
        self.way.swallow()

    def reset(self) -> None:
        self.way.reset()

    def garbage(self) -> None:
        self.way.answer(200, secret().encode())

    def expired_credential(self) -> None:
        self.folder.server.call("POST", "auth/token/revoke", {"token": self.token})


class _ApiServer(HttpServer):
    """Has one secret. The real server, of the other tests, speaks TLS and cannot be made to fail."""

    def answer(self, request: Request) -> Answer | None:
        fault = self.next_fault()
        if fault is not None:
            return fault()
        name = request.path.removeprefix("/api/v1/namespaces/shop/secrets/")
        if name != "db":
            return status(404, "NotFound")
        data = {"password": base64.b64encode(secret("db").encode()).decode()}
        about = {"name": name, "namespace": "shop", "resourceVersion": "1"}
        return Answer.json(200, {"kind": "Secret", "metadata": about, "data": data})


def status(code: int, reason: str) -> Answer:
    """Make an error as Kubernetes words it."""
    details = {"kind": "secrets", "name": "missing"}
    return Answer.json(
        code, {"kind": "Status", "code": code, "reason": reason, "message": secret(), "details": details}
    )


class Kubernetes(HttpRow):
    type = "secretstores.kubernetes"
    CANNOT: ClassVar = {"clock_skew": "a token is judged by the clock of the server, and ours is not sent"}

    def __init__(self, give: Give) -> None:
        self.server = give("api_server")
        self.kubeconfig: Path = give("tmp_path") / "kubeconfig"
        config = {
            "clusters": [{"name": "c", "cluster": {"server": self.server.address}}],
            "users": [{"name": "u", "user": {"token": secret("token")}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
        self.kubeconfig.write_text(json.dumps(config))

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        properties = {"defaultNamespace": "shop", "kubeconfigPath": str(self.kubeconfig)}
        return opened(self.type, properties, deadline=deadline)

    def denied(self) -> None:
        self.server.always = lambda: status(403, "Forbidden")

    def throttled(self) -> None:
        self.server.always = lambda: status(429, "TooManyRequests")

    def expired_credential(self) -> None:
        self.server.always = lambda: status(401, "Unauthorized")


LOCAL = {
    "throttled": "nobody counts",
    "expired_credential": "there is no credential",
    "clock_skew": "there is one clock",
}


class Environment(Row):
    type = "secretstores.local.env"
    CANNOT: ClassVar = LOCAL | {
        "denied": "Dapr's own variables are as if they were not there",
        "hang": "the environment is memory of this process",
        "reset": "the environment is memory of this process",
        "garbage": "a value may be any bytes",
    }

    def __init__(self, give: Give) -> None:
        give("monkeypatch").setenv("FAILURE_TABLE_db", secret("db"))

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        return opened(self.type, {"prefix": "FAILURE_TABLE_"}, deadline=deadline)


class JsonFile(Row):
    type = "secretstores.local.file"
    CANNOT: ClassVar = LOCAL | {
        "denied": "a file is refused as a whole, which is an outage",
        "hang": "a file is read within the deadline of the reader, or not at all: nothing to wait for is ours",
    }
    ELSEWHERE: ClassVar = {
        "reset": "test_local_file_changes.py::test_a_file_that_vanishes_is_an_outage_until_it_is_back"
    }

    def __init__(self, give: Give) -> None:
        self.path: Path = give("tmp_path") / "secrets.json"
        self.path.write_text(json.dumps({"db": secret("db")}))

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        return opened(self.type, {"secretsFile": str(self.path)}, deadline=deadline)

    def garbage(self) -> None:
        self.path.write_text(f"{secret()} is no JSON")


class Directory(Row):
    type = "secretstores.secretfs.directory"
    CANNOT: ClassVar = LOCAL | {
        "hang": "a file is read within the deadline of the reader, or not at all: nothing to wait for is ours",
        "garbage": "a value may be any bytes",
    }
    ELSEWHERE: ClassVar = {"denied": "test_directory.py::denied", "reset": "test_directory.py::unreachable"}

    def __init__(self, give: Give) -> None:
        self.path: Path = give("tmp_path")
        (self.path / "db").write_text(secret("db"))

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        return opened(self.type, {"path": str(self.path)}, deadline=deadline)


class Sops(Row):
    type = "secretstores.secretfs.sops"
    CANNOT: ClassVar = LOCAL
    ELSEWHERE: ClassVar = {
        "hang": "sops/test_store.py::test_a_tool_in_trouble",
        "reset": "../support/secrets_file.py::unreachable",
    }

    def __init__(self, give: Give) -> None:
        self.place: Path = give("tmp_path")
        give("monkeypatch").setenv("PATH", str(SOPS.parent), prepend=":")
        give("monkeypatch").setenv("HOME", str(self.place))
        self.file = Encrypted.make(self.place)
        self.file.write({"db": secret("db")})

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        return self.file.store(deadline=deadline)

    def denied(self) -> None:
        self.file.write_text(b'{"db": "x"}', new_key(self.place / "other.key"))

    def garbage(self) -> None:
        self.file.path.write_bytes(self.file.path.read_bytes().replace(b"data:", b"data:AAAA"))


class Keyring(Row):
    type = "secretstores.secretfs.keyring"
    CANNOT: ClassVar = {
        "throttled": "a service of the same machine has no limits",
        "expired_credential": "the bus knows a user by his process",
        "clock_skew": "there is one clock",
    }

    def __init__(self, give: Give) -> None:
        self.service: secret_service.SecretService = give("keyring")
        self.strange_bus: Callable[[Path, bytes | None], None] = give("strange_bus")
        give("monkeypatch").setenv("DBUS_SESSION_BUS_ADDRESS", self.service.address)
        self.service.put("db", secret("db").encode())

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        return opened(self.type, {}, deadline=deadline)

    def denied(self) -> None:
        self.service.lock()

    def hang(self) -> None:
        self._meet(None)

    def reset(self) -> None:
        self._meet(b"")

    def garbage(self) -> None:
        self._meet(secret().encode() * 100)

    def _meet(self, says: bytes | None) -> None:
        self.service.stop_bus()
        self.strange_bus(self.service.directory / "bus", says)


class PlugIn(Row):
    """A type that is no built-in one: it is that of a socket."""

    type = "secretstores.example"
    CANNOT: ClassVar = {"clock_skew": "the protocol has no time"}

    def __init__(self, give: Give) -> None:
        self.plug_in: ScriptedPlugIn = give("scripted")
        self.plug_in.answers["Get"] = says(pair(b"value", secret("db").encode()))

    def opened(self, deadline: float) -> AbstractContextManager[SecretStore]:
        return opened(self.type, {}, deadline=deadline)

    def not_found(self) -> None:
        self._fail(grpc.StatusCode.NOT_FOUND)

    def denied(self) -> None:
        self._fail(grpc.StatusCode.PERMISSION_DENIED)

    def throttled(self) -> None:
        self._fail(grpc.StatusCode.RESOURCE_EXHAUSTED)

    def expired_credential(self) -> None:
        self._fail(grpc.StatusCode.UNAUTHENTICATED)

    def hang(self) -> None:
        self.plug_in.answers["Get"] = self.plug_in.hang

    def reset(self) -> None:
        self.plug_in.answers["Get"] = self.plug_in.hang_up

    def garbage(self) -> None:
        self.plug_in.answers["Get"] = says(secret().encode())

    def _fail(self, code: grpc.StatusCode) -> None:
        self.plug_in.answers["Get"] = fails(code, secret("db"))


ROWS: Mapping[str, type[Row]] = {
    row.type: row
    for row in (
        Alibaba, Directory, Environment, Huawei, JsonFile, Keyring, KeyVault, Kubernetes, ParameterStore, PlugIn,
        SecretManager, SecretsManager, Sops, Tencent, Vault,
    )
}  # fmt: skip


def occurs(row: type[Row], failure: str) -> bool:
    return hasattr(row, failure)


CELLS = [(type_, failure) for type_, row in ROWS.items() for failure in FAILURES if occurs(row, failure)]


def test_every_type_has_a_row() -> None:
    assert ROWS.keys() == {*BUILTIN, PlugIn.type}


@pytest.mark.parametrize("type_", ROWS)
def test_a_row_speaks_of_every_failure_once(type_: str) -> None:
    row = ROWS[type_]
    here = {failure for failure in FAILURES if occurs(row, failure)}
    assert sorted([*here, *row.CANNOT, *row.ELSEWHERE]) == sorted(FAILURES)
    assert all(row.CANNOT.values())
    for test in row.ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert re.search(rf"\bdef {name}\b", (STORES / file).read_text("utf-8")), test


@pytest.fixture
def api_server() -> Iterator[_ApiServer]:
    with _ApiServer() as server:
        yield server


@pytest.fixture
def way(kv: Folder) -> Iterator[Faulty]:
    with Faulty(kv.server.port) as way:
        yield way


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedPlugIn]:
    with scripted_plug_in(socket_folder(tmp_path, monkeypatch) / "example.sock") as scripted:
        yield scripted


@pytest.fixture
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[secret_service.SecretService]:
    with secret_service.secret_service(tmp_path_factory.mktemp("kr")) as service:
        yield service


@pytest.fixture
def strange_bus() -> Iterator[Callable[[Path, bytes | None], None]]:
    """Give the function that starts a bus at a path: it hangs, hangs up without a word, or answers with these bytes."""
    sockets: list[socket.socket] = []

    def start(path: Path, says: bytes | None) -> None:
        listener = socket.socket(socket.AF_UNIX)
        sockets.append(listener)
        listener.bind(str(path))
        listener.listen()
        if says is not None:
            threads.append(threading.Thread(target=_say, args=(listener, says)))
            threads[-1].start()

    threads: list[threading.Thread] = []
    yield start
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
    for thread in threads:
        thread.join()


def _say(listener: socket.socket, says: bytes) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                if says:
                    lines.readline()  # the authentication
                    connection.sendall(b"OK 00\r\n")
                    lines.readline()  # BEGIN
                    connection.sendall(says)
                    lines.read()  # until it hangs up


@pytest.mark.usefixtures("moto_server")  # it is started here, and not by the first test that asks for it
@pytest.mark.parametrize(("type_", "failure"), CELLS)
def test_a_failure_is_this_error(request: pytest.FixtureRequest, type_: str, failure: str) -> None:
    row = ROWS[type_](request.getfixturevalue)
    hangs = failure == "hang"
    with row.opened(IMPATIENT if hangs else 2 * DEADLINE) as store:
        if not hangs:
            assert secret("db").encode() in store.fetch("db").values.values()
        getattr(row, failure)()
        with pytest.raises(StoreError) as caught:
            store.fetch("missing" if failure == "not_found" else "db")
        assert isinstance(caught.value, FAILURES[failure]), caught.value
        assert CANARY not in str(caught.value)
