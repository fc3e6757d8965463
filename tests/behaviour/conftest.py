"""The promises of docs/SEMANTICS.md, kept through a real mount. `test_semantics_doc` explains how they are tied."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import ROOT
from tests.support.servers.openbao import OpenBao, openbao
from tests.support.systemd import System, booted
from tests.support.vault_fixtures import kv, openbao_server

__all__ = ["kv", "openbao_server"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the tests of a module a directory."""
    return tmp_path_factory.mktemp("behaviour")


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """Run a server that the tests of a module may stop, hang or break."""
    with openbao(tmp_path_factory.mktemp("own-openbao")) as server:
        yield server


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """Boot a systemd for the tests of a module, and install secretfs in it."""
    with booted() as system:
        system.output("chmod", "o+x", *ROOT.parents)  # in the copy: so that every user reaches the command
        system.output(ROOT / ".venv/bin/secretfs", "install-units")
        yield system
