"""``secretstores.gcp.secretmanager``: the secrets of one GCP project, on Secret Manager's REST API.

Settings, names and shapes are Dapr's: a secret is one value, the payload of its version ``latest``. google-auth logs in
(`secretfs.stores.gcp.login`); two requests are all there is to the API, so there is no SDK for it.

Opening a store sends no request: wrong credentials show at the first read, or with `check`.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

from secretfs.errors import ConfigurationError, MalformedAnswer, SecretNotFound
from secretfs.settings import setting
from secretfs.store import Secret, StoreContext
from secretfs.stores._cloud import CloudStore, Page, decoded, entries
from secretfs.stores._http.address import ENDPOINT, endpoint
from secretfs.stores._http.exchange import Exchange
from secretfs.stores._http.failures import NotKnown
from secretfs.stores._http.trust import system_trust
from secretfs.stores._token_file import TOKEN_FILE, token_file
from secretfs.stores.gcp.credentials import (
    TOKEN_URI,
    Credentials,
    checked_service_account,
    default_credentials,
    of_service_account,
    of_token,
)
from secretfs.stores.gcp.failures import refusal
from secretfs.stores.gcp.login import Login

LOCATION: Final = "secretfs/location"
PROVIDER: Final = "secretfs/workload-identity-provider"
ANNOTATIONS: Final = frozenset({LOCATION, ENDPOINT, TOKEN_FILE, PROVIDER})
"""``secretfs/location`` names the region of regional secrets; ``secretfs/endpoint`` is a URL to send requests to.

``secretfs/workload-identity-provider`` is who takes the token of ``secretfs/token-file``: the audience of the exchange.
"""

_SKEW: Final = 60.0
"""Seconds of difference between clocks that make a token that has just been signed one of another time."""
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")
_FULL: Final = re.compile(r"projects/([^/]+)/(?:locations/([^/]+)/)?secrets/([A-Za-z0-9_-]{1,255})")
_PROJECT: Final = re.compile(r"[a-z0-9.:-]{1,100}")
_PLACE: Final = re.compile(r"[a-z0-9-]{1,63}")
_PROVIDER: Final = re.compile(r"(?://iam\.googleapis\.com/|identitynamespace:)[A-Za-z0-9/:._-]{1,500}")
_EMAIL: Final = re.compile(r"[A-Za-z0-9.@_-]{0,300}")


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
    client_email: str = setting(
        "clientEmail",
        "The address of the service account: that of the key, or the one to act as with secretfs/token-file.",
        aliases=("client_email",),
    )
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


class SecretManagerStore(CloudStore):
    """The secrets of one project. There are no folders: an id takes no "/"."""

    page_size = 5000

    def __init__(self, place: Place, login: Login, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._place = place
        self._login = login

    def _page(self, mark: str, size: int) -> Page:
        page = self._get("secrets", pageSize=size, **({"pageToken": mark} if mark else {}))
        found = [_FULL.fullmatch(str(entry.get("name"))) for entry in entries({"secrets": [], **page}, "secrets")]
        names = [match[3] for match in found if match]
        if len(names) < len(found):
            raise MalformedAnswer("the answer has a secret without a name")
        return names, page.get("nextPageToken")

    def _read(self, name: str) -> Secret:
        """Read the version ``latest`` of one secret, by its id or by its full resource name, as Dapr lists it."""
        return _secret(name, self._get(f"secrets/{self._id(name)}/versions/latest:access"))

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

    def _get(self, path: str, **query: str | int) -> Mapping[str, Any]:
        """Send a request, and again with a new token when that is refused. Raises `StoreError`."""
        url = f"{self._place.address}/v1/{self._place.parent}/{quote(path, safe='/:')}"
        if query:
            url += f"?{urlencode(query)}"
        token = self._login.token()
        try:
            return self._send(url, token)
        except NotKnown:
            self._login.forget(token)
        try:
            return self._send(url, self._login.token())
        except NotKnown as error:
            skew = self._exchange.clock.skew or 0.0
            if abs(skew) < _SKEW:
                raise
            hint = f"the clock of this machine is {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead'}"
            raise NotKnown(f"{error}: {hint}") from None

    def _send(self, url: str, token: str) -> Mapping[str, Any]:
        answer = self._exchange.send("GET", url, {"Authorization": f"Bearer {token}", "Accept": "application/json"})
        top, host = answer.json(), self._place.address.partition("//")[2]
        if answer.status != 200:
            raise refusal(host, answer.status, top)
        if not isinstance(top, dict):
            raise MalformedAnswer(f"{host}: the answer is not a JSON object")
        return top


def _secret(name: str, answer: Mapping[str, Any]) -> Secret:
    payload = answer.get("payload")
    data = payload.get("data", "") if isinstance(payload, Mapping) else None  # proto3 leaves out what is empty
    version = str(answer.get("name", "")).rpartition("/versions/")[2]
    return Secret({name: decoded(data)}, version)


def open_store(settings: Settings, context: StoreContext) -> SecretManagerStore:
    """Prepare the login and the connections; send no request. Raises `ConfigurationError` for what cannot work."""
    quiet_sdk()
    try:
        place = _place(settings.project_id, context.annotations)
        make = default_credentials
        ways = {"privateKeyID": settings.private_key_id, "privateKey": settings.private_key}
        token = token_file(context.annotations, ways)
        provider = context.annotations.get(PROVIDER, "")
        if token or provider:
            make = _federation(token, provider, settings.client_email)
        elif settings.private_key_id:
            info = checked_service_account(_service_account(settings))
            make = lambda: of_service_account(info)  # noqa: E731
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None
    exchange = Exchange(context.deadline, system_trust(context.component))
    return SecretManagerStore(place, Login(context.component, make, exchange), exchange)


def _federation(token: str, provider: str, email: str) -> Callable[[], Credentials]:
    """Return what makes credentials of a token. Raises `ConfigurationError`."""
    if not (token and provider):
        raise ConfigurationError(f"{TOKEN_FILE} and {PROVIDER} count together only")
    if not _PROVIDER.fullmatch(provider):
        raise ConfigurationError(
            f"{PROVIDER} is not the name of a provider such as //iam.googleapis.com/projects/123456789/locations/"
            "global/workloadIdentityPools/pool/providers/cluster"
        )
    if not _EMAIL.fullmatch(email):
        raise ConfigurationError("clientEmail is not the address of a service account")
    return lambda: of_token(token, provider, email)


def _place(project: str, annotations: Mapping[str, str]) -> Place:
    if not _PROJECT.fullmatch(project):
        raise ConfigurationError("projectID is neither the id of a project nor its number")
    location = annotations.get(LOCATION, "")
    if location and not _PLACE.fullmatch(location):
        raise ConfigurationError(f"{LOCATION} is not the name of a region")
    parent = f"projects/{project}/locations/{location}" if location else f"projects/{project}"
    host = f"secretmanager.{f'{location}.rep.' if location else ''}googleapis.com"
    address = endpoint(annotations, "https://secretmanager.googleapis.com") or f"https://{host}"
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
