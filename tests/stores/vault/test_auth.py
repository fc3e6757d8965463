"""``secretstores.hashicorp.vault``: every way to log in, on a real OpenBao."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from secretfs.errors import AccessDenied, ConfigurationError, DeadlineExceeded, StoreError, StoreUnavailable
from secretfs.store import SecretStore
from secretfs.stores.vault import token as vault_token
from tests.support.canary import CANARY, secret
from tests.support.opened import opened
from tests.support.servers.openbao import OpenBao, openbao
from tests.support.tokens import Signer
from tests.support.vault_auth import approle, count, enable, logins, policy, reading, revoke_tokens, role, userpass
from tests.support.vault_fixtures import Folder, kv, kv1, openbao_server, openbao_tls_server

__all__ = ["kv", "kv1", "openbao_server", "openbao_tls_server"]

TYPE = "secretstores.hashicorp.vault"
NOWHERE = "http://127.0.0.1:1"
VALUES = {"password": secret().encode()}
VALID = {"iat": 1600000000, "nbf": 1600000000, "exp": 4102444800}


def component(folder: Folder, login: dict[str, str], **more: str) -> dict[str, str]:
    """Return the properties of a component that logs in."""
    properties = {**folder.metadata(), **login, **more}
    del properties["vaultToken"]
    return {name: value for name, value in properties.items() if value}


@pytest.fixture
def allowed(kv: Folder) -> str:
    kv.put("db", {"password": secret()})
    return reading(kv.server, kv.prefix)


# --- the methods ---


def reads_and_gives_back(folder: Folder, properties: dict[str, str]) -> None:
    """Read twice on one login, and leave no token behind."""
    folder.server.forget()
    with opened(TYPE, properties) as store:
        assert folder.server.requests() == []
        store.check()
        assert store.fetch("db").values == VALUES
        assert store.fetch("db").values == VALUES
        assert logins(folder.server) == 1
        assert CANARY not in f"{store!r} {vars(store)} {vars(store._adapter)}"  # type: ignore[attr-defined]
    assert count(folder.server, "auth/token/revoke-self") == 1


def test_approle(kv: Folder, allowed: str) -> None:
    reads_and_gives_back(kv, component(kv, approle(kv.server, allowed)))


def test_userpass(kv: Folder, allowed: str) -> None:
    reads_and_gives_back(kv, component(kv, userpass(kv.server, allowed)))


def test_a_file_instead_of_the_text(kv: Folder, allowed: str, tmp_path: Path) -> None:
    path = tmp_path / "credential"
    login = userpass(kv.server, allowed)
    path.write_text(login.pop("vaultUserpassPassword") + "\n", encoding="utf-8")
    reads_and_gives_back(kv, component(kv, login, vaultUserpassPasswordPath=str(path)))
    login = approle(kv.server, allowed)
    path.write_text(f" {login.pop('vaultAppRoleSecretId')}\n", encoding="utf-8")
    reads_and_gives_back(kv, component(kv, login, vaultAppRoleSecretIdPath=str(path)))


@pytest.fixture
def jwt_login(kv: Folder, allowed: str) -> tuple[Signer, dict[str, str]]:
    signer, path = Signer(), enable(kv.server, "jwt")
    kv.server.call("POST", f"auth/{path}/config", {"jwt_validation_pubkeys": [signer.public_key]})
    bound = {"role_type": "jwt", "bound_audiences": ["vault"], "user_claim": "sub", "expiration_leeway": -1}
    kv.server.call("POST", f"auth/{path}/role/app", {**role(allowed), **bound})
    return signer, {"vaultAuthMethod": "jwt", "vaultJwtRole": "app", "vaultJwtMountPath": path}


def test_jwt(kv: Folder, jwt_login: tuple[Signer, dict[str, str]]) -> None:
    signer, login = jwt_login
    token = signer.sign(sub=secret(), aud="vault", **VALID)
    reads_and_gives_back(kv, component(kv, login, vaultJwt=token))


def test_a_jwt_without_a_role_has_the_default_one(kv: Folder, jwt_login: tuple[Signer, dict[str, str]]) -> None:
    signer, login = jwt_login
    del login["vaultJwtRole"]
    config = {"jwt_validation_pubkeys": [signer.public_key], "default_role": "app"}
    kv.server.call("POST", f"auth/{login['vaultJwtMountPath']}/config", config)
    reads_and_gives_back(kv, component(kv, login, vaultJwt=signer.sign(sub=secret(), aud="vault", **VALID)))


def test_the_name_of_a_user_is_one_segment_of_a_path(kv: Folder, allowed: str) -> None:
    """The password goes nowhere else."""
    login = userpass(kv.server, allowed)
    kv.server.forget()
    outside = {**login, "vaultUserpassUsername": "../../../sys/wrapping/wrap"}
    with opened(TYPE, component(kv, outside)) as store, pytest.raises(StoreError, match="login with userpass"):
        store.fetch("db")
    assert count(kv.server, "sys/wrapping/wrap") == 0


def test_a_jwt_is_read_again_when_its_file_changes(
    kv: Folder, allowed: str, jwt_login: tuple[Signer, dict[str, str]], tmp_path: Path
) -> None:
    signer, login = jwt_login
    path = tmp_path / "jwt"
    path.write_text(signer.sign(sub=secret("first"), aud="vault", **VALID), encoding="ascii")
    with opened(TYPE, component(kv, login, vaultJwtPath=str(path))) as store:
        assert store.fetch("db").values == VALUES
        path.write_text(signer.sign(sub=secret("second"), aud="nobody", **VALID), encoding="ascii")
        revoke_tokens(kv.server, allowed)
        with pytest.raises(AccessDenied, match=r"secret db: login with jwt: .*refused \(400\)"):
            store.fetch("db")
        with pytest.raises(AccessDenied, match="login with jwt"):  # the same answer, without asking again
            store.fetch("db")
        assert logins(kv.server) == 2


# --- a secret id that comes wrapped ---


@pytest.fixture
def wrapped(kv: Folder, allowed: str, tmp_path: Path) -> tuple[dict[str, str], Callable[[], str], Path]:
    """Give the properties of a component, what wraps a new secret id for it, and the file to put that into."""
    login = approle(kv.server, allowed)
    del login["vaultAppRoleSecretId"]
    path = f"auth/{login['vaultAppRoleMountPath']}/role/app/secret-id"
    file = tmp_path / "wrapped"

    def wrap() -> str:
        return kv.server.wrap(path)

    file.write_text(wrap(), encoding="ascii")
    login |= {"vaultAppRoleSecretIdPath": str(file), "vaultAppRoleSecretIdWrappingPath": f"/{path}"}
    return component(kv, login), wrap, file


def test_a_wrapped_secret_id(kv: Folder, allowed: str, wrapped: tuple[dict[str, str], Callable[[], str], Path]) -> None:
    properties, wrap, file = wrapped
    with opened(TYPE, properties) as store:
        assert store.fetch("db").values == VALUES
        revoke_tokens(kv.server, allowed)
        assert store.fetch("db").values == VALUES  # a wrapping token opens once, what was in it is kept
        assert count(kv.server, "sys/wrapping/unwrap") == 1
        file.write_text(wrap(), encoding="ascii")
        revoke_tokens(kv.server, allowed)
        assert store.fetch("db").values == VALUES
        assert count(kv.server, "sys/wrapping/unwrap") == 2


def test_a_wrapped_secret_id_that_somebody_else_has_opened(
    kv: Folder, wrapped: tuple[dict[str, str], Callable[[], str], Path]
) -> None:
    properties, wrap, _ = wrapped
    with opened(TYPE, properties) as store, opened(TYPE, properties) as late:
        store.check()
        with pytest.raises(AccessDenied, match=r"login with approle: wrapped secret id: .*refused"):
            late.check()
    del properties["vaultAppRoleSecretIdPath"]
    properties["vaultAppRoleSecretId"] = wrap()
    properties["vaultAppRoleSecretIdWrappingPath"] = "auth/approle/role/other/secret-id"
    with opened(TYPE, properties) as store, pytest.raises(AccessDenied, match="wrapped elsewhere"):
        store.check()


# --- certificates ---


def test_certificates(openbao_tls_server: OpenBao, tmp_path: Path) -> None:
    server = openbao_tls_server
    folder = Folder(server, "certificates")
    folder.put("db", {"password": secret()})
    allowed = reading(server, folder.prefix)
    authority, later = trustme.CA(), trustme.CA()
    path = enable(server, "cert")
    for name, trusted in (("app", authority), ("later", later)):
        certificate = {"certificate": trusted.cert_pem.bytes().decode()}
        server.call("POST", f"auth/{path}/certs/{name}", {**role(allowed), **certificate})
    shown, key = _pem(authority)
    login = {"vaultAuthMethod": "cert", "vaultCertMountPath": path, "caCert": str(server.ca)}
    texts = component(folder, login, vaultClientCert=shown, vaultClientKey=key, vaultCertRole="app")
    with opened(TYPE, texts) as store:
        assert store.fetch("db").values == VALUES
    with (
        opened(TYPE, {**texts, "vaultCertRole": "later"}) as store,
        pytest.raises(AccessDenied, match="login with cert"),
    ):
        store.fetch("db")
    certificate_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate_file.write_text(shown), key_file.write_text(key)
    paths = component(folder, login, vaultClientCertPath=str(certificate_file), vaultClientKeyPath=str(key_file))
    with opened(TYPE, paths) as store:
        assert store.fetch("db").values == VALUES
        server.call("DELETE", f"auth/{path}/certs/app")
        revoke_tokens(server, allowed)
        shown, key = _pem(later)
        certificate_file.write_text(shown)
        with pytest.raises(StoreUnavailable, match="vaultClientCertPath: there is no certificate with its private key"):
            store.fetch("db")
        key_file.write_text(key)
        assert store.fetch("db").values == VALUES
    stranger, strangers_key = _pem(trustme.CA())
    both = component(folder, login, vaultClientCert=stranger + strangers_key)
    with opened(TYPE, both) as store, pytest.raises(AccessDenied, match="login with cert"):
        store.fetch("db")


def _pem(authority: trustme.CA) -> tuple[str, str]:
    certificate = authority.issue_cert("app.example", common_name="app")
    return certificate.cert_chain_pems[0].bytes().decode(), certificate.private_key_pem.bytes().decode()


# --- refusals ---


def test_a_dead_token_is_replaced_once_for_all_who_notice(kv: Folder, allowed: str) -> None:
    with opened(TYPE, component(kv, approle(kv.server, allowed))) as store, ThreadPoolExecutor(8) as pool:
        store.fetch("db")
        for _ in range(3):
            assert revoke_tokens(kv.server, allowed) == 1
            kv.server.forget()
            assert all(secret.values == VALUES for secret in pool.map(store.fetch, ["db"] * 8))
            assert logins(kv.server) == 1
            assert count(kv.server, "auth/token/lookup-self") == 1


def test_a_policy_that_refuses_is_no_reason_to_log_in(kv: Folder, allowed: str) -> None:
    kv.server.put("secret/elsewhere/db", {"password": secret()})
    with opened(TYPE, component(kv, approle(kv.server, allowed), vaultKVPrefix="elsewhere")) as store:
        kv.server.forget()
        for _ in range(100):
            with pytest.raises(AccessDenied, match=r"secret db: .*permission denied \(403\)"):
                store.fetch("db")
        assert logins(kv.server) == 1
        assert count(kv.server, "auth/token/lookup-self") == 1


def test_a_token_that_dies_among_refusals_is_noticed_at_once(kv: Folder, allowed: str) -> None:
    """The look that a policy has cost does not keep what was always allowed from getting one."""
    login = component(kv, approle(kv.server, allowed))
    with opened(TYPE, {**login, "vaultKVUsePrefix": "false"}) as store:
        name = f"{kv.prefix}/db"
        assert store.fetch(name).values == VALUES
        with pytest.raises(AccessDenied):
            store.fetch("forbidden")
        revoke_tokens(kv.server, allowed)
        assert store.fetch(name).values == VALUES


def test_wrong_credentials(kv: Folder, allowed: str, tmp_path: Path) -> None:
    path = tmp_path / "secret-id"
    path.write_text(secret("wrong"))
    login = approle(kv.server, allowed)
    del login["vaultAppRoleSecretId"]
    with opened(TYPE, component(kv, login, vaultAppRoleSecretIdPath=str(path))) as store:
        for _ in range(50):
            for call in (store.check, lambda: store.names(""), lambda: store.fetch("db")):
                with pytest.raises(AccessDenied, match=r"login with approle: .*refused \(400\)"):
                    call()
        assert logins(kv.server) == 1
        path.unlink()
    with opened(TYPE, {**kv.metadata(), **_without_token(approle(kv.server, allowed))}) as store:
        assert store.fetch("db").values == VALUES


def test_the_version_of_an_engine_is_not_guessed_before_the_login(
    kv1: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_token, "LOOKUP_INTERVAL", 0.0)
    kv1.put("db", {"password": secret()})
    login = userpass(kv1.server, policy(kv1.server, **{f"kv1/{kv1.prefix}/*": "read"}))
    path = tmp_path / "password"
    right = login.pop("vaultUserpassPassword")
    path.write_text(secret("wrong"), encoding="utf-8")
    with opened(TYPE, component(kv1, login, vaultUserpassPasswordPath=str(path))) as store:
        with pytest.raises(AccessDenied, match="login with userpass"):
            store.fetch("db")
        path.write_text(right, encoding="utf-8")
        assert store.fetch("db").values == VALUES


def _without_token(login: dict[str, str]) -> dict[str, str]:
    return {**login, "vaultToken": ""}


def test_a_credential_file_that_is_gone_is_an_outage(kv: Folder, allowed: str, tmp_path: Path) -> None:
    path = tmp_path / "secret-id"
    login = approle(kv.server, allowed)
    path.write_text(login.pop("vaultAppRoleSecretId"))
    with opened(TYPE, component(kv, login, vaultAppRoleSecretIdPath=str(path))) as store:
        path.unlink()
        with pytest.raises(StoreUnavailable, match=r"couldn't read vaultAppRoleSecretIdPath .*: No such file"):
            store.fetch("db")


def test_nobody_waits_for_a_login_longer_than_the_deadline(tmp_path: Path) -> None:
    with openbao(tmp_path) as own, ThreadPoolExecutor(60) as pool:
        login = component(Folder(own, "dapr"), userpass(own, reading(own, "dapr")))
        with own.hanging(), opened(TYPE, login, deadline=1.0) as store:
            started = time.monotonic()
            assert set(pool.map(_failure_of(store), ["db"] * 60)) == {DeadlineExceeded}
            assert time.monotonic() - started < 60 * 1.0 / 2  # not one after the other


# --- properties ---

APPROLE = {"vaultAuthMethod": "approle", "vaultAppRoleId": "r", "vaultAppRoleSecretId": secret()}


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"vaultAuthMethod": "ldap"}, "the methods are token, kubernetes, approle, jwt, userpass, cert"),
        ({"vaultAuthMethod": "Kubernetes"}, "vaultAuthMethod: the methods are"),
        ({"vaultAuthMethod": "kubernetes"}, "vaultAuthMethod kubernetes needs vaultKubernetesRole"),
        ({**APPROLE, "vaultAppRoleId": " "}, "vaultAuthMethod approle needs vaultAppRoleId"),
        ({**APPROLE, "vaultAppRoleSecretId": ""}, "needs vaultAppRoleSecretId or vaultAppRoleSecretIdPath"),
        ({**APPROLE, "vaultAppRoleSecretIdPath": "/s"}, "vaultAppRoleSecretId and vaultAppRoleSecretIdPath both set"),
        ({**APPROLE, "vaultAppRoleSecretId": " "}, "vaultAppRoleSecretId: it is empty"),
        (
            {**APPROLE, "vaultAppRoleSecretIdWrappingPath": "auth/a", "vaultAppRoleSecretId": secret("\n!")},
            "vaultAppRoleSecretId: the token has characters that no token has",
        ),
        ({"vaultAuthMethod": "jwt"}, "vaultAuthMethod jwt needs vaultJwt or vaultJwtPath"),
        ({"vaultAuthMethod": "jwt", "vaultJwtPath": "/no/jwt"}, "couldn't read vaultJwtPath /no/jwt: No such file"),
        ({"vaultAuthMethod": "userpass"}, "vaultAuthMethod userpass needs vaultUserpassUsername"),
        ({"vaultAuthMethod": "userpass", "vaultUserpassUsername": "u"}, "needs vaultUserpassPassword or vaultUserpass"),
        ({"vaultAuthMethod": "cert"}, "vaultAuthMethod cert needs vaultClientCert or vaultClientCertPath"),
        ({"vaultAuthMethod": "cert", "vaultClientCert": secret()}, "vaultClientCert: there is no certificate with its"),
        ({"vaultAuthMethod": "cert", "vaultClientCertPath": "/no"}, "client certificate: /no: No such file"),
        ({"vaultToken": "t", "vaultClientKey": secret()}, "vaultClientKey is set, and there is no certificate"),
        ({"vaultToken": "t", "vaultClientKeyPath": "/k"}, "vaultClientKeyPath is set, and there is no certificate"),
        ({"vaultToken": "t", "vaultClientCert": "c", "vaultClientCertPath": "/c"}, "vaultClientCertPath both set"),
        ({**APPROLE, "vaultToken": secret()}, "vaultToken is for vaultAuthMethod token, and"),
        ({**APPROLE, "vaultTokenMountPath": "/t"}, "vaultTokenMountPath is for vaultAuthMethod token"),
        ({**APPROLE, "vaultJwt": secret()}, "vaultJwt is for vaultAuthMethod jwt"),
        ({"vaultKubernetesRole": "app"}, "kubernetes, and vaultAuthMethod is token"),
        ({"vaultServiceAccountTokenPath": "/t"}, "vaultServiceAccountTokenPath is for vaultAuthMethod kubernetes"),
        ({"vaultCertRole": "app"}, "vaultCertRole is for vaultAuthMethod cert"),
        ({"vaultAuthMethod": ""}, "token mount path and token not set"),
    ],
)  # fmt: skip
def test_mistakes_name_the_property(properties: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught, opened(TYPE, {"vaultAddr": NOWHERE, **properties}):
        pass
    assert message in str(caught.value)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("method", ["approle", "userpass"])
def test_opening_contacts_nobody(method: str) -> None:
    user = {"vaultAuthMethod": "userpass", "vaultUserpassUsername": "u", "vaultUserpassPassword": secret()}
    properties = {"vaultAddr": NOWHERE, **{"approle": APPROLE, "userpass": user}[method]}
    failure = f"login with {method}: .*cannot connect"
    with opened(TYPE, properties) as store, pytest.raises(StoreUnavailable, match=failure):
        store.fetch("db")


def _failure_of(store: SecretStore) -> Callable[[str], type[StoreError]]:
    def fetch(name: str) -> type[StoreError]:
        with pytest.raises(StoreError) as caught:
            store.fetch(name)
        return type(caught.value)

    return fetch
