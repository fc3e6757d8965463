"""Each target with its corpus, and with what hypothesis makes of it; more of that in `make fuzz`."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, TARGETS

MORE = int(os.environ.get("SECRETFS_TEST_EXAMPLES", "0"))
"""Inputs to try of each target, other ones at each run; if not set, it is always the same few."""

_PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"\0", b"\n", b"/", b"..", b"%", b"\xff", b"{", b"[", b'"', b"\\ud800", "\u202e".encode(), b"1" * 5000]
    ),
)


def seeds(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@st.composite
def inputs(draw: st.DrawFn, known: list[bytes]) -> bytes:
    """Draw any bytes, or a seed in which some places are cut out, written over or doubled."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=400))
    data = draw(st.sampled_from(known))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from((0, 1, 2, 8, 40))))
        data = data[:start] + draw(st.one_of(_PIECES, st.just(2 * data[start:end]))) + data[end:]
    return data


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus(target: str) -> None:
    found = seeds(target)
    assert found
    for data in found:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_what_nobody_has_thought_of(target: str) -> None:
    @settings(
        max_examples=MORE or 60,
        deadline=None,
        derandomize=not MORE,
        database=None,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if MORE else [])],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @example(b"")
    @given(inputs(seeds(target)))
    def try_it(data: bytes) -> None:
        TARGETS[target](data)

    try_it()


def test_each_folder_of_the_corpus_is_of_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


def test_a_target_can_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A defect that is put into one is found: what the targets let pass is only what their callers expect."""

    def broken(data: bytes) -> str:
        raise IndexError

    monkeypatch.setattr("tests.fuzz.targets.decode", broken)
    with pytest.raises(IndexError):
        TARGETS["names"](b"a")
