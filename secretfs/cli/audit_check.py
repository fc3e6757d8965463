"""Whether audit records can be written, for ``secretfs doctor``: what a mount would find, but no file is made."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from secretfs.cli.diagnose import Finding, Level
from secretfs.errors import ConfigurationError
from secretfs.linux.regular_file import open_regular
from secretfs.observe.audit_options import AuditMode, AuditOptions
from secretfs.observe.audit_sinks import sink_for


def examine_audit(options: AuditOptions) -> Iterator[Finding]:
    """Look at the place of the records, if they are to be kept."""
    if options.mode is AuditMode.OFF:
        return
    try:
        if options.file is None:
            with closing(sink_for(options.to)) as sink:
                sink.open()
        else:
            _require_file(Path(os.path.abspath(options.file)))  # noqa: PTH100 - follows no links: that could hang
    except OSError as error:
        reason = f"cannot write audit records to {options.to}: {error.strerror}"
        yield Finding("audit", reason, Level.FAIL, "name another place with --audit-to", ConfigurationError.exit_code)
    else:
        yield Finding("audit", f"records go to {options.to} ({options.mode.value})")


def _require_file(file: Path) -> None:
    """Raise OSError unless records can be appended to a file, or it can be made."""
    try:
        os.close(open_regular(str(file), os.O_APPEND | os.O_WRONLY))
    except FileNotFoundError:
        if not os.access(file.parent, os.W_OK | os.X_OK):
            raise
