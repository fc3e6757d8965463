"""The login to Vault with an identity of Azure: the token of a workload identity or of a managed identity.

Roles may be bound to a subscription, a resource group or a machine; what a virtual machine is, its metadata says.
"""

from typing import Any, Final

from hvac.api.auth_methods import Azure

from secretfs.errors import StoreError
from secretfs.store import StoreContext
from secretfs.stores._http.exchange import Exchange
from secretfs.stores._http.trust import system_trust
from secretfs.stores.azure.credentials import Identity, cloud, credential_sources, metadata_host, on_virtual_machine
from secretfs.stores.azure.login import Login as AzureLogin
from secretfs.stores.azure.store import quiet_sdks
from secretfs.stores.azure.transport import DeadlineTransport
from secretfs.stores.vault.auth import Login, needed
from secretfs.stores.vault.http import PoolAdapter, Response
from secretfs.stores.vault.settings import Settings

_METHODS: Final = "workloadidentity,managedidentity"
_PROBE: Final = 1.0  # seconds that the metadata of a virtual machine have to show that they are there
_INSTANCE: Final = "/metadata/instance/compute?api-version=2021-02-01&format=json"
_PLACE: Final = {
    "subscription_id": "subscriptionId",
    "resource_group_name": "resourceGroupName",
    "vm_name": "name",
    "vmss_name": "vmScaleSetName",
}
"""What Vault calls what the metadata call so."""


def login(settings: Settings, context: StoreContext) -> Login:
    """Return the login of a component. Raises `ConfigurationError`, and sends no request."""
    quiet_sdks()
    role = needed(settings, "azure_role")
    scope = f"{settings.azure_resource}/.default"  # also if that makes two slashes: the audience has the first
    transport = DeadlineTransport(context.component, context.deadline)
    identity = Identity(cloud(""), client_id=settings.azure_client_id)
    chain = credential_sources(context.component, identity, _METHODS, transport)
    exchange = Exchange(context.deadline, system_trust(context.component))

    def send(adapter: PoolAdapter) -> Response:
        left = adapter.connections.remaining()
        # A new one each time: a token is asked for when the one of Vault has ended, and then it must be fresh.
        with transport.time.within(left), exchange.time.within(left):
            token = AzureLogin(context.component, chain, transport).get_token_info(scope).token
            place = _place(exchange)
        answer: Response = Azure(adapter).login(role, token, **place, use_token=False, mount_point=settings.azure_mount)
        return answer

    return Login("azure", send)


def _place(exchange: Exchange) -> dict[str, str]:
    """Return where the virtual machine is that this runs on; nothing anywhere else."""
    if not on_virtual_machine():
        return {}
    try:
        answer = exchange.send("GET", metadata_host() + _INSTANCE, {"Metadata": "true"}, timeout=_PROBE)
    except StoreError:  # a workload identity; if the role needs to know, it refuses
        return {}
    finally:
        exchange.close()
    found: Any = answer.json() if answer.status == 200 else None
    if not isinstance(found, dict):
        return {}
    known = {name: found.get(called) for name, called in _PLACE.items()}
    if known["vmss_name"]:
        del known["vm_name"]
    return {name: text for name, text in known.items() if isinstance(text, str) and text}
