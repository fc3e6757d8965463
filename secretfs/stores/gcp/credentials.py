"""Credentials of the Secret Manager store: a service account in the component, or those that Google's libraries find.

The latter are the Application Default Credentials: the file that GOOGLE_APPLICATION_CREDENTIALS names, that of
``gcloud auth application-default login``, or the metadata server of a machine or of a pod with workload identity. Each
is made of what its file says now, when a token is needed; google-auth knows the protocols.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from google.auth import (
    aws,
    exceptions,
    external_account_authorized_user,
    identity_pool,
    impersonated_credentials,
    pluggable,
)
from google.oauth2 import credentials as user
from google.oauth2 import service_account

from secretfs.errors import ConfigurationError

SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
TOKEN_URI: Final = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address
_STS: Final = "https://sts.googleapis.com/v1/token"
_IMPERSONATE: Final = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{}:generateAccessToken"
_GCLOUD: Final = "~/.config/gcloud"
_JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
_AWS: Final = "urn:ietf:params:aws:token-type:aws4_request"

Credentials = Any
"""Credentials of google-auth, which has no types: ``refresh``, ``token``, ``expiry``."""


class NoCredentials(Exception):
    """There are none, or they cannot be used. The text says why, and nothing that is in a file."""


def of_service_account(info: Mapping[str, str]) -> Credentials:
    """Make the credentials of a key. They sign their own tokens (JWT), so no token endpoint is asked: as in Dapr.

    Raises ValueError for a key that is none.
    """
    key = info["private_key"]
    if "\\n" in key and "\n" not in key.strip():  # as it stands in the JSON file
        key = key.replace("\\n", "\n")
    try:
        return service_account.Credentials.from_service_account_info(
            {**info, "private_key": key}, scopes=SCOPES, always_use_jwt_access=True
        )
    except (ValueError, exceptions.GoogleAuthError):
        pass
    raise ValueError("it is no RSA key in PEM")


class _TokenFile(identity_pool.SubjectTokenSupplier):  # type: ignore[misc]  # google-auth has no types
    """The token in a file, as it is then. That of google-auth says of a missing file that the login is refused."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def get_subject_token(self, *_: object) -> str:
        """Read it. Raises OSError."""
        return self._path.read_text("utf-8")


def of_token(file: str, provider: str, email: str) -> Credentials:
    """Make the credentials that the token in a file is exchanged for, at a provider of workload identities.

    With the address of a service account they are those of that account.
    """
    return identity_pool.Credentials(
        audience=provider,
        subject_token_type=_JWT,
        token_url=_STS,
        subject_token_supplier=_TokenFile(file),
        service_account_impersonation_url=_IMPERSONATE.format(email) if email else None,
        scopes=SCOPES,
    )


def default_credentials() -> Credentials:
    """Make the Application Default Credentials. Raises `NoCredentials`, and sends no request."""
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named:
        return _of_file("GOOGLE_APPLICATION_CREDENTIALS", Path(named))
    home = os.path.expanduser(_GCLOUD)  # noqa: PTH111 - that of Path raises where there is no home directory
    file = Path(os.environ.get("CLOUDSDK_CONFIG") or home, "application_default_credentials.json")
    if file.exists():
        return _of_file("the credentials of gcloud", file)
    # Imported here, because it takes the package requests, and 0.1 s.
    from google.auth import compute_engine  # noqa: PLC0415

    return compute_engine.Credentials(scopes=SCOPES)


def _of_file(what: str, file: Path) -> Credentials:
    try:
        info = json.loads(file.read_bytes())
    except OSError as error:
        raise NoCredentials(f"{what}: {error.strerror}") from None
    except ValueError:
        raise NoCredentials(f"{what}: not JSON") from None
    make = _KINDS.get(info.get("type", "")) if isinstance(info, dict) else None
    if make is None:
        raise NoCredentials(f"{what}: a type of credentials that is not known")
    try:
        return make(info)
    except (ValueError, KeyError, TypeError, AttributeError, exceptions.GoogleAuthError):
        pass
    raise NoCredentials(f"{what}: they are incomplete or wrong")


def _service_account(info: Mapping[str, Any]) -> Credentials:
    return of_service_account({"token_uri": TOKEN_URI, **info})


def _authorized_user(info: Mapping[str, Any]) -> Credentials:
    return user.Credentials.from_authorized_user_info(info, scopes=SCOPES)


def _external_account(info: Mapping[str, Any]) -> Credentials:
    """Make those of a workload identity federation: another provider's token is exchanged for one of Google."""
    if info.get("subject_token_type") == _AWS:
        kind = aws.Credentials
    elif "executable" in info.get("credential_source", {}):
        kind = pluggable.Credentials
    else:
        kind = identity_pool.Credentials
    return kind.from_info(info, scopes=SCOPES)


def _external_user(info: Mapping[str, Any]) -> Credentials:
    return external_account_authorized_user.Credentials.from_info(info)


def _impersonated(info: Mapping[str, Any]) -> Credentials:
    return impersonated_credentials.Credentials.from_impersonated_service_account_info(info, scopes=SCOPES)


_KINDS: Final[Mapping[str, Callable[[Mapping[str, Any]], Credentials]]] = {
    "service_account": _service_account,
    "authorized_user": _authorized_user,
    "external_account": _external_account,
    "external_account_authorized_user": _external_user,
    "impersonated_service_account": _impersonated,
}


def checked_service_account(info: Mapping[str, str]) -> Mapping[str, str]:
    """Return the fields of a service account, if they can be one. Raises `ConfigurationError`, as Dapr words it."""
    for name in ("type", "private_key", "client_email"):
        if not info[name]:
            raise ConfigurationError(f"missing property `{name}` in metadata")
    if info["type"] != "service_account":
        raise ConfigurationError("type is not service_account")
    try:
        of_service_account(info)
    except ValueError as error:
        raise ConfigurationError(f"privateKey: {error}") from None
    return info
