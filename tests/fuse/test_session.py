"""The end of a session: whatever the kernel answers when there is no connection any more, that is no defect."""

import pyfuse3
import pytest

from secretfs.fuse import session


@pytest.mark.parametrize("error", [ConnectionAbortedError(), ExceptionGroup("", [ConnectionAbortedError()])])
async def test_an_aborted_connection_is_an_end(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(max_tasks: int) -> None:
        raise error

    monkeypatch.setattr(pyfuse3, "main", main)
    await session.serve_requests()


async def test_any_other_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(max_tasks: int) -> None:
        raise ExceptionGroup("", [ConnectionAbortedError(), ValueError()])

    monkeypatch.setattr(pyfuse3, "main", main)
    with pytest.raises(ExceptionGroup) as raised:
        await session.serve_requests()
    assert [type(error) for error in raised.value.exceptions] == [ValueError]
