"""``secretstores.tencentcloud.ssm``: the secrets of Tencent Cloud's Secrets Manager in one region.

Settings and names are Dapr's: a secret is one value. Its versions have free names, so the newest is looked for by its
time. Requests have the signature TC3-HMAC-SHA256. Opening a store sends no request.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from secretfs.errors import AccessDenied, ConfigurationError, MalformedAnswer, SecretNotFound
from secretfs.gojson import unicode
from secretfs.settings import setting
from secretfs.store import Secret, StoreContext
from secretfs.stores._cloud import CloudStore, Page, decoded, entries
from secretfs.stores._http.address import ENDPOINT
from secretfs.stores.signed import api
from secretfs.stores.signed.api import Api, Meaning, Request, Sign

ANNOTATIONS: Final = frozenset({ENDPOINT})

_HOST: Final = "ssm.tencentcloudapi.com"
_NAME: Final = re.compile(r"[A-Za-z0-9_./-]{1,128}")
_ALGORITHM: Final = "TC3-HMAC-SHA256"
_CODES: Final[Mapping[str, Meaning]] = {
    "ResourceNotFound": api.NOT_FOUND,
    "ResourceUnavailable.ResourcePendingDeleted": (SecretNotFound, "it is scheduled for deletion"),
    "ResourceUnavailable.ResourceDisabled": (AccessDenied, "it is disabled"),
    "ResourceUnavailable": (AccessDenied, "its state forbids it"),
    "AuthFailure.SignatureExpire": api.OUR_CLOCK,
    "AuthFailure.UnauthorizedOperation": api.NO_RIGHT,
    "AuthFailure": api.KEYS_REFUSED,
    "UnauthorizedOperation": api.NO_RIGHT,
    "OperationDenied": (AccessDenied, "its state, or that of its key, forbids it"),
    "RequestLimitExceeded": api.THROTTLED,
    "LimitExceeded": api.THROTTLED,
    "InternalError": api.SERVER_ERROR,
    "FailedOperation": api.SERVER_ERROR,
    "InvalidParameter": api.NO_NAME,
    "InvalidParameterValue": api.NO_NAME,
}


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """The properties of a ``secretstores.tencentcloud.ssm`` component. There is no ``repr``: they hold keys."""

    key_id: str = setting("secretId", "Id of the API key.", required=True)
    key_secret: str = setting("secretKey", "The API key.", required=True)
    token: str = setting("token", "Token of temporary keys.")
    region: str = setting("region", "Region, such as ap-guangzhou.", required=True)


class SsmStore(CloudStore):
    """The user-defined secrets of one account in one region that are enabled."""

    def __init__(self, client: Api) -> None:
        super().__init__(client.exchange)
        self._api = client

    def _page(self, mark: str, size: int) -> Page:
        offset = int(mark or 0)
        found = entries(self._call("ListSecrets", Offset=offset, Limit=size, State=1), "SecretMetadatas")
        following = "" if len(found) < size else str(offset + size)
        return [str(entry.get("SecretName", "")) for entry in found], following

    def _read(self, name: str) -> Secret:
        """Send two requests: a version has to be named."""
        if not _NAME.fullmatch(name):
            raise SecretNotFound("no name that the store takes")
        version, created = self._newest(name)
        answer = self._call("GetSecretValue", SecretName=name, VersionId=version)
        text, data = answer.get("SecretString"), answer.get("SecretBinary")
        if answer.get("SecretName") != name:
            raise MalformedAnswer(f"{_HOST}: the answer is not about this secret")
        value = unicode(text).encode() if isinstance(text, str) and not data else decoded(data)
        return Secret({name: value}, str(answer.get("VersionId", version)), created)

    def _newest(self, name: str) -> tuple[str, float | None]:
        versions = entries(self._call("ListSecretVersionIds", SecretName=name), "Versions")
        dated = [(_number(version.get("CreateTime")), str(version.get("VersionId", ""))) for version in versions]
        if not dated:
            raise SecretNotFound(f"{_HOST}: it has no version")
        created, version = max(dated, key=lambda it: it[0])
        return version, created or None

    def _call(self, action: str, **parameters: str | int) -> Mapping[str, Any]:
        """Call an action. Its answer has status 200, whatever it says."""
        body = json.dumps(parameters).encode()
        headers = {
            "content-type": "application/json; charset=utf-8",
            "x-tc-action": action,
            "x-tc-version": "2019-09-23",
        }
        status, top = self._api.send(Request("POST", _HOST, headers=headers, body=body))
        answer = top.get("Response") if isinstance(top, dict) else None
        error = answer.get("Error") if isinstance(answer, dict) else None
        if status == 200 and isinstance(answer, dict) and error is None:
            return answer
        raise self._api.refusal(_HOST, status, error.get("Code") if isinstance(error, dict) else None)


def signer(settings: Settings) -> Sign:
    """Return the function that signs requests."""

    def sign(request: Request) -> Mapping[str, str]:
        now = int(time.time())
        day = time.strftime("%Y-%m-%d", time.gmtime(now))
        signed = {"content-type": request.headers["content-type"], "host": request.host}
        names, canonical = api.canonical(request, signed)
        scope = f"{day}/ssm/tc3_request"
        text = f"{_ALGORITHM}\n{now}\n{scope}\n{api.digest(canonical)}"
        key = f"TC3{settings.key_secret}".encode()
        for part in (day, "ssm", "tc3_request"):
            key = api.keyed(key, part)
        signature = api.keyed(key, text).hex()
        credential = f"Credential={settings.key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
        more = {"x-tc-token": settings.token} if settings.token else {}
        return {
            **request.headers, "host": request.host, "x-tc-timestamp": str(now), "x-tc-region": settings.region, **more,
            "authorization": f"{_ALGORITHM} {credential}",
        }  # fmt: skip

    return sign


def open_store(settings: Settings, context: StoreContext) -> SsmStore:
    """Prepare the connections; send no request. Raises `ConfigurationError`."""
    try:
        api.require_region("region", settings.region)
        return SsmStore(Api(context, signer(settings), _CODES))
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
