"""PEM bundles and PKCS#12 files, made with the package cryptography. Runs in the helper process.

A certificate and a key that do not belong together make no file: programs would load it and refuse every connection.
"""

from collections.abc import Mapping
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    pkcs12 as pkcs12_format,
)

from secretfs.rendering.values import NotText

_IN_PKCS12: Final = (
    rsa.RSAPrivateKey,
    dsa.DSAPrivateKey,
    ec.EllipticCurvePrivateKey,
    ed25519.Ed25519PrivateKey,
    ed448.Ed448PrivateKey,
)
_KEY: Final = b"PRIVATE KEY-----"
_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"


def pem_bundle(parts: Mapping[str, bytes]) -> bytes:
    """Return certificates and keys as one PEM text, in their order. What is DER becomes PEM."""
    texts, certificates, keys = [], list[x509.Certificate](), list[PrivateKeyTypes]()
    for name, part in parts.items():
        if b"-----BEGIN " in part:
            texts.append(part if part.endswith(b"\n") else part + b"\n")
            certificates += _certificates(name, part) if _CERTIFICATE in part else []
            keys += [_key(name, part)] if _KEY in part and b"ENCRYPTED" not in part else []
        else:
            texts.append(_from_der(name, part))
    if keys and certificates:
        _require_match(keys[0], certificates[0])
    return b"".join(texts)


def pkcs12(parts: Mapping[str, bytes]) -> bytes:
    """Return a PKCS#12 file of ``key`` and ``certificate``, with ``chain``, ``name`` and ``password`` if given."""
    own, *more = _certificates("certificate", parts["certificate"])
    chain = [*more, *(_certificates("chain", parts["chain"]) if parts.get("chain") else [])]
    key = _key("key", parts["key"])
    _require_match(key, own)
    password = parts.get("password")
    encryption: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    if not isinstance(key, _IN_PKCS12):
        raise NotText("a PKCS#12 file cannot hold a key of this kind")
    name = parts.get("name") or None
    return pkcs12_format.serialize_key_and_certificates(name, key, own, chain or None, encryption)


def _from_der(name: str, part: bytes) -> bytes:
    try:
        return x509.load_der_x509_certificate(part).public_bytes(Encoding.PEM)
    except ValueError:
        key = _key(name, part)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _certificates(name: str, part: bytes) -> list[x509.Certificate]:
    try:
        return (
            x509.load_pem_x509_certificates(part) if b"-----BEGIN " in part else [x509.load_der_x509_certificate(part)]
        )
    except ValueError:
        raise NotText(f"the value of {name} is no certificate") from None


def _key(name: str, part: bytes) -> PrivateKeyTypes:
    try:
        if b"-----BEGIN " in part:
            return load_pem_private_key(part[_start_of_key(part) :], None)
        return load_der_private_key(part, None)
    except (ValueError, TypeError):
        raise NotText(f"the value of {name} is no private key without a password") from None


def _start_of_key(part: bytes) -> int:
    """Return where the key begins in a PEM text that may have certificates before it."""
    return max(0, part.rfind(b"-----BEGIN ", 0, max(0, part.find(_KEY))))


def _require_match(key: PrivateKeyTypes, certificate: x509.Certificate) -> None:
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*spki) != certificate.public_key().public_bytes(*spki):
        raise NotText("the key does not belong to the certificate")
