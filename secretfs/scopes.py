"""Which secrets of a store an app may see: Dapr's secret scopes. Pure; knows neither files nor stores.

The rule is dapr ``pkg/config/configuration.go`` IsSecretAllowed: a list of allowed secrets decides alone; without one,
a denied secret is denied and the default decides the rest. Names are compared exactly, without patterns.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Access(Enum):
    """What ``defaultAccess`` says."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class SecretScope:
    """One entry of ``spec.secrets.scopes``."""

    store_name: str = ""
    default_access: Access = Access.ALLOW
    allowed_secrets: frozenset[str] = frozenset()
    denied_secrets: frozenset[str] = frozenset()

    def allows(self, name: str) -> bool:
        """Decide for one secret, by the name the API takes."""
        if self.allowed_secrets:
            return name in self.allowed_secrets
        return name not in self.denied_secrets and self.default_access is Access.ALLOW

    @property
    def allowed_names(self) -> frozenset[str] | None:
        """The only names that are ever allowed; None when there is no end to them."""
        if self.allowed_secrets or self.default_access is Access.DENY:
            return self.allowed_secrets
        return None

    @property
    def denied(self) -> frozenset[str]:
        """Names that are refused because the scope lists them; an allowed secret is not refused by a deny list."""
        return self.denied_secrets - self.allowed_secrets

    @property
    def unrestricted(self) -> bool:
        """Whether the scope refuses nothing at all."""
        return self.allowed_names is None and not self.denied_secrets


ALLOW_ALL: Final = SecretScope()
"""The scope of a store that no configuration limits."""
