"""What is read of runs and events is what was signed, for this pipeline, environment and purpose."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security import AuthenticationError
from taskiq_flow_security.runs.events import RunEvent, RunEventKind
from taskiq_flow_security.runs.records import Run, RunOutcome, RunState
from taskiq_flow_security.runs.signatures import EVENTS_TTL, EventBatch, RunSignatures
from taskiq_flow_security.tokens import jws
from taskiq_flow_security.tokens.keys import KeySpec, Use
from taskiq_flow_security.tokens.message_signature import MessageSigner
from taskiq_flow_security.tokens.principal_token import PrincipalTokens
from tests.unit.runs.events import NOW, event, run
from tests.unit.tokens.keys import ALGORITHMS, OTHER_SECRET, keyring, public_spec, spec

TTL = 3600.0

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
times = st.floats(0, 4e9, allow_nan=False)
outcomes = st.builds(RunOutcome, st.sampled_from(RunState), st.none() | names, st.none() | names, st.none() | names)
runs = st.builds(Run, names, st.just("data"), names, names, times, st.none() | outcomes)
events = st.builds(
    RunEvent,
    st.just("data"),
    names,
    st.sampled_from(RunEventKind),
    times,
    names,
    names,
    st.none() | names,
    st.none() | names,
)


def signatures(*specs: KeySpec, environment: str = "test") -> RunSignatures:
    return RunSignatures(keyring(*specs), environment, leeway=10)


def signed_run() -> str:
    return signatures().sign_run(run(1), NOW, TTL)


def signed_events(number: int = 1) -> str:
    return signatures().sign_events("data", [event(1), event(2)], "source", number, NOW)


def why_not_run(text: object, *specs: KeySpec, pipeline: str = "data", now: float = NOW) -> str:
    with pytest.raises(AuthenticationError) as refusal:
        signatures(*specs).read_run(text, pipeline, now)
    return refusal.value.reason


def why_not_events(text: object, *specs: KeySpec, pipeline: str = "data", now: float = NOW) -> str:
    with pytest.raises(AuthenticationError) as refusal:
        signatures(*specs).read_events(text, pipeline, now)
    return refusal.value.reason


@given(runs)
def test_a_run_is_read_as_it_was_signed(signed: Run) -> None:
    assert signatures().read_run(signatures().sign_run(signed, NOW, TTL), "data", NOW) == signed


@given(st.lists(events, min_size=1, max_size=5))
def test_events_are_read_as_they_were_signed(signed: list[RunEvent]) -> None:
    text = signatures().sign_events("data", signed, "source", 7, NOW)
    batch = signatures().read_events(text.encode(), "data", NOW)
    assert (batch.events, batch.source, batch.number) == (signed, "source", 7)
    assert all(type(read.kind) is RunEventKind for read in batch.events)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_who_only_verifies_reads_but_does_not_sign(alg: str) -> None:
    signing, verifying = signatures(spec(alg=alg)), signatures(public_spec(alg=alg))
    assert verifying.read_run(signing.sign_run(run(), NOW, TTL), "data", NOW) == run()
    assert verifying.read_events(signing.sign_events("data", [event()], "s", 1, NOW), "data", NOW).events == [event()]
    with pytest.raises(AuthenticationError, match="cannot_issue"):
        verifying.sign_run(run(), NOW, TTL)
    with pytest.raises(AuthenticationError, match="cannot_issue"):
        verifying.sign_events("data", [event()], "s", 1, NOW)


@given(st.data())
def test_no_run_of_which_a_byte_was_changed_is_believed(data: st.DataObject) -> None:
    original = signed_run().encode()
    at = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != original[at]))
    assert why_not_run(bytes(changed))


@given(st.data())
def test_no_events_of_which_a_byte_was_changed_are_believed(data: st.DataObject) -> None:
    original = signed_events().encode()
    at = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != original[at]))
    assert why_not_events(bytes(changed))


@given(st.binary(max_size=200) | st.text(max_size=200) | st.none() | st.integers() | st.lists(st.integers()))
def test_what_is_no_token_is_refused(garbage: object) -> None:
    assert why_not_run(garbage)
    assert why_not_events(garbage)


def test_each_is_refused_for_its_own_reason() -> None:
    for why_not, text in ((why_not_run, signed_run()), (why_not_events, signed_events())):
        assert why_not(text, pipeline="other") == "wrong_audience"
        assert why_not(text, spec(secret=OTHER_SECRET)) == "bad_signature"
        assert why_not(text, spec("two")) == "unknown_key"
        assert why_not(text, now=NOW - 11) == "not_yet_valid"
        assert why_not("x" * (jws.MAX_BYTES + 1)) == "oversized"
        assert why_not(b"\xff" * 100) == "malformed"
    assert why_not_run(signed_run(), now=NOW + TTL + 10) == "expired"
    assert why_not_events(signed_events(), now=NOW + EVENTS_TTL + 10) == "expired"


def test_another_environment_believes_nothing() -> None:
    elsewhere = signatures(environment="production")
    with pytest.raises(AuthenticationError, match="wrong_audience"):
        elsewhere.read_run(signed_run(), "data", NOW)
    with pytest.raises(AuthenticationError, match="wrong_audience"):
        elsewhere.read_events(signed_events(), "data", NOW)


def test_a_batch_holds_events_of_its_own_pipeline_only() -> None:
    mixed = signatures().sign_events("data", [event(1), event(2, "secret")], "source", 1, NOW)
    assert why_not_events(mixed) == why_not_events(mixed, pipeline="secret") == "wrong_audience"


def test_nothing_is_accepted_for_another_purpose() -> None:
    assert why_not_run(signed_events()) == why_not_events(signed_run()) == "wrong_type"
    principals = PrincipalTokens(keyring(), "taskiq-flow-security", "test", 10)
    messages = MessageSigner(keyring(), 10)
    for text in (signed_run(), signed_events()):
        with pytest.raises(AuthenticationError):
            principals.verify(text, NOW)
        with pytest.raises(AuthenticationError):
            messages.read(text, b"", NOW)
    assert why_not_run(messages.sign(b"{}", NOW, NOW + 60)[0]) == "malformed"


def test_events_are_not_signed_with_the_key_that_mints_principals() -> None:
    issuer, sender = spec(uses=frozenset({Use.ISSUE})), spec(uses=frozenset({Use.SEND}))
    assert signatures(issuer).sign_run(run(), NOW, TTL)
    assert signatures(sender).sign_events("data", [event()], "source", 1, NOW)
    with pytest.raises(AuthenticationError, match="cannot_issue"):
        signatures(sender).sign_run(run(), NOW, TTL)  # so a worker makes no runs
    with pytest.raises(AuthenticationError, match="cannot_issue"):
        signatures(issuer).sign_events("data", [event()], "source", 1, NOW)


CLAIMS = EventBatch(
    aud="test", iat=int(NOW), exp=int(NOW) + 60, pipeline_id="data", source="s", number=1, events=[event()]
).model_dump(mode="json")


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["test"]},
        {"iat": None},
        {"iat": "1"},
        {"exp": 1e400},
        {"number": "1"},
        {"number": True},
        {"source": None},
        {"events": None},
        {"events": ["x"]},
        {"events": [["data", "run", "exploded", NOW, "t", "i", None, None]]},
        {"events": [["data", "run", "started", "now", "t", "i", None, None]]},
        {"events": [["data", "run", "started", NOW, "t", {"i": 1}, None, None]]},
        {"events": [["data"]]},
        {"more": 1},
    ],
    ids=str,
)
def test_other_claims_are_refused_even_from_who_holds_the_key(changes: dict[str, object]) -> None:
    key = keyring().signer(Use.SEND, NOW)
    header = {"alg": key.alg, "kid": key.kid, "typ": "taskiq-run-events+jwt"}
    protected = jws.encode_segment(json.dumps(header).encode())

    def sign(claims: dict[str, object]) -> bytes:
        payload = jws.encode_segment(json.dumps(claims).encode())
        return b".".join((protected, payload, jws.sign(key, protected, payload)))

    assert signatures().read_events(sign(CLAIMS), "data", NOW).events == [event()]
    assert why_not_events(sign(CLAIMS | changes)) == "invalid_claims"


def test_what_does_not_fit_into_a_token_is_not_signed() -> None:
    with pytest.raises(AuthenticationError, match="oversized"):
        signatures().sign_run(run()._replace(task_id="x" * 9000), NOW, TTL)
