"""The login to Vault with an identity of GCP: a JWT of a service account.

With the key of a service account the JWT is signed here: for roles of type iam. Without one it is from the metadata
server of the machine or the pod: for roles of type gce.
"""

from typing import Final

from hvac.api.auth_methods import Gcp

from secretfs.errors import ConfigurationError, StoreUnavailable
from secretfs.store import StoreContext
from secretfs.stores._http.exchange import Exchange
from secretfs.stores._http.trust import system_trust
from secretfs.stores.gcp.identity import of_machine, read_key, sign
from secretfs.stores.vault.auth import Login, needed
from secretfs.stores.vault.http import PoolAdapter, Response
from secretfs.stores.vault.settings import Settings

_LIFETIME: Final = 600
"""Seconds that a JWT is good for. Roles take no more than 900, unless they say otherwise (``max_jwt_exp``)."""


def login(settings: Settings, context: StoreContext) -> Login:
    """Return the login of a component. Raises `ConfigurationError`, and sends no request."""
    role, path = needed(settings, "gcp_role"), settings.gcp_key_path
    exchange = Exchange(context.deadline, system_trust(context.component))
    try:
        if path:
            read_key(path)
    except ConfigurationError as error:
        raise ConfigurationError(f"vaultGcpKeyPath: {error}") from None

    def token() -> str:
        if path:
            return sign(read_key(path), f"vault/{role}", _LIFETIME)
        return of_machine(exchange, f"http://vault/{role}")

    def send(adapter: PoolAdapter) -> Response:
        try:
            with exchange.time.within(adapter.connections.remaining()):
                found = token()
        except ConfigurationError as error:  # a file that could be used when the store was opened
            raise StoreUnavailable(f"vaultGcpKeyPath: {error}") from None
        finally:
            exchange.close()
        answer: Response = Gcp(adapter).login(role, found, use_token=False, mount_point=settings.gcp_mount)
        return answer

    return Login("gcp", send)
