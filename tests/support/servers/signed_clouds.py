"""Alibaba Cloud's OOS, Huawei Cloud's CSMS with its IAM, and Tencent Cloud's SSM on one loopback port.

It checks their three signatures from what it has received, and the clocks in them. Sources: the vendors' pages on
request signatures (ACS3-HMAC-SHA256, SDK-HMAC-SHA256, TC3-HMAC-SHA256), on these APIs and on their error codes.
"""

import base64
import hashlib
import hmac
import json
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from tests.support.canary import secret
from tests.support.servers.http_server import Answer, HttpServer, Request

KEY = "KEYEXAMPLE"
PROJECT = "0123456789abcdef0123456789abcdef"


@dataclass
class Version:
    """One version of a secret."""

    value: bytes
    created: float = field(default_factory=time.time)


def _sha(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), "sha256").digest()


class Clouds(HttpServer):
    """The three clouds, and what a test can do to them."""

    def __init__(self) -> None:
        super().__init__()
        self.key = secret("access-key")
        self.token = ""
        """The token that has to come with the key, if it is a temporary one."""
        self.secrets: dict[str, list[Version]] = {}
        self.denied: set[str] = set()
        """Secrets that nobody may read, and actions that nobody may call."""
        self.page = 100

    def put(self, name: str, value: bytes) -> None:
        """Write a new version of a secret."""
        with self._lock:
            versions = self.secrets.setdefault(name, [])
            newest = versions[-1].created if versions else 0.0
            versions.append(Version(value, max(time.time(), newest + 1)))

    def answer(self, request: Request) -> Answer | None:
        """Answer a request to whichever cloud it is for, and count it by its action, or by the form of its path."""
        for mark, cloud in (("x-acs-action", _Alibaba), ("x-sdk-date", _Huawei), ("x-tc-action", _Tencent)):
            if mark in request.headers:
                return cloud(self, request).answer()
        raise AssertionError("a request that no cloud takes")


class _Cloud:
    skew = 900.0

    def __init__(self, clouds: Clouds, request: Request) -> None:
        self.clouds = clouds
        self.request = request

    @property
    def action(self) -> str:
        raise NotImplementedError

    def error(self, kind: str) -> Answer:
        raise NotImplementedError

    def signature(self) -> tuple[str, str, str]:
        """Return the key id, the signature that came, and the one that should have."""
        raise NotImplementedError

    def sent_at(self) -> float:
        raise NotImplementedError

    def serve(self) -> Answer:
        raise NotImplementedError

    def answer(self) -> Answer | None:
        clouds = self.clouds
        clouds.count(self.action)
        key, came, right = self.signature()
        if key != KEY or came != right:
            return self.error("keys")
        if abs(time.time() + clouds.clock - self.sent_at()) > self.skew:
            return self.error("clock")
        fault = clouds.next_fault()
        if fault is not None:
            return fault()
        return self.error("denied") if self.action in clouds.denied else self.serve()

    def _authorization(self, pattern: str) -> tuple[str, list[str], str]:
        found = re.fullmatch(pattern, self.request.headers["authorization"])
        assert found, "not an authorization of this cloud"
        return found[1], found[2].split(";"), found[3]

    def _canonical(self, names: list[str], path: str, payload: str) -> str:
        query = "&".join(
            f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
            for name, value in sorted(self.request.query.items())
        )
        headers = "".join(f"{name}:{self.request.headers[name].strip()}\n" for name in names)
        return _sha("\n".join((self.request.method, path, query, headers, ";".join(names), payload)))

    def find(self, name: str) -> list[Version]:
        return self.clouds.secrets.get(name, [])


class _Alibaba(_Cloud):
    @property
    def action(self) -> str:
        return self.request.headers["x-acs-action"]

    def error(self, kind: str) -> Answer:
        status, code = {
            "keys": (404, "InvalidAccessKeyId.NotFound"),
            "clock": (400, "InvalidTimeStamp.Expired"),
            "denied": (403, "Forbidden.RAM"),
            "missing": (404, "EntityNotExists.Parameter"),
        }[kind]
        return Answer.json(status, {"Code": code, "Message": secret("caller"), "RequestId": "1"})

    def signature(self) -> tuple[str, str, str]:
        headers = self.request.headers
        key, names, came = self._authorization(
            r"ACS3-HMAC-SHA256 Credential=(\w+),SignedHeaders=([\w;-]+),Signature=([0-9a-f]{64})"
        )
        assert {"host", "x-acs-action", "x-acs-version", "x-acs-date", "x-acs-signature-nonce"} <= set(names)
        assert headers["x-acs-content-sha256"] == _sha(self.request.body)
        token = headers.get("x-acs-security-token", "")
        text = f"ACS3-HMAC-SHA256\n{self._canonical(names, self.request.path, headers['x-acs-content-sha256'])}"
        right = _hmac(self.clouds.key.encode(), text).hex() if token == self.clouds.token else "another"
        return key, came, right

    def sent_at(self) -> float:
        return datetime.fromisoformat(self.request.headers["x-acs-date"]).timestamp()

    def serve(self) -> Answer:
        query = self.request.query
        assert self.request.headers["x-acs-version"] == "2019-06-01"
        if self.action == "ListSecretParameters":
            names = sorted(self.clouds.secrets)
            start, size = int(query.get("NextToken", "0")), min(int(query["MaxResults"]), self.clouds.page)
            page: dict[str, Any] = {"Parameters": [{"Name": name} for name in names[start : start + size]]}
            page["NextToken"] = str(start + size) if start + size < len(names) else ""
            return Answer.json(200, page)
        assert query["WithDecryption"] == "true"
        if self.action == "GetSecretParameters":
            wanted = json.loads(query["Names"])
            assert len(wanted) <= 10
            if self.clouds.denied & set(wanted):
                return self.error("denied")
            there = [self._parameter(name) for name in wanted if self.find(name)]
            lacking = [name for name in wanted if not self.find(name)]
            return Answer.json(200, {"Parameters": there, "InvalidParameters": lacking})
        assert self.action == "GetSecretParameter"
        if query["Name"] in self.clouds.denied:
            return self.error("denied")
        if not self.find(query["Name"]):
            return self.error("missing")
        return Answer.json(200, {"Parameter": self._parameter(query["Name"])})

    def _parameter(self, name: str) -> dict[str, Any]:
        versions = self.find(name)
        moment = datetime.fromtimestamp(versions[-1].created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        value = versions[-1].value.decode()
        return {
            "Name": name,
            "Value": value,
            "ParameterVersion": len(versions),
            "UpdatedDate": moment,
            "Type": "Secret",
        }


class _Huawei(_Cloud):
    @property
    def action(self) -> str:
        if self.request.path == "/v3/projects":
            return "projects"
        return "list" if self.request.path.endswith("/secrets") else "get"

    def error(self, kind: str) -> Answer:
        status, code = {
            "keys": (401, "APIGW.0301"),
            "clock": (401, "APIGW.0301"),
            "denied": (403, "CSMS.0404"),
            "missing": (400, "CSMS.0106"),
        }[kind]
        return Answer.json(status, {"error_code": code, "error_msg": secret("caller")})

    def signature(self) -> tuple[str, str, str]:
        key, names, came = self._authorization(
            r"SDK-HMAC-SHA256 Access=(\w+), SignedHeaders=([\w;-]+), Signature=([0-9a-f]{64})"
        )
        assert {"host", "x-sdk-date"} <= set(names)
        path = self.request.path if self.request.path.endswith("/") else f"{self.request.path}/"
        canonical = self._canonical(names, path, _sha(self.request.body))
        text = f"SDK-HMAC-SHA256\n{self.request.headers['x-sdk-date']}\n{canonical}"
        return key, came, _hmac(self.clouds.key.encode(), text).hex()

    def sent_at(self) -> float:
        sent = self.request.headers["x-sdk-date"]
        return datetime.strptime(sent, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()

    def serve(self) -> Answer:
        if self.action == "projects":
            found = [{"id": PROJECT, "name": self.request.query["name"]}]
            return Answer.json(200, {"projects": found})
        assert self.request.headers["x-project-id"] == PROJECT
        assert self.request.path.startswith(f"/v1/{PROJECT}/secrets")
        if self.action == "list":
            names = sorted(self.clouds.secrets)
            size = min(int(self.request.query["limit"]), self.clouds.page)
            start = names.index(self.request.query["marker"]) if "marker" in self.request.query else 0
            page: dict[str, Any] = {"secrets": [{"name": it, "state": "ENABLED"} for it in names[start : start + size]]}
            page["secrets"].append({"name": "disabled", "state": "DISABLED"})
            page["page_info"] = {"next_marker": names[start + size]} if start + size < len(names) else {}
            return Answer.json(200, page)
        found_path = re.fullmatch(rf"/v1/{PROJECT}/secrets/([A-Za-z0-9_-]{{1,64}})/versions/latest", self.request.path)
        assert found_path, self.request.path
        name = found_path[1]
        if name in self.clouds.denied:
            return self.error("denied")
        versions = self.find(name)
        if not versions:
            return self.error("missing")
        about = {
            "id": f"v{len(versions)}",
            "create_time": int(versions[-1].created * 1000),
            "version_stages": ["SYSCURRENT"],
        }
        return Answer.json(200, {"version": {"version_metadata": about, **_value(versions[-1], "secret_")}})


class _Tencent(_Cloud):
    skew = 300.0

    @property
    def action(self) -> str:
        return self.request.headers["x-tc-action"]

    def error(self, kind: str) -> Answer:
        code = {
            "keys": "AuthFailure.SignatureFailure",
            "clock": "AuthFailure.SignatureExpire",
            "denied": "AuthFailure.UnauthorizedOperation",
            "missing": "ResourceNotFound.SecretNotExist",
        }[kind]
        return _response({"Error": {"Code": code, "Message": secret("caller")}})

    def signature(self) -> tuple[str, str, str]:
        headers = self.request.headers
        day = time.strftime("%Y-%m-%d", time.gmtime(int(headers["x-tc-timestamp"])))
        scope = f"{day}/ssm/tc3_request"
        key, names, came = self._authorization(
            rf"TC3-HMAC-SHA256 Credential=(\w+)/{scope}, SignedHeaders=([\w;-]+), Signature=([0-9a-f]{{64}})"
        )
        assert {"content-type", "host"} <= set(names)
        chain = f"TC3{self.clouds.key}".encode()
        for part in (day, "ssm", "tc3_request"):
            chain = _hmac(chain, part)
        canonical = self._canonical(names, self.request.path, _sha(self.request.body))
        text = f"TC3-HMAC-SHA256\n{headers['x-tc-timestamp']}\n{scope}\n{canonical}"
        return key, came, _hmac(chain, text).hex() if headers.get("x-tc-token", "") == self.clouds.token else "another"

    def sent_at(self) -> float:
        return float(self.request.headers["x-tc-timestamp"])

    def serve(self) -> Answer:
        asked = json.loads(self.request.body)
        assert self.request.headers["x-tc-version"] == "2019-09-23"
        if self.action == "ListSecrets":
            names = sorted(self.clouds.secrets)[asked["Offset"] : asked["Offset"] + asked["Limit"]]
            return _response({"SecretMetadatas": [{"SecretName": name} for name in names], "TotalCount": len(names)})
        name = asked["SecretName"]
        versions = self.find(name)
        if name in self.clouds.denied:
            return self.error("denied")
        if not versions:
            return self.error("missing")
        ids = [f"v{number}" for number in range(len(versions), 0, -1)]
        if self.action == "ListSecretVersionIds":
            dated = zip(ids, reversed(versions), strict=True)
            listed = [{"VersionId": it, "CreateTime": int(version.created)} for it, version in dated]
            return _response({"SecretName": name, "Versions": listed})
        assert self.action == "GetSecretValue"
        version = versions[int(asked["VersionId"][1:]) - 1]
        return _response({"SecretName": name, "VersionId": asked["VersionId"], **_value(version, "Secret")})


def _value(version: Version, prefix: str) -> dict[str, str]:
    text, data = ("secret_string", "secret_binary") if prefix.endswith("_") else ("SecretString", "SecretBinary")
    try:
        return {text: version.value.decode()}
    except UnicodeDecodeError:
        return {data: base64.b64encode(version.value).decode()}


def _response(members: dict[str, Any]) -> Answer:
    return Answer.json(200, {"Response": {**members, "RequestId": "1"}})
