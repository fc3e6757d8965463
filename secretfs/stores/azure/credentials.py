"""Credentials of the Key Vault store: Dapr's ways of logging in to Azure, in Dapr's order, on azure-identity.

dapr/components-contrib ``common/authentication/azure/auth.go`` is the model: a way joins the chain only when its inputs
exist. `secretfs.stores.azure.login` walks the chain.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from azure.core.credentials import AccessTokenInfo, TokenRequestOptions
from azure.identity import (
    AzureAuthorityHosts,
    AzureCliCredential,
    CertificateCredential,
    ClientSecretCredential,
    CredentialUnavailableError,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)

from secretfs.errors import (
    AccessDenied,
    ConfigurationError,
    MalformedAnswer,
    StoreError,
    StoreUnavailable,
)
from secretfs.stores.azure.login import Credential, CredentialSource, Explain, Unavailable
from secretfs.stores.azure.transport import RETRIES, DeadlineTransport, Outcome, unanswered

logger = logging.getLogger(__name__)

_IMDS = "http://169.254.169.254"
_PROBE = 1.0  # seconds that the identity endpoint of a virtual machine has to show that it is there
_CLOUD_SERVICE = ("IDENTITY_ENDPOINT", "IMDS_ENDPOINT", "MSI_ENDPOINT")

# https://learn.microsoft.com/entra/identity-platform/reference-error-codes
_FAULTS = {
    "7000215": "{secret} is not a secret of {client}",
    "7000222": "{secret} has expired",
    "700027": "{secret} is not registered with {client}, or has expired",
    "700016": "{client} is not known in {tenant}",
    "90002": "there is no such {tenant}",
    "900023": "{tenant} is neither a domain nor an id",
    "70021": "no federated credential of the application matches {secret}",
    "700211": "no federated credential of the application matches the issuer of {secret}",
    "700212": "no federated credential of the application matches the audience of {secret}",
    "700213": "no federated credential of the application matches the subject of {secret}",
    "700024": "{secret} has expired",
    "500011": "Key Vault is not known in {tenant}",
    "50034": "the account does not exist",
    "53003": "a conditional access policy forbids it",
}


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


# --- the ways ---


def credential_sources(
    component: str, identity: Identity, methods: str, transport: DeadlineTransport
) -> list[CredentialSource]:
    """Return the credential sources of a component, in order. Raises `ConfigurationError` when there is none."""
    wanted = _wanted(methods)
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

    return _checked(CredentialSource("client secret", make, _explain_principal("azureClientSecret")), identity)


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
    return _checked(CredentialSource("client certificate", make, _explain_principal(field)), identity)


def _certificate(identity: Identity) -> bytes:
    if not identity.certificate_file:
        return identity.certificate.encode()
    try:
        return Path(identity.certificate_file).read_bytes()
    except OSError as error:
        reason = error.strerror
    raise ConfigurationError(f"failed to read the certificate file ({identity.certificate_file}): {reason}")


def _workload_identity(_: Identity, transport: DeadlineTransport) -> CredentialSource:
    lacking = [
        name
        for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE")
        if not os.environ.get(name)
    ]
    if lacking:
        raise _NotGiven(f"workload identity: {', '.join(lacking)} not set in the environment")
    # The authority is AZURE_AUTHORITY_HOST, which is set with them, and not that of azureEnvironment: as in Dapr.
    explain = _explain_principal("the token in AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_ID", "AZURE_TENANT_ID")
    return _checked(
        CredentialSource("workload identity", lambda: WorkloadIdentityCredential(**_over(transport)), explain)
    )


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

    return _checked(CredentialSource("managed identity", make, _explain_managed(identity.client_id)))


def _azure_cli(_: Identity, transport: DeadlineTransport) -> CredentialSource:
    return CredentialSource("Azure CLI", lambda: _Cli(transport), _explain_cli, any_tenant=True)


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


class _Probed:
    """The managed identity of a virtual machine, asked for only where its endpoint answers."""

    def __init__(self, credential: Credential, transport: DeadlineTransport) -> None:
        self._credential = credential
        self._transport = transport
        self._is_there = False

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        if not self._is_there:
            host = os.environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST", _IMDS).strip("/")
            self._is_there = self._transport.answers(f"{host}/metadata/identity/oauth2/token", _PROBE)
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


# --- what failures mean ---


def _explain_principal(secret: str, client: str = "azureClientId", tenant: str = "azureTenantId") -> Explain:
    """Return a function that explains the failures of a service principal by the names of its fields."""

    def explain(error: Exception, outcome: Outcome) -> Exception:
        if isinstance(error, OSError):
            return StoreUnavailable(f"{secret}: {error.strerror}")
        failure = _transport_failure(outcome)
        if failure is not None:
            return failure
        code = _authority_code(error)
        if not code:
            return _no_token(outcome)
        fault = _FAULTS.get(code, "the login is refused").format(secret=secret, client=client, tenant=tenant)
        return AccessDenied(f"{outcome.host}: {fault} (AADSTS{code})")

    return explain


def _explain_managed(client_id: str) -> Explain:
    def explain(error: Exception, outcome: Outcome) -> Exception:
        if isinstance(error, requests.RequestException):  # Service Fabric, which does not use this transport
            return unanswered(Outcome("managed identity", error=error))
        if isinstance(error, OSError):  # Azure Arc
            return AccessDenied(f"managed identity: {error.filename}: {error.strerror}")
        if not _on_cloud_service():
            missing = _no_identity(error, outcome, client_id)
            if missing is not None:
                return missing
        return _transport_failure(outcome) or _no_token(outcome)

    return explain


def _no_identity(error: Exception, outcome: Outcome, client_id: str) -> Exception | None:
    """Explain why the endpoint of a virtual machine answered without a token."""
    match outcome.status:
        case 400 if client_id:
            return AccessDenied("azureClientId: the requested identity isn't assigned to this resource")
        case 400:
            return Unavailable("no identity is assigned to this resource")
        case 403 if isinstance(error, CredentialUnavailableError):  # Docker Desktop's proxy
            return Unavailable("no response from the IMDS endpoint")
        case 404 | 410:
            return StoreUnavailable(f"{outcome.host}: the identity endpoint is being updated ({outcome.status})")
    return None


_CLI_SAYS = {
    "Azure CLI not found on path": "az is not on the path",
    "Please run 'az login' to set up an account": "az login is needed",
}


def _explain_cli(error: Exception, _: Outcome) -> Exception:
    if isinstance(error, CredentialUnavailableError):
        return Unavailable(_CLI_SAYS.get(error.message, "az gives no answer"))
    code = _authority_code(error)
    return AccessDenied(f"Azure CLI: the login is refused{f' (AADSTS{code})' if code else ''}")


def _transport_failure(outcome: Outcome) -> StoreError | None:
    """Return the outage that made a login fail, if it was one."""
    if outcome.error is not None:
        return unanswered(outcome)
    if outcome.status == 429:
        return StoreUnavailable(f"{outcome.host}: too many requests (429)")
    if outcome.status >= 500:
        return StoreUnavailable(f"{outcome.host}: server error ({outcome.status})")
    return None


def _no_token(outcome: Outcome) -> StoreError:
    if outcome.status == 200:
        return MalformedAnswer(f"{outcome.host}: the answer is no token")
    status = f" ({outcome.status})" if outcome.status else ""
    return AccessDenied(f"{outcome.host or 'managed identity'}: the login is refused{status}")


def _authority_code(error: BaseException | None) -> str:
    """Find the AADSTS code of the authority in an error or its causes."""
    while error is not None:
        found = re.search(r"AADSTS([0-9]{1,9})\b", str(error))
        if found:
            return found[1]
        error = error.__cause__ or error.__context__
    return ""
