"""What has been revoked concerns those whom it names, and nobody else."""

from __future__ import annotations

import pytest

from taskiq_flow_security.core.principal import Principal
from taskiq_flow_security.core.revocations import Revocations

NOW = 1_800_000_000.0
ADA = Principal("ada", ["admin"], token_id="login-1", token_issued_at=NOW - 60)
KEY = Principal("api-key:k1", ["viewer"], api_key_id="k1")


@pytest.mark.parametrize(
    ("revocations", "rule"),
    [
        (Revocations(subjects={"ada": None}), "revoked.subject"),
        (Revocations(tokens={"login-1": None}), "revoked.token"),
        (Revocations(issued_before=NOW), "revoked.issued_before"),
        (Revocations(subjects={"ada": NOW + 1}), "revoked.subject"),
    ],
)
def test_a_principal_is_revoked_by_the_rule_that_names_it(revocations: Revocations, rule: str) -> None:
    assert revocations
    assert revocations.of_principal(ADA, NOW) == rule
    assert revocations.of_principal(KEY, NOW) is None


def test_an_api_key_is_revoked_by_its_id() -> None:
    revocations = Revocations(api_keys={"k1": None})
    assert revocations.of_principal(KEY, NOW) == "revoked.api_key"
    assert revocations.of_principal(ADA, NOW) is None


def test_what_is_not_named_is_not_revoked() -> None:
    others = Revocations({"k2": None}, {"eve": None}, {"login-2": None}, NOW - 61)
    assert others.of_principal(ADA, NOW) is None
    assert others.of_token("token-1", NOW - 60, NOW) is None
    assert not Revocations()
    assert Revocations().of_principal(ADA, NOW) is None


def test_a_token_is_revoked_by_its_id_or_by_its_age() -> None:
    assert Revocations(tokens={"token-1": None}).of_token("token-1", NOW, NOW) == "revoked.token"
    assert Revocations(issued_before=NOW).of_token("token-1", NOW - 1, NOW) == "revoked.issued_before"
    assert Revocations(issued_before=NOW).of_token("token-1", NOW, NOW) is None


def test_a_revocation_ends_when_it_says() -> None:
    revocations = Revocations(subjects={"ada": NOW})
    assert revocations.of_principal(ADA, NOW - 0.1) == "revoked.subject"
    assert revocations.of_principal(ADA, NOW) is None


def test_a_login_that_does_not_say_when_it_was_made_was_made_before_anything() -> None:
    unknown = Principal("ada", token_issued_at=0)
    assert Revocations(issued_before=1.0).of_principal(unknown, NOW) == "revoked.issued_before"


def test_nobody_is_revoked_for_want_of_a_name() -> None:
    assert Revocations(api_keys={"": None}, tokens={"": None}).of_principal(Principal("ada"), NOW) is None
