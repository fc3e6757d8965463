"""``secretstores.alicloud.parameterstore``: secret parameters of Alibaba Cloud's OOS in one region.

Settings, names and shapes are Dapr's: a secret is the decrypted value of a secret parameter. Requests have the
signature ACS3-HMAC-SHA256. Opening a store sends no request.
"""

import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from secretfs.errors import ConfigurationError, MalformedAnswer, SecretNotFound, StoreError
from secretfs.gojson import unicode
from secretfs.settings import setting
from secretfs.store import Secret, StoreContext
from secretfs.stores._cloud import BatchedCloudStore, Page, entries
from secretfs.stores._http.address import ENDPOINT
from secretfs.stores._http.batches import Batches, Found
from secretfs.stores.signed import api
from secretfs.stores.signed.api import Api, Meaning, Request, Sign

ANNOTATIONS: Final = frozenset({ENDPOINT})

_BATCH: Final = 10
_NAME: Final = re.compile(r"[A-Za-z0-9_/.-]{1,180}")
_ALGORITHM: Final = "ACS3-HMAC-SHA256"
_CODES: Final[Mapping[str, Meaning]] = {
    "EntityNotExists.Parameter": api.NOT_FOUND,
    "EntityNotExists": api.NOT_FOUND,
    "InvalidParameter": api.NO_NAME,
    "InvalidAccessKeyId": api.KEYS_REFUSED,
    "InvalidSecurityToken": api.KEYS_REFUSED,
    "SignatureDoesNotMatch": api.KEYS_REFUSED,
    "IncompleteSignature": api.KEYS_REFUSED,
    "InvalidTimeStamp": api.OUR_CLOCK,
    "Forbidden": api.NO_RIGHT,
    "NoPermission": api.NO_RIGHT,
    "Throttling": api.THROTTLED,
    "ServiceUnavailable": api.SERVER_ERROR,
    "InternalError": api.SERVER_ERROR,
}


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """The properties of a ``secretstores.alicloud.parameterstore`` component. There is no ``repr``: they hold keys."""

    region: str = setting("regionId", "Region, such as cn-hangzhou.", required=True)
    key_id: str = setting("accessKeyId", "Access key id.", required=True)
    key_secret: str = setting("accessKeySecret", "Access key secret.", required=True)
    token: str = setting("securityToken", "Security token of temporary keys.")


class ParameterStore(BatchedCloudStore):
    """The secret parameters of one account in one region."""

    def __init__(self, client: Api, batches: Batches, region: str) -> None:
        super().__init__(client.exchange, batches)
        self._api = client
        self._host = f"oos.{region}.aliyuncs.com"

    def _page(self, mark: str, size: int) -> Page:
        more = {"NextToken": mark} if mark else {}
        page = self._call("ListSecretParameters", MaxResults=str(size), **more)
        return [str(entry.get("Name", "")) for entry in entries(page, "Parameters")], page.get("NextToken")

    def _read(self, name: str) -> Secret:
        if not _NAME.fullmatch(name):
            raise SecretNotFound("no name that the store takes")
        return self._secret(name, self._call("GetSecretParameter", Name=name, WithDecryption="true").get("Parameter"))

    def _fits_batch(self, name: str) -> bool:
        return _NAME.fullmatch(name) is not None

    def _read_many(self, names: tuple[str, ...]) -> Found:
        answer = self._call("GetSecretParameters", Names=json.dumps(names), WithDecryption="true")
        found: dict[str, Secret | StoreError] = {}
        for entry in entries(answer, "Parameters"):
            name = entry.get("Name")
            if isinstance(name, str) and name in names:
                found[name] = self._secret(name, entry)
        invalid = answer.get("InvalidParameters")
        for name in invalid if isinstance(invalid, list) else []:
            if isinstance(name, str) and name in names:
                found[name] = SecretNotFound(f"secret {name}: {self._host}: not found")
        return found

    def _call(self, action: str, **query: str) -> Mapping[str, Any]:
        headers = {"x-acs-action": action, "x-acs-version": "2019-06-01"}
        status, top = self._api.send(Request("POST", self._host, query=query, headers=headers))
        if status == 200 and isinstance(top, dict):
            return top
        raise self._api.refusal(self._host, status, top.get("Code") if isinstance(top, dict) else None)

    def _secret(self, name: str, entry: Any) -> Secret:
        if not isinstance(entry, Mapping) or entry.get("Name") != name or not isinstance(entry.get("Value"), str):
            raise MalformedAnswer(f"{self._host}: the answer has no value of this parameter")
        value = unicode(entry["Value"]).encode()
        return Secret({name: value}, str(entry.get("ParameterVersion", "")), _moment(entry.get("UpdatedDate")))


def signer(settings: Settings) -> Sign:
    """Return the function that signs requests."""

    def sign(request: Request) -> Mapping[str, str]:
        headers = {
            **request.headers,
            "host": request.host,
            "x-acs-content-sha256": api.digest(request.body),
            "x-acs-date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "x-acs-signature-nonce": secrets.token_hex(16),
        }
        if settings.token:
            headers["x-acs-security-token"] = settings.token
        names, canonical = api.canonical(request, headers)
        signature = api.keyed(settings.key_secret.encode(), f"{_ALGORITHM}\n{api.digest(canonical)}").hex()
        credential = f"Credential={settings.key_id},SignedHeaders={names},Signature={signature}"
        return {**headers, "authorization": f"{_ALGORITHM} {credential}"}

    return sign


def open_store(settings: Settings, context: StoreContext) -> ParameterStore:
    """Prepare the connections; send no request. Raises `ConfigurationError`."""
    try:
        api.require_region("regionId", settings.region)
        batches = Batches(context.component, "oos:GetSecretParameters", _BATCH)
        return ParameterStore(Api(context, signer(settings), _CODES), batches, settings.region)
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None


def _moment(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
