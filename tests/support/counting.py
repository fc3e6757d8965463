"""Counts the calls of a function of our own, in whichever thread."""

from functools import wraps
from typing import Any

import pytest


def counting(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[None]:
    """Return a list that gets longer with each call of ``owner.name``, which does what it did before."""
    calls: list[None] = []
    original = getattr(owner, name)

    @wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls
