"""``secretstores.aws.parameterstore``: the Parameter Store of AWS Systems Manager in one region, on botocore.

Settings, names and shapes are Dapr's: a secret is the decrypted value of a parameter of any type, and ``prefix`` is
text that every name starts with and that is cut off.

Opening a store sends no request: wrong credentials show at the first read, or with `check`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from secretfs.errors import ConfigurationError, MalformedAnswer, SecretNotFound, StoreError
from secretfs.gojson import unicode
from secretfs.settings import setting
from secretfs.store import Secret, StoreContext
from secretfs.stores._cloud import BatchedCloudStore, Page
from secretfs.stores._http.batches import Batches, Found
from secretfs.stores._http.failures import LacksRight
from secretfs.stores.aws.account import ANNOTATIONS, Account, sessions, token_of
from secretfs.stores.aws.client import Client
from secretfs.stores.aws.transport import Transport

__all__ = ["ANNOTATIONS", "Settings", "open_store"]

_BATCH: Final = 10
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


class ParameterStore(BatchedCloudStore):
    """The parameters of one account in one region whose names have the prefix."""

    page_size = 50

    def __init__(self, client: Client, batches: Batches, prefix: str) -> None:
        super().__init__(client.transport, batches)
        self._client = client
        self._prefix = prefix

    def _listed(self) -> frozenset[str]:
        """List the parameters. Who may not do that may still list a path, if the prefix is one."""
        try:
            return super()._listed()
        except LacksRight:
            if not (self._prefix.startswith("/") and self._prefix.endswith("/")):
                raise
        return self._all(self._page_of_path)

    def _page(self, mark: str, size: int) -> Page:
        filters: list[Any] = [{"Key": "Name", "Option": "BeginsWith", "Values": [self._prefix]}] if self._prefix else []
        return self._names_in(self._client.page("describe_parameters", mark, size, ParameterFilters=filters))

    def _page_of_path(self, mark: str, _: int) -> Page:
        """List the prefix as a path. The values come along and are forgotten."""
        path = self._prefix.removesuffix("/")
        return self._names_in(self._client.page("get_parameters_by_path", mark, _PATH_PAGE, Path=path, Recursive=True))

    def _names_in(self, page: Mapping[str, Any]) -> Page:
        found = [str(entry.get("Name", "")) for entry in page.get("Parameters", []) if isinstance(entry, Mapping)]
        names = [name.removeprefix(self._prefix) for name in found if name.startswith(self._prefix)]
        return names, page.get("NextToken")

    def _read(self, name: str) -> Secret:
        if not name or not self._fits_batch(name):
            raise SecretNotFound("no name that AWS takes")
        answer = self._client.call("get_parameter", Name=self._prefix + name, WithDecryption=True)
        return self._secret(name, answer.get("Parameter"))

    def _fits_batch(self, name: str) -> bool:
        return _NAME.fullmatch(self._prefix + name) is not None

    def _read_many(self, names: tuple[str, ...]) -> Found:
        wanted = {self._prefix + name: name for name in names}
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
            {name: unicode(parameter["Value"]).encode()},
            str(parameter.get("Version", "")),
            modified.timestamp() if isinstance(modified, datetime) else None,
        )


def open_store(settings: Settings, context: StoreContext) -> ParameterStore:
    """Prepare the credentials and the connections; send no request. Raises `ConfigurationError`."""
    try:
        transport = Transport(context.component, context.deadline)
        make = sessions(context.component, settings, transport, token_of(settings, context.annotations))
        client = Client("ssm", make, transport)
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None
    return ParameterStore(client, Batches(context.component, "ssm:GetParameters", _BATCH), settings.prefix)
