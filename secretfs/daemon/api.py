"""The Secrets API of a mount, composed: what it shows of the stores, to whom, and where it listens."""

import os
import socket
from collections.abc import Iterator

from secretfs.api.address import TOKEN_VARIABLE
from secretfs.api.application import Application
from secretfs.api.messages import RegisteredComponent
from secretfs.api.secrets_api import SecretsApi
from secretfs.api.server import serve_api
from secretfs.fs.by_name import SecretsByName
from secretfs.observe.audit import AuditLog
from secretfs.registry.store_set import StoreSet

_MULTIPLE_KEYS = "MULTIPLE_KEY_VALUES_PER_SECRET"  # components-contrib, secretstores/feature.go


async def serve_secrets(
    secrets: SecretsByName, app_id: str, stores: StoreSet, audit: AuditLog, listening: socket.socket
) -> None:
    """Serve the secrets of a mount to the clients that connect, forever."""

    def components() -> Iterator[RegisteredComponent]:
        for name, store in stores.shown.items():
            component = store.opened.component
            capabilities = (_MULTIPLE_KEYS,) if store.cached.multi_valued else ()
            yield RegisteredComponent(name, component.type, component.version, capabilities)

    def namespace_of(name: str) -> str | None:
        store = stores.shown.get(name)
        return None if store is None else getattr(store.opened.store, "namespace", None)

    api = SecretsApi(secrets, app_id, components, namespace_of, audit)
    await serve_api(Application(api, os.environ.get(TOKEN_VARIABLE, "")), listening)
