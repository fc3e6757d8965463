"""The process that renders: when it ends, hangs or does what it should not, another one does the work."""

import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.errors import DeadlineExceeded, RenderingFailed, StoreError
from secretfs.rendering import forker
from secretfs.rendering.conversation import PATIENCE, Asked
from secretfs.rendering.job import LARGEST_MESSAGE, Format, Job, Kind, Mode, Template, pack
from secretfs.rendering.renderer import Renderer
from tests.conftest import ExpectLog
from tests.support import render_process

SECRET = Job(Format.TEXT, Template("{{ secret('v', 'token') }}"))
REPLACED = "the process that renders files {}: another is started"


async def ask_secret(store: str, name: str) -> Mapping[str, bytes]:
    return {"token": b"t1"}


async def ask_folder(store: str, folder: str) -> list[str]:
    return []


ASKED = Asked(ask_secret, ask_folder)


def text(source: str) -> Job:
    return Job(Format.TEXT, Template(source))


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    made = Renderer()
    yield made
    made.close()


async def kill(pid: int) -> None:
    """Kill a process, and wait for its end."""
    process = os.pidfd_open(pid)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    await trio.lowlevel.wait_readable(process)
    os.close(process)


async def stop(pid: int) -> None:
    """Stop a process, and wait until it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    await trio.to_thread.run_sync(os.waitid, os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


async def test_one_that_ends_before_it_begins_is_replaced(renderer: Renderer, expect_log: ExpectLog) -> None:
    expect_log(REPLACED.format("has ended"))
    await renderer.render(text("1"), ASKED)
    before = renderer.pid
    await stop(before)
    made: list[bytes] = []

    async def render() -> None:
        made.append(await renderer.render(text("2"), ASKED))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(render)
        await wait_all_tasks_blocked()  # it has been asked, and does not answer
        await kill(before)
    assert made == [b"2"]
    assert renderer.pid != before


async def test_one_that_ends_in_the_middle_is_no_fault_of_the_template(
    renderer: Renderer, expect_log: ExpectLog
) -> None:
    expect_log(REPLACED.format("has ended"))
    pids: list[int] = []

    async def ask(store: str, name: str) -> Mapping[str, bytes]:
        pids.append(renderer.pid)
        if len(pids) == 1:
            await kill(renderer.pid)
        return {"token": b"t1"}

    assert await renderer.render(SECRET, Asked(ask, ask_folder)) == b"t1"
    assert len(set(pids)) == 2


async def out_of_patience(renderer: Renderer, mock_clock: MockClock) -> None:
    """Render with a process that does not begin, until its time is over."""

    async def render() -> None:
        with pytest.raises(DeadlineExceeded, match="does not begin"):
            await renderer.render(text("2"), ASKED)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(render)
        await wait_all_tasks_blocked()
        mock_clock.jump(PATIENCE)


async def test_one_that_hangs_is_replaced(renderer: Renderer, mock_clock: MockClock, expect_log: ExpectLog) -> None:
    expect_log(REPLACED.format("hangs"))
    await renderer.render(text("1"), ASKED)
    before = renderer.pid
    await stop(before)

    await out_of_patience(renderer, mock_clock)
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    assert await renderer.render(text("3"), ASKED) == b"3"


async def test_one_that_takes_no_more_requests_holds_up_nobody(
    renderer: Renderer, mock_clock: MockClock, expect_log: ExpectLog
) -> None:
    """When the socket is full, to send waits in this task only, and not for ever."""
    expect_log(REPLACED.format("hangs"))
    await renderer.render(text("1"), ASKED)
    await stop(renderer.pid)
    for _ in range(_more_than_a_socket_takes()):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renderer.render, text("2"), ASKED)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    await out_of_patience(renderer, mock_clock)
    assert await renderer.render(text("4"), ASKED) == b"4"


def _more_than_a_socket_takes() -> int:
    """Return more than how many requests fit into a socket: each takes at least 512 bytes of the kernel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        return ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 512


def fake(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(forker, "PROGRAM", [sys.executable, "-P", str(render_process.__file__), *arguments])


async def test_one_that_ends_again_and_again(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    expect_log(REPLACED.format("has ended"))
    fake(monkeypatch, "ends")
    with pytest.raises(StoreError, match="no process renders: 2 have ended"):
        await renderer.render(text("1"), ASKED)
    monkeypatch.undo()
    assert await renderer.render(text("2"), ASKED) == b"2"


MALFORMED = {
    "no JSON": pack(Kind.SECRET, b"{"),
    "no UTF-8": pack(Kind.FAULT, b"\xff"),
    "deep JSON": pack(Kind.SECRET, b"[" * 50_000),
    "one name": pack(Kind.SECRET, b'["v"]'),
    "a number as a name": pack(Kind.FOLDER, b'["v", 1]'),
    "a text": pack(Kind.SECRET, b'"ab"'),
    "a fault without a text": pack(Kind.FAULT, b'[1, 1, ""]'),
    "an unknown message": b"\0\0\0\1?x",
    "a message to it": pack(Kind.JOB, b"{}"),
    "a message of another mode": pack(Kind.NEEDS, b"[]"),
    "much": (LARGEST_MESSAGE + 1).to_bytes(4, "big") + Kind.OUTCOME.value,
    "no descriptor": b"",
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_one_that_sends_what_it_should_not_is_replaced(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog, what: str
) -> None:
    expect_log(REPLACED.format("does not do what it should"))
    fake(monkeypatch, MALFORMED[what].hex() or what)
    with pytest.raises(RenderingFailed, match="the process that renders does not do what it should"):
        await renderer.render(SECRET, ASKED)
    assert renderer.pid == 0
    monkeypatch.undo()
    assert await renderer.render(SECRET, ASKED) == b"t1"


@pytest.mark.parametrize("payload", [b"{}", b'["v"]', b"[[1]]"])
async def test_what_a_file_needs_is_no_less_suspect(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog, payload: bytes
) -> None:
    expect_log(REPLACED.format("does not do what it should"))
    fake(monkeypatch, pack(Kind.NEEDS, payload).hex())
    with pytest.raises(RenderingFailed, match="does not do what it should"):
        await renderer.render(SECRET, ASKED, Mode.NEEDS)


async def test_a_name_that_is_too_long_is_the_templates_fault(renderer: Renderer) -> None:
    """The process goes on: else one app could have those of all others rendered again."""
    await renderer.render(text("1"), ASKED)
    before = renderer.pid
    with pytest.raises(RenderingFailed, match="the names that it asks for are too long"):
        await renderer.render(text(f"{{{{ secret('v', 'x' * {LARGEST_MESSAGE}) }}}}"), ASKED)
    assert renderer.pid == before


def own_state() -> tuple[set[str], str]:
    """Return the open files of this process, and its children."""
    return set(os.listdir("/proc/self/fd")), Path(f"/proc/self/task/{os.getpid()}/children").read_text()  # noqa: PTH208


async def test_one_that_cannot_be_held_is_ended(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of it, neither a process nor a descriptor."""
    await trio.to_thread.run_sync(os.getpid)  # a thread is there from now on
    before = own_state()

    def refuse(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(StoreError, match="no process renders: Too many open files"):
        await renderer.render(text("1"), ASKED)
    assert own_state() == before
    monkeypatch.undo()
    assert await renderer.render(text("2"), ASKED) == b"2"
