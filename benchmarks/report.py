"""Results, as a table for people and as JSON for programs."""

import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

SECRETFS = "secretfs"
"""The contestant whose value all others are compared with."""


class Unit(Enum):
    """What a number counts: the steps in which it is shown, and what JSON calls it."""

    SECONDS = "seconds"
    BYTES = "bytes"
    REQUESTS = "requests"

    def show(self, number: float) -> str:
        """Write a number with three digits that mean something."""
        steps = {
            Unit.SECONDS: ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
            Unit.BYTES: ((float(1 << 20), "MiB"), (1.0, "B")),
            Unit.REQUESTS: ((1.0, ""),),
        }[self]
        size, name = next((step for step in steps if abs(number) >= step[0]), steps[-1])
        return f"{_digits(number / size)} {name}".rstrip()


@dataclass(frozen=True, slots=True)
class Reference:
    """Another contestant's value, and how many times as much ours is."""

    value: float
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One operation: our value next to those of others."""

    name: str
    unit: Unit
    value: float
    references: Mapping[str, Reference] = field(default_factory=dict)


@dataclass(slots=True)
class Section:
    """Rows with the same references, in this order."""

    title: str
    references: Sequence[str]
    rows: list[Row] = field(default_factory=list)

    def add(self, name: str, samples: Mapping[str, Sequence[float]], unit: Unit = Unit.SECONDS) -> None:
        """Add a row from one sample per contestant and round: the median, and the median of the rounds' ratios."""
        ours = samples[SECRETFS]
        references = {
            other: Reference(statistics.median(theirs), _ratio(ours, theirs))
            for other, theirs in samples.items()
            if other != SECRETFS
        }
        self.rows.append(Row(name, unit, statistics.median(ours), references))


def as_text(sections: Iterable[Section]) -> str:
    """Draw the table."""
    sections = [section for section in sections if section.rows]
    width = max(len(row.name) for section in sections for row in section.rows)
    return "\n\n".join("\n".join(_section_lines(section, width)) for section in sections)


def as_json(sections: Iterable[Section], *, quick: bool) -> dict[str, Any]:
    """Return what the table shows, unrounded, and where it was measured."""
    return {
        "machine": {
            "processors": os.cpu_count(),
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
        },
        "quick": quick,
        "sections": [
            {"title": section.title, "rows": [_row_as_json(row) for row in section.rows]} for section in sections
        ],
    }


def as_charts(sections: Iterable[Section]) -> str:
    """Return Markdown with a chart (Mermaid) of each time that is compared with several others."""
    rows = [(section, row) for section in sections for row in section.rows if len(row.references) > 1]
    return "\n".join(_chart(section, row) for section, row in rows if row.unit is Unit.SECONDS)


def _chart(section: Section, row: Row) -> str:
    values = {SECRETFS: row.value} | {name: other.value for name, other in row.references.items()}
    names = ", ".join(f'"{name}"' for name in values)
    bars = ", ".join(f"{seconds * 1e6:.1f}" for seconds in values.values())
    return f"""```mermaid
xychart-beta horizontal
    title "{section.title}: {row.name}"
    x-axis [{names}]
    y-axis "microseconds"
    bar [{bars}]
```
"""


def _section_lines(section: Section, width: int) -> Iterable[str]:
    yield f"{section.title:{width}}  {SECRETFS:>10}" + "".join(f"  {name:>20}" for name in section.references)
    yield "-" * (width + 12 + 22 * len(section.references))
    for row in section.rows:
        cells = (_cell(row, row.references.get(name)) for name in section.references)
        yield f"{row.name:{width}}  {row.unit.show(row.value):>10}{''.join(cells)}".rstrip()


def _cell(row: Row, reference: Reference | None) -> str:
    if reference is None:
        return f"  {'-':>20}"
    times = "" if reference.ratio is None else f"x {_digits(reference.ratio)}"
    return f"  {row.unit.show(reference.value):>10}  {times:<8}"


def _row_as_json(row: Row) -> dict[str, Any]:
    references = {name: {"value": other.value, "ratio": other.ratio} for name, other in row.references.items()}
    return {"name": row.name, "unit": row.unit.value, "secretfs": row.value, "references": references}


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Compare round by round: what slows a whole round down, slows both."""
    if not all(theirs):
        return None
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


def _digits(number: float) -> str:
    if abs(number) >= 99.5:
        return f"{number:.0f}"
    return f"{number:.1f}" if abs(number) >= 9.95 else f"{number:.2f}"
