"""``secretstores.tencentcloud.ssm``: the secrets of Tencent Cloud's Secrets Manager in one region.

Settings and names are Dapr's: a secret is one value. Its versions have free names, so the newest is looked for by its
time. Requests have the signature TC3-HMAC-SHA256. Opening a store sends no request.
"""

import base64
import binascii
import contextlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from secretfs.errors import AccessDenied, ConfigurationError, MalformedAnswer, SecretNotFound
from secretfs.settings import setting
from secretfs.store import Names, Secret, StoreContext
from secretfs.stores._http.failures import about
from secretfs.stores.signed import api
from secretfs.stores.signed.api import Api, LacksRight, Meaning, Request

ANNOTATIONS: Final = frozenset({api.ENDPOINT})

_PAGE: Final = 100
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


class SsmStore:
    """The user-defined secrets of one account in one region."""

    multi_valued = False

    def __init__(self, client: Api) -> None:
        self._api = client

    def check(self) -> None:
        """List one name. An identity that may not list, but is known, passes as well."""
        with contextlib.suppress(LacksRight):
            about("list of secrets", lambda: self._call("ListSecrets", Offset=0, Limit=1))

    def names(self, folder: str) -> Names:
        """List the secrets that are enabled, 100 with each request. Reads no values."""
        return Names() if folder else Names(frozenset(about("list of secrets", self._listed)))

    def fetch(self, name: str) -> Secret:
        """Read the newest version of one secret, with two requests: a version has to be named."""

        def read() -> Secret:
            if not _NAME.fullmatch(name):
                raise SecretNotFound("no name that the store takes")
            with self._api.exchange.time.within():
                version, created = self._newest(name)
                return self._secret(name, version, created)

        return about(f"secret {name}", read)

    def clock_skew(self) -> float | None:
        """By how many seconds the clock of Tencent Cloud is ahead of ours."""
        return self._api.exchange.skew

    def close(self) -> None:
        """Close the connections."""
        self._api.exchange.close()

    def _listed(self) -> set[str]:
        found: set[str] = set()
        offset = 0
        with self._api.exchange.time.within():
            while True:
                entries = _list(self._call("ListSecrets", Offset=offset, Limit=_PAGE, State=1), "SecretMetadatas")
                found |= {str(entry.get("SecretName", "")) for entry in entries}
                offset += len(entries)
                if len(entries) < _PAGE:
                    return found - {""}

    def _newest(self, name: str) -> tuple[str, float | None]:
        versions = _list(self._call("ListSecretVersionIds", SecretName=name), "Versions")
        dated = [(_number(version.get("CreateTime")), str(version.get("VersionId", ""))) for version in versions]
        if not dated:
            raise SecretNotFound(f"{_HOST}: it has no version")
        created, version = max(dated, key=lambda it: it[0])
        return version, created or None

    def _secret(self, name: str, version: str, created: float | None) -> Secret:
        answer = self._call("GetSecretValue", SecretName=name, VersionId=version)
        text, data = answer.get("SecretString"), answer.get("SecretBinary")
        if answer.get("SecretName") != name:
            raise MalformedAnswer(f"{_HOST}: the answer is not about this secret")
        try:
            value = base64.b64decode(data, validate=True) if data else _text(text).encode("utf-8", "replace")
        except (TypeError, ValueError, binascii.Error):
            raise MalformedAnswer(f"{_HOST}: the answer has no value") from None
        return Secret({name: value}, str(answer.get("VersionId", version)), created)

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


def signer(settings: Settings) -> Any:
    """Return the function that signs requests."""

    def sign(request: Request) -> Mapping[str, str]:
        now = int(time.time())
        day = time.strftime("%Y-%m-%d", time.gmtime(now))
        signed = {"content-type": request.headers["content-type"], "host": request.host}
        names = ";".join(sorted(signed))
        lines = (request.method, request.path, "", api.canonical_headers(signed))
        canonical = "\n".join((*lines, names, api.digest(request.body)))
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


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _list(answer: Mapping[str, Any], member: str) -> list[Mapping[str, Any]]:
    entries = answer.get(member)
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise MalformedAnswer(f"the answer has no list {member}")
    return entries
