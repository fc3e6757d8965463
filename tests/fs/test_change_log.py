"""One line for all values of a store that change together."""

import logging

import pytest
import trio
import trio.testing

from secretfs.fs.change_log import TOGETHER, ChangeLog


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


async def test_what_changes_together_is_one_line(
    lines: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    changes = ChangeLog()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(changes.run)
        for _ in range(3):
            changes.add("vault", 2)
            await trio.sleep(TOGETHER / 4)
        changes.add("file", 1)
        await trio.sleep(TOGETHER)
        assert lines.messages == ["vault: values changed: 6", "file: values changed: 1"]
        changes.add("vault", 1)
        await trio.sleep(2 * TOGETHER)
        assert lines.messages[2:] == ["vault: values changed: 1"]
        await trio.sleep(100 * TOGETHER)
        nursery.cancel_scope.cancel()
    assert len(lines.messages) == 3


async def test_what_is_noted_at_the_end_is_logged(
    lines: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    changes = ChangeLog()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(changes.run)
        changes.add("vault", 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert lines.messages == ["vault: values changed: 1"]
