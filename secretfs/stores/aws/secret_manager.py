"""``secretstores.aws.secretmanager``: the secrets of AWS Secrets Manager in one region, on botocore.

Settings, names and shapes are Dapr's: a secret is one value, the text of its version AWSCURRENT; with
``multipleKeyValuesPerSecret`` the members of a JSON object are its keys. A binary secret is its bytes.

Opening a store sends no request: wrong credentials show at the first read, or with `check`.
"""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from secretfs.errors import ConfigurationError, MalformedAnswer, SecretNotFound, StoreError
from secretfs.gojson import compact
from secretfs.settings import setting, truthy
from secretfs.store import Names, Secret, StoreContext
from secretfs.stores._http.batches import Batches, Found
from secretfs.stores._http.failures import about
from secretfs.stores.aws.account import Account, sessions
from secretfs.stores.aws.client import Client
from secretfs.stores.aws.failures import CredentialsRefused, PolicyRefused, refusal
from secretfs.stores.aws.transport import Transport

_BATCH: Final = 20
_PAGE: Final = 100
_LARGEST_ARN: Final = 2048
_NAME: Final = re.compile(r"[!-~]{1,512}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, repr=False)
class Settings(Account):
    """The properties of a ``secretstores.aws.secretmanager`` component."""

    multi_valued: bool = setting(
        "multipleKeyValuesPerSecret",
        "Whether a secret is a directory of keys: the members of the JSON object that its text is.",
        default=False,
        parse=truthy,
    )


class SecretManagerStore:
    """The secrets of one account in one region. Their names may have "/", and are listed all at once."""

    def __init__(self, client: Client, batches: Batches, *, multi_valued: bool) -> None:
        self.multi_valued = multi_valued
        self._client = client
        self._batches = batches

    def check(self) -> None:
        """List one name. An identity that may not list, but is known to AWS, passes as well."""
        with contextlib.suppress(PolicyRefused):
            about("list of secrets", lambda: self._client.call("list_secrets", MaxResults=1))

    def names(self, folder: str) -> Names:
        """List the secrets that are not marked for deletion, 100 with each request. Reads no values."""
        return Names() if folder else Names(frozenset(about("list of secrets", self._listed)))

    def fetch(self, name: str) -> Secret:
        """Read the version AWSCURRENT of one secret. The ARN of a secret is a name, too, as in Dapr."""

        def read() -> Secret:
            if not _may_be(name):
                raise SecretNotFound("no name that AWS takes")
            answer = self._client.call("get_secret_value", SecretId=name)
            if answer.get("Name") != name and not _is_arn(name):
                raise MalformedAnswer(f"{self._client.where}: the answer is not about this secret")
            return self._secret(name, answer)

        return about(f"secret {name}", read)

    @property
    def largest_batch(self) -> int:
        """20 secrets, as long as BatchGetSecretValue is allowed."""
        return self._batches.largest

    def fetch_many(self, names: tuple[str, ...]) -> Found:
        """Read up to 20 secrets with one request. ARNs are left out, because answers have names."""
        wanted = [name for name in names if _may_be(name) and not _is_arn(name)]
        return self._batches.read(lambda: about("batch of secrets", lambda: self._read(wanted))) if wanted else {}

    def clock_skew(self) -> float | None:
        """By how many seconds the clock of AWS is ahead of ours."""
        return self._client.transport.skew

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _listed(self) -> set[str]:
        try:
            pages = self._client.pages("list_secrets", MaxResults=_PAGE)
        except SecretNotFound as error:  # a request that AWS does not take
            raise MalformedAnswer(str(error)) from None
        found = [entry.get("Name") for page in pages for entry in _list(page, "SecretList")]
        return {name for name in found if isinstance(name, str)}

    def _read(self, wanted: list[str]) -> Found:
        answer = self._client.call("batch_get_secret_value", SecretIdList=wanted)
        found: dict[str, Secret | StoreError] = {}
        for entry in _list(answer, "SecretValues"):
            name = entry.get("Name")
            if isinstance(name, str) and name in wanted:
                found[name] = self._outcome(name, entry)
        for entry in _list(answer, "Errors"):
            name = entry.get("SecretId")
            if isinstance(name, str) and name in wanted:
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
            values = _members(name, text) if self.multi_valued else {name: _utf8(text)}
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
        client = Client("secretsmanager", sessions(context.component, settings, transport), transport)
    except ConfigurationError as error:
        raise ConfigurationError(f"{context.component}: {error}") from None
    batches = Batches(context.component, "secretsmanager:BatchGetSecretValue", _BATCH, CredentialsRefused)
    return SecretManagerStore(client, batches, multi_valued=settings.multi_valued)


def _is_arn(name: str) -> bool:
    return name.startswith("arn:")


def _may_be(name: str) -> bool:
    """Tell whether AWS may have a secret of this name. It takes fewer characters, and says so itself."""
    return _NAME.fullmatch(name) is not None or (_is_arn(name) and name.isascii() and len(name) <= _LARGEST_ARN)


def _list(answer: Mapping[str, Any], member: str) -> list[Mapping[str, Any]]:
    entries = answer.get(member, [] if member == "Errors" else None)
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise MalformedAnswer(f"the answer has no list {member}")
    return entries


def _members(name: str, text: str) -> dict[str, bytes]:
    """Return the members of a JSON object; of any other text, the text under the name of the secret. As Dapr does."""
    try:
        value = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number)
        if value is None:
            return {}
        if isinstance(value, dict):
            return {key: _utf8(member if isinstance(member, str) else compact(member)) for key, member in value.items()}
    except (ValueError, RecursionError):
        pass
    return {name: _utf8(text)}


def _number(text: str) -> float:
    """Read a number as Go does. Raises ValueError for one that is no finite float, and for NaN."""
    value = float(text)
    if value - value != 0:
        raise ValueError("not a number of JSON")
    return value


def _utf8(text: str) -> bytes:
    """Encode text. Halves of surrogate pairs, which have no UTF-8, become U+FFFD as in Go."""
    return text.encode() if text.isascii() else _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text).encode()
