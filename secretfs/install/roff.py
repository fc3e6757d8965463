"""Write manual pages: text in the macros of man(7)."""

import re
from collections.abc import Iterable
from typing import Final

_FLAG: Final = re.compile(r"(?<![\w-])(--?[a-zA-Z][\w-]*)")
_SPECIAL: Final = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"})


def escape(text: str) -> str:
    """Return a text that roff prints as it is, at any place of a line."""
    escaped = text.translate(_SPECIAL)
    return "\n".join(rf"\&{line}" if line.startswith(".") else line for line in escaped.split("\n"))


def bold(text: str) -> str:
    """Return a text in bold."""
    return rf"\fB{escape(text)}\fR"


def italic(text: str) -> str:
    """Return a text in italics, or underlined."""
    return rf"\fI{escape(text)}\fR"


def flags(text: str) -> str:
    """Return flags with what follows them: the flags bold, the rest in italics."""
    parts = []
    for number, part in enumerate(_FLAG.split(text)):
        if number % 2:
            parts.append(bold(part))
        elif part.strip(" ,/"):
            parts.append(part.replace(part.strip(), italic(part.strip())))
        else:
            parts.append(escape(part))
    return "".join(parts)


class Page:
    """A manual page that is being written."""

    def __init__(self, name: str, section: int, summary: str, version: str) -> None:
        self.name = name
        self.section = section
        self._lines = [f'.TH "{escape(name.upper())}" "{section}" "" "secretfs {version}" "secretfs"']
        self.heading("NAME")
        self._lines.append(f"{escape(name)} \\- {escape(summary)}")

    @property
    def path(self) -> str:
        """The file below a directory for manual pages."""
        return f"man{self.section}/{self.name}.{self.section}"

    def heading(self, title: str) -> None:
        """Begin a section."""
        self._lines.append(f".SH {escape(title)}")

    def subheading(self, title: str) -> None:
        """Begin a part of a section."""
        self._lines.append(f'.SS "{escape(title)}"')

    def paragraph(self, text: str) -> None:
        """Write a paragraph, whose lines are filled."""
        self._begin_paragraph()
        self._lines.append(escape(" ".join(text.split())))

    def synopsis(self, command: str, arguments: str) -> None:
        """Write how a command is called."""
        self._begin_paragraph()
        self._lines.append(f"{bold(command)} {escape(arguments)}".rstrip())

    def literal(self, text: str) -> None:
        """Write lines as they are."""
        self._begin_paragraph()
        self._lines += [".RS 4", ".nf", escape(text), ".fi", ".RE"]

    def item(self, term: str, text: str) -> None:
        """Write a term, which is roff already, and what it means."""
        self._lines += [".TP", term, escape(" ".join(text.split()))]

    def see_also(self, pages: Iterable[tuple[str, int]], address: str) -> None:
        """Name other pages, and where the documentation is."""
        self.heading("SEE ALSO")
        others = sorted((page for page in pages if page != (self.name, self.section)), key=lambda page: page[::-1])
        self._lines.append(",\n".join(f"{bold(name)}({section})" for name, section in others))
        self.paragraph(address)

    def _begin_paragraph(self) -> None:
        if not self._lines[-1].startswith((".SH", ".SS")):  # they begin one
            self._lines.append(".PP")

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"
