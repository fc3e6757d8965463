"""A PKI engine of a real OpenBao, with an authority below a root, and roles. Import its fixture: ``pki``."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.support.servers.openbao import OpenBao
from tests.support.vault_auth import count

__all__ = ["Pki", "matches", "pki"]

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Pki:
    """The engine."""

    server: OpenBao
    path: str

    def role(self, name: str, ttl: str = "1h", *, leased: bool = False) -> None:
        """Make a role that issues for any name."""
        any_name = {"allow_any_name": True, "enforce_hostnames": False, "allow_ip_sans": True}
        terms = {"ttl": ttl, "generate_lease": leased, "not_before_duration": "1s", "key_type": "ec", "key_bits": 256}
        self.server.call("POST", f"{self.path}/roles/{name}", {**any_name, **terms})

    def properties(self, **more: str) -> dict[str, str]:
        """Return the properties of a component that serves certificates."""
        return {
            "vaultAddr": self.server.address,
            "vaultToken": self.server.token,
            "enginePath": self.path,
            "vaultEngineType": "pki",
            **more,
        }

    def issued(self, role: str) -> int:
        """Count the certificates that a role was asked for since the server was told to forget."""
        return count(self.server, f"{self.path}/issue/{role}")

    def revoked(self, serial: str) -> bool:
        """Whether a certificate is revoked."""
        return bool(self.server.call("GET", f"{self.path}/cert/{serial}")["data"]["revocation_time"])


def declared(**certificates: Mapping[str, object]) -> dict[str, str]:
    """Return the annotations of a component that declares certificates."""
    return {"secretfs/certificates": yaml.safe_dump({name: dict(each) for name, each in certificates.items()})}


def matches(certificate: bytes, key: bytes) -> bool:
    """Whether a private key is that of a certificate."""
    public = load_pem_private_key(key, None).public_key()
    return bool(x509.load_pem_x509_certificate(certificate).public_key() == public)


@pytest.fixture
def pki(openbao_server: OpenBao) -> Pki:
    """Make an authority that a root has signed, with the role ``web``."""
    number = next(_numbers)
    server, root = openbao_server, openbao_server.mount(f"pki/root{number}", type="pki")
    server.call("POST", f"{root}/root/generate/internal", {"common_name": "root.example", "key_type": "ec"})
    path = server.mount(f"pki/issuing{number}", type="pki")
    request = {"common_name": "issuing.example", "key_type": "ec"}
    csr = server.call("POST", f"{path}/intermediate/generate/internal", request)["data"]["csr"]
    signed = server.call("POST", f"{root}/root/sign-intermediate", {"csr": csr, "common_name": "issuing.example"})[
        "data"
    ]
    chain = "\n".join([signed["certificate"], signed["issuing_ca"]])
    server.call("POST", f"{path}/intermediate/set-signed", {"certificate": chain})
    engine = Pki(server, path)
    engine.role("web")
    server.forget()
    return engine
