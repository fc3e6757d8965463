"""Keep updatedb(8) out of secrets: it walks all that is mounted, and everybody may search its index."""

import re
from pathlib import Path
from typing import Final

_TYPE: Final = "fuse.secretfs"
_LINE: Final = re.compile(r'^(\s*PRUNEFS\s*=\s*"[^"]*)"', re.MULTILINE)
_OURS: Final = re.compile(rf" ?(?<![\w.]){re.escape(_TYPE)}(?![\w.])")


def prune(conf: Path) -> None:
    """Add our type of file system to those that updatedb leaves out, if there is an updatedb.conf."""
    if not conf.exists():
        return
    text = conf.read_text(encoding="utf-8")
    line = _LINE.search(text)
    if line is None:
        conf.write_text(f'{text}PRUNEFS="{_TYPE}"\n', encoding="utf-8")
    elif not _OURS.search(line[0]):
        between = "" if line[1].endswith('"') else " "
        conf.write_text(_LINE.sub(rf'\1{between}{_TYPE}"', text, count=1), encoding="utf-8")


def forget(conf: Path) -> None:
    """Take our type of file system out again."""
    if conf.exists():
        text = conf.read_text(encoding="utf-8")
        conf.write_text(_LINE.sub(lambda line: _OURS.sub("", line[0]), text), encoding="utf-8")
