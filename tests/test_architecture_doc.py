"""docs/architecture.md: what it names is there, and every package has its line."""

import ast
import re
from collections.abc import Iterator

from tests.support.command import ROOT

PAGE = ROOT / "docs/architecture.md"
PACKAGE = ROOT / "secretfs"
TEXT = PAGE.read_text(encoding="utf-8")
TOP = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}


def names() -> list[str]:
    """Find what the page names in secretfs: ``package.module.Class.function``, or ``package``."""
    spans = set(re.findall(r"`([A-Za-z_.]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.DOTALL | re.MULTILINE)))
    return sorted(span for span in spans if span.split(".")[0] in TOP)


def defined(body: list[ast.stmt]) -> Iterator[tuple[str, list[ast.stmt]]]:
    """Yield what a module or a class defines, with what is defined in that."""
    for node in body:
        match node:
            case ast.ClassDef(name=name, body=inside):
                yield name, inside
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, []
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, []
            case ast.Assign(targets=[ast.Name(id=name)]):
                yield name, []


def exists(name: str) -> bool:
    """Whether there is a package, module, class, function or constant of this name. Nothing is imported."""
    path, parts = PACKAGE, name.split(".")
    while parts and (path / parts[0]).is_dir():
        path /= parts.pop(0)
    module = path / f"{parts[0]}.py" if parts and (path / f"{parts[0]}.py").is_file() else path / "__init__.py"
    if module.name != "__init__.py":
        parts.pop(0)
    body = ast.parse(module.read_text(encoding="utf-8")).body
    for part in parts:
        inside = dict(defined(body))
        if part not in inside:
            return False
        body = inside[part]
    return True


def test_every_name_is_there() -> None:
    assert len(names()) > 50
    assert [name for name in names() if not exists(name)] == []


def test_a_name_that_is_not_there_is_found() -> None:
    assert not exists("fs.vfs.SecretVFS.no_such_function")
    assert not exists("fs.no_such_module")


def test_every_package_has_a_line() -> None:
    table = TEXT.partition("\n## The packages\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z]+)`", table, re.MULTILINE)
    assert set(rows) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"secretfs"}


def test_each_typical_change_names_its_place() -> None:
    table = TEXT.partition("\n## Typical changes\n")[2].partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 10
    assert all(set(re.findall(r"`([A-Za-z_.]+)`", row)) & set(names()) for row in rows)


def test_files_are_there() -> None:
    assert all((ROOT / path).exists() for path in re.findall(r"`((?:tests|docs|systemd)/[^`]*)`", TEXT))
