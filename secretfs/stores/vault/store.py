"""``secretstores.hashicorp.vault``: secrets of HashiCorp Vault or OpenBao.

Settings, names and shapes are Dapr's. More than Dapr does: KV version 1, a token file that is read again when it
changes, members that are not strings (Dapr fails the whole secret; here they are their JSON text), logins (what Dapr's
components-contrib 4448 proposes for one of them), and engines that make secrets (`secretfs.stores.vault.dynamic`).

Opening a store contacts nobody, as in Dapr: a wrong token or address shows at the first read, or with `check`.
"""

import json
import logging
import re
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hvac.api.secrets_engines import Kv

from secretfs.durations import parse_duration
from secretfs.errors import AccessDenied, ConfigurationError, MalformedAnswer, SecretNotFound, StoreUnavailable
from secretfs.settings import specs
from secretfs.store import Expiry, Names, Secret, StoreContext
from secretfs.stores._http.failures import about
from secretfs.stores._http.trust import Trust, file_identity, system_identity, tls_context
from secretfs.stores.vault.auth import certificate_of, given_token, login_of
from secretfs.stores.vault.certificates import CERTIFICATES, read_certificates
from secretfs.stores.vault.dynamic import DynamicStore
from secretfs.stores.vault.engines import CertificateEngine, Engine, RoleEngine
from secretfs.stores.vault.http import Connections, Credential, Endpoint, PoolAdapter
from secretfs.stores.vault.loans import SavedLoans
from secretfs.stores.vault.renewal import Scheduler
from secretfs.stores.vault.response import Response, addressable
from secretfs.stores.vault.settings import Settings, given
from secretfs.stores.vault.state import StateCodec
from secretfs.stores.vault.token import FileToken, Session, StaticToken, explained

__all__ = ["ANNOTATIONS", "Settings", "open_store"]

ANNOTATIONS = frozenset({CERTIFICATES})
"""The annotations of a component that this store reads."""

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ENGINE_FIELDS = {"kv": "vaultKV", "dynamic": "vaultDynamic"}
"""How the names of the properties start that belong to one type of engine."""
_VERSION = re.compile("[1-9][0-9]{0,17}")
_ASK_AGAIN = 60.0  # seconds until a server that did not give the engine's version is asked again


class VaultStore:
    """Secrets below ``prefix`` in one KV engine."""

    def __init__(
        self,
        adapter: PoolAdapter,
        loans: SavedLoans,
        explained: Callable[[Callable[[], Any]], Any],
        engine: str,
        prefix: str,
        *,
        text: bool,
    ) -> None:
        self.multi_valued = not text
        self._loans = loans
        self._explained = explained
        self._adapter = adapter
        self._kv = Kv(adapter)
        self._engine = engine
        self._prefix = prefix
        self._version: int | None = None
        self._ask_after = 0.0

    def check(self) -> None:
        """Ask for the engine, which needs a good token with some right in it."""
        self._version = self._ask(f"enginePath {self._engine}", lambda: self._explained(self._ask_version))

    def names(self, folder: str) -> Names:
        """List one folder, and nothing below it."""
        if folder and not addressable(folder):
            return Names()
        try:
            keys = self._ask(f"folder {folder or '/'}", lambda: self._list(folder))
        except SecretNotFound:
            return Names()
        start = f"{folder}/" if folder else ""
        return Names(
            secrets=frozenset(start + key for key in keys if not key.endswith("/")),
            folders=frozenset(start + key[:-1] for key in keys if key.endswith("/")),
        )

    def fetch(self, name: str) -> Secret:
        """Read the newest version of one secret. One that is deleted or destroyed is not found."""
        if not addressable(name):
            raise SecretNotFound(f"secret {name}: no such secret or version")
        return self._ask(f"secret {name}", lambda: self._read(name))

    @property
    def keeps_versions(self) -> bool:
        """Whether the engine is of version 2, as far as is known."""
        return self._version != 1

    def fetch_version(self, name: str, version: str) -> Secret:
        """Read one version of a secret. One that is deleted or destroyed is not found."""
        # The server takes 0 and less for the newest version.
        if not addressable(name) or not _VERSION.fullmatch(version):
            raise SecretNotFound(f"secret {name}: no version of that name")
        return self._ask(f"secret {name}, version {version}", lambda: self._read(name, int(version)))

    def clock_skew(self) -> float | None:
        """Compare the date of the latest answer with our clock."""
        return self._adapter.connections.clock.skew

    def expiry(self) -> Expiry:
        """Return when our token ends."""
        return self._loans.expiry()

    def resume(self, state: bytes, save: Callable[[bytes], None]) -> None:
        """Go on with the token of a predecessor."""
        self._loans.resume(state, save)
        self._loans.changed()

    def hand_over(self) -> None:
        """Leave the token to a successor, and close the connections."""
        self._loans.hand_over()
        self._adapter.connections.close()

    def close(self) -> None:
        """Give a token back that we have logged in for, and close the connections."""
        self._adapter.close()

    def _list(self, folder: str) -> list[str]:
        answer: Response = self._api().list_secrets(path=self._path(folder), mount_point=self._engine)
        return answer.keys()

    def _read(self, name: str, version: int | None = None) -> Secret:
        api = self._api()
        if api is self._kv.v1:
            if version is not None:
                raise SecretNotFound("an engine of version 1 keeps no versions")
            answer = api.read_secret(path=self._path(name), mount_point=self._engine)
            return Secret(self._values(name, answer, "data"))
        answer = api.read_secret_version(
            path=self._path(name), version=version, mount_point=self._engine, raise_on_deleted_version=True
        )
        metadata = answer.data.get("metadata")
        if not isinstance(metadata, dict):
            raise MalformedAnswer("the answer has no metadata")
        values = self._values(name, answer, "data", "data")
        written = _timestamp(metadata.get("created_time"))
        return Secret(values, str(metadata.get("version", "")), written, metadata=_custom(metadata))

    def _values(self, name: str, answer: Response, *path: str) -> dict[str, bytes]:
        values = answer.values(*path)
        return values if self.multi_valued else {name: answer.raw(*path).encode()}

    def _path(self, name: str) -> str:
        return "/".join(part for part in (self._prefix, name) if part)

    def _api(self) -> Any:
        """Return hvac's API for the engine's version. An unknown one counts as version 2, as in Dapr."""
        if self._version is None and time.monotonic() >= self._ask_after:
            self._adapter.prepare()
            try:
                self._version = self._ask_version()
            except (AccessDenied, MalformedAnswer, SecretNotFound):
                self._ask_after = time.monotonic() + _ASK_AGAIN
        return self._kv.v1 if self._version == 1 else self._kv.v2

    def _ask_version(self) -> int:
        # The one endpoint that answers a token which may only read one secret of the engine.
        mount = self._adapter.mount(self._engine)
        if mount.get("type", "kv") not in ("kv", "generic", "cubbyhole"):
            raise MalformedAnswer("the engine is not of type kv")
        options = mount.get("options")
        return 2 if isinstance(options, dict) and options.get("version") == "2" else 1

    def _ask(self, subject: str, call: Callable[[], T]) -> T:
        with self._adapter.connections.within():
            return about(subject, call)


def open_store(settings: Settings, context: StoreContext) -> VaultStore | DynamicStore:
    """Prepare connections. Raises `ConfigurationError` for settings that cannot work; contacts nobody."""
    try:
        _refuse_other_engine(settings, context.annotations)
        store = _open(settings, context)
    except (ConfigurationError, StoreUnavailable) as error:
        raise ConfigurationError(f"{context.component}: {error}") from None
    if settings.skip_verify:
        logger.warning(
            "%s: skipVerify is true: any server that answers for %s gets the token", context.component, settings.address
        )
    return store


def _open(settings: Settings, context: StoreContext) -> VaultStore | DynamicStore:
    certificate = certificate_of(settings)
    authorities = _Authorities(settings)

    def tls() -> ssl.SSLContext:
        fresh = tls_context(authorities.read(), verify=not settings.skip_verify)
        if certificate is not None:
            certificate.load(fresh)
        return fresh

    def identity() -> object:
        return authorities.identity(), certificate and certificate.identity()

    login = login_of(settings, context)
    token = "" if login else given_token(settings)
    trust = Trust(context.component, tls, identity)
    connections = Connections(
        Endpoint(settings.address, context.deadline, trust, settings.tls_server_name or None, settings.namespace)
    )
    unproven, scheduler = PoolAdapter(connections), Scheduler(context.component)

    def changed(token: str) -> None:  # called when there is a store
        if isinstance(store, DynamicStore):
            store.token_changed(token)

    def lent() -> None:
        loans.changed()

    credential: Credential
    if login is not None:
        credential = Session(context.component, login, unproven, scheduler, changed=changed, lent=lent)
    elif isinstance(token, str):
        credential = StaticToken(context.component, token, unproven, scheduler)
    else:
        credential = FileToken(token)
    adapter = PoolAdapter(connections, credential)
    text = settings.value_type == "text"
    session = credential if isinstance(credential, Session) else None
    static = credential if isinstance(credential, StaticToken) else None
    codec = StateCodec(settings, context.annotations)
    loans = SavedLoans(context.component, codec, session, lambda: static.term if static else None)
    checked = partial(explained, unproven, credential, "" if session else _origin(settings))
    store: VaultStore | DynamicStore
    if settings.engine_type == "kv":
        prefix = settings.prefix.strip("/") if settings.use_prefix else ""
        store = VaultStore(adapter, loans, checked, settings.engine, prefix, text=text)
    else:
        engine = _engine(settings, context.annotations)
        store = DynamicStore(
            context.component, adapter, credential, scheduler, engine, loans, checked, text=text, tell=context.tell_loan
        )
    return store


def _origin(settings: Settings) -> str:
    """Say where a given token comes from, and what to do about one that is refused."""
    if settings.token_path:
        return f"the token in {settings.token_path} (vaultTokenMountPath): put a valid one there, it is read again"
    return "vaultToken: give a valid token, or name a file with one in vaultTokenMountPath"


def _engine(settings: Settings, annotations: Mapping[str, str]) -> Engine:
    if settings.engine_type == "pki":
        if CERTIFICATES not in annotations:
            raise ConfigurationError(f"vaultEngineType pki needs the annotation {CERTIFICATES}, which declares them")
        return CertificateEngine(settings.engine, read_certificates(annotations[CERTIFICATES]))
    return RoleEngine(
        settings.engine,
        settings.dynamic_path,
        settings.dynamic_roles,
        json.loads(settings.dynamic_parameters) if settings.dynamic_parameters else None,
        parse_duration(settings.dynamic_idle),
    )


def _refuse_other_engine(settings: Settings, annotations: Mapping[str, str]) -> None:
    other = tuple(start for engine_type, start in _ENGINE_FIELDS.items() if engine_type != settings.engine_type)
    found = [
        spec.name for name, spec in specs(Settings).items() if spec.name.startswith(other) and given(settings, name)
    ]
    if settings.engine_type != "pki":
        found += [name for name in annotations if name == CERTIFICATES]
    if found:
        raise ConfigurationError(f"{found[0]} has no meaning with vaultEngineType {settings.engine_type}")


class _Authorities:
    """The authorities to trust: caPem, else those of caPath, else caCert, else the system's."""

    def __init__(self, settings: Settings) -> None:
        ignored = settings.skip_verify
        self._pem = "" if ignored else settings.ca_pem
        self._folder = Path(settings.ca_path) if settings.ca_path and not (self._pem or ignored) else None
        self._file = Path(settings.ca_cert) if settings.ca_cert and not (self._pem or self._folder or ignored) else None

    def read(self) -> list[str] | None:
        """Return PEM texts; None is the system's. Raises `ConfigurationError`."""
        if self._pem:
            return [self._pem]
        if self._folder is not None and not self._files():
            raise ConfigurationError(f"caPath: couldn't read PEM: {self._folder} holds no file")
        return [_pem(path) for path in self._files()] or None

    def identity(self) -> object:
        """Return what changes when the files do."""
        if self._pem:
            return None
        return [(path, file_identity(path)) for path in self._files()] or system_identity()

    def _files(self) -> list[Path]:
        if self._folder is not None:
            return sorted(path for path in self._folder.rglob("*") if path.is_file())
        return [] if self._file is None else [self._file]


def _pem(path: Path) -> str:
    try:
        return path.read_text("ascii", errors="ignore")
    except OSError as error:
        raise ConfigurationError(f"couldn't read PEM: {path}: {error.strerror}") from None


def _custom(metadata: dict[str, Any]) -> dict[str, str]:
    """Return what people have written down about a secret."""
    custom = metadata.get("custom_metadata")
    if not isinstance(custom, dict):
        return {}
    return {key: value for key, value in custom.items() if isinstance(value, str)}


def _timestamp(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
