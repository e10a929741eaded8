"""A principal that no issuer of this deployment has made for it, or whose time it is not, runs nothing."""

from __future__ import annotations

import hashlib
import hmac

import jwt
import pytest
from taskiq.exceptions import SendTaskError

from taskiq_flow_security import AccessDeniedError, AuthenticationError, Principal
from tests.attacks.forging import (
    ABSENT,
    ISSUE_KEY,
    PRINCIPAL,
    SEND_KEY,
    STRANGER_ISSUE_KEY,
    Fields,
    changed,
    claims_of,
    encode,
    header_of,
    issue,
    principal_of,
    read,
    relabelled,
    with_header,
    with_principal,
    write,
)
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, SECRET, Clock, Process


async def _claims(process: Process) -> Fields:
    return claims_of(principal_of(read(await process.genuine())))


async def test_the_helpers_of_these_attacks_issue_principals_that_are_accepted(process: Process) -> None:
    message = read(await process.genuine())
    await process.runs(write(with_principal(message, issue(await _claims(process)))))


HEADERS: dict[str, tuple[Fields, str]] = {
    "alg none": ({"alg": "none"}, "wrong_algorithm"),
    "alg in lower case": ({"alg": "hs256"}, "wrong_algorithm"),
    "alg asymmetric": ({"alg": "EdDSA"}, "wrong_algorithm"),
    "alg absent": ({"alg": ABSENT}, "malformed"),
    "kid unknown": ({"kid": "somebody-else"}, "unknown_key"),
    "kid absent": ({"kid": ABSENT}, "malformed"),
    "kid a list": ({"kid": [ISSUE_KEY.kid]}, "malformed"),
    "typ of a bearer token": ({"typ": "JWT"}, "wrong_type"),
    "typ of an access token": ({"typ": "at+jwt"}, "wrong_type"),
    "typ of a message": ({"typ": "taskiq-message+jws"}, "wrong_type"),
    "typ absent": ({"typ": ABSENT}, "malformed"),
    "jku": ({"jku": "https://attacker.example/keys"}, "malformed"),
    "jwk": ({"jwk": {"kty": "oct", "k": "c2VjcmV0"}}, "malformed"),
    "x5u": ({"x5u": "https://attacker.example/chain"}, "malformed"),
    "x5c": ({"x5c": ["MIIB"]}, "malformed"),
    "crit": ({"crit": ["exp"]}, "malformed"),
    "b64": ({"b64": False, "crit": ["b64"]}, "malformed"),
    "zip": ({"zip": "DEF"}, "malformed"),
}


@pytest.mark.parametrize(("changes", "reason"), HEADERS.values(), ids=HEADERS)
async def test_a_principal_with_a_header_that_is_not_ours_is_refused_even_from_holders_of_both_keys(
    process: Process, changes: Fields, reason: str
) -> None:
    token = issue(await _claims(process), header=changes)
    await process.refuses(write(with_principal(read(await process.genuine()), token)), reason)


async def test_another_header_in_front_of_a_genuine_principal_is_refused(process: Process) -> None:
    message = read(await process.genuine())
    token = with_header(principal_of(message), {"kid": ISSUE_KEY.kid, "alg": "HS256", "typ": "taskiq-principal+jwt"})
    assert token != principal_of(message)
    await process.refuses(write(with_principal(message, token)), "bad_signature")


async def test_no_algorithm_and_no_signature_are_refused(process: Process) -> None:
    message = read(await process.genuine())
    header = encode({**header_of(principal_of(message)), "alg": "none"})
    token = f"{header}.{encode(claims_of(principal_of(message)))}."
    await process.refuses(write(with_principal(message, token)), "wrong_algorithm")


CLAIMS: dict[str, tuple[Fields, str]] = {
    "iss of another": ({"iss": "somebody-else"}, "wrong_issuer"),
    "iss a list": ({"iss": ["taskiq-flow-security"]}, "wrong_issuer"),
    "iss absent": ({"iss": ABSENT}, "invalid_claims"),
    "aud of another": ({"aud": "staging"}, "wrong_audience"),
    "aud a list": ({"aud": ["taskiq-flow", "staging"]}, "wrong_audience"),
    "aud absent": ({"aud": ABSENT}, "invalid_claims"),
    "sub empty": ({"sub": ""}, "invalid_claims"),
    "sub a number": ({"sub": 7}, "invalid_claims"),
    "sub null": ({"sub": None}, "invalid_claims"),
    "sub absent": ({"sub": ABSENT}, "invalid_claims"),
    "roles a string": ({"roles": "processor"}, "invalid_claims"),
    "roles null": ({"roles": None}, "invalid_claims"),
    "roles of numbers": ({"roles": [1]}, "invalid_claims"),
    "roles of lists": ({"roles": [["processor"]]}, "invalid_claims"),
    "roles absent": ({"roles": ABSENT}, "invalid_claims"),
    "permissions a string": ({"permissions": "admin"}, "invalid_claims"),
    "permissions unknown": ({"permissions": ["execute", "root"]}, "invalid_claims"),
    "permissions of numbers": ({"permissions": [1]}, "invalid_claims"),
    "permissions false": ({"permissions": False}, "invalid_claims"),
    "pipelines a string": ({"pipelines": "data"}, "invalid_claims"),
    "pipelines null": ({"pipelines": None}, "invalid_claims"),
    "pipelines absent": ({"pipelines": ABSENT}, "invalid_claims"),
    "api_key_id a number": ({"api_key_id": 7}, "invalid_claims"),
    "txn absent": ({"txn": ABSENT}, "invalid_claims"),
    "txn a number": ({"txn": 7}, "invalid_claims"),
    "jti absent": ({"jti": ABSENT}, "invalid_claims"),
    "nbf absent": ({"nbf": ABSENT}, "invalid_claims"),
    "nbf a string": ({"nbf": "0"}, "invalid_claims"),
    "nbf ahead": ({"nbf": 1_800_001_000}, "not_yet_valid"),
    "exp absent": ({"exp": ABSENT}, "invalid_claims"),
    "exp a string": ({"exp": "9999999999"}, "invalid_claims"),
    "exp true": ({"exp": True}, "invalid_claims"),
    "exp infinite": ({"exp": float("inf")}, "invalid_claims"),
    "exp past": ({"exp": 1_799_999_000}, "expired"),
}


@pytest.mark.parametrize(("changes", "reason"), CLAIMS.values(), ids=CLAIMS)
async def test_claims_that_no_issuer_makes_are_refused_even_from_holders_of_both_keys(
    process: Process, changes: Fields, reason: str
) -> None:
    token = issue(changed(await _claims(process), changes))
    await process.refuses(write(with_principal(read(await process.genuine()), token)), reason)


@pytest.mark.parametrize("claims", [b"[]", b"null", b'"alice"', b"7", b"{", b"", b"[" * 4000, b"\xff"])
async def test_claims_that_are_no_object_are_refused_even_from_holders_of_both_keys(
    process: Process, claims: bytes
) -> None:
    header = encode({"alg": "HS256", "kid": ISSUE_KEY.kid, "typ": "taskiq-principal+jwt"})
    signed = f"{header}.{encode(claims)}"
    token = f"{signed}.{encode(ISSUE_KEY.sign(signed.encode()))}"
    await process.refuses(write(with_principal(read(await process.genuine()), token)), "invalid_claims")


async def test_claims_changed_behind_a_genuine_signature_are_refused(process: Process) -> None:
    message = read(await process.genuine())
    header, _, signature = principal_of(message).split(".")
    claims = {**claims_of(principal_of(message)), "permissions": ["admin"]}
    token = f"{header}.{encode(claims)}.{signature}"
    await process.refuses(write(with_principal(message, token)), "bad_signature")


async def test_a_principal_by_an_unknown_issuer_is_refused(process: Process) -> None:
    token = issue(await _claims(process), STRANGER_ISSUE_KEY)
    await process.refuses(write(with_principal(read(await process.genuine()), token)), "unknown_key")


async def test_a_principal_by_an_unknown_issuer_under_a_known_id_is_refused(process: Process) -> None:
    token = issue(await _claims(process), STRANGER_ISSUE_KEY, {"kid": ISSUE_KEY.kid})
    await process.refuses(write(with_principal(read(await process.genuine()), token)), "bad_signature")


async def test_a_principal_signed_with_the_key_for_messages_is_refused(process: Process) -> None:
    token = issue(await _claims(process), SEND_KEY)
    await process.refuses(write(with_principal(read(await process.genuine()), token)), "bad_signature")


async def test_a_principal_signed_with_the_deployments_secret_itself_is_refused(process: Process) -> None:
    header = encode({"alg": "HS256", "kid": ISSUE_KEY.kid, "typ": "taskiq-principal+jwt"})
    signed = f"{header}.{encode(await _claims(process))}"
    token = f"{signed}.{encode(hmac.digest(SECRET.encode(), signed.encode(), hashlib.sha256))}"
    await process.refuses(write(with_principal(read(await process.genuine()), token)), "bad_signature")


def _bearer(**header: str) -> str:
    claims = {"sub": "alice", "roles": ["processor"], "exp": 1_800_003_600}
    return jwt.encode(claims, SECRET, algorithm="HS256", headers=header)


async def test_a_bearer_token_is_accepted_at_the_edge(process: Process) -> None:
    assert (await process.security.authenticate(bearer=_bearer())).subject == "alice"


@pytest.mark.parametrize("key", [SEND_KEY, None], ids=["signed with the message", "put into it"])
async def test_a_bearer_token_is_no_principal(process: Process, key: object) -> None:
    message = read(await process.genuine())
    if key is None:
        await process.refuses(write(relabelled(message, PRINCIPAL, _bearer())), "bad_signature")
    else:
        await process.refuses(write(with_principal(message, _bearer())), "malformed")


async def test_a_bearer_token_with_the_header_of_a_principal_is_no_principal(process: Process) -> None:
    token = _bearer(kid=ISSUE_KEY.kid, typ="taskiq-principal+jwt")
    await process.refuses(write(with_principal(read(await process.genuine()), token)), "bad_signature")


async def test_a_bearer_token_is_no_label_to_kick_with(process: Process) -> None:
    with pytest.raises(AuthenticationError) as refusal:
        await process.clean.kicker().with_labels(**{PRINCIPAL: _bearer()}).kiq([1])
    assert refusal.value.reason == "malformed"
    assert process.broker.sent == []


async def test_a_principal_label_is_no_bearer_token(process: Process) -> None:
    with pytest.raises(AuthenticationError) as refusal:
        await process.security.authenticate(bearer=process.security.labels_for(PROCESSOR)[PRINCIPAL])
    assert refusal.value.reason == "wrong_type"


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "application/jwt"])
async def test_a_principal_label_under_the_type_of_a_bearer_token_is_none(process: Process, typ: str) -> None:
    token = issue(await _claims(process), header={"typ": typ})
    with pytest.raises(AuthenticationError) as refusal:
        await process.security.authenticate(bearer=token)
    assert refusal.value.reason == "bad_signature"


async def test_a_principal_label_is_no_api_key(process: Process) -> None:
    with pytest.raises(AuthenticationError) as refusal:
        await process.security.authenticate(api_key=process.security.labels_for(PROCESSOR)[PRINCIPAL])
    assert refusal.value.reason == "unknown_api_key"


async def test_another_environments_principal_is_refused_though_the_secret_is_the_same(
    process: Process, new_process: NewProcess
) -> None:
    staging = new_process(principal_audience="staging")
    await process.refuses(await staging.genuine(), "wrong_audience")


async def test_another_issuers_principal_is_refused_though_the_secret_is_the_same(
    process: Process, new_process: NewProcess
) -> None:
    other = new_process(principal_issuer="another-application")
    await process.refuses(await other.genuine(), "wrong_issuer")


async def test_another_deployments_message_is_refused(process: Process, new_process: NewProcess) -> None:
    other = new_process(jwt_secret="the-secret-of-somebody-else-0123456789")
    await process.refuses(await other.genuine(), "unknown_key")


async def test_a_principal_expires_before_its_message(process: Process) -> None:
    labels = process.security.labels_for(PROCESSOR)
    process.clock.now += 100_000
    await process.clean.kicker().with_labels(**labels, queue_ttl=150_000).kiq([1])
    message = process.broker.take()
    process.clock.now += 72_800 + 9
    await process.runs(message)
    process.broker.result_backend.results.clear()
    process.clock.now += 2
    await process.refuses(message, "expired")


async def test_an_expired_principal_cannot_be_kicked_with(process: Process) -> None:
    labels = process.security.labels_for(PROCESSOR)
    process.clock.now += 172_800 + 11
    with pytest.raises(AuthenticationError) as refusal:
        await process.clean.kicker().with_labels(**labels).kiq([1])
    assert refusal.value.reason == "expired"
    assert process.broker.sent == []


async def test_a_message_from_a_process_whose_clock_is_ahead_is_not_valid_yet(
    process: Process, new_process: NewProcess
) -> None:
    ahead = new_process(clock=Clock(process.clock.now + 60))
    await process.refuses(await ahead.genuine(), "not_yet_valid")


async def test_clocks_may_differ_by_the_leeway(process: Process, new_process: NewProcess) -> None:
    ahead = new_process(clock=Clock(process.clock.now + 10))
    await process.runs(await ahead.genuine())


async def test_an_oversized_principal_is_refused_even_from_holders_of_both_keys(process: Process) -> None:
    token = issue({**await _claims(process), "roles": ["processor", "x" * 8192]})
    await process.refuses(write(with_principal(read(await process.genuine()), token)), "oversized")


async def test_a_principal_that_does_not_fit_is_refused_at_the_kick(process: Process) -> None:
    with pytest.raises((AuthenticationError, SendTaskError)) as refusal:
        await process.kick(process.clean, [1], principal=Principal("alice", roles=["processor", "x" * 8192]))
    cause = refusal.value.__cause__ or refusal.value
    assert isinstance(cause, AuthenticationError)
    assert cause.reason == "oversized"
    assert process.broker.sent == []


async def test_a_principal_of_nobodys_making_cannot_be_kicked_with(process: Process) -> None:
    claims = {**await _claims(process), "permissions": ["admin"]}
    for token in (issue(claims, STRANGER_ISSUE_KEY), "alice", "", 7, b"alice", ["alice"]):
        with pytest.raises(AuthenticationError):
            await process.clean.kicker().with_labels(**{PRINCIPAL: token}).kiq([1])  # type: ignore[arg-type]
    assert process.broker.sent == []


@pytest.mark.parametrize("extra", ["=", "==", " ", "\n", "\x00", "."])
async def test_a_verified_principal_is_remembered_only_with_every_byte_of_its_text(
    process: Process, extra: str
) -> None:
    first = read(await process.genuine())
    await process.runs(write(first))
    token = principal_of(first) + extra
    await process.refuses(write(with_principal(read(await process.genuine()), token)), "malformed")


class LyingRoles(frozenset[str]):
    """Roles that claim to be whatever is asked for."""

    def __contains__(self, _: object) -> bool:
        return True

    def isdisjoint(self, _: object) -> bool:
        return False


class LyingPrincipal(Principal):
    """A viewer who passes for anything in the process that it is made in."""

    def _pretend(self) -> frozenset[str]:
        return LyingRoles({"viewer"})

    def _ignore(self, _: object) -> None:
        pass

    roles = property(_pretend, _ignore)


async def test_roles_that_lie_are_taken_for_what_they_hold(process: Process) -> None:
    with pytest.raises(AccessDeniedError) as refusal:
        await process.kick(process.clean, [1], principal=Principal("bob", LyingRoles({"viewer"})))
    assert refusal.value.reason == "acl"


async def test_a_principal_that_lies_to_the_process_that_kicks_does_not_deceive_the_worker(
    process: Process, new_process: NewProcess
) -> None:
    message = await process.kick(process.clean, [1], principal=LyingPrincipal("bob"))
    await new_process().refuses(message, "acl", AccessDeniedError)


@pytest.mark.parametrize("impostor", [None, "alice", {"subject": "alice"}, object()])
async def test_only_a_principal_can_be_acted_as(process: Process, impostor: object) -> None:
    with pytest.raises(TypeError), process.security.acting_as(impostor):  # type: ignore[arg-type]
        pass
