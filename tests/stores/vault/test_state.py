"""What a store was lent, for the process that takes over: whose state is ours."""

import json
from dataclasses import replace

import pytest

from secretfs.stores.vault.settings import Settings
from secretfs.stores.vault.state import Loans, StateCodec

SETTINGS = Settings(
    address="https://vault.example:8200", namespace="team", engine="database", engine_type="dynamic",
    method="kubernetes", kubernetes_role="app",
)  # fmt: skip


def test_the_state_of_a_version_without_certificates_and_clouds_is_ours() -> None:
    """An upgrade keeps tokens and leases (dynamic-7)."""
    owner = "1a393553302600ca6cca1bbe966becf87a249a90fc083d9c276406dd52b711a7"
    before = json.dumps({"owner": owner, "tokens": [], "leases": []}).encode()
    assert StateCodec(SETTINGS, {}).decode(before) == Loans()


@pytest.mark.parametrize(
    ("changed", "annotations"),
    [
        ({"kubernetes_role": "other"}, {}),
        ({"namespace": ""}, {}),
        ({"aws_role": "app"}, {}),
        ({"token_wrapping_path": "auth/token/create"}, {}),
        ({}, {"secretfs/certificates": "web: {common_name: other.example}"}),
    ],
)
def test_the_state_of_a_component_that_was_edited_is_not(changed: dict[str, str], annotations: dict[str, str]) -> None:
    """Neither a token of another login is used, nor a certificate with another name."""
    state = StateCodec(SETTINGS, {"secretfs/certificates": "web: {common_name: web.example}"}).encode(Loans())
    edited = StateCodec(replace(SETTINGS, **changed), annotations)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the component has been edited"):
        edited.decode(state)
    assert edited.decode(edited.encode(Loans())) == Loans()
