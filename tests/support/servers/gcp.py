"""GCP on one loopback port: Secret Manager's REST API, the metadata server, STS and the IAM Credentials API.

It is reached by plain HTTP, or by the names of its hosts (`proxied`). It checks the tokens: JWTs of service accounts
against their public keys, and those that it has lent. Sources: the discovery document of secretmanager v1,
google.aip.dev/193 for errors, the texts of errors in public bug reports, and cloud.google.com on the metadata server
and on workload identity federation. Whatever a client sends that does not belong there is a complaint, raised at the
end.
"""

import base64
import json
import re
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.canary import secret
from tests.support.servers.http_server import Answer, Fault, Request
from tests.support.servers.proxied import ProxiedServer

PROJECT, NUMBER = "shop-prod", "123456789"
EMAIL = "reader@shop-prod.iam.gserviceaccount.com"
SUBJECT_TOKEN = secret("subject-token")
AUDIENCE = f"//iam.googleapis.com/projects/{NUMBER}/locations/global/workloadIdentityPools/pool/providers/cluster"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def failing(status: int, code: str, message: str = "", *reasons: str) -> Fault:
    """Answer with an error as Google words it."""
    return lambda: error(status, code, message, *reasons)


def error(status: int, code: str, message: str = "", *reasons: str) -> Answer:
    """Make an error. Texts of Google name resources and callers."""
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason} for reason in reasons]
    text = message or f"Permission denied for {secret('caller')} (or it may not exist)."
    return Answer.json(status, {"error": {"code": status, "message": text, "status": code, "details": details}})


@dataclass
class Version:
    """One version of a secret."""

    value: bytes
    state: str = "ENABLED"


class Gcp(ProxiedServer):
    """All of GCP that a store can see, and what a test can do to it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.subject_tokens: Container[str] = {SUBJECT_TOKEN}
        """The tokens of others that are exchanged for one of ours."""
        self.callers: list[str] = []
        """The identities whose tokens were accepted, in order."""
        self.pages: list[int] = []
        """The page sizes that were asked for."""
        self.page = 25000
        """The most names in a page."""
        self.denied: set[str] = set()
        """Secrets that nobody may read."""
        self.may_list = True
        self.location = ""
        """Where regional secrets are, if the server is one for those."""
        self.lifetime = 3600
        self.key = rsa.generate_private_key(65537, 2048)
        self.known_keys = {"kid1": self.key.public_key()}
        self._tokens: dict[str, tuple[str, float]] = {}
        self._secrets: dict[str, list[Version]] = {}

    # --- what a test does ---

    @property
    def pem(self) -> str:
        """The key of the service account."""
        form = serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()

    def login(self, **more: str) -> dict[str, str]:
        """Return the properties of a component with a service account, as Dapr spells them, with or without others."""
        return {
            "type": "service_account", "project_id": PROJECT, "private_key_id": "kid1", "private_key": self.pem,
            "client_email": EMAIL, "client_id": "1", "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": "https://oauth2.googleapis.com/token",
            "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
            "client_x509_cert_url": f"https://www.googleapis.com/robot/v1/metadata/x509/{EMAIL}", **more,
        }  # fmt: skip

    def key_file(self) -> str:
        """Return what the file of a service account holds."""
        names = ("type", "project_id", "private_key_id", "private_key", "client_email", "client_id", "token_uri")
        return json.dumps({name: self.login()[name] for name in names})

    def federation(self, token_file: str, *, impersonates: bool = False) -> str:
        """Return what the file of a workload identity federation holds."""
        config = {
            "type": "external_account", "audience": AUDIENCE, "token_url": f"{self.address}/v1/token",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "credential_source": {"file": token_file},
        }  # fmt: skip
        if impersonates:
            where = f"{self.address}/v1/projects/-/serviceAccounts/{EMAIL}:generateAccessToken"
            config["service_account_impersonation_url"] = where
        return json.dumps(config)

    def put(self, name: str, value: bytes) -> None:
        """Write a new version of a secret."""
        with self._lock:
            self._secrets.setdefault(name, []).append(Version(value))

    def create(self, name: str) -> None:
        """Create a secret without a version."""
        self._secrets[name] = []

    def change(self, name: str, state: str) -> None:
        """Disable, destroy or enable the latest version."""
        self._secrets[name][-1].state = state

    def lend(self, identity: str) -> str:
        """Lend a token."""
        with self._lock:
            token = f"ya29.{secret(f'token-{len(self._tokens)}')}"
            self._tokens[token] = identity, time.time() + self.lifetime
        return token

    def revoke(self) -> None:
        """Refuse all tokens that were lent."""
        self._tokens.clear()

    # --- how ---

    def answer(self, request: Request) -> Answer | None:
        """Answer a request, and count it: access, list, metadata, sts, impersonate."""
        if "/secrets" in request.path:
            return self._api(request)
        if request.path.startswith("/computeMetadata/"):
            return self._login("metadata", request, self._metadata)
        if request.path == "/v1/token":
            return self._login("sts", request, self._exchange)
        if request.path.endswith(":generateAccessToken"):
            return self._login("impersonate", request, self._impersonate)
        self.complaints.append(f"no such path: {request.path}")
        return error(404, "NOT_FOUND")

    def usual_headers(self) -> dict[str, str]:
        """Say whose server this is."""
        return {**super().usual_headers(), "Metadata-Flavor": "Google"}

    def _api(self, request: Request) -> Answer | None:
        if (request.method, request.body) != ("GET", b""):
            self.complaints.append("the store only reads")
        found = re.fullmatch(
            r"/v1/projects/([^/]+)(?:/locations/([^/]+))?/secrets(?:/([A-Za-z0-9_-]{1,255})/versions/latest:access)?",
            request.path,
        )
        if found is None or (found[2] or "") != self.location:
            return error(400, "INVALID_ARGUMENT", "Resource name is invalid")
        self.count("access" if found[3] else "list")
        caller = self._caller(request.headers.get("authorization", ""))
        if caller is None:
            return error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        self.callers.append(caller)
        fault = self.next_fault()
        if fault is not None:
            return fault()
        if found[1] not in (PROJECT, NUMBER):
            return error(403, "PERMISSION_DENIED")
        return self._access(found[3]) if found[3] else self._listing(request)

    def _caller(self, authorization: str) -> str | None:
        token = authorization.removeprefix("Bearer ")
        lent = self._tokens.get(token)
        if lent is not None:
            return lent[0] if time.time() < lent[1] else None
        now = time.time() + self.clock
        try:
            key = self.known_keys[jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(token, key, ["RS256"], options={"verify_exp": False, "verify_iat": False})
        except (jwt.PyJWTError, KeyError):
            return None
        if claims["iss"] != claims["sub"] or claims["scope"] != _SCOPE or claims["exp"] - claims["iat"] > 3600:
            self.complaints.append(f"the token has odd claims: {sorted(claims)}")
        return str(claims["iss"]) if claims["iat"] - 300 < now < claims["exp"] else None

    def _listing(self, request: Request) -> Answer:
        if not self.may_list:
            return error(403, "PERMISSION_DENIED")
        size = int(request.query["pageSize"])
        self.pages.append(size)
        start = int(request.query.get("pageToken", "0"))
        names = sorted(self._secrets)[start : start + min(size, self.page)]
        end = start + len(names)
        where = f"projects/{NUMBER}" + (f"/locations/{self.location}" if self.location else "")
        page: dict[str, Any] = {
            "secrets": [{"name": f"{where}/secrets/{name}", "createTime": "2026-01-01T00:00:00Z"} for name in names],
            "totalSize": len(self._secrets),
        }
        if end < len(self._secrets):
            page["nextPageToken"] = str(end)
        return Answer.json(200, page if names else {})

    def _access(self, name: str) -> Answer:
        if name in self.denied:
            return error(403, "PERMISSION_DENIED", f"Permission 'secretmanager.versions.access' denied {secret()}")
        versions = self._secrets.get(name)
        full = f"projects/{NUMBER}/secrets/{name}"
        if not versions:
            return error(404, "NOT_FOUND", f"Secret [{full}] not found or has no versions.")
        newest = versions[-1]
        if newest.state != "ENABLED":
            text = f"Secret Version [{full}/versions/{len(versions)}] is in {newest.state} state."
            return error(400, "FAILED_PRECONDITION", text)
        payload = {"data": base64.b64encode(newest.value).decode(), "dataCrc32c": "1"} if newest.value else {}
        return Answer.json(200, {"name": f"{full}/versions/{len(versions)}", "payload": payload})

    def _login(self, kind: str, request: Request, give: Callable[[Request], Answer]) -> Answer | None:
        self.count(kind)
        return self.login_faults.popleft()() if self.login_faults else give(request)

    def _metadata(self, request: Request) -> Answer:
        if (request.method, request.headers.get("metadata-flavor")) != ("GET", "Google"):
            self.complaints.append("no GET with Metadata-Flavor")
        if request.path.endswith("/token"):
            return Answer.json(
                200, {"access_token": self.lend("machine"), "expires_in": self.lifetime, "token_type": "Bearer"}
            )
        return Answer.json(200, {"email": EMAIL, "scopes": [_SCOPE], "aliases": ["default"]})

    def _exchange(self, request: Request) -> Answer:
        form = request.form
        if form["subject_token"] not in self.subject_tokens or form["audience"] != AUDIENCE:
            return Answer.json(400, {"error": "invalid_grant", "error_description": secret("who")})
        kind = "urn:ietf:params:oauth:token-type:access_token"
        lent = {"access_token": self.lend("federated"), "expires_in": self.lifetime}
        return Answer.json(200, {**lent, "issued_token_type": kind, "token_type": "Bearer"})

    def _impersonate(self, request: Request) -> Answer:
        lent = self._tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if lent is None or lent[0] != "federated":
            return error(403, "PERMISSION_DENIED")
        expires = datetime.fromtimestamp(time.time() + self.lifetime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Answer.json(200, {"accessToken": self.lend(EMAIL), "expireTime": expires})
