"""``secretstores.azure.keyvault``: the secrets of one Azure Key Vault, on the official SDK.

Settings, names and shapes are Dapr's: a secret is one value, the newest version counts, only enabled ones are listed.
`secretfs.stores.azure.credentials` has the identities, `secretfs.stores.azure.login` logs in,
`secretfs.stores.azure.transport` carries the requests.

Opening a store sends no request: a wrong vault or login shows at the first read, or with `check`.
"""

import logging
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar, cast

from azure.core.credentials import TokenCredential
from azure.core.exceptions import AzureError, HttpResponseError
from azure.keyvault.secrets import KeyVaultSecret, SecretClient

from secretfs.errors import ConfigurationError, MalformedAnswer, SecretNotFound, StoreError
from secretfs.settings import setting
from secretfs.store import LARGEST_LISTING, CachedRead, Names, Secret, StoreContext
from secretfs.stores._token_file import TOKEN_FILE, token_file
from secretfs.stores.azure.credentials import CLOUDS, Cloud, Identity, cloud, credential_sources
from secretfs.stores.azure.login import Login
from secretfs.stores.azure.transport import RETRIES, DeadlineTransport, lacks_right, refusal, retry_after, unanswered

T = TypeVar("T")

ANNOTATIONS: Final = frozenset({TOKEN_FILE})

_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")
_SETTLED = 600.0
"""Seconds after a change in which its time does not identify it: more than two clocks that allow a login differ."""
_VAULT_NAME = re.compile(r"[0-9A-Za-z-]{1,63}")


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """The properties of a ``secretstores.azure.keyvault`` component. There is no ``repr``: they hold credentials."""

    vault_name: str = setting(
        "vaultName", "Name of the vault. A host name such as myvault.vault.azure.cn also says the cloud.", required=True
    )
    tenant_id: str = setting("azureTenantId", "Tenant of the service principal.", aliases=("spnTenantId", "tenantId"))
    client_id: str = setting(
        "azureClientId",
        "Id of the service principal, or of a managed identity that is assigned to the machine.",
        aliases=("spnClientId", "clientId"),
    )
    client_secret: str = setting(
        "azureClientSecret", "Secret of the service principal.", aliases=("spnClientSecret", "clientSecret")
    )
    certificate_file: str = setting(
        "azureCertificateFile",
        "A PEM or PFX file with the certificate of the service principal and its RSA key. Before azureCertificate.",
        aliases=("spnCertificateFile",),
    )
    certificate: str = setting("azureCertificate", "The same as PEM text.", aliases=("spnCertificate",))
    certificate_password: str = setting(
        "azureCertificatePassword", "Password of a PFX file.", aliases=("spnCertificatePassword",)
    )
    environment: str = setting(
        "azureEnvironment",
        "The cloud: AzurePublicCloud, AzureChinaCloud or AzureUSGovernmentCloud.",
        aliases=("azureCloud",),
        guards=True,
    )
    auth_methods: str = setting(
        "azureAuthMethods",
        "Which ways to log in to try, in this order, with commas between; see below.",
        aliases=("azureADAuthMethods", "entraIDAuthMethods", "microsoftEntraIDAuthMethods"),
    )


class KeyVaultStore:
    """The secrets of one vault. There are no folders: Key Vault allows no "/" in names."""

    multi_valued = False

    def __init__(self, address: str, login: Login, transport: DeadlineTransport) -> None:
        self._address = address
        self._login = login
        self._transport = transport
        self._closed = threading.Event()
        self._pages = math.inf
        """The number of requests of the last complete listing; infinite before the first."""
        self._client = SecretClient(
            address, cast("TokenCredential", login), transport=transport, permit_redirects=False, **RETRIES
        )

    def check(self) -> None:
        """List one name. An identity that may not list, but is known to the vault, passes as well."""

        def first_page() -> None:
            try:
                next(self._client.list_properties_of_secrets(max_page_size=1).by_page(), None)
            except HttpResponseError as error:
                if not lacks_right(error):
                    raise

        self._ask("list of secrets", first_page)

    def names(self, folder: str) -> Names:
        """List the enabled secrets, page by page. Reads no values."""
        if folder:
            return Names()
        return Names(frozenset(self._ask("list of secrets", self._enabled)))

    def unchanged(self, known: Mapping[str, CachedRead]) -> frozenset[str]:
        """Compare the times of change in a listing, if that takes fewer requests than to read the secrets.

        These times are whole seconds: a secret that was read soon after it had changed may have changed once more.
        """
        if len(known) <= self._pages:
            return frozenset()
        self._pages = math.inf  # no more of this until a listing has come to its end
        changed = self._ask("list of secrets", self._enabled)

        def same(name: str, it: CachedRead) -> bool:
            modified = it.secret.modified
            return modified is not None and modified + _SETTLED < it.read_at and changed.get(name) == modified

        return frozenset(name for name, it in known.items() if same(name, it))

    def fetch(self, name: str) -> Secret:
        """Read the newest version of one secret. One that is disabled is not found, as it is not listed."""
        if not _NAME.fullmatch(name):
            raise SecretNotFound(f"secret {name}: no name that Key Vault takes")
        return self._ask(f"secret {name}", lambda: _secret(name, self._client.get_secret(name)))

    def close(self) -> None:
        """Close the connections and end all waits."""
        self._closed.set()
        self._client.close()
        self._transport.shut()

    def _enabled(self) -> dict[str, float | None]:
        """Return the names of all enabled secrets with the time of their last change."""
        pages, number = [], 0
        for page in self._client.list_properties_of_secrets().by_page():
            pages.append(list(page))
            number += len(pages[-1])
            if number > LARGEST_LISTING:
                raise MalformedAnswer(f"{self._address}: more than {LARGEST_LISTING} names are listed")
        self._pages = len(pages)
        return {item.name: _time(item.updated_on) for page in pages for item in page if item.enabled and item.name}

    def _ask(self, subject: str, question: Callable[[], T]) -> T:
        """Ask the vault, within the deadline. Errors start with ``subject``."""
        try:
            with self._transport.time.within():
                return self._persist(question)
        except StoreError as error:
            raise type(error)(f"{subject}: {error}") from None

    def _persist(self, question: Callable[[], T]) -> T:
        """Ask; repeat after a pause that the vault asks for, and once with a new token when it refuses the old one."""
        logged_in_again = False
        while True:
            generation = self._login.generation
            self._transport.forget()
            try:
                return question()
            except HttpResponseError as error:
                failure = self._meaning(error)
                if error.status_code == 401 and not logged_in_again:
                    logged_in_again = True
                    self._login.forget(generation)
                    continue
                if self._paused(error):
                    continue
            except AzureError:
                failure = unanswered(self._transport.outcome)
            except (AttributeError, LookupError, TypeError, ValueError):
                # The SDK's models are made of whatever came. A challenge for another service is a ValueError, too.
                failure = MalformedAnswer(f"{self._address}: not an answer of Key Vault")
            raise failure  # here, where no error is being handled whose text may quote an answer

    def _meaning(self, error: HttpResponseError) -> StoreError:
        if self._transport.outcome.error is not None:
            return unanswered(self._transport.outcome)
        return refusal(self._address, error)

    def _paused(self, error: HttpResponseError) -> bool:
        """Wait for the pause that a throttling server asks for, if that leaves time for an answer."""
        pause = retry_after(error) if error.status_code == 429 else None
        if pause is None or pause >= self._transport.time.left():
            return False
        return not self._closed.wait(pause)


def open_store(settings: Settings, context: StoreContext) -> KeyVaultStore:
    """Prepare the login and the connections; send no request. Raises `ConfigurationError` for what cannot work."""
    quiet_sdks()
    transport = DeadlineTransport(context.component, context.deadline)
    try:
        name, place = vault(settings)
        identity = Identity(
            place,
            settings.tenant_id,
            settings.client_id,
            settings.client_secret,
            settings.certificate_file,
            settings.certificate,
            settings.certificate_password,
            token_file(context.annotations, _other_ways(settings)),
        )
        chain = credential_sources(context.component, identity, settings.auth_methods, transport)
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None
    login = Login(context.component, chain, transport)
    return KeyVaultStore(f"https://{name}.{place.suffix}", login, transport)


def _other_ways(settings: Settings) -> dict[str, str]:
    methods = settings.auth_methods.strip().lower()
    return {
        "azureClientSecret": settings.client_secret,
        "azureCertificateFile": settings.certificate_file,
        "azureCertificate": settings.certificate,
        "azureAuthMethods": "" if methods in ("workloadidentity", "wi") else methods,
    }


def vault(settings: Settings) -> tuple[str, Cloud]:
    """Return the name of the vault and its cloud. A host name determines both and overrides azureEnvironment."""
    name = settings.vault_name
    for known in CLOUDS:
        if name.endswith(f".{known.suffix}"):
            name, place = name.removesuffix(f".{known.suffix}").removeprefix("https://"), known
            break
    else:
        place = cloud(settings.environment)
    if not _VAULT_NAME.fullmatch(name):
        raise ConfigurationError("vaultName is neither the name of a vault nor its host name")
    return name, place


def quiet_sdks() -> None:
    """Silence the logs of the SDKs, whose texts quote answers. Failures become errors of the store."""
    for sdk in ("azure", "msal"):
        logging.getLogger(sdk).setLevel(logging.CRITICAL + 1)


def _secret(name: str, given: KeyVaultSecret) -> Secret:
    if given.id is None:
        raise ValueError("every secret has an id")
    value = (given.value or "").encode()
    return Secret({name: value}, given.properties.version or "", _time(given.properties.updated_on))


def _time(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
