"""Dapr's Secrets API beside the files."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from dapr.proto.runtime.v1.secret_pb2 import GetSecretRequest

from tests.support.api_client import Answer, Where, ask, connect, dapr_stub, get_secret
from tests.support.canary import secret
from tests.support.command import NOBODY, ROOT, environment, secretfs
from tests.support.fake_type import Fakes, installed
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, mounted
from tests.support.node import require_node
from tests.support.servers.openbao import free_port
from tests.support.shell import run, wait_until
from tests.support.vault_fixtures import Folder
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.mount

TOKEN = secret("api-token")
PLAIN = {
    "token": secret("token"),
    "empty": "",
    "team": {"web": secret("web"), "<&>": secret("html"), "bulk": secret("b")},
}
KEYS = {"db": {"user": secret("user"), "password": secret("ü")}, "hidden": {"key": secret("hidden")}}
CLIENTS = ROOT / "tests/support/clients"


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    """Declare two stores, one of them with keys, and write what is in them."""
    (tmp_path / "plain.json").write_text(json.dumps(PLAIN))
    (tmp_path / "keys.json").write_text(json.dumps(KEYS))
    component(tmp_path / "c", "plain", "local.file", {"secretsFile": tmp_path / "plain.json", "nestedSeparator": "/"})
    component(tmp_path / "c", "keys", "local.file", {"secretsFile": tmp_path / "keys.json", "multiValued": "true"})
    return tmp_path / "c"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


@contextmanager
def mount_with_api(components: Path, where: Where, **more: Any) -> Iterator[Mounted]:
    address = f"127.0.0.1:{where}" if isinstance(where, int) else f"unix:{where}"
    options = ["--api", address, *more.pop("options", [])]
    env = {"DAPR_API_TOKEN": TOKEN} if isinstance(where, int) else {}
    with mounted(components, app_id="shop", options=options, env=env | more.pop("env", {}), **more) as mount:
        yield mount


def files_of(store: Path, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Read secrets with cat: by name, the values by key."""
    found = {}
    for name in names:
        below = (
            [store / name / key.name for key in (store / name).iterdir()] if (store / name).is_dir() else [store / name]
        )
        found[name] = {file.name if file != store / name else name: run("cat", file).stdout.decode() for file in below}
    return found


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_daprs_own_client(stores: Path, language: str) -> None:
    """api-1: With `--api`, an unmodified client of Dapr reads every secret that `cat` reads, alone or in bulk."""
    environ, program = (require_node(), "node") if language == "javascript" else (environment(), sys.executable)
    source = CLIENTS / ("dapr_client.js" if language == "javascript" else "dapr_client.py")
    port = free_port()
    names = {"plain": ["token", "empty", "team/web", "team/<&>", "team/bulk"], "keys": ["db", "hidden"]}
    with mount_with_api(stores, port) as mount:
        settings = {"DAPR_API_TOKEN": TOKEN, "DAPR_HTTP_PORT": str(port), "DAPR_GRPC_PORT": str(port)}
        client = subprocess.run(
            [program, source],
            input=json.dumps(names).encode(),
            env=environ | settings,
            capture_output=True,
            check=False,
        )
        assert client.returncode == 0
        expected = {store: files_of(mount.path / store, names[store]) for store in names}
        assert expected["keys"]["db"] == KEYS["db"]
        assert json.loads(client.stdout.splitlines()[-1]) == [expected, expected]  # the client logs there, too
        for store in names:  # and by HTTP, as Dapr's response is a file here
            bulk = ask(port, f"/v1.0/secrets/{store}/bulk", {"dapr-api-token": TOKEN})
            assert bulk.body == (mount.path / store / ".bulk.json").read_bytes()


def test_scopes(stores: Path, path: Path, tmp_path: Path) -> None:
    """api-2: A secret that the scope hides is refused as Dapr refuses it, whether it exists or not."""
    config = configuration(tmp_path, scope("keys", denied=["hidden", "nothing"]), scope("plain", allowed=["token"]))
    component(stores, "other", "local.env", scopes=["somebody-else"])
    with mount_with_api(stores, path, config=[config]), dapr_stub(path) as stub:
        for store, name in (("keys", "hidden"), ("keys", "nothing"), ("plain", "empty"), ("plain", "no")):
            message = f'access denied by policy to get "{name}" from "{store}"'
            answer = get_secret(path, store, name)
            assert (answer.status, answer.json) == (403, {"errorCode": "ERR_PERMISSION_DENIED", "message": message})
            with pytest.raises(grpc.RpcError) as refused:
                stub.GetSecret(GetSecretRequest(store_name=store, key=name))
            assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, message)
        assert ask(path, "/v1.0/secrets/keys/bulk").json.keys() == {"db"}
        assert ask(path, "/v1.0/secrets/plain/bulk").json == {"token": {"token": secret("token")}}
        answers = [get_secret(path, store, "PATH") for store in ("other", "no-such-store")]
        assert [answer.status for answer in answers] == [401, 401]
        assert answers[0].body == answers[1].body.replace(b"no-such-store", b"other")
        assert [one["name"] for one in ask(path, "/v1.0/metadata").json["components"]] == ["keys", "plain"]


def test_tokens(stores: Path, tmp_path: Path) -> None:
    """api-3: At a port each request needs the token of `DAPR_API_TOKEN`; without one nothing is mounted (exit 2)."""
    port = free_port()
    point = tmp_path / "mnt"
    point.mkdir()
    done = secretfs("mount", "--resources-path", stores, "--api", f"127.0.0.1:{port}", point)
    assert done.status == 2
    assert done.err.startswith(f"secretfs: --api 127.0.0.1:{port}: every user of this machine can connect to a port;")
    assert not os.path.ismount(point)
    with mount_with_api(stores, port):
        assert ask(port, "/v1.0/healthz").status == 204
        assert ask(port, "/v1.0/secrets/plain/token", {"dapr-api-token": TOKEN}).json == {"token": secret("token")}
        for headers in ({}, {"dapr-api-token": ""}, {"dapr-api-token": "guess"}):
            answer = ask(port, "/v1.0/secrets/plain/token", headers)
            assert answer == Answer(401, "text/plain; charset=utf-8", b"invalid api token\n")


def test_the_socket_file(stores: Path, path: Path) -> None:
    """api-4: A socket file belongs to the owner of the files, with mode 0600, and is gone with the mount."""
    for owner in (os.getuid(), NOBODY) if os.geteuid() == 0 else (os.getuid(),):
        options = ["--uid", str(owner), "--allow-other"] if owner == NOBODY else []
        with mount_with_api(stores, path, options=options) as mount:
            status = path.stat()
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (owner, 0o600)
            assert status.st_uid == (mount.path / "plain/token").stat().st_uid
            assert get_secret(path, "plain", "token").status == 200
        assert not path.exists()


def test_an_unmount_removes_the_socket_file(stores: Path, path: Path) -> None:
    """Not only a stop does (api-4)."""
    with mount_with_api(stores, path) as mount:
        assert secretfs("unmount", mount.path).status == 0
        assert not path.exists()


def test_what_a_killed_mount_left_is_replaced(stores: Path, path: Path) -> None:
    """Nobody is left to remove the file, and nobody answers there (api-4)."""
    with mount_with_api(stores, path) as mount:
        mount.kill()
        with pytest.raises(ConnectionRefusedError):
            connect(path)
    with mount_with_api(stores, path):
        assert get_secret(path, "plain", "token").status == 200


def test_a_daemon_that_is_killed(stores: Path, path: Path) -> None:
    """api-5: While no daemon serves, clients connect and wait; the next daemon answers them."""
    with mount_with_api(stores, path, expect_log=[r"process \d+ ended"]) as mount, dapr_stub(path) as stub:
        request = GetSecretRequest(store_name="plain", key="token")
        assert stub.GetSecret(request).data == {"token": secret("token")}
        for _ in range(2):
            worker = mount.worker
            mount.process.send_signal(signal.SIGSTOP)  # so that nobody serves until we say so
            try:
                os.kill(worker, signal.SIGKILL)
                client = connect(path)
                client.sendall(b"GET /v1.0/secrets/plain/token HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            finally:
                mount.process.send_signal(signal.SIGCONT)
            with client, client.makefile("rb") as answer:
                text = answer.read()
            assert text.startswith(b"HTTP/1.1 200")
            assert text.endswith(json.dumps({"token": secret("token")}, separators=(",", ":")).encode() + b"\n")
            assert stub.GetSecret(request, timeout=PATIENCE).data == {"token": secret("token")}
        assert path.exists()


def test_a_store_that_hangs(stores: Path, path: Path, tmp_path: Path) -> None:
    """api-6: A store that hangs is an error within `deadline`, and delays neither other stores nor the files."""
    with installed(tmp_path / "site") as site:
        fakes = Fakes(stores, site)
        annotations = {"secretfs/deadline": "1s"}
        fakes.add(
            "hung", {"secrets": json.dumps({"a": {"k": secret("a")}}), "fail": "fetch:a=hang"}, annotations=annotations
        )
        with (
            mount_with_api(stores, path, env={"PYTHONPATH": f"{site}:{os.getcwd()}"}, expect_log=["hung: "]) as mount,  # noqa: PTH109
            dapr_stub(path) as stub,
        ):
            answers: list[Answer] = []
            crowd = [threading.Thread(target=lambda: answers.append(get_secret(path, "hung", "a"))) for _ in range(30)]
            for thread in crowd:
                thread.start()
            assert get_secret(path, "plain", "token").status == 200
            assert (mount.path / "plain/token").read_text() == secret("token")
            with pytest.raises(grpc.RpcError) as failed:
                stub.GetSecret(GetSecretRequest(store_name="hung", key="a"))
            assert failed.value.code() is grpc.StatusCode.INTERNAL
            for thread in crowd:
                thread.join()
            assert {answer.status for answer in answers} == {500}
            first = answers[0].json
            assert first["errorCode"] == "ERR_SECRET_GET"
            assert first["message"].startswith("failed getting secret with key a from secret store hung: ")


def calls(mount: Mounted, store: str, kind: str = "fetch") -> int:
    """Return how often a store has been asked for something."""
    made: int = json.loads((mount.path / ".secretfs/status.json").read_text())["stores"][store]["calls"][kind]["made"]
    return made


def test_a_read_is_a_use(stores: Path, path: Path, tmp_path: Path) -> None:
    """api-7: A read through the API is a use, like an open: from the same cache, which is kept fresh for it."""
    used = {"secretsFile": tmp_path / "plain.json"}
    component(stores, "used", "local.file", used, annotations={"secretfs/ttl": "300ms"})
    with mount_with_api(stores, path) as mount:
        before = calls(mount, "plain")
        (mount.path / "plain/token").read_bytes()
        assert get_secret(path, "plain", "token").status == 200
        assert get_secret(path, "plain", "team%2Fweb").status == 200
        (mount.path / "plain/team/web").read_bytes()
        assert calls(mount, "plain") == before + 2
        assert get_secret(path, "used", "token").status == 200
        known = calls(mount, "used", "compare")
        wait_until(lambda: calls(mount, "used", "compare") >= known + 3)


def test_clients_that_do_harm(stores: Path, path: Path) -> None:
    """api-8: Whatever a client sends, or does not read, costs its own request or connection, and nobody else."""
    with mount_with_api(stores, path) as mount, contextlib.ExitStack() as stack:
        for _ in range(150):  # more than there may be
            client = stack.enter_context(connect(path))
            client.sendall(b"GET /v1.0/secrets/plain/bulk HTTP/1.1\r\n")
        for garbage in (
            os.urandom(1000),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(1000),
            b"GET " + b"/" * 100_000,
        ):
            with connect(path) as client, contextlib.suppress(ConnectionError):
                client.sendall(garbage)
        for body in (b"{", b"x" * 100_000):
            assert ask(path, "/v1.0/secrets/plain/token", body=body).status in (400, 413)
        assert get_secret(path, "plain", "token").json == {"token": secret("token")}
        assert (mount.path / "plain/token").read_text() == secret("token")
        mount.said("mounted at")


def test_what_cannot_be_answered(path: Path, tmp_path: Path, kv: Folder) -> None:
    """api-9: What JSON cannot carry, and a version that the store does not give, is an error, and no other value."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files/key").write_bytes(b"\xff" + secret("bytes").encode())
    component(tmp_path / "c", "files", "secretfs.directory", {"path": tmp_path / "files"})
    component(tmp_path / "c", "vault", "hashicorp.vault", kv.metadata())
    for value in ("first", "second"):
        kv.put("db", {"key": secret(value)})
    with mount_with_api(tmp_path / "c", path) as mount:
        for wanted, found in (("0", "second"), ("1", "first"), ("2", "second")):
            answer = ask(path, f"/v1.0/secrets/vault/db?metadata.version_id={wanted}")
            assert answer.json == {"key": secret(found)}
        answer = ask(path, "/v1.0/secrets/vault/db?metadata.version_id=3")
        assert (answer.status, answer.json["errorCode"]) == (500, "ERR_SECRET_GET")
        assert (mount.path / "files/key").read_bytes().startswith(b"\xff")
        answer = get_secret(path, "files", "key")
        assert (answer.status, answer.json["errorCode"]) == (500, "ERR_SECRET_GET")
        assert answer.json["message"].endswith("secret 'key' is not UTF-8, which this API cannot carry: read its file")


def test_for_one_command(stores: Path, path: Path) -> None:
    """A client under `secretfs run` (api-1)."""
    script = f"assert get_secret(Path({str(path)!r}), 'keys', 'db').status == 200"
    command = ["--", sys.executable, "-c", f"from tests.support.api_client import *; {script}"]
    done = secretfs("run", "--resources-path", stores, "--api", f"unix:{path}", *command)
    assert (done.status, done.err) == (0, "")
    assert not path.exists()


def test_with_many_apps(stores: Path, path: Path, tmp_path: Path) -> None:
    """A request names no app, so nobody could be asked for the right one (api-2)."""
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps/shop.yaml").write_text("apiVersion: secretfs/v1alpha1\nkind: App\nmetadata: {name: shop}\n")
    point = tmp_path / "mnt"
    point.mkdir()
    done = secretfs("mount", "--resources-path", stores, "--apps", tmp_path / "apps", "--api", f"unix:{path}", point)
    reason = "--api serves one app, and --apps shows many: mount once more, with --app-id and --api"
    assert (done.status, done.err) == (2, f"secretfs: {reason}\n")
    assert not path.exists()
