"""What proves to somebody else which service account this is: a JWT, signed here or by the metadata server."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.auth import jwt

from secretfs.errors import ConfigurationError
from secretfs.stores._http.exchange import Exchange
from secretfs.stores.gcp.credentials import of_service_account
from secretfs.stores.gcp.login import SDK_ERRORS, Transport, meaning


def read_key(path: str) -> Mapping[str, Any]:
    """Read the key of a service account. Raises `ConfigurationError`."""
    reason = "not the key of a service account in JSON"
    try:
        info = json.loads(Path(path).read_bytes())
        of_service_account(info)
    except OSError as error:
        reason = error.strerror or "unreadable"
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    else:
        return dict(info)
    raise ConfigurationError(f"{path}: {reason}")


def sign(key: Mapping[str, Any], audience: str, lifetime: int) -> str:
    """Return a JWT for an audience, good for ``lifetime`` seconds."""
    account = of_service_account(key)
    claims = {"sub": account.service_account_email, "aud": audience, "exp": int(time.time()) + lifetime}
    return str(jwt.encode(account.signer, claims).decode())


def of_machine(exchange: Exchange, audience: str) -> str:
    """Return a JWT for an audience, from the metadata server of the machine or the pod. Raises `StoreError`."""
    # Imported here, because it takes the package requests, and 0.1 s.
    from google.auth import compute_engine  # noqa: PLC0415

    try:
        transport = Transport(exchange)
        identity = compute_engine.IDTokenCredentials(transport, audience, use_metadata_identity_endpoint=True)
        identity.refresh(transport)
        return str(identity.token)
    except SDK_ERRORS as error:
        failure = meaning(error)
    raise type(failure)(f"no identity of the metadata server: {failure}")
