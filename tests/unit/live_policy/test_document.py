"""Each change makes a document out of another, all or nothing, and can be told entry by entry."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from taskiq_flow_security import ConfigurationError, PolicyChange, Revocation, TaskiqFlowConfig
from taskiq_flow_security.core.principal import Permission
from taskiq_flow_security.live_policy.document import PolicyDocument, Revoked, differences
from taskiq_flow_security.live_policy.in_force import InForce

SETTINGS = TaskiqFlowConfig(
    jwt_secret="a-secret-of-more-than-32-bytes-0123456789",
    pipeline_acls={"data": {"execute": ["processor"]}, "reports": {"read": ["viewer"]}},
    rate_limits={"get_dag": "5/minute"},
)

changes = st.builds(
    PolicyChange,
    pipeline_acls=st.dictionaries(
        st.sampled_from(["data", "reports", "other"]),
        st.none() | st.dictionaries(st.sampled_from(list(Permission)), st.lists(st.sampled_from(["a", "b"]))),
    ),
    roles=st.dictionaries(st.sampled_from(["ada", "bob"]), st.none() | st.lists(st.sampled_from(["a", "b"]))),
    rate_limits=st.dictionaries(st.sampled_from(["get_dag", "whoami"]), st.none() | st.just("1/second")),
)


def test_what_is_changed_comes_before_the_settings_and_the_rest_stays_as_they_say() -> None:
    document = PolicyDocument().changed(
        PolicyChange(
            pipeline_acls={"data": {"execute": ["ops"]}}, roles={"ada": ["ops"]}, rate_limits={"whoami": "1/hour"}
        )
    )
    in_force = InForce.of(SETTINGS, document)
    assert in_force.policy.pipeline_acls["data"][Permission.EXECUTE].roles == {"ops"}
    assert in_force.policy.pipeline_acls["reports"][Permission.READ].roles == {"viewer"}
    assert in_force.roles == {"ada": frozenset({"ops"})}
    assert in_force.rate_limits == {"get_dag": "5/minute", "whoami": "1/hour"}


def test_none_puts_a_name_back_to_the_settings() -> None:
    changed = PolicyDocument().changed(PolicyChange(pipeline_acls={"data": {}}, roles={"ada": []}))
    back = changed.changed(PolicyChange(pipeline_acls={"data": None}))
    assert back.pipeline_acls == {}
    assert back.roles == {"ada": []}
    assert InForce.of(SETTINGS, back).policy.pipeline_acls["data"][Permission.EXECUTE].roles == {"processor"}


@pytest.mark.parametrize(
    "change",
    [
        PolicyChange(pipeline_acls={"task:clean": {"execute": ["a"]}}),
        PolicyChange(pipeline_acls={"endpoint:policy": {"admin": ["a"]}}),
        PolicyChange(pipeline_acls={"*": {"execute": ["a"]}}),
        PolicyChange(pipeline_acls={"data": {"execute": ["*"]}}),
        PolicyChange(task_acls={"": {"execute": ["a"]}}),
    ],
)
def test_what_could_not_be_a_setting_is_refused_with_the_field(change: PolicyChange) -> None:
    with pytest.raises(ConfigurationError, match="_acls"):
        PolicyDocument().changed(change)


@pytest.mark.parametrize(
    "change",
    [
        {"pipeline_acls": {"data": {"fly": ["a"]}}},
        {"rate_limits": {"get_dag": "often"}},
        {"roles": {"ada": ["*"]}},
        {"roles": {"ada": "admin"}},
        {"api_keys": {}},
    ],
)
def test_a_change_that_cannot_be_meant_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PolicyChange.model_validate(change)
    with pytest.raises(ConfigurationError, match="The change is not usable"):
        PolicyChange(**change)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"subject": "a", "token": "b"},
        {"subject": ""},
        {"issued_before": -1.0},
        {"subject": "a", "until": 0},
        {"key": "a"},
        {"signing_key": "a", "until": 5.0},
        {"issued_before": 1.0, "until": 5.0},
    ],
)
def test_a_revocation_names_exactly_one_thing(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Revocation.model_validate(wrong)
    with pytest.raises(ConfigurationError, match="The revocation is not usable"):
        Revocation(**wrong)


def test_what_was_given_by_mistake_is_not_quoted() -> None:
    wrong: Any = {"api_key": ["an API key", "itself"]}
    with pytest.raises(ConfigurationError) as refusal:
        Revocation(**wrong)
    assert "itself']" not in "".join(traceback.format_exception(refusal.value))


def test_of_an_api_key_that_is_revoked_nothing_is_kept_but_its_id() -> None:
    revocation = Revocation(api_key="an API key itself")
    assert "an API key itself" not in repr(revocation)
    assert Revocation(api_key=revocation.api_key) == revocation


@pytest.mark.parametrize(
    "text", ["0123456789ABCDEF", "0123456789abcdef\n", " an-api-key", "sha256:", "sha256:" + "A" * 64]
)
def test_what_is_neither_an_api_key_nor_its_id_is_an_error(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write the id|a hashed API key"):
        Revocation(api_key=text)


def test_a_name_that_only_looks_a_little_like_a_token_can_be_revoked() -> None:
    assert Revocation(token="eyJ.abc").token == "eyJ.abc"
    assert Revocation(token="a.b.c").token == "a.b.c"


def test_a_token_that_is_to_be_revoked_by_itself_is_an_error_that_does_not_quote_it() -> None:
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
    with pytest.raises(ConfigurationError, match="name the token by its jti") as refusal:
        Revocation(token=token)
    assert token not in "".join(traceback.format_exception(refusal.value))


@pytest.mark.parametrize(
    "revocation",
    [
        Revocation(api_key="k"),
        Revocation(subject="ada", until=9.0),
        Revocation(token="t"),
        Revocation(signing_key="kid"),
        Revocation(issued_before=5.0),
    ],
)
def test_a_revocation_can_be_taken_back(revocation: Revocation) -> None:
    kept = Revoked().with_(Revocation(subject="mallory"))
    assert kept.with_(revocation) != kept
    assert kept.with_(revocation).without(revocation).model_copy(update={"reinstated": []}) == kept
    assert Revoked().without(revocation) == Revoked()


def test_an_earlier_moment_takes_nothing_back() -> None:
    revoked = Revoked().with_(Revocation(issued_before=9.0)).with_(Revocation(issued_before=5.0))
    assert revoked.issued_before == 9.0


def test_what_can_be_forgotten_is_forgotten() -> None:
    revoked = Revoked(token={"old": 5.0, "young": 6.0, "never": None})
    assert revoked.at(5.0).token == {"young": 6.0, "never": None}


@given(changes, changes)
def test_the_differences_are_what_leads_from_one_version_to_the_next(first: PolicyChange, second: PolicyChange) -> None:
    old = PolicyDocument().changed(first)
    new = old.changed(second)
    told = {difference.rule: (difference.before, difference.after) for difference in differences(old, new)}
    for setting in ("pipeline_acls", "roles", "rate_limits"):
        before, after = (document.model_dump(mode="json")[setting] for document in (old, new))
        for name in {**before, **after}:
            both = (before.get(name), after.get(name))
            assert told.pop(f"{setting}.{name}", both) == both
            if both[0] == both[1]:
                assert f"{setting}.{name}" not in told
    assert told == {}


def test_revocations_are_told_too() -> None:
    old = PolicyDocument()
    new = old.with_revoked(Revoked().with_(Revocation(subject="ada")).with_(Revocation(issued_before=5.0)))
    assert [str(difference) for difference in differences(old, new)] == ["null -> 5.0", 'null -> "for ever"']
    assert [difference.rule for difference in differences(old, new)] == ["revoked.issued_before", "revoked.subject.ada"]


@given(changes)
def test_a_document_comes_out_of_json_as_it_went_in(change: PolicyChange) -> None:
    document = PolicyDocument().changed(change)
    assert PolicyDocument.model_validate_json(document.model_dump_json()) == document
