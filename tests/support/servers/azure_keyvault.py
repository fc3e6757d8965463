"""Azure on one loopback port: vaults, and the logins of `azure_logins`.

It is a proxy that is itself every host it connects to (`proxied`), so the unmodified SDKs speak TLS with hosts that
have their real names. Over plain HTTP the same port is IMDS, App Service, Azure Arc, Azure ML and Cloud Shell, for the
variables that name those; Service Fabric, which is TLS with a certificate that nobody signed, has a port of its own.

The protocol of vaults is that of azure-rest-api-specs (keyvault data plane, 2026-04-01) and of the recordings in
azure-sdk-for-python. Whatever a client sends that does not belong there is a complaint, raised at the end.
"""

import base64
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.support.canary import secret
from tests.support.servers.azure_logins import AUTHORITIES, TENANT, Logins, authority, identity_endpoint
from tests.support.servers.http_server import Answer, Fault, Request

_API = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}|7\.[0-9]")
_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")


@dataclass(frozen=True)
class Version:
    """One version of a secret."""

    value: str | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    updated: int = field(default_factory=lambda: int(time.time()))
    attributes: Mapping[str, Any] = field(default_factory=lambda: {"enabled": True})
    content_type: str | None = None


def throttled(**headers: str) -> Fault:
    """Be overloaded: ``throttled(Retry_After="1")``."""
    text = "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached"
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: replace(refused(429, "Throttled", text), headers=sent)


def failing(status: int, **headers: str) -> Fault:
    """Answer with an error that has nothing to do with the question."""
    return lambda: replace(refused(status, "Error", "The service is busy."), headers=headers)


def refused(status: int, code: str, message: str, inner: str = "") -> Answer:
    """Make an error as Key Vault words it."""
    error: dict[str, Any] = {"code": code, "message": message}
    if inner:
        error["innererror"] = {"code": inner}
    return Answer.json(status, {"error": error})


class Azure(Logins):
    """All of Azure that a store can see, and what a test can do to it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bearers: list[str] = []
        """The identities whose tokens were accepted, in order."""
        self.latency = 0.0
        self.page = 25
        self.empty_pages = False
        """Whether each page with names is followed by one without."""
        self.claims_challenge = True
        """Whether a refused token is refused in the way that makes clients log in again (CAE)."""
        self.resource = ""
        """The audience in the vault's challenge, if not the right one."""
        self.tenant = TENANT
        """The tenant that the vault is of."""
        self.denies: dict[str, str] = {}
        """Operation, get or list, to the inner code with which it is refused."""
        self._secrets: dict[str, list[Version]] = {}

    # --- what a test does ---

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

    # --- inside ---

    def listed(self) -> list[tuple[str, Version]]:
        with self._lock:
            return [(name, versions[-1]) for name, versions in sorted(self._secrets.items())]

    def versions(self, name: str) -> list[Version]:
        with self._lock:
            return next((list(v) for known, v in self._secrets.items() if known.lower() == name.lower()), [])

    def usual_headers(self) -> dict[str, str]:
        """Mark each answer, and hand out a cookie, which nobody is to return."""
        return {
            "Content-Type": "application/json; charset=utf-8",
            "x-ms-request-id": str(uuid.uuid4()),
            "Set-Cookie": f"esctx={secret('cookie')}; path=/",
        }

    def answer(self, request: Request) -> Answer | None:
        """Answer a request to any host, and count it by kind: challenge, list, get, login, discovery, imds, ..."""
        assert "cookie" not in request.headers, "a cookie"
        if request.host:
            assert request.headers["accept-encoding"] == "identity", "takes compressed answers"
            assert request.headers["host"] in (request.host, f"{request.host}:443"), "wrong host"
        if request.host in AUTHORITIES:
            return authority(self, request)
        suffix = next((suffix for suffix in AUTHORITIES.values() if request.host.endswith(f".{suffix}")), None)
        if suffix:
            return _vault(self, request, f"https://{suffix}")
        return identity_endpoint(self, request)


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
    fault = azure.next_fault()
    if fault is not None:
        return fault()
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
    return Answer.json(200, {"value": items, "nextLink": link if more else None})


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
    return Answer.json(200, bundle)
