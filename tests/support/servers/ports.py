"""Ports for servers that cannot be told to take any that is free."""

import random
import socket
from contextlib import ExitStack


def free_ports(count: int = 1) -> list[int]:
    """Find ports that are free, one after the other.

    They are from outside the range from which the kernel gives ports to others (ip_local_port_range), so that nobody
    is likely to have them before the server does.
    """
    chosen = random.SystemRandom()  # suites that run side by side choose independently
    while True:
        first = chosen.randrange(10_000, 30_000)
        ports = list(range(first, first + count))
        with ExitStack() as stack:
            try:
                for port in ports:
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return ports
