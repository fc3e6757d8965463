"""The probe of a driver, for the liveness of its pod: whether it answers, and whether its mount does."""

from pathlib import Path
from typing import Final
from urllib.parse import quote

import grpc

from secretfs.containers.csi.messages import read_probe_response
from secretfs.containers.csi.services import IDENTITY
from secretfs.errors import MountError

PATIENCE: Final = 10.0
"""Seconds that the driver has for an answer."""


def require_ready(socket: Path) -> None:
    """Raise `MountError` unless the driver at a socket is ready."""
    with grpc.insecure_channel(f"unix:{quote(str(socket))}") as channel:
        try:
            answer = channel.unary_unary(f"/{IDENTITY}/Probe")(b"", timeout=PATIENCE)
        except grpc.RpcError as error:
            raise MountError(f"the driver at {socket} does not answer ({error.code().name})") from None
    if not read_probe_response(answer):
        raise MountError("the mount does not answer; the log of the driver has the reason")
