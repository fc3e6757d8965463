"""The engines that issue credentials: how each is asked, and what it answers.

`secretfs.stores.vault.dynamic` keeps alive what they issue.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from hvac.utils import format_url

from secretfs.errors import MalformedAnswer, SecretNotFound
from secretfs.stores.vault.http import PoolAdapter
from secretfs.stores.vault.response import Response

_STATIC: Final = ("static-creds", "static-cred")
"""Where the engines database, LDAP and AWS keep the passwords of static roles, which they rotate and do not issue."""
_PEM: Final = ("certificate", "private_key", "issuing_ca", "serial_number")
"""What is served of a certificate, with ``ca_chain``."""


@dataclass(frozen=True, slots=True)
class Request:
    """What has an engine issue something."""

    method: str
    url: str
    body: Mapping[str, Any] | None = field(default=None, repr=False)


class Engine(Protocol):
    """An engine that issues credentials."""

    @property
    def path(self) -> str:
        """Where it is mounted."""

    @property
    def idle(self) -> float:
        """Seconds since it was last fetched after which a secret's lease is not renewed any more."""

    @property
    def reads_have_effects(self) -> bool:
        """Whether a request issues anything."""

    def require(self, type: object) -> None:  # noqa: A002 - Vault's word
        """Raise `MalformedAnswer` if what is mounted there is of a type that cannot be meant."""

    def names(self, adapter: PoolAdapter) -> frozenset[str]:
        """Return the names of what it can be asked for. Raises `StoreError`."""

    def request(self, name: str) -> Request:
        """Return what asks it for a credential. Raises `SecretNotFound` for a name that it cannot be asked for."""

    def values(self, answer: Response) -> dict[str, bytes]:
        """Return the files of a credential. Raises `MalformedAnswer`."""


@dataclass(frozen=True, slots=True)
class RoleEngine:
    """An engine whose roles are credentials: database users, one-time passwords, anything that answers with a lease."""

    path: str
    credentials: str = "creds"
    roles: str = "roles"
    parameters: Mapping[str, Any] | None = field(default=None, repr=False)
    idle: float = 86400.0

    @property
    def reads_have_effects(self) -> bool:
        """False for static roles."""
        return self.credentials not in _STATIC

    def require(self, type: object) -> None:  # noqa: A002
        """Refuse an engine that stores what it is given."""
        if type in ("kv", "generic", "cubbyhole"):
            raise MalformedAnswer("the engine makes nothing, so its type is not dynamic")

    def names(self, adapter: PoolAdapter) -> frozenset[str]:
        """List the roles."""
        url = format_url("/v1/{engine}/{roles}", engine=self.path, roles=self.roles)
        try:
            keys = adapter.list(url).keys()
        except SecretNotFound:
            return frozenset()
        return frozenset(key for key in keys if not key.endswith("/"))

    def request(self, name: str) -> Request:
        """Read the role, or post the parameters to it."""
        url = format_url("/v1/{engine}/{path}/{name}", engine=self.path, path=self.credentials, name=name)
        return Request("GET" if self.parameters is None else "POST", url, self.parameters)

    def values(self, answer: Response) -> dict[str, bytes]:
        """Return what the engine says."""
        return answer.values("data")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that a component declares."""

    role: str
    parameters: Mapping[str, Any]
    """As the engine takes them: ``common_name``, ``alt_names``, ``ttl``, ..."""


@dataclass(frozen=True, slots=True)
class CertificateEngine:
    """An engine of type pki, and the certificates that it is to issue, by the name of their directory."""

    path: str
    certificates: Mapping[str, Certificate]
    reads_have_effects: bool = field(default=True, init=False)
    idle: float = field(default=0.0, init=False)
    """The engine renews none of its leases."""

    def require(self, type: object) -> None:  # noqa: A002
        """Refuse any other engine."""
        if type != "pki":
            raise MalformedAnswer("the engine is not of type pki")

    def names(self, adapter: PoolAdapter) -> frozenset[str]:
        """Return what is declared, and ask nobody."""
        return frozenset(self.certificates)

    def request(self, name: str) -> Request:
        """Post the subject of a certificate to its role."""
        wanted = self.certificates.get(name)
        if wanted is None:
            raise SecretNotFound(f"secret {name}: no certificate of that name is declared")
        url = format_url("/v1/{engine}/issue/{role}", engine=self.path, role=wanted.role)
        return Request("POST", url, wanted.parameters)

    def values(self, answer: Response) -> dict[str, bytes]:
        """Return the certificate, its key and the authorities, each as PEM; without a chain, that is the authority."""
        texts = {name: answer.data.get(name) for name in _PEM}
        chain = answer.data.get("ca_chain") or [texts["issuing_ca"]]
        parts = [*texts.values(), *(chain if isinstance(chain, list) else [chain])]
        if not all(isinstance(part, str) for part in parts):
            raise MalformedAnswer("the answer has no certificate with its key and its chain")
        return {name: str(text).encode() for name, text in texts.items()} | {"ca_chain": "\n".join(chain).encode()}
