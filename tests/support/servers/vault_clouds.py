"""A Vault with logins of clouds, which OpenBao does not have, and what machines of those clouds know of themselves.

It checks what a login shows, as Vault does: the signature of a request to STS, the JWT of a service account, the token
of a managed identity. Sources: the API documentation of Vault's auth methods aws, gcp and azure, docs.aws.amazon.com on
Signature Version 4, cloud.google.com on the metadata server, learn.microsoft.com on instance metadata.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.canary import secret
from tests.support.servers.http_server import Answer, HttpServer, Request

VALUES = {"password": secret("of a cloud")}
ROLE = "orders"
ACCESS_KEY, SECRET_KEY = "AKIAEXAMPLE", secret("secret-key")
EMAIL = "orders@shop-prod.iam.gserviceaccount.com"
CLIENT = "99999999-8888-7777-6666-555555555555"
RESOURCE = "https://management.azure.com/"
MACHINE = {"subscriptionId": "sub-1", "resourceGroupName": "shop", "name": "vm-7", "vmScaleSetName": ""}
_STS = {"POST": "Action=GetCallerIdentity&Version=2011-06-15"}


class CloudVault(HttpServer):
    """The server."""

    def __init__(self) -> None:
        super().__init__()
        self.region = "us-east-1"
        self.server_id = ""
        self.session_token = ""
        self.keys = {ACCESS_KEY: SECRET_KEY}
        self.machine: Mapping[str, str] | None = MACHINE
        """What the metadata of the virtual machine say; None if there are none."""
        self.google = rsa.generate_private_key(65537, 2048)
        """Signs for Google, and is the key of the service account."""
        self.logins: list[dict[str, Any]] = []
        """The bodies of the logins, without what they prove themselves with."""
        self._tokens: set[str] = set()
        self._identities: set[str] = set()

    def revoke(self) -> None:
        """Let no token count that was given so far."""
        self._tokens.clear()

    def answer(self, request: Request) -> Answer | None:
        """Answer as Vault or as the metadata of a machine."""
        answers: dict[str, Callable[[Request], Answer]] = {
            "/v1/auth/aws/login": self._log_in(self._aws),
            "/v1/auth/gcp/login": self._log_in(self._gcp),
            "/v1/auth/azure/login": self._log_in(self._azure),
            "/v1/auth/token/revoke-self": lambda _: Answer(204, b""),
            "/v1/auth/token/lookup-self": lambda request: self._if_allowed(request, {}),
            "/v1/sys/internal/ui/mounts/secret": self._engine,
            "/v1/secret/data/dapr/db": self._read,
            "/computeMetadata/v1/instance/service-accounts/default/": lambda _: Answer.json(
                200, {"email": EMAIL, "scopes": [], "aliases": ["default"]}
            ),
            "/computeMetadata/v1/instance/service-accounts/default/identity": self._google_identity,
            "/metadata/identity/oauth2/token": self._azure_identity,
            "/metadata/instance/compute": self._azure_machine,
        }
        assert request.path in answers, f"no such path: {request.path}"
        self.count(request.path)
        if self.login_faults and not request.path.startswith("/v1/"):
            return self.login_faults.popleft()()
        return answers[request.path](request)

    def usual_headers(self) -> dict[str, str]:
        """Be Google's metadata server, too."""
        return {**super().usual_headers(), "Metadata-Flavor": "Google"}

    # --- Vault ---

    def _log_in(self, prove: Callable[[dict[str, Any]], bool]) -> Callable[[Request], Answer]:
        def answer(request: Request) -> Answer:
            assert request.method == "POST"
            body = json.loads(request.body)
            if not prove(body):
                return Answer.json(400, {"errors": [f"login refused: {secret('reason')}"]})
            self.logins.append(body)
            token = secret(f"vault-token-{len(self.logins)}")
            self._tokens.add(token)
            return Answer.json(200, {"auth": {"client_token": token, "lease_duration": 3600, "renewable": True}})

        return answer

    def _engine(self, request: Request) -> Answer:
        return self._if_allowed(request, {"path": "secret/", "type": "kv", "options": {"version": "2"}})

    def _read(self, request: Request) -> Answer:
        return self._if_allowed(request, {"data": VALUES, "metadata": {"version": 1}})

    def _if_allowed(self, request: Request, data: object) -> Answer:
        if request.headers.get("x-vault-token") not in self._tokens:
            return Answer.json(403, {"errors": ["permission denied"]})
        return Answer.json(200, {"data": data})

    # --- AWS ---

    def _aws(self, body: dict[str, Any]) -> bool:
        """Check a request to STS, which Vault would send, and AWS check."""
        method = body.pop("iam_http_request_method")
        url, text, packed = (
            base64.b64decode(body.pop(f"iam_request_{part}")).decode() for part in ("url", "body", "headers")
        )
        headers = {name.lower(): value for name, (value,) in json.loads(packed).items()}
        assert (method, url, text) == ("POST", "https://sts.amazonaws.com/", _STS["POST"])
        assert headers.get("x-amz-security-token", "") == self.session_token
        signed, signature = _signature(method, headers, text, self.keys, self.region)
        assert not self.server_id or "x-vault-aws-iam-server-id" in signed
        return hmac.compare_digest(signature, headers["authorization"].rpartition("Signature=")[2]) and (
            headers.get("x-vault-aws-iam-server-id", "") == self.server_id
        )

    # --- GCP ---

    def _gcp(self, body: dict[str, Any]) -> bool:
        """Check the JWT of a service account, signed by its key or by Google."""
        try:
            claims = jwt.decode(body.pop("jwt"), self.google.public_key(), ["RS256"], options={"verify_aud": False})
        except jwt.PyJWTError:
            return False
        assert str(claims["aud"]).endswith(f"vault/{body['role']}")
        return bool(claims["sub"] == EMAIL and claims["exp"] <= time.time() + 900)

    def _google_identity(self, request: Request) -> Answer:
        assert request.headers["metadata-flavor"] == "Google"
        assert request.query.keys() == {"audience", "format"}
        assert request.query["format"] == "full"
        claims = {"aud": request.query["audience"], "sub": EMAIL, "exp": int(time.time()) + 600, "email": EMAIL}
        return Answer(200, jwt.encode(claims, self.google, "RS256").encode(), {"Content-Type": "text/html"})

    # --- Azure ---

    def _azure(self, body: dict[str, Any]) -> bool:
        """Check the token of an identity."""
        return body.pop("jwt") in self._identities

    def _azure_identity(self, request: Request) -> Answer:
        if "metadata" not in request.headers:  # a probe
            return Answer.json(400, {"error": "invalid_request"})
        assert request.query["resource"] == RESOURCE, request.query["resource"]
        token = secret(f"identity-{request.query.get('client_id', 'machine')}-{len(self._identities)}")
        self._identities.add(token)
        granted = {"access_token": token, "expires_in": "3600", "expires_on": str(int(time.time()) + 3600)}
        return Answer.json(200, {**granted, "resource": RESOURCE, "token_type": "Bearer"})

    def _azure_machine(self, request: Request) -> Answer:
        assert request.headers["metadata"] == "true"
        assert request.query == {"api-version": "2021-02-01", "format": "json"}
        return Answer.json(404, {}) if self.machine is None else Answer.json(200, self.machine)


def _signature(
    method: str, headers: Mapping[str, str], text: str, keys: Mapping[str, str], region: str
) -> tuple[list[str], str]:
    """Return which headers are signed, and what the signature must be."""
    scheme, credential, signed_headers, _ = headers["authorization"].split(" ")
    assert scheme == "AWS4-HMAC-SHA256"
    key_id, day, where, service, end = credential.removeprefix("Credential=").rstrip(",").split("/")
    assert (where, service, end) == (region, "sts", "aws4_request")
    moment = headers["x-amz-date"]
    assert moment.startswith(day)
    signed = signed_headers.removeprefix("SignedHeaders=").rstrip(",").split(";")
    lines = [f"{name}:{headers[name]}" for name in signed]
    canonical = "\n".join([method, "/", "", *lines, "", ";".join(signed), hashlib.sha256(text.encode()).hexdigest()])
    scope = f"{day}/{region}/sts/aws4_request"
    to_sign = "\n".join([scheme, moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{keys.get(key_id, '')}".encode()
    for part in (day, region, "sts", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return signed, hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
