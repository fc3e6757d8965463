"""The process that renders: it forks a process for each file, which the kernel ends when it takes too much.

``python -m secretfs.rendering.server`` serves the socket that is its standard input. It has imported Jinja2 when a
request comes, so a file costs a fork. Each process has the secrets of one file, no file descriptor but a socket, and
may open none. It ends with this one, and this one with the daemon.

Started with ``--check``, it reads templates and says which of them are mistakes: see `secretfs.rendering.check`.
"""

import ctypes
import gc
import json
import math
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Final, NoReturn

from secretfs.linux.process import forbid_dumps
from secretfs.rendering.evaluation import Evaluation
from secretfs.rendering.job import (
    CHECKING,
    CPU_SECONDS,
    LARGEST_MESSAGE,
    MEMORY,
    WITH_CRYPTOGRAPHY,
    Fault,
    Kind,
    Mode,
    job_from_json,
    pack,
    secret_from_json,
)
from secretfs.rendering.language import TemplateFault, check, warm_up

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PR_SET_NAME: Final = 15


def main() -> NoReturn:
    """Serve requests, or check templates."""
    _ignore_terminal()
    os.chdir("/")
    if os.getpriority(os.PRIO_PROCESS, 0) < 0:  # that of the daemon: nobody knows how long a template takes
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    forbid_dumps()
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"secretfs-render", 0, 0, 0)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if sys.argv[1:] == ["--check"]:
        _check_all()
    else:
        os.dup2(2, 1)
        _serve(socket.socket(fileno=0))
    os._exit(0)


def _ignore_terminal() -> None:
    """Leave signals to the daemon, and its terminal to what it says itself: a traceback may quote a value."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    os.close(null)


def _serve(requests: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    warm_up()
    gc.freeze()
    own = os.getpid()
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, 16, 1)
        if not request:
            return
        if request == WITH_CRYPTOGRAPHY:
            import secretfs.rendering.certificates  # noqa: F401, PLC0415 - once, for all that follow
        for descriptor in descriptors:
            if os.fork() == 0:
                _render_in_this_process(requests, descriptor, own)
            os.close(descriptor)


def _render_in_this_process(requests: socket.socket, descriptor: int, parent: int) -> NoReturn:
    try:
        requests.close()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:
            talk = Conversation(socket.socket(fileno=descriptor))
            talk.introduce()
            limit_this_process()
            talk.run()
    finally:
        os._exit(0)


def limit_this_process() -> None:
    """Have the kernel refuse memory and descriptors over the limits, and end this process when its time is over."""
    _limit_memory()
    _limit_time()


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    size = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _limit_time() -> None:
    """Set the soft limit, so that another one can follow: what it sends ends this process, as nothing handles it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


class Conversation:
    """One file: the job comes in, secrets are asked for, the outcome goes out."""

    def __init__(self, daemon: socket.socket) -> None:
        self._daemon = daemon

    def introduce(self) -> None:
        """Hand over a descriptor of this process, by which the daemon can end it."""
        own = os.pidfd_open(os.getpid())
        socket.send_fds(self._daemon, [b"P"], [own])
        os.close(own)

    def run(self) -> None:
        """Do the job."""
        job, mode = job_from_json(self._receive())
        work = Evaluation(job, mode, self._secret, self._folder)
        try:
            outcome = work.run()
            if mode is Mode.NEEDS:
                self._send(Kind.NEEDS, json.dumps(list(work.needs)).encode())
            else:
                self._send(Kind.OUTCOME, outcome)
        except TemplateFault as error:
            self._send(Kind.FAULT, _fault_to_json(error.fault))
        except MemoryError:
            self._send(Kind.FAULT, _fault_to_json(Fault("it takes too much memory")))
        except Exception as error:  # noqa: BLE001 - whatever it is, its text may quote a value
            self._send(Kind.FAULT, _fault_to_json(Fault(f"it fails with {type(error).__name__}")))

    def _secret(self, store: str, name: str) -> dict[str, bytes]:
        self._send(Kind.SECRET, json.dumps([store, name]).encode())
        return secret_from_json(self._receive())

    def _folder(self, store: str, folder: str) -> list[str]:
        self._send(Kind.FOLDER, json.dumps([store, folder]).encode())
        names: list[str] = json.loads(self._receive())
        return names

    def _send(self, kind: Kind, payload: bytes) -> None:
        if len(payload) > LARGEST_MESSAGE:
            raise TemplateFault(Fault("the names that it asks for are too long"))
        self._daemon.sendall(pack(kind, payload))

    def _receive(self) -> bytes:
        header = self._exactly(5)
        return self._exactly(int.from_bytes(header[:4], "big"))

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._daemon.recv(min(count, 1 << 16))
            if not part:
                os._exit(0)  # the daemon does not want it any more
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def _fault_to_json(fault: Fault) -> bytes:
    return json.dumps([fault.message[:500], fault.line, fault.field[:200]]).encode()


def _check_all() -> None:
    """Read templates as a list of JSON, and write a line of JSON about each: a fault, or the stores that it asks."""
    sources: list[str] = json.loads(sys.stdin.buffer.read())
    warm_up()
    _limit_memory()
    _write_line(CHECKING)
    for source in sources:
        _limit_time()
        found = check(source)
        fault = found.fault and [found.fault.message, found.fault.line]
        _write_line(json.dumps({"fault": fault} if fault else {"stores": [found.stores, found.asks_others]}).encode())


def _write_line(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
