"""What secretfs understands, compared with what Dapr's own code understood, and with what our page says of both."""

import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import pytest

from tests.vectors.compare import disagreements
from tests.vectors.differences import EXPECTED, explain
from tests.vectors.subject import Subject
from tests.vectors.vector import AREAS, NEWEST, OLD, Vector, vectors

PAGE = Path(__file__).parents[2] / "docs/differences-from-dapr.md"
ROW = re.compile(r'^\| <a id="([a-z0-9-]+)"></a>.* \| ([\d,]+|-) \|$', re.MULTILINE)


@dataclass(slots=True)
class Result:
    """What came of the vectors of an area, or of all."""

    total: int = 0
    agreed: int = 0
    explained: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    old: int = 0
    """How many 1.7.5 answers otherwise than the newest."""
    old_agreed: int = 0
    """In how many of those we do as 1.7.5."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """Give the function that runs the vectors of an area, once."""
    subject = Subject(tmp_path_factory.mktemp("vectors"))
    return cache(partial(_run, subject))


def _run(subject: Subject, area: str) -> Result:
    found = Result()
    logging.disable()  # stores warn of what is wrong with some inputs
    try:
        for vector in vectors(area):
            _compare(vector, subject, found)
    finally:
        logging.disable(logging.NOTSET)
    return found


def _compare(vector: Vector, subject: Subject, found: Result) -> None:
    ours = subject.run(vector)
    differing = disagreements(vector, ours, vector.newest, NEWEST)
    reasons = {explain(vector, it) for it in differing}
    found.total += 1
    found.agreed += not differing
    found.explained.update(reason for reason in reasons if reason)
    if None in reasons:
        found.unexplained.append(f"{vector.kind} {vector.id}: {differing}")
    if vector.old is not None:
        found.old += 1
        found.old_agreed += not disagreements(vector, ours, vector.old, OLD)


@pytest.mark.parametrize("area", AREAS)
def test_no_disagreement_is_unexplained(run: Callable[[str], Result], area: str) -> None:
    assert run(area).unexplained == []


def test_the_page_has_every_difference_with_its_number_of_vectors(run: Callable[[str], Result]) -> None:
    rows = {name: number for name, number in ROW.findall(PAGE.read_text(encoding="utf-8")) if number != "-"}
    explained = sum((run(area).explained for area in AREAS), Counter[str]())
    assert rows == {name: f"{explained[name]:,}" for name in EXPECTED}


def test_no_difference_has_two_rows() -> None:
    text = PAGE.read_text(encoding="utf-8")
    ids = re.findall(r'<a id="([a-z0-9-]+)"></a>', text)
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert len(ids) == len(ROW.findall(text))


def test_the_page_says_how_far_we_agree(run: Callable[[str], Result]) -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    total, agreed, old, old_agreed = (
        sum(getattr(run(area), number) for area in AREAS) for number in ("total", "agreed", "old", "old_agreed")
    )
    assert f"Of {total:,} inputs, {agreed:,} have the same outcome in secretfs." in text
    assert f"the other {total - agreed:,}" in text
    assert f"In {old:,} of them Dapr 1.7.5 answers otherwise than the newest" in text
    assert f"does as 1.7.5 in {old_agreed:,} of these" in text


def test_the_page_says_how_far_we_agree_in_each_area(run: Callable[[str], Result]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]* \(`(\w+)`\) \| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert rows == [(area, f"{run(area).total:,}", f"{run(area).agreed:,}") for area in AREAS]
