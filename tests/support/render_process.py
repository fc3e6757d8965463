"""A process in place of the one that renders, which forks one that sends what it is told, as hexadecimal digits.

Without digits it forks nothing: with ``ends`` it ends at the first request, with ``silent`` it says nothing.
"""

import os
import signal
import socket
import sys


def main() -> None:
    """Serve requests on standard input."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    requests = socket.socket(fileno=0)
    what = sys.argv[1]
    while True:
        request, ends, _, _ = socket.recv_fds(requests, 16, 1)
        if not request or what == "ends":
            return
        for end in ends:
            if os.fork() == 0:
                requests.close()
                _talk(socket.socket(fileno=end), what)
                os._exit(0)
            os.close(end)


def _talk(daemon: socket.socket, what: str) -> None:
    if what == "no descriptor":
        daemon.sendall(b"P")
    else:
        socket.send_fds(daemon, [b"P"], [os.pidfd_open(os.getpid())])
        daemon.sendall(bytes.fromhex(what))
    while daemon.recv(1 << 16):
        pass  # until the daemon has had enough


if __name__ == "__main__":
    main()
