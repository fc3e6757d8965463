"""The Secrets API as its clients see it: a real server on a socket file, real HTTP, and gRPC by Google's library."""

import contextlib
import json
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import pytest
import trio
from dapr.proto.runtime.v1.metadata_pb2 import GetMetadataRequest
from dapr.proto.runtime.v1.secret_pb2 import GetBulkSecretRequest, GetSecretRequest
from dapr.proto.runtime.v1.state_pb2 import GetStateRequest

from secretfs.api import application, server
from secretfs.api.address import Listener
from secretfs.api.application import LARGEST_REQUEST, Application
from secretfs.api.messages import RegisteredComponent
from secretfs.api.secrets_api import SecretsApi
from secretfs.api.server import serve_api
from secretfs.cache.freshness import Freshness
from secretfs.errors import AccessDenied, RecordLost, SecretNotFound, StoreUnavailable
from secretfs.fs.attributes import PermissionPolicy
from secretfs.fs.vfs import SecretVFS
from secretfs.fs.view import StoreView
from secretfs.observe.address import Address
from secretfs.observe.audit import Asker, AuditLog, Fields
from secretfs.scopes import ALLOW_ALL, SecretScope
from secretfs.store import Secret
from tests.conftest import ExpectLog
from tests.support.api_client import Answer, ask, connect, dapr_stub
from tests.support.cached import Cached
from tests.support.canary import secret
from tests.support.memory_store import IssuingMemoryStore, MemoryStore, VersionedMemoryStore
from tests.support.waiting import PATIENCE

TOKEN = secret("token")
HEADER = {"dapr-api-token": TOKEN}
DIRECT_INVOKE = {
    "errorCode": "ERR_DIRECT_INVOKE",
    "message": "failed getting app id either from the URL path or the header dapr-app-id",
}


class Api:
    """A server with some stores, and a client that waits in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.vault = MemoryStore(
            {
                "db": {"password": secret("db").encode(), "user": b"a<b&c\xe2\x80\xa8"},
                "team/web": {"key": secret("web").encode()},
                "empty": {},
                "hidden": {"key": secret("hidden").encode()},
            }
        )
        self.env = MemoryStore.single(TOKEN=secret("env").encode(), EMPTY=b"")
        self.database = IssuingMemoryStore({"role": {"username": b"u1"}})
        self.components = [RegisteredComponent("vault", "secretstores.hashicorp.vault", "v1", ("MULTIPLE",))]
        self.vault_deadline = 5.0
        self.audit = AuditLog()
        self.namespace: str | None = None

    async def run(self, call: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True)

    async def get(self, path: str, headers: Mapping[str, str] | None = None, **more: Any) -> Answer:
        answer: Answer = await self.run(partial(ask, self.path, path, headers, **more))
        return answer

    async def call(
        self, method: str, request: Any, metadata: Mapping[str, str] | None = None, **more: Any
    ) -> tuple[Any, str, Any]:
        """Call by gRPC. Returns code and details, and the response if there is one."""

        def call() -> tuple[Any, str, Any]:
            with dapr_stub(self.path) as stub:
                try:
                    chosen = tuple((metadata or {}).items())
                    return "OK", "", getattr(stub, method)(request, metadata=chosen, timeout=PATIENCE, **more)
                except grpc.RpcError as error:
                    return error.code().name, error.details(), None

        found: tuple[Any, str, Any] = await self.run(call)
        return found


class _Undecided(VersionedMemoryStore):
    """Finds out that it keeps no versions when it is first asked for one."""

    def fetch_version(self, name: str, version: str) -> Secret:
        self._called(f"fetch:{name}, version {version}")
        self.keeps_versions = False
        raise SecretNotFound("no versions are kept")


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path / "s")


@asynccontextmanager
async def serving(api: Api, token: str = "", **views: StoreView) -> AsyncIterator[None]:
    listener = Listener.open(Address(path=api.path))
    async with trio.open_nursery() as nursery:
        freshness = Freshness(deadline=api.vault_deadline)
        shown = views or {
            "vault": StoreView(
                Cached("vault", api.vault, freshness, nursery),
                SecretScope(denied_secrets=frozenset({"hidden", "no"})),
            ),
            "env": StoreView(Cached("env", api.env, Freshness(), nursery), ALLOW_ALL),
            "database": StoreView(Cached("database", api.database, Freshness(), nursery), ALLOW_ALL),
        }
        vfs = SecretVFS(shown, PermissionPolicy(), nursery)
        secrets = SecretsApi(vfs.secrets, "shop", lambda: api.components, lambda _: api.namespace, api.audit)
        nursery.start_soon(serve_api, Application(secrets, token), listener.socket)
        yield
        nursery.cancel_scope.cancel()
    listener.remove()


class TestHTTP:
    async def test_a_secret(self, api: Api) -> None:
        async with serving(api):
            answer = await api.get("/v1.0/secrets/vault/db")
            assert (answer.status, answer.type) == (200, "application/json")
            # As Go's encoder writes it: keys sorted, <, >, & and U+2028 escaped, a newline at the end.
            text = rf'{{"password":"{secret("db")}","user":"a\u003cb\u0026c\u2028"}}' + "\n"
            assert answer.body.decode() == text
            assert (await api.get("/v1.0/secrets/env/TOKEN")).json == {"TOKEN": secret("env")}
            assert (await api.get("/v1.0/secrets/env/EMPTY")).json == {"EMPTY": ""}
            assert (await api.get("/v1.0/secrets/vault/empty")).body == b"{}\n"

    @pytest.mark.parametrize(
        "path", ["team%2Fweb", "team%2fweb", "/team%2Fweb/", "./team%2Fweb", "x/../team%2Fweb", "team%2F%77eb?x=y"]
    )
    async def test_names_with_a_slash(self, api: Api, path: str) -> None:
        async with serving(api):
            assert (await api.get(f"/v1.0//secrets/vault/{path}")).json == {"key": secret("web")}

    async def test_a_plus_is_a_space(self, api: Api) -> None:
        api.vault.put("a b", {"k": b"1"})
        api.vault.put("a+b", {"k": b"2"})
        async with serving(api):
            assert (await api.get("/v1.0/secrets/vault/a+b")).json == {"k": "1"}
            assert (await api.get("/v1.0/secrets/vault/a%2Bb")).json == {"k": "2"}

    async def test_all_secrets(self, api: Api) -> None:
        async with serving(api):
            answer = await api.get("/v1.0/secrets/vault/bulk")
            assert (answer.status, answer.type) == (200, "application/json")
            assert answer.json.keys() == {"db", "empty", "team/web"}
            assert (await api.get("/v1.0/secrets/env/bulk")).json == {
                "TOKEN": {"TOKEN": secret("env")},
                "EMPTY": {"EMPTY": ""},
            }

    @pytest.mark.parametrize(
        ("path", "status", "code", "message"),
        [
            ("vaul/db", 401, "ERR_SECRET_STORE_NOT_FOUND", "failed finding secret store with key vaul"),
            ("vaul/bulk", 401, "ERR_SECRET_STORE_NOT_FOUND", "failed finding secret store with key vaul"),
            ("vault/hidden", 403, "ERR_PERMISSION_DENIED", 'access denied by policy to get "hidden" from "vault"'),
            ("vault/no", 403, "ERR_PERMISSION_DENIED", 'access denied by policy to get "no" from "vault"'),
            (
                "vault/nothing",
                500,
                "ERR_SECRET_GET",
                "failed getting secret with key nothing from secret store vault: secret nothing not found",
            ),
        ],
    )
    async def test_refusals(self, api: Api, path: str, status: int, code: str, message: str) -> None:
        async with serving(api):
            answer = await api.get(f"/v1.0/secrets/{path}")
            assert (answer.status, answer.type) == (status, "application/json")
            assert answer.json == {"errorCode": code, "message": message}
            assert answer.body.endswith(b"}\n")

    async def test_without_any_store(self, api: Api, nursery: trio.Nursery) -> None:
        listener = Listener.open(Address(path=api.path))
        secrets = SecretsApi(SecretVFS({}, PermissionPolicy(), nursery).secrets, "", list, lambda _: None, AuditLog())
        nursery.start_soon(serve_api, Application(secrets, ""), listener.socket)
        answer = await api.get("/v1.0/secrets/vault/db")
        expected = {"errorCode": "ERR_SECRET_STORES_NOT_CONFIGURED", "message": "secret store is not configured"}
        assert (answer.status, answer.json) == (500, expected)
        nursery.cancel_scope.cancel()
        listener.remove()

    @pytest.mark.parametrize(
        "path",
        ["/", "/v1.0/secrets/vault", "/v1.0/secrets/vault/team/web", "/v1.0/state/x/y", "/v1x0/secrets/vault/db"],
    )
    async def test_other_paths(self, api: Api, path: str) -> None:
        async with serving(api):
            answer = await api.get(path)
            assert (answer.status, answer.json) == (404, DIRECT_INVOKE)

    async def test_methods_and_bodies(self, api: Api) -> None:
        async with serving(api):
            assert (await api.get("/v1.0/secrets/vault/db", method="POST", body=b"{}")).status == 405
            assert (await api.get("/v1.0/secrets/vault/db", method="DELETE")).status == 405
            assert (await api.get("/v1.0/secrets/vault/db", body=b"{}")).status == 200
            answer = await api.get("/v1.0/secrets/vault/db", body=b"{nonsense")
            assert (answer.status, answer.json["errorCode"]) == (400, "ERR_MALFORMED_REQUEST")
            assert answer.json["message"].startswith("failed deserializing HTTP body: ")

    async def test_a_bad_escape(self, api: Api) -> None:
        async with serving(api):
            answer = await api.get("/v1.0/secrets/vault/d%zz")
            assert answer == (400, "text/plain; charset=utf-8", b'invalid URL escape "%zz"\n')

    async def test_health(self, api: Api) -> None:
        async with serving(api, TOKEN):
            for path in ("/v1.0/healthz", "/v1.0/healthz/outbound", "/v1.0/healthz?appid=shop"):
                assert await api.get(path) == (204, None, b"")
            answer = await api.get("/v1.0/healthz?appid=other")
            expected = {"errorCode": "ERR_HEALTH_APPID_NOT_MATCH", "message": "dapr app-id does not match"}
            assert (answer.status, answer.json) == (500, expected)

    async def test_metadata(self, api: Api) -> None:
        async with serving(api):
            found = (await api.get("/v1.0/metadata")).json
            assert found["id"] == "shop"
            assert found["components"] == [
                {
                    "name": "vault",
                    "type": "secretstores.hashicorp.vault",
                    "version": "v1",
                    "capabilities": ["MULTIPLE"],
                }
            ]

    async def test_many_requests_on_one_connection(self, api: Api) -> None:
        def talk() -> None:
            with connect(api.path) as client, client.makefile("rb") as answers:
                for _ in range(3):
                    client.sendall(b"GET /v1.0/secrets/env/TOKEN HTTP/1.1\r\nHost: x\r\n\r\n")
                    head = iter(answers.readline, b"\r\n")
                    (length,) = [int(line.split(b":")[1]) for line in head if line.startswith(b"content-length")]
                    assert json.loads(answers.read(length)) == {"TOKEN": secret("env")}

        async with serving(api):
            await api.run(talk)


class TestGRPC:
    async def test_a_secret(self, api: Api) -> None:
        async with serving(api):
            for store, name, expected in (
                ("vault", "db", {"password": secret("db"), "user": "a<b&c\N{LINE SEPARATOR}"}),
                ("vault", "team/web", {"key": secret("web")}),
                ("vault", "empty", {}),
                ("env", "TOKEN", {"TOKEN": secret("env")}),
            ):
                code, _, response = await api.call("GetSecret", GetSecretRequest(store_name=store, key=name))
                assert (code, dict(response.data)) == ("OK", expected)

    async def test_all_secrets(self, api: Api) -> None:
        async with serving(api):
            _, _, response = await api.call("GetBulkSecret", GetBulkSecretRequest(store_name="vault"))
            assert response.data.keys() == {"db", "empty", "team/web"}
            assert dict(response.data["team/web"].secrets) == {"key": secret("web")}

    @pytest.mark.parametrize(
        ("store", "key", "code", "message"),
        [
            ("vaul", "db", "INVALID_ARGUMENT", "failed finding secret store with key vaul"),
            ("vault", "hidden", "PERMISSION_DENIED", 'access denied by policy to get "hidden" from "vault"'),
            ("vault", "no", "PERMISSION_DENIED", 'access denied by policy to get "no" from "vault"'),
            (
                "vault",
                "nö%/\n",
                "INTERNAL",
                "failed getting secret with key nö%/\n from secret store vault: secret nö%/\n not found",
            ),
        ],
    )
    async def test_refusals(self, api: Api, store: str, key: str, code: str, message: str) -> None:
        async with serving(api):
            found = await api.call("GetSecret", GetSecretRequest(store_name=store, key=key))
            assert found == (code, message, None)

    async def test_metadata(self, api: Api) -> None:
        async with serving(api):
            _, _, response = await api.call("GetMetadata", GetMetadataRequest())
            assert (response.id, [one.name for one in response.registered_components]) == ("shop", ["vault"])

    async def test_other_methods(self, api: Api) -> None:
        async with serving(api):
            found = await api.call("GetState", GetStateRequest())
            message = "unknown method GetState for service dapr.proto.runtime.v1.Dapr"
            assert found == ("UNIMPLEMENTED", message, None)

    async def test_a_compressed_request(self, api: Api) -> None:
        async with serving(api):
            request = GetSecretRequest(store_name="vault", key="db" * 1000)
            code, message, _ = await api.call("GetSecret", request, compression=grpc.Compression.Gzip)
            assert (code, "compressed" in message) == ("UNIMPLEMENTED", True)

    async def test_too_large_a_request(self, api: Api) -> None:
        async with serving(api):
            request = GetSecretRequest(store_name="vault", key="x" * LARGEST_REQUEST)
            found = await api.call("GetSecret", request)
            assert found == ("RESOURCE_EXHAUSTED", "grpc: received message larger than max", None)

    async def test_too_large_an_answer(self, api: Api) -> None:
        api.env.put("TOKEN", {"TOKEN": secret("x" * 4 * 1024 * 1024).encode()})
        async with serving(api):
            code, message, _ = await api.call("GetSecret", GetSecretRequest(store_name="env", key="TOKEN"))
            assert code == "RESOURCE_EXHAUSTED"
            assert re.fullmatch(r"grpc: trying to send message larger than max \(\d+ vs\. 4194304\)", message)
            assert len((await api.get("/v1.0/secrets/env/TOKEN")).body) > 4 * 1024 * 1024

    async def test_a_large_answer(self, api: Api) -> None:
        value = secret("x" * 4_000_000)
        api.env.put("TOKEN", {"TOKEN": value.encode()})
        async with serving(api):
            _, _, response = await api.call("GetSecret", GetSecretRequest(store_name="env", key="TOKEN"))
            assert response.data["TOKEN"] == value


class TestToken:
    @pytest.mark.parametrize("headers", [{}, {"dapr-api-token": "wrong"}, {"dapr-api-token": TOKEN + "x"}])
    async def test_a_wrong_one(self, api: Api, headers: dict[str, str]) -> None:
        refused = (401, "text/plain; charset=utf-8", b"invalid api token\n")
        message = "authentication error: api token mismatch" if headers else "missing api token in request metadata"
        async with serving(api, TOKEN):
            for path in (
                "secrets/vault/db",
                "secrets/vault/bulk",
                "secrets/no/db",
                "metadata",
                "x",
                "healthz/../metadata",
            ):
                assert await api.get(f"/v1.0/{path}", headers) == refused
            found = await api.call("GetSecret", GetSecretRequest(store_name="vault", key="db"), headers)
            assert found == ("UNAUTHENTICATED", message, None)
            found = await api.call("GetMetadata", GetMetadataRequest(), headers)
            assert found == ("UNAUTHENTICATED", message, None)
        assert not api.vault.calls

    async def test_the_right_one(self, api: Api) -> None:
        async with serving(api, TOKEN):
            assert (await api.get("/v1.0/secrets/env/TOKEN", HEADER)).json == {"TOKEN": secret("env")}
            code, _, _ = await api.call("GetSecret", GetSecretRequest(store_name="env", key="TOKEN"), HEADER)
            assert code == "OK"

    async def test_a_request_without_it_is_not_kept(self, api: Api) -> None:
        """However much a stranger sends: he gets his answer, and the server none of his memory."""
        async with serving(api, TOKEN):
            answer = await api.get("/v1.0/secrets/vault/db", body=b"x" * (LARGEST_REQUEST + 1))
            assert answer == (401, "text/plain; charset=utf-8", b"invalid api token\n")
            with pytest.raises(ConnectionError):
                await api.get("/v1.0/secrets/vault/db", body=b"x" * 10_000_000)
            assert await api.run(partial(_sends_a_frame_of, api.path, 10_000_000))
            assert (await api.get("/v1.0/secrets/vault/db", HEADER, body=b"1" * (LARGEST_REQUEST + 1))).status == 413


class TestVersions:
    @pytest.fixture
    def api(self, tmp_path: Path) -> Api:
        api = Api(tmp_path / "s")
        api.vault.secrets["db"] = Secret({"k": b"v"}, version="7", stages=("AWSCURRENT",))
        return api

    @pytest.mark.parametrize(
        "query",
        [
            "version_id=7",
            "version_id=0",
            "version_id=latest",
            "version_id=",
            "version_stage=AWSCURRENT",
            "maxresults=1",
        ],
    )
    async def test_the_current_one(self, api: Api, query: str) -> None:
        async with serving(api):
            assert (await api.get(f"/v1.0/secrets/vault/db?metadata.{query}")).json == {"k": "v"}

    @pytest.mark.parametrize(
        "query", ["version_id=6", "version_id=6&metadata.version_id=7", "version_stage=AWSPREVIOUS"]
    )
    async def test_another_one(self, api: Api, query: str) -> None:
        name, _, wanted = query.partition("&")[0].partition("=")
        async with serving(api):
            answer = await api.get(f"/v1.0/secrets/vault/db?metadata.{query}")
            assert (answer.status, answer.json["errorCode"]) == (500, "ERR_SECRET_GET")
            assert f"{name} {wanted}: only the" in answer.json["message"]
            request = GetSecretRequest(store_name="vault", key="db", metadata={name: wanted})
            code, message, _ = await api.call("GetSecret", request)
            assert (code, message) == ("INTERNAL", answer.json["message"])

    async def test_one_that_the_store_keeps(self, api: Api, nursery: trio.Nursery) -> None:
        store = VersionedMemoryStore({"db": {"k": b"old"}, "hidden": {"k": b"old"}})
        first = store.secrets["db"].version
        store.put("db", {"k": b"new"})
        second = store.secrets["db"].version
        view = StoreView(
            Cached("vault", store, Freshness(), nursery), SecretScope(denied_secrets=frozenset({"hidden"}))
        )
        async with serving(api, vault=view):
            assert (await api.get(f"/v1.0/secrets/vault/db?metadata.version_id={first}")).json == {"k": "old"}
            request = GetSecretRequest(store_name="vault", key="db", metadata={"version_id": first})
            assert (await api.call("GetSecret", request))[2].data == {"k": "old"}
            assert (await api.get(f"/v1.0/secrets/vault/db?metadata.version_id={second}")).json == {"k": "new"}
            assert (await api.get("/v1.0/secrets/vault/db?metadata.version_id=none")).status == 500
            assert (await api.get(f"/v1.0/secrets/vault/hidden?metadata.version_id={first}")).status == 403

    async def test_a_store_that_turns_out_to_keep_none(self, api: Api, nursery: trio.Nursery) -> None:
        """As an engine of Vault of which nobody knows the version yet: the first answer is that of all later ones."""
        store = _Undecided({"db": {"k": b"v"}})
        store.secrets["db"] = Secret({"k": b"v"})
        async with serving(api, vault=StoreView(Cached("vault", store, Freshness(), nursery), ALLOW_ALL)):
            for _ in range(2):
                assert (await api.get("/v1.0/secrets/vault/db?metadata.version_id=6")).json == {"k": "v"}
        assert store.calls["fetch:db, version 6"] == 1

    async def test_a_store_without_versions(self, api: Api) -> None:
        api.env.secrets["TOKEN"] = Secret({"TOKEN": b"x"})
        async with serving(api):
            assert (await api.get("/v1.0/secrets/env/TOKEN?metadata.version_id=6")).status == 200

    @pytest.mark.parametrize(
        ("own", "status", "said"),
        [(None, 200, ""), ("x", 200, ""), ("y", 500, ": y is served"), ("", 500, "NAMESPACE/NAME")],
    )
    async def test_a_namespace(self, api: Api, own: str | None, status: int, said: str) -> None:
        api.namespace = own
        async with serving(api):
            answer = await api.get("/v1.0/secrets/env/TOKEN?metadata.namespace=x")
            assert (answer.status, said in answer.body.decode()) == (status, True)


class TestWhatCannotBeCarried:
    @pytest.mark.parametrize("store", ["env", "vault"])
    async def test_bytes_that_are_no_text(self, api: Api, store: str) -> None:
        memory = api.env if store == "env" else api.vault
        memory.put("binary", {"binary": b"\xff\x00" + secret("binary").encode()})
        async with serving(api):
            for path in ("binary", "bulk"):
                answer = await api.get(f"/v1.0/secrets/{store}/{path}")
                assert (answer.status, answer.json["errorCode"]) == (500, "ERR_SECRET_GET")
                assert (
                    "secret 'binary' is not UTF-8, which this API cannot carry: read its file" in answer.json["message"]
                )
            code, _, _ = await api.call("GetSecret", GetSecretRequest(store_name=store, key="binary"))
            assert code == "INTERNAL"

    async def test_one_read_does_not_issue_every_credential(self, api: Api) -> None:
        async with serving(api):
            answer = await api.get("/v1.0/secrets/database/bulk")
            assert (answer.status, answer.json["errorCode"]) == (500, "ERR_SECRET_GET")
            assert api.database.issued == 0
            assert (await api.get("/v1.0/secrets/database/role")).json == {"username": "u1"}
            assert api.database.issued == 1


class TestFailures:
    async def test_a_store_that_is_down(self, api: Api, expect_log: ExpectLog) -> None:
        expect_log("vault: ")
        async with serving(api):
            assert (await api.get("/v1.0/secrets/vault/db")).status == 200
            api.vault.fail_with = StoreUnavailable("connection refused")
            answer = await api.get("/v1.0/secrets/vault/team%2Fweb")
            message = "failed getting secret with key team/web from secret store vault: connection refused"
            assert (answer.status, answer.json) == (500, {"errorCode": "ERR_SECRET_GET", "message": message})
            assert (await api.get("/v1.0/secrets/vault/db")).status == 200  # it is cached

    async def test_a_store_that_refuses(self, api: Api, expect_log: ExpectLog) -> None:
        expect_log("vault: ")
        api.vault.refused["fetch:db"] = AccessDenied("secret db: 403")
        async with serving(api):
            answer = await api.get("/v1.0/secrets/vault/db")
            assert (answer.status, answer.json["errorCode"]) == (500, "ERR_SECRET_GET")

    async def test_a_store_that_hangs(self, api: Api, expect_log: ExpectLog) -> None:
        expect_log("vault: ")
        api.vault_deadline = 0.3
        async with serving(api):
            api.vault.gate.clear()
            answer = await api.get("/v1.0/secrets/vault/db")
            message = "failed getting secret with key db from secret store vault: no answer within 300ms"
            assert (answer.status, answer.json) == (500, {"errorCode": "ERR_SECRET_GET", "message": message})
            answer = await api.get("/v1.0/secrets/vault/bulk")
            assert (answer.status, answer.json["errorCode"]) == (500, "ERR_SECRET_GET")
            api.vault.gate.set()

    async def test_a_defect(self, api: Api, caplog: pytest.LogCaptureFixture, expect_log: ExpectLog) -> None:
        expect_log("a defect in secretfs or in a store")

        def defect() -> list[RegisteredComponent]:
            raise ValueError(secret("in-an-error"))

        async with serving(api):
            api.components = type("Defect", (), {"__iter__": lambda _: iter(defect())})()
            answer = await api.get("/v1.0/metadata")
            assert (answer.status, answer.json["errorCode"]) == (500, "ERR_INTERNAL")
            code, message, _ = await api.call("GetMetadata", GetMetadataRequest())
            assert (code, message) == ("INTERNAL", "a defect in secretfs; its log has the place")
            assert (await api.get("/v1.0/secrets/vault/db")).status == 200
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
            "a defect in secretfs or in a store"
        ] * 2


class Records(AuditLog):
    """Keeps records, or takes none."""

    def __init__(self, *, full: bool = False) -> None:
        self.records: list[tuple[str, Fields, Asker]] = []
        self._full = full

    async def witness(self, event: str, fields: Fields, asker: Asker) -> None:
        if self._full:
            raise RecordLost(event)
        self.records.append((event, fields, asker))


class TestAudit:
    async def test_what_is_answered_and_what_is_refused(self, api: Api) -> None:
        api.audit = records = Records()
        async with serving(api):
            for path in ("vault/db", "env/bulk", "vault/hidden", "vault/nothing", "no/db"):
                await api.get(f"/v1.0/secrets/{path}")
            await api.call("GetSecret", GetSecretRequest(store_name="vault", key="db"))
            await api.get("/v1.0/metadata")
        version = api.vault.secrets["db"].version
        db = {"app": "shop", "component": "vault", "secret": "db", "version": version, "result": "ok"}

        def refused(component: str, name: str, code: str) -> tuple[str, Fields]:
            fields = {"app": "shop", "component": component, "secret": name}
            return "refused", {**fields, "request": "api", "result": code}

        assert [(event, fields) for event, fields, _ in records.records] == [
            ("api", db),
            ("api", {"app": "shop", "component": "env", "result": "ok"}),
            refused("vault", "hidden", "ERR_PERMISSION_DENIED"),
            refused("vault", "nothing", "ERR_SECRET_GET"),
            refused("no", "db", "ERR_SECRET_STORE_NOT_FOUND"),
            ("api", db),
        ]
        assert {asker for _, _, asker in records.records} == {(os.getuid(), os.getgid(), os.getpid())}

    async def test_what_cannot_be_recorded(self, api: Api) -> None:
        api.audit = Records(full=True)
        async with serving(api):
            answer = await api.get("/v1.0/secrets/vault/db")
            message = "failed getting secret with key db from secret store vault: it cannot be recorded"
            assert (answer.status, answer.json) == (500, {"errorCode": "ERR_SECRET_GET", "message": message})
            assert (await api.get("/v1.0/secrets/vault/hidden")).status == 403


def _closed(client: socket.socket) -> bool:
    """Wait until the server closes a connection; what it says before does not matter."""
    with contextlib.suppress(ConnectionResetError):
        while client.recv(65536):
            pass
    return True


class TestClientsThatDoNotDoTheirPart:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(application, "PATIENCE", 0.3)

    async def test_one_that_does_not_finish_its_request(self, api: Api) -> None:
        async with serving(api):
            with await api.run(lambda: connect(api.path)) as client:
                client.sendall(b"GET /v1.0/secrets/vault/db HTTP/1.1\r\nHost: x\r\ncontent-length: 9\r\n\r\nx")
                assert (await api.get("/v1.0/secrets/vault/db")).status == 200
                assert await api.run(lambda: _closed(client))

    async def test_one_that_does_not_read_its_answer(self, api: Api) -> None:
        api.env.put("TOKEN", {"TOKEN": secret("x" * 10_000_000).encode()})
        async with serving(api):
            with await api.run(lambda: connect(api.path)) as client:
                client.sendall(b"GET /v1.0/secrets/env/TOKEN HTTP/1.1\r\nHost: x\r\n\r\n")
                await api.run(lambda: client.recv(1))  # the answer has begun, and the rest is stuck
                assert (await api.get("/v1.0/secrets/vault/db")).status == 200
                await trio.sleep(0.5)  # more than the server waits
                received = await api.run(lambda: _receive_all(client))
                assert received < 10_000_000  # the end of it is missing: the server did not wait

    async def test_one_whose_window_is_closed(self, api: Api) -> None:
        api.env.put("TOKEN", {"TOKEN": secret("x" * 1_000_000).encode()})
        async with serving(api):
            with await api.run(lambda: connect(api.path)) as client:
                client.sendall(_h2_get(b"/v1.0/secrets/env/TOKEN"))
                assert await api.run(lambda: _closed(client))  # reads, and opens no window: HTTP/2's 64 KiB come
            assert (await api.get("/v1.0/secrets/vault/db")).status == 200

    async def test_the_server_does_not_wait_for_them_at_its_end(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(application, "PATIENCE", PATIENCE)
        api.env.put("TOKEN", {"TOKEN": secret("x" * 10_000_000).encode()})
        with contextlib.ExitStack() as clients:
            with trio.fail_after(PATIENCE / 2):
                async with serving(api):
                    for request in (
                        b"GET /v1.0/secrets/env/TOKEN HTTP/1.1\r\nHost: x\r\n\r\n",
                        _h2_get(b"/x"),
                        b"",
                        b"G",
                    ):
                        client = clients.enter_context(await api.run(lambda: connect(api.path)))
                        client.sendall(request)
                    assert (await api.get("/v1.0/secrets/vault/db")).status == 200

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET " + b"x" * 100_000,
            b"GET /v1.0/secrets/vault/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x01\x00\x00\x00\x00\x00\x00x",
            (
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ),
        ],
    )
    async def test_one_that_talks_nonsense(self, api: Api, garbage: bytes) -> None:
        async with serving(api):
            with await api.run(lambda: connect(api.path)) as client:
                await api.run(lambda: client.sendall(garbage))
                assert await api.run(lambda: _closed(client))
            assert (await api.get("/v1.0/secrets/vault/db")).status == 200

    async def test_a_path_that_is_not_ascii(self, api: Api) -> None:
        async with serving(api):
            with await api.run(lambda: connect(api.path)) as client:
                client.sendall(_h2_get(b"/v1.0/\xff"))
                assert await api.run(lambda: _closed(client))
            assert (await api.get("/v1.0/secrets/vault/db")).status == 200

    async def test_an_answer_before_the_end_of_a_request(self, api: Api) -> None:
        """More than hypercorn's queue holds, in many small parts, by a client that may not ask at all."""

        def send() -> bytes:
            with connect(api.path) as client:
                client.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\n\r\n")
                for _ in range(100):
                    client.sendall(b"1\r\nx\r\n")
                client.sendall(b"0\r\n\r\n")
                return client.recv(100)

        async with serving(api, TOKEN):
            assert (await api.run(send)).startswith(b"HTTP/1.1 401")


class TestManyConnections:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "CONNECTIONS", 3)

    async def test_the_one_that_is_idle_longest_makes_room(self, api: Api) -> None:
        async with serving(api):
            with contextlib.ExitStack() as stack:
                idle = [stack.enter_context(await api.run(lambda: connect(api.path))) for _ in range(4)]
                assert (await api.get("/v1.0/secrets/vault/db")).status == 200
                assert await api.run(lambda: _closed(idle[0]))
                assert await api.run(lambda: _closed(idle[1]))

    async def test_one_that_nobody_uses_is_closed(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "IDLE", 0.2)
        async with serving(api):
            for greeting in (b"", b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
                with await api.run(lambda: connect(api.path)) as client:
                    client.sendall(greeting)
                    assert await api.run(lambda: _closed(client))

    async def test_those_with_a_request_stay(self, api: Api) -> None:
        async with serving(api):
            api.vault.gate.clear()
            answers: list[Answer] = []

            async def get(name: str) -> None:
                answers.append(await api.get(f"/v1.0/secrets/vault/{name}"))

            async with trio.open_nursery() as nursery:
                for name in ("db", "empty", "team%2Fweb"):
                    nursery.start_soon(get, name)
                    await api.run(lambda: api.vault.entered.acquire(timeout=PATIENCE))  # the store is asked
                with pytest.raises(ConnectionError):
                    await api.get("/v1.0/healthz")
                api.vault.gate.set()
            assert [answer.status for answer in answers] == [200] * 3
            while True:  # until the server knows that the three are gone
                with contextlib.suppress(ConnectionError):
                    assert (await api.get("/v1.0/healthz")).status == 204
                    break


def _sends_a_frame_of(path: Path, size: int) -> bool:
    """Begin a frame of HTTP/2 that is larger than any may be. Returns whether the server ends that."""
    with connect(path) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + size.to_bytes(3, "big") + bytes(6))
        try:
            client.sendall(bytes(size - 1))
        except ConnectionError:
            return True
        return False


def _receive_all(client: socket.socket) -> int:
    received = 0
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(1_000_000):
            received += len(part)
    return received


def _h2_get(path: bytes) -> bytes:
    """Write a request of HTTP/2."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    connection.initiate_connection()
    headers = [(b":method", b"GET"), (b":path", path), (b":scheme", b"http"), (b":authority", b"x")]
    connection.send_headers(1, headers, end_stream=True)
    return bytes(connection.data_to_send())
