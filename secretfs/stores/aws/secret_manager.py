"""``secretstores.aws.secretmanager``: the secrets of AWS Secrets Manager in one region, on botocore.

Settings, names and shapes are Dapr's: a secret is one value, the text of its version AWSCURRENT; with
``multipleKeyValuesPerSecret`` the members of a JSON object are its keys. A binary secret is its bytes.

Opening a store sends no request: wrong credentials show at the first read, or with `check`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from secretfs.errors import ConfigurationError, MalformedAnswer, SecretNotFound, StoreError
from secretfs.gojson import compact, unicode
from secretfs.settings import setting, truthy
from secretfs.store import Secret, StoreContext
from secretfs.stores._cloud import BatchedCloudStore, Page, entries
from secretfs.stores._http.batches import Batches, Found
from secretfs.stores._http.failures import about
from secretfs.stores.aws.account import ANNOTATIONS, Account, sessions, token_of
from secretfs.stores.aws.client import Client
from secretfs.stores.aws.failures import refusal
from secretfs.stores.aws.transport import Transport

__all__ = ["ANNOTATIONS", "Settings", "open_store"]

_BATCH: Final = 20
_LARGEST_ARN: Final = 2048
_NAME: Final = re.compile(r"[!-~]{1,512}")


@dataclass(frozen=True, slots=True, repr=False)
class Settings(Account):
    """The properties of a ``secretstores.aws.secretmanager`` component."""

    multi_valued: bool = setting(
        "multipleKeyValuesPerSecret",
        "Whether a secret is a directory of keys: the members of the JSON object that its text is.",
        default=False,
        parse=truthy,
    )


class SecretManagerStore(BatchedCloudStore):
    """The secrets of one account in one region. Their names may have "/", and are listed all at once."""

    def __init__(self, client: Client, batches: Batches, *, multi_valued: bool) -> None:
        super().__init__(client.transport, batches)
        self.multi_valued = multi_valued
        self._client = client

    def _page(self, mark: str, size: int) -> Page:
        """List the secrets that are not marked for deletion."""
        page = self._client.page("list_secrets", mark, size)
        return [str(entry.get("Name", "")) for entry in entries(page, "SecretList")], page.get("NextToken")

    def _read(self, name: str) -> Secret:
        """Read the version AWSCURRENT. The ARN of a secret is a name, too, as in Dapr."""
        if not (_NAME.fullmatch(name) or (_is_arn(name) and name.isascii() and len(name) <= _LARGEST_ARN)):
            raise SecretNotFound("no name that AWS takes")
        answer = self._client.call("get_secret_value", SecretId=name)
        if answer.get("Name") != name and not _is_arn(name):
            raise MalformedAnswer(f"{self._client.where}: the answer is not about this secret")
        return self._secret(name, answer)

    def _fits_batch(self, name: str) -> bool:
        """Leave out ARNs, because answers have names."""
        return _NAME.fullmatch(name) is not None and not _is_arn(name)

    def _read_many(self, names: tuple[str, ...]) -> Found:
        answer = self._client.call("batch_get_secret_value", SecretIdList=list(names))
        found: dict[str, Secret | StoreError] = {}
        for entry in entries(answer, "SecretValues"):
            name = entry.get("Name")
            if isinstance(name, str) and name in names:
                found[name] = self._outcome(name, entry)
        for entry in entries({"Errors": [], **answer}, "Errors"):
            name = entry.get("SecretId")
            if isinstance(name, str) and name in names:
                error = refusal(self._client.where, str(entry.get("ErrorCode")), text=str(entry.get("Message")))
                found[name] = type(error)(f"secret {name}: {error}")
        return found

    def _outcome(self, name: str, answer: Mapping[str, Any]) -> Secret | StoreError:
        try:
            return about(f"secret {name}", lambda: self._secret(name, answer))
        except StoreError as error:
            return error

    def _secret(self, name: str, answer: Mapping[str, Any]) -> Secret:
        text, data = answer.get("SecretString"), answer.get("SecretBinary")
        if isinstance(text, str):
            values = _members(name, text) if self.multi_valued else {name: unicode(text).encode()}
        elif isinstance(data, bytes):
            values = {name: data}
        else:
            raise MalformedAnswer(f"{self._client.where}: the answer has no value")
        created, stages = answer.get("CreatedDate"), answer.get("VersionStages")
        return Secret(
            values,
            str(answer.get("VersionId", "")),
            created.timestamp() if isinstance(created, datetime) else None,
            tuple(sorted(map(str, stages))) if isinstance(stages, list) else (),
        )


def open_store(settings: Settings, context: StoreContext) -> SecretManagerStore:
    """Prepare the credentials and the connections; send no request. Raises `ConfigurationError`."""
    try:
        transport = Transport(context.component, context.deadline)
        make = sessions(context.component, settings, transport, token_of(settings, context.annotations))
        client = Client("secretsmanager", make, transport)
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None
    batches = Batches(context.component, "secretsmanager:BatchGetSecretValue", _BATCH)
    return SecretManagerStore(client, batches, multi_valued=settings.multi_valued)


def _is_arn(name: str) -> bool:
    return name.startswith("arn:")


def _members(name: str, text: str) -> dict[str, bytes]:
    """Return the members of a JSON object; of any other text, the text under the name of the secret. As Dapr does."""
    try:
        value = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number)
        if value is None:
            return {}
        if isinstance(value, dict):
            return {
                key: unicode(member if isinstance(member, str) else compact(member)).encode()
                for key, member in value.items()
            }
    except (ValueError, RecursionError):
        pass
    return {name: unicode(text).encode()}


def _number(text: str) -> float:
    """Read a number as Go does. Raises ValueError for one that is no finite float, and for NaN."""
    value = float(text)
    if value - value != 0:
        raise ValueError("not a number of JSON")
    return value
