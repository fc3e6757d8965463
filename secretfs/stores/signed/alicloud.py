"""``secretstores.alicloud.parameterstore``: secret parameters of Alibaba Cloud's OOS in one region.

Settings, names and shapes are Dapr's: a secret is the decrypted value of a secret parameter. Requests have the
signature ACS3-HMAC-SHA256. Opening a store sends no request.
"""

import contextlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from secretfs.errors import ConfigurationError, MalformedAnswer, SecretNotFound, StoreError
from secretfs.settings import setting
from secretfs.store import Names, Secret, StoreContext
from secretfs.stores._http.batches import Batches, Found
from secretfs.stores._http.failures import about
from secretfs.stores.signed import api
from secretfs.stores.signed.api import Api, LacksRight, Meaning, Request

ANNOTATIONS: Final = frozenset({api.ENDPOINT})

_BATCH: Final = 10
_PAGE: Final = 100
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


class ParameterStore:
    """The secret parameters of one account in one region."""

    multi_valued = False

    def __init__(self, client: Api, batches: Batches, region: str) -> None:
        self._api = client
        self._batches = batches
        self._host = f"oos.{region}.aliyuncs.com"

    def check(self) -> None:
        """List one name. An identity that may not list, but is known, passes as well."""
        with contextlib.suppress(LacksRight):
            about("list of parameters", lambda: self._call("ListSecretParameters", MaxResults="1"))

    def names(self, folder: str) -> Names:
        """List the secret parameters, 100 with each request. Reads no values."""
        return Names() if folder else Names(frozenset(about("list of parameters", self._listed)))

    def fetch(self, name: str) -> Secret:
        """Read the newest version of one secret parameter."""

        def read() -> Secret:
            if not _NAME.fullmatch(name):
                raise SecretNotFound("no name that the store takes")
            return self._secret(
                name, self._call("GetSecretParameter", Name=name, WithDecryption="true").get("Parameter")
            )

        return about(f"secret {name}", read)

    @property
    def largest_batch(self) -> int:
        """10 secret parameters, as long as GetSecretParameters is allowed."""
        return self._batches.largest

    def fetch_many(self, names: tuple[str, ...]) -> Found:
        """Read up to 10 secret parameters with one request."""
        wanted = [name for name in names if _NAME.fullmatch(name)]
        return self._batches.read(lambda: about("batch of parameters", lambda: self._read(wanted))) if wanted else {}

    def clock_skew(self) -> float | None:
        """By how many seconds the clock of Alibaba Cloud is ahead of ours."""
        return self._api.exchange.skew

    def close(self) -> None:
        """Close the connections."""
        self._api.exchange.close()

    def _listed(self) -> set[str]:
        found: set[str] = set()
        token = ""
        with self._api.exchange.time.within():
            while True:
                more = {"NextToken": token} if token else {}
                page = self._call("ListSecretParameters", MaxResults=str(_PAGE), **more)
                for entry in _list(page, "Parameters"):
                    found.add(str(entry.get("Name", "")))
                before, token = token, page.get("NextToken") or ""
                if not token:
                    return found - {""}
                if not isinstance(token, str) or token == before:
                    raise MalformedAnswer("a page leads to itself")

    def _read(self, wanted: list[str]) -> Found:
        answer = self._call("GetSecretParameters", Names=json.dumps(wanted), WithDecryption="true")
        found: dict[str, Secret | StoreError] = {}
        for entry in _list(answer, "Parameters"):
            name = entry.get("Name")
            if isinstance(name, str) and name in wanted:
                found[name] = self._secret(name, entry)
        invalid = answer.get("InvalidParameters")
        for name in invalid if isinstance(invalid, list) else []:
            if isinstance(name, str) and name in wanted:
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
        value = entry["Value"].encode("utf-8", "replace")
        return Secret({name: value}, str(entry.get("ParameterVersion", "")), _moment(entry.get("UpdatedDate")))


def signer(settings: Settings) -> Any:
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
        names = ";".join(sorted(headers))
        lines = (request.method, request.path, api.canonical_query(request.query), api.canonical_headers(headers))
        canonical = "\n".join((*lines, names, headers["x-acs-content-sha256"]))
        signature = api.keyed(settings.key_secret.encode(), f"{_ALGORITHM}\n{api.digest(canonical)}").hex()
        credential = f"Credential={settings.key_id},SignedHeaders={names},Signature={signature}"
        return {**headers, "authorization": f"{_ALGORITHM} {credential}"}

    return sign


def open_store(settings: Settings, context: StoreContext) -> ParameterStore:
    """Prepare the connections; send no request. Raises `ConfigurationError`."""
    try:
        api.require_region("regionId", settings.region)
        batches = Batches(context.component, "oos:GetSecretParameters", _BATCH, api.KeysRefused)
        return ParameterStore(Api(context, signer(settings), _CODES), batches, settings.region)
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None


def _list(answer: Mapping[str, Any], member: str) -> list[Mapping[str, Any]]:
    entries = answer.get(member)
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise MalformedAnswer(f"the answer has no list {member}")
    return entries


def _moment(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
