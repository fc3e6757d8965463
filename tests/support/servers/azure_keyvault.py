"""Azure on one loopback port: vaults, token authorities and the identity endpoints of machines.

It is an HTTP proxy that is itself every host it connects to. ``HTTPS_PROXY`` points at it and ``SSL_CERT_FILE`` at its
authority, so the unmodified SDKs speak TLS with hosts that have their real names, and nothing is switched off. Over
plain HTTP the same port is IMDS, App Service, Azure Arc, Azure ML and Cloud Shell, for the variables that name those;
Service Fabric, which is TLS with a certificate that nobody signed, has a port of its own.

The protocols are those of azure-rest-api-specs (keyvault data plane, 2026-04-01), of the recordings in
azure-sdk-for-python, and of learn.microsoft.com on managed identities. Whatever a client sends that does not belong
there is a complaint, which `azure` raises at the end.
"""

import base64
import hashlib
import json
import re
import socket
import ssl
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import jwt
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.support.canary import secret
from tests.support.servers.keep_alive import End, close
from tests.support.waiting import PATIENCE

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
USER_ASSIGNED = "99999999-8888-7777-6666-555555555555"
AUTHORITIES = {
    "login.microsoftonline.com": "vault.azure.net",
    "login.chinacloudapi.cn": "vault.azure.cn",
    "login.microsoftonline.us": "vault.usgovcloudapi.net",
}
_API = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}|7\.[0-9]")
_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True)
class Version:
    """One version of a secret."""

    value: str | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    updated: int = field(default_factory=lambda: int(time.time()))
    attributes: Mapping[str, Any] = field(default_factory=lambda: {"enabled": True})
    content_type: str | None = None


@dataclass(frozen=True)
class Token:
    """What a bearer token stands for."""

    audience: str
    identity: str
    expires: float
    tenant: str = TENANT


@dataclass(frozen=True)
class Answer:
    """An answer in JSON, or of any bytes."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None


Fault = Callable[[], Answer | None]
"""Takes the place of an answer; one that returns None has the connection closed instead."""


def throttled(**headers: str) -> Fault:
    """Be overloaded: ``throttled(Retry_After="1")``."""
    text = "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached"
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: replace(refused(429, "Throttled", text), headers=sent)


def failing(status: int, **headers: str) -> Fault:
    """Answer with an error that has nothing to do with the question."""
    return lambda: replace(refused(status, "Error", "The service is busy."), headers=headers)


def saying(raw: bytes, status: int = 200, **headers: str) -> Fault:
    """Answer with these bytes."""
    return lambda: Answer(status, headers=headers, raw=raw)


def dropped() -> None:
    """End the connection without an answer, as `Azure.ends` says."""


def refused(status: int, code: str, message: str, inner: str = "") -> Answer:
    """Make an error as Key Vault words it."""
    error: dict[str, Any] = {"code": code, "message": message}
    if inner:
        error["innererror"] = {"code": inner}
    return Answer(status, {"error": error})


class Azure:
    """All of Azure that a store can see, and what a test can do to it."""

    def __init__(self, folder: Path) -> None:
        self.complaints: list[str] = []
        self.requests: Counter[str] = Counter()
        """What was asked, by kind: challenge, list, get, login, discovery, imds, probe, ..."""
        self.ends: End = close
        """How a connection ends whose request was `dropped`."""
        self.bearers: list[str] = []
        """The identities whose tokens were accepted, in order."""
        self.hosts: list[str] = []
        """The hosts that were connected to."""
        self.faults: deque[Fault] = deque()
        """For the next requests to the vault that have a token."""
        self.login_faults: deque[Fault] = deque()
        self.latency = 0.0
        self.page = 25
        self.empty_pages = False
        """Whether each page with names is followed by one without."""
        self.token_ttl = 3600
        self.claims_challenge = True
        """Whether a refused token is refused in the way that makes clients log in again (CAE)."""
        self.resource = ""
        """The audience in the vault's challenge, if not the right one."""
        self.tenant = TENANT
        """The tenant that the vault is of."""
        self.denies: dict[str, str] = {}
        """Operation, get or list, to the inner code with which it is refused."""
        self.client_secrets = {secret("client-secret")}
        self.expired_secrets: set[str] = set()
        self.certificates: list[x509.Certificate] = []
        self.federated: set[str] = set()
        self.assigned = {"", USER_ASSIGNED}
        """The client ids that identity endpoints have a token for; the empty one is that of the machine."""
        self.arc_key = folder / "no.key"
        """The file that Azure Arc has clients read."""
        self.released = threading.Event()
        """Ends what hangs."""
        self._secrets: dict[str, list[Version]] = {}
        self._tokens: dict[str, Token] = {}
        self._lock = threading.Lock()
        self._folder = folder
        self.ca = folder / "ca.pem"
        """The authority that all hosts have their certificates from."""
        self.rotate_authority()
        self._servers = [_Server(self, _Handler)]

    # --- what a test does ---

    def drop_connections(self) -> None:
        """Close all connections."""
        for server in self._servers:
            server.drop()

    def rotate_authority(self) -> None:
        """Let new connections show certificates of a new authority, which replaces the old one in `ca`."""
        with self._lock:
            self._authority = trustme.CA()
            self._contexts: dict[str, ssl.SSLContext] = {}
            new = self.ca.with_suffix(".new")
            self._authority.cert_pem.write_to_path(str(new))
            new.replace(self.ca)

    @property
    def proxy(self) -> str:
        """The value for HTTPS_PROXY; the start of the URLs of identity endpoints, too."""
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    def put(self, name: str, value: str | None, **attributes: Any) -> Version:
        """Write a new version of a secret."""
        version = Version(value, attributes={"enabled": True} | attributes)
        with self._lock:
            spelled = next((known for known in self._secrets if known.lower() == name.lower()), name)
            self._secrets.setdefault(spelled, []).append(version)
        return version

    def put_certificate(self, name: str, value: str) -> None:
        """Write the secret behind a certificate."""
        self.put(name, value)
        self._secrets[name][-1] = replace(self._secrets[name][-1], content_type="application/x-pkcs12")

    def change(self, name: str, **attributes: Any) -> None:
        """Change the attributes of the newest version."""
        versions = self._secrets[name]
        versions[-1] = replace(versions[-1], attributes={**versions[-1].attributes, **attributes})

    def delete(self, name: str) -> None:
        """Delete a secret."""
        del self._secrets[name]

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

    def hang(self) -> None:
        """Give no answer until `released`."""
        self.released.wait(PATIENCE)

    def service_fabric(self) -> tuple[str, str]:
        """Start the identity endpoint of Service Fabric. Returns its URL and the thumbprint of its certificate."""
        leaf = trustme.CA().issue_cert("127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        server = _Server(self, _FabricHandler, context)
        self._servers.append(server)
        server.start()
        der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
        thumbprint = hashlib.sha1(der, usedforsecurity=False).hexdigest().upper()
        return f"https://127.0.0.1:{server.server_address[1]}/metadata/identity/oauth2/token", thumbprint

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

    # --- inside ---

    def start(self) -> None:
        self._servers[0].start()

    def stop(self) -> None:
        self.released.set()
        for server in self._servers:
            server.stop()

    def tls(self, host: str) -> ssl.SSLContext:
        with self._lock:
            if host not in self._contexts:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                self._authority.issue_cert(host).configure_cert(context)
                self._contexts[host] = context
            return self._contexts[host]

    def count(self, kind: str) -> None:
        with self._lock:
            self.requests[kind] += 1

    def bearer(self, token: str) -> Token | None:
        with self._lock:
            return self._tokens.get(token)

    def listed(self) -> list[tuple[str, Version]]:
        with self._lock:
            return [(name, versions[-1]) for name, versions in sorted(self._secrets.items())]

    def versions(self, name: str) -> list[Version]:
        with self._lock:
            return next((list(v) for known, v in self._secrets.items() if known.lower() == name.lower()), [])

    def answer(self, request: "Request") -> Answer | None:
        """Answer a request to any host, or None to close the connection."""
        if request.host in AUTHORITIES:
            return _authority(self, request)
        suffix = next((suffix for suffix in AUTHORITIES.values() if request.host.endswith(f".{suffix}")), None)
        if suffix:
            return _vault(self, request, f"https://{suffix}")
        return _identity_endpoint(self, request)


@dataclass(frozen=True)
class Request:
    """One request."""

    method: str
    host: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        assert self.headers.get("content-type") == "application/x-www-form-urlencoded", "not a form"
        return _single(parse_qs(self.body.decode(), strict_parsing=True, keep_blank_values=True))


def _single(query: Mapping[str, list[str]]) -> dict[str, str]:
    assert all(len(values) == 1 for values in query.values()), "a parameter is given twice"
    return {name: values[0] for name, values in query.items()}


@contextmanager
def azure(folder: Path) -> Iterator[Azure]:
    """Run Azure. Raises, at the end, what it has to complain of."""
    running = Azure(folder)
    running.start()
    try:
        yield running
    finally:
        running.stop()
    assert running.complaints == [], running.complaints


# --- the vault ---


def _vault(azure: Azure, request: Request, audience: str) -> Answer | None:
    assert request.method == "GET", "the store only reads"
    assert request.body == b"", "a GET has no body"
    assert "azsdk-python-keyvault-secrets" in request.headers["user-agent"]
    assert _API.fullmatch(request.query.get("api-version", "")), "no api-version"
    refusal = _token_refusal(azure, request, audience)
    if refusal is not None:
        return refusal
    if azure.latency:
        time.sleep(azure.latency)
    if azure.faults:
        return azure.faults.popleft()()
    parts = [unquote(part) for part in request.path.split("/")[1:]]
    match parts:
        case ["secrets"]:
            azure.count("list")
            return _denied(azure, "list") or _listing(azure, request)
        case ["secrets", name, version]:
            azure.count("get")
            assert _NAME.fullmatch(name), f"no server takes this name: {name!r}"
            assert request.query.keys() == {"api-version"}
            return _denied(azure, "get") or _bundle(azure, request.host, name, version)
    raise AssertionError(f"no such path: {request.path}")


def _token_refusal(azure: Azure, request: Request, audience: str) -> Answer | None:
    authority = next(host for host, suffix in AUTHORITIES.items() if audience == f"https://{suffix}")
    challenge = f'Bearer authorization="https://{authority}/{azure.tenant}", resource="{azure.resource or audience}"'

    def unauthorized(text: str, more: str = "") -> Answer:
        headers = {"WWW-Authenticate": challenge + more}
        return replace(refused(401, "Unauthorized", text), headers=headers)

    if "authorization" not in request.headers:
        azure.count("challenge")
        return unauthorized("AKV10000: Request is missing a Bearer or PoP token.")
    scheme, _, text = request.headers["authorization"].partition(" ")
    assert scheme == "Bearer", "not a bearer token"
    token = azure.bearer(text)
    if token is None or token.expires < time.time():
        azure.count("refused")
        claims = base64.b64encode(b'{"access_token":{"nbf":{"essential":true,"value":"1"}}}').decode()
        cae = f', error="insufficient_claims", claims="{claims}"' if azure.claims_challenge else ""
        return unauthorized("AKV10046: Unable to resolve the key used for signature validation.", cae)
    if token.audience != audience:
        azure.count("refused")
        return unauthorized(f"AKV10022: Invalid audience. Expected {audience}, found: {token.audience}.")
    if token.tenant != azure.tenant:
        azure.count("refused")
        return unauthorized(f"AKV10032: Invalid issuer. Expected one of https://sts.windows.net/{azure.tenant}/.")
    azure.bearers.append(token.identity)
    return None


def _denied(azure: Azure, operation: str) -> Answer | None:
    if operation not in azure.denies:
        return None
    text = f"Caller is not authorized to perform action on resource.\r\nAction: '{operation}', {secret('caller')}"
    return refused(403, "Forbidden", text, azure.denies[operation])


def _attributes(version: Version) -> dict[str, Any]:
    times = {"created": version.updated, "updated": version.updated}
    return {**times, "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90, **version.attributes}


def _listing(azure: Azure, request: Request) -> Answer:
    assert request.query.keys() <= {"api-version", "maxresults", "$skiptoken"}
    size = int(request.query.get("maxresults", azure.page))
    assert 1 <= size <= 25, "Invalid maxresults"
    skip = base64.urlsafe_b64decode(request.query.get("$skiptoken", "MCww")).decode()
    start, turn = map(int, skip.split(","))
    found = azure.listed()
    blank = azure.empty_pages and turn % 2 == 1
    end = start if blank else start + size
    items = []
    for name, version in [] if blank else found[start:end]:
        item: dict[str, Any] = {"id": f"https://{request.host}/secrets/{name}", "attributes": _attributes(version)}
        if version.attributes.get("absent"):
            del item["attributes"]
        if version.content_type:
            item |= {"contentType": version.content_type, "managed": True}
        items.append(item)
    more = end < len(found) or (azure.empty_pages and not blank)
    token = base64.urlsafe_b64encode(f"{end},{turn + 1}".encode()).decode()
    limit = f"&maxresults={size}" if "maxresults" in request.query else ""
    # As the service writes it: with a port, which the SDK must see to be the same place.
    link = f"https://{request.host}:443/secrets?api-version={request.query['api-version']}&$skiptoken={token}{limit}"
    return Answer(200, {"value": items, "nextLink": link if more else None})


def _bundle(azure: Azure, host: str, name: str, version: str) -> Answer:
    found = [known for known in azure.versions(name) if version in ("", known.id)]
    if not found:
        text = f"A secret with (name/id) {name} was not found in this key vault. If you recently ..."
        return refused(404, "SecretNotFound", text)
    newest = found[-1]
    if not newest.attributes["enabled"]:
        return refused(403, "Forbidden", "Operation get is not allowed on a disabled secret.", "SecretDisabled")
    bundle: dict[str, Any] = {"id": f"https://{host}/secrets/{name}/{newest.id}", "attributes": _attributes(newest)}
    if newest.value is not None:
        bundle["value"] = newest.value
    if newest.content_type:
        bundle["contentType"] = newest.content_type
    return Answer(200, bundle)


# --- the token authority ---


def _authority(azure: Azure, request: Request) -> Answer | None:
    base = f"https://{request.host}"
    tenant, _, path = request.path[1:].partition("/")
    if path == "v2.0/.well-known/openid-configuration":
        azure.count("discovery")
        if tenant != TENANT:
            return _aadsts(400, "invalid_tenant", 90002, "Tenant not found.")
        endpoints = {"authorization_endpoint": "authorize", "token_endpoint": "token"}
        urls = {name: f"{base}/{tenant}/oauth2/v2.0/{last}" for name, last in endpoints.items()}
        return Answer(200, {**urls, "issuer": f"{base}/{tenant}/v2.0"})
    # Among what has no place here: to ask whether the authority is one (instance discovery).
    assert (request.method, path) == ("POST", "oauth2/v2.0/token"), f"no such path: {request.path}"
    azure.count("login")
    return azure.login_faults.popleft()() if azure.login_faults else _token(azure, request, tenant)


def _token(azure: Azure, request: Request, tenant: str) -> Answer:
    form = request.form
    assert form["grant_type"] == "client_credentials"
    audience = f"https://{AUTHORITIES[request.host]}"
    refusal = _client_refusal(azure, form, f"https://{request.host}{request.path}")
    if refusal is not None:
        return refusal
    if tenant != TENANT:
        return _aadsts(400, "invalid_request", 90002, "Tenant not found.")
    if form["scope"] != f"{audience}/.default":
        return _aadsts(400, "invalid_resource", 500011, "The resource principal was not found in the tenant.")
    token = azure.mint(form["client_id"], audience)
    lifetime = {"expires_in": azure.token_ttl, "ext_expires_in": azure.token_ttl}
    return Answer(200, {"token_type": "Bearer", "access_token": token, **lifetime})


def _client_refusal(azure: Azure, form: Mapping[str, str], endpoint: str) -> Answer | None:
    if form["client_id"] != CLIENT:
        return _aadsts(400, "unauthorized_client", 700016, "Application was not found in the directory.")
    if "client_secret" in form:
        if form["client_secret"] in azure.expired_secrets:
            return _aadsts(401, "invalid_client", 7000222, "The provided client secret keys are expired.")
        known = form["client_secret"] in azure.client_secrets
        return None if known else _aadsts(401, "invalid_client", 7000215, "Invalid client secret provided.")
    assert form["client_assertion_type"] == _ASSERTION
    assertion = form["client_assertion"]
    if assertion in azure.federated:
        return None
    if assertion.count(".") != 2:
        return _aadsts(400, "invalid_client", 70021, "No matching federated identity record found.")
    return _certificate_refusal(azure, assertion, endpoint)


def _certificate_refusal(azure: Azure, assertion: str, endpoint: str) -> Answer | None:
    header = jwt.get_unverified_header(assertion)
    assert header["alg"] in ("PS256", "RS256")
    for certificate in azure.certificates:
        marks = {"x5t": hashes.SHA1(), "x5t#S256": hashes.SHA256()}
        if any(
            header.get(mark, "").rstrip("=") == _url64(certificate.fingerprint(made)) for mark, made in marks.items()
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
    return Answer(status, {"error": error, "error_description": described, "error_codes": [code]})


# --- the identity endpoints of machines ---


def _identity_endpoint(azure: Azure, request: Request) -> Answer | None:
    kind = request.path.split("/")[1]
    if kind == "metadata" and request.headers.get("metadata") != "true":
        azure.count("probe")
        return Answer(400, {"error": "invalid_request", "error_description": "Required metadata header not specified"})
    azure.count({"metadata": "imds"}.get(kind, kind))
    if azure.login_faults:
        return azure.login_faults.popleft()()
    answers = {"metadata": _imds, "appservice": _app_service, "arc": _arc, "ml": _azure_ml, "shell": _cloud_shell}
    assert kind in answers, f"no such path: {request.path}"
    return answers[kind](azure, request)


def _granted(azure: Azure, resource: str, client: str, **expiry: Any) -> dict[str, Any]:
    assert resource == "https://vault.azure.net", f"wrong resource: {resource}"
    token = azure.mint(client or "machine", resource)
    # The numbers are texts, as they are on the wire.
    expiry = expiry or {"expires_in": str(azure.token_ttl), "expires_on": str(int(time.time()) + azure.token_ttl)}
    return {"access_token": token, "resource": resource, "token_type": "Bearer", "client_id": client, **expiry}


def _imds(azure: Azure, request: Request) -> Answer:
    assert (request.method, request.path) == ("GET", "/metadata/identity/oauth2/token")
    assert request.query["api-version"] == "2018-02-01"
    assert request.query.keys() <= {"api-version", "resource", "client_id"}
    client = request.query.get("client_id", "")
    if client not in azure.assigned:
        return Answer(400, {"error": "invalid_request", "error_description": f"Identity not found {secret('imds')}"})
    return Answer(200, _granted(azure, request.query["resource"], client))


def _app_service(azure: Azure, request: Request) -> Answer:
    assert request.headers["x-identity-header"] == secret("identity-header")
    assert request.query["api-version"] == "2019-08-01"
    assert request.query.keys() <= {"api-version", "resource", "client_id"}
    client = request.query.get("client_id", "")
    if client not in azure.assigned:
        return Answer(400, {"statusCode": 400, "message": "Unable to load the proper Managed Identity."})
    return Answer(200, _granted(azure, request.query["resource"], client, expires_on=str(int(time.time()) + 3600)))


def _arc(azure: Azure, request: Request) -> Answer:
    assert request.headers["metadata"] == "true"
    assert request.query["api-version"] in ("2019-08-15", "2020-06-01")
    key = azure.arc_key
    if "authorization" not in request.headers:
        return Answer(401, {}, {"WWW-Authenticate": f"Basic realm={key}"})
    assert request.headers["authorization"] == f"Basic {key.read_text(encoding='utf-8')}"
    return Answer(200, _granted(azure, request.query["resource"], request.query.get("client_id", "")))


def _azure_ml(azure: Azure, request: Request) -> Answer:
    assert request.headers["secret"] == secret("msi-secret")
    assert request.query["api-version"] == "2017-09-01"
    assert request.query.keys() <= {"api-version", "resource", "clientid"}
    client = request.query.get("clientid", "")
    return Answer(200, _granted(azure, request.query["resource"], client, expires_on=int(time.time()) + 3600))


def _cloud_shell(azure: Azure, request: Request) -> Answer:
    assert request.method == "POST"
    assert request.headers["metadata"] == "true"
    assert request.form.keys() == {"resource"}
    return Answer(200, _granted(azure, request.form["resource"], ""))


def _service_fabric(azure: Azure, request: Request) -> Answer:
    azure.count("fabric")
    assert request.headers["secret"] == secret("identity-header")
    assert request.query["api-version"] == "2019-07-01-preview"
    assert request.query.keys() == {"api-version", "resource"}
    return Answer(200, _granted(azure, request.query["resource"], "", expires_on=str(int(time.time()) + 3600)))


# --- HTTP ---


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64

    def __init__(self, azure: Azure, handler: type["_Handler"], tls: ssl.SSLContext | None = None) -> None:
        self.azure = azure
        self.connections: set[socket.socket] = set()
        self._tls = tls
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        super().__init__(("127.0.0.1", 0), handler)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.drop()
        self.server_close()  # joins the threads of the connections

    def drop(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self.connections.add(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self.azure.complaints.append(f"{type(error).__name__}: {error}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one segment
    server: _Server
    host = ""

    def log_message(self, *_: Any) -> None:
        pass

    def do_CONNECT(self) -> None:
        host, _, port = self.path.partition(":")
        azure = self.server.azure
        azure.hosts.append(host)
        if port != "443":
            azure.complaints.append(f"connects to port {port}")
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.wfile.flush()
        self.host = host
        self.server.connections.discard(self.connection)
        self.connection = azure.tls(host).wrap_socket(self.connection, server_side=True)
        self.server.connections.add(self.connection)
        self.rfile = self.connection.makefile("rb", -1)
        self.wfile = self.connection.makefile("wb", self.wbufsize)
        self.close_connection = False

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()
        self.connection.close()

    def _do(self) -> None:
        azure = self.server.azure
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(
            self.command, self.host, url.path, _single(parse_qs(url.query)), headers,
            self.rfile.read(int(headers.get("content-length", 0))),
        )  # fmt: skip
        try:
            assert "cookie" not in headers, "a cookie"
            assert not self.host or headers["accept-encoding"] == "identity", "takes compressed answers"
            assert not self.host or headers["host"] in (self.host, f"{self.host}:443"), "wrong host"
            answer = self.respond(azure, request)
        except Exception as error:  # noqa: BLE001 - the test is to see it, not this thread
            azure.complaints.append(f"{request.method} {request.host}{request.path}: {type(error).__name__}: {error}")
            answer = refused(500, "Complaint", "The test server does not understand.")
        if answer is None:
            self.close_connection = True
            if azure.ends(self.connection):
                self.rfile.read()  # until the client has had enough
            return
        self._send(answer)

    do_GET = do_POST = do_PUT = do_DELETE = _do  # noqa: N815 - names that http.server looks for

    def respond(self, azure: Azure, request: Request) -> Answer | None:
        return azure.answer(request)

    def _send(self, answer: Answer) -> None:
        body = json.dumps(answer.body).encode() if answer.raw is None else answer.raw
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json; charset=utf-8", "Content-Length": str(len(body))}
        for name, value in {**headers, "x-ms-request-id": str(uuid.uuid4()), **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Set-Cookie", f"esctx={secret('cookie')}; path=/")
        self.end_headers()
        self.wfile.write(body)


class _FabricHandler(_Handler):
    def respond(self, azure: Azure, request: Request) -> Answer | None:
        return _service_fabric(azure, request)
