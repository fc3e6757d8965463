"""README.md, CHANGELOG.md and docs/: every link leads to a file that exists, and to a heading or an anchor in it."""

import re
from pathlib import Path

import pytest

from tests.support.command import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Name the headings as GitHub does, and the anchors that are set by hand."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    named = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return named | set(re.findall(r'<a id="([^"]*)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]*)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_a_heading_that_is_not_there_is_found() -> None:
    assert "when-a-store-fails" in anchors(ROOT / "docs/SEMANTICS.md")
    assert "no-such-heading" not in anchors(ROOT / "docs/SEMANTICS.md")
