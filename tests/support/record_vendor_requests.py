"""Records how the vendors' own SDKs sign requests: ``python -m tests.support.record_vendor_requests > FILE``.

Run it in a virtual environment of its own: the SDK of Huawei Cloud wants older packages than secretfs has locked.

    pip install tencentcloud-sdk-python-ssm huaweicloudsdkcsms alibabacloud_oos20190601

A server on loopback gets the requests. What is written is what was on the wire: clock and nonce are those of the SDK.
`tests.stores.signed.test_vendors` compares.
"""

import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any

from alibabacloud_oos20190601 import models as oos
from alibabacloud_oos20190601.client import Client as OosClient
from alibabacloud_tea_openapi.models import Config
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcsms.v1 import CsmsClient, ListSecretsRequest, ShowSecretVersionRequest
from tencentcloud.common.credential import Credential
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.ssm.v20190923 import models as ssm
from tencentcloud.ssm.v20190923.ssm_client import SsmClient

from tests.support.canary import secret

KEY, TOKEN, PROJECT = "KEYEXAMPLE", "a-token", "0123456789abcdef0123456789abcdef"
SDKS = {
    "alicloud": "alibabacloud-tea-openapi",
    "huaweicloud": "huaweicloudsdkcore",
    "tencentcloud": "tencentcloud-sdk-python-common",
}


class _Recorder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    requests: list[dict[str, Any]]

    def _record(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.requests.append({"method": self.command, "target": self.path, "headers": headers, "body": body})
        answer = b'{"Response": {"RequestId": "1"}}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = _record  # noqa: N815 - names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _alicloud(address: str) -> list[Callable[[], object]]:
    def client(token: str | None) -> OosClient:
        keys = {"access_key_id": KEY, "access_key_secret": secret("access-key"), "security_token": token}
        return OosClient(Config(**keys, region_id="cn-north-4", endpoint=address, protocol="http"))

    plain, temporary = client(None), client(TOKEN)
    names = json.dumps(["db", "team/db.1", "with_underscore-and~"])
    return [
        lambda: plain.list_secret_parameters(oos.ListSecretParametersRequest(max_results=100)),
        lambda: plain.get_secret_parameter(oos.GetSecretParameterRequest(name="team/db", with_decryption=True)),
        lambda: temporary.get_secret_parameter(oos.GetSecretParameterRequest(name="db", with_decryption=True)),
        lambda: plain.get_secret_parameters(oos.GetSecretParametersRequest(names=names, with_decryption=True)),
    ]


def _huaweicloud(address: str) -> list[Callable[[], object]]:
    keys = BasicCredentials(KEY, secret("access-key"), PROJECT)
    client = CsmsClient.new_builder().with_credentials(keys).with_endpoints([f"http://{address}"]).build()
    return [
        lambda: client.list_secrets(ListSecretsRequest(limit="100", marker="a_b-c")),
        lambda: client.show_secret_version(ShowSecretVersionRequest(secret_name="db", version_id="latest")),
    ]


def _tencentcloud(address: str) -> list[Callable[[], object]]:
    profile = ClientProfile(httpProfile=HttpProfile(protocol="http", endpoint=address))

    def client(*token: str) -> SsmClient:
        return SsmClient(Credential(KEY, secret("access-key"), *token), "cn-north-4", profile)

    def filled(request: Any, **fields: Any) -> Any:
        for name, value in fields.items():
            setattr(request, name, value)
        return request

    plain, temporary = client(), client(TOKEN)
    return [
        lambda: plain.ListSecrets(filled(ssm.ListSecretsRequest(), Offset=0, Limit=100, State=1)),
        lambda: plain.ListSecretVersionIds(filled(ssm.ListSecretVersionIdsRequest(), SecretName="team/db")),
        lambda: temporary.GetSecretValue(filled(ssm.GetSecretValueRequest(), SecretName="db", VersionId="v1")),
    ]


def main() -> None:
    """Call each SDK, and write what it has sent."""
    vendors = {"alicloud": _alicloud, "huaweicloud": _huaweicloud, "tencentcloud": _tencentcloud}
    found = {}
    for vendor, calls in vendors.items():
        requests: list[dict[str, Any]] = []
        _Recorder.requests = requests
        with ThreadingHTTPServer(("127.0.0.1", 0), _Recorder) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            for call in calls(f"127.0.0.1:{server.server_address[1]}"):
                call()
            server.shutdown()
        found[vendor] = {"sdk": f"{SDKS[vendor]} {version(SDKS[vendor])}", "requests": requests}
    json.dump(found, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
