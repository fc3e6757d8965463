"""The messages of the driver's protocols as bytes: CSI's Identity and Node, and the kubelet's plug-in registration.

Only what the driver reads or says is here: of a request it needs few fields, and most of its answers are empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from secretfs import protobuf
from secretfs.protobuf import Message

EMPTY: Final = b""
"""The answer to a publish and to an unpublish; and that there are no capabilities."""
VOLUME_MOUNT_GROUP: Final = 6
"""``NodeServiceCapability.RPC.Type``: the driver gives the files of a volume to the group that the kubelet names."""


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """``NodePublishVolumeRequest``, as far as the driver reads it."""

    volume_id: str = ""
    target_path: str = ""
    has_capability: bool = False
    is_block: bool = False
    """Whether a block device is wanted instead of files."""
    mount_flags: Sequence[str] = field(default=(), repr=False)
    """Options of mount(8). The specification says that there may be credentials among them."""
    mount_group: str = ""
    """``volume_mount_group``: the id of the group that the pod wants to read the files (``fsGroup``); or nothing."""
    context: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The attributes of the volume, and what the kubelet adds. The tokens of the pod are among them."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class UnpublishRequest:
    """``NodeUnpublishVolumeRequest``."""

    volume_id: str = ""
    target_path: str = ""


@dataclass(frozen=True, slots=True)
class RegistrationStatus:
    """``RegistrationStatus``: whether the kubelet has accepted the driver."""

    registered: bool = False
    error: str = ""


def read_publish_request(encoded: bytes) -> PublishRequest:
    """Read a ``NodePublishVolumeRequest``. Raises `ValueError` for what is none."""
    message = Message(encoded)
    capability = message.within(5)
    mount = capability.within(2)
    return PublishRequest(
        volume_id=message.text(1),
        target_path=message.text(4),
        has_capability=5 in message,
        is_block=1 in capability,
        mount_flags=[protobuf.as_text(flag).decode() for flag in mount.all(2)],
        mount_group=mount.text(3),
        context=message.texts(8),
        secrets=message.texts(7),
    )


def read_unpublish_request(encoded: bytes) -> UnpublishRequest:
    """Read a ``NodeUnpublishVolumeRequest``. Raises `ValueError` for what is none."""
    message = Message(encoded)
    return UnpublishRequest(message.text(1), message.text(2))


def read_registration_status(encoded: bytes) -> RegistrationStatus:
    """Read a ``RegistrationStatus``. Raises `ValueError` for what is none."""
    message = Message(encoded)
    return RegistrationStatus(bool(message.number(1)), message.text(2))


def plugin_info_response(name: str, version: str) -> bytes:
    """Write a ``GetPluginInfoResponse``."""
    return protobuf.text(1, name) + protobuf.text(2, version)


def probe_response(*, ready: bool) -> bytes:
    """Write a ``ProbeResponse``."""
    return protobuf.field(1, protobuf.varint(1, 1) if ready else b"")


def read_probe_response(encoded: bytes) -> bool:
    """Read a ``ProbeResponse``: whether it says that the driver is ready. Raises `ValueError` for what is none."""
    return bool(Message(encoded).within(1).number(1))


def node_info_response(node_id: str) -> bytes:
    """Write a ``NodeGetInfoResponse``: a node may have as many volumes as it likes."""
    return protobuf.text(1, node_id)


def node_capabilities_response(*capabilities: int) -> bytes:
    """Write a ``NodeGetCapabilitiesResponse``."""
    rpcs = (protobuf.field(1, protobuf.varint(1, capability)) for capability in capabilities)
    return b"".join(protobuf.field(1, rpc) for rpc in rpcs)


def registration_info(name: str, endpoint: str, *versions: str) -> bytes:
    """Write the ``PluginInfo`` of a CSI driver for the kubelet."""
    known = b"".join(protobuf.text(4, version) for version in versions)
    return protobuf.text(1, "CSIPlugin") + protobuf.text(2, name) + protobuf.text(3, endpoint) + known
