"""A file that is encrypted with SOPS as a store."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.canary import leaked, secret
from tests.support.command import ROOT
from tests.support.mounted import mounted
from tests.support.shell import errno_of, lines
from tests.support.sops import SOPS, Encrypted, new_key
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.mount

PAGE = (ROOT / "docs/stores/sops.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_recipe_of_the_page(tmp_path: Path) -> None:
    """sops-1: The file that the commands of [stores/sops.md](stores/sops.md) encrypt is served as they say; an edit
    with `sops` shows within seconds, whatever `ttl` is, and a version for other keys is EACCES after `ttl`."""
    (manifest,), (script,), (plain,) = blocks("yaml"), blocks("sh"), blocks("text")
    place = tmp_path / "myapp"
    for folder in (place, tmp_path / "m"):
        folder.mkdir()
    script, manifest = (text.replace("/etc/myapp", str(place)) for text in (script, manifest))
    (tmp_path / "secrets.yaml").write_text(plain.replace("one", secret("one")).replace("two", secret("two")))
    path = {"PATH": f"{SOPS.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    subprocess.run(
        ["bash", "-eu", "-c", script], cwd=tmp_path, env=path, check=True, capture_output=True, timeout=PATIENCE
    )
    assert not leaked((place / "secrets.enc.yaml").read_text())
    for name, ttl in (("sops", "1h"), ("short", "500ms")):
        annotated = f"name: {name}\n  annotations: {{secretfs/ttl: {ttl}}}\n"
        (tmp_path / f"m/{name}.yaml").write_text(manifest.replace("name: sops\n", annotated, 1))
    file = Encrypted(place / "secrets.enc.yaml", place / "age.key", "")
    with mounted(tmp_path / "m", env=path, expect_log=["no key that sops finds decrypts it"]) as mount:
        assert lines("ls", mount.path / "sops") == ["connectionStrings", "redisPassword"]
        sql = mount.path / "sops/connectionStrings/sql"
        assert sql.read_text() == secret("two")
        edit = f"""sops set {shlex.quote(str(file.path))} '["connectionStrings"]["sql"]' '"{secret("new")}"'"""
        env = {**path, "SOPS_AGE_KEY_FILE": str(file.key_file)}
        subprocess.run(["bash", "-c", edit], env=env, check=True, capture_output=True, timeout=PATIENCE)
        wait_until(lambda: sql.read_text() == secret("new"))
        file.write_text(b"redisPassword: x\n", new_key(tmp_path / "other.key"))
        wait_until(lambda: errno_of((mount.path / "short/connectionStrings/sql").read_text) == "EACCES")
