"""What doctor says of the place of audit records: that of a mount, and nothing is made."""

import os
from pathlib import Path

import pytest

from secretfs.cli.audit_check import examine_audit
from secretfs.cli.diagnose import Level
from secretfs.observe.audit_options import AuditMode, AuditOptions


def test_without_an_audit_log_nothing_is_said() -> None:
    assert list(examine_audit(AuditOptions())) == []


@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_can_be_written_to(tmp_path: Path, *, there: bool) -> None:
    path = tmp_path / "log"
    if there:
        path.write_bytes(b"before\n")
    (finding,) = examine_audit(AuditOptions(AuditMode.STRICT, str(path)))
    assert (finding.level, finding.text) == (Level.PASS, f"records go to {path} (strict)")
    assert path.exists() is there
    assert not there or path.read_bytes() == b"before\n"


@pytest.mark.parametrize("way", ["no directory", "a fifo"])
def test_a_file_that_cannot(tmp_path: Path, way: str) -> None:
    path = tmp_path / "log"
    if way == "a fifo":
        os.mkfifo(path)
    else:
        path = tmp_path / "missing/log"
    (finding,) = examine_audit(AuditOptions(AuditMode.OBSERVE, str(path)))
    assert (finding.level, finding.exit_code) == (Level.FAIL, 2)
    assert str(path) in finding.text
    assert finding.fix


def test_standard_output_is_there() -> None:
    (finding,) = examine_audit(AuditOptions(AuditMode.OBSERVE, "-"))
    assert finding.level is Level.PASS
