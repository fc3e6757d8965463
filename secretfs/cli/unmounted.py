"""What `tree`, `cat` and `get` have in common: stores that are opened for one look, and how its failures are told."""

import errno
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Final

from secretfs.cli.output import progress, warn
from secretfs.cli.reporting import complain
from secretfs.daemon.unmounted import Path, UnmountedTree, narrow, open_tree
from secretfs.dapr.declaration import Declaration
from secretfs.errors import SecretFSError
from secretfs.linux.process import forbid_dumps, return_freed_memory
from secretfs.registry.opening import Registry
from secretfs.settings import nearest_name

EXIT_NOT_THERE: Final = 1


@asynccontextmanager
async def looking(declaration: Declaration, paths: Sequence[Path]) -> AsyncIterator[tuple[UnmountedTree, Registry]]:
    """Open the stores of these paths, and no other. On a terminal it shows how far that is.

    Warnings are said, as `mount` does.
    """
    return_freed_memory()
    forbid_dumps()
    narrowed = narrow(declaration, paths)
    with ExitStack() as shown:
        step = shown.enter_context(progress(len(narrowed.components)))
        async with open_tree(declaration, narrowed, lambda _: step()) as (tree, registry):
            shown.close()
            for notice in (*declaration.notices, *registry.notices):
                warn(str(notice))
            yield tree, registry


def shown_path(path: Path) -> str:
    """Return a path for people."""
    return "/".join(segment.decode(errors="backslashreplace") for segment in path) or "/"


async def tell(tree: UnmountedTree, path: Path, error: SecretFSError | OSError) -> int:
    """Say why a path cannot be read, in the words of the errno that a mount would give. Returns the exit code.

    What is not there and what the scope hides look the same.
    """
    words, shown = os.strerror(error.errno or errno.EIO), shown_path(path)
    if error.errno == errno.ENOENT:
        complain(f"{shown}: {words}{await _nearest(tree, path)}")
        return EXIT_NOT_THERE
    if isinstance(error, OSError):
        complain(f"{shown}: {words}")
        return EXIT_NOT_THERE
    complain(f"{shown}: {words}: {error}")
    return error.exit_code


async def _nearest(tree: UnmountedTree, path: Path) -> str:
    """Name what is most like the first part of a path that is not there. Reads no value that was not asked for."""
    for depth, segment in enumerate(path):
        try:
            names = await tree.list(path[:depth])
        except (SecretFSError, OSError):
            break
        if segment not in names:
            known = nearest_name(os.fsdecode(segment), map(os.fsdecode, names))
            return f" (did you mean {'/'.join([*map(os.fsdecode, path[:depth]), known])}?)" if known else ""
    return ""


def put_out(data: bytes) -> None:
    """Write to standard output as it is. Who reads no more ends us, as every filter."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
