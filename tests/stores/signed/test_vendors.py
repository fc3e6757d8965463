"""Signatures of the vendors' own SDKs, compared with ours: the same request, time, nonce and keys.

The requests in ``data/vendor_requests.json`` are what the SDKs have sent to a server on loopback, recorded once by
`tests.support.record_vendor_requests`; the file names the version of each SDK.
"""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from secretfs.settings import Property, decode
from secretfs.stores.signed import alicloud, huaweicloud, tencentcloud
from secretfs.stores.signed.api import Request
from tests.support.servers import signed_clouds
from tests.support.servers.http_server import Request as Received
from tests.support.servers.signed_clouds import KEY, Clouds
from tests.support.signed_fixtures import ALIBABA, HUAWEI, TENCENT, Kind

RECORDED = json.loads(Path(__file__).with_name("data").joinpath("vendor_requests.json").read_text("utf-8"))
VENDORS: dict[str, tuple[ModuleType, Kind, Any]] = {
    "alicloud": (alicloud, ALIBABA, signed_clouds._Alibaba),
    "huaweicloud": (huaweicloud, HUAWEI, signed_clouds._Huawei),
    "tencentcloud": (tencentcloud, TENCENT, signed_clouds._Tencent),
}
TOKENS = {"x-acs-security-token": "securityToken", "x-tc-token": "token"}
"""Header to the property of a component."""
OURS = {"host", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce", "x-acs-security-token", "x-sdk-date"}
"""The headers that our signers add by themselves."""
CASES = [
    pytest.param(vendor, sent, id=f"{vendor}-{number}")
    for vendor, found in RECORDED.items()
    for number, sent in enumerate(found["requests"])
]


def moment(headers: Mapping[str, str]) -> float:
    """Return when the SDK has signed a request."""
    if "x-tc-timestamp" in headers:
        return float(headers["x-tc-timestamp"])
    return datetime.fromisoformat(headers.get("x-acs-date") or headers["x-sdk-date"]).astimezone(UTC).timestamp()


def signed_names(sent: Mapping[str, Any]) -> list[str]:
    text: str = sent["headers"]["authorization"]
    return text.partition("SignedHeaders=")[2].partition(",")[0].split(";")


@pytest.mark.parametrize(("vendor", "sent"), CASES)
def test_our_signature_is_that_of_the_vendors_sdk(
    monkeypatch: pytest.MonkeyPatch, vendor: str, sent: Mapping[str, Any]
) -> None:
    module, kind, _ = VENDORS[vendor]
    headers, url = sent["headers"], urlsplit(sent["target"])
    now = moment(headers)
    clock = SimpleNamespace(strftime=time.strftime, time=lambda: now, gmtime=lambda at=now: time.gmtime(at))
    monkeypatch.setattr(module, "time", clock)
    if module is alicloud:
        nonce = SimpleNamespace(token_hex=lambda _: headers["x-acs-signature-nonce"])
        monkeypatch.setattr(alicloud, "secrets", nonce)
    tokens = {name: headers[header] for header, name in TOKENS.items() if header in headers}
    given = [Property(*item) for item in kind.properties(**tokens).items()]
    settings, _ = decode(module.Settings, given)
    request = Request(
        sent["method"],
        headers["host"],
        url.path,
        dict(parse_qsl(url.query, keep_blank_values=True)),
        {name: headers[name] for name in signed_names(sent) if name not in OURS},
        sent["body"].encode(),
    )
    assert module.signer(settings)(request)["authorization"] == headers["authorization"]


@pytest.mark.parametrize(("vendor", "sent"), CASES)
def test_the_server_of_the_other_tests_takes_the_vendors_signature(vendor: str, sent: Mapping[str, Any]) -> None:
    url = urlsplit(sent["target"])
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    received = Received(sent["method"], url.path, query, sent["headers"], sent["body"].encode())
    with Clouds() as clouds:
        clouds.token = next((sent["headers"][name] for name in TOKENS if name in sent["headers"]), "")
        key, came, right = VENDORS[vendor][2](clouds, received).signature()
    assert (key, came) == (KEY, right)


def test_every_vendor_is_recorded() -> None:
    assert RECORDED.keys() == VENDORS.keys()
    assert all(found["requests"] and found["sdk"] for found in RECORDED.values())
