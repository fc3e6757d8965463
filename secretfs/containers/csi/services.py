"""The services of the driver as functions from bytes to bytes: CSI's Identity and Node, and the kubelet's registration.

A call that fails raises `SecretFSError`, whose status code `secretfs.containers.csi.failures` knows.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import secretfs
from secretfs.containers.csi import messages
from secretfs.containers.csi.failures import InvalidArgument
from secretfs.containers.csi.volumes import Volumes

IDENTITY: Final = "csi.v1.Identity"
NODE: Final = "csi.v1.Node"
REGISTRATION: Final = "pluginregistration.Registration"
VERSION: Final = "1.0.0"
"""Of the protocol. The kubelet compares the major version."""

Method = Callable[[bytes], bytes]
Service = Mapping[str, Method]
"""The methods of a service by name. What is not there is answered with UNIMPLEMENTED."""
T = TypeVar("T")

log = logging.getLogger(__name__)


def identity(name: str, volumes: Volumes) -> Service:
    """Return the service by which the driver says what it is, and whether it is well."""
    return {
        "GetPluginInfo": lambda _: messages.plugin_info_response(name, secretfs.__version__),
        "GetPluginCapabilities": lambda _: messages.EMPTY,  # there is no controller
        "Probe": lambda _: messages.probe_response(ready=volumes.is_ready()),
    }


def node(node_id: str, volumes: Volumes) -> Service:
    """Return the service that publishes volumes on this node."""

    def publish(message: bytes) -> bytes:
        request = _read(messages.read_publish_request, message)
        volumes.publish(request)
        log.info("volume %s is published at %s", request.volume_id, request.target_path)
        return messages.EMPTY

    def unpublish(message: bytes) -> bytes:
        request = _read(messages.read_unpublish_request, message)
        volumes.unpublish(request)
        log.info("volume %s is unpublished at %s", request.volume_id, request.target_path)
        return messages.EMPTY

    return {
        "NodeGetInfo": lambda _: messages.node_info_response(node_id),
        "NodeGetCapabilities": lambda _: messages.node_capabilities_response(messages.VOLUME_MOUNT_GROUP),
        "NodePublishVolume": publish,
        "NodeUnpublishVolume": unpublish,
    }


def registration(name: str, endpoint: Path) -> Service:
    """Return the service by which the kubelet's plug-in watcher learns of the driver."""

    def notify(message: bytes) -> bytes:
        status = _read(messages.read_registration_status, message)
        if status.registered:
            log.info("the kubelet has registered the driver %s", name)
        else:
            log.error("the kubelet has not registered the driver %s: %s", name, status.error)
        return messages.EMPTY

    return {
        "GetInfo": lambda _: messages.registration_info(name, str(endpoint), VERSION),
        "NotifyRegistrationStatus": notify,
    }


def _read(read: Callable[[bytes], T], message: bytes) -> T:
    try:
        return read(message)
    except ValueError as error:
        reason = "a text is not UTF-8" if isinstance(error, UnicodeError) else str(error)
        raise InvalidArgument(f"the request cannot be read: {reason}") from None
