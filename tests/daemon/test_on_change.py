"""When the step after a change is due, on a clock that does not move by itself."""

import pytest

from secretfs.daemon.on_change import OnChange


def test_the_delay_counts_from_the_change() -> None:
    assert OnChange("restart", delay=2.0).due(100.0, None) == 102.0


@pytest.mark.parametrize(("last", "due"), [(None, 102.0), (50.0, 102.0), (95.0, 105.0), (100.0, 110.0)])
def test_the_interval_counts_from_the_last_step(last: float | None, due: float) -> None:
    assert OnChange("restart", delay=2.0, interval=10.0).due(100.0, last) == due


def test_the_splay_comes_on_top_and_differs() -> None:
    on_change = OnChange("restart", delay=2.0, interval=10.0, splay=5.0)
    dues = {on_change.due(100.0, 95.0) for _ in range(100)}
    assert len(dues) > 50
    assert min(dues) >= 105.0
    assert max(dues) <= 110.0
    assert max(dues) - min(dues) > 1.0
