"""The file with metrics, when metrics cannot be made."""

import errno
import os
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from secretfs.daemon.measuring import Measurer
from secretfs.daemon.metrics_outputs import WRITE_EVERY, MetricsOutputs
from secretfs.daemon.request import MountOptions
from secretfs.observe.measures import Format
from tests.conftest import ExpectLog
from tests.support.until import until


class Failing:
    """Stands for a `Measurer` that fails at first."""

    def __init__(self, error: Exception) -> None:
        self._errors = [error]

    async def page(self, form: Format) -> bytes:
        if self._errors:
            raise self._errors.pop()
        return f"the page as {form}".encode()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "metrics are not written to .*: Too many open files"),
        (KeyError("x"), "KeyError"),
    ],
)
async def test_what_fails_once_costs_nobody_the_mount(
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock, expect_log: ExpectLog, error: Exception, said: str
) -> None:
    expect_log(said)
    file = tmp_path / "metrics.prom"
    outputs = MetricsOutputs(MountOptions(tmp_path / "mnt", metrics_file=file), takes_over=False)
    outputs.begin(cast("Measurer", Failing(error)), nursery)
    await wait_all_tasks_blocked(0.01)
    assert file.read_bytes() == b""
    mock_clock.jump(WRITE_EVERY)
    await until(lambda: file.read_bytes() == b"the page as classic")
    nursery.cancel_scope.cancel()
