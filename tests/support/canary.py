"""The mark that every test secret carries, so that a leak can be recognised wherever it turns up."""

import base64

CANARY = "kanarie-7f3a9e"


def secret(name: str = "value") -> str:
    """Make a value for a secret; different names give different values."""
    return f"{CANARY}-{name}"


def _base64_forms(mark: bytes) -> tuple[str, ...]:
    """Say how ``mark`` looks inside base64 text, at each of the three positions it can have there."""
    forms = []
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + mark).decode()
        # Only characters made of nothing but the mark's bits are the same whatever stands around it.
        forms.append(text[-(-shift * 8 // 6) : (shift + len(mark)) * 8 // 6])
    return tuple(forms)


_FORMS = (CANARY, CANARY.encode().hex(), *_base64_forms(CANARY.encode()))


def leaked(text: str) -> bool:
    """Say whether ``text`` shows a test secret: in plain, in hex or in base64."""
    return any(form in text for form in _FORMS)
