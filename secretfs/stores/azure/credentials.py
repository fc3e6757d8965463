"""Credentials of the Key Vault store: Dapr's ways of logging in to Azure, in Dapr's order, on azure-identity.

dapr/components-contrib ``common/authentication/azure/auth.go`` is the model: a way joins the chain only when its inputs
exist. `secretfs.stores.azure.login` walks the chain.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from azure.core.credentials import AccessTokenInfo, TokenRequestOptions
from azure.identity import (
    AzureAuthorityHosts,
    AzureCliCredential,
    CertificateCredential,
    ClientAssertionCredential,
    ClientSecretCredential,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)

from secretfs.errors import ConfigurationError
from secretfs.stores._token_file import TOKEN_FILE
from secretfs.stores.azure.failures import explain_cli, explain_managed, explain_principal
from secretfs.stores.azure.login import Credential, CredentialSource, Unavailable
from secretfs.stores.azure.transport import RETRIES, DeadlineTransport

logger = logging.getLogger(__name__)

_IMDS = "http://169.254.169.254"
_PROBE = 1.0  # seconds that the identity endpoint of a virtual machine has to show that it is there
_CLOUD_SERVICE = ("IDENTITY_ENDPOINT", "IMDS_ENDPOINT", "MSI_ENDPOINT")


@dataclass(frozen=True, slots=True)
class Cloud:
    """A cloud of Azure."""

    suffix: str
    """The domain of its vaults."""
    authority: str


_PUBLIC = Cloud("vault.azure.net", AzureAuthorityHosts.AZURE_PUBLIC_CLOUD)
_CHINA = Cloud("vault.azure.cn", AzureAuthorityHosts.AZURE_CHINA)
_GOVERNMENT = Cloud("vault.usgovcloudapi.net", AzureAuthorityHosts.AZURE_GOVERNMENT)
CLOUDS = (_PUBLIC, _CHINA, _GOVERNMENT)
_CLOUD_NAMES = {
    "": _PUBLIC, "azurepubliccloud": _PUBLIC, "azurepublic": _PUBLIC,
    "azurechinacloud": _CHINA, "azurechina": _CHINA,
    "azureusgovernmentcloud": _GOVERNMENT, "azureusgovernment": _GOVERNMENT,
}  # fmt: skip


def cloud(name: str) -> Cloud:
    """Return the cloud of a name. Raises `ConfigurationError`."""
    try:
        return _CLOUD_NAMES[name.lower()]
    except KeyError:
        raise ConfigurationError(f"invalid Azure cloud: {name}") from None


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """The identity that a component declares. It holds credentials, so it has no ``repr``."""

    cloud: Cloud
    tenant_id: str = ""
    client_id: str = ""
    client_secret: str = ""
    certificate_file: str = ""
    certificate: str = ""
    certificate_password: str = ""
    token_file: str = ""
    """The path of a token with which a federated credential of the application logs in; no other way counts then."""


# --- the ways ---


def credential_sources(
    component: str, identity: Identity, methods: str, transport: DeadlineTransport
) -> list[CredentialSource]:
    """Return the credential sources of a component, in order. Raises `ConfigurationError` when there is none."""
    wanted = ["workloadidentity"] if identity.token_file else _wanted(methods)
    found: list[CredentialSource] = []
    reasons: list[str] = []
    for name in wanted:
        try:
            found.append(_SOURCES[name](identity, transport))
        except ConfigurationError as error:
            reasons.append(str(error))
            if not isinstance(error, _NotGiven):
                logger.warning("%s: %s", component, error)
    if not found:
        raise ConfigurationError(f"no suitable token provider for Azure AD; errors: {'; '.join(reasons)}")
    return found


def _wanted(methods: str) -> list[str]:
    if not methods.strip():
        return [name for name in _SOURCES if name != "commandlineinterface" or not _on_cloud_service()]
    wanted = []
    for word in methods.strip().lower().split(","):
        name = _SHORT.get(word.strip(), word.strip())
        if name == "none":
            raise ConfigurationError("all Azure auth methods have been disabled with auth method 'None'")
        if name not in _SOURCES:
            raise ConfigurationError(f"invalid Azure auth method: {name}")
        wanted.append(name)
    return wanted


class _NotGiven(ConfigurationError):
    """A source whose inputs are missing: it is left out without a message."""


def _client_secret(identity: Identity, transport: DeadlineTransport) -> CredentialSource:
    if not (identity.client_id and identity.client_secret and identity.tenant_id):
        raise _NotGiven("parameters clientId, clientSecret, and tenantId must all be present")

    def make() -> Credential:
        return ClientSecretCredential(
            identity.tenant_id, identity.client_id, identity.client_secret, **_directly(identity, transport)
        )

    return _checked(CredentialSource("client secret", make, explain_principal("azureClientSecret")), identity)


def _client_certificate(identity: Identity, transport: DeadlineTransport) -> CredentialSource:
    if not (identity.certificate_file or identity.certificate):
        raise _NotGiven("missing client certificate")
    field = "azureCertificateFile" if identity.certificate_file else "azureCertificate"

    def make() -> Credential:
        data = _certificate(identity)
        password = None if b"-----BEGIN" in data else identity.certificate_password or None
        try:
            return CertificateCredential(
                identity.tenant_id, identity.client_id, certificate_data=data, password=password,
                **_directly(identity, transport),
            )  # fmt: skip
        except (ValueError, TypeError):
            pass
        raise ConfigurationError(f"{field}: no certificate with an RSA key in PEM or PKCS#12, or a wrong password")

    if not (identity.client_id and identity.tenant_id):
        raise ConfigurationError(f"{field}: azureClientId and azureTenantId must be given with it")
    return _checked(CredentialSource("client certificate", make, explain_principal(field)), identity)


def _certificate(identity: Identity) -> bytes:
    if not identity.certificate_file:
        return identity.certificate.encode()
    try:
        return Path(identity.certificate_file).read_bytes()
    except OSError as error:
        reason = error.strerror
    raise ConfigurationError(f"failed to read the certificate file ({identity.certificate_file}): {reason}")


def _workload_identity(identity: Identity, transport: DeadlineTransport) -> CredentialSource:
    if identity.token_file:
        return _given_token(identity, transport)
    lacking = [
        name
        for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE")
        if not os.environ.get(name)
    ]
    if lacking:
        raise _NotGiven(f"workload identity: {', '.join(lacking)} not set in the environment")
    # The authority is AZURE_AUTHORITY_HOST, which is set with them, and not that of azureEnvironment: as in Dapr.
    explain = explain_principal("the token in AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_ID", "AZURE_TENANT_ID")
    return _checked(
        CredentialSource("workload identity", lambda: WorkloadIdentityCredential(**_over(transport)), explain)
    )


def _given_token(identity: Identity, transport: DeadlineTransport) -> CredentialSource:
    if not (identity.client_id and identity.tenant_id):
        raise _NotGiven(f"{TOKEN_FILE} takes an application: give azureClientId and azureTenantId")

    def make() -> Credential:
        # WorkloadIdentityCredential would go on with a token for ten minutes that has been replaced.
        read = partial(Path(identity.token_file).read_text, "utf-8")
        return ClientAssertionCredential(identity.tenant_id, identity.client_id, read, **_directly(identity, transport))

    explain = explain_principal(f"the token of {TOKEN_FILE}")
    return _checked(CredentialSource("workload identity", make, explain), identity)


def _spiffe(identity: Identity, _: DeadlineTransport) -> CredentialSource:
    if not (identity.client_id and identity.tenant_id):
        raise _NotGiven("parameters clientId and tenantId must be present for SPIFFE workload identity")

    def make() -> Credential:
        raise Unavailable("there is no source of SPIFFE identities here; in Dapr it is the sidecar's own")

    return CredentialSource("SPIFFE workload identity", make, lambda error, _: error)


def _managed_identity(identity: Identity, transport: DeadlineTransport) -> CredentialSource:
    def make() -> Credential:
        # Underscore or not: DefaultAzureCredential says it, too. Workload identity is a way of its own.
        credential = ManagedIdentityCredential(
            client_id=identity.client_id or None, _exclude_workload_identity_credential=True, **_over(transport)
        )
        return credential if _on_cloud_service() else _Probed(credential, transport)

    explain = explain_managed(identity.client_id, on_machine=not _on_cloud_service())
    return _checked(CredentialSource("managed identity", make, explain))


def _azure_cli(_: Identity, transport: DeadlineTransport) -> CredentialSource:
    return CredentialSource("Azure CLI", lambda: _Cli(transport), explain_cli, any_tenant=True)


_SOURCES: Mapping[str, Callable[[Identity, DeadlineTransport], CredentialSource]] = {
    "clientcredentials": _client_secret,
    "clientcertificate": _client_certificate,
    "workloadidentity": _workload_identity,
    "spiffeworkloadidentity": _spiffe,
    "managedidentity": _managed_identity,
    "commandlineinterface": _azure_cli,
}
_SHORT = dict(zip(("creds", "cert", "wi", "spiffe", "mi", "cli"), _SOURCES, strict=True))


def _checked(source: CredentialSource, principal: Identity | None = None) -> CredentialSource:
    """Create the credential once, to find mistakes in its inputs. Raises `ConfigurationError`."""
    if principal is not None and not re.fullmatch(r"[A-Za-z0-9.-]+", principal.tenant_id):
        raise ConfigurationError(f"{source.name}: azureTenantId is neither a domain nor an id")
    try:
        source.try_inputs()
    except ValueError as error:
        reason = str(error).partition(". ")[0]
        raise ConfigurationError(f"{source.name}: {reason}") from None
    return source


def _over(transport: DeadlineTransport) -> dict[str, Any]:
    return {"transport": transport, **RETRIES}


def _directly(identity: Identity, transport: DeadlineTransport) -> dict[str, Any]:
    # The three authorities are known. Discovery would ask the public cloud about those of the others.
    return {"authority": identity.cloud.authority, "disable_instance_discovery": True, **_over(transport)}


def _on_cloud_service() -> bool:
    return any(os.environ.get(name) for name in _CLOUD_SERVICE)


def on_virtual_machine() -> bool:
    """Whether nothing says that this is not one: neither a cloud service nor a pod with a workload identity."""
    return not (_on_cloud_service() or os.environ.get("AZURE_FEDERATED_TOKEN_FILE"))


def metadata_host() -> str:
    """Return the address of a virtual machine's metadata."""
    return os.environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST", _IMDS).strip("/")


class _Probed:
    """The managed identity of a virtual machine, asked for only where its endpoint answers."""

    def __init__(self, credential: Credential, transport: DeadlineTransport) -> None:
        self._credential = credential
        self._transport = transport
        self._is_there = False

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        if not self._is_there:
            self._is_there = self._transport.answers(f"{metadata_host()}/metadata/identity/oauth2/token", _PROBE)
        if not self._is_there:
            raise Unavailable("no response from the IMDS endpoint")
        return self._credential.get_token_info(*scopes, options=options)


class _Cli:
    """The Azure CLI, which gets the time that is left."""

    def __init__(self, transport: DeadlineTransport) -> None:
        self._transport = transport

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        cli = AzureCliCredential(process_timeout=max(1, int(self._transport.time.remaining())))
        token: AccessTokenInfo = cli.get_token_info(*scopes, options=options)
        return token
