"""docs/SEMANTICS.md and the tests beside this one are two forms of the same thing.

A promise is a list item of the document with a name: ``- <a id="size-1"></a>**size-1** The size is ...``. The test that
keeps it begins its docstring with the name and the same words: ``size-1: The size is ...``. Further tests of a promise
name it in brackets: ``(size-1)``. Every test of this directory keeps a promise, and so does each in ``containers``; in
``kubernetes`` some do.
"""

import ast
import errno
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from secretfs.errors import SecretFSError

HERE = Path(__file__).resolve().parent
CONTAINERS = HERE.with_name("containers")
KUBERNETES = HERE.with_name("kubernetes")
DOCUMENT = HERE.parents[1] / "docs/SEMANTICS.md"

_PROMISE = re.compile(r'^- <a id="([^"]*)"></a>\*\*([^*]*)\*\* (.*(?:\n  \S.*)*)$', re.MULTILINE)
_QUOTE = re.compile(r"([a-z]+-\d+): (.*)", re.DOTALL)
_REFERENCE = re.compile(r"\(([a-z]+-\d+(?:, [a-z]+-\d+)*)\)")


def promises() -> list[tuple[str, str]]:
    """List name and words of the promises in the document."""
    found = _PROMISE.findall(DOCUMENT.read_text(encoding="utf-8"))
    assert all(anchor == name for anchor, name, _ in found)
    return [(name, " ".join(words.split())) for _, name, words in found]


def docstrings(*directories: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of every other test in some directories."""
    for path in sorted(path for directory in directories for path in directory.glob("test_*.py")):
        if path.name == Path(__file__).name:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.name}::{node.name}", " ".join((ast.get_docstring(node) or "").split())


def quotes() -> dict[str, list[str]]:
    """Map the names of promises to the words that tests quote."""
    found: dict[str, list[str]] = {}
    for _, text in docstrings(HERE, CONTAINERS, KUBERNETES):
        if quote := _QUOTE.fullmatch(text):
            found.setdefault(quote[1], []).append(quote[2])
    return found


def test_no_name_is_given_twice() -> None:
    assert [name for name, count in Counter(name for name, _ in promises()).items() if count > 1] == []


def test_every_promise_is_kept_by_a_test_that_quotes_it() -> None:
    quoted = quotes()
    assert {name: quoted.get(name, []) for name, _ in promises()} == {name: [words] for name, words in promises()}


def test_every_test_keeps_a_promise_of_the_document() -> None:
    known = {name for name, _ in promises()}
    for test, text in docstrings(HERE, CONTAINERS):
        quote = _QUOTE.fullmatch(text)
        named = [quote[1]] if quote else [name for group in _REFERENCE.findall(text) for name in group.split(", ")]
        assert named, f"{test} names no promise"
        assert set(named) <= known, f"{test} names a promise that is not in {DOCUMENT.name}"


def test_what_the_text_refers_to_is_there() -> None:
    known = {name for name, _ in promises()}
    assert set(re.findall(r"\*([a-z]+-\d+)\*", DOCUMENT.read_text(encoding="utf-8"))) <= known


def test_the_table_of_errnos_is_complete() -> None:
    rows = re.findall(r"^\| (E[A-Z]+) \| ([^|]*) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    for name, text in rows:
        assert text == os.strerror(getattr(errno, name))
    raised, waiting = set(), [SecretFSError]
    while waiting:
        cls = waiting.pop()
        raised.add(errno.errorcode[cls.errno])
        waiting += cls.__subclasses__()
    assert raised | {"EROFS", "ECONNABORTED", "ENOTCONN"} == {name for name, _ in rows}
