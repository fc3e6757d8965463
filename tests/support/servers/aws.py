"""AWS on one loopback port: moto, behind a front that does what moto does not.

The front checks signatures, clocks and session tokens, counts and refuses operations, and fails as AWS and networks do.
It answers with the status codes of AWS, which are 400 for nearly everything (moto's are others). It is STS, the
metadata service of EC2 (IMDSv2) and the agent of EKS Pod Identity as well.

Sources: the service models in botocore, docs.aws.amazon.com on Signature Version 4, IMDSv2 and container credentials.
"""

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Container
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.support.canary import secret
from tests.support.servers.http_server import Answer, Fault, HttpServer, Request
from tests.support.servers.moto_server import Moto

REGION = "eu-central-1"
ROLE = "arn:aws:iam::123456789012:role/reader"
KEY = "AKIAEXAMPLE"
POD_TOKEN = secret("pod-token")
WEB_TOKEN = secret("web-token")
_SKEW = 300  # seconds
_JSON = "application/x-amz-json-1.1"
_XML, _PLAIN, _AGENT = ({"Content-Type": it} for it in ("text/xml", "text/plain", "application/json"))


def failing(code: str, message: str = "", status: int = 400) -> Fault:
    """Answer with an error of the JSON protocol."""
    return lambda: error(code, message, status)


def error(code: str, message: str = "", status: int = 400) -> Answer:
    """Make an error as AWS words it. Texts of AWS name who asked."""
    text = message or f"User: arn:aws:iam::123456789012:user/{secret('caller')} is not authorized"
    return Answer.json(status, {"__type": code, "message": text})


@dataclass(frozen=True)
class Key:
    """A secret access key, with its session token if it is a temporary one."""

    secret: str
    token: str = ""
    expires: float = float("inf")


class Aws(HttpServer):
    """All of AWS that a store can see, and what a test can do to it."""

    def __init__(self, moto: Moto) -> None:
        super().__init__()
        self.moto = moto
        self.signers: list[str] = []
        """The access keys whose signatures were accepted, in order."""
        self.regions: set[str] = set()
        self.keys = {KEY: Key(secret("secret-key"))}
        self.denies: dict[str, str] = {}
        """Operation to the code with which it is refused."""
        self.denied: dict[str, str] = {}
        """Secret or parameter to the code with which reading it is refused."""
        self.lifetime = 3600.0
        """Seconds for which a role lends its credentials."""
        self.web_identities: Container[str] = {WEB_TOKEN}
        """The tokens of others that count as those of an identity which may take the role."""
        self.has_identity = False
        """Whether this machine is one of EC2's that has a role."""

    # --- what a test does ---

    def login(self, **more: str) -> dict[str, str]:
        """Return the properties of a component with static keys, with or without other ones."""
        return {
            "region": REGION, "accessKey": KEY, "secretKey": self.keys[KEY].secret, "endpoint": self.address, **more,
        }  # fmt: skip

    def call(self, target: str, **parameters: Any) -> dict[str, Any]:
        """Call an operation of moto, past the front."""
        status, body = self.moto.forward(_unsigned(target), json.dumps(parameters).encode())
        answer: dict[str, Any] = json.loads(body)
        if status != 200:
            raise LookupError(f"{target}: {answer}")
        return answer

    def put_secret(self, name: str, value: str | bytes) -> None:
        """Write a new version of a secret."""
        data = {"SecretString": value} if isinstance(value, str) else {"SecretBinary": base64.b64encode(value).decode()}
        try:
            self.call("secretsmanager.PutSecretValue", SecretId=name, **data)
        except LookupError:
            self.call("secretsmanager.CreateSecret", Name=name, **data)

    def put_parameter(self, name: str, value: str, type: str = "SecureString") -> None:  # noqa: A002
        """Write a new version of a parameter."""
        self.call("AmazonSSM.PutParameter", Name=name, Value=value, Type=type, Overwrite=True)

    def lend(self) -> dict[str, str]:
        """Lend credentials of a role."""
        with self._lock:
            name = f"ASIA{len(self.keys):04}"
            key = Key(secret(f"{name}-key"), secret(f"{name}-token"), time.time() + self.lifetime)
            self.keys[name] = key
        expires = datetime.fromtimestamp(key.expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"AccessKeyId": name, "SecretAccessKey": key.secret, "Token": key.token, "Expiration": expires}

    # --- how ---

    def answer(self, request: Request) -> Answer | None:
        """Answer a request, and count it by its operation: GetSecretValue, AssumeRoleWithWebIdentity, imds, pod, ..."""
        assert not request.query, "nothing that AWS is asked here has a query"
        if request.method != "POST":
            return self._agent(request)
        target = request.headers.get("x-amz-target", "")
        if target:
            return self._service(target, request)
        return self._sts(request)

    def usual_headers(self) -> dict[str, str]:
        """Say that an answer is of the JSON protocol."""
        return {"Content-Type": _JSON}

    def _service(self, target: str, request: Request) -> Answer | None:
        operation = target.partition(".")[2]
        self.count(operation)
        refusal = self._signature_refusal(request)
        if refusal is not None:
            return refusal
        fault = self.next_fault()
        if fault is not None:
            return fault()
        asked = json.loads(request.body)
        return self._policy_refusal(operation, asked) or self._passed_on(target, asked)

    def _policy_refusal(self, operation: str, asked: dict[str, Any]) -> Answer | None:
        if operation in self.denies:
            return error(self.denies[operation])
        for name in (asked.get("SecretId"), asked.get("Name"), *asked.get("Names", [])):
            if name in self.denied:
                return error(self.denied[name])
        if max(len(asked.get("SecretIdList", [])) - 20, len(asked.get("Names", [])) - 10) > 0:
            return error("ValidationException", "Member must have length less than or equal to")
        return None

    def _passed_on(self, target: str, asked: dict[str, Any]) -> Answer:
        denied = [name for name in asked.get("SecretIdList", []) if name in self.denied]
        if denied:
            asked["SecretIdList"] = [name for name in asked["SecretIdList"] if name not in denied]
        status, body = self.moto.forward(_unsigned(target), json.dumps(asked).encode())
        if denied:
            whole = json.loads(body)
            errors = [{"SecretId": it, "ErrorCode": self.denied[it], "Message": secret("caller")} for it in denied]
            body = json.dumps({**whole, "Errors": whole.get("Errors", []) + errors}).encode()
        return Answer(400 if status == 404 else status, body)

    def _signature_refusal(self, request: Request) -> Answer | None:
        found = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=(\w+)/(\d{8})/([\w-]+)/(\w+)/aws4_request, "
            r"SignedHeaders=([\w;-]+), Signature=([0-9a-f]{64})",
            request.headers.get("authorization", ""),
        )
        if found is None:
            return error("MissingAuthenticationTokenException", "Request is missing Authentication Token")
        name, day, region, service, signed, signature = found.groups()
        key = self.keys.get(name)
        if key is None or request.headers.get("x-amz-security-token", "") != key.token:
            return error("UnrecognizedClientException", "The security token included in the request is invalid.")
        if time.time() > key.expires:
            return error("ExpiredTokenException", "The security token included in the request is expired")
        sent = request.headers["x-amz-date"]
        moment = datetime.strptime(sent, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if abs(time.time() + self.clock - moment) > _SKEW:
            return error("InvalidSignatureException", f"Signature expired: {sent} is now earlier than 20260101T000000Z")
        headers = "".join(f"{each}:{request.headers[each].strip()}\n" for each in signed.split(";"))
        canonical = "\n".join(
            (request.method, request.path, "", headers, signed, hashlib.sha256(request.body).hexdigest())
        )
        scope = f"{day}/{region}/{service}/aws4_request"
        text = "\n".join(("AWS4-HMAC-SHA256", sent, scope, hashlib.sha256(canonical.encode()).hexdigest()))
        chain = f"AWS4{key.secret}".encode()
        for part in (day, region, service, "aws4_request"):
            chain = hmac.digest(chain, part.encode(), "sha256")
        if hmac.digest(chain, text.encode(), "sha256").hex() != signature:
            return error("InvalidSignatureException", "The request signature we calculated does not match")
        with self._lock:
            self.signers.append(name)
            self.regions.add(region)
        return None

    def _sts(self, request: Request) -> Answer | None:
        form = request.form
        action = form["Action"]
        self.count(action)
        if self.login_faults:
            return self.login_faults.popleft()()
        if action == "AssumeRoleWithWebIdentity":
            if "authorization" in request.headers:
                self.complaints.append("the exchange of a web identity is not signed")
            if form["WebIdentityToken"] not in self.web_identities:
                return _sts_error("InvalidIdentityToken")
        elif (refusal := self._signature_refusal(request)) is not None:
            return _sts_error(json.loads(refusal.body)["__type"], 403)
        if form["RoleArn"] != ROLE:
            return _sts_error("AccessDenied", 403)
        lent = self.lend()
        members = {**lent, "SessionToken": lent["Token"]}
        text = "".join(f"<{name}>{value}</{name}>" for name, value in members.items() if name != "Token")
        body = (
            f"<{action}Response><{action}Result><Credentials>{text}</Credentials></{action}Result></{action}Response>"
        )
        return Answer(200, body.encode(), _XML)

    def _agent(self, request: Request) -> Answer | None:
        if request.path.startswith("/v1/credentials"):
            self.count("pod")
            answer = self._pod_identity
        else:
            self.count("imds")
            answer = self._metadata
        if self.login_faults and request.method == "GET":
            return self.login_faults.popleft()()
        return answer(request)

    def _pod_identity(self, request: Request) -> Answer:
        if request.headers.get("authorization") != POD_TOKEN:
            return Answer(401, b'{"message": "the token is not good"}')
        return Answer.json(200, self.lend(), _AGENT)

    def _metadata(self, request: Request) -> Answer:
        folder = "/latest/meta-data/iam/security-credentials/"
        if not self.has_identity:
            return Answer(404, b"", _PLAIN)
        if (request.method, request.path) == ("PUT", "/latest/api/token"):
            return Answer(200, secret("imds-token").encode(), _PLAIN)
        if request.headers.get("x-aws-ec2-metadata-token") != secret("imds-token"):
            return Answer(401, b"", _PLAIN)
        if request.path == folder:
            return Answer(200, b"reader", _PLAIN)
        assert request.path == f"{folder}reader"
        return Answer.json(200, {"Code": "Success", **self.lend()}, _AGENT)


def _sts_error(code: str, status: int = 400) -> Answer:
    text = f"<ErrorResponse><Error><Code>{code}</Code><Message>{secret('caller')}</Message></Error></ErrorResponse>"
    return Answer(status, text.encode(), _XML)


def _unsigned(target: str) -> dict[str, str]:
    service = "ssm" if target.startswith("AmazonSSM") else "secretsmanager"
    scope = f"Credential=AKIAEXAMPLE/20260101/{REGION}/{service}/aws4_request"
    headers = {"X-Amz-Target": target, "Content-Type": _JSON, "X-Amz-Date": "20260101T000000Z"}
    return {**headers, "Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"}
