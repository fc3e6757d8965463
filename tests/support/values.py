"""Values for secrets in any size, which no two places of a file have in common."""

import hashlib

from tests.support.canary import secret


def text(size: int, seed: str = "") -> str:
    """Make a text of ``size`` characters, all ASCII; with the mark of a test secret where there is room for it."""
    mark = secret(f"{seed} ")
    digits = hashlib.shake_256(seed.encode()).hexdigest(size // 2 + 1)
    return (mark + digits if size > len(mark) else digits)[:size]


def binary(size: int, seed: str = "") -> bytes:
    """Make ``size`` bytes of any value but NUL; with the mark of a test secret where there is room for it."""
    mark = secret(f"{seed} ").encode()
    noise = bytes(byte or 0xFF for byte in hashlib.shake_256(seed.encode()).digest(size))
    return (mark + noise if size > len(mark) else noise)[:size]


def sealed(number: int, smallest: int = 1) -> str:
    """Make version ``number`` of a value, which carries its own checksum; sizes vary from 100 bytes to 200 KB."""
    body = text(number * 7919 % (200_000 - smallest + 1) + smallest, str(number))
    return f"{number} {hashlib.sha256(body.encode()).hexdigest()} {body}"


def unsealed(content: bytes) -> int:
    """Return the number of a `sealed` value. Fails for one that is torn, cut or mixed."""
    number, digest, body = content.decode().split(" ", 2)
    assert hashlib.sha256(body.encode()).hexdigest() == digest, f"version {number} is torn"
    return int(number)
