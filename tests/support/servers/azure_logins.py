"""The logins of Azure: token authorities, and the identity endpoints of machines.

The protocols are those of the recordings in azure-sdk-for-python, and of learn.microsoft.com on managed identities.
"""

import base64
import functools
import hashlib
import json
import ssl
import sys
import time
import uuid
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.support.canary import secret
from tests.support.servers.http_server import Answer, Handler, Listener, Request
from tests.support.servers.proxied import ProxiedServer

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
USER_ASSIGNED = "99999999-8888-7777-6666-555555555555"
AUTHORITIES = {
    "login.microsoftonline.com": "vault.azure.net",
    "login.chinacloudapi.cn": "vault.azure.cn",
    "login.microsoftonline.us": "vault.usgovcloudapi.net",
}
_FINGERPRINTS: Mapping[str, hashes.HashAlgorithm] = {"x5t": hashes.SHA1(), "x5t#S256": hashes.SHA256()}
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True)
class Token:
    """What a bearer token stands for."""

    audience: str
    identity: str
    expires: float
    tenant: str = TENANT


class Logins(ProxiedServer):
    """Who may log in, and the tokens that were given out."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.token_ttl = 3600
        self.client_secrets = {secret("client-secret")}
        self.expired_secrets: set[str] = set()
        self.certificates: list[x509.Certificate] = []
        self.federated: set[str] = set()
        self.federation: Container[str] = ()
        """Tokens of others that count as those of the application, beside those that are `federated`."""
        self.assigned = {"", USER_ASSIGNED}
        """The client ids that identity endpoints have a token for; the empty one is that of the machine."""
        self.arc_key = folder / "no.key"
        """The file that Azure Arc has clients read."""
        self._tokens: dict[str, Token] = {}

    def mint(self, identity: str, audience: str = "https://vault.azure.net", ttl: float | None = None) -> str:
        """Make a token."""
        with self._lock:
            token = secret(f"token-{len(self._tokens)}")
            self._tokens[token] = Token(audience, identity, time.time() + (self.token_ttl if ttl is None else ttl))
        return token

    def revoke(self) -> None:
        """Let no token count that was made so far."""
        with self._lock:
            self._tokens.clear()

    def service_fabric(self) -> tuple[str, str]:
        """Start the identity endpoint of Service Fabric. Returns its URL and the thumbprint of its certificate."""
        leaf = trustme.CA().issue_cert("127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        fabric = Listener(self, functools.partial(_service_fabric, self), Handler, context)
        self._listeners.append(fabric)
        fabric.start()
        der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
        thumbprint = hashlib.sha1(der, usedforsecurity=False).hexdigest().upper()
        return f"https://127.0.0.1:{fabric.port}/metadata/identity/oauth2/token", thumbprint

    def cli(self, folder: Path, *, token: str = "", error: str = "", returncode: int = 0, hangs: bool = False) -> Path:
        """Put an executable ``az`` into ``folder``, which notes its arguments in ``az.log``."""
        answer = {"accessToken": token, "expires_on": int(time.time()) + 3600, "tokenType": "Bearer"}
        folder.mkdir(exist_ok=True)
        path = folder / "az"
        path.write_text(
            f"#!{sys.executable} -IS\n"
            "import sys, time\n"
            f"with open({str(folder / 'az.log')!r}, 'a') as log: print(*sys.argv[1:], file=log)\n"
            f"if {hangs}: time.sleep(30)\n"
            f"print({json.dumps(answer)!r} if not {returncode} else '')\n"
            f"print({error!r}, file=sys.stderr)\n"
            f"sys.exit({returncode})\n",
            encoding="utf-8",
        )
        path.chmod(0o755)
        return path

    def bearer(self, token: str) -> Token | None:
        """Return what a token stands for, if it was given out."""
        with self._lock:
            return self._tokens.get(token)


# --- the token authority ---


def authority(logins: Logins, request: Request) -> Answer | None:
    """Answer as Microsoft Entra ID."""
    base = f"https://{request.host}"
    tenant, _, path = request.path[1:].partition("/")
    if path == "v2.0/.well-known/openid-configuration":
        logins.count("discovery")
        if tenant != TENANT:
            return _aadsts(400, "invalid_tenant", 90002, "Tenant not found.")
        endpoints = {"authorization_endpoint": "authorize", "token_endpoint": "token"}
        urls = {name: f"{base}/{tenant}/oauth2/v2.0/{last}" for name, last in endpoints.items()}
        return Answer.json(200, {**urls, "issuer": f"{base}/{tenant}/v2.0"})
    # Among what has no place here: to ask whether the authority is one (instance discovery).
    assert (request.method, path) == ("POST", "oauth2/v2.0/token"), f"no such path: {request.path}"
    logins.count("login")
    return logins.login_faults.popleft()() if logins.login_faults else _token(logins, request, tenant)


def _form(request: Request) -> dict[str, str]:
    assert request.headers.get("content-type") == "application/x-www-form-urlencoded", "not a form"
    return request.form


def _token(logins: Logins, request: Request, tenant: str) -> Answer:
    form = _form(request)
    assert form["grant_type"] == "client_credentials"
    audience = f"https://{AUTHORITIES[request.host]}"
    refusal = _client_refusal(logins, form, f"https://{request.host}{request.path}")
    if refusal is not None:
        return refusal
    if tenant != TENANT:
        return _aadsts(400, "invalid_request", 90002, "Tenant not found.")
    if form["scope"] != f"{audience}/.default":
        return _aadsts(400, "invalid_resource", 500011, "The resource principal was not found in the tenant.")
    token = logins.mint(form["client_id"], audience)
    lifetime = {"expires_in": logins.token_ttl, "ext_expires_in": logins.token_ttl}
    return Answer.json(200, {"token_type": "Bearer", "access_token": token, **lifetime})


def _client_refusal(logins: Logins, form: Mapping[str, str], endpoint: str) -> Answer | None:
    if form["client_id"] != CLIENT:
        return _aadsts(400, "unauthorized_client", 700016, "Application was not found in the directory.")
    if "client_secret" in form:
        if form["client_secret"] in logins.expired_secrets:
            return _aadsts(401, "invalid_client", 7000222, "The provided client secret keys are expired.")
        known = form["client_secret"] in logins.client_secrets
        return None if known else _aadsts(401, "invalid_client", 7000215, "Invalid client secret provided.")
    assert form["client_assertion_type"] == _ASSERTION
    return _assertion_refusal(logins, form["client_assertion"], endpoint)


def _assertion_refusal(logins: Logins, assertion: str, endpoint: str) -> Answer | None:
    if assertion in logins.federated or assertion in logins.federation:
        return None
    if assertion.count(".") != 2:
        return _aadsts(400, "invalid_client", 70021, "No matching federated identity record found.")
    if not jwt.get_unverified_header(assertion).keys() & _FINGERPRINTS.keys():
        text = "No matching federated identity record found for presented assertion subject."
        return _aadsts(400, "invalid_client", 700213, text)
    return _certificate_refusal(logins, assertion, endpoint)


def _certificate_refusal(logins: Logins, assertion: str, endpoint: str) -> Answer | None:
    header = jwt.get_unverified_header(assertion)
    assert header["alg"] in ("PS256", "RS256")
    for certificate in logins.certificates:
        if any(
            header.get(mark, "").rstrip("=") == _url64(certificate.fingerprint(made))
            for mark, made in _FINGERPRINTS.items()
        ):
            break
    else:
        return _aadsts(401, "invalid_client", 700027, "The certificate with identifier used to sign is not registered.")
    key: Any = certificate.public_key()
    claims = jwt.decode(
        assertion, key, algorithms=[header["alg"]], audience=endpoint, options={"require": ["exp", "iss", "sub", "jti"]}
    )
    assert claims["iss"] == claims["sub"] == CLIENT
    return None


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _aadsts(status: int, error: str, code: int, text: str) -> Answer:
    described = f"AADSTS{code}: {text} Trace ID: {uuid.uuid4()} {secret('trace')}"
    return Answer.json(status, {"error": error, "error_description": described, "error_codes": [code]})


# --- the identity endpoints of machines ---


def identity_endpoint(logins: Logins, request: Request) -> Answer | None:
    """Answer as IMDS, App Service, Azure Arc, Azure ML or Cloud Shell, by the start of the path."""
    kind = request.path.split("/")[1]
    if kind == "metadata" and request.headers.get("metadata") != "true":
        logins.count("probe")
        return Answer.json(
            400, {"error": "invalid_request", "error_description": "Required metadata header not specified"}
        )
    logins.count({"metadata": "imds"}.get(kind, kind))
    if logins.login_faults:
        return logins.login_faults.popleft()()
    answers = {"metadata": _imds, "appservice": _app_service, "arc": _arc, "ml": _azure_ml, "shell": _cloud_shell}
    assert kind in answers, f"no such path: {request.path}"
    return answers[kind](logins, request)


def _granted(logins: Logins, resource: str, client: str, **expiry: Any) -> dict[str, Any]:
    assert resource == "https://vault.azure.net", f"wrong resource: {resource}"
    token = logins.mint(client or "machine", resource)
    # The numbers are texts, as they are on the wire.
    expiry = expiry or {"expires_in": str(logins.token_ttl), "expires_on": str(int(time.time()) + logins.token_ttl)}
    return {"access_token": token, "resource": resource, "token_type": "Bearer", "client_id": client, **expiry}


def _imds(logins: Logins, request: Request) -> Answer:
    assert (request.method, request.path) == ("GET", "/metadata/identity/oauth2/token")
    assert request.query["api-version"] == "2018-02-01"
    assert request.query.keys() <= {"api-version", "resource", "client_id"}
    client = request.query.get("client_id", "")
    if client not in logins.assigned:
        return Answer.json(
            400, {"error": "invalid_request", "error_description": f"Identity not found {secret('imds')}"}
        )
    return Answer.json(200, _granted(logins, request.query["resource"], client))


def _app_service(logins: Logins, request: Request) -> Answer:
    assert request.headers["x-identity-header"] == secret("identity-header")
    assert request.query["api-version"] == "2019-08-01"
    assert request.query.keys() <= {"api-version", "resource", "client_id"}
    client = request.query.get("client_id", "")
    if client not in logins.assigned:
        return Answer.json(400, {"statusCode": 400, "message": "Unable to load the proper Managed Identity."})
    return Answer.json(
        200, _granted(logins, request.query["resource"], client, expires_on=str(int(time.time()) + 3600))
    )


def _arc(logins: Logins, request: Request) -> Answer:
    assert request.headers["metadata"] == "true"
    assert request.query["api-version"] in ("2019-08-15", "2020-06-01")
    key = logins.arc_key
    if "authorization" not in request.headers:
        return Answer.json(401, {}, {"WWW-Authenticate": f"Basic realm={key}"})
    assert request.headers["authorization"] == f"Basic {key.read_text(encoding='utf-8')}"
    return Answer.json(200, _granted(logins, request.query["resource"], request.query.get("client_id", "")))


def _azure_ml(logins: Logins, request: Request) -> Answer:
    assert request.headers["secret"] == secret("msi-secret")
    assert request.query["api-version"] == "2017-09-01"
    assert request.query.keys() <= {"api-version", "resource", "clientid"}
    client = request.query.get("clientid", "")
    return Answer.json(200, _granted(logins, request.query["resource"], client, expires_on=int(time.time()) + 3600))


def _cloud_shell(logins: Logins, request: Request) -> Answer:
    assert request.method == "POST"
    assert request.headers["metadata"] == "true"
    assert _form(request).keys() == {"resource"}
    return Answer.json(200, _granted(logins, _form(request)["resource"], ""))


def _service_fabric(logins: Logins, request: Request) -> Answer:
    logins.count("fabric")
    assert "cookie" not in request.headers, "a cookie"
    assert request.headers["secret"] == secret("identity-header")
    assert request.query["api-version"] == "2019-07-01-preview"
    assert request.query.keys() == {"api-version", "resource"}
    return Answer.json(200, _granted(logins, request.query["resource"], "", expires_on=str(int(time.time()) + 3600)))
