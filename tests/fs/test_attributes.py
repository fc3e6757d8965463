"""Owner, group and mode of every kind of inode."""

import os

import pytest

from secretfs.fs.attributes import PermissionPolicy
from secretfs.fs.control_files import BEHIND_LINKS, LISTED, LISTED_READ_ONLY, METRICS
from secretfs.fs.keys import (
    Bulk,
    BulkKey,
    Control,
    ControlKey,
    ControlsKey,
    DirectoryKey,
    FolderKey,
    LeafKey,
    RootKey,
    SecretBulkKey,
    SecretKey,
    ValueKey,
)
from secretfs.permissions import Permissions

DIRECTORIES: list[DirectoryKey] = [RootKey(), FolderKey("vault"), FolderKey("vault", ("a",)), SecretKey("vault", "a")]
FILES_OF_STORES: list[LeafKey] = [
    ValueKey("vault", "a", "k"),
    BulkKey("vault", Bulk.JSON),
    SecretBulkKey("vault", "a", Bulk.ENV),
]


def test_secrets_have_the_owner_group_and_mode_of_the_mount() -> None:
    policy = PermissionPolicy(0o440, 4711, 4712)
    assert {policy.of(key) for key in FILES_OF_STORES} == {Permissions(4711, 4712, 0o440)}
    assert {policy.of(key) for key in DIRECTORIES} == {Permissions(4711, 4712, 0o750)}


def test_without_an_owner_they_belong_to_who_runs_the_process() -> None:
    assert PermissionPolicy().of(FILES_OF_STORES[0]) == Permissions(os.getuid(), os.getgid(), 0o400)


def test_control_files_belong_to_who_runs_the_process() -> None:
    policy = PermissionPolicy(0o444, 4711, 4712)
    assert policy.of(ControlsKey()) == Permissions(os.getuid(), os.getgid(), 0o500)
    assert policy.of(ControlKey(Control.REFRESH)) == Permissions(os.getuid(), os.getgid(), 0o200)
    assert policy.of(ControlKey(Control.STATUS)) == Permissions(os.getuid(), os.getgid(), 0o400)


@pytest.mark.parametrize("control", Control)
def test_every_control_file_has_a_name_and_a_mode(control: Control) -> None:
    assert control in {*LISTED.values(), *LISTED_READ_ONLY.values(), *BEHIND_LINKS.values(), *METRICS.values()}
    assert PermissionPolicy().of(ControlKey(control)).mode
