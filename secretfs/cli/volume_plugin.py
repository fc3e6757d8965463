"""``secretfs volume-plugin``: the apps of a mount as volumes of Docker and Podman."""

from pathlib import Path

import click

from secretfs.cli.options import DIRECTORY, PATH
from secretfs.errors import ConfigurationError
from secretfs.linux.log import log_to_stderr
from secretfs.linux.mountpoint import resolve

SOCKET = Path("/run/docker/plugins/secretfs.sock")
"""Where Docker looks for a plug-in of that name (docs.docker.com/engine/extend/plugin_api)."""


@click.command("volume-plugin")
@click.option(
    "--socket", type=PATH, default=SOCKET, show_default=True, metavar="PATH", help="The Unix socket to serve at."
)
@DIRECTORY
@click.argument("mountpoint", type=PATH)
def volume_plugin_command(mountpoint: Path, *, socket: Path, directory: Path | None) -> None:
    """Serve the apps of the mount at MOUNTPOINT to Docker and Podman as volumes of the driver `secretfs`.

    The mount is one made with --apps and --allow-other. A volume is the directory of an app: containers that have it
    need neither this process nor the engine to read.

    \b
      secretfs mount --apps apps --allow-other /srv/secrets
      secretfs volume-plugin /srv/secrets &
      docker volume create -d secretfs -o app-id=orders orders
      docker run -v orders:/run/secrets:ro IMAGE

    \b
    Exit codes:
      0  ended by a signal
      2  a mistake in flags, or no socket can be made
      3  another plug-in serves at that socket
    """  # noqa: D301 - a real backspace keeps click from wrapping what follows
    try:
        from secretfs.containers.plugin_server import run  # noqa: PLC0415 - it needs a library that others do not
        from secretfs.containers.volumes import Volumes  # noqa: PLC0415 - likewise
    except ModuleNotFoundError as error:
        message = f"this needs the package {error.name}: pip install secretfs-fuse[containers]"
        raise ConfigurationError(message) from None
    log_to_stderr()
    run(Volumes(resolve(mountpoint), directory), socket)
