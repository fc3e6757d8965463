"""Fixtures with AWS on loopback. Import those you use: ``from tests.support.aws_fixtures import aws, moto_server``.

One moto serves all tests of a session, and is emptied after each. The machine is none of AWS's, and has no files of it.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.support.opened
from tests.support.servers.aws import Aws
from tests.support.servers.moto_server import Moto, moto

__all__ = ["PARAMETERS", "PATIENT", "SECRETS", "aws", "moto_server", "opened"]

SECRETS = "secretstores.aws.secretmanager"
PARAMETERS = "secretstores.aws.parameterstore"

PATIENT = 20.0
"""Seconds that a store waits: moto is slow on a busy machine, and so is what makes a client."""

opened = functools.partial(tests.support.opened.opened, deadline=PATIENT)
"""Open a store that is patient."""

# A fixture that several modules import is several fixtures; the stash makes them one server.
_MOTO = pytest.StashKey[Moto]()


@pytest.fixture(scope="session")
def moto_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    stash = request.config.stash
    if _MOTO in stash:
        yield stash[_MOTO]
        return
    with moto(tmp_path_factory.mktemp("moto")) as server:
        stash[_MOTO] = server
        yield server
        del stash[_MOTO]


@pytest.fixture
def aws(moto_server: Moto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with Aws(moto_server) as server:
        yield server
    moto_server.reset()
