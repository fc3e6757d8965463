"""``secretstores.gcp.secretmanager``: the secrets of one GCP project, on Secret Manager's REST API.

Settings, names and shapes are Dapr's: a secret is one value, the payload of its version ``latest``. google-auth logs in
(`secretfs.stores.gcp.login`); two requests are all there is to the API, so there is no SDK for it.

Opening a store sends no request: wrong credentials show at the first read, or with `check`.
"""

import base64
import binascii
import contextlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

from urllib3.util import parse_url

from secretfs.errors import ConfigurationError, MalformedAnswer, SecretNotFound
from secretfs.settings import setting
from secretfs.store import Names, Secret, StoreContext
from secretfs.stores._http.body import parse_json
from secretfs.stores._http.exchange import Exchange
from secretfs.stores._http.failures import about
from secretfs.stores._http.trust import system_trust
from secretfs.stores.gcp.credentials import TOKEN_URI, checked_service_account, default_credentials, of_service_account
from secretfs.stores.gcp.failures import LacksRight, TokenRefused, refusal
from secretfs.stores.gcp.login import Login

LOCATION: Final = "secretfs/location"
ENDPOINT: Final = "secretfs/endpoint"
ANNOTATIONS: Final = frozenset({LOCATION, ENDPOINT})
"""``secretfs/location`` names the region of regional secrets; ``secretfs/endpoint`` is a URL to send requests to."""

_PAGE: Final = 5000
_SKEW: Final = 60.0
"""Seconds of difference between clocks that make a token that has just been signed one of another time."""
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")
_FULL: Final = re.compile(r"projects/([^/]+)/(?:locations/([^/]+)/)?secrets/([A-Za-z0-9_-]{1,255})")
_PROJECT: Final = re.compile(r"[a-z0-9.:-]{1,100}")
_PLACE: Final = re.compile(r"[a-z0-9-]{1,63}")


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """The properties of a ``secretstores.gcp.secretmanager`` component. There is no ``repr``: they hold credentials."""

    project_id: str = setting(
        "projectID", "Project of the secrets: its id, or its number.", aliases=("project_id",), required=True
    )
    type: str = setting("type", "With privateKeyID it must be service_account.")
    private_key_id: str = setting(
        "privateKeyID",
        "Id of the key of a service account. Without it, credentials are looked for: see below.",
        aliases=("private_key_id",),
    )
    private_key: str = setting("privateKey", "The key, as PEM text.", aliases=("private_key",))
    client_email: str = setting("clientEmail", "The address of the service account.", aliases=("client_email",))
    client_id: str = setting("clientID", "Not used.", aliases=("client_id",))
    auth_uri: str = setting("authURI", "Not used.", aliases=("auth_uri",))
    token_uri: str = setting(
        "tokenURI", "Not used: the key signs its own tokens.", default=TOKEN_URI, aliases=("token_uri",)
    )
    auth_provider: str = setting("authProviderX509CertURL", "Not used.", aliases=("auth_provider_x509_cert_url",))
    client_certificate: str = setting("clientX509CertURL", "Not used.", aliases=("client_x509_cert_url",))


@dataclass(frozen=True, slots=True)
class Place:
    """Where the secrets are."""

    address: str
    """The URL up to the host."""
    parent: str
    """``projects/P`` or ``projects/P/locations/L``."""


class SecretManagerStore:
    """The secrets of one project. There are no folders: an id takes no "/"."""

    multi_valued = False

    def __init__(self, place: Place, login: Login, exchange: Exchange) -> None:
        self._place = place
        self._login = login
        self._exchange = exchange

    def check(self) -> None:
        """List one name. An identity that may not list, but is known to Google, passes as well."""
        with contextlib.suppress(LacksRight):
            about("list of secrets", lambda: self._get("secrets", pageSize=1))

    def names(self, folder: str) -> Names:
        """List the ids of the secrets, up to 5000 with each request. Reads no values."""
        return Names() if folder else Names(frozenset(about("list of secrets", self._listed)))

    def fetch(self, name: str) -> Secret:
        """Read the version ``latest`` of one secret, by its id or by its full resource name, as Dapr lists it."""

        def read() -> Secret:
            answer = self._get(f"secrets/{self._id(name)}/versions/latest:access")
            return _secret(name, answer)

        return about(f"secret {name}", read)

    def clock_skew(self) -> float | None:
        """By how many seconds the clock of Google is ahead of ours."""
        return self._exchange.skew

    def close(self) -> None:
        """Close the connections."""
        self._exchange.close()

    def _id(self, name: str) -> str:
        full = _FULL.fullmatch(name)
        if full is not None:
            # The project is written as its id or as its number, which we do not know of each other.
            if (full[2] or "") != self._place.parent.partition("/locations/")[2]:
                raise SecretNotFound("it is in another location")
            return full[3]
        if not _ID.fullmatch(name):
            raise SecretNotFound("no name that Secret Manager takes")
        return name

    def _listed(self) -> set[str]:
        found: set[str] = set()
        token = ""
        while True:
            more = {"pageToken": token} if token else {}
            try:
                page = self._get("secrets", pageSize=_PAGE, **more)
            except SecretNotFound as error:
                raise MalformedAnswer(str(error)) from None
            entries = page.get("secrets", [])
            if not isinstance(entries, list):
                raise MalformedAnswer("the answer has no list of secrets")
            for entry in entries:
                match = _FULL.fullmatch(str(entry.get("name"))) if isinstance(entry, Mapping) else None
                if match is None:
                    raise MalformedAnswer("the answer has a secret without a name")
                found.add(match[3])
            before, token = token, page.get("nextPageToken") or ""
            if not token:
                return found
            if not isinstance(token, str) or token == before:
                raise MalformedAnswer("a page leads to itself")

    def _get(self, path: str, **query: str | int) -> Mapping[str, Any]:
        """Send a request, and again with a new token when that is refused. Raises `StoreError`."""
        url = f"{self._place.address}/v1/{self._place.parent}/{quote(path, safe='/:')}"
        if query:
            url += f"?{urlencode(query)}"
        with self._exchange.time.within():
            token = self._login.token()
            try:
                return self._ask(url, token)
            except TokenRefused:
                self._login.forget(token)
            try:
                return self._ask(url, self._login.token())
            except TokenRefused as error:
                skew = self._exchange.skew or 0.0
                if abs(skew) < _SKEW:
                    raise
                hint = f"the clock of this machine is {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead'}"
                raise TokenRefused(f"{error}: {hint}") from None

    def _ask(self, url: str, token: str) -> Mapping[str, Any]:
        answer = self._exchange.send("GET", url, {"Authorization": f"Bearer {token}", "Accept": "application/json"})
        top: Any = None
        with contextlib.suppress(ValueError, RecursionError):  # the first may carry the text
            top = parse_json(answer.body.decode())
        host = self._place.address.partition("//")[2]
        if answer.status != 200:
            raise refusal(host, answer.status, top)
        if not isinstance(top, dict):
            raise MalformedAnswer(f"{host}: the answer is not a JSON object")
        return top


def _secret(name: str, answer: Mapping[str, Any]) -> Secret:
    payload = answer.get("payload")
    data = payload.get("data", "") if isinstance(payload, Mapping) else None  # proto3 leaves out what is empty
    version = str(answer.get("name", "")).rpartition("/versions/")[2]
    if not isinstance(data, str):
        raise MalformedAnswer("the answer has no payload")
    try:
        value = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedAnswer("the payload is not base64") from None
    return Secret({name: value}, version)


def open_store(settings: Settings, context: StoreContext) -> SecretManagerStore:
    """Prepare the login and the connections; send no request. Raises `ConfigurationError` for what cannot work."""
    quiet_sdk()
    try:
        place = _place(settings.project_id, context.annotations)
        make = default_credentials
        if settings.private_key_id:
            info = checked_service_account(_service_account(settings))
            make = lambda: of_service_account(info)  # noqa: E731
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None
    exchange = Exchange(context.deadline, system_trust(context.component))
    return SecretManagerStore(place, Login(context.component, make, exchange), exchange)


def _place(project: str, annotations: Mapping[str, str]) -> Place:
    if not _PROJECT.fullmatch(project):
        raise ConfigurationError("projectID is neither the id of a project nor its number")
    location, endpoint = annotations.get(LOCATION, ""), annotations.get(ENDPOINT, "")
    if location and not _PLACE.fullmatch(location):
        raise ConfigurationError(f"{LOCATION} is not the name of a region")
    parent = f"projects/{project}/locations/{location}" if location else f"projects/{project}"
    address = endpoint.rstrip("/") or f"https://secretmanager.{f'{location}.rep.' if location else ''}googleapis.com"
    try:
        url = parse_url(address)
    except ValueError:
        url = parse_url("")
    if url.scheme not in ("http", "https") or not url.host or url.auth or url.path or url.query:
        raise ConfigurationError(f"{ENDPOINT} is not a URL such as https://secretmanager.googleapis.com")
    return Place(address, parent)


def _service_account(settings: Settings) -> Mapping[str, str]:
    return {
        "type": settings.type,
        "project_id": settings.project_id,
        "private_key_id": settings.private_key_id,
        "private_key": settings.private_key,
        "client_email": settings.client_email,
        "client_id": settings.client_id,
        "token_uri": settings.token_uri or TOKEN_URI,
    }


def quiet_sdk() -> None:
    """Silence the logs of the SDK, which quote answers. Failures become errors of the store."""
    logging.getLogger("google").setLevel(logging.CRITICAL + 1)
