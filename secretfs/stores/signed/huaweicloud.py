"""``secretstores.huaweicloud.csms``: the secrets of Huawei Cloud's CSMS in one region.

Settings, names and shapes are Dapr's: a secret is one value, its version ``latest``. The project is that of the region,
which IAM is asked for. Requests have the signature SDK-HMAC-SHA256. Opening a store sends no request.
"""

import base64
import binascii
import contextlib
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


class CsmsStore:
    """The secrets of one project. There are no folders: a name takes no "/"."""

    multi_valued = False

    def __init__(self, client: Api, region: str) -> None:
        self._api = client
        self._region = region
        self._host = f"kms.{region}.myhuaweicloud.com"
        self._project = ""

    def check(self) -> None:
        """List one name. An identity that may not list, but is known, passes as well."""
        with contextlib.suppress(LacksRight):
            about("list of secrets", lambda: self._get("secrets", limit="1"))

    def names(self, folder: str) -> Names:
        """List the secrets that are enabled, 100 with each request. Reads no values."""
        return Names() if folder else Names(frozenset(about("list of secrets", self._listed)))

    def fetch(self, name: str) -> Secret:
        """Read the latest version of one secret."""

        def read() -> Secret:
            if not _NAME.fullmatch(name):
                raise SecretNotFound("no name that the store takes")
            return self._secret(name, self._get(f"secrets/{name}/versions/latest"))

        return about(f"secret {name}", read)

    def clock_skew(self) -> float | None:
        """By how many seconds the clock of Huawei Cloud is ahead of ours."""
        return self._api.exchange.skew

    def close(self) -> None:
        """Close the connections."""
        self._api.exchange.close()

    def _listed(self) -> set[str]:
        found: set[str] = set()
        marker = ""
        with self._api.exchange.time.within():
            while True:
                page = self._get("secrets", limit=str(_PAGE), **({"marker": marker} if marker else {}))
                entries, info = page.get("secrets"), page.get("page_info")
                if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
                    raise MalformedAnswer(f"{self._host}: the answer has no list of secrets")
                found |= {str(entry.get("name", "")) for entry in entries if entry.get("state", "ENABLED") == "ENABLED"}
                before, marker = marker, (info.get("next_marker") or "") if isinstance(info, Mapping) else ""
                if not marker:
                    return found - {""}
                if not isinstance(marker, str) or marker == before:
                    raise MalformedAnswer(f"{self._host}: a page leads to itself")

    def _get(self, path: str, **query: str) -> Mapping[str, Any]:
        with self._api.exchange.time.within():
            if not self._project:
                self._project = self._find_project()
            headers = {"x-project-id": self._project}
            request = Request("GET", self._host, f"/v1/{self._project}/{path}", query, headers)
            return self._ask(request)

    def _find_project(self) -> str:
        """Ask IAM for the project that has the name of the region."""
        host = f"iam.{self._region}.myhuaweicloud.com"
        found = self._ask(Request("GET", host, "/v3/projects", {"name": self._region})).get("projects")
        first = found[0] if isinstance(found, list) and found else None
        project = first.get("id") if isinstance(first, Mapping) else None
        if not isinstance(project, str) or not project.isalnum():
            raise AccessDenied(f"{host}: these keys have no project in the region")
        return project

    def _ask(self, request: Request) -> Mapping[str, Any]:
        status, top = self._api.send(request)
        if status == 200 and isinstance(top, dict):
            return top
        raise self._api.refusal(request.host, status, top.get("error_code") if isinstance(top, dict) else None)

    def _secret(self, name: str, answer: Mapping[str, Any]) -> Secret:
        version = answer.get("version")
        version = version if isinstance(version, Mapping) else {}
        about_it, text, data = (
            version.get("version_metadata"),
            version.get("secret_string"),
            version.get("secret_binary"),
        )
        about_it = about_it if isinstance(about_it, Mapping) else {}
        try:
            value = text.encode("utf-8", "replace") if isinstance(text, str) else _decoded(data)
        except (ValueError, binascii.Error):
            raise MalformedAnswer(f"{self._host}: the answer has no value") from None
        created, stages = about_it.get("create_time"), about_it.get("version_stages")
        return Secret(
            {name: value},
            str(about_it.get("id", "")),
            created / 1000 if isinstance(created, int) else None,
            tuple(sorted(map(str, stages))) if isinstance(stages, list) else (),
        )


def signer(settings: Settings) -> Any:
    """Return the function that signs requests."""

    def sign(request: Request) -> Mapping[str, str]:
        sent = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        headers = {**request.headers, "host": request.host, "x-sdk-date": sent}
        names = ";".join(sorted(headers))
        path = request.path if request.path.endswith("/") else f"{request.path}/"
        lines = (request.method, path, api.canonical_query(request.query), api.canonical_headers(headers))
        canonical = "\n".join((*lines, names, api.digest(request.body)))
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


def _decoded(data: Any) -> bytes:
    """Decode base64. Raises ValueError."""
    if not isinstance(data, str):
        raise ValueError("not a string")  # noqa: TRY004 - an error in data
    return base64.b64decode(data, validate=True)
