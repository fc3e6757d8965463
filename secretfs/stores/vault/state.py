"""What the server has lent a store, as text: for the process that takes over. Pure.

Holds tokens and credentials. Times are those of CLOCK_MONOTONIC, which all processes of a machine share until it boots.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secretfs.store import Secret
from secretfs.stores.vault.renewal import Lease, LeaseTerm, Token
from secretfs.stores.vault.settings import Settings, given

_BELONGING = (
    *("address", "namespace", "engine_type", "engine", "dynamic_path", "dynamic_parameters", "value_type", "method"),
    *("kubernetes_role", "kubernetes_mount", "role_id", "approle_mount", "jwt_role", "jwt_mount"),
    *("username", "userpass_mount", "cert_role", "cert_mount"),
)
"""The settings that a token and a lease belong to: where they are from, and whom they were given to."""


_BELONGING_IF_GIVEN = (
    *("token_wrapping_path", "aws_role", "aws_mount", "aws_access_key", "gcp_role", "gcp_mount"),
    *("azure_role", "azure_mount", "azure_client_id"),
)
"""The same, of those that came later: without them, the state of a version that did not have them is ours."""


@dataclass(frozen=True, slots=True)
class Loans:
    """Tokens, the newest last, and leases with the names of their roles."""

    tokens: tuple[Token, ...] = ()
    leases: tuple[tuple[str, Lease], ...] = field(default=(), repr=False)


class StateCodec:
    """Writes and reads the state of a store with certain settings; nobody else's is read."""

    def __init__(self, settings: Settings, annotations: Mapping[str, str]) -> None:
        belonging: list[Any] = [getattr(settings, name) for name in _BELONGING]
        later = {name: getattr(settings, name) for name in _BELONGING_IF_GIVEN if given(settings, name)}
        belonging += [dict(sorted(each.items())) for each in (annotations, later) if each]
        self._owner = hashlib.sha256(json.dumps(belonging).encode()).hexdigest()

    def encode(self, loans: Loans) -> bytes:
        """Return loans as text."""
        document = {
            "owner": self._owner,
            "tokens": [{"value": token.value, **_term(token.term)} for token in loans.tokens],
            "leases": [{"name": name, **_lease(lease)} for name, lease in loans.leases],
        }
        return json.dumps(document).encode()

    def decode(self, state: bytes) -> Loans:
        """Return the loans in a text. Raises ValueError, which quotes nothing of it, for what is not ours."""
        try:
            document = json.loads(state)
            if document["owner"] != self._owner:
                raise ValueError("the component has been edited")
            return Loans(
                tuple(Token(one["value"], _read_term(one)) for one in document["tokens"]),
                tuple((one["name"], _read_lease(one)) for one in document["leases"]),
            )
        except (KeyError, TypeError, json.JSONDecodeError):
            raise ValueError("another version of secretfs has written them") from None


def _term(term: LeaseTerm) -> dict[str, Any]:
    return {"since": term.since, "ttl": term.ttl, "renewable": term.renewable, "full": term.full}


def _read_term(document: Mapping[str, Any]) -> LeaseTerm:
    return LeaseTerm(document["since"], document["ttl"], document["renewable"], document["full"])


def _lease(lease: Lease) -> dict[str, Any]:
    values = {key: base64.b64encode(value).decode() for key, value in lease.secret.values.items()}
    secret = {"values": values, "version": lease.secret.version, "modified": lease.secret.modified}
    own = {"id": lease.id, "token": lease.token, "used": lease.used, "retired": lease.retired}
    return {**own, "secret": secret, **_term(lease.term)}


def _read_lease(document: Mapping[str, Any]) -> Lease:
    secret = document["secret"]
    values = {key: base64.b64decode(value) for key, value in secret["values"].items()}
    return Lease(
        document["id"],
        Secret(values, secret["version"], secret["modified"]),
        document["token"],
        _read_term(document),
        document["used"],
        retired=document["retired"],
    )
