"""``secretfs unmount``: the end of a mount, by force if need be."""

from pathlib import Path

import click

from secretfs.cli.options import PATH
from secretfs.daemon.processes import force_unmount, unmount_and_wait
from secretfs.linux.mountpoint import resolve


@click.command("unmount")
@click.option(
    "--force", is_flag=True, help="Unmount even if it hangs or is in use: end its processes, let pending reads fail."
)
@click.argument("mountpoint", type=PATH)
def unmount_command(mountpoint: Path, *, force: bool) -> None:
    """Unmount MOUNTPOINT and end the process that serves it. It fails while a file in the mount is open.

    With --force it neither fails nor waits: programs that hang in the mount, or have files of it open, get an error,
    and the processes that serve it are killed if they do not end by themselves.

    \b
    Exit codes:
      0  unmounted
      2  a mistake in flags
      3  there is no secretfs, it is in use, or it is somebody else's
    """  # noqa: D301 - a real backspace keeps click from wrapping what follows
    path = resolve(mountpoint)
    if force:
        force_unmount(path)
    else:
        unmount_and_wait(path)
