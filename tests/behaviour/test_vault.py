"""Dapr's certification cases for ``secretstores.hashicorp.vault``, with `cat` on a mount of a real server.

The names are those of components-contrib ``tests/certification/secretstores/hashicorp/vault``.
"""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.servers.openbao import OpenBao, openbao
from tests.support.shell import errno_of, lines, output, refused_mount, run, wait_until
from tests.support.vault_fixtures import openbao_tls_server
from tests.support.waiting import PATIENCE

__all__ = ["openbao_tls_server"]

pytestmark = pytest.mark.mount

VAULT = "hashicorp.vault"
XATTR_VERSION = "user.secretfs.version"
SEED: dict[str, dict[str, Any]] = {
    "secret/dapr/secondsecret": {"secondsecret": secret("efgh")},
    "secret/dapr/multiplekeyvaluessecret": {"first": secret("1"), "second": secret("2"), "third": secret("3")},
    "secret/dapr/secretUnderTest": {"versionedKey": secret("latest")},
    "secret/dapr/odd": {"number": 42, "object": {"a": [1, None]}, "null": None, "empty": ""},
    "secret/alternativePrefix/secretUnderAlternativePrefix": {"altPrefixKey": secret("alternative")},
    "secret/secretWithNoPrefix": {"noPrefixKey": secret("noProblem")},
    "custom/dapr/secretUnderCustomPath": {"key": secret("custom")},
}


def ignoring_errors(manifest: Path) -> None:
    """Say ``ignoreErrors: true`` in a component."""
    document = yaml.safe_load(manifest.read_text())
    document["spec"]["ignoreErrors"] = True
    manifest.write_text(yaml.safe_dump(document))


def cat(path: Path) -> str:
    return output("cat", path).decode()


def errno_of_cat(path: Path) -> str:
    """Return what `cat` says went wrong."""
    done = run("cat", path)
    assert (done.returncode, done.stdout) == (1, b"")
    return done.stderr.decode().rpartition(": ")[2].strip()


# --- a server without TLS ---


@pytest.fixture(scope="module")
def server(openbao_server: OpenBao) -> OpenBao:
    openbao_server.mount("custom")
    openbao_server.mount("version1", version=1)
    for path, values in SEED.items():
        openbao_server.put(path, values)
    openbao_server.put("secret/dapr/secretUnderTest", SEED["secret/dapr/secretUnderTest"])  # a second version
    openbao_server.put("version1/dapr/old", {"key": secret("version 1")}, version=1)
    return openbao_server


@pytest.fixture(scope="module")
def stores(scratch: Path, server: OpenBao) -> Iterator[Mounted]:
    """Mount a component for each case that mounts."""
    base = {"vaultAddr": server.address, "vaultToken": server.token}
    (scratch / "token").write_text(f"{server.token}\n")
    tokens = {"env-is-there": "x", "vault": {"token": server.token}}
    (scratch / "tokens.json").write_text(json.dumps(tokens))
    cases: dict[str, Mapping[str, object]] = {
        "default": base,
        "alternative": {**base, "vaultKVPrefix": "alternativePrefix"},
        "no-prefix": {**base, "vaultKVUsePrefix": False},
        "no-prefix-text": {**base, "vaultKVUsePrefix": "false", "vaultKVPrefix": "ignored"},
        "text": {**base, "vaultValueType": "text"},
        "engine": {**base, "enginePath": "custom"},
        "version1": {**base, "enginePath": "version1"},
        "token-path": {"vaultAddr": server.address, "vaultTokenMountPath": scratch / "token"},
        "token-from-env": {**base, "vaultToken": {"envRef": "CASE_TOKEN"}},
    }
    manifests = scratch / "stores"
    for name, properties in cases.items():
        component(manifests, name, VAULT, properties)
    component(manifests, "tokens", "local.file", {"secretsFile": scratch / "tokens.json"})
    component(manifests, "environment", "local.env", {"prefix": "CASE_"})
    references = {
        "by-file": ("tokens", {"name": "vault:token", "key": "vault:token"}),
        "by-name-alone": ("tokens", {"name": "vault:token"}),
        "by-environment": ("environment", {"name": "TOKEN", "key": "TOKEN"}),
    }
    for name, (store, reference) in references.items():
        component(manifests, name, VAULT, {**base, "vaultToken": {"secretKeyRef": reference}}, secret_store=store)
    broken: dict[str, tuple[Mapping[str, object], str]] = {
        "bad-token": ({**base, "vaultToken": "hvs.bad"}, r"\(403\)"),
        "wrong-address": ({**base, "vaultAddr": "http://127.0.0.1:1"}, "cannot connect: Connection refused"),
        "both-tokens": ({**base, "vaultTokenMountPath": scratch / "token"}, "token mount path and token both set"),
        "no-token": ({"vaultAddr": server.address}, "token mount path and token not set"),
        "no-token-file": ({"vaultAddr": server.address, "vaultTokenMountPath": "/nowhere"}, "/nowhere"),
    }
    for name, (properties, _) in broken.items():
        ignoring_errors(component(manifests, name, VAULT, properties))
    expected = [f"{name}.*{reason}" for name, (_, reason) in broken.items()]
    with mounted(manifests, env={"CASE_TOKEN": server.token}, expect_log=expected) as mount:
        yield mount


def test_default(stores: Mounted) -> None:
    """vault-1: A secret of Vault is a directory with a file for each of its keys."""
    assert cat(stores.path / "default/secondsecret/secondsecret") == secret("efgh")
    directory = stores.path / "default/multiplekeyvaluessecret"
    assert {name: cat(directory / name) for name in lines("ls", directory)} == {
        "first": secret("1"),
        "second": secret("2"),
        "third": secret("3"),
    }
    assert errno_of_cat(stores.path / "default/not-there/key") == "No such file or directory"


def test_values_that_are_not_text(stores: Mounted) -> None:
    """vault-2: If the value of a key is not a string, its file holds the JSON text; null is an empty file."""
    directory = stores.path / "default/odd"
    assert {name: cat(directory / name) for name in lines("ls", directory)} == {
        "number": "42",
        "object": '{"a":[1,null]}',
        "null": "",
        "empty": "",
    }


def test_text(stores: Mounted) -> None:
    """vault-3: With `vaultValueType: text` a secret is one file, the JSON text of all its keys."""
    path = stores.path / "text/multiplekeyvaluessecret"
    assert json.loads(cat(path)) == {"first": secret("1"), "second": secret("2"), "third": secret("3")}
    assert path.is_file()


def test_prefix(stores: Mounted) -> None:
    """vault-4: A store shows the folder `vaultKVPrefix` of its engine (`dapr` by default) and nothing else."""
    assert lines("ls", stores.path / "default") == [
        "multiplekeyvaluessecret",
        "odd",
        "secondsecret",
        "secretUnderTest",
    ]
    assert lines("ls", stores.path / "alternative") == ["secretUnderAlternativePrefix"]
    assert cat(stores.path / "alternative/secretUnderAlternativePrefix/altPrefixKey") == secret("alternative")
    for outside in ("secretWithNoPrefix", "secretUnderAlternativePrefix", "dapr", "alternativePrefix"):
        assert errno_of_cat(stores.path / "default" / outside) == "No such file or directory"


@pytest.mark.parametrize("store", ["no-prefix", "no-prefix-text"])
def test_no_prefix(stores: Mounted, store: str) -> None:
    """vault-5: With `vaultKVUsePrefix: false` a store shows the whole engine, and the prefix is a folder in it."""
    assert cat(stores.path / store / "secretWithNoPrefix/noPrefixKey") == secret("noProblem")
    assert cat(stores.path / store / "dapr/secondsecret/secondsecret") == secret("efgh")
    assert errno_of_cat(stores.path / store / "secondsecret/secondsecret") == "No such file or directory"


def test_engine(stores: Mounted) -> None:
    """vault-6: `enginePath` selects the engine, which may be KV version 2 or 1."""
    assert lines("ls", stores.path / "engine") == ["secretUnderCustomPath"]
    assert cat(stores.path / "engine/secretUnderCustomPath/key") == secret("custom")
    assert json.loads(cat(stores.path / "engine/.bulk.json")) == {"secretUnderCustomPath": {"key": secret("custom")}}
    assert cat(stores.path / "version1/old/key") == secret("version 1")


@pytest.mark.parametrize("store", ["token-path", "token-from-env", "by-file", "by-name-alone", "by-environment"])
def test_where_the_token_comes_from(stores: Mounted, store: str) -> None:
    """vault-7: The token may be in a file, in the environment (`envRef`) or in another store (`secretKeyRef`)."""
    assert cat(stores.path / store / "secondsecret/secondsecret") == secret("efgh")


def test_bad_token_with_ignore_errors(stores: Mounted) -> None:
    """vault-8: With `ignoreErrors: true` a store whose token is refused is mounted, and its files are EACCES."""
    assert errno_of_cat(stores.path / "bad-token/secondsecret/secondsecret") == "Permission denied"
    assert errno_of(os.listdir, stores.path / "bad-token") == "EACCES"


def test_wrong_address_with_ignore_errors(stores: Mounted) -> None:
    """vault-9: With `ignoreErrors: true` a store that cannot be reached is mounted, and its files are EIO."""
    assert errno_of_cat(stores.path / "wrong-address/secondsecret/secondsecret") == "Input/output error"


def test_a_mistake_with_ignore_errors(stores: Mounted) -> None:
    """vault-10: With `ignoreErrors: true` a store that cannot be opened is EIO, and the others are mounted."""
    unopened = {"both-tokens", "no-token", "no-token-file"}
    assert {"default", "bad-token", "wrong-address", *unopened} <= set(lines("ls", stores.path))
    for name in unopened:
        assert errno_of(os.listdir, stores.path / name) == "EIO"
        assert errno_of(os.stat, stores.path / name / "secret") == "EIO"


# --- what stops the mount ---


@pytest.mark.parametrize(
    ("properties", "status", "reason"),
    [
        ({"vaultToken": "hvs.bad"}, 4, "(403)"),
        ({"vaultToken": "x", "vaultTokenMountPath": "/x"}, 2, "token mount path and token both set"),
        ({}, 2, "token mount path and token not set"),
        ({"vaultTokenMountPath": "/nowhere"}, 2, "couldn't read vault token from mount path /nowhere"),
        ({"vaultToken": "x", "vaultAddr": "http://127.0.0.1:1"}, 4, "cannot connect: Connection refused"),
        ({"vaultToken": "x", "vaultAddr": "nonsense"}, 2, "vaultAddr is not a URL"),
        ({"vaultToken": "x", "vaultValueType": "json"}, 2, "accepted values are map or text"),
        ({"vaultToken": {"secretKeyRef": {"name": "t", "key": "t"}}}, 2, "there is no secret store nowhere"),
    ],
    ids=["bad token", "both tokens", "no token", "no token file", "wrong address", "no address", "type", "reference"],
)
def test_refused(server: OpenBao, tmp_path: Path, properties: dict[str, object], status: int, reason: str) -> None:
    """life-1: A mistake (exit code 2) or a store that refuses (4) stops the mount; the message has file and reason."""
    component(tmp_path / "m", "vault", VAULT, {"vaultAddr": server.address} | properties, secret_store="nowhere")
    code, told = refused_mount(tmp_path / "m")
    assert code == status
    assert reason in told
    assert "vault.yaml" in told


@pytest.mark.parametrize("command", ["mount", "check", "doctor"])
@pytest.mark.parametrize("engine", ["kv", "dynamic"])
def test_a_refused_token_says_where_it_is_from(server: OpenBao, tmp_path: Path, command: str, engine: str) -> None:
    """The message names the property or the file that the token comes from, and the fix (life-1)."""
    (tmp_path / "token").write_text("hvs.bad")
    for properties, reason in (
        ({"vaultToken": "hvs.bad"}, "the server does not accept vaultToken: give a valid token"),
        ({"vaultTokenMountPath": tmp_path / "token"}, f"the token in {tmp_path / 'token'} (vaultTokenMountPath): put"),
    ):
        more = {"vaultAddr": server.address, "vaultEngineType": engine}
        component(tmp_path / "m", "vault", VAULT, {**more, **properties})
        if command == "mount":
            _, told = refused_mount(tmp_path / "m")
        else:
            options = ["--connect"] if command == "check" else []
            done = secretfs(command, *options, "--resources-path", tmp_path / "m")
            told = done.out + done.err
        assert reason in " ".join(told.split())


# --- TLS ---


@pytest.fixture(scope="module")
def tls(scratch: Path, openbao_tls_server: OpenBao) -> Iterator[Mounted]:
    """Mount a component for each way to trust the server."""
    openbao_tls_server.put("secret/dapr/secondsecret", SEED["secret/dapr/secondsecret"])
    base: Mapping[str, object] = {"vaultAddr": openbao_tls_server.address, "vaultToken": openbao_tls_server.token}
    authority = openbao_tls_server.ca
    (scratch / "authorities/deeper").mkdir(parents=True)
    (scratch / "authorities/deeper/ca.pem").write_text(authority.read_text())
    stranger = trustme.CA().cert_pem.bytes().decode()
    manifests = scratch / "tls"
    for name, trust in TRUSTING.items():
        filled = {key: value.format(pem=authority.read_text(), file=authority, folder=scratch / "authorities")
                  for key, value in trust.items()}  # fmt: skip
        component(manifests, name, VAULT, {**base, **filled})
    broken: dict[str, tuple[Mapping[str, object], str]] = {
        "wrong-ca": ({"caPem": stranger}, "certificate is refused"),
        "no-ca": ({}, "certificate is refused"),
        "wrong-name": ({"caCert": authority, "tlsServerName": "elsewhere.example"}, "certificate is refused"),
        "bad-pem": ({"caPem": "not a certificate"}, "couldn't read PEM"),
    }
    for name, (distrust, _) in broken.items():
        ignoring_errors(component(manifests, name, VAULT, {**base, **distrust}))
    expected = [f"{name}.*{reason}" for name, (_, reason) in broken.items()]
    with mounted(manifests, expect_log=[*expected, "skip-verify: skipVerify is true"]) as mount:
        yield mount


TRUSTING = {
    "ca-pem": {"caPem": "{pem}"},
    "ca-path": {"caPath": "{folder}"},
    "ca-cert": {"caCert": "{file}"},
    "skip-verify": {"skipVerify": "true"},
    "server-name": {"caCert": "{file}", "tlsServerName": "localhost"},
}


@pytest.mark.parametrize("store", TRUSTING)
def test_trust(tls: Mounted, store: str) -> None:
    """vault-11: With TLS the server is verified against `caPem`, `caPath` or `caCert`, else the system's CAs."""
    assert cat(tls.path / store / "secondsecret/secondsecret") == secret("efgh")


@pytest.mark.parametrize("store", ["wrong-ca", "no-ca", "wrong-name"])
def test_distrust(tls: Mounted, store: str) -> None:
    """vault-12: A server with an invalid certificate is never sent the token, and its files are EIO."""
    assert errno_of_cat(tls.path / store / "secondsecret/secondsecret") == "Input/output error"


def test_a_wrong_authority_stops_the_mount(openbao_tls_server: OpenBao, tmp_path: Path) -> None:
    """Without `ignoreErrors` a certificate that is not good stops the mount, with the reason (vault-12, life-1)."""
    stranger = trustme.CA().cert_pem.bytes().decode()
    address = {"vaultAddr": openbao_tls_server.address, "vaultToken": openbao_tls_server.token}
    component(tmp_path / "m", "vault", VAULT, {**address, "caPem": stranger})
    code, told = refused_mount(tmp_path / "m")
    assert code == 4
    assert "the server's certificate is refused: " in told


# --- a server that goes away ---


def test_unreachable_then_back(tmp_path: Path) -> None:
    """vault-13: After an outage the secrets can be read again, even if the server was down at the time of the mount."""
    component(
        tmp_path / "m",
        "vault",
        VAULT,
        {"vaultAddr": "http://127.0.0.1:1", "vaultToken": "x"},
        annotations={"secretfs/ttl": "100ms", "secretfs/max-stale": "0s"},
    )
    with openbao(tmp_path / "server") as server:
        server.put("secret/dapr/secondsecret", SEED["secret/dapr/secondsecret"])
        server.kill()
        properties = {"vaultAddr": server.address, "vaultToken": server.token}
        manifest = component(
            tmp_path / "m",
            "vault",
            VAULT,
            properties,
            annotations={"secretfs/ttl": "100ms", "secretfs/max-stale": "0s"},
        )
        ignoring_errors(manifest)
        trouble = ["cannot connect: Connection refused", "the connection broke"]  # which one depends on the moment
        with mounted(tmp_path / "m", expect_log=trouble) as mount:
            path = mount.path / "vault/secondsecret/secondsecret"
            assert errno_of_cat(path) == "Input/output error"
            server.start()
            server.put("secret/dapr/secondsecret", SEED["secret/dapr/secondsecret"])
            wait_until(lambda: errno_of(path.read_bytes) == "")
            assert cat(path) == secret("efgh")
            server.kill()
            wait_until(lambda: errno_of(path.read_bytes) == "EIO")
            assert mount.process.poll() is None
            mount.process.send_signal(signal.SIGTERM)  # also with its store down it ends at once
            assert mount.process.wait(PATIENCE) == 0


def test_token_file_is_read_again(server: OpenBao, tmp_path: Path) -> None:
    """vault-14: A token file is read again when it changes: a renewed token needs no remount."""
    token = tmp_path / "token"
    limited = server.limited_token(**{"secret/data/dapr/secondsecret": "read"})
    token.write_text(limited)
    component(
        tmp_path / "m",
        "vault",
        VAULT,
        {"vaultAddr": server.address, "vaultTokenMountPath": token},
        annotations={"secretfs/ttl": "100ms"},
    )
    with mounted(tmp_path / "m", expect_log=[r"\(403\)"]) as mount:
        assert cat(mount.path / "vault/secondsecret/secondsecret") == secret("efgh")
        assert errno_of_cat(mount.path / "vault/secretUnderTest/versionedKey") == "Permission denied"
        token.write_text(server.token)
        wait_until(lambda: errno_of((mount.path / "vault/secretUnderTest/versionedKey").stat) == "")


# --- versions ---


def test_version(stores: Mounted) -> None:
    """xattr-1: `user.secretfs.version` of a secret and of its keys is the version, as the store calls it."""
    for path in ("default/secretUnderTest", "default/secretUnderTest/versionedKey"):
        assert output("getfattr", "--absolute-names", "--only-values", "-n", XATTR_VERSION, stores.path / path) == b"2"
    assert errno_of(os.getxattr, stores.path / "version1/old", XATTR_VERSION) == "ENODATA"


def test_fetched(stores: Mounted) -> None:
    """xattr-2: `user.secretfs.fetched` is when the store was last asked for the secret."""
    for path in ("default/secondsecret", "default/secondsecret/secondsecret", "text/secondsecret", "version1/old/key"):
        assert os.getxattr(stores.path / path, "user.secretfs.fetched").startswith(b"20")


def test_xattr_names(stores: Mounted) -> None:
    """xattr-3: Secrets have these two attributes, folders and stores none; a version only if the store has versions."""
    both = [XATTR_VERSION, "user.secretfs.fetched"]
    (stores.path / "version1/old/key").read_bytes()
    for path, names in {
        "default/secondsecret": both,
        "default/secondsecret/secondsecret": both,
        "version1/old/key": both[1:],
        "default": [],
        "no-prefix/dapr": [],
        "": [],
    }.items():
        assert [name for name in os.listxattr(stores.path / path) if name in both] == names
    for name in ("user.other", "security.selinux", "system.posix_acl_access"):
        assert errno_of(os.getxattr, stores.path / "default/secondsecret/secondsecret", name) == "ENODATA"
