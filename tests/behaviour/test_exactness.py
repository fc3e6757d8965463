"""Ordinary programs get exact bytes and sizes, from a secret that nobody has read before and from a cached one."""

import json
import mmap
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest

from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.servers.openbao import OpenBao
from tests.support.shell import errno_of, lines, output, run
from tests.support.values import binary, text

pytestmark = pytest.mark.mount

SIZES = (0, 1, 4095, 4096, 4097, 200_000, 2_000_000)
SIZES_OF_A_VARIABLE = (0, 1, 4095, 4096, 4097, 50_000)
STORES = ("file", "vault", "env")

Contents = dict[str, bytes]
Sizes = dict[str, int]


# --- programs that read ---


def cat(folder: Path, names: list[str]) -> Contents:
    return {name: output("cat", folder / name) for name in names}


def dd(folder: Path, names: list[str]) -> Contents:
    return {name: output("dd", f"if={folder / name}", "bs=1000", "status=none") for name in names}


def head_and_tail(folder: Path, names: list[str]) -> Contents:
    return {
        name: output("head", "-c", "3000", folder / name) + output("tail", "-c", "+3001", folder / name)
        for name in names
    }


def shell_redirection(folder: Path, names: list[str]) -> Contents:
    return {name: output("sh", "-c", 'exec cat < "$0"', folder / name) for name in names}


def sendfile(folder: Path, names: list[str]) -> Contents:
    return {name: _sent(folder / name) for name in names}


def _sent(path: Path) -> bytes:
    read_end, write_end = os.pipe()
    content = b""
    with path.open("rb") as file, os.fdopen(read_end, "rb") as pipe, os.fdopen(write_end, "wb"):
        size = os.fstat(file.fileno()).st_size
        while count := os.sendfile(write_end, file.fileno(), None, min(65536, size - len(content))):
            content += pipe.read(count)
        assert os.sendfile(write_end, file.fileno(), None, 1) == 0, "there is more than fstat said"
    return content


def mapped(folder: Path, names: list[str]) -> Contents:
    contents = {}
    for name in names:
        with (folder / name).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                contents[name] = b""  # which cannot be mapped, in any file system
                continue
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
                contents[name] = memory[:]
    return contents


def direct(folder: Path, names: list[str]) -> Contents:
    contents = {}
    for name in names:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_DIRECT)
        try:
            memory = mmap.mmap(-1, 4 << 20)  # is aligned, as O_DIRECT wants it
            contents[name] = memory[: os.readv(descriptor, [memory])]
            memory.close()
        finally:
            os.close(descriptor)
    return contents


def read_backwards(folder: Path, names: list[str]) -> Contents:
    contents = {}
    for name in names:
        with (folder / name).open("rb", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            parts = [os.pread(file.fileno(), 5000, max(at, 0)) for at in range(end - 5000, -5000, -5000)]
            first = end % 5000 or 5000
            contents[name] = b"".join([parts[-1][:first], *reversed(parts[:-1])]) if parts else b""
    return contents


# --- programs that copy: the copy has to be exact ---


def cp(folder: Path, names: list[str]) -> Contents:
    return _copied(folder, names, lambda to: output("cp", "-p", *(folder / name for name in names), to))


def rsync(folder: Path, names: list[str]) -> Contents:
    return _copied(folder, names, lambda to: output("rsync", "--archive", f"{folder}/", to))


def copyfile(folder: Path, names: list[str]) -> Contents:
    return _copied(folder, names, lambda to: [shutil.copyfile(folder / name, to / name) for name in names])


def copytree(folder: Path, names: list[str]) -> Contents:
    return _copied(folder, names, lambda to: shutil.copytree(folder, to, dirs_exist_ok=True))


def _copied(folder: Path, names: list[str], copy: Callable[[Path], object]) -> Contents:
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory)
        copy(target)
        assert sorted(path.name for path in target.iterdir()) == sorted(names)
        return {name: (target / name).read_bytes() for name in names}


def tar(folder: Path, names: list[str]) -> Contents:
    with tarfile.open(fileobj=BytesIO(output("tar", "-c", "-C", folder, "."))) as archive:
        members = [member for member in archive if member.isfile()]
        assert len(members) == len(names)
        return {Path(member.name).name: _member(archive, member) for member in members}


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file
    return file.read()


READERS = (
    cat,
    dd,
    head_and_tail,
    shell_redirection,
    sendfile,
    mapped,
    direct,
    read_backwards,
    cp,
    rsync,
    copyfile,
    copytree,
    tar,
)


# --- programs that ask for the size ---


def stat(folder: Path, names: list[str]) -> Sizes:
    return {name: (folder / name).stat().st_size for name in names}


def scandir(folder: Path, names: list[str]) -> Sizes:
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}


def fstat(folder: Path, names: list[str]) -> Sizes:
    sizes = {}
    for name in names:
        with (folder / name).open("rb") as file:
            sizes[name] = os.fstat(file.fileno()).st_size
    return sizes


def wc(folder: Path, names: list[str]) -> Sizes:
    return {name: int(output("wc", "-c", folder / name).split()[0]) for name in names}


def ls_l(folder: Path, names: list[str]) -> Sizes:
    listed = [line.split() for line in lines("ls", "-l", folder) if not line.startswith("total")]
    return {fields[8]: int(fields[4]) for fields in listed}


def find_size(folder: Path, names: list[str]) -> Sizes:
    return {
        name: int(size)
        for size in names  # a file is named after its size
        for name in lines("find", folder, "-type", "f", "-size", f"{size}c", "-printf", "%f\n")
    }


def find_printf(folder: Path, names: list[str]) -> Sizes:
    listed = (line.split() for line in lines("find", folder, "-type", "f", "-printf", "%f %s\n"))
    return {name: int(size) for name, size in listed}


def du(folder: Path, names: list[str]) -> Sizes:
    return {name: int(output("du", "--bytes", folder / name).split()[0]) for name in names}


MEASURES = (stat, scandir, fstat, wc, ls_l, find_size, find_printf, du)


@dataclass(frozen=True)
class Shelves:
    """A mount where every program finds files of all sizes that no other program has touched."""

    mount: Mounted
    contents: Mapping[str, Contents]
    """By store."""

    def folder(self, store: str, program: str) -> Path:
        return self.mount.path / store / program


@pytest.fixture(scope="module")
def shelves(scratch: Path, own_server: OpenBao) -> Iterator[Shelves]:
    texts = {str(size): text(size) for size in SIZES}
    noises = {str(size): binary(size) for size in SIZES_OF_A_VARIABLE}
    programs = [program.__name__ for program in (*READERS, *MEASURES, test_s)]
    secrets = {f"{program}/{size}": value for program in programs for size, value in texts.items()}
    (scratch / "secrets.json").write_text(json.dumps(secrets))
    for program in programs:
        own_server.put(f"secret/dapr/{program}", texts)
    component(scratch / "manifests", "file", "local.file", {"secretsFile": scratch / "secrets.json"})
    component(scratch / "manifests", "env", "local.env", {"prefix": "SHELF_"})
    component(
        scratch / "manifests",
        "vault",
        "hashicorp.vault",
        {"vaultAddr": own_server.address, "vaultToken": own_server.token},
    )
    environment = {
        f"SHELF_{program}/{size}": os.fsdecode(value) for program in programs for size, value in noises.items()
    }
    with mounted(scratch / "manifests", options=["--deadline=2m"], env=environment) as mount:
        encoded = {size: value.encode() for size, value in texts.items()}
        yield Shelves(mount, {"file": encoded, "vault": encoded, "env": noises})


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("program", READERS, ids=lambda program: program.__name__)
def test_bytes(shelves: Shelves, program: Callable[[Path, list[str]], Contents], store: str) -> None:
    """read-1: Every way to read a file returns the exact bytes of the value, the first time and every later time."""
    folder, expected = shelves.folder(store, program.__name__), shelves.contents[store]
    for temperature in ("cold", "warm"):
        assert program(folder, list(expected)) == expected, temperature


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("program", MEASURES, ids=lambda program: program.__name__)
def test_sizes(shelves: Shelves, program: Callable[[Path, list[str]], Sizes], store: str) -> None:
    """size-1: The size of a file is the number of bytes of its value, even before anybody has read it."""
    contents = shelves.contents[store]
    expected = {name: len(content) for name, content in contents.items()}
    for temperature in ("cold", "warm"):
        assert program(shelves.folder(store, program.__name__), list(contents)) == expected, temperature


@pytest.mark.parametrize("store", STORES)
def test_s(shelves: Shelves, store: str) -> None:
    """size-2: `test -s` and similar checks tell an empty secret from one that is not empty."""
    for name in shelves.contents[store]:
        path = shelves.folder(store, "test_s") / name
        assert run("test", "-s", path).returncode == (name == "0")
        assert run("test", "-e", path).returncode == 0


@pytest.mark.parametrize("store", STORES)
def test_beyond_the_end(shelves: Shelves, store: str) -> None:
    """Reading at or after the end gives nothing (read-1)."""
    for name, content in shelves.contents[store].items():
        with (shelves.folder(store, "cat") / name).open("rb") as file:
            for offset in (len(content), len(content) + 1, len(content) + 8192):
                assert os.pread(file.fileno(), 100, offset) == b""


@pytest.mark.parametrize("store", STORES)
def test_nothing_is_added(shelves: Shelves, store: str) -> None:
    """read-2: A file holds the value and nothing else: no newline is added, no encoding is assumed."""
    for name, content in shelves.contents[store].items():
        assert (shelves.folder(store, "cat") / name).read_bytes() == content


def test_an_empty_file_is_not_a_missing_one(shelves: Shelves) -> None:
    """read-3: An empty value is an empty file, not a missing one."""
    for store in STORES:
        path = shelves.folder(store, "cat") / "0"
        assert (errno_of(path.stat), path.read_bytes(), path.stat().st_size) == ("", b"", 0)
