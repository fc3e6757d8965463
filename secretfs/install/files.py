"""Which files an installation has, and where: units, manual pages, completions, and links to the command."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from click import Command
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from secretfs.install.roff import Page
from secretfs.install.updatedb import forget, prune

UNITS: Final = files("secretfs.install") / "systemd"
_BINDIR: Final = "@bindir@"
_COMPLETIONS: Final[Mapping[type[ShellComplete], str]] = {
    BashComplete: "share/bash-completion/completions/secretfs",
    FishComplete: "share/fish/vendor_completions.d/secretfs.fish",
    ZshComplete: "share/zsh/site-functions/_secretfs",
}
"""Where each shell looks for the completions of a program, below a prefix."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to install: ``prefix`` as the system will see it, below ``root``, which stands for its root."""

    prefix: Path
    root: Path

    def path(self, name: str) -> Path:
        """Return where a file of the prefix is now."""
        return self.below_root(self.prefix / name)

    def below_root(self, path: Path) -> Path:
        """Return where an absolute path of the system is now."""
        return self.root / path.relative_to("/")

    @property
    def links(self) -> Iterator[tuple[Path, str]]:
        """Yield the links, each with the name of the command that it is to. mount(8) looks for its helper in /sbin."""
        yield self.path("bin/secretfs"), "secretfs"
        sbin = Path("/usr/sbin" if self.prefix == Path("/usr") else "/sbin")
        yield self.below_root(sbin / "mount.secretfs"), "mount.secretfs"

    @property
    def updatedb(self) -> Path:
        """The configuration of updatedb. There is no other file in which to say what to leave out."""
        return self.below_root(Path("/etc/updatedb.conf"))


def install(place: Place, commands: Mapping[str, Path], cli: Command, pages: Iterable[Page]) -> None:
    """Install all files, in place of those of another version. ``commands`` are what the links are to, by name."""
    for name, text in _contents(place, cli, pages):
        path = place.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
    for link, name in place.links:
        link.parent.mkdir(parents=True, exist_ok=True)
        command = commands[name]
        if not (_is(link, command) or _is(link, place.below_root(command))):  # a package may have installed it itself
            link.unlink(missing_ok=True)
            link.symlink_to(commands[name])
    prune(place.updatedb)


def uninstall(place: Place, cli: Command, pages: Iterable[Page]) -> None:
    """Remove what `install` has put there. The command itself stays."""
    for name, _ in _contents(place, cli, pages):
        place.path(name).unlink(missing_ok=True)
    own = place.path("bin/secretfs")
    home = own.readlink().parent if own.is_symlink() else place.prefix / "bin"
    for link, _ in place.links:
        if link.is_symlink() and link.readlink().parent == home:  # else it is that of a package
            link.unlink()
    forget(place.updatedb)


def _is(link: Path, command: Path) -> bool:
    return link.exists() and command.exists() and link.samefile(command)


def _contents(place: Place, cli: Command, pages: Iterable[Page]) -> Iterator[tuple[str, str]]:
    """Yield the files below the prefix, with what is in them."""
    for kind in ("system", "user"):
        for unit in (UNITS / kind).iterdir():
            text = unit.read_text(encoding="utf-8")
            yield f"lib/systemd/{kind}/{unit.name}", text.replace(_BINDIR, str(place.prefix / "bin"))
    for shell, path in _COMPLETIONS.items():
        # Not its own source(): that one asks which version of bash is installed here.
        yield path, ShellComplete.source(shell(cli, {}, "secretfs", "_SECRETFS_COMPLETE"))
    for page in pages:
        yield f"share/man/{page.path}", str(page)
