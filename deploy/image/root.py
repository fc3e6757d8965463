"""Make the root of the image from packages that are installed here: ``root.py LIST DIRECTORY``.

The list names packages, one a line; each comes with the entry of dpkg by which scanners know it
(``/var/lib/dpkg/status.d``, as in Google's distroless images). Python's modules come as they are compiled here.
"""

import shutil
import subprocess
import sys
from pathlib import Path

LINKS = ("bin", "lib", "lib64", "sbin")  # to directories of /usr
DIRECTORIES = {"dev": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777, "var/lib/dpkg/status.d": 0o755}
DOCUMENTATION = (
    "/usr/share/doc/",
    "/usr/share/man/",
    "/usr/share/lintian/",
    "/usr/share/locale/",
    "/usr/share/bash-completion/",
)
UNUSED = (
    *(f"/usr/lib/python3.11/{name}/" for name in ("idlelib", "lib2to3", "test")),
    *(f"/usr/lib/python3.11/lib-dynload/{name}." for name in ("_curses", "_curses_panel", "_dbm", "nis", "readline")),
)
MADE = (Path("/etc/ssl/certs"), *Path("/usr/lib/python3.11").rglob("__pycache__"))  # by the scripts of packages
USERS = "root:x:0:0:root:/:/nonexistent\nnonroot:x:65532:65532:nonroot:/:/nonexistent\n"
GROUPS = "root:x:0:\nnonroot:x:65532:\n"


def files_of(package: str) -> list[Path]:
    """List what a package has installed here, except documentation."""
    listed = subprocess.run(["dpkg-query", "-L", package], check=True, capture_output=True, text=True).stdout
    paths = [line for line in listed.splitlines() if line.startswith("/") and line != "/."]
    licence = f"/usr/share/doc/{package}/copyright"
    return [Path(path) for path in paths if path == licence or not path.startswith(DOCUMENTATION + UNUSED)]


def copy(path: Path, root: Path) -> None:
    """Copy a file or a link to the same place below ``root``; of a directory, the mode."""
    there = path.parent.resolve() / path.name  # not through /lib, which is a link
    target = root / there.relative_to("/")
    if there.is_symlink() or there.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_symlink() and not target.exists():
            shutil.copy2(there, target, follow_symlinks=False)
    elif there.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        shutil.copystat(there, target)


def make(packages: list[str], root: Path) -> None:
    """Make the root in a directory that does not exist yet."""
    root.mkdir()
    for name in LINKS:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name, mode in DIRECTORIES.items():
        (root / name).mkdir(parents=True)
        (root / name).chmod(mode)
    for package in packages:
        for path in files_of(package):
            copy(path, root)
        status = subprocess.run(["dpkg-query", "-s", package], check=True, capture_output=True).stdout
        (root / "var/lib/dpkg/status.d" / package).write_bytes(status)
    for place in MADE:
        target = root / place.relative_to("/")
        if target.parent.is_dir():
            shutil.copytree(place, target, symlinks=True, dirs_exist_ok=True)
    (root / "etc/passwd").write_text(USERS, encoding="ascii")
    (root / "etc/group").write_text(GROUPS, encoding="ascii")


if __name__ == "__main__":
    make(Path(sys.argv[1]).read_text(encoding="ascii").split(), Path(sys.argv[2]))
