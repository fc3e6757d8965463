"""The HTTP endpoint: one page, whatever is sent to it."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.observe.endpoint import AT_ONCE, LARGEST_REQUEST, PATIENCE, Page, serve_pages
from secretfs.observe.measures import Format
from tests.conftest import ExpectLog

Port = int


async def page(form: Format) -> bytes:
    return f"the page as {form}\n".encode()


async def broken(form: Format) -> bytes:
    raise KeyError(form)


async def start(nursery: trio.Nursery, make: Page = page) -> Port:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(serve_pages, listener, make)
    return int(listener.socket.getsockname()[1])


@pytest.fixture
async def port(nursery: trio.Nursery) -> Port:
    return await start(nursery)


async def ask(port: Port, request: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request)
        return b"".join([chunk async for chunk in stream])


async def get(port: Port, path: str = "/metrics", accept: str = "", method: str = "GET") -> tuple[bytes, bytes]:
    answer = await ask(port, f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


async def test_the_page_in_both_formats(port: Port) -> None:
    head, body = await get(port)
    assert head.startswith(b"HTTP/1.1 200")
    assert b"text/plain; version=0.0.4" in head
    assert body == b"the page as classic\n"
    head, body = await get(port, accept="application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3")
    assert b"application/openmetrics-text" in head
    assert body == b"the page as openmetrics\n"


async def test_what_else_is_asked_for(port: Port) -> None:
    assert (await get(port, "/"))[0].startswith(b"HTTP/1.1 404")
    assert (await get(port, "/metrics?x=y"))[0].startswith(b"HTTP/1.1 200")
    assert (await get(port, method="POST"))[0].startswith(b"HTTP/1.1 405")
    head, body = await get(port, method="HEAD")
    assert (head.startswith(b"HTTP/1.1 200"), body) == (True, b"")


@pytest.mark.parametrize("text", [b"\0\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
async def test_nonsense(port: Port, text: bytes) -> None:
    assert (await ask(port, text)).startswith(b"HTTP/1.1 400")


async def test_a_request_without_an_end(port: Port) -> None:
    assert (await ask(port, b"GET / HTTP/1.1\r\nx: " + b"y" * LARGEST_REQUEST)).startswith(b"HTTP/1.1 431")


async def test_who_says_nothing_is_in_nobodys_way(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    port = await start(nursery)
    silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(AT_ONCE)]
    await wait_all_tasks_blocked(0.01)
    nursery.start_soon(mock_clock_jumps, mock_clock)
    assert (await get(port))[1] == b"the page as classic\n"
    for stream in silent:
        assert await stream.receive_some() == b""
        await stream.aclose()


def accepted(port: Port) -> int:
    """Return how many connections have a socket: those that the kernel keeps for us have none (proc_pid_net(5))."""
    fields = [line.split() for line in Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return sum(each[1].endswith(f":{port:04X}") and each[3] == "01" and each[9] != "0" for each in fields)


async def test_those_who_wait_take_no_descriptor(nursery: trio.Nursery) -> None:
    port = await start(nursery)
    silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(AT_ONCE + 5)]
    await wait_all_tasks_blocked(0.01)
    assert accepted(port) == AT_ONCE
    for stream in silent:
        await stream.aclose()
    assert (await get(port))[1] == b"the page as classic\n"


async def mock_clock_jumps(mock_clock: MockClock) -> None:
    await wait_all_tasks_blocked(0.01)
    mock_clock.jump(PATIENCE)


async def test_a_defect_costs_one_answer(nursery: trio.Nursery, expect_log: ExpectLog) -> None:
    expect_log("KeyError")
    port = await start(nursery, broken)
    assert await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    nursery.cancel_scope.cancel()
