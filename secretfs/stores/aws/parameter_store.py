"""``secretstores.aws.parameterstore``: the Parameter Store of AWS Systems Manager in one region, on botocore.

Settings, names and shapes are Dapr's: a secret is the decrypted value of a parameter of any type, and ``prefix`` is
text that every name starts with and that is cut off.

Opening a store sends no request: wrong credentials show at the first read, or with `check`.
"""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from secretfs.errors import ConfigurationError, MalformedAnswer, SecretNotFound, StoreError
from secretfs.settings import setting
from secretfs.store import Names, Secret, StoreContext
from secretfs.stores._http.batches import Batches, Found
from secretfs.stores._http.failures import about
from secretfs.stores.aws.account import Account, sessions
from secretfs.stores.aws.client import Client
from secretfs.stores.aws.failures import CredentialsRefused, PolicyRefused
from secretfs.stores.aws.transport import Transport

_BATCH: Final = 10
_PAGE: Final = 50
_PATH_PAGE: Final = 10
_NAME: Final = re.compile(r"[!-9;-~]{1,2048}")  # a ":" would choose a version


@dataclass(frozen=True, slots=True, repr=False)
class Settings(Account):
    """The properties of a ``secretstores.aws.parameterstore`` component."""

    region: str = setting(
        "region",
        "Region, such as eu-central-1. Without it AWS_REGION counts, then AWS_DEFAULT_REGION, then the profile.",
        aliases=("awsRegion",),
        guards=True,
    )
    prefix: str = setting(
        "prefix",
        "Text that is put before every name: /app/ shows what is below it, and / all names that start with it.",
        guards=True,
    )


class ParameterStore:
    """The parameters of one account in one region whose names have the prefix."""

    multi_valued = False

    def __init__(self, client: Client, batches: Batches, prefix: str) -> None:
        self._client = client
        self._batches = batches
        self._prefix = prefix

    def check(self) -> None:
        """List one name. An identity that may not list, but is known to AWS, passes as well."""
        with contextlib.suppress(PolicyRefused):
            about("list of parameters", lambda: self._client.call("describe_parameters", MaxResults=1))

    def names(self, folder: str) -> Names:
        """List the parameters, 50 with each request. Reads no values.

        Who may not do that may still list a path, if the prefix is one. Its values come along and are forgotten.
        """
        return Names() if folder else Names(frozenset(about("list of parameters", self._listed)))

    def fetch(self, name: str) -> Secret:
        """Read the newest version of one parameter."""

        def read() -> Secret:
            parameter = self._client.call("get_parameter", Name=self._parameter(name), WithDecryption=True)
            return self._secret(name, parameter.get("Parameter"))

        return about(f"secret {name}", read)

    @property
    def largest_batch(self) -> int:
        """10 parameters, as long as GetParameters is allowed."""
        return self._batches.largest

    def fetch_many(self, names: tuple[str, ...]) -> Found:
        """Read up to 10 parameters with one request."""
        wanted = {self._prefix + name: name for name in names if _NAME.fullmatch(self._prefix + name)}
        return self._batches.read(lambda: about("batch of parameters", lambda: self._read(wanted))) if wanted else {}

    def clock_skew(self) -> float | None:
        """By how many seconds the clock of AWS is ahead of ours."""
        return self._client.transport.skew

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _parameter(self, name: str) -> str:
        parameter = self._prefix + name
        if not name or not _NAME.fullmatch(parameter):
            raise SecretNotFound("no name that AWS takes")
        return parameter

    def _listed(self) -> set[str]:
        filters = {"ParameterFilters": [{"Key": "Name", "Option": "BeginsWith", "Values": [self._prefix]}]}
        try:
            try:
                pages = self._client.pages("describe_parameters", MaxResults=_PAGE, **(filters if self._prefix else {}))
            except PolicyRefused:
                path = self._prefix.removesuffix("/")
                if not (path.startswith("/") and self._prefix.endswith("/")):
                    raise
                pages = self._client.pages("get_parameters_by_path", Path=path, Recursive=True, MaxResults=_PATH_PAGE)
        except SecretNotFound as error:  # a request that AWS does not take
            raise MalformedAnswer(str(error)) from None
        entries = [entry for page in pages for entry in page.get("Parameters", [])]
        found = [str(entry.get("Name", "")) for entry in entries if isinstance(entry, Mapping)]
        names = (name.removeprefix(self._prefix) for name in found if name.startswith(self._prefix))
        return {name for name in names if name}

    def _read(self, wanted: Mapping[str, str]) -> Found:
        answer = self._client.call("get_parameters", Names=list(wanted), WithDecryption=True)
        found: dict[str, Secret | StoreError] = {}
        for parameter in answer.get("Parameters", []):
            name = wanted.get(parameter.get("Name"))
            if name is not None:
                found[name] = self._secret(name, parameter)
        for parameter in answer.get("InvalidParameters", []):
            name = wanted.get(parameter)
            if name is not None:
                found[name] = SecretNotFound(f"secret {name}: {self._client.where}: not found")
        return found

    def _secret(self, name: str, parameter: Any) -> Secret:
        if not isinstance(parameter, Mapping) or not isinstance(parameter.get("Value"), str):
            raise MalformedAnswer(f"{self._client.where}: the answer has no value")
        if parameter.get("Name") != self._prefix + name:
            raise MalformedAnswer(f"{self._client.where}: the answer is not about this parameter")
        modified = parameter.get("LastModifiedDate")
        return Secret(
            {name: parameter["Value"].encode("utf-8", "replace")},
            str(parameter.get("Version", "")),
            modified.timestamp() if isinstance(modified, datetime) else None,
        )


def open_store(settings: Settings, context: StoreContext) -> ParameterStore:
    """Prepare the credentials and the connections; send no request. Raises `ConfigurationError`."""
    try:
        transport = Transport(context.component, context.deadline)
        client = Client("ssm", sessions(context.component, settings, transport), transport)
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None
    return ParameterStore(
        client, Batches(context.component, "ssm:GetParameters", _BATCH, CredentialsRefused), settings.prefix
    )
