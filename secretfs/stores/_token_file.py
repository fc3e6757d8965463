"""The annotation with the path of a token, which is all that a login by workload identity takes.

The token is a JWT of a service account, for an audience that the cloud expects. Whoever has the file is that account,
so no other credentials may count beside it: a pod that is refused must not be let in as its node.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Final

from secretfs.errors import ConfigurationError

TOKEN_FILE: Final = "secretfs/token-file"  # noqa: S105 - the name of an annotation


def token_file(annotations: Mapping[str, str], others: Mapping[str, str]) -> str:
    """Return the path of the token that a component logs in with; empty if it logs in otherwise.

    ``others`` are the values of properties, by name, that are other ways to log in. Raises `ConfigurationError`.
    """
    path = annotations.get(TOKEN_FILE, "")
    if not path:
        return ""
    if not PurePath(path).is_absolute():
        raise ConfigurationError(f"{TOKEN_FILE} is not an absolute path")
    given = [name for name, value in others.items() if value]
    if given:
        raise ConfigurationError(f"{given[0]} is another way to log in than {TOKEN_FILE}: leave one of them out")
    return path
