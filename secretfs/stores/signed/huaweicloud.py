"""``secretstores.huaweicloud.csms``: the secrets of Huawei Cloud's CSMS in one region.

Settings, names and shapes are Dapr's: a secret is one value, its version ``latest``. The project is that of the region,
which IAM is asked for. Requests have the signature SDK-HMAC-SHA256. Opening a store sends no request.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from secretfs.errors import AccessDenied, ConfigurationError, SecretNotFound
from secretfs.gojson import unicode
from secretfs.settings import setting
from secretfs.store import Secret, StoreContext
from secretfs.stores._cloud import CloudStore, Page, decoded, entries
from secretfs.stores._http.address import ENDPOINT
from secretfs.stores.signed import api
from secretfs.stores.signed.api import Api, Meaning, Request, Sign

ANNOTATIONS: Final = frozenset({ENDPOINT})

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ALGORITHM: Final = "SDK-HMAC-SHA256"
_CODES: Final[Mapping[str, Meaning]] = {
    "CSMS.0106": api.NOT_FOUND,
    "CSMS.0005": api.NOT_FOUND,
    "CSMS.0103": (SecretNotFound, "it is scheduled for deletion"),
    "CSMS.0107": (SecretNotFound, "it is scheduled for deletion"),
    "CSMS.0002": api.NO_NAME,
    "CSMS.0003": api.NO_NAME,
    "CSMS.0004": api.NO_NAME,
    "APIGW.0301": api.KEYS_REFUSED,
    "APIGW.0308": api.THROTTLED,
}


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """The properties of a ``secretstores.huaweicloud.csms`` component. There is no ``repr``: they hold keys."""

    region: str = setting("region", "Region, such as cn-north-4.", required=True)
    key_id: str = setting("accessKey", "Access key id.", required=True)
    key_secret: str = setting("secretAccessKey", "Secret access key.", required=True)


class CsmsStore(CloudStore):
    """The secrets of one project that are enabled. A name takes no "/"."""

    def __init__(self, client: Api, region: str) -> None:
        super().__init__(client.exchange)
        self._api = client
        self._region = region
        self._host = f"kms.{region}.myhuaweicloud.com"
        self._project = ""

    def _page(self, mark: str, size: int) -> Page:
        page = self._get("secrets", limit=str(size), **({"marker": mark} if mark else {}))
        found = [entry for entry in entries(page, "secrets") if entry.get("state", "ENABLED") == "ENABLED"]
        info = page.get("page_info")
        following = info.get("next_marker") if isinstance(info, Mapping) else None
        return [str(entry.get("name", "")) for entry in found], following

    def _read(self, name: str) -> Secret:
        if not _NAME.fullmatch(name):
            raise SecretNotFound("no name that the store takes")
        return _secret(name, self._get(f"secrets/{name}/versions/latest"))

    def _get(self, path: str, **query: str) -> Mapping[str, Any]:
        if not self._project:
            self._project = self._find_project()
        headers = {"x-project-id": self._project}
        return self._send(Request("GET", self._host, f"/v1/{self._project}/{path}", query, headers))

    def _find_project(self) -> str:
        """Ask IAM for the project that has the name of the region."""
        host = f"iam.{self._region}.myhuaweicloud.com"
        found = self._send(Request("GET", host, "/v3/projects", {"name": self._region})).get("projects")
        first = found[0] if isinstance(found, list) and found else None
        project = first.get("id") if isinstance(first, Mapping) else None
        if not isinstance(project, str) or not project.isalnum():
            raise AccessDenied(f"{host}: these keys have no project in the region")
        return project

    def _send(self, request: Request) -> Mapping[str, Any]:
        status, top = self._api.send(request)
        if status == 200 and isinstance(top, dict):
            return top
        raise self._api.refusal(request.host, status, top.get("error_code") if isinstance(top, dict) else None)


def _secret(name: str, answer: Mapping[str, Any]) -> Secret:
    version = _object(answer, "version")
    metadata, text = _object(version, "version_metadata"), version.get("secret_string")
    created, stages = metadata.get("create_time"), metadata.get("version_stages")
    return Secret(
        {name: unicode(text).encode() if isinstance(text, str) else decoded(version.get("secret_binary"))},
        str(metadata.get("id", "")),
        created / 1000 if isinstance(created, int) else None,
        tuple(sorted(map(str, stages))) if isinstance(stages, list) else (),
    )


def _object(answer: Mapping[str, Any], member: str) -> Mapping[str, Any]:
    found = answer.get(member)
    return found if isinstance(found, Mapping) else {}


def signer(settings: Settings) -> Sign:
    """Return the function that signs requests."""

    def sign(request: Request) -> Mapping[str, str]:
        sent = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        headers = {**request.headers, "host": request.host, "x-sdk-date": sent}
        path = request.path if request.path.endswith("/") else f"{request.path}/"
        names, canonical = api.canonical(request, headers, path)
        text = f"{_ALGORITHM}\n{sent}\n{api.digest(canonical)}"
        signature = api.keyed(settings.key_secret.encode(), text).hex()
        credential = f"Access={settings.key_id}, SignedHeaders={names}, Signature={signature}"
        return {**headers, "authorization": f"{_ALGORITHM} {credential}"}

    return sign


def open_store(settings: Settings, context: StoreContext) -> CsmsStore:
    """Prepare the connections; send no request. Raises `ConfigurationError`."""
    try:
        api.require_region("region", settings.region)
        return CsmsStore(Api(context, signer(settings), _CODES), settings.region)
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None
