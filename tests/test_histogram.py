"""Histograms: a duration is in the first bucket whose bound it does not exceed."""

from hypothesis import given
from hypothesis import strategies as st

from secretfs.histogram import BOUNDS, Histogram, Histograms


@given(st.lists(st.floats(0, 1000)))
def test_every_duration_is_in_its_bucket(durations: list[float]) -> None:
    histogram = Histogram()
    for seconds in durations:
        histogram.observe(seconds)
    counts, total = histogram.now()
    below = [sum(seconds <= bound for seconds in durations) for bound in BOUNDS]
    assert [sum(counts[: place + 1]) for place in range(len(BOUNDS))] == below
    assert sum(counts) == len(durations)
    assert abs(total - sum(durations)) < 1e-6


def test_labels_have_histograms_of_their_own() -> None:
    histograms = Histograms()
    histograms.observe(("fetch", "ok"), 0.1)
    before = histograms.now()
    histograms.observe(("fetch", "ok"), 0.2)
    histograms.observe(("fetch", "failed"), 5)
    assert {labels: sum(each.counts) for labels, each in before.items()} == {("fetch", "ok"): 1}
    assert {labels: sum(each.counts) for labels, each in histograms.now().items()} == {
        ("fetch", "ok"): 2,
        ("fetch", "failed"): 1,
    }
