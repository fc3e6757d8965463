"""``secretstores.local.env``: the environment variables of the secretfs process.

Like Dapr's store of that name, with one difference: a variable that is not set, or that may not be served, is not
found. Dapr answers with an empty string; a file system has ENOENT.
"""

import os
from dataclasses import dataclass

from secretfs.errors import SecretNotFound
from secretfs.settings import setting
from secretfs.store import Names, Secret, StoreContext


@dataclass(frozen=True, slots=True)
class Settings:
    """The properties of a ``secretstores.local.env`` component."""

    prefix: str = setting("prefix", "Serve only variables whose name starts with this, under the rest of their name.")


@dataclass(frozen=True, slots=True)
class EnvStore:
    """Reads the environment at each call. Values are the exact bytes of the variable."""

    prefix: str = ""
    multi_valued: bool = False

    def check(self) -> None:
        """Do nothing: an environment is always there."""

    def names(self, folder: str) -> Names:
        """List the variables with the prefix, without those that are never served. There are no folders."""
        if folder:
            return Names()
        variables = (variable for variable in os.environ if variable.startswith(self.prefix) and not _denied(variable))
        return Names(frozenset(variable.removeprefix(self.prefix) for variable in variables) - {""})

    def fetch(self, name: str) -> Secret:
        """Read one variable. An empty variable is an empty secret. Raises `SecretNotFound` when it is not set."""
        variable = self.prefix + name
        if not name or _denied(variable):
            raise SecretNotFound(f"secret {name} not found")
        try:
            return Secret({name: os.environb[os.fsencode(variable)]})
        except (KeyError, UnicodeEncodeError):
            raise SecretNotFound(f"secret {name} not found") from None

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def open_store(settings: Settings, context: StoreContext) -> EnvStore:
    """Open the environment."""
    return EnvStore(settings.prefix)


def _denied(variable: str) -> bool:
    """Tell whether ``variable`` holds a credential of Dapr's own, which Dapr serves to nobody."""
    upper = variable.upper()
    return upper == "APP_API_TOKEN" or upper.startswith("DAPR_")
