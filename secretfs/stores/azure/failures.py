"""What failures of a login to Azure mean. Codes of the authority are known; texts of answers are never shown."""

import re

import requests
from azure.identity import CredentialUnavailableError

from secretfs.errors import AccessDenied, MalformedAnswer, StoreError, StoreUnavailable
from secretfs.stores.azure.login import Explain, Unavailable
from secretfs.stores.azure.transport import Outcome, unanswered

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


def explain_principal(secret: str, client: str = "azureClientId", tenant: str = "azureTenantId") -> Explain:
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


def explain_managed(client_id: str, *, on_machine: bool) -> Explain:
    """Return a function that explains the failures of a managed identity: a machine's (IMDS), or a cloud service's."""

    def explain(error: Exception, outcome: Outcome) -> Exception:
        if isinstance(error, requests.RequestException):  # Service Fabric, which does not use this transport
            return unanswered(Outcome("managed identity", error=error))
        if isinstance(error, OSError):  # Azure Arc
            return AccessDenied(f"managed identity: {error.filename}: {error.strerror}")
        if on_machine:
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


def explain_cli(error: Exception, _: Outcome) -> Exception:
    """Explain the failures of the Azure CLI."""
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
