"""The YAML documents of manifest directories, and which of those that cannot be read may be passed over.

A directory of manifests also holds what is none of our business: templates that nobody has rendered, an editor's files,
another component with a broken line. Dapr skips each document that it cannot read, with a warning. Here that stops the
mount where the document may declare what we serve, and is a notice where it cannot.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from secretfs.dapr.goyaml import MappingNode, Node, ScalarNode, parse, read_text, split_documents
from secretfs.errors import ConfigurationError, Notice, Source

LARGEST_IN_DAPR: Final = 64 << 10
"""Bytes. Dapr looks for the end of a larger document for ever (``bufio.MaxScanTokenSize``)."""

CATEGORIES: Final = (
    *("bindings", "configuration", "conversation", "crypto", "lock", "middleware", "nameresolution", "pubsub"),
    *("secretstores", "state", "workflow"),
)
"""What the types of Dapr's components begin with."""

_SECRET_STORE = re.compile(r"secret[-_ ]?stores|secret[-_ ]?store\.", re.IGNORECASE)
_OTHER_TYPE = re.compile(
    rf"^[-\s]*[\"']?type[\"']?\s*:\s*[\"']?(?:{'|'.join(set(CATEGORIES) - {'secretstores'})})\.",
    re.MULTILINE | re.IGNORECASE,
)
_COMPONENT = re.compile(r"^[\"']?kind[\"']?\s*:\s*[\"']?Component\b", re.MULTILINE | re.IGNORECASE)
_DIRECTIVES = re.compile(r"(?:\s*(?:%[A-Z]+ [^\n]*|#[^\n]*)?(?:\n|$))*")
_TEMPLATE = re.compile(r"\{\{|\{%|<%|%[sdv]\b")


class Document(NamedTuple):
    """A document that is a map."""

    root: MappingNode
    text: str


def may_be_secret_store(text: str) -> bool:
    """Tell from the text of a document that is not YAML whether it could declare a secret store."""
    return bool(_SECRET_STORE.search(text) or (_COMPONENT.search(text) and not _OTHER_TYPE.search(text)))


def manifest_files(directories: Sequence[Path], notices: list[Notice]) -> Iterator[Path]:
    """Yield the YAML files of directories, by name. Raises `ConfigurationError` for a directory that cannot be read."""
    for directory in directories:
        try:
            entries = sorted(directory.iterdir(), key=lambda path: os.fsencode(path.name))
        except OSError as error:
            raise ConfigurationError(f"cannot be read: {error.strerror}", Source(str(directory))) from None
        for path in entries:
            if path.is_dir():
                continue
            if path.name.lower().endswith((".yaml", ".yml")):
                yield path
            elif not path.name.startswith("."):
                notices.append(Notice(NOT_YAML, Source(str(path))))


NOT_YAML: Final = "not a YAML file, passed over"


def read_documents(
    path: Path, notices: list[Notice], matters: Callable[[str], bool], *, word: str = "", whole_lines: bool = False
) -> Iterator[Document]:
    """Yield the documents of a file that are maps. Raises `ConfigurationError` for one that is broken and ``matters``.

    ``matters`` tells that from the text. One that does not is noted, and so is a hidden file that cannot be read: the
    lock of an editor is a link that leads nowhere. A document in which ``word`` is not is passed over, and costs no
    parsing. Dapr cuts off the line break before a "---", which a text at the end of a document then lacks;
    ``whole_lines`` keeps it.
    """
    try:
        text = read_text(path)
    except ConfigurationError as error:
        if not path.name.startswith("."):
            raise
        notices.append(Notice(f"{error.args[0]}; passed over", error.source, unread=True))
        return
    for line, document in split_documents(text):
        if word not in document:
            continue
        try:
            root = _parse(document + "\n" if whole_lines else document, path, line)
        except ConfigurationError as error:
            if matters(document):
                raise
            notices.append(Notice(f"{error.args[0]}; passed over", error.source, unread=True))
            continue
        if isinstance(root, MappingNode):
            if len(document.encode("utf-8", "surrogateescape")) >= LARGEST_IN_DAPR:
                notices.append(Notice("larger than 64 KiB: Dapr itself hangs when it reads this", root.source))
            yield Document(root, document)


def _parse(text: str, path: Path, line: int) -> Node | None:
    if _DIRECTIVES.fullmatch(text):  # the cut at "---" has separated a %YAML from its document
        return None
    try:
        return parse(text, str(path), line)
    except ConfigurationError as error:
        raise explained(error, text, line) from None


def explained(error: ConfigurationError, text: str, first_line: int) -> ConfigurationError:
    """Add to an error what its line looks like: a template. ``text`` begins at ``first_line`` of the file."""
    lines = text.splitlines()
    place = error.source.line - first_line if error.source else -1
    nearby = lines[max(0, place - 1) : place + 1]
    if not any(map(_TEMPLATE.search, nearby)):
        return error
    return ConfigurationError(f"{error.args[0]}; it looks like a template that nobody has rendered", error.source)


def raw(node: MappingNode, name: str) -> list[Node]:
    """Find a field of a map that need not decode, in all spellings."""
    return [value for key, value in node.entries if isinstance(key, ScalarNode) and key.text.casefold() == name]


def raw_texts(node: MappingNode, name: str) -> set[str]:
    """Return the texts of a field as they are written."""
    return {value.text for value in raw(node, name) if isinstance(value, ScalarNode)}
