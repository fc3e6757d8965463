"""Fixtures with a whole Azure on loopback. Import those you use: ``from tests.support.azure_fixtures import azure``."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.keyvault.secrets._shared import http_challenge_cache

from tests.support.canary import secret
from tests.support.servers.azure_keyvault import Azure
from tests.support.servers.azure_logins import CLIENT, TENANT

__all__ = ["TYPE", "azure", "login"]

TYPE = "secretstores.azure.keyvault"


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    """Run Azure where the SDKs find it: behind a proxy, as in many a company. The machine is none of Azure's."""
    (tmp_path / "azure").mkdir()
    with Azure(tmp_path / "azure") as server:
        monkeypatch.setenv("HTTPS_PROXY", server.address)
        monkeypatch.setenv("SSL_CERT_FILE", str(server.ca))
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # no az
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")  # no IMDS, wherever this runs
        http_challenge_cache.clear()  # the SDK remembers for the life of the process what a host wants
        yield server


def login(**more: str) -> dict[str, str]:
    """Return the properties of a component that logs in with a client secret, with or without other ones."""
    return {
        "vaultName": "myvault",
        "azureTenantId": TENANT,
        "azureClientId": CLIENT,
        "azureClientSecret": secret("client-secret"),
        **more,
    }
