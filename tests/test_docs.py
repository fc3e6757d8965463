"""README.md, CHANGELOG.md and docs/: every link leads to a file, and to a heading or anchor in it; no table is cut."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from benchmarks.session import TYPED
from tests.support.command import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Name the headings as GitHub does, and the anchors that are set by hand."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    named = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return named | set(re.findall(r'<a id="([^"]*)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]*)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_row_is_in_a_table(page: Path) -> None:
    """An empty line ends a table: what comes after it is shown as text."""
    lines = without_code(page.read_text(encoding="utf-8")).split("\n")
    first = [at for at, line in enumerate(lines) if line.startswith("|") and not lines[at - 1].startswith("|")]
    assert [lines[at] for at in first if not re.fullmatch(r"\|[-| :]+\|", lines[at + 1])] == []


def test_a_heading_that_is_not_there_is_found() -> None:
    assert "when-a-store-fails" in anchors(ROOT / "docs/SEMANTICS.md")
    assert "no-such-heading" not in anchors(ROOT / "docs/SEMANTICS.md")


def test_the_site_has_every_page() -> None:
    """`make docs` checks the rest. Two pages of the site are README.md and CHANGELOG.md."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))

    def named(part: object) -> list[str]:
        if isinstance(part, str):
            return [part]
        return [page for below in (part.values() if isinstance(part, dict) else part) for page in named(below)]  # type: ignore[attr-defined]

    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if page.parent != ROOT]
    assert sorted(named(site["nav"])) == sorted([*pages, "overview.md", "changelog.md"])


def test_the_picture_of_a_session_shows_what_its_script_types() -> None:
    """It was drawn by the script as it is now, and it loads nothing from elsewhere."""
    picture = ROOT / "docs/session.svg"
    texts = ["".join(text.itertext()) for text in ET.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    shown = "".join("".join(texts).split())
    for line in TYPED:
        assert "".join(line.split()) in shown
    assert not re.search(r"(url\(|href=\"|@import *\"?)https?:", picture.read_text("utf-8"))
