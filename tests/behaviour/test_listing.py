"""What is visible under which name, and what that costs the server, by its own audit log."""

import json
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.servers.openbao import OpenBao
from tests.support.shell import errno_of, lines, output, wait_until
from tests.support.vault_fixtures import Folder

pytestmark = pytest.mark.mount

COUNT = 1000
CONTROL_NAMES = (".bulk.json", ".bulk.env", ".secretfs")
PROBES = (".hidden", ".directory", "autorun.inf", "desktop.ini", ".Trash", ".Trash-0", ".git", "HEAD", ".DS_Store")
LONG = "n" * 300
ODD_NAMES = {
    "plain": "plain",
    "with space": "with space",
    "grüße-😀": "grüße-😀",
    "100%": "100%25",
    ".": "%2E",
    "..": "%2E%2E",
    ".hidden": ".hidden",
    ".bulk.json": "%2Ebulk.json",
    ".secretfs": "%2Esecretfs",
    "a:b": "a:b",
    "new\nline": "new\nline",
    "-rf": "-rf",
    "back\\slash": "back\\slash",
}

FILES = {
    "env/TOKEN",
    "file/db:password",
    "file/folder/inner",
    "vault/db/creds/password",
    "vault/db/creds/user",
    "vault/single/key",
}
DIRECTORIES = {"env", "file", "file/folder", "vault", "vault/db", "vault/db/creds", "vault/single"}


@pytest.fixture(scope="module")
def tree(scratch: Path, openbao_server: OpenBao) -> Iterator[Mounted]:
    """Mount a store of each kind."""
    folder = Folder(openbao_server, "listing")
    folder.put("db/creds", {"user": secret("user"), "password": secret("password")})
    folder.put("single", {"key": secret("key")})
    (scratch / "tree.json").write_text(
        json.dumps({"db": {"password": secret("password")}, "folder/inner": secret("inner")})
    )
    component(scratch / "tree", "file", "local.file", {"secretsFile": scratch / "tree.json"})
    component(scratch / "tree", "env", "local.env", {"prefix": "LISTING_"}, init_timeout="")  # as most are written
    component(scratch / "tree", "vault", "hashicorp.vault", folder.metadata())
    with mounted(scratch / "tree", env={"LISTING_TOKEN": secret("token")}) as mount:
        yield mount


@pytest.fixture(scope="module")
def thousand(scratch: Path, openbao_server: OpenBao) -> Iterator[tuple[Path, Folder]]:
    """Mount a Vault folder with a thousand secrets, each of which is as cold as a test finds it."""
    folder = Folder(openbao_server, "thousand")
    for number in range(COUNT):
        folder.put(f"folder/secret-{number:04}", {"key": secret(str(number))})
    fresh = {"secretfs/ttl": "1h"}  # on a busy machine `ls -l` takes its time, and nothing is to be refreshed meanwhile
    for name, kind in (("map", "map"), ("text", "text")):
        properties = folder.metadata(vaultValueType=kind)
        component(scratch / "thousand", name, "hashicorp.vault", properties, annotations=fresh)
    with mounted(scratch / "thousand", options=["--deadline=2m"]) as mount:  # it takes time to start many processes
        yield mount.path, folder


def value_reads(folder: Folder) -> Counter[str]:
    """Count the requests for values since `OpenBao.forget`, by secret."""
    return Counter(path for operation, path in folder.requests() if operation == "read" and path.startswith("data/"))


# --- what is seen ---


def test_one_directory_for_each_store(tree: Mounted) -> None:
    """see-1: The root has one directory for each secret store of the app, named after its component."""
    assert lines("ls", tree.path) == ["env", "file", "vault"]


def test_single_valued(tree: Mounted) -> None:
    """see-2: In a single-valued store, each secret is a file."""
    assert (tree.path / "env/TOKEN").read_text() == secret("token")
    assert (tree.path / "file/db:password").read_text() == secret("password")


def test_multi_valued(tree: Mounted) -> None:
    """see-3: In a multi-valued store, each secret is a directory with one file for each of its keys."""
    assert lines("ls", tree.path / "vault/db/creds") == ["password", "user"]
    assert (tree.path / "vault/db/creds/user").read_text() == secret("user")


def test_folders(tree: Mounted) -> None:
    """see-4: A "/" in the name of a secret creates folders."""
    assert lines("ls", tree.path / "vault") == ["db", "single"]
    assert (tree.path / "file/folder/inner").read_text() == secret("inner")


def by_find(top: Path) -> set[str]:
    return {line for line in lines("find", ".", "-mindepth", "1", "-printf", "%P\n", cwd=top) if line}


def by_ls_recursively(top: Path) -> set[str]:
    return _by_ls(top, "-R")


def by_ls_all(top: Path) -> set[str]:
    return _by_ls(top, "-laR")


def _by_ls(top: Path, flags: str) -> set[str]:
    found, folder = set(), ""
    for line in output("ls", flags, cwd=top).decode().splitlines():
        if line.endswith(":") and line.startswith("."):
            folder = line[:-1]
        elif line and not line.startswith("total ") and (name := line.split()[-1]) not in (".", ".."):
            found.add(os.path.normpath(f"{folder}/{name}"))
    return found


def by_tree(top: Path) -> set[str]:
    return {os.path.normpath(line) for line in lines("tree", "-afi", "--noreport", ".", cwd=top)} - {"."}


def by_tar(top: Path) -> set[str]:
    with tarfile.open(fileobj=BytesIO(output("tar", "-c", ".", cwd=top))) as archive:
        return {os.path.normpath(name) for name in archive.getnames()} - {"."}


def by_walk(top: Path) -> set[str]:
    return {
        os.path.relpath(Path(folder, name), top) for folder, *kinds in os.walk(top) for names in kinds for name in names
    }


def by_grep(top: Path) -> set[str]:
    files = {os.path.normpath(line) for line in lines("grep", "-rl", "", ".", cwd=top)}
    return files | DIRECTORIES  # it tells only of files


@pytest.mark.parametrize(
    "program",
    [by_find, by_ls_recursively, by_ls_all, by_tree, by_tar, by_walk, by_grep],
    ids=lambda program: program.__name__,
)
def test_programs_that_walk(tree: Mounted, program: Callable[[Path], set[str]]) -> None:
    """see-5: Programs that walk the tree see exactly the secrets: no control name is ever listed."""
    assert program(tree.path) == FILES | DIRECTORIES


@pytest.mark.parametrize("directory", ["", *sorted(DIRECTORIES)])
def test_control_names_are_not_listed(tree: Mounted, directory: str) -> None:
    """No directory lists a name that secretfs keeps for itself (see-5)."""
    assert not set(os.listdir(tree.path / directory)) & set(CONTROL_NAMES)  # noqa: PTH208


def test_folder_before_secret(kv: Folder, scratch: Path) -> None:
    """see-6: If a folder and a secret share a name, the folder is shown; `.bulk.json` has both, and the log says so."""
    kv.put("same", {"key": secret("hidden behind the folder")})
    kv.put("same/inner", {"key": secret("inner")})
    component(scratch / "same", "vault", "hashicorp.vault", kv.metadata())
    with mounted(scratch / "same", expect_log=["vault: the folder same hides the secret of that name"]) as mount:
        assert lines("ls", mount.path / "vault/same") == ["inner"]
        bulk = json.loads((mount.path / "vault/.bulk.json").read_text())
        assert bulk["same"] == {"key": secret("hidden behind the folder")}


# --- names ---


@pytest.fixture(scope="module")
def odd(scratch: Path) -> Iterator[Path]:
    (scratch / "odd.json").write_text(
        json.dumps({name: secret(name) for name in [*ODD_NAMES, LONG, "a//b", "/lead", "tail/"]})
    )
    component(scratch / "odd", "file", "local.file", {"secretsFile": scratch / "odd.json"})
    with mounted(scratch / "odd") as mount:
        yield mount.path / "file"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names(odd: Path, name: str) -> None:
    """name-1: A name stays as it is, except that `%`, NUL, `.`, `..` and control names are percent-encoded."""
    assert (odd / ODD_NAMES[name]).read_text() == secret(name)
    assert ODD_NAMES[name] in os.listdir(odd)  # noqa: PTH208


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/%2Fb", "a//b"), ("%2Flead", "/lead"), ("tail%2F", "tail/")],
    ids=["inner", "leading", "trailing"],
)
def test_slashes(odd: Path, path: str, name: str) -> None:
    """name-2: A "/" that would create an empty path segment is written `%2F`."""
    assert (odd / path).read_text() == secret(name)


def test_long_names(odd: Path) -> None:
    """name-3: A name of more than 255 bytes is shortened and ends in `%~` and a hash."""
    (found,) = [name for name in os.listdir(odd) if name.startswith("nnn")]  # noqa: PTH208
    assert len(found) == 255
    assert found[213:215] == "%~"
    assert (odd / found).read_text() == secret(LONG)


# --- what it costs ---


def test_plain_ls(thousand: tuple[Path, Folder]) -> None:
    """cost-1: A plain `ls` reads no values, however many secrets there are."""
    mountpoint, folder = thousand
    for store in ("map", "text"):
        folder.server.forget()
        assert len(lines("ls", mountpoint / store / "folder")) == COUNT
        assert len(lines("find", mountpoint / store, "-maxdepth", "2", "-name", "secret-*")) == COUNT
        assert Counter(operation for operation, _ in folder.requests()) == {"list": 2}  # the store, and the folder


def test_ls_l(thousand: tuple[Path, Folder]) -> None:
    """cost-2: `ls -l` reads each value once, because it shows sizes."""
    mountpoint, folder = thousand
    folder.server.forget()
    sizes = [line.split()[4] for line in lines("ls", "-l", mountpoint / "text/folder") if "secret-" in line]
    assert len(sizes) == COUNT
    assert "0" not in sizes
    reads = value_reads(folder)
    assert len(reads) == COUNT
    assert set(reads.values()) == {1}


@pytest.mark.parametrize("directory", ["map", "map/folder", "text", "text/folder"])
def test_probes(thousand: tuple[Path, Folder], directory: str) -> None:
    """cost-3: A lookup of a name that does not exist reads no value, so file managers may probe freely."""
    mountpoint, folder = thousand
    folder.server.forget()
    for name in PROBES:
        assert errno_of((mountpoint / directory / name).stat) == "ENOENT"
        assert errno_of((mountpoint / directory / name).read_bytes) == "ENOENT"
        assert errno_of((mountpoint / name).stat) == "ENOENT"
    assert not value_reads(folder)


def test_control_names_below_the_store(tree: Mounted) -> None:
    """see-7: A control name that has no meaning in a directory does not exist there."""
    for directory in ("", "vault/db", "file/folder"):
        for name in (".bulk.json", ".bulk.env"):
            assert errno_of((tree.path / directory / name).stat) == "ENOENT"


def test_a_fresh_value_costs_nothing(thousand: tuple[Path, Folder]) -> None:
    """cost-4: A value younger than `ttl`, with its attributes, is served without a request to the store."""
    mountpoint, folder = thousand
    path = mountpoint / "map/folder/secret-0001/key"
    path.read_bytes()
    folder.server.forget()
    for _ in range(20):
        assert path.read_text() == secret("1")
        assert path.stat().st_size == len(secret("1"))
        output("ls", "-l", path.parent)
    assert folder.requests() == []


def test_a_value_in_use_is_asked_for_again(scratch: Path, kv: Folder) -> None:
    """fresh-4: A value in use is fetched again before its `ttl` ends: readers neither wait for that nor trigger it."""
    kv.put("db", {"key": secret("db")})
    annotations = {"secretfs/ttl": "500ms", "secretfs/deadline": "30s"}
    component(scratch / "short", "vault", "hashicorp.vault", kv.metadata(), annotations=annotations)
    with mounted(scratch / "short") as mount:
        path = mount.path / "vault/db/key"
        path.read_bytes()
        kv.server.forget()
        wait_until(lambda: value_reads(kv)["data/db"] >= 2)  # and nobody looked
        with kv.server.hanging():
            assert path.read_text() == secret("db")  # there are 50 ms at least until it expires


READERS = 200


def test_a_herd_of_threads(thousand: tuple[Path, Folder]) -> None:
    """cost-5: However many programs read a secret at the same time, the store is asked once (single flight)."""
    mountpoint, folder = thousand
    path = mountpoint / "map/folder/secret-0100/key"
    contents: list[str] = []
    start = threading.Barrier(READERS)

    def read() -> None:
        start.wait()
        contents.append(path.read_text())

    threads = [threading.Thread(target=read) for _ in range(READERS)]
    folder.server.forget()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(contents) == {secret("100"): READERS}
    assert value_reads(folder)["data/folder/secret-0100"] == 1


def test_a_herd_of_processes(thousand: tuple[Path, Folder]) -> None:
    """The readers may be processes as well (cost-5)."""
    mountpoint, folder = thousand
    path = mountpoint / "map/folder/secret-0101/key"
    folder.server.forget()
    with ExitStack() as stack:
        with folder.server.hanging():  # so that all of them wait for one answer
            herd = [stack.enter_context(Popen(["cat", path], stdout=PIPE)) for _ in range(READERS)]
            assert all(process.poll() is None for process in herd)
        assert Counter(process.communicate()[0] for process in herd) == {secret("101").encode(): READERS}
    assert value_reads(folder)["data/folder/secret-0101"] == 1
