"""Many names on a real mount."""

import json
import os
from pathlib import Path

import pytest

from secretfs.daemon.control_client import read_status
from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import mounted

pytestmark = pytest.mark.mount

FOLDERS, SECRETS = 1_000, 100


def test_100_000_names_in_1000_folders_are_walked_after_one_request(tmp_path: Path) -> None:
    """cost-9: A folder is listed in time in proportion to its entries, also among 100,000 names in 1,000 folders."""
    values = {
        f"folder-{folder}": {f"secret-{number}": secret("v") for number in range(SECRETS)} for folder in range(FOLDERS)
    }
    (tmp_path / "secrets.json").write_text(json.dumps(values))
    properties = {"secretsFile": tmp_path / "secrets.json", "nestedSeparator": "/"}
    component(tmp_path / "resources", "file", "local.file", properties)
    with mounted(tmp_path / "resources") as mount:
        directories = files = 0
        for _, inside, here in os.walk(mount.path / "file"):
            directories += len(inside)
            files += len(here)
        assert (directories, files) == (FOLDERS, FOLDERS * SECRETS)
        calls = json.loads(read_status(mount.path))["stores"]["file"]["calls"]
        assert (calls["names"]["made"], calls["fetch"]["made"]) == (1, 0)
