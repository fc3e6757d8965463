"""The program of a standby (`secretfs.daemon.standby`): ``python -m secretfs.cli.standby mount ...``.

Imports what the worker before it has imported, waits for its turn, and then is that worker: `main` finds the
descriptors in the places where a worker that has just been started has them.
"""

import fcntl
import gc
import importlib
import os
import pickle
import signal
import socket
import sys
from contextlib import closing, suppress
from typing import Final, NoReturn

from secretfs.cli.reporting import reporting
from secretfs.daemon.request import Request
from secretfs.daemon.stored import CHANNEL, MODULES, TURN, WATCHDOG
from secretfs.linux.environment import hide_environment
from secretfs.linux.log import log_to_stderr
from secretfs.linux.process import set_name
from secretfs.linux.sd_notify import stored_descriptors

_NAME: Final = "secretfs-next"
_FIRST: Final = 3  # SD_LISTEN_FDS_START
_LIMIT: Final = 8192
_LONGEST: Final = 1 << 20  # more than a message can have
_MOST: Final = 253  # SCM_MAX_FD of linux/net/scm.h


def main() -> NoReturn:
    """Wait to be a worker, and be one. Ends with 0 if there is no need of it."""
    hide_environment()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is for the supervisor, too; here it ends without a word
    stored = stored_descriptors()
    turn = socket.socket(fileno=stored.pop(TURN))
    _import_all(stored.pop(MODULES))
    set_name(_NAME)
    gc.freeze()  # what is imported stays: collections need not look at it
    with suppress(OSError), closing(socket.socket(fileno=stored.pop(CHANNEL))) as channel:
        channel.send(b"STANDS_BY=1")
    _wait_for(turn)
    from secretfs.cli.main import main as run  # noqa: PLC0415 - it has been imported above

    run()


def be_first(turn: socket.socket) -> NoReturn:
    """Do the same as the first worker of a mount, forked from the command: `secretfs.daemon.beginning`."""
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # as the supervisor has it for all workers
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not sys.flags.safe_path:
        del sys.path[0]  # nothing is imported from the working directory
    import secretfs.daemon.worker  # noqa: PLC0415, F401 - all that takes time
    from secretfs.daemon.start import mount  # noqa: PLC0415

    set_name(_NAME)
    request = turn.recv(_LONGEST)
    if not request:  # the command was wrong
        sys.exit(0)
    _wait_for(turn)
    os.environ["WATCHDOG_USEC"] = str(int(WATCHDOG * 1e6))
    asked: Request = pickle.loads(request)  # noqa: S301 - of the process that we were forked from
    log_to_stderr(as_json=asked.log_as_json and asked.foreground)
    sys.exit(reporting(lambda: mount(asked, ())))


def _wait_for(turn: socket.socket) -> None:
    """Wait until the supervisor sends what a worker has from it; ends this process if it does not."""
    names, descriptors, _, _ = socket.recv_fds(turn, _LIMIT, _MOST)
    turn.close()
    if not names:  # the supervisor has ended
        sys.exit(0)
    _put_in_place(names.decode(), descriptors)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _import_all(file: int) -> None:
    """Import what a file names, a module a line. What cannot be imported is left to whoever needs it."""
    with open(file, encoding="utf-8") as names:
        names.seek(0)
        for name in names.read().split():
            with suppress(Exception):
                importlib.import_module(name)


def _put_in_place(names: str, descriptors: list[int]) -> None:
    """Have descriptors where sd_listen_fds(3) has them."""
    last = _FIRST + len(descriptors)
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, last) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for target, descriptor in enumerate(high, _FIRST):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": names}


if __name__ == "__main__":
    main()
