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
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from tests.support.canary import secret
from tests.support.servers.keep_alive import End, close
from tests.support.servers.moto_server import Moto
from tests.support.waiting import PATIENCE

REGION = "eu-central-1"
ROLE = "arn:aws:iam::123456789012:role/reader"
KEY = "AKIAEXAMPLE"
POD_TOKEN = secret("pod-token")
WEB_TOKEN = secret("web-token")
_SKEW = 300  # seconds
_JSON = "application/x-amz-json-1.1"
_XML = "text/xml"


@dataclass(frozen=True)
class Answer:
    """What the front answers."""

    status: int
    body: bytes
    type: str = _JSON
    encoding: str = ""


Fault = Callable[[], Answer | None]
"""Takes the place of an answer; one that returns None ends the connection instead, as `Aws.ends` says."""


def failing(code: str, message: str = "", status: int = 400) -> Fault:
    """Answer with an error of the JSON protocol."""
    return lambda: error(code, message, status)


def saying(body: bytes, status: int = 200, type: str = _JSON, encoding: str = "") -> Fault:  # noqa: A002
    """Answer with these bytes."""
    return lambda: Answer(status, body, type, encoding)


def dropped() -> None:
    """End the connection without an answer."""


def error(code: str, message: str = "", status: int = 400) -> Answer:
    """Make an error as AWS words it. Texts of AWS name who asked."""
    text = message or f"User: arn:aws:iam::123456789012:user/{secret('caller')} is not authorized"
    return Answer(status, json.dumps({"__type": code, "message": text}).encode())


@dataclass(frozen=True)
class Key:
    """A secret access key, with its session token if it is a temporary one."""

    secret: str
    token: str = ""
    expires: float = float("inf")


class Aws:
    """All of AWS that a store can see, and what a test can do to it."""

    def __init__(self, moto: Moto) -> None:
        self.moto = moto
        self.requests: Counter[str] = Counter()
        """By operation: GetSecretValue, ListSecrets, AssumeRoleWithWebIdentity, imds, pod, ..."""
        self.signers: list[str] = []
        """The access keys whose signatures were accepted, in order."""
        self.regions: set[str] = set()
        self.keys = {KEY: Key(secret("secret-key"))}
        self.faults: deque[Fault] = deque()
        """For the next requests to a service that are signed well."""
        self.always: Fault | None = None
        """For all of them."""
        self.login_faults: deque[Fault] = deque()
        self.denies: dict[str, str] = {}
        """Operation to the code with which it is refused."""
        self.denied: dict[str, str] = {}
        """Secret or parameter to the code with which reading it is refused."""
        self.ends: End = close
        self.clock = 0.0
        """Seconds by which the clock of AWS is ahead."""
        self.lifetime = 3600.0
        """Seconds for which a role lends its credentials."""
        self.has_identity = False
        """Whether this machine is one of EC2's that has a role."""
        self.complaints: list[str] = []
        self.released = threading.Event()
        """Ends what hangs."""
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.aws = self

    # --- what a test does ---

    @property
    def address(self) -> str:
        """The value for ``endpoint``, and for the variables that name agents."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

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

    def drop_connections(self) -> None:
        """Close all connections."""
        self._server.drop()

    # --- how ---

    def run(self) -> None:
        """Serve until `stop`."""
        self._server.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        """End everything."""
        self.released.set()
        self._server.shutdown()
        self._server.drop()
        self._server.server_close()

    def hang(self) -> None:
        """Be a fault: answer nothing until the end of the test."""
        self.released.wait(PATIENCE)

    def answer(self, request: "Request") -> Answer | None:
        """Answer a request."""
        if request.method != "POST":
            return self._agent(request)
        target = request.headers.get("x-amz-target", "")
        if target:
            return self._service(target, request)
        return self._sts(request)

    def count(self, operation: str) -> None:
        """Count a request."""
        with self._lock:
            self.requests[operation] += 1

    def _service(self, target: str, request: "Request") -> Answer | None:
        operation = target.partition(".")[2]
        self.count(operation)
        refusal = self._signature_refusal(request)
        if refusal is not None:
            return refusal
        fault = self.faults.popleft() if self.faults else self.always
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

    def _signature_refusal(self, request: "Request") -> Answer | None:
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

    def _sts(self, request: "Request") -> Answer | None:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        action = form["Action"]
        self.count(action)
        if self.login_faults:
            return self.login_faults.popleft()()
        if action == "AssumeRoleWithWebIdentity":
            if "authorization" in request.headers:
                self.complaints.append("the exchange of a web identity is not signed")
            if form["WebIdentityToken"] != WEB_TOKEN:
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

    def _agent(self, request: "Request") -> Answer | None:
        if request.path.startswith("/v1/credentials"):
            self.count("pod")
            answer = self._pod_identity
        else:
            self.count("imds")
            answer = self._metadata
        if self.login_faults and request.method == "GET":
            return self.login_faults.popleft()()
        return answer(request)

    def _pod_identity(self, request: "Request") -> Answer:
        if request.headers.get("authorization") != POD_TOKEN:
            return Answer(401, b'{"message": "the token is not good"}')
        return Answer(200, json.dumps(self.lend()).encode(), "application/json")

    def _metadata(self, request: "Request") -> Answer:
        folder = "/latest/meta-data/iam/security-credentials/"
        if not self.has_identity:
            return Answer(404, b"", "text/plain")
        if (request.method, request.path) == ("PUT", "/latest/api/token"):
            return Answer(200, secret("imds-token").encode(), "text/plain")
        if request.headers.get("x-aws-ec2-metadata-token") != secret("imds-token"):
            return Answer(401, b"", "text/plain")
        if request.path == folder:
            return Answer(200, b"reader", "text/plain")
        assert request.path == f"{folder}reader"
        return Answer(200, json.dumps({"Code": "Success", **self.lend()}).encode(), "application/json")


def _sts_error(code: str, status: int = 400) -> Answer:
    text = f"<ErrorResponse><Error><Code>{code}</Code><Message>{secret('caller')}</Message></Error></ErrorResponse>"
    return Answer(status, text.encode(), _XML)


def _unsigned(target: str) -> dict[str, str]:
    service = "ssm" if target.startswith("AmazonSSM") else "secretsmanager"
    scope = f"Credential=AKIAEXAMPLE/20260101/{REGION}/{service}/aws4_request"
    headers = {"X-Amz-Target": target, "Content-Type": _JSON, "X-Amz-Date": "20260101T000000Z"}
    return {**headers, "Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"}


@dataclass(frozen=True)
class Request:
    """A request."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes


class _Server(ThreadingHTTPServer):
    aws: Aws
    daemon_threads = True  # each ends with its connection

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def drop(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    server: _Server

    def _serve(self) -> None:
        aws = self.server.aws
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = aws.answer(Request(self.command, self.path, headers, body))
        if answer is None:
            self.close_connection = True
            aws.ends(self.connection)
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.type)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.encoding:
            self.send_header("Content-Encoding", answer.encoding)
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = _serve  # noqa: N815 - as http.server calls them

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(int((timestamp or time.time()) + self.server.aws.clock))

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def aws(moto: Moto) -> Iterator[Aws]:
    """Run AWS. Raises the complaints about requests that do not belong there."""
    server = Aws(moto)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
    assert server.complaints == []
