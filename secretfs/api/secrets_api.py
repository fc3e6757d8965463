"""What Dapr's Secrets API answers, whatever the protocol: the secrets, or a refusal with Dapr's words.

Dapr checks in this order: is there a store, is it this one, does the scope allow the secret, what does the backend say
(``pkg/api/universal/secrets.go``, ``pkg/messages/predefined.go``).
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, NamedTuple

import trio

import secretfs
from secretfs.api.messages import RegisteredComponent
from secretfs.errors import NoSuchEntry, NotRepresentable, RecordLost, SecretFSError, SecretNotFound
from secretfs.fs.by_name import SecretsByName
from secretfs.fs.listing import Slices
from secretfs.fs.view import StoreView
from secretfs.observe.audit import NOBODY, Asker, AuditLog
from secretfs.store import Secret

NEWEST: Final = frozenset({"", "0", "latest"})
"""What Dapr's stores take for "the newest version" in ``version_id``: Vault 0, Google latest."""
SMALL: Final = 64 * 1024
"""Bytes of a secret that is rendered faster than a thread is woken for it."""
VERSION_ID: Final = "version_id"
VERSION_STAGE: Final = "version_stage"
NAMESPACE: Final = "namespace"


class Kind(NamedTuple):
    """A kind of refusal: its code in JSON, and its status in HTTP and in gRPC."""

    code: str
    http: int
    grpc: int


class Refused(Enum):
    """The refusals that Dapr knows for secrets."""

    NO_STORES = Kind("ERR_SECRET_STORES_NOT_CONFIGURED", 500, 9)
    NO_SUCH_STORE = Kind("ERR_SECRET_STORE_NOT_FOUND", 401, 3)
    DENIED = Kind("ERR_PERMISSION_DENIED", 403, 7)
    FAILED = Kind("ERR_SECRET_GET", 500, 13)


class Refusal(Exception):
    """A request that is not answered with secrets. Its text is for the client, and holds no value."""

    def __init__(self, kind: Refused, message: str) -> None:
        super().__init__(message)
        self.kind = kind.value
        self.message = message


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a client may know of the mount."""

    app_id: str
    components: tuple[RegisteredComponent, ...]
    version: str = secretfs.__version__

    @property
    def extended(self) -> Mapping[str, str]:
        """Say what this is: no daprd."""
        return {"secretfs": self.version}


@dataclass(frozen=True, slots=True)
class SecretsApi:
    """The secrets of a mount for one app, and one client."""

    secrets: SecretsByName
    app_id: str
    components: Callable[[], Iterable[RegisteredComponent]]
    """Returns the stores that the app sees now."""
    namespace_of: Callable[[str], str | None]
    """Returns the namespace whose secrets a store has; None where secrets have none, empty for several."""
    audit: AuditLog
    """Told what is answered, and what is refused."""
    client: Asker = NOBODY
    """Who asks, as far as it is known."""

    def asked_by(self, client: Asker) -> "SecretsApi":
        """Return the same for a client."""
        return replace(self, client=client)

    async def get(self, store: str, name: str, metadata: Mapping[str, str]) -> Secret:
        """Return one secret. Raises `Refusal`."""
        failed = f"failed getting secret with key {name} from secret store {store}"
        async with self._recorded({"component": store, "secret": name}, failed) as record:
            view = self._view(store)
            try:
                view.require(name)
            except NoSuchEntry:
                raise Refusal(Refused.DENIED, f'access denied by policy to get "{name}" from "{store}"') from None
            self._require_namespace(store, metadata)
            secret = await self._fetch(store, name, metadata.get(VERSION_ID, ""))
            _require_version(secret, metadata)
            _require_text(name, secret)
            record["version"] = secret.version
        return secret

    async def get_all(self, store: str) -> Mapping[str, Secret]:
        """Return all secrets of a store that the app sees. Raises `Refusal`."""
        async with self._recorded({"component": store}, f"failed getting secrets from secret store {store}"):
            self._view(store)
            secrets = await self.secrets.every_secret(store)
            slices = Slices()
            for name, secret in secrets.items():
                _require_text(name, secret)
                await slices.step()
        return secrets

    def metadata(self) -> Metadata:
        """Return what a client may know of the mount."""
        return Metadata(self.app_id, tuple(sorted(self.components())))

    @asynccontextmanager
    async def _recorded(self, fields: Mapping[str, object], failed: str) -> AsyncIterator[dict[str, object]]:
        """Record what becomes of a request, before it is answered. Makes a `Refusal` of what fails."""
        record: dict[str, object] = {"app": self.app_id, **fields}
        try:
            yield record
            await self.audit.witness("api", {**record, "result": "ok"}, self.client)
        except Refusal as refusal:
            await self._record_refusal(record, refusal)
            raise
        except SecretFSError as error:
            failure = Refusal(Refused.FAILED, f"{failed}: {_reason(error)}")
            await self._record_refusal(record, failure)
            raise failure from None

    async def _record_refusal(self, record: Mapping[str, object], refusal: Refusal) -> None:
        with suppress(RecordLost):  # it is refused anyway
            result = {"request": "api", "result": refusal.kind.code}
            await self.audit.witness("refused", {**record, **result}, self.client)

    async def _fetch(self, store: str, name: str, version: str) -> Secret:
        if version not in NEWEST and self.secrets.has_versions(store, name):
            try:
                return await self.secrets.version(store, name, version)
            except SecretNotFound:
                if self.secrets.has_versions(store, name):  # else it has turned out that the store keeps none
                    raise
        return await self.secrets.secret(store, name)

    def _view(self, store: str) -> StoreView:
        view = self.secrets.view(store)
        if view is not None:
            return view
        if not self.secrets.stores():
            raise Refusal(Refused.NO_STORES, "secret store is not configured")
        raise Refusal(Refused.NO_SUCH_STORE, f"failed finding secret store with key {store}")

    def _require_namespace(self, store: str, metadata: Mapping[str, str]) -> None:
        """Refuse to read another namespace than that of the store, which Dapr's store of Kubernetes would."""
        wanted, own = metadata.get(NAMESPACE, ""), self.namespace_of(store)
        if wanted and own is not None and wanted != own:
            served = f"{own} is served" if own else "name the secret NAMESPACE/NAME"
            raise NotRepresentable(f"metadata.namespace {wanted}: {served}")


def _reason(error: SecretFSError) -> str:
    if isinstance(error, NoSuchEntry):
        return "not found"
    return "it cannot be recorded" if isinstance(error, RecordLost) else str(error)


def _require_version(secret: Secret, metadata: Mapping[str, str]) -> None:
    """Refuse another version than the one that is wanted. A store that has none ignores the wish, as Dapr's do."""
    wanted = metadata.get(VERSION_ID, "")
    if secret.version and wanted not in NEWEST and wanted != secret.version:
        raise NotRepresentable(f"{VERSION_ID} {wanted}: only the current version is served, which is {secret.version}")
    stage = metadata.get(VERSION_STAGE, "")
    if stage and secret.stages and stage not in secret.stages:
        raise NotRepresentable(f"{VERSION_STAGE} {stage}: only the version that is {secret.stages[0]} is served")


def _require_text(name: str, secret: Secret) -> None:
    """Refuse what JSON and protobuf cannot carry: Dapr would alter it."""
    try:
        name.encode()
        for key, value in secret.values.items():
            key.encode()
            value.decode()
    except UnicodeError:
        raise NotRepresentable(f"secret {name!r} is not UTF-8, which this API cannot carry: read its file") from None


async def rendered(secret: Secret, render: Callable[[Secret], bytes]) -> bytes:
    """Render a secret; in a thread if it is large, so that the loop goes on to serve the mount."""
    if sum(map(len, secret.values.values())) <= SMALL:
        return render(secret)
    return await trio.to_thread.run_sync(render, secret)
