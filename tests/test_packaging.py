"""What importing costs, what is shipped, and what the text of the package promises about itself."""

import ast
import errno
import inspect
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import secretfs
from secretfs import errors
from secretfs.cli.main import main, mount_secretfs
from tests.support.canary import secret
from tests.support.command import ROOT, SECRETFS, background, environment, run
from tests.support.manifests import component

PACKAGE = ROOT / "secretfs"
UNITS = {f"secretfs/install/systemd/{path.parent.name}/{path.name}" for path in PACKAGE.glob("install/systemd/*/*")}
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
DATA = {"secretfs/py.typed", *(f"secretfs/cli/starters/{path.name}" for path in PACKAGE.glob("cli/starters/*.yaml"))}
SDKS = ("hvac", "requests", "urllib3", "azure", "msal", "kubernetes", "grpc")


def imported_by(code: str, *prefixes: str) -> list[str]:
    """List the modules with these top-level names that are there after ``code`` has run."""
    found = f"sorted(name for name in sys.modules if name.partition('.')[0] in {prefixes!r})"
    done = run([sys.executable, "-c", f"{code}\nimport sys; print('modules:', *{found})"], env=environment())
    assert done.status == 0, done.err
    return done.out.rpartition("modules:")[2].split()


def running(*arguments: str) -> str:
    """Return code that runs the command line, which has to end well."""
    return (
        f"import sys; from secretfs.cli.main import main; sys.argv[1:] = {arguments!r}\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
    )


class TestImports:
    def test_the_package_imports_nothing_else(self) -> None:
        assert imported_by("import secretfs", "secretfs", "trio", "pyfuse3", "click", "yaml", *SDKS) == ["secretfs"]

    def test_the_package_does_nothing(self) -> None:
        code = (
            "import os, signal, sys, threading, logging\n"
            "def state(): return (dict(os.environ), os.getcwd(), sys.path[:], threading.active_count(),"
            " logging.root.handlers[:], [signal.getsignal(n) for n in signal.valid_signals()])\n"
            "before = state()\nimport secretfs\nprint(before == state())"
        )
        assert run([sys.executable, "-c", code], env=environment()).out == "True\n"

    def test_the_command_line_imports_no_sdk(self) -> None:
        code = "from secretfs.cli.main import COMMANDS, command; [command(name) for name in COMMANDS]"
        assert imported_by(code, *SDKS) == []

    def test_help_imports_no_command(self) -> None:
        ours = [
            *("secretfs", "secretfs.cli", "secretfs.cli.main", "secretfs.cli.reporting", "secretfs.errors"),
            *("secretfs.linux", "secretfs.linux.log"),
        ]
        heavy = ("trio", "pyfuse3", "yaml", "dataclasses", "difflib", "socket", "subprocess")
        assert imported_by(running("--help"), "secretfs", *heavy, *SDKS) == ours

    def test_the_command_that_mounts_imports_nothing_of_the_worker(self) -> None:
        everything = imported_by("import secretfs.cli.main, secretfs.cli.mount", "secretfs", "trio", "pyfuse3", "yaml")
        packages = {name.split(".")[1] for name in everything if name.count(".") == 2}
        assert packages == {"api", "cache", "cli", "daemon", "dapr", "linux", "observe"}
        assert [name for name in everything if not name.startswith("secretfs")] == []
        assert [
            name
            for name in everything
            if name.startswith(("secretfs.api.", "secretfs.cache.", "secretfs.dapr.", "secretfs.observe."))
        ] == [
            "secretfs.api.address",
            "secretfs.cache.freshness",
            "secretfs.dapr.sources",
            "secretfs.observe.address",
            "secretfs.observe.audit_options",
        ]

    def test_the_supervisor_imports_no_library_and_nothing_that_reads_source(self) -> None:
        """It stays as long as the mount, on every node: ``dataclasses`` alone brings ``inspect``, ``ast`` and more."""
        heavy = ("click", "trio", "pyfuse3", "yaml", "dataclasses", "inspect", "ast", "json", *SDKS)
        assert imported_by("import secretfs.daemon.supervisor", *heavy) == []

    def test_the_first_worker_imports_nothing_of_the_command(self) -> None:
        code = "import secretfs.cli.standby, secretfs.daemon.start, secretfs.daemon.worker"
        rare = ("click", "secretfs.daemon.supervisor", "decimal", "difflib", "uuid", *SDKS)
        assert imported_by(code, *rare) == []

    def test_opening_local_stores_imports_no_sdk(self, tmp_path: Path) -> None:
        (tmp_path / "s.json").write_text('{"a": "b"}', encoding="utf-8")
        component(tmp_path / "c", "env", "local.env")
        component(tmp_path / "c", "file", "local.file", {"secretsFile": tmp_path / "s.json"})
        assert imported_by(running("check", "--connect", "--resources-path", str(tmp_path / "c")), *SDKS) == []

    def test_a_plug_in_imports_grpc_and_no_other_sdk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DAPR_COMPONENTS_SOCKETS_FOLDER", str(tmp_path))
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "example.sock"))
            code = "from secretfs.stores import load_store_type; load_store_type('secretstores.example')"
            found = imported_by(code, "google", "trio", *SDKS)
        assert {name.partition(".")[0] for name in found} == {"grpc"}

    @pytest.mark.mount
    def test_a_daemon_of_local_stores_maps_no_sdk(self, tmp_path: Path) -> None:
        (tmp_path / "s.json").write_text(f'{{"a": "{secret()}"}}', encoding="utf-8")
        component(tmp_path / "c", "file", "local.file", {"secretsFile": tmp_path / "s.json"})
        with background(tmp_path / "mnt", "--resources-path", tmp_path / "c") as pid:
            mapped = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
            assert "pyfuse3" in mapped
            assert [sdk for sdk in ("cryptography", *SDKS) if f"/{sdk}" in mapped] == []


class TestText:
    @pytest.mark.parametrize("module", MODULES)
    def test_every_public_module_class_and_function_has_a_docstring(self, module: str) -> None:
        tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), module
        assert [node.name for node in _public(tree) if not ast.get_docstring(node)] == []

    def test_the_table_of_errors_is_the_classes(self) -> None:
        rows = re.findall(r"^ {4}([│├└─ ]*)(\w+)((?: {2,}\S.*)?)$", errors.__doc__ or "", re.MULTILINE)
        told = {
            name: (len(indent) // 4, text)
            for indent, name, text in rows
            if inspect.isclass(getattr(errors, name, None))
        }
        classes = {
            name: cls
            for name, cls in vars(errors).items()
            if inspect.isclass(cls) and issubclass(cls, errors.SecretFSError)
        }
        assert list(told) != []
        assert told.keys() == classes.keys()
        for name, (depth, text) in told.items():
            cls = classes[name]
            assert len(cls.__mro__) - len(errors.SecretFSError.__mro__) == depth, name
            number = re.search(r"\bE[A-Z]{2,}\b", text)
            if number:
                assert errno.errorcode[cls.errno] == number[0], name
            code = re.search(r"exit (\d)", text)
            if code:
                assert cls.exit_code == int(code[1]), name

    def test_every_errno_that_differs_from_its_parents_is_in_the_table(self) -> None:
        for cls in _subclasses(errors.SecretFSError):
            if cls.__module__ == errors.__name__ and cls.errno != cls.__mro__[1].errno:  # type: ignore[attr-defined]
                assert re.search(rf"{cls.__name__} .* {errno.errorcode[cls.errno]}\b", errors.__doc__ or ""), cls


def _public(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node


def _subclasses(cls: type[errors.SecretFSError]) -> Iterator[type[errors.SecretFSError]]:
    for below in cls.__subclasses__():
        yield below
        yield from _subclasses(below)


def test_runs_as_a_module() -> None:
    assert run([*SECRETFS, "--version"], env=environment()).out == f"secretfs, version {secretfs.__version__}\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what git would have: no caches, no virtual environment."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "secretfs", "tests", "docs", "Makefile"):
        original = ROOT / name
        if original.is_dir():
            shutil.copytree(original, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif original.exists():
            shutil.copy(original, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(_built(source, "build_wheel")) as archive:
        yield archive


class TestDistributions:
    """What ``pip install`` brings."""

    def test_the_wheel_holds_the_package_with_the_units_and_nothing_else(self, wheel: zipfile.ZipFile) -> None:
        assert "secretfs/install/systemd/system/secretfs@.service" in UNITS
        information = f"secretfs_fuse-{secretfs.__version__}.dist-info"
        metadata = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
        assert set(wheel.namelist()) == {
            *(f"secretfs/{module}" for module in MODULES),
            *DATA,
            *UNITS,
            *(f"{information}/{name}" for name in metadata),
        }

    def test_the_entry_points_are_the_command_line(self, wheel: zipfile.ZipFile) -> None:
        (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert wheel.read(name).decode().split() == [
            "[console_scripts]",
            *("mount.secretfs", "=", "secretfs.cli.main:mount_secretfs"),
            *("secretfs", "=", "secretfs.__main__:main"),
        ]
        assert callable(main)
        assert callable(mount_secretfs)

    def test_the_metadata(self, wheel: zipfile.ZipFile) -> None:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        text = wheel.read(name).decode()
        for line in (
            "Name: secretfs-fuse",
            f"Version: {secretfs.__version__}",
            "License-Expression: Apache-2.0",
            "Requires-Python: >=3.11",
            "Provides-Extra: vault",
            "Provides-Extra: all",
        ):
            assert line in text.splitlines()

    def test_the_source_distribution_holds_the_package(self, source: Path) -> None:
        with tarfile.open(_built(source, "build_sdist")) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        shipped = {name for name in names if name.startswith("secretfs/") and name.endswith((".py", ".typed", ".yaml"))}
        assert shipped == {*(f"secretfs/{module}" for module in MODULES), *DATA}
        assert {"pyproject.toml", "LICENSE", "README.md", "PKG-INFO", *UNITS} <= names


def _built(source: Path, hook: str) -> Path:
    """Build as pip does in the environment as it is, by the hooks of PEP 517."""
    output = source.parent / f"{source.name}-{hook}"
    code = f"import setuptools.build_meta as build; build.{hook}({str(output)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = output.iterdir()
    return built
